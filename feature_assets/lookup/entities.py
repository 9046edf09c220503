"""What a caller hands in as entity rows → columns of canonical values, each checked against its type.

The common case, values that have their canonical type already, is settled for a whole column at once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from typing import Any, TypeAlias

import polars as pl

from feature_assets.errors import MissingJoinKey, RequestError, WrongType
from feature_assets.references import ReadPlan
from feature_assets.types import Bool, Bytes, Date, FeatureType, Float64, Int8, Int16, Int32, Int64, String

EntityRows: TypeAlias = Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | pl.DataFrame | None
"""Rows as dicts, columns by name, or a Polars frame; None for features that need neither keys nor request data."""

_Columns: TypeAlias = list[list[Any]]


class EntityReader:
    """Reads entity rows for one plan. Safe to share between threads."""

    __slots__ = ("_checks", "_names", "_plan", "_width")

    def __init__(self, plan: ReadPlan) -> None:
        self._plan = plan
        keys = [ColumnCheck(f"Join key '{name}'", of, nullable=False) for name, of in plan.join_keys.items()]
        request = {name: field for name, field in plan.request.items() if name not in plan.join_keys}
        self._checks = keys + [ColumnCheck(f"'{name}'", field.type, nullable=True) for name, field in request.items()]
        self._names = (*plan.join_keys, *request)
        self._width = {len(self._names)}

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are needed."""
        return self._names

    def read(self, rows: EntityRows) -> tuple[int, _Columns]:
        """How many rows there are, and their columns in the order of `names`.

        Raises:
            MissingJoinKey: a join key is not there.
            WrongType: a value is not of its type; the message names column and row.
            RequestError: there are no rows, columns differ in length, a key is null, or a column is not known.
        """
        if isinstance(rows, (list, tuple)):
            columns = self._from_rows(rows)
            count = len(rows)
        else:
            columns = self._lists(rows) or self._from_columns(rows)
            count = len(columns[0]) if columns else 1
        if count == 0:
            raise RequestError("There are no entity rows. Give at least one, as in [{'origin': 'JFK'}].")
        return count, [check(values) for check, values in zip(self._checks, columns, strict=True)]

    def _from_rows(self, rows: Sequence[Mapping[str, Any]]) -> _Columns:
        try:
            columns = [[row[name] for row in rows] for name in self._names]
            if set(map(len, rows)) <= self._width:
                return columns
        except (KeyError, TypeError, IndexError):
            pass
        for position, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise RequestError(f"Entity row {position} is {row!r}. Give each as a dict, as in {{'origin': 'JFK'}}.")
            self._require(row, f"entity row {position}")
        return [[row[name] for row in rows] for name in self._names]

    def _lists(self, rows: Any) -> _Columns | None:
        """The columns of a dict that has just those that are needed, as lists of one length: what most callers give."""
        if rows.__class__ is not dict or len(rows) != len(self._names):
            return None
        try:
            columns = [rows[name] for name in self._names]
        except KeyError:
            return None
        count = len(columns[0]) if columns and columns[0].__class__ is list else -1
        for column in columns:
            if column.__class__ is not list or len(column) != count:
                return None
        # Copies: the answer holds them, and the caller may go on using theirs.
        return [column.copy() for column in columns]

    def _from_columns(self, rows: Any) -> _Columns:
        given = as_columns(rows)
        if given.keys() != set(self._names):
            self._require(given, "the request")
        columns = [as_list(name, given[name]) for name in self._names]
        if len(set(map(len, columns))) > 1:
            lengths = ", ".join(f"'{name}' {len(values)}" for name, values in zip(self._names, columns, strict=True))
            raise RequestError(f"The columns of the request differ in length: {lengths}. Give a value per row in each.")
        return columns

    def _require(self, given: Iterable[Any], place: str) -> None:
        given = list(given)
        if missing := [name for name in self._names if name not in given]:
            for read in self._plan.reads:
                if lacks := [column for _, column in read.keys if column in missing]:
                    raise MissingJoinKey.of(read.name, lacks, map(str, given), place)
            raise RequestError(
                f"On-demand features need '{missing[0]}' from the request, which {place} lacks. Add it to each entity row."
            )
        if unknown := [name for name in given if name not in self._names]:
            needs = ", ".join(self._names) or "nothing"
            raise RequestError(
                f"{place[0].upper()}{place[1:]} has '{unknown[0]}', which none of the features needs "
                f"(they need: {needs}). Leave it out."
            )


def as_columns(rows: Any) -> Mapping[str, Any]:
    """Entity rows that came as columns in one form or another, by name."""
    if rows is None:
        return {}
    if isinstance(rows, Mapping):
        return rows
    if isinstance(rows, pl.DataFrame):
        return rows.to_dict()
    if hasattr(rows, "__arrow_c_stream__"):
        return pl.DataFrame(rows).to_dict()
    raise RequestError(
        f"Entity rows came as {type(rows).__name__}. Give a list of dicts, a dict of columns, or a frame."
    )


def as_list(name: str, values: Any) -> list[Any]:
    """A column as a list of its own."""
    if isinstance(values, list):
        # A copy: the answer holds it, and the caller may go on using theirs.
        return values.copy()
    if isinstance(values, pl.Series):
        return values.to_list()
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        raise RequestError(f"Column '{name}' of the request is {values!r}. Give a list, with a value per row.")
    return list(values.tolist() if hasattr(values, "tolist") else values)


class ColumnCheck:
    """Makes the values of one column canonical, or says which is not of the type."""

    __slots__ = ("_fast", "_nullable", "_of", "_place")

    def __init__(self, place: str, of: FeatureType, *, nullable: bool) -> None:
        self._place, self._of, self._nullable = place, of, nullable
        self._fast = _FAST.get(of)

    def __call__(self, values: list[Any]) -> list[Any]:
        if self._fast is not None:
            kind, fits = self._fast
            if set(map(type, values)) == {kind} and fits(values):
                return values
        return [self._parsed(position, value) for position, value in enumerate(values)]

    def _parsed(self, position: int, value: Any) -> Any:
        try:
            parsed = self._of.parse(value)
        except WrongType as error:
            raise WrongType(f"{self._place}, row {position}: {error}.") from None
        if parsed is None and not self._nullable:
            raise RequestError(f"{self._place} is null in row {position}. Leave out rows that have no key.")
        return parsed


def _always(_values: list[Any]) -> bool:
    return True


def _is_encodable(values: list[str]) -> bool:
    text = "".join(values)
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _within(bits: int) -> Callable[[list[int]], bool]:
    high = (1 << (bits - 1)) - 1
    low = -high - 1

    def fits(values: list[int]) -> bool:
        return low <= min(values) and max(values) <= high

    return fits


# For these a value of just this Python type is canonical if the whole column passes the test.
_FAST: dict[FeatureType, tuple[type, Callable[[list[Any]], bool]]] = {
    Bool: (bool, _always),
    Bytes: (bytes, _always),
    Date: (date, _always),
    Float64: (float, _always),
    String: (str, _is_encodable),
    Int8: (int, _within(8)),
    Int16: (int, _within(16)),
    Int32: (int, _within(32)),
    Int64: (int, _within(64)),
}
