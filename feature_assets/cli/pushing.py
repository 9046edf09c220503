"""`push`: the rows of a file to the views that take those of a push source."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feature_assets.cli.app import app, command
from feature_assets.cli.failures import Mistake
from feature_assets.cli.output import AsJson, Column, counted, show, warn, working
from feature_assets.cli.project import Project
from feature_assets.cli.typed import columns_read
from feature_assets.errors import FeatureAssetsError

if TYPE_CHECKING:
    from feature_assets.push import Pushed


_SECONDS = 30.0
"""So long it waits for the stores; the rows are safe before."""


def _chosen(given: str | None) -> str | None:
    if given is not None and not given:
        raise typer.BadParameter("an event id has at least one character")
    return given


@command(
    app,
    "push",
    section="Compute",
    examples=[
        "push trips trips.csv",
        "push trips trips.parquet --batch 1000 --json",
        "push trips - --event-id 2024-05-01",
    ],
)
def push(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A push source.", show_default=False)],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Rows: .parquet, .csv, .jsonl or .json; - reads JSON from stdin.",
            show_default=False,
        ),
    ],
    event_id: Annotated[
        str | None,
        typer.Option(
            callback=_chosen,
            metavar="ID",
            help="The same file pushed again with the same id changes nothing.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(metavar="ROWS", min=1, help="So many rows are taken, or refused, as a whole.")
    ] = 10_000,
    as_json: AsJson = False,
) -> None:
    """Push rows to every view that takes those of a push source.

    Ends when they are in both stores. A file that is pushed again changes nothing: rows are known by the source's event ids,
    else by being the same rows.
    """
    from feature_assets.intake import fields_of

    project = Project.of(ctx)
    with project.store as store:
        registry = store.registry
        declared = registry.stream_source(source)
        columns = columns_read(file, fields_of(declared, registry.fed_by(source)))
        height = max(map(len, columns.values()), default=0)
        if not height:
            raise Mistake(f"{file} has no rows.")
        taken: list[Pushed] = []
        with working(f"Pushing {counted(height, 'row')} to {source} …"):
            for start in range(0, height, batch):
                rows = {name: values[start : start + batch] for name, values in columns.items()}
                part = None if event_id is None else f"{event_id}/{start}"
                try:
                    taken.append(store.push(source, rows, event_id=part))
                except FeatureAssetsError:
                    if start:
                        warn(f"The first {start:,} rows were taken, the others not. Mend the file and push it again.")
                    raise
            published = taken[-1].wait(_SECONDS)
    if not published:
        warn("A store does not take the rows now. They are safe; when it does, run: feature-assets reconcile")
    told = {
        "source": source,
        "rows": sum(one.rows for one in taken),
        "views": list(taken[-1].views),
        "published": published,
    }
    columns_shown = (
        Column("source", style="name"),
        Column("views", style="name"),
        Column("rows", style="number"),
        Column("published", "in both stores"),
    )
    show([told], columns_shown, as_json=as_json, empty="")
