"""`get`: the latest values of some entities, and the values that were right at the times of a spine."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_assets.cli.app import command, group
from feature_assets.cli.failures import Mistake
from feature_assets.cli.output import AsJson, Column, done, note, print_json, table, working
from feature_assets.cli.project import Project
from feature_assets.cli.typed import Pairs, RowsFile, columns_typed, missing, moment
from feature_assets.drafts import drafted
from feature_assets.errors import FeatureAssetsError

if TYPE_CHECKING:
    import polars as pl

    from feature_assets.historical import Progress
    from feature_assets.lookup import OnlineResponse
    from feature_assets.training import TrainingSet

get = group("get", "Feature values: the latest ones, or those of the past.", section="Ask")

Features = Annotated[
    list[str],
    typer.Argument(
        metavar="FEATURES", help="A feature service, or references: view:feature, view:*.", show_default=False
    ),
]
FullNames = Annotated[bool, typer.Option("--full-names", help="Call the answers view__feature.")]
Spine = Annotated[
    str | None,
    typer.Option(
        "--spine",
        "-s",
        metavar="SPINE",
        help="The rows to join to, with keys and a time: .parquet, .csv, .jsonl, a Delta table, or a query: 'SELECT …'.",
        show_default=False,
    ),
]
Since = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Instead of a spine: every row that became true from then on.", show_default=False
    ),
]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="And before then.", show_default=False)]
TimeColumn = Annotated[
    str | None,
    typer.Option(
        "--time", metavar="COLUMN", help="The spine's column of times, if not event_timestamp.", show_default=False
    ),
]

MemoryLimit = Annotated[
    str | None,
    typer.Option(
        "--memory-limit",
        metavar="SIZE",
        help="About how much memory joining may take, as 4GB; the setting memory_limit if not given.",
        show_default=False,
    ),
]

Engine = Annotated[
    str,
    typer.Option(
        metavar="ENGINE",
        help="What joins: polars, daft on all processors of this machine, daft-ray on a Ray cluster.",
    ),
]

_DELTA = ".delta"
_WRITERS = {".csv": "write_csv", ".jsonl": "write_ndjson", ".ndjson": "write_ndjson", ".arrow": "write_ipc"}


def _writable(output: str | None) -> str | None:
    """The place, if its name says a format and its folder is there: known before anything is read."""
    if output is None:
        return None
    path = Path(output)
    if not output.endswith("/") and path.suffix not in (".parquet", _DELTA, *_WRITERS):
        raise Mistake(f"{output} is none of .parquet, {_DELTA}, {', '.join(_WRITERS)}, and no folder/.")
    if not path.parent.is_dir():
        raise Mistake(f"There is no folder {path.parent} to write {path.name} to.")
    return output


Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        callback=_writable,
        metavar="FILE",
        help="Write the rows to .parquet, .csv, .jsonl, .arrow, a .delta table, or Parquet files in a folder/.",
        show_default=False,
    ),
]

_STAGES = {"ordering": ", bringing them into order", "writing": ", writing them in order"}
_STATUS = {
    "PRESENT": "",
    "NULL_VALUE": "null",
    "NOT_FOUND": "not found",
    "OUTSIDE_MAX_AGE": "too old",
    "MASKED": "masked",
}


@command(
    get,
    "online",
    examples=[
        "get online customer_value --entity customer_id=c007",
        "get online customer_orders:spent_7d -e customer_id=c007 -e customer_id=c008 --json",
        "get online customer_value --rows customers.csv --json",
    ],
)
def online(
    ctx: typer.Context,
    features: Features,
    entity: Pairs = None,
    rows: RowsFile = None,
    full_names: FullNames = False,
    as_json: AsJson = False,
) -> None:
    """Look up the latest values of some entities, as a model service gets them.

    Each value comes with its event time, and where there is none, with the reason.
    """
    project = Project.of(ctx)
    asked: str | list[str] = features[0] if len(features) == 1 else features
    lookup = project.store.lookup(asked, full_feature_names=full_names)
    types = {**lookup.plan.join_keys, **{name: field.type for name, field in lookup.plan.request.items()}}
    given = columns_typed(entity, rows, types)
    if lacking := missing(given, types):
        raise _lacking(features, given, lacking, types)
    answer = lookup.read(given)
    if as_json:
        print_json(_answer_rows(answer, given))
    else:
        _print_answer(answer, given)


def _lacking(
    features: Sequence[str], given: Mapping[str, Sequence[Any]], lacking: Sequence[str], types: Mapping[str, Any]
) -> Mistake:
    words = [f"{name} ({types[name]})" for name in lacking]
    need = f"{' and '.join(words)} {'is' if len(words) == 1 else 'are'} needed"
    typed = [f"{name}={values[0]}" for name, values in given.items()] + [f"{name}=…" for name in lacking]
    options = " ".join(f"--entity {shlex.quote(one) if '…' not in one else one}" for one in typed)
    return Mistake(
        f"To look up {', '.join(features)}, {need}.",
        attempt=f"feature-assets get online {shlex.join(features)} {options}",
    )


def _answer_rows(answer: "OnlineResponse", given: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """An object for each entity row: what was asked with, and each feature with status and event time."""
    values = {name: answer.types[name].to_json(answer[name]) for name in answer.names}
    features = [name for name in answer.names if name not in given]
    statuses = {name: answer.status(name) for name in features}
    events = {name: answer.event_timestamps(name) for name in features}
    return [
        {
            "entity": {name: values[name][at] if name in values else given[name][at] for name in given},
            "features": {
                name: {"value": values[name][at], "status": statuses[name][at], "event_timestamp": events[name][at]}
                for name in features
            },
        }
        for at in range(len(answer))
    ]


def _print_answer(answer: "OnlineResponse", given: Mapping[str, Sequence[Any]]) -> None:
    from rich.text import Text

    for number, row in enumerate(_answer_rows(answer, given)):
        if number:
            typer.echo()
        table(
            [
                {
                    "feature": name,
                    "value": "" if one["value"] is None else _shown(one["value"]),
                    "status": Text(_STATUS[one["status"]], "yellow"),
                    "event_timestamp": one["event_timestamp"],
                }
                for name, one in row["features"].items()
            ],
            (
                Column("feature", style="name"),
                Column("value"),
                Column("status", " "),
                Column("event_timestamp", "since", style="dim"),
            ),
            title=", ".join(f"{name} {value}" for name, value in row["entity"].items()),
        )


def _shown(value: Any) -> str:
    """A value as it is: counts elsewhere have separators, a feature's digits do not."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


