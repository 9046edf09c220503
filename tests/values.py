"""Values of every feature type, the ones that are easily lost among them, and their bits to compare them by."""

import math
import struct
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal as PyDecimal
from typing import Any

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

ALL_TYPES: tuple[FeatureType, ...] = (
    Int8,
    Int16,
    Int32,
    Int64,
    Float32,
    Float64,
    String,
    Bool,
    Bytes,
    Date,
    Timestamp,
    Decimal(12, 3),
    UUID,
    Json,
    List[Float64],
    List[Timestamp],
    List[Struct({"x": Int64, "names": List[String]})],
    Vector[3],
    Struct({"x": Int32, "at": Timestamp, "raw": Bytes}),
    Map[String, Float64],
    Map[Int64, List[Date]],
)
KEY_TYPES = tuple(of for of in ALL_TYPES if of.keyable)

_TEXTS = ["", "\x00", "a\x00b", "é", "😀", "' OR 1=1 --", "NaN", "null", "\u2028", " padded "]

_SCALARS: dict[FeatureType, st.SearchStrategy[Any]] = {
    Float32: st.floats(width=32),
    Float64: st.floats() | st.sampled_from([-0.0, math.nan, math.inf, -math.inf, 5e-324, 0.1]),
    String: st.text(max_size=6) | st.sampled_from(_TEXTS),
    Bool: st.booleans(),
    Bytes: st.binary(max_size=6) | st.sampled_from([b"", b"\x00", b"-0.0", b"NaN"]),
    Date: st.dates() | st.sampled_from([date.min, date.max, date(1970, 1, 1)]),
    Timestamp: st.datetimes(timezones=st.just(UTC))
    | st.sampled_from([datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]),
    UUID: st.uuids().map(str) | st.just(str(uuid.UUID(int=0))),
    Json: st.sampled_from(["null", "{}", '{"a": [1, 2.50, "é"]}', "[]", '""', "1e3", " [ 1 ] "]),
}


def values(of: FeatureType) -> st.SearchStrategy[Any]:
    """Canonical Python values of a type, none of them null."""
    if of in _SCALARS:
        return _SCALARS[of]
    if isinstance(of, DecimalType):
        largest = 10**of.precision - 1
        return st.integers(-largest, largest).map(lambda digits: PyDecimal(digits).scaleb(-of.scale))
    if isinstance(of, ListType):
        return st.lists(st.none() | values(of.element), max_size=3)
    if isinstance(of, VectorType):
        return st.lists(values(Float32), min_size=of.length, max_size=of.length)
    if isinstance(of, StructType):
        # Not `fixed_dictionaries`, which shuffles: the canonical value has the fields in the declared order.
        parts = st.tuples(*(st.none() | values(inner) for inner in of.fields.values()))
        return parts.map(lambda found: dict(zip(of.fields, found, strict=True)))
    if isinstance(of, MapType):
        return st.dictionaries(values(of.key), st.none() | values(of.value), max_size=3)
    bits = int(of.name.removeprefix("Int"))
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return st.integers(low, high) | st.sampled_from([low, high, 0])


def bits(value: Any) -> Any:
    """The value in a form that is equal only where every bit is: NaN to itself, -0.0 not to 0.0, True not to 1."""
    if isinstance(value, float):
        return "float", struct.pack("<d", value) if not math.isnan(value) else "NaN"
    if isinstance(value, list | tuple):
        return "list", [bits(item) for item in value]
    if isinstance(value, dict):
        return "dict", [(bits(key), bits(item)) for key, item in value.items()]
    if isinstance(value, PyDecimal):
        return "decimal", value.as_tuple()
    return type(value).__name__, value
