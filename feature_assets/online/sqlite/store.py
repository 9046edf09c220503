"""The online store on SQLite: one file, one table per view version with one column per feature."""

# ruff: noqa: S608 (SQL is put together from names, whose letters spec checks; values are always bound)

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, cast

import polars as pl

from feature_assets.errors import ConfigurationError, StoreError, TableMissing
from feature_assets.online.protocol import (
    AppliedPublication,
    Ledger,
    WriteCount,
    checked,
    row_schema,
    token_schema,
)
from feature_assets.online.sqlite import catalogue
from feature_assets.online.sqlite.connections import DatabaseFile, FileMissing
from feature_assets.online.sqlite.doctor import found_problems
from feature_assets.online.sqlite.reader import SqliteReader
from feature_assets.online.sqlite.tables import ONLY, Table, check_columns, keys_per_query, quoted
from feature_assets.online.sqlite.values import frame
from feature_assets.spec import ViewSpec
from feature_assets.types import FeatureType, ListType, MapType, StructType, VectorType, microseconds

_ROWS_AT_ONCE = 20_000
_WORTH_A_LOOK = 100
_WAS = "__was_"
_BEFORE_ALL = -(2**63)


def open_store(url: str) -> "SqliteOnlineStore":
    """The store of `sqlite:/path/to/file.db`; the file is made when the first view is prepared."""
    path = url.removeprefix("sqlite:").removeprefix("//")
    if not path or path.endswith("/") or path == ":memory:":
        raise ConfigurationError(
            f"'{url}' names no file. Write sqlite: and a path, as in sqlite:/var/lib/features/online.db"
        )
    return SqliteOnlineStore(Path(path))


