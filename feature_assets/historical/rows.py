"""A spine made of histories: every row of some views in a range of time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

import polars as pl
from polars.io.plugins import register_io_source

from feature_assets.errors import RequestError, WrongType
from feature_assets.historical.spine import EVENT_TIMESTAMP, Spine
from feature_assets.offline import Pinned
from feature_assets.references import ReadPlan
from feature_assets.training import table_label
from feature_assets.types import Timestamp


def every_row(
    plan: ReadPlan,
    pinned: Mapping[str, Pinned],
    *,
    since: datetime | str | None,
    until: datetime | str | None,
    only: Iterable[pl.Expr] = (),
    held: int | None = None,
) -> Spine:
    """Every key and time at which one of the views has a row, from `since` on and before `until`, by time and key.

    `only` are conditions on the key columns that every row has to keep. With `held` so many rows are in memory at once,
    unless more have one and the same time, and the spine is read when it is asked for.

    Raises:
        RequestError: the views are looked up by different keys, or no range is given.
    """
    first, last = _moment("since", since), _moment("until", until)
    if first is None and last is None:
        raise RequestError("There is no spine. Give one, or the range of time to take every row of: since= and until=.")
    if first is not None and last is not None and first > last:
        raise RequestError(
            f"The range of time is empty: it begins with {first:%Y-%m-%d %H:%M:%S}Z and ends before "
            f"{last:%Y-%m-%d %H:%M:%S}Z. Swap them."
        )
    if not plan.reads:
        raise RequestError(
            "Without a spine there must be a view whose rows are taken; give the request data as a spine."
        )
    keys = list(plan.join_keys)
    for read in plan.reads:
        if {column for _, column in read.keys} != set(keys):
            raise RequestError(
                f"Without a spine all views have to be looked up by the same keys, and '{read.name}' is by "
                f"{_listed(dict(read.keys).values())}, all together by {_listed(keys)}. Give a spine that has them all."
            )
    frames = []
    for read in plan.reads:
        event = pl.col(read.view.event_timestamp)
        rows = pinned[table_label(read.view)].rows
        rows = rows if first is None else rows.filter(event >= first)
        rows = rows if last is None else rows.filter(event < last)
        key_of = {column: key for key, column in read.keys}
        frames.append(
            rows.select(*(pl.col(key_of[column]).alias(column) for column in keys), event.alias(EVENT_TIMESTAMP))
        )
    rows = pl.concat(frames).filter(*only)
    in_order = rows.unique().sort(EVENT_TIMESTAMP, *keys)
    if held is None:
        return Spine(in_order.collect(engine="streaming"), EVENT_TIMESTAMP)
    return Spine(_span_by_span(rows, keys, held), EVENT_TIMESTAMP)


def _span_by_span(rows: pl.LazyFrame, keys: Sequence[str], held: int) -> pl.LazyFrame:
    """The distinct rows by time and key, made for one span of time after the other."""
    time = pl.col(EVENT_TIMESTAMP)

    def spans() -> Iterator[pl.LazyFrame]:
        bounds = rows.select(first=time.min(), last=time.max()).collect(engine="streaming")
        waiting = [bounds.select(pl.all().to_physical()).row(0)]
        while waiting:
            first, last = waiting.pop()
            if first is None:
                continue
            ends = pl.Series([first, last]).cast(Timestamp.polars)
            span = rows.filter(time.is_between(ends[0], ends[1]))
            if first < last and span.select(pl.len()).collect(engine="streaming").item() > held:
                middle = (first + last) // 2
                waiting += [(middle + 1, last), (first, middle)]
                continue
            yield span

    def frames(*_: object) -> Iterator[pl.DataFrame]:
        for span in spans():
            yield span.unique().sort(EVENT_TIMESTAMP, *keys).collect(engine="streaming")

    return register_io_source(frames, schema=rows.collect_schema())


def _moment(name: str, given: datetime | str | None) -> datetime | None:
    try:
        moment: datetime | None = Timestamp.parse(given)
    except WrongType as error:
        raise WrongType(f"{name}= {error}.") from None
    return moment


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
