"""Which days of a log have changed since somebody looked, from the Delta log alone."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from feature_assets.offline import CommitInfo, OfflineStore
from feature_assets.served.shape import log_table, tables_of

_FAR: Final = 10_000
"""Versions that are looked at one by one; after more of them every day counts as changed."""


@dataclass(frozen=True, slots=True)
class ChangedDay:
    """One day of a log: the rows that it has now, and those that came since somebody looked; None if that is not known."""

    day: str
    rows: int
    added: int | None


@dataclass(frozen=True, slots=True)
class Changes:
    """The days that have changed, in order, and the `rows` of the whole log. `seen` is what to ask with the next time."""

    days: tuple[ChangedDay, ...]
    rows: int
    seen: Mapping[str, int]


def changed_days(service: str, offline: OfflineStore, seen: Mapping[str, int]) -> Changes:
    """What became of the log of a service.

    Args:
        seen: the Delta version of each table of the log, by the version of its shape, as the last changes had it.
    """
    rows, added, reached, unknown = Counter[str](), Counter[str](), dict[str, int](), set[str]()
    changed: dict[str, None] = {}
    for table in tables_of(log_table(service), offline):
        version, name = offline.version(table), str(table.version)
        former = seen.get(name)
        if former is None or not former <= version <= former + _FAR:
            state = offline.state(table, at=version)
            unknown.update(state.rows_by_partition if state else ())
        else:
            commits = offline.commits(table, after=former)
            version = max((commit.version for commit in commits), default=former)
            for commit in commits:
                changed.update(dict.fromkeys(_touched(commit)))
                added.update(_added(commit))
        reached[name] = version
        # Counted after the commits were listed: what comes in between is told again the next time.
        state = offline.state(table)
        rows.update(state.rows_by_partition if state else {})
    days = (
        ChangedDay(day, rows[day], None if day in unknown else added[day]) for day in sorted(changed.keys() | unknown)
    )
    return Changes(tuple(days), rows.total(), reached)


def _touched(commit: CommitInfo) -> Iterable[str]:
    return () if commit.kind == "compact" else commit.partitions


def _added(commit: CommitInfo) -> Mapping[str, int]:
    return {day: count for day, (count, _) in json.loads(commit.metadata.get("pushed", "{}")).items()}
