"""The compiled read: SQL text and decoders are made once, so that a request costs little more than SQLite itself."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import Any

from feature_assets.errors import TableMissing, UnknownFeature
from feature_assets.online.sqlite.catalogue import stored_columns
from feature_assets.online.sqlite.connections import DatabaseFile, FileMissing, Reading
from feature_assets.online.sqlite.tables import Table, keys_per_query, quoted
from feature_assets.online.sqlite.values import key_binding
from feature_assets.types import FeatureType, Float32, Float64

Answer = tuple[list[int | None], list[Sequence[Any]]]
Keys = Sequence[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class _Plan:
    """The statements for one state of the table. `lacking`: it does not have all the features that are asked for."""

    table: Table
    expressions: tuple[str, ...]
    lacking: bool
    seen: tuple[object, int]
    one: str
    keys_per_query: int
    statements: dict[int, str] = field(default_factory=dict)

    def many(self, count: int) -> str:
        found = self.statements.get(count)
        if found is None:
            found = self.statements[count] = self.table.select_many(self.expressions, count)
        return found


class SqliteReader:
    """See `Reader` in the protocol."""

    def __init__(self, file: DatabaseFile, table: Table, features: Sequence[str]) -> None:
        types = list(enumerate(_feature_types(table, features), start=1))
        self._file, self._table, self._features = file, table, tuple(features)
        self._keyed = bool(table.view.join_keys)
        self._bind = key_binding(list(table.view.join_keys.values()))
        self._floats = tuple(place for place, of in types if of in (Float32, Float64))
        self._others: tuple[tuple[int, Callable[[Sequence[Any]], Sequence[Any]]], ...] = tuple(
            (place, of.from_sqlite)
            for place, of in types
            if type(of).from_sqlite is not FeatureType.from_sqlite and place not in self._floats
        )
        self._plan: _Plan | None = None

    def __call__(self, keys: Keys) -> Answer:
        try:
            reading = self._file.reading()
            try:
                return self._answer(reading, keys)
            except sqlite3.OperationalError:
                # The table may have been dropped, or dropped and made anew, since the statements were compiled.
                self._plan = None
                return self._answer(reading, keys)
        except FileMissing as error:
            raise self._missing() from error
        except sqlite3.Error as error:
            self._file.forget_reading()
            raise self._file.translated(error) from error

    def _answer(self, reading: Reading, keys: Keys) -> Answer:
        plan = self._plan
        if plan is None or (plan.lacking and plan.seen != _seen(reading)):
            plan = self._plan = self._compiled(reading)
        if len(keys) == 1:
            key = keys[0] if self._bind is None else self._bind(keys[0])
            rows = reading.execute(plan.one, key).fetchall()
            return self._decoded_one(rows[0]) if rows else self._nothing(1)
        if not keys:
            return self._nothing(0)
        if self._keyed:
            return self._decoded(self._columns(reading, plan, keys))
        rows = reading.execute(plan.one).fetchall()
        return self._decoded([(value,) * len(keys) for value in rows[0]]) if rows else self._nothing(len(keys))

    def _decoded_one(self, row: tuple[Any, ...]) -> Answer:
        columns: list[Sequence[Any]] = [(value,) for value in row]
        for place in self._floats:
            if row[place].__class__ is not float:
                columns[place] = Float64.from_sqlite(columns[place])
        for place, decode in self._others:
            columns[place] = decode(columns[place])
        del columns[0]
        return [row[0]], columns

    def _decoded(self, columns: list[Sequence[Any]]) -> Answer:
        for place in self._floats:
            columns[place] = Float64.from_sqlite(columns[place])
        for place, decode in self._others:
            columns[place] = decode(columns[place])
        return list(columns[0]), columns[1:]

    def _nothing(self, count: int) -> Answer:
        return [None] * count, [(None,) * count] * len(self._features)

    def _columns(self, reading: Reading, plan: _Plan, keys: Keys) -> list[Sequence[Any]]:
        if len(keys) <= plan.keys_per_query:
            return self._queried(reading, plan, keys)
        parts = []
        reading.execute("BEGIN")  # One state of the file for all the queries.
        try:
            for start in range(0, len(keys), plan.keys_per_query):
                parts.append(self._queried(reading, plan, keys[start : start + plan.keys_per_query]))
        finally:
            reading.execute("COMMIT")
        return [tuple(chain.from_iterable(columns)) for columns in zip(*parts, strict=True)]

    def _queried(self, reading: Reading, plan: _Plan, keys: Keys) -> list[Sequence[Any]]:
        """The event timestamps and the stored values of each feature, in the order of the keys."""
        count = len(keys)
        size = min(_padded(count), plan.keys_per_query)
        bound = list(chain.from_iterable(keys if self._bind is None else map(self._bind, keys)))
        if size > count:
            bound.extend([None] * ((size - count) * len(self._table.keys)))
        rows = reading.execute(plan.many(size), bound).fetchall()
        columns: list[Sequence[Any]] = list(zip(*rows[:count], strict=True))
        # SQL promises no order without ORDER BY, which would sort; SQLite keeps this one, and it is looked at.
        if columns[0] != tuple(range(count)):
            rows.sort(key=itemgetter(0))
            columns = list(zip(*rows[:count], strict=True))
        del columns[0]
        return columns

    def _compiled(self, reading: Reading) -> _Plan:
        seen = _seen(reading)
        stored = stored_columns(reading.connection, self._table)
        if not stored:
            raise self._missing()
        features = (f"t.{quoted(name)}" if name in stored else "NULL" for name in self._features)
        expressions = (f"t.{quoted(self._table.view.event_timestamp)}", *features)
        return _Plan(
            table=self._table,
            expressions=expressions,
            lacking=not set(self._features) <= stored.keys(),
            seen=seen,
            one=self._table.select_one(expressions),
            keys_per_query=keys_per_query(reading.connection, self._table),
        )

    def _missing(self) -> TableMissing:
        view = self._table.view
        return TableMissing.of(view.name, view.version, "online")


def _feature_types(table: Table, features: Sequence[str]) -> list[FeatureType]:
    known = {field.name: field.type for field in table.view.features}
    for name in features:
        if name not in known:
            raise UnknownFeature.among(table.view.name, name, list(known))
    return [known[name] for name in features]


def _seen(reading: Reading) -> tuple[object, int]:
    """What changes whenever a table of this file does."""
    return reading.identity, reading.execute("PRAGMA schema_version").fetchone()[0]


def _padded(count: int) -> int:
    """So many keys the query is made for: fewer sizes to compile, and few nulls too many."""
    step = 1 if count <= 32 else 4 if count <= 128 else 32
    return -(-count // step) * step
