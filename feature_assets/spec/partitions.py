"""How the rows of a view are divided."""

from feature_assets.spec.base import Spec

UNPARTITIONED = "all"
"""The `__partition` of every row of a view without partitions."""

SINGLE = "partition"
"""What the one dimension of a view is called that has one only."""


class TimePartitions(Spec, frozen=True, kw_only=True, tag="time"):
    """Consecutive windows of time, each from one tick of a cron schedule in a time zone to the next.

    `start` and `end` are ISO 8601 with an offset; `fmt` writes the start of a window as its key. `exclusions` are
    windows that are left out: starts in ISO 8601, or cron schedules of starts.
    """

    cron: str
    timezone: str
    start: str
    end: str | None = None
    fmt: str
    end_offset: int = 0
    exclusions: tuple[str, ...] = ()


class StaticPartitions(Spec, frozen=True, tag="static"):
    """A fixed list of keys."""

    keys: tuple[str, ...]


class DynamicPartitions(Spec, frozen=True, tag="dynamic"):
    """Keys that are added while the platform runs, kept by Dagster under this name."""

    name: str


Partitions = TimePartitions | StaticPartitions | DynamicPartitions
