"""The table of a view version: a column for each join key, time and feature, and the statements on it."""

# ruff: noqa: S608 (SQL is put together from names, whose letters spec checks; values are always bound)

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import cache, cached_property

from feature_assets.errors import DeclarationError
from feature_assets.online.protocol import column_types
from feature_assets.spec import PUBLICATION, ViewSpec
from feature_assets.types import FeatureType, Int64

ONLY = "__only"
"""The key column of a view without entities; its one row has 0 there."""

_BEFORE_ALL = -(2**63)


def quoted(name: str) -> str:
    """A name as an identifier. Not in double quotes: an unknown name in them would be read as a string."""
    return f"[{name}]"


def table_name(view: str, version: int) -> str:
    # SQLite keeps names that begin so for itself; no view's name begins with an underscore.
    return f"{'_' if view.lower().startswith('sqlite_') else ''}{view}__v{version}"


def listed(parts: Iterable[str]) -> str:
    return ", ".join(parts)


@dataclass(frozen=True)
class Table:
    """The table of one view version, and the statements on it."""

    view: ViewSpec

    @cached_property
    def name(self) -> str:
        return table_name(self.view.name, self.view.version)

    @cached_property
    def types(self) -> dict[str, FeatureType]:
        """The type of each column that is written, in the order of a row."""
        return {**column_types(self.view), PUBLICATION: Int64}

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.view.join_keys) or (ONLY,)

    @cached_property
    def token(self) -> tuple[str, ...]:
        """The columns that order rows."""
        times = (self.view.event_timestamp, self.view.created_timestamp, PUBLICATION)
        return tuple(name for name in times if name is not None)

    @cached_property
    def token_types(self) -> dict[str, FeatureType]:
        """The join keys and the columns that order rows."""
        return {name: self.types[name] for name in (*self.view.join_keys, *self.token)}

    @cached_property
    def sqlite_types(self) -> dict[str, str]:
        only = {} if self.view.join_keys else {ONLY: "INTEGER"}
        return {**only, **{name: of.sqlite for name, of in self.types.items()}}

    def upsert(self, stored: Iterable[str]) -> str:
        """Insert a row, or write it over one that is not later. Columns that it does not have become null."""
        columns = list(self.types)
        only = [] if self.view.join_keys else [ONLY]
        assigned = [f"{quoted(name)}=excluded.{quoted(name)}" for name in columns if name not in self.keys]
        nulled = [f"{quoted(name)}=NULL" for name in self.undeclared(stored)]
        guard = f"({self._order('excluded')}) >= ({self._order(quoted(self.name))})"
        return (
            f"INSERT INTO {quoted(self.name)} ({listed(map(quoted, only + columns))}) "
            f"VALUES ({listed(['0'] * len(only) + ['?'] * len(columns))}) "
            f"ON CONFLICT ({listed(map(quoted, self.keys))}) DO UPDATE SET {listed(assigned + nulled)} WHERE {guard}"
        )

    def _order(self, of: str) -> str:
        created = self.view.created_timestamp
        return listed(
            f"ifnull({of}.{quoted(name)}, {_BEFORE_ALL})" if name == created else f"{of}.{quoted(name)}"
            for name in self.token
        )

    def undeclared(self, stored: Iterable[str]) -> list[str]:
        """Stored columns that the view does not declare, as a publisher with an older declaration finds them."""
        return [name for name in stored if name not in self.types and name != ONLY]

    @property
    def _is_key(self) -> str:
        return f"{ONLY}=0" if not self.view.join_keys else " AND ".join(f"{quoted(name)}=?" for name in self.keys)

    @property
    def _is_expected(self) -> str:
        return " AND ".join([self._is_key, *(f"{quoted(name)} IS ?" for name in self.token)])

    def replace_expected(self, stored: Iterable[str]) -> str:
        """Bind the values of all columns but the join keys, then the expected tokens."""
        assigned = [f"{quoted(name)}=?" for name in self.types if name not in self.keys]
        nulled = [f"{quoted(name)}=NULL" for name in self.undeclared(stored)]
        return f"UPDATE {quoted(self.name)} SET {listed(assigned + nulled)} WHERE {self._is_expected}"

    def delete_expected(self) -> str:
        return f"DELETE FROM {quoted(self.name)} WHERE {self._is_expected}"

    def delete(self) -> str:
        return f"DELETE FROM {quoted(self.name)} WHERE {self._is_key}"

    def select(self, columns: Iterable[str]) -> str:
        return f"SELECT {listed(map(quoted, columns))} FROM {quoted(self.name)}"

    def select_one(self, expressions: Iterable[str]) -> str:
        """The row of one key, as `t`."""
        return f"SELECT {listed(expressions)} FROM {quoted(self.name)} t WHERE {self._is_key}"

    def select_many(self, expressions: Iterable[str], count: int) -> str:
        """Position and row of `count` keys, as `t`, in their order, nulls where there is no row.

        A join with VALUES is as fast as IN for one key column. For several, IN (VALUES …) would read the whole table.
        """
        asked = [f"k{number}" for number in range(len(self.keys))]
        values = listed(f"({position}, {listed('?' * len(asked))})" for position in range(count))
        on = " AND ".join(f"t.{quoted(name)}=v.{key}" for name, key in zip(self.keys, asked, strict=True))
        return (
            f"WITH v(position, {listed(asked)}) AS (VALUES {values}) "
            f"SELECT v.position, {listed(expressions)} FROM v LEFT JOIN {quoted(self.name)} t ON {on}"
        )


def check_columns(table: Table) -> None:
    """See that SQLite, as it was built, makes a table of so many columns.

    Raises:
        DeclarationError: it does not.
    """
    count, most = len(table.sqlite_types), _most_columns()
    if count > most:
        raise DeclarationError(
            f"View '{table.view.name}': its online table would have {count:,} columns, and SQLite takes {most:,}. "
            "Split the view, hold features that are read together in a Vector or Struct, or declare online=False."
        )


@cache
def _most_columns() -> int:
    with closing(sqlite3.connect(":memory:")) as connection:
        return connection.getlimit(sqlite3.SQLITE_LIMIT_COLUMN)


def keys_per_query(connection: sqlite3.Connection, table: Table) -> int:
    """How many keys `select_many` may be asked for: as SQLite was built, and before its compilation takes long."""
    return min(1000, connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // len(table.keys))
