"""What the point-in-time join has to answer, found twice: by a nested loop that a child could check, and by SQLite.

Neither shares code with the platform, nor with the other. Times are integers in microseconds.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

Keys = tuple[Any, ...]


class Row(NamedTuple):
    """One row of a view's history."""

    keys: Keys
    event: int
    created: int | None
    publication: int
    value: Any


class Moment(NamedTuple):
    """One row of a spine, as one view sees it."""

    keys: Keys
    time: int | None


def by_loop(moment: Moment, history: Sequence[Row], *, ttl: int | None, cutoff: bool) -> Row | None:
    """The row that was the latest known at that moment, found by looking at every row."""
    best: Row | None = None
    for row in history:
        if moment.time is None or None in moment.keys or row.keys != moment.keys:
            continue
        if row.event > moment.time:
            continue
        if ttl is not None and row.event < moment.time - ttl:
            continue
        if cutoff and row.created is not None and row.created > moment.time:
            continue
        if best is None or is_later(row, best):
            best = row
    return best


def is_later(one: Row, other: Row) -> bool:
    if one.event != other.event:
        return one.event > other.event
    if one.created != other.created:
        if one.created is None:
            return False
        if other.created is None:
            return True
        return one.created > other.created
    return one.publication > other.publication


def by_sql(moments: Sequence[Moment], history: Sequence[Row], *, ttl: int | None, cutoff: bool) -> list[Row | None]:
    """The same for all moments, asked of SQLite in one correlated query."""
    width = len(moments[0].keys) if moments else len(history[0].keys) if history else 0
    names = [f"k{position}" for position in range(width)]
    columns = "".join(f", {name}" for name in names)
    marks = ", ?" * width
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(f"CREATE TABLE moment (id INTEGER, time INTEGER{columns})")
        connection.execute(
            f"CREATE TABLE history (id INTEGER, event INTEGER, created INTEGER, publication INTEGER{columns})"
        )
        connection.executemany(
            f"INSERT INTO moment VALUES (?, ?{marks})", [(i, one.time, *one.keys) for i, one in enumerate(moments)]
        )
        connection.executemany(
            f"INSERT INTO history VALUES (?, ?, ?, ?{marks})",
            [(i, one.event, one.created, one.publication, *one.keys) for i, one in enumerate(history)],
        )
        equal = " AND ".join(["1", *(f"h.{name} = m.{name}" for name in names)])
        fresh = "" if ttl is None else f"AND h.event >= m.time - {ttl}"
        known = "AND (h.created IS NULL OR h.created <= m.time)" if cutoff else ""
        found = connection.execute(
            f"""SELECT (SELECT h.id FROM history h
                        WHERE {equal} AND h.event <= m.time {fresh} {known}
                        ORDER BY h.event DESC, h.created DESC NULLS LAST, h.publication DESC LIMIT 1)
                FROM moment m ORDER BY m.id"""
        ).fetchall()
    finally:
        connection.close()
    return [None if row is None else history[row] for (row,) in found]
