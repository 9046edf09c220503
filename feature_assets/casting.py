"""Casts that lose nothing: from a dtype that a frame happens to have to the one that a feature type declares.

Each cast comes with a condition that is true for the rows that would not survive it. A cast between families (text to
number, number to text, Bool to number) is refused outright: that is a conversion, and the asset function should say so.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson
import polars as pl

from feature_assets.types import (
    UUID,
    DecimalType,
    FeatureType,
    Json,
    ListType,
    MapType,
    StructType,
    Timestamp,
    VectorType,
)


class NotCastable(Exception):
    """The dtypes are of different families; the text says how to convert."""


class Cast(NamedTuple):
    """`value` is the cast expression; `broken` is true (never null) for rows that lose something, None if none can."""

    value: pl.Expr
    broken: pl.Expr | None
    needs: str = ""


_UUID_TEXT = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
# Python, and with it JSON and every client, has the years 1 to 9999; Polars has more.
FIRST, LAST = -62_135_596_800_000_000, 253_402_300_799_999_999
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896


def lossless(column: pl.Expr, dtype: pl.DataType, of: FeatureType) -> Cast:
    """The cast of a column of `dtype` to `of.polars`.

    Raises:
        NotCastable: no value of that dtype is one of the type.
    """
    if dtype == pl.Null():
        return Cast(column.cast(of.polars), None)
    if isinstance(dtype, pl.Map):
        # An Arrow map: the same pairs, which the type keeps as a list.
        pairs = pl.List(pl.Struct({"key": dtype.key, "value": dtype.value}))
        return lossless(column.cast(pairs), pairs, of)
    if isinstance(dtype, pl.Datetime) or (of == Timestamp and dtype == pl.Date()):
        return _timestamp(column, dtype, of)
    if isinstance(of, VectorType):
        return _vector(column, dtype, of)
    cast = _by_family(column, dtype, of)
    if cast is None:
        raise NotCastable(_conversion(dtype, of))
    return cast


def _by_family(column: pl.Expr, dtype: pl.DataType, of: FeatureType) -> Cast | None:
    target = of.polars
    if target == pl.String():
        return _text(column, dtype, of)
    if isinstance(of, ListType | MapType | StructType):
        return _nested(column, dtype, of)
    if dtype == target:
        return Cast(column, _outside_years(column, target))
    numbers = dtype.is_integer() or (dtype.is_float() and not isinstance(of, DecimalType)) or dtype.is_decimal()
    if numbers and (target.is_integer() or target.is_float() or isinstance(of, DecimalType)):
        if dtype.is_decimal() and not isinstance(of, DecimalType):
            return None
        cast = column.cast(target, strict=False)
        return Cast(cast, _changed(column, cast, dtype), f"losslessly a {of}")
    return None


def _changed(column: pl.Expr, cast: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    return cast.cast(dtype, strict=False).ne_missing(column)


def _outside_years(column: pl.Expr, dtype: pl.DataType) -> pl.Expr | None:
    if dtype == pl.Date():
        return (~column.to_physical().is_between(_FIRST_DAY, _LAST_DAY)).fill_null(False)
    return None


def _timestamp(column: pl.Expr, dtype: pl.DataType, of: FeatureType) -> Cast:
    if of != Timestamp:
        raise NotCastable(_conversion(dtype, of))
    micros = column.cast(pl.Datetime("us"), strict=False) if dtype == pl.Date() else column
    broken = None
    if isinstance(dtype, pl.Datetime):
        if dtype.time_unit == "ns":
            broken = (column.to_physical() % 1000 != 0).fill_null(False)
        if dtype.time_unit == "ms":
            # Nanoseconds that were read as milliseconds are more than microseconds can hold, and Polars panics.
            broken = (~column.to_physical().is_between(FIRST // 1000, LAST // 1000)).fill_null(False)
            column = pl.when(~broken).then(column)
        micros = column.dt.cast_time_unit("us")
        if dtype.time_zone is not None:
            micros = micros.dt.convert_time_zone("UTC")
    if not isinstance(dtype, pl.Datetime) or dtype.time_zone is None:
        micros = micros.dt.replace_time_zone("UTC")
    outside = (~micros.to_physical().is_between(FIRST, LAST)).fill_null(False)
    return Cast(
        micros, outside if broken is None else outside | broken, "a time in whole microseconds of the years 1 to 9999"
    )


def _text(column: pl.Expr, dtype: pl.DataType, of: FeatureType) -> Cast | None:
    if isinstance(dtype, pl.Categorical | pl.Enum):
        column = column.cast(pl.String)
    elif dtype != pl.String():
        return None
    if of == UUID:
        return Cast(column, (~column.str.contains(_UUID_TEXT)).fill_null(False), "a UUID in lower case with hyphens")
    if of == Json:
        broken = column.map_batches(_not_json, return_dtype=pl.Boolean, is_elementwise=True)
        return Cast(column, broken, "JSON text")
    return Cast(column, None)


def _not_json(texts: pl.Series) -> pl.Series:
    # Polars has no validator that takes any JSON; one parse per value is what this type costs.
    return pl.Series([text is not None and _is_not_json(text) for text in texts], dtype=pl.Boolean)


def _is_not_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return True
    return False


def _vector(column: pl.Expr, dtype: pl.DataType, of: VectorType) -> Cast:
    if dtype == of.polars:
        return Cast(
            column, column.arr.to_list().list.eval(pl.element().is_null()).list.any().fill_null(False), "without nulls"
        )
    inner = getattr(dtype, "inner", None)
    if not isinstance(dtype, pl.List | pl.Array) or inner is None or not (inner.is_float() or inner.is_integer()):
        raise NotCastable(_conversion(dtype, of))
    numbers = column.arr.to_list() if isinstance(dtype, pl.Array) else column
    narrow = numbers.cast(pl.List(pl.Float32), strict=False)
    fits = (numbers.list.len() == of.length) & ~narrow.list.eval(pl.element().is_null()).list.any()
    exact = narrow.cast(pl.List(inner), strict=False).eq_missing(numbers)
    # Casting a list of another length to an array is an error for the whole column; such rows become null first.
    value = pl.when(fits).then(narrow).otherwise(None).list.to_array(of.length)
    return Cast(value, numbers.is_not_null() & ~(fits & exact).fill_null(False), f"{of.length} Float32 numbers")


def _nested(column: pl.Expr, dtype: pl.DataType, of: FeatureType) -> Cast | None:
    if dtype != of.polars and not _same_shape(dtype, of):
        return None
    cast = column if dtype == of.polars else column.cast(of.polars, strict=False)
    broken = [] if dtype == of.polars else [_changed(column, cast, dtype)]
    if _has_rules(of):
        broken.append(cast.map_batches(_not_whole(of), return_dtype=pl.Boolean, is_elementwise=True))
    return Cast(cast, pl.any_horizontal(broken) if broken else None, f"losslessly a {of}")


def _has_rules(of: FeatureType) -> bool:
    """Whether a value of the right dtype can still be wrong: a map with a key twice, text that is no JSON."""
    if isinstance(of, ListType):
        return _has_rules(of.element)
    if isinstance(of, StructType):
        return any(_has_rules(part) for part in of.fields.values())
    return isinstance(of, MapType | VectorType) or of in (UUID, Json)


def _not_whole(of: FeatureType) -> Callable[[pl.Series], pl.Series]:
    return lambda series: pl.Series([not _is_whole(of, value) for value in series.to_list()], dtype=pl.Boolean)


def _is_whole(of: FeatureType, value: Any) -> bool:
    if value is None:
        return True
    if isinstance(of, ListType):
        return all(_is_whole(of.element, item) for item in value)
    if isinstance(of, StructType):
        return all(_is_whole(part, value[name]) for name, part in of.fields.items())
    if isinstance(of, MapType):
        keys = [item["key"] for item in value]
        return (
            None not in keys
            and len(set(keys)) == len(keys)
            and all(_is_whole(of.value, item["value"]) for item in value)
        )
    if isinstance(of, VectorType):
        return None not in list(value)
    if of == UUID:
        return re.fullmatch(_UUID_TEXT, value) is not None
    return of != Json or not _is_not_json(value)


def _same_shape(dtype: Any, of: FeatureType) -> bool:
    """Whether each part is of the part's family, so that casting back and comparing tells what was lost."""
    if dtype == pl.Null():
        return True
    if isinstance(of, VectorType):
        return bool(dtype == of.polars)
    if isinstance(of, ListType):
        return isinstance(dtype, pl.List | pl.Array) and _same_shape(_a_dtype(dtype.inner), of.element)
    if isinstance(of, StructType):
        parts = dict(dtype.to_schema()) if isinstance(dtype, pl.Struct) else {}
        return list(parts) == list(of.fields) and all(_same_shape(parts[name], of.fields[name]) for name in parts)
    if isinstance(of, MapType):
        inner = _a_dtype(dtype.inner) if isinstance(dtype, pl.List) else None
        return inner is not None and _same_shape(inner, StructType({"key": of.key, "value": of.value}))
    try:
        cast = lossless(pl.col("x"), dtype, of)
    except NotCastable:
        return False
    return cast.broken is None or bool(dtype.is_numeric())


def _a_dtype(dtype: object) -> pl.DataType:
    return dtype() if isinstance(dtype, type) else dtype  # type: ignore[return-value]


def _conversion(dtype: pl.DataType, of: FeatureType) -> str:
    if isinstance(of, DecimalType) and dtype.is_float():
        return f"A float is not an exact decimal; round it on purpose: .round({of.scale}).cast(pl.{of.polars!r})."
    return f"Convert it on purpose: .cast(pl.{of.polars!r}), or declare another type."
