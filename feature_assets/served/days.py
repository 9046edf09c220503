"""Which days of a log have changed since somebody looked, from the state of its tables; no data is read."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from feature_assets.offline import OfflineStore
from feature_assets.served.shape import log_table, tables_of

Seen: TypeAlias = Mapping[str, tuple[int, int]]
"""By day: its rows, and a number that changes when rows are erased from it."""


@dataclass(frozen=True, slots=True)
class ChangedDay:
    """One day of a log: the rows that it has now, none if it was removed, and how many more than when somebody looked."""

    day: str
    rows: int
    added: int


@dataclass(frozen=True, slots=True)
class Changes:
    """The days that have changed, in order, and the `rows` of the whole log.

    `versions` are the Delta versions of its tables, by the version of their shape; `seen` is what to ask with next time.
    """

    days: tuple[ChangedDay, ...]
    rows: int
    versions: Mapping[int, int]
    seen: Seen


def changed_days(service: str, offline: OfflineStore, seen: Seen) -> Changes:
    """What became of the log of a service since `seen`."""
    rows, erased, versions = Counter[str](), Counter[str](), dict[int, int]()
    for table in tables_of(log_table(service), offline):
        state = offline.state(table)
        if state is not None:
            rows.update(state.rows_by_partition)
            erased.update(state.publications)
            versions[table.version] = state.version
    now = {day: (count, erased[day]) for day, count in rows.items()}
    changed = sorted(day for day in now.keys() | seen.keys() if now.get(day) != seen.get(day))
    days = (ChangedDay(day, rows[day], rows[day] - seen.get(day, (0, 0))[0]) for day in changed)
    return Changes(tuple(days), rows.total(), versions, now)
