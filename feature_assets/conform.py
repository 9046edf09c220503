"""Rows as a function returned them → rows exactly as their view declares them, or an error that names what is wrong.

Nothing is written here. Types are compared before anything is cast: the libraries below cast 0.7 to 0 without a word.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from feature_assets.casting import NotCastable, lossless
from feature_assets.duplicates import superseded, without
from feature_assets.errors import ContractBroken, StoreFull
from feature_assets.spec import PARTITION, UNPARTITIONED, ViewSpec

_RAW = "__raw_"


@dataclass(frozen=True, slots=True)
class PartitionSlice:
    """One partition that rows are published into.

    `start` and `end` (UTC, half open) bound the event timestamps; both None where time does not divide the view.
    `dimensions` are the keys of the other dimensions.
    """

    key: str = UNPARTITIONED
    start: datetime | None = None
    end: datetime | None = None
    dimensions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conformed:
    """Rows that keep their view's contract: its columns in order, of the exact types, and `__partition`.

    `rows` can be read again and again, and only until the surrounding `conformed(…)` ends. `duplicates` counts rows
    that a later one with the same keys and times replaced, `dropped` names columns that the view does not declare.
    """

    rows: pl.LazyFrame
    count: int
    duplicates: int
    dropped: tuple[str, ...]
    first_event: datetime | None
    last_event: datetime | None
    nulls: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Rule:
    """What no row may do: `broken` is true for each row that does."""

    column: str
    broken: pl.Expr
    found: str
    mend: str


class _Words(NamedTuple):
    """What messages say: where rows can be mended, and outside of what no time may lie, by default of the partitions."""

    maker: str
    outside: str


@contextmanager
def conformed(
    view: ViewSpec,
    frame: Any,
    slices: Sequence[PartitionSlice],
    *,
    now: datetime,
    along: Sequence[str] = (),
    maker: str = "",
    outside: str = "",
) -> Iterator[Conformed]:
    """The rows of a materialisation, checked against the declaration.

    Args:
        view: what they have to be.
        frame: a Polars frame, lazy or not, or anything that exports Arrow. A lazy one is computed once, streamed to a
            file that lives as long as this context; more rows than memory holds are fine.
        slices: the partitions that are being published; every row has to belong to one of them.
        now: the present (UTC); no event timestamp may be later than this by more than `view.max_future`.
        along: columns that come along as they are; rows that differ in them are not duplicates.
        maker: where the rows can be mended, in words; by default the view's function.
        outside: outside of what no event timestamp may lie, in words; by default of these partitions.

    Raises:
        ContractBroken: naming column, count, first rows and the mend. Nothing has been written.
    """
    maker = maker or f"in {view.name}()"
    returned = _as_lazy(view, frame)
    names = returned.collect_schema().names()
    dimensions = {name for one in slices for name in one.dimensions}
    place = _place(view, slices)
    if missing := [name for name in view.columns if name not in names]:
        raise ContractBroken(
            f"{place}: the rows have no column '{missing[0]}', which the view declares (they have: {', '.join(names)}). "
            f"Add it {maker}, or take it out of the declaration."
        )
    # What nobody declared is not even computed; it may be of a type that no file holds.
    used = {*view.columns, *dimensions, *along}
    wanted = returned.select(name for name in names if name in used)
    dropped = tuple(name for name in names if name not in used)
    with _readable_again(wanted, computed=not isinstance(frame, pl.LazyFrame)) as rows:
        yield _conform(view, rows, slices, now, dropped, along, _Words(maker, outside))


def _as_lazy(view: ViewSpec, frame: Any) -> pl.LazyFrame:
    if isinstance(frame, pl.DataFrame | pl.LazyFrame):
        return frame.lazy()
    if hasattr(frame, "__arrow_c_stream__"):
        return pl.DataFrame(frame).lazy()
    raise ContractBroken(
        f"{view.name}() returned {type(frame).__name__}. Return a Polars DataFrame or LazyFrame, or an Arrow table."
    )


@contextmanager
def _readable_again(rows: pl.LazyFrame, *, computed: bool) -> Iterator[pl.LazyFrame]:
    if computed:
        yield rows
        return
    with tempfile.TemporaryDirectory(prefix="feature-assets-") as folder:
        staged = Path(folder) / "rows.parquet"
        try:
            rows.sink_parquet(staged, compression="lz4", statistics=False)
        except (pl.exceptions.PolarsError, OSError) as error:
            if not StoreFull.is_told_by(error):
                raise
            raise StoreFull.of_temporary(folder, "the rows to be checked; nothing was published") from error
        yield pl.scan_parquet(staged)


def _conform(
    view: ViewSpec,
    rows: pl.LazyFrame,
    slices: Sequence[PartitionSlice],
    now: datetime,
    dropped: tuple[str, ...],
    along: Sequence[str],
    words: "_Words",
) -> Conformed:
    schema = rows.collect_schema()
    dimensions = {name for one in slices for name in one.dimensions}
    place = _place(view, slices)
    casts, rules = _casts(view, place, schema, words.maker)
    # What was returned stands beside what it becomes, so that one pass can compare the two.
    carried = [pl.col(_RAW + one).alias(one) for one in along]
    both = rows.select(pl.all().name.prefix(_RAW)).with_columns([*casts, *carried])
    both = _with_partition(view, both, slices, dimensions & set(schema))
    rules += _row_rules(view, slices, now, sorted(dimensions & set(schema)), words)
    summary = _summarise(view, both, rules)
    for position, rule in enumerate(rules):
        if count := summary[f"rule{position}"]:
            raise ContractBroken(_message(view, place, rule, both, count, summary["rows"]))
    ordered = both.select(*view.columns, PARTITION, *along)
    duplicates = superseded(ordered, [*identity(view), *along], summary["rows"])
    return Conformed(
        rows=without(ordered, duplicates),
        count=summary["rows"] - duplicates.height,
        duplicates=duplicates.height,
        dropped=dropped,
        first_event=summary["first"],
        last_event=summary["last"],
        nulls={one.name: summary[f"null_{one.name}"] for one in view.features},
    )


def _casts(view: ViewSpec, place: str, schema: pl.Schema, maker: str) -> tuple[list[pl.Expr], list[_Rule]]:
    casts, rules = [], []
    for name, of in view.types.items():
        try:
            cast = lossless(pl.col(_RAW + name), schema[name], of)
        except NotCastable as error:
            raise ContractBroken(f"{place}: '{name}' is declared {of} and came as {schema[name]}. {error}") from None
        casts.append(cast.value.alias(name))
        if cast.broken is not None:
            mend = f"Round, clip or filter on purpose {maker}, or declare another type."
            rules.append(_Rule(name, cast.broken, f"is not {cast.needs or f'a {of}'}", mend))
    return casts, rules


def _row_rules(
    view: ViewSpec, slices: Sequence[PartitionSlice], now: datetime, dimensions: Sequence[str], words: "_Words"
) -> list[_Rule]:
    maker = words.maker
    event = pl.col(view.event_timestamp)
    rules = [
        _Rule(key, pl.col(key).is_null(), "is null", f"Drop those rows {maker}, or give them a key.")
        for key in view.join_keys
    ]
    drop = f"Drop those rows {maker}, or give them a time."
    rules.append(_Rule(view.event_timestamp, event.is_null(), "is null", drop))
    latest = now + view.max_future
    rules.append(
        _Rule(
            view.event_timestamp,
            (event > latest).fill_null(False),
            f"is later than now ({now:%Y-%m-%d %H:%M:%S} UTC) by more than {view.max_future}",
            "Such a row would hold its key's online value until that time comes. Correct the clock or the time zone, "
            "or raise max_future= on purpose.",
        )
    )
    rules.append(
        _Rule(
            view.event_timestamp,
            pl.col(PARTITION).is_null() & event.is_not_null(),
            f"lies outside {words.outside or _extent(slices) + _other_keys(slices, dimensions)}",
            f"Leave such rows out {maker}.",
        )
    )
    return rules


def _with_partition(
    view: ViewSpec, rows: pl.LazyFrame, slices: Sequence[PartitionSlice], dimensions: set[str]
) -> pl.LazyFrame:
    """Adds `__partition`: the key of the slice that a row belongs to, null where none does."""
    _require_dimensions(view, slices, dimensions)
    windows = sorted({(one.start, one.end) for one in slices if one.start is not None and one.end is not None})
    names = sorted(dimensions)
    if not windows:
        position = pl.lit(0, dtype=pl.Int32)
    else:
        starts = pl.Series([start for start, _ in windows], dtype=pl.Datetime("us", "UTC"))
        ends = pl.Series([end for _, end in windows], dtype=pl.Datetime("us", "UTC"))

        def window(events: pl.Series) -> pl.Series:
            found = starts.search_sorted(events, side="right").cast(pl.Int32) - 1
            inside = (found >= 0) & (events < ends.gather(found.clip(0)))
            return found.set(~inside.fill_null(False), None)

        position = pl.col(view.event_timestamp).map_batches(window, return_dtype=pl.Int32, is_elementwise=True)
    if not names:
        keys = pl.Series([one.key for one in sorted(slices, key=_start)], dtype=pl.String)

        def key_of(found: pl.Series) -> pl.Series:
            return keys.gather(found)

        return rows.with_columns(
            position.map_batches(key_of, return_dtype=pl.String, is_elementwise=True).alias(PARTITION)
        )
    of_window = {extent: number for number, extent in enumerate(windows)}
    table = pl.LazyFrame(
        {
            "__window": [of_window.get((one.start, one.end), 0) for one in slices],  # type: ignore[arg-type]
            **{name: [one.dimensions[name] for one in slices] for name in names},
            PARTITION: [one.key for one in slices],
        },
        schema_overrides={"__window": pl.Int32},
    )
    left = ["__window", *(_RAW + name for name in names)]
    typed = [pl.col(_RAW + name).cast(pl.String) for name in names]
    return (
        rows.with_columns(position.alias("__window"), *typed)
        .join(table, left_on=left, right_on=["__window", *names], how="left", maintain_order="left")
        .drop("__window")
    )


def _start(one: PartitionSlice) -> datetime:
    return one.start or datetime.min.replace(tzinfo=UTC)


def _require_dimensions(view: ViewSpec, slices: Sequence[PartitionSlice], given: set[str]) -> None:
    for name in sorted({name for one in slices for name in one.dimensions} - given):
        if len({one.dimensions[name] for one in slices}) > 1:
            raise ContractBroken(
                f"{_place(view, slices)}: several partitions of dimension '{name}' are materialised at once, and the "
                f"rows have no column '{name}' to tell them apart. Return it from {view.name}() (it is dropped unless "
                "declared), or run one partition at a time."
            )


def identity(view: ViewSpec) -> list[str]:
    """The columns by which two rows of one publication are the same row: join keys and times."""
    times = [view.event_timestamp] if view.created_timestamp is None else [view.event_timestamp, view.created_timestamp]
    return [*view.join_keys, *times]


def _summarise(view: ViewSpec, rows: pl.LazyFrame, rules: Sequence[_Rule]) -> dict[str, Any]:
    """Everything that is counted, in one pass over the rows."""
    event = pl.col(view.event_timestamp)
    counts = rows.select(
        pl.len().alias("rows"),
        event.min().alias("first"),
        event.max().alias("last"),
        *(pl.col(one.name).null_count().alias(f"null_{one.name}") for one in view.features),
        *(rule.broken.sum().alias(f"rule{position}") for position, rule in enumerate(rules)),
    )
    return counts.collect(engine="streaming").row(0, named=True)


def _message(view: ViewSpec, place: str, rule: _Rule, rows: pl.LazyFrame, count: int, total: int) -> str:
    offending = rows.with_row_index("__row").filter(rule.broken).head(3).collect(engine="streaming")
    shown = [_shown(view, rule, row, row["__row"]) for row in _in_python(offending).iter_rows(named=True)]
    return _broken(place, rule, count, total, "; ".join(shown))


def _broken(place: str, rule: _Rule, count: int, total: int, shown: str) -> str:
    return f"{place}: '{rule.column}' {rule.found} in {count:,} of {total:,} rows (first: {shown}). {rule.mend}"


def _shown(view: ViewSpec, rule: _Rule, row: Mapping[str, Any], number: int) -> str:
    keys = [f"{key}={row[_RAW + key]!r}" for key in view.join_keys]
    returned = row[_RAW + rule.column]
    shows = returned is not None and rule.column not in view.join_keys and rule.column not in view.personal
    value = [f"{rule.column}={_short(returned)}"] if shows else []
    return ", ".join((*keys, *value, f"row {number}"))


def breaches(
    view: ViewSpec, frame: pl.DataFrame, slices: Sequence[PartitionSlice], *, now: datetime, maker: str, outside: str
) -> list[str | None]:
    """What `conformed` would say of each row if it came alone, None where that is nothing: found for all at once.

    Args: as of `conformed`; the frame has the view's columns, of types that can be cast, and the partitions are such as
        time alone tells apart.
    """
    casts, rules = _casts(view, view.name, frame.schema, maker)
    both = frame.lazy().select(pl.col(view.columns).name.prefix(_RAW)).with_columns(casts)
    both = _with_partition(view, both, slices, set())
    rules += _row_rules(view, slices, now, (), _Words(maker, outside))
    first = pl.coalesce(pl.when(rule.broken).then(number) for number, rule in enumerate(rules))
    found = both.with_columns(first.alias("__rule")).with_row_index("__row").drop_nulls("__rule").collect()
    told: list[str | None] = [None] * frame.height
    for row in _in_python(found).iter_rows(named=True):
        partition, rule = row[PARTITION], rules[row["__rule"]]
        place = view.name if partition in (None, UNPARTITIONED) else f"{view.name}, partition {partition}"
        told[row["__row"]] = _broken(place, rule, 1, 1, _shown(view, rule, row, 0))
    return told


def _in_python(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with times as text where Python has no such time: its years are 1 to 9999, and Polars has more."""
    try:
        rows.rows()
    except (OverflowError, ValueError):
        return rows.with_columns(pl.selectors.temporal().cast(pl.String))
    except pl.exceptions.PanicException:  # years that Polars cannot print either
        return rows.with_columns(pl.selectors.temporal().to_physical())
    return rows


def _short(value: object) -> str:
    text = value.isoformat() if isinstance(value, datetime) else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _place(view: ViewSpec, slices: Sequence[PartitionSlice]) -> str:
    if len(slices) == 1:
        return view.name if slices[0].key == UNPARTITIONED else f"{view.name}, partition {slices[0].key}"
    return f"{view.name}, partitions {slices[0].key} … {slices[-1].key}"


def _other_keys(slices: Sequence[PartitionSlice], dimensions: Sequence[str]) -> str:
    """What the columns of the other dimensions may hold, where the rows have them."""
    keys = {name: sorted({one.dimensions[name] for one in slices}) for name in dimensions}
    return "".join(
        f" with '{name}' {', '.join(map(repr, of[:5]))}{', …' if len(of) > 5 else ''}" for name, of in keys.items()
    )


def _extent(slices: Sequence[PartitionSlice]) -> str:
    starts = [one.start for one in slices if one.start is not None]
    ends = [one.end for one in slices if one.end is not None]
    if not starts or not ends:
        return "the partitions " + ", ".join(one.key for one in slices[:5])
    return f"{min(starts):%Y-%m-%d %H:%M:%S} ≤ t < {max(ends):%Y-%m-%d %H:%M:%S} UTC"
