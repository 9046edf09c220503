"""Python values of decoded records → columns of the exact types, and which records hold one that is of another type.

A column whose values are all of the usual Python type is made at once. Every other is made value by value, by the one
function that says what a value means: `FeatureType.parse`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from itertools import chain
from types import NoneType
from typing import Any, Final, Literal, NamedTuple

import msgspec
import polars as pl

from feature_assets.casting import FIRST, LAST
from feature_assets.errors import DeclarationError, WrongType
from feature_assets.types import (
    UUID,
    Bool,
    Bytes,
    Date,
    FeatureType,
    Float32,
    Float64,
    Int8,
    Int16,
    Int32,
    Int64,
    ListType,
    String,
    Timestamp,
    VectorType,
)

Epoch = Literal["seconds", "milliseconds", "microseconds"]

MISSING: Final = msgspec.UNSET
"""Stands where a record has no such field."""

_MICROS: Final[dict[Epoch, int]] = {"seconds": 1_000_000, "milliseconds": 1_000, "microseconds": 1}
_YEAR: Final = "^([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_TIME: Final = _YEAR + r"-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?Z$"
_DAY: Final = _YEAR + r"-[01][0-9]-[0-3][0-9]$"
_UUID: Final = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
_EXACT: Final = 2**53


class Decoded(NamedTuple):
    """What became of values: rows of those that could be read, in their order; and of each other one, why not.

    `rows` has a column per field, of its exact type. `indices[i]` is the position among the values of the i-th row.
    `failures` are pairs of a position and a reason that names the field and the mend, in order of the positions.
    """

    rows: pl.DataFrame
    indices: list[int]
    failures: list[tuple[int, str]]


class Columns:
    """Makes rows of decoded values.

    Args:
        fields: the columns of the rows, with their types.
        optional: the fields that a record may lack.
        epoch: the unit of UNIX time in which a whole number stands for a Timestamp; None if it does not.
    """

    def __init__(
        self, fields: Mapping[str, FeatureType], *, optional: Collection[str] = (), epoch: Epoch | None = None
    ) -> None:
        self.fields = dict(fields)
        self._optional = frozenset(optional)
        self._epoch = epoch

    def require(self, has: Collection[str], place: str) -> None:
        """See that records by a declared schema, which has these fields, can be rows.

        Raises:
            DeclarationError: a field is not there that a row may not lack.
        """
        for name in self.fields:
            if name not in has and name not in self._optional:
                raise DeclarationError(
                    f"{place} has no field '{name}' (it has: {', '.join(has) or 'none'}). Add it, or rename with field_mapping=."
                )

    def decoded(self, columns: Sequence[Sequence[Any]], at: Sequence[int], failures: Mapping[int, str]) -> Decoded:
        """The rows of the records whose values these are.

        Args:
            columns: a column of values per field, in the order of the fields.
            at: the positions of the records.
            failures: what is known to be wrong with other records, by their positions.
        """
        wrong: dict[int, str] = {}
        made = [
            self._column(name, of, values, wrong)
            for (name, of), values in zip(self.fields.items(), columns, strict=True)
        ]
        rows = pl.DataFrame(made)
        indices = list(at)
        if wrong:
            rows = rows.filter(~pl.Series(range(len(at))).is_in(list(wrong)))
            indices = [place for row, place in enumerate(at) if row not in wrong]
        told = {**failures, **{at[row]: reason for row, reason in wrong.items()}}
        return Decoded(rows, indices, sorted(told.items()))

    def _column(self, name: str, of: FeatureType, values: Sequence[Any], wrong: dict[int, str]) -> pl.Series:
        kinds = set(map(type, values))
        if msgspec.UnsetType in kinds:
            values = self._present(name, values, wrong)
            kinds = set(map(type, values))
        kinds.discard(NoneType)
        if not kinds:
            return pl.Series(name, values, dtype=of.polars)
        made = self._at_once(of, values, kinds)
        return made.alias(name) if made is not None else self._one_by_one(name, of, values, wrong)

    def _present(self, name: str, values: Sequence[Any], wrong: dict[int, str]) -> list[Any]:
        if name not in self._optional:
            reason = f"It has no '{name}'. Send that too, as null where there is no value."
            wrong.update((row, reason) for row, value in enumerate(values) if value is MISSING and row not in wrong)
        return [None if value is MISSING else value for value in values]

    def _at_once(self, of: FeatureType, values: Sequence[Any], kinds: set[type]) -> pl.Series | None:
        """The column, if all values are of the usual type and it is known what each one means."""
        if of == Timestamp and kinds == {int} and self._epoch is not None:
            return _of_epoch(values, _MICROS[self._epoch])
        kind, make = _BULK.get(of, (None, None))
        if isinstance(of, ListType | VectorType):
            kind, make = list, lambda lists: _lists(of, lists)
        if make is None or not kinds <= ({float, int} if kind is float else {kind}):
            return None
        try:
            return make(values)
        # Polars says in many ways that it does not hold a value; which one it is, is found out one by one.
        except (pl.exceptions.PolarsError, TypeError, OverflowError, ValueError):
            return None

    def _one_by_one(self, name: str, of: FeatureType, values: Sequence[Any], wrong: dict[int, str]) -> pl.Series:
        parsed: list[Any] = []
        for row, value in enumerate(values):
            try:
                if of == Timestamp and value.__class__ is int and self._epoch is not None:
                    value = _moment(value, _MICROS[self._epoch])
                parsed.append(of.parse(value))
            except (WrongType, RecursionError) as error:
                why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
                wrong.setdefault(row, f"'{name}': {why}. {_mend(of, value)}")
                parsed.append(None)
        return of.to_frame(name, parsed)


def _mend(of: FeatureType, value: Any) -> str:
    if of == Timestamp and value.__class__ is int:
        return "Send a time; of JSON numbers say the unit, as in epoch='milliseconds', and of Avro's the logical type."
    return f"Send a {of}, or declare the field otherwise."


def _moment(value: int, micros: int) -> datetime:
    made = _of_epoch([value], micros)
    if made is None:
        raise WrongType(f"int {value} is not a Timestamp: it lies before year 1 or after year 9999")
    return made[0]  # type: ignore[no-any-return]


def _of_epoch(values: Sequence[Any], micros: int) -> pl.Series | None:
    known = [value for value in values if value is not None]
    if min(known) * micros < FIRST or max(known) * micros > LAST:
        return None
    return (pl.Series(values, dtype=pl.Int64) * micros).cast(Timestamp.polars)


def _integers(dtype: pl.DataType) -> Callable[[Sequence[Any]], pl.Series]:
    return lambda values: pl.Series(values, dtype=pl.Int64).cast(dtype)


def _float64(values: Sequence[Any]) -> pl.Series | None:
    whole = [value for value in values if value.__class__ is int]
    if whole:
        # JSON writers leave the point out where it says nothing.
        if max(whole) > _EXACT or min(whole) < -_EXACT:
            return None
        values = [float(value) if value.__class__ is int else value for value in values]
    return pl.Series(values, dtype=pl.Float64)


def _float32(values: Sequence[Any]) -> pl.Series | None:
    wide = _float64(values)
    if wide is None:
        return None
    narrow = wide.cast(pl.Float32)
    return None if (narrow.is_infinite() & wide.is_finite()).any() else narrow


def _matching(pattern: str, read: Callable[[pl.Series], pl.Series]) -> Callable[[Sequence[Any]], pl.Series | None]:
    """Reads texts if all are written in just that way."""

    def make(values: Sequence[Any]) -> pl.Series | None:
        texts = pl.Series(values, dtype=pl.String)
        if not texts.str.contains(pattern).all():
            return None
        read_ = read(texts)
        return read_ if read_.null_count() == texts.null_count() else None

    return make


def _times(texts: pl.Series) -> pl.Series:
    naive = texts.str.strptime(pl.Datetime("us"), "%Y-%m-%dT%H:%M:%S%.fZ", strict=False)
    return naive.dt.replace_time_zone("UTC")


def _days(texts: pl.Series) -> pl.Series:
    return texts.str.strptime(pl.Date, "%Y-%m-%d", strict=False)


def _lists(of: ListType | VectorType, lists: Sequence[Any]) -> pl.Series | None:
    """Lists of numbers or texts, if every item is of the usual type."""
    items = list(chain.from_iterable(one for one in lists if one is not None))
    element = of.element if isinstance(of, ListType) else Float32
    kind, make = _BULK.get(element, (None, None))
    if make is None or not items or element not in _LISTED or set(map(type, items)) - {NoneType} != {kind}:
        return None
    if isinstance(of, VectorType) and (
        None in items or any(one is not None and len(one) != of.length for one in lists)
    ):
        return None
    # This only says whether every item survives: the lists themselves are made of what was given.
    return None if make(items) is None else pl.Series(lists, dtype=of.polars)


_BULK: Final[dict[FeatureType, tuple[type, Callable[[Sequence[Any]], pl.Series | None]]]] = {
    **{of: (int, _integers(of.polars)) for of in (Int8, Int16, Int32, Int64)},
    Float64: (float, _float64),
    Float32: (float, _float32),
    String: (str, lambda values: pl.Series(values, dtype=pl.String)),
    Bool: (bool, lambda values: pl.Series(values, dtype=pl.Boolean)),
    Bytes: (bytes, lambda values: pl.Series(values, dtype=pl.Binary)),
    Date: (str, _matching(_DAY, _days)),
    Timestamp: (str, _matching(_TIME, _times)),
    UUID: (str, _matching(_UUID, lambda texts: texts)),
}
_LISTED: Final = frozenset({Int64, Float64, Float32, String})
