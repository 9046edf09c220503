"""Which partitions rows belong to, by their event times: what Dagster would say, without Dagster.

A time partition is a window from one tick of a cron schedule to the next, in a time zone. Ticks are worked out for one
day of UTC at a time and kept; a frame's rows are then placed by column operations.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise, product
from zoneinfo import ZoneInfo

import polars as pl
from croniter import CroniterBadDateError, croniter

from feature_assets.conform import PartitionSlice
from feature_assets.errors import ContractBroken
from feature_assets.spec import SINGLE, TimePartitions, ViewSpec
from feature_assets.types import microseconds, moment

_DAY = 86_400_000_000
_FIRST_DAY, _LAST_DAY = date(1, 1, 3), date(9999, 12, 28)
# A local clock is set forward or back by an hour at most, as far as Dagster knows.
_SHIFT = timedelta(hours=1)
_SET_AT = (1, 2, 3)
_IN_EVERY_MONTH = 28
_DAYS_KEPT = 4096


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
    first, last = events.min(), events.max()
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        return []
    low, high = microseconds(first), microseconds(last)
    if low // _DAY == high // _DAY:
        # Nearly always: what is pushed has just happened, and lies in one window.
        starts = _ticks(partitions, low // _DAY)
        place = bisect_right(starts, low)
        if 0 < place < len(starts) and high < starts[place]:
            return list(_allowed(partitions, [(starts[place - 1], starts[place])]))
    micros = events.to_physical().drop_nulls()
    days = (micros // _DAY).unique().to_list()
    windows = sorted({window for day in days for window in pairwise(_ticks(partitions, day))})
    if not windows:
        return []
    bounds = pl.Series([start for start, _ in windows], dtype=pl.Int64())
    hit = (bounds.search_sorted(micros, side="right").cast(pl.Int64) - 1).unique().sort().to_list()
    return list(_allowed(partitions, [windows[each] for each in hit if each >= 0]))


def _allowed(partitions: TimePartitions, windows: Iterable[tuple[int, int]]) -> Iterator[PartitionSlice]:
    """Of these windows, those that the definition has."""
    first = microseconds(datetime.fromisoformat(partitions.start))
    end = microseconds(datetime.fromisoformat(partitions.end)) if partitions.end else None
    for start, stop in windows:
        if start >= first and (end is None or stop <= end) and not _is_excluded(partitions, start):
            yield PartitionSlice(_key(partitions, start), moment(start), moment(stop))


@lru_cache(maxsize=_DAYS_KEPT)
def _key(partitions: TimePartitions, start: int) -> str:
    local = moment(start).astimezone(ZoneInfo(partitions.timezone))
    fmt = partitions.fmt
    twice = local.fold == 1 and local.utcoffset() != local.replace(fold=0).utcoffset()
    if twice and "%z" not in fmt and _repeats_every_hour(partitions.cron):
        # The second of two hours that the clock calls the same.
        fmt += "%z"
    return local.strftime(fmt)


@lru_cache(maxsize=_DAYS_KEPT)
def _is_excluded(partitions: TimePartitions, start: int) -> bool:
    for each in partitions.exclusions:
        if croniter.is_valid(each):
            grid = TimePartitions(cron=each, timezone=partitions.timezone, start=partitions.start, fmt=partitions.fmt)
            if start in _ticks(grid, start // _DAY):
                return True
        elif microseconds(datetime.fromisoformat(each)) == start:
            return True
    return False


@lru_cache(maxsize=_DAYS_KEPT)
def _ticks(partitions: TimePartitions, day: int) -> tuple[int, ...]:
    """The ticks of a day of UTC in microseconds, with the last one at or before its start and the first one after it.

    Empty for days that are too near the ends of time to have both.
    """
    zone, start, end = ZoneInfo(partitions.timezone), day * _DAY, (day + 1) * _DAY
    if not _in_calendar(day):
        return ()
    midnight = moment(start).astimezone(zone).replace(tzinfo=None)
    found: set[int] = set()
    try:
        for wall in _walls(partitions.cron, midnight + 2 * _SHIFT, back=True):
            found.update(_instants(wall, zone, partitions.cron))
            if min(found, default=end) <= start and wall < midnight - _SHIFT:
                break
        for wall in _walls(partitions.cron, midnight + 2 * _SHIFT - timedelta(microseconds=1), back=False):
            found.update(_instants(wall, zone, partitions.cron))
            if max(found, default=start) >= end and wall > midnight + timedelta(days=1) + 2 * _SHIFT:
                break
    except (CroniterBadDateError, OverflowError):
        return ()
    ordered = sorted(found)
    low, high = bisect_right(ordered, start), bisect_right(ordered, end - 1)
    return tuple(ordered[max(0, low - 1) : high + 1])


def _in_calendar(day: int) -> bool:
    ordinal = day + date(1970, 1, 1).toordinal()
    return _FIRST_DAY.toordinal() <= ordinal <= _LAST_DAY.toordinal()


def _walls(cron: str, start: datetime, *, back: bool) -> Iterator[datetime]:
    """What the clock on the wall shows at the ticks from `start` on, or back from it; `start` itself not."""
    # Without a zone: croniter knows nothing of clocks that are set.
    ticks = croniter(cron, start, ret_type=datetime)
    while True:
        yield ticks.get_prev() if back else ticks.get_next()


def _instants(wall: datetime, zone: ZoneInfo, cron: str) -> list[int]:
    """When a clock in that zone shows that time: Dagster's rules for the days on which it is set.

    A time that it skips is no tick of a schedule that repeats every hour, and of any other the end of what is skipped;
    a time that it shows twice is two ticks of the former, and of any other the second.
    """
    early, late = (wall.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    exists = early.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == wall
    if not exists:
        if _repeats_every_hour(cron):
            return []
        return [microseconds(wall.replace(minute=0, second=0, tzinfo=zone, fold=0))]
    both = sorted({microseconds(early), microseconds(late)})
    if _repeats_every_hour(cron):
        return both
    return both[:1] if _is_simple(cron) and wall.hour not in _SET_AT else both[-1:]


@lru_cache(maxsize=256)
def _repeats_every_hour(cron: str) -> bool:
    return bool(croniter.expand(cron)[0][1] == ["*"])


@lru_cache(maxsize=256)
def _is_simple(cron: str) -> bool:
    """Whether Dagster finds its ticks without croniter: once a day, week or month; then it looks at fewer hours."""
    minutes, hours, days, months, weekdays = croniter.expand(cron)[0]
    once = all(len(each) == 1 and isinstance(each[0], int) for each in (minutes, hours))
    daily = days == ["*"] and (weekdays == ["*"] or all(isinstance(each, int) for each in weekdays))
    monthly = weekdays == ["*"] and len(days) == 1 and isinstance(days[0], int) and days[0] <= _IN_EVERY_MONTH
    return once and months == ["*"] and (daily or monthly)
