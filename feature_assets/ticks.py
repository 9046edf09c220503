"""The ticks of a cron schedule in a time zone, as Dagster finds them, on days on which clocks are set too."""

from bisect import bisect_right
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from croniter import CroniterBadDateError, croniter

from feature_assets.spec import TimePartitions
from feature_assets.types import microseconds, moment

_DAY = 86_400_000_000
_FIRST_DAY, _LAST_DAY = date(1, 1, 3), date(9999, 12, 28)
# A local clock is set forward or back by an hour at most, as far as Dagster knows.
_SHIFT = timedelta(hours=1)
_SET_AT = (1, 2, 3)
_IN_EVERY_MONTH = 28
_DAYS_KEPT = 4096


@lru_cache(maxsize=_DAYS_KEPT)
def key_of(partitions: TimePartitions, start: int) -> str:
    """The key of the window that starts then (microseconds of 1970, UTC), as Dagster writes it."""
    local = moment(start).astimezone(ZoneInfo(partitions.timezone))
    fmt = partitions.fmt
    twice = local.fold == 1 and local.utcoffset() != local.replace(fold=0).utcoffset()
    if twice and "%z" not in fmt and _repeats_every_hour(partitions.cron):
        # The second of two hours that the clock calls the same.
        fmt += "%z"
    return local.strftime(fmt)


@lru_cache(maxsize=_DAYS_KEPT)
def is_excluded(partitions: TimePartitions, start: int) -> bool:
    """Whether the definition leaves out the window that starts then (microseconds of 1970, UTC)."""
    for each in partitions.exclusions:
        if croniter.is_valid(each):
            grid = TimePartitions(cron=each, timezone=partitions.timezone, start=partitions.start, fmt=partitions.fmt)
            if start in ticks(grid, start // _DAY):
                return True
        elif microseconds(datetime.fromisoformat(each)) == start:
            return True
    return False


@lru_cache(maxsize=_DAYS_KEPT)
def ticks(partitions: TimePartitions, day: int) -> tuple[int, ...]:
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
    found = croniter(cron, start, ret_type=datetime)
    while True:
        yield found.get_prev() if back else found.get_next()


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
