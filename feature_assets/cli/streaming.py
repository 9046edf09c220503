"""`stream`: consumers of logs such as Kafka's: run them, see how far they are, have them go on elsewhere."""

import logging
import signal
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from feature_assets.cli.app import command, group
from feature_assets.cli.failures import Mistake
from feature_assets.cli.output import AsJson, Column, Yes, confirmed, counted, done, note, print_json, show
from feature_assets.cli.project import Project

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feature_assets.streams.status import ViewStatus

stream = group("stream", "Consumers of streams: run them, and see how far views are.", section="Compute")

Views = Annotated[
    list[str] | None,
    typer.Argument(metavar="[VIEW]...", help="Views; all that take records without any.", show_default=False),
]


@command(
    stream,
    "run",
    examples=["stream run", "stream run driver_trips --metrics-port 9108"],
)
def run(
    ctx: typer.Context,
    views: Views = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=0, max=65535, help="Where Prometheus finds metrics.", show_default=False),
    ] = None,
    metrics_host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address of that port.")] = "127.0.0.1",
) -> None:
    """Consume the sources of views until stopped: each record reaches both stores exactly once.

    Start more of them, on any machine, to share the work. Ctrl-C or SIGTERM ends one when its batch is published. A
    newly published registry is taken up within seconds.
    """
    project = Project.of(ctx)
    settings = project.settings
    # With --verbose there is one that says more.
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    from feature_assets.streams.metrics import serve
    from feature_assets.streams.running import Consumers

    consumers = Consumers(settings, views or ())

    def ended(signum: int, frame: Any) -> None:
        consumers.stop()

    former = {number: signal.signal(number, ended) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for one in consumers.chosen:
            note(f"Consuming {one.source.name} for {one.names}, in the group {one.group}. Ctrl-C ends it.")
        if metrics_port is not None:
            server = serve(
                {name: each.progress for name, each in consumers.running.items()}, metrics_host, metrics_port
            )
            note(f"Metrics at http://{metrics_host}:{server.server_port}/metrics")
        consumers.run()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    for name, each in consumers.running.items():
        progress = each.progress
        letters = f", {counted(progress.letters, 'dead letter')}" if progress.letters else ""
        batches = "1 batch" if progress.batches == 1 else f"{progress.batches:,} batches"
        done(f"{name}: {counted(progress.records, 'record')} in {batches}{letters}.")


@command(stream, "status", examples=["stream status", "stream status driver_trips --json"])
def status(ctx: typer.Context, views: Views = None, as_json: AsJson = False) -> None:
    """Show how far views are with the records of their sources: lag, watermark, dead letters, consumers."""
    from feature_assets.streams.status import status as found

    project = Project.of(ctx)
    each = found(project.registry, project.settings, project.offline, project.online, views or ())
    if as_json:
        print_json([_as_json(one) for one in each])
        return
    rows = [
        {
            "view": one.view,
            "source": one.source,
            "shards": len(one.shards) or None,
            "lag": one.lag,
            "watermark": one.watermark,
            "dead_letters": one.dead_letters,
            "consumers": one.consumers,
            "error": one.error or None,
        }
        for one in each
    ]
    columns = (
        Column("view", style="name"),
        Column("source", style="name"),
        Column("consumers", style="number"),
        Column("shards", style="number"),
        Column("lag", style="number"),
        Column("watermark"),
        Column("dead_letters", "dead letters", style="number"),
        Column("error", style="bad"),
    )
    show(rows, columns, as_json=False, empty="No view takes records.")


def _as_json(one: "ViewStatus") -> "Mapping[str, Any]":
    return {
        "view": one.view,
        "source": one.source,
        "group": one.group,
        "consumers": one.consumers,
        "lag": one.lag,
        "watermark": one.watermark,
        "dead_letters": one.dead_letters,
        "last_dead_letter": one.last_dead_letter,
        "error": one.error or None,
        "shards": [
            # As text: positions of some logs are longer than what a program reads as a number.
            {
                "shard": each.shard,
                "position": None if each.position is None else str(each.position),
                "end": None if each.end is None else str(each.end),
                "lag": each.lag,
            }
            for each in one.shards
        ],
    }


@command(stream, "dead-letters", examples=["stream dead-letters trips", "stream dead-letters trips --limit 100 --json"])
def dead_letters(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A source of records.", show_default=False)],
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="So many, the last first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the records that were no rows, and why. Keys and values are in the Delta table of the dead letters."""
    from feature_assets.streams.dead_letters import dead_letter_store, last

    project = Project.of(ctx)
    project.registry.stream_source(source)
    columns = (
        Column("read_at", "read"),
        Column("stream", style="name"),
        Column("shard", style="name"),
        Column("position", style="number"),
        Column("view", style="name"),
        Column("value_bytes", "bytes", style="number"),
        Column("reason"),
    )
    rows = last(dead_letter_store(project.settings), source, limit)
    show(rows, columns, as_json=as_json, empty=f"No record of {source} is a dead letter.")


@command(
    stream, "seek", examples=["stream seek trips --to earliest", "stream seek trips --to latest --shard rides/3 --yes"]
)
def seek(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A source of records.", show_default=False)],
    to: Annotated[
        Literal["earliest", "latest", "published"],
        typer.Option(
            help="The first record that the stream still has, what comes from now on, or what comes after the published ones "
            "in a mirror that has the same positions.",
            show_default=False,
        ),
    ],
    shard: Annotated[
        str | None, typer.Option(metavar="SHARD", help="One only, as topic/3.", show_default=False)
    ] = None,
    yes: Yes = False,
) -> None:
    """Have consumers go on at the start or the end of a stream, whatever was published of it before.

    For a stream that was made anew, or that has lost records. Stop the consumers first. Records that are read again are
    rows again, unless the source has event ids.
    """
    from feature_assets.streams.dead_letters import dead_letter_store
    from feature_assets.streams.sink import Stores
    from feature_assets.streams.status import seek as sought

    project = Project.of(ctx)
    places = {"earliest": "its start", "latest": "its end", "published": "where it was, in another stream"}
    if not confirmed(f"Have {source} read from {places[to]}?", yes=yes):
        raise Mistake("Nothing was changed.", attempt=f"feature-assets stream seek {source} --to {to} --yes")
    stores = Stores(project.offline, project.online, dead_letter_store(project.settings))
    after = sought(project.registry, project.settings, stores, source, to, shard)
    for one, position in after.items():
        done(f"{one} is read from position {position + 1} on.")
