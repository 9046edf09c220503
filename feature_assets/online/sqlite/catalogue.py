"""What is in the file: which view versions have a table with which columns, and the ledger.

`__views` has a row per table: the feature types of its columns, and the latest event timestamp ever written.
`__ledger` has a row per view version and partition: the last publication that is reflected here.
"""

# ruff: noqa: S608 (SQL is put together from names, whose letters spec checks; values are always bound)

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson

from feature_assets.errors import DeclarationError
from feature_assets.online.protocol import AppliedPublication, Ledger, LedgerEntry, refuse_other_types
from feature_assets.online.sqlite.tables import ONLY, Table, quoted
from feature_assets.spec import PUBLICATION, ViewSpec
from feature_assets.types import moment, rfc3339

VIEWS = "__views"
LEDGER = "__ledger"

_BEFORE_ALL = -(2**63)


def stored_columns(connection: sqlite3.Connection, table: Table) -> dict[str, int]:
    """The columns that a table has, each with its place in the primary key or 0; empty where there is no table."""
    return dict(connection.execute("SELECT name, pk FROM pragma_table_info(?)", (table.name,)).fetchall())


def is_prepared(connection: sqlite3.Connection, table: Table) -> bool:
    """Whether the table is there and has every declared column."""
    return (
        bool(stored_columns(connection, table))
        and table_types(table).items() <= _stored_types(connection, table).items()
    )


def table_types(table: Table) -> dict[str, str]:
    """The declared type of each column, as the catalogue keeps them."""
    return {name: str(of) for name, of in table.types.items() if name != PUBLICATION}


def _stored_types(connection: sqlite3.Connection, table: Table) -> dict[str, str]:
    if not _has_catalogue(connection):
        return {}
    found = connection.execute(
        f"SELECT types FROM {VIEWS} WHERE view=? AND version=?", (table.view.name, table.view.version)
    ).fetchone()
    return orjson.loads(found[0]) if found else {}


def _has_catalogue(connection: sqlite3.Connection) -> bool:
    query = "SELECT count(*) FROM sqlite_master WHERE type='table' AND name IN (?, ?)"
    return bool(connection.execute(query, (VIEWS, LEDGER)).fetchone()[0] == 2)


def prepare(connection: sqlite3.Connection, table: Table) -> None:
    """Make the table or add columns, inside the transaction that is open."""
    import sqlite_utils  # It brings pandas along, where that is installed: a second that only DDL has to wait for.

    database = sqlite_utils.Database(connection, recursive_triggers=False, execute_plugins=False)
    if not _has_catalogue(connection):
        _make_catalogue(database)
    _refuse_other_case(connection, table)
    stored = stored_columns(connection, table)
    if not stored:
        never_null = {*table.keys, table.view.event_timestamp, PUBLICATION}
        key = table.keys[0] if len(table.keys) == 1 else table.keys
        database.table(table.name).create(table.sqlite_types, pk=key, not_null=never_null)
        _forget_all(connection, table)  # What is left of a table that was removed by hand.
    else:
        types = _stored_types(connection, table)
        _refuse_other_types(table, stored, types)
        for name in table.sqlite_types.keys() - stored.keys():
            database.table(table.name).add_column(name, table.sqlite_types[name])
    _record_types(connection, table)


def _make_catalogue(database: Any) -> None:
    database[VIEWS].create(
        {"view": "TEXT", "version": "INTEGER", "types": "TEXT", "watermark": "INTEGER"},
        pk=("view", "version"),
        not_null={"view", "version", "types"},
    )
    columns = {
        "view": "TEXT",
        "version": "INTEGER",
        "partition": "TEXT",
        "publication": "INTEGER",
        "rows": "INTEGER",
        "delta_version": "INTEGER",
        "settled": "INTEGER",
        "applied_at": "TEXT",
    }
    database[LEDGER].create(columns, pk=("view", "version", "partition"), not_null=set(columns))


def _refuse_other_case(connection: sqlite3.Connection, table: Table) -> None:
    query = "SELECT name FROM sqlite_master WHERE type='table' AND name=? COLLATE NOCASE AND name<>?"
    if found := connection.execute(query, (table.name, table.name)).fetchone():
        raise DeclarationError(
            f"View '{table.view.name}': the online store has a table '{found[0]}', and SQLite cannot keep names apart "
            "that differ in upper and lower case only. Give the view another name."
        )


