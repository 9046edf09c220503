"""Values of every feature type, those that are easily lost among them, and their bits to compare them by."""

import math
import struct
import uuid
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal as PyDecimal
from typing import Any, Final

from hypothesis import strategies as st

from feature_assets.types import (
    UUID,
    Bool,
    Bytes,
    Date,
    Decimal,
    DecimalType,
    FeatureType,
    Float32,
    Float64,
    Int8,
    Int16,
    Int32,
    Int64,
    Json,
    List,
    ListType,
    Map,
    MapType,
    String,
    Struct,
    StructType,
    Timestamp,
    Vector,
    VectorType,
)

ALL_TYPES: Final[tuple[FeatureType, ...]] = (
    *(Int8, Int16, Int32, Int64, Float32, Float64, String, Bool, Bytes, Date, Timestamp),
    *(Decimal(12, 3), Decimal(38, 0), UUID, Json),
    *(List[Float64], List[Timestamp], List[Struct({"x": Int64, "names": List[String]})], Vector[3]),
    Struct({"x": Int32, "at": Timestamp, "raw": Bytes}),
    *(Map[String, Float64], Map[Int64, List[Date]]),
)
"""Every type, and the ones with parts in a few shapes."""

KEY_TYPES: Final[tuple[FeatureType, ...]] = tuple(of for of in ALL_TYPES if of.keyable)

_TEXTS = ["", "\x00", "a\x00b", "e\u0301", "\u00e9", "😀", "' OR 1=1 --", "1", "1.0", "NaN", "null", "\u2028", " pad "]

_SIMPLE: Final[dict[FeatureType, st.SearchStrategy[Any]]] = {
    Float32: st.sampled_from([-0.0, 0.0, math.nan, math.inf, -math.inf, 2.0**-149, 0.5]) | st.floats(width=32),
    Float64: st.sampled_from([-0.0, 0.0, math.nan, math.inf, -math.inf, 5e-324, 0.1, 2.0**63]) | st.floats(),
    String: st.sampled_from(_TEXTS) | st.text(max_size=6),
    Bool: st.booleans(),
    Bytes: st.sampled_from([b"", b"\x00", b"1", b"-0.0", b"NaN", b"\xff\xfe"]) | st.binary(max_size=6),
    Date: st.sampled_from([date.min, date.max, date(1970, 1, 1), date(2024, 2, 29)]) | st.dates(),
    Timestamp: st.sampled_from([datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
    | st.datetimes(timezones=st.just(UTC)),
    UUID: st.just(str(uuid.UUID(int=0))) | st.uuids().map(str),
    Json: st.sampled_from(["null", "{}", '{"a": [1, 2.50, "é"]}', "[]", '""', "1e3", " [ 1 ] "]),
}


def values(of: FeatureType) -> st.SearchStrategy[Any]:
    """Canonical Python values of a type, none of them null."""
    if of in _SIMPLE:
        return _SIMPLE[of]
    if isinstance(of, DecimalType):
        largest = 10**of.precision - 1
        digits = st.sampled_from([0, 1, -1, largest, -largest]) | st.integers(-largest, largest)
        return digits.map(lambda number: PyDecimal((int(number < 0), _digits(number), -of.scale)))
    if isinstance(of, ListType):
        return st.lists(optional(of.element), max_size=3)
    if isinstance(of, VectorType):
        return st.lists(values(Float32), min_size=of.length, max_size=of.length)
    if isinstance(of, StructType):
        # Not `fixed_dictionaries`, which shuffles: the canonical value has the fields in the declared order.
        parts = st.tuples(*map(optional, of.fields.values()))
        return parts.map(lambda found: dict(zip(of.fields, found, strict=True)))
    if isinstance(of, MapType):
        return st.dictionaries(values(of.key), optional(of.value), max_size=3)
    bits_of_it = int(of.name.removeprefix("Int"))
    low, high = -(2 ** (bits_of_it - 1)), 2 ** (bits_of_it - 1) - 1
    return st.sampled_from([0, 1, -1, low, high]) | st.integers(low, high)


def optional(of: FeatureType) -> st.SearchStrategy[Any]:
    """Canonical Python values of a type, or null."""
    return st.none() | values(of)


def _digits(number: int) -> tuple[int, ...]:
    return tuple(map(int, str(abs(number))))


def bits(value: Any) -> Any:
    """The value in a form that is equal only where every bit is: NaN to itself, -0.0 not to 0.0, True not to 1."""
    if isinstance(value, float):
        return "float", "NaN" if math.isnan(value) else struct.pack("<d", value)
    if isinstance(value, list | tuple):
        return "list", [bits(item) for item in value]
    if isinstance(value, Mapping):
        return "dict", [(bits(key), bits(item)) for key, item in value.items()]
    if isinstance(value, PyDecimal):
        return "decimal", value.as_tuple()
    return type(value).__name__, value