class SqliteOnlineStore:
    """See `OnlineStore` in the protocol for what each method promises.

    A person can read the file with `sqlite-utils rows`; times are microseconds since 1970.
    """

    def __init__(self, path: Path | str) -> None:
        self._file = DatabaseFile(Path(path).absolute())

    def __repr__(self) -> str:
        return f"SqliteOnlineStore('{self.path}')"

    @property
    def path(self) -> Path:
        return self._file.path

    def prepare(self, view: ViewSpec) -> None:
        table = Table(view)
        if self._is_prepared(table):
            return
        with self._file.writing(create=True) as connection:
            catalogue.prepare(connection, table)

    def check_sizes(self, view: ViewSpec, rows: pl.LazyFrame) -> None:
        """See `LimitsSizes` in the protocol: the view's table may have too many columns."""
        check_columns(Table(view))

    def _is_prepared(self, table: Table) -> bool:
        try:
            with self._file.translating():
                return catalogue.is_prepared(self._file.renewed_reading().connection, table)
        except FileMissing:
            return False

    def reader(self, view: ViewSpec, features: Sequence[str]) -> SqliteReader:
        return SqliteReader(self._file, Table(view), features)

    def write(self, view: ViewSpec, rows: pl.DataFrame, publication: AppliedPublication | None) -> WriteCount:
        table, rows = Table(view), checked(view, rows, row_schema(view))
        with self._writing(table) as (connection, stored):
            if publication is not None and catalogue.is_superseded(connection, view, publication):
                return WriteCount(superseded=True)
            if not catalogue.is_prepared(connection, table):
                catalogue.prepare(connection, table)
                stored = catalogue.stored_columns(connection, table)
            written = _upserted(connection, table, rows, stored)
            if publication is not None:
                catalogue.record(connection, view, publication, datetime.now(UTC))
        return WriteCount(written, rows.height - written)

    def retract(self, view: ViewSpec, expected: pl.DataFrame, replacement: pl.DataFrame) -> int:
        table = Table(view)
        expected = _keyed(table, checked(view, expected, token_schema(view)))
        replacement = _keyed(table, checked(view, replacement, row_schema(view)))
        keys = list(table.keys)
        lower = expected.rename({name: _WAS + name for name in table.token}).join(replacement, on=keys, how="inner")
        gone = expected.join(replacement, on=keys, how="anti")
        set_to = {name: of for name, of in table.types.items() if name not in table.keys}
        found = {_WAS + name: table.types[name] for name in table.token}
        with self._writing(table) as (connection, stored):
            before = connection.total_changes
            connection.executemany(table.replace_expected(stored), _bound(lower, {**set_to, **view.join_keys, **found}))
            connection.executemany(table.delete_expected(), _bound(gone, table.token_types))
            changed = connection.total_changes - before
            if not lower.is_empty():
                catalogue.raise_watermark(connection, view, _latest_event(table, lower))
        return expected.height - changed

    def settle(
        self, view: ViewSpec, publication: int, partitions: Sequence[str], *, whole_since: datetime | None = None
    ) -> None:
        with self._writing(Table(view)) as (connection, _):
            catalogue.settle(connection, view, publication, partitions)

    def stored(self, view: ViewSpec, keys: pl.DataFrame | None = None) -> pl.DataFrame:
        table = Table(view)
        with self._scanning(table) as (connection, _):
            if keys is None or not view.join_keys:
                rows = connection.execute(table.select(table.token_types)).fetchall()
            else:
                found = _looked_up(connection, table, keys, table.token_types)
                rows = [row[1:] for row in found if row[-1] is not None]
        return frame(table.token_types, rows)

    def scan(self, view: ViewSpec, *, batch_size: int = 50_000) -> Iterator[pl.DataFrame]:
        table = Table(view)
        with self._scanning(table) as (connection, stored):
            expressions = (quoted(name) if name in stored else "NULL" for name in table.types)
            cursor = connection.execute(f"SELECT {', '.join(expressions)} FROM {quoted(table.name)}")
            while rows := cursor.fetchmany(batch_size):
                yield frame(table.types, rows)

    def delete(self, view: ViewSpec, keys: pl.DataFrame) -> int:
        table = Table(view)
        with self._writing(table) as (connection, _):
            before = connection.total_changes
            bound = _bound(keys, view.join_keys) if view.join_keys else [()]
            connection.executemany(table.delete(), bound)
            return connection.total_changes - before

    def ledger(self, view: ViewSpec) -> Ledger:
        try:
            with self._file.scanning() as connection:
                return catalogue.ledger(connection, view)
        except FileMissing:
            return Ledger({})

    def forget(self, view: ViewSpec, partitions: Sequence[str]) -> None:
        with suppress(FileMissing), self._file.writing() as connection:
            catalogue.forget(connection, view, partitions)

    def drop(self, view: ViewSpec) -> None:
        with suppress(FileMissing), self._file.writing() as connection:
            catalogue.drop(connection, Table(view))

    def tables(self) -> list[tuple[str, int]]:
        try:
            with self._file.scanning() as connection:
                return catalogue.view_versions(connection)
        except FileMissing:
            return []

    def doctor(self) -> list[str]:
        """What is wrong with the file, in words with a mend each; empty where all is well or nothing is stored yet."""
        try:
            with self._file.scanning() as connection:
                return found_problems(connection, self.path)
        except FileMissing:
            return []
        except StoreError as error:
            return [str(error)]

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _writing(self, table: Table) -> Iterator[tuple[sqlite3.Connection, dict[str, int]]]:
        """A write transaction on a table that is there, and the table's columns."""
        with _saying_which(table), self._file.writing() as connection:
            yield connection, _columns(connection, table)

    @contextmanager
    def _scanning(self, table: Table) -> Iterator[tuple[sqlite3.Connection, dict[str, int]]]:
        """A connection that sees one state of a table that is there, and the table's columns."""
        with _saying_which(table), self._file.scanning() as connection:
            yield connection, _columns(connection, table)