def _refuse_other_types(table: Table, stored: dict[str, int], types: dict[str, str]) -> None:
    keys = sorted((name for name, place in stored.items() if place and name != ONLY), key=stored.__getitem__)
    declared = table_types(table)
    # A column that was added by hand has no type on record: the declared one is taken for it.
    refuse_other_types(table.view, keys, {name: types.get(name, declared.get(name, "")) for name in stored})


def _record_types(connection: sqlite3.Connection, table: Table) -> None:
    types = {**_stored_types(connection, table), **table_types(table)}
    connection.execute(
        f"INSERT INTO {VIEWS} (view, version, types) VALUES (?, ?, ?) "
        "ON CONFLICT (view, version) DO UPDATE SET types=excluded.types",
        (table.view.name, table.view.version, orjson.dumps(types).decode()),
    )


def watermark(connection: sqlite3.Connection, view: ViewSpec) -> int | None:
    """The latest event timestamp ever written, in microseconds."""
    found = connection.execute(f"SELECT watermark FROM {VIEWS} WHERE view=? AND version=?", (view.name, view.version))
    row = found.fetchone()
    return row[0] if row else None


def raise_watermark(connection: sqlite3.Connection, view: ViewSpec, event: int) -> None:
    connection.execute(
        f"UPDATE {VIEWS} SET watermark=? WHERE view=? AND version=? AND ifnull(watermark, {_BEFORE_ALL}) < ?",
        (event, view.name, view.version, event),
    )


def ledger(connection: sqlite3.Connection, view: ViewSpec) -> Ledger:
    if not _has_catalogue(connection):
        return Ledger({})
    rows = connection.execute(
        f"SELECT partition, publication, rows, delta_version, settled, applied_at FROM {LEDGER} "
        "WHERE view=? AND version=? ORDER BY partition",
        (view.name, view.version),
    ).fetchall()
    entries = {
        partition: LedgerEntry(publication, count, delta_version, bool(settled), datetime.fromisoformat(applied_at))
        for partition, publication, count, delta_version, settled, applied_at in rows
    }
    latest = watermark(connection, view)
    return Ledger(entries, None if latest is None else moment(latest))


def is_superseded(connection: sqlite3.Connection, view: ViewSpec, publication: AppliedPublication) -> bool:
    """Whether any of the publication's partitions, or any that it has seen, has a later one."""
    query = f"SELECT 1 FROM {LEDGER} WHERE view=? AND version=? AND partition=? AND publication>?"
    return any(
        connection.execute(query, (view.name, view.version, partition, number)).fetchone()
        for partition, number in publication.at_most.items()
    )


def record(connection: sqlite3.Connection, view: ViewSpec, publication: AppliedPublication, now: datetime) -> None:
    """Enter the publication into the ledger."""
    shared = (publication.publication, publication.delta_version, publication.settled, rfc3339(now))
    connection.executemany(
        f"INSERT OR REPLACE INTO {LEDGER} (view, version, partition, rows, publication, delta_version, settled, "
        "applied_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        ((view.name, view.version, partition, rows, *shared) for partition, rows in publication.partitions.items()),
    )


def settle(connection: sqlite3.Connection, view: ViewSpec, publication: int, partitions: Sequence[str]) -> None:
    connection.executemany(
        f"UPDATE {LEDGER} SET settled=1 WHERE view=? AND version=? AND partition=? AND publication=?",
        ((view.name, view.version, partition, publication) for partition in partitions),
    )


def forget(connection: sqlite3.Connection, view: ViewSpec, partitions: Sequence[str]) -> None:
    if not _has_catalogue(connection):
        return
    connection.executemany(
        f"DELETE FROM {LEDGER} WHERE view=? AND version=? AND partition=?",
        ((view.name, view.version, partition) for partition in partitions),
    )


def drop(connection: sqlite3.Connection, table: Table) -> None:
    connection.execute(f"DROP TABLE IF EXISTS {quoted(table.name)}")
    if _has_catalogue(connection):
        _forget_all(connection, table)


def _forget_all(connection: sqlite3.Connection, table: Table) -> None:
    for name in (VIEWS, LEDGER):
        connection.execute(f"DELETE FROM {name} WHERE view=? AND version=?", (table.view.name, table.view.version))


def view_versions(connection: sqlite3.Connection) -> list[tuple[str, int]]:
    if not _has_catalogue(connection):
        return []
    return connection.execute(f"SELECT view, version FROM {VIEWS} ORDER BY view, version").fetchall()
