"""Which partitions of a view a window of time touches, by their keys."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import polars as pl

from feature_assets.spec import TimePartitions
from feature_assets.types import Timestamp
from feature_assets.windows import time_slices


def start_of(key: str, partitions: TimePartitions) -> datetime:
    """When the window of that key begins, in UTC. Where a clock is set back, the key carries its offset.

    Raises:
        ValueError: it is no such key.
    """
    for fmt in (partitions.fmt, f"{partitions.fmt}%z"):
        try:
            found = datetime.strptime(key, fmt)  # noqa: DTZ007 (the zone comes below)
        except ValueError:
            continue
        return (found if found.tzinfo else found.replace(tzinfo=ZoneInfo(partitions.timezone))).astimezone(UTC)
    raise ValueError(f"'{key}' is not written as '{partitions.fmt}'")


def touched(
    keys: Sequence[str], partitions: TimePartitions, first: datetime | None, last: datetime | None
) -> list[str]:
    """The keys, in their order, whose windows have a moment from `first` on and up to `last`, both included."""
    starts = [start_of(key, partitions) for key in keys]
    begin = 0 if first is None else bisect_right(starts, first)
    if begin and first is not None and _end_of(starts[begin - 1], partitions) > first:
        begin -= 1
    end = len(keys) if last is None else bisect_right(starts, last)
    return list(keys[begin:end])


def _end_of(start: datetime, partitions: TimePartitions) -> datetime:
    (window,) = time_slices(partitions, pl.Series([start], dtype=Timestamp.polars))
    return window.end or start


def after(keys: Sequence[str], done: Iterable[str]) -> list[str]:
    """The keys behind the last one of these; all of them if there is none."""
    number = {key: position for position, key in enumerate(keys)}
    last = max((number[key] for key in done if key in number), default=-1)
    return list(keys[last + 1 :])


def overlap(keys: Sequence[str], ours: tuple[str, str], theirs: tuple[str, str] | None) -> bool:
    """Whether two ranges of keys, ends included, have one in common. What is not known may be all of them."""
    number = {key: position for position, key in enumerate(keys)}
    if theirs is None or not {*ours, *theirs} <= number.keys():
        return True
    return number[ours[0]] <= number[theirs[1]] and number[theirs[0]] <= number[ours[1]]
