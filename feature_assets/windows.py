"""Which partitions rows belong to, by their event times: what Dagster would say, without Dagster.

A time partition is a window from one tick of a cron schedule to the next, in a time zone. Ticks are worked out for one
day of UTC at a time and kept; a frame's rows are then placed by column operations. What knows cron is loaded by the first
rows: a server starts without.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise, product

import polars as pl

from feature_assets.conform import PartitionSlice
from feature_assets.errors import ContractBroken
from feature_assets.spec import SINGLE, TimePartitions, ViewSpec
from feature_assets.types import microseconds, moment

_DAY = 86_400_000_000


def slices_of(view: ViewSpec, rows: pl.DataFrame) -> list[PartitionSlice]:
    """The partitions that rows belong to, in the order of time; none for rows that lie in no partition.

    A partition of time counts from its start on, also before Dagster lists it at its end.

    Args:
        rows: the event timestamp (µs, UTC), nulls allowed; and for every dimension but time a column of that name, of
            text. The one dimension of a view that time does not divide is called "partition".

    Raises:
        ContractBroken: such a column is missing.
    """
    others = {name: each for name, each in view.partitions.items() if not isinstance(each, TimePartitions)}
    times = [(name, each) for name, each in view.partitions.items() if isinstance(each, TimePartitions)]
    if missing := [name for name in others if name not in rows.columns]:
        raise ContractBroken(
            f"{view.name}: its partitions are divided by '{missing[0]}', and the rows have no such column. Add it; it is "
            "not stored unless the view declares it."
        )
    windows: Sequence[PartitionSlice] = [PartitionSlice()]
    if times:
        windows = time_slices(times[0][1], rows[view.event_timestamp])
    if not others:
        return list(windows)
    dimensions = rows.select(pl.col(list(others)).cast(pl.String)).unique().drop_nulls().sort(pl.all())
    kept = [each for each in dimensions.iter_rows(named=True) if _are_known(view, each)]
    return [_with_dimensions(window, each, times[0][0] if times else None) for window, each in product(windows, kept)]


def extent_of(view: ViewSpec) -> str:
    """Where the partitions of a view are, in words."""
    said = []
    for name, each in view.partitions.items():
        if isinstance(each, TimePartitions):
            begin, *end = [_utc(text) for text in (each.start, each.end) if text is not None]
            said.append(f"from {begin} to {end[0]} UTC" if end else f"from {begin} UTC on")
        elif keys := getattr(each, "keys", ()):
            said.append(f"'{name}' {', '.join(map(repr, keys[:5]))}{', …' if len(keys) > 5 else ''}")
    return f"the partitions of the view ({'; '.join(said)})" if said else "the partitions of the view"


def _utc(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _are_known(view: ViewSpec, keys: Mapping[str, str]) -> bool:
    """Whether static partitions have these keys. Which keys dynamic ones have, only Dagster knows."""
    return all(key in getattr(view.partitions[name], "keys", (key,)) for name, key in keys.items())


def _with_dimensions(window: PartitionSlice, others: Mapping[str, str], time: str | None) -> PartitionSlice:
    if time is None and list(others) == [SINGLE]:
        return PartitionSlice(others[SINGLE], dimensions=dict(others))
    # As Dagster writes a key of several dimensions: in the order of their names.
    keys = {**others, **({time: window.key} if time is not None else {})}
    joined = "|".join(keys[name] for name in sorted(keys))
    return PartitionSlice(joined, window.start, window.end, dict(others))


def time_slices(partitions: TimePartitions, events: pl.Series) -> list[PartitionSlice]:
    """The windows that have one of these times (µs, UTC) in them, in their order."""
    from feature_assets.ticks import ticks

    first, last = events.min(), events.max()
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        return []
    low, high = microseconds(first), microseconds(last)
    if low // _DAY == high // _DAY:
        # Nearly always: what is pushed has just happened, and lies in one window.
        starts = ticks(partitions, low // _DAY)
        place = bisect_right(starts, low)
        if 0 < place < len(starts) and high < starts[place]:
            return list(_allowed(partitions, [(starts[place - 1], starts[place])]))
    micros = events.to_physical().drop_nulls()
    days = (micros // _DAY).unique().to_list()
    windows = sorted({window for day in days for window in pairwise(ticks(partitions, day))})
    if not windows:
        return []
    bounds = pl.Series([start for start, _ in windows], dtype=pl.Int64())
    hit = (bounds.search_sorted(micros, side="right").cast(pl.Int64) - 1).unique().sort().to_list()
    return list(_allowed(partitions, [windows[each] for each in hit if each >= 0]))


def _allowed(partitions: TimePartitions, windows: Iterable[tuple[int, int]]) -> Iterator[PartitionSlice]:
    """Of these windows, those that the definition has."""
    from feature_assets.ticks import is_excluded, key_of

    first = microseconds(datetime.fromisoformat(partitions.start))
    end = microseconds(datetime.fromisoformat(partitions.end)) if partitions.end else None
    for start, stop in windows:
        if start >= first and (end is None or stop <= end) and not is_excluded(partitions, start):
            yield PartitionSlice(key_of(partitions, start), moment(start), moment(stop))