def _columns(connection: sqlite3.Connection, table: Table) -> dict[str, int]:
    if columns := catalogue.stored_columns(connection, table):
        return columns
    raise TableMissing.of(table.view.name, table.view.version, "online")


@contextmanager
def _saying_which(table: Table) -> Iterator[None]:
    try:
        yield
    except FileMissing as error:
        raise TableMissing.of(table.view.name, table.view.version, "online") from error


def _keyed(table: Table, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows with the table's key columns, also where the view has no entities."""
    return rows if table.view.join_keys else rows.with_columns(pl.lit(0).alias(ONLY))


def _bound(rows: pl.DataFrame, types: Mapping[str, FeatureType]) -> Iterator[tuple[Any, ...]]:
    """Rows as what is bound; made a few at a time, column by column."""
    return chain.from_iterable(
        zip(*(of.to_sqlite(part[name]) for name, of in types.items()), strict=True)
        for part in rows.iter_slices(_ROWS_AT_ONCE)
    )


def _upserted(connection: sqlite3.Connection, table: Table, rows: pl.DataFrame, stored: Iterable[str]) -> int:
    """Write each row that is not older than its key's, and say how many were."""
    if rows.is_empty():
        return 0
    latest, mark = _latest_event(table, rows), catalogue.watermark(connection, table.view)
    rows = _in_key_order(table, rows)
    if mark is not None and latest < mark and _worth_a_look(table, rows):
        rows = _winners(connection, table, rows)
    before = connection.total_changes
    connection.executemany(table.upsert(stored), _bound(rows, table.types))
    written = connection.total_changes - before
    catalogue.raise_watermark(connection, table.view, latest)
    return written


def _worth_a_look(table: Table, rows: pl.DataFrame) -> bool:
    """Numbers and text are cheaper offered to the guard than looked up first; what has to become JSON is not."""
    nested = ListType | VectorType | StructType | MapType
    return rows.height >= _WORTH_A_LOOK and any(isinstance(of, nested) for of in table.types.values())


def _latest_event(table: Table, rows: pl.DataFrame) -> int:
    return microseconds(cast(datetime, rows[table.view.event_timestamp].max()))


def _in_key_order(table: Table, rows: pl.DataFrame) -> pl.DataFrame:
    """Neighbours in the B-tree one after the other: twice as fast as in any order, and cheaply sorted."""
    keys = list(table.view.join_keys)
    if not keys or (len(keys) == 1 and rows[keys[0]].is_sorted()):
        return rows
    return rows.sort(keys, maintain_order=True)


def _winners(connection: sqlite3.Connection, table: Table, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows that are not older than what is stored for their keys.

    Rows from before the latest event are mostly too old, and a look needs their keys only.
    """
    if not table.view.join_keys:
        return rows
    found = [row[1:] for row in _looked_up(connection, table, rows, table.token)]
    stored = pl.DataFrame(found, schema=dict.fromkeys(table.token, pl.Int64()), orient="row")
    new = rows.select(pl.col(table.token).to_physical())
    wins: pl.Series = pl.Series([True]).new_from_index(0, rows.height)
    for name in reversed(table.token):
        ours, theirs = new[name].fill_null(_BEFORE_ALL), stored[name].fill_null(_BEFORE_ALL)
        wins = (ours > theirs) | ((ours == theirs) & wins)
    return rows.filter(wins | stored[table.token[0]].is_null())


def _looked_up(
    connection: sqlite3.Connection, table: Table, keys: pl.DataFrame, columns: Iterable[str]
) -> list[tuple[Any, ...]]:
    """Position and stored columns for each row of `keys`; nulls where nothing is stored."""
    expressions = [f"t.{quoted(name)}" for name in columns]
    found: list[tuple[Any, ...]] = []
    for part in keys.iter_slices(keys_per_query(connection, table)):
        bound = list(chain.from_iterable(_bound(part, table.view.join_keys)))
        found += connection.execute(table.select_many(expressions, part.height), bound)
    return found