@command(
    get,
    "historical",
    examples=[
        "get historical customer_value --spine spine.parquet --output training.parquet",
        "get historical customer_orders:spent_7d customer_orders:orders_7d --spine spine.csv",
        "get historical customer_orders:spent_7d --since 2025-03-01 --until 2025-04-01",
        "get historical customer_value --spine spine.parquet --output rows/ --engine daft --memory-limit 4GB",
    ],
)
def historical(
    ctx: typer.Context,
    features: Features,
    spine: Spine = None,
    since: Since = None,
    until: Until = None,
    time: TimeColumn = None,
    output: Output = None,
    full_names: FullNames = False,
    engine: Engine = "polars",
    memory_limit: MemoryLimit = None,
    as_json: AsJson = False,
) -> None:
    """Join features to a spine, each row with the values that were known at its own time.

    The answer has exactly the spine's rows, in the spine's order. Without --output the first rows are shown.
    """
    joining = Joining()
    found = training_set(
        Project.of(ctx),
        features,
        spine,
        since=since,
        until=until,
        time=time,
        full_names=full_names,
        engine=engine,
        memory_limit=memory_limit,
        progress=joining,
    )
    deliver(found, output, joining, as_json=as_json)


class Joining:
    """How far a training set is, told in words to `tell`."""

    tell: Callable[[str], None] = staticmethod(lambda _: None)

    def __call__(self, made: "Progress") -> None:
        self.tell(f"{made.done:,} of {made.rows:,} rows{_STAGES.get(made.stage, '')}")


def training_set(
    project: Project,
    features: Sequence[str],
    spine: str | None,
    *,
    since: str | None,
    until: str | None,
    time: str | None,
    full_names: bool,
    engine: str,
    memory_limit: str | None,
    progress: "Callable[[Progress], None]",
) -> "TrainingSet":
    """The training set of these features, for the rows of a spine or for a span of time."""
    if spine is None and since is None and until is None:
        raise Mistake(
            "It was not said for which rows: give a --spine, or a span of time with --since.",
            attempt=f"feature-assets get historical {shlex.join(features)} --spine spine.parquet",
        )
    first, last = moment("--since", since), moment("--until", until)
    asked: str | list[str] = features[0] if len(features) == 1 else list(features)
    return project.store.get_historical_features(
        spine,
        asked,
        full_feature_names=full_names,
        since=first,
        until=last,
        timestamp_column=time,
        engine=engine,
        memory_limit=memory_limit,
        progress=progress,
    )


def deliver(found: "TrainingSet", output: str | None, joining: Joining, *, as_json: bool) -> None:
    """Write the rows of a training set to a file, or show the first ones."""
    if output is None:
        with working("Joining …") as joining.tell:
            frame = found.collect()
        if as_json:
            print_json(frame.rows(named=True))
        else:
            print_frame(frame)
        return
    with working("Joining …") as joining.tell:
        rows = _written(found, output)
    if as_json:
        print_json({"output": output, "rows": rows})
    else:
        done(f"Wrote {rows:,} rows to {output}")


def _written(found: "TrainingSet", output: str) -> int:
    """Write the rows in the format that the name of the file says; how many there are."""
    import polars as pl

    suffix = Path(output).suffix
    try:
        if suffix == ".parquet" or output.endswith("/"):
            found.write_parquet(output)
            return int(pl.scan_parquet(output).select(pl.len()).collect().item())
        if suffix == _DELTA:
            found.write_delta(output)
            return int(pl.scan_delta(output).select(pl.len()).collect().item())
        frame = found.collect()
        write: Callable[[Path], object] = getattr(frame, _WRITERS[suffix])
        with drafted(output) as draft:
            write(draft)
    except (pl.exceptions.ComputeError, OSError) as error:
        if isinstance(error, FeatureAssetsError):
            raise
        raise Mistake(f"{output} cannot be written: {error}") from error
    return frame.height


def print_frame(frame: "pl.DataFrame", *, rows: int = 20) -> None:
    """The first rows of a frame as a table; many columns are shown one per line for a single row."""
    if not frame.height:
        note("There are no rows.", style="")
        return
    shown = frame.head(rows)
    table(
        [
            {name: "null" if value is None else _cell(value) for name, value in row.items()}
            for row in shown.rows(named=True)
        ],
        tuple(Column(name, name) for name in frame.columns),
    )
    if frame.height > rows:
        note(f"… {frame.height - rows:,} more rows; --output writes all of them.")


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value if hasattr(value, "tzinfo") else _shown(value)
