"""`skew`: what was served against what the offline store says now."""

from typing import Annotated

import typer

from feature_assets.cli.app import app, command
from feature_assets.cli.failures import NotWell
from feature_assets.cli.output import AsJson, Column, print_json, say, table, working
from feature_assets.cli.project import Project


@command(
    app,
    "skew",
    section="Keep in order",
    examples=["skew departure_delay", "skew departure_delay --since 2026-01-01 --tolerance 0.01 --json"],
)
def skew(
    ctx: typer.Context,
    service: Annotated[str, typer.Argument(metavar="SERVICE", help="A service that is logged.", show_default=False)],
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Served from then on (UTC).", show_default=False)
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Served before then (UTC).", show_default=False)
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            min=0,
            max=1,
            help="The share of rows that may differ; as the service declares it if left out.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare what was served with what the offline store says now of the same keys and times.

    Exits with 1 if more of a feature's rows differ than the tolerance allows. Values that were masked are not compared.
    """
    from feature_assets.served.skew import beyond

    store = Project.of(ctx).store
    with working(f"Comparing what {service} served …"):
        found = store.skew(service, since=since, until=until)
    if tolerance is None:
        logging = store.registry.service(service).logging
        tolerance = logging.skew_tolerance if logging else 0.0
    rows = [
        {
            "feature": one.feature,
            "rows": one.rows,
            "equal": one.equal,
            "different": one.different,
            "missing": one.missing,
            "share": one.share,
            "largest": one.largest,
            "examples": list(one.examples),
        }
        for one in found
    ]
    if as_json:
        print_json(rows)
    else:
        shown = [
            {
                **row,
                **{name: str(row[name]) for name in ("rows", "equal", "different", "missing")},
                "share": f"{row['share']:.2%}",
                "largest": "" if row["largest"] is None else f"{row['largest']:g}",
            }
            for row in rows
        ]
        names = ("rows", "equal", "different", "missing", "share")
        columns = [Column("feature", style="name"), *(Column(name, style="number") for name in names)]
        table(shown, [*columns, Column("largest", "largest difference", style="number")])
        for one in found:
            for example in one.examples:
                at = f"{example['served_at']:%Y-%m-%d %H:%M:%S}Z, request {example['request_id']}"
                say(f"{one.feature}: served {example['served']}, offline {example['offline']} ({at})", style="yellow")
    if wrong := beyond(found, tolerance):
        raise NotWell(f"{len(wrong)} features differ.")
