"""How rows lie in DynamoDB: attributes of its own types, that any other client reads, and keys whose bytes never change."""

import struct
from datetime import UTC, date, datetime
from decimal import Decimal as PyDecimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_assets.online.dynamodb.items import Shape, item_size
from feature_assets.online.dynamodb.keys import key_bytes, key_text
from feature_assets.online.dynamodb.sizes import most_bytes
from feature_assets.spec import PUBLICATION, Entity, Field, ViewSpec
from feature_assets.types import (
    UUID,
    Bool,
    Bytes,
    Date,
    Decimal,
    FeatureType,
    Float64,
    Int8,
    Int64,
    List,
    String,
    Struct,
    Timestamp,
)
from tests.values import ALL_TYPES, values

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)


def keyed(*types: FeatureType) -> ViewSpec:
    keys = {f"key_{number}": of for number, of in enumerate(types)}
    return ViewSpec(
        name="kept", entities=(Entity("thing", keys),), features=(Field("value", Int64),), event_timestamp="at"
    )


NATIVE: dict[str, tuple[FeatureType, Any, dict[str, Any]]] = {
    "integer": (Int64, -7, {"N": "-7"}),
    "float": (Float64, 1.5, {"N": "1.5"}),
    "text": (String, "é", {"S": "é"}),
    "truth": (Bool, True, {"BOOL": True}),
    "bytes": (Bytes, b"\x00\xff", {"B": b"\x00\xff"}),
    "list": (List[Int64], [1, None], {"L": [{"N": "1"}, {"NULL": True}]}),
    "struct": (Struct({"a": String}), {"a": "x"}, {"M": {"a": {"S": "x"}}}),
}


@pytest.mark.parametrize("of, value, attribute", NATIVE.values(), ids=NATIVE)
def test_a_value_is_an_attribute_of_dynamodbs_own_types(of: FeatureType, value: Any, attribute: dict[str, Any]) -> None:
    view = ViewSpec(
        name="kept", entities=(Entity("thing", {"key": String}),), features=(Field("value", of),), event_timestamp="at"
    )
    rows = pl.DataFrame(
        [
            pl.Series("key", ["k"]),
            pl.Series("at", [NOON], dtype=pl.Datetime("us", "UTC")),
            of.to_frame("value", [value]),
            pl.Series(PUBLICATION, [1]),
        ]
    )
    (item,) = Shape(view).items(rows)
    assert item["value"] == attribute
    assert item["key"] == {"S": "k"}, "keys can be read as well as looked up"


# Items that are stored are found by these bytes: to change them is to lose every row that is online.
KEYS: dict[str, tuple[FeatureType, Any, bytes, bytes]] = {
    "least of a byte": (Int8, -128, b"Int8", b"-128"),
    "greatest number": (Int64, 2**63 - 1, b"Int64", b"9223372036854775807"),
    "text": (String, "JFK", b"String", b"JFK"),
    "no text": (String, "", b"String", b""),
    "text with NUL and emoji": (String, "a\x00😀", b"String", b"a\x00\xf0\x9f\x98\x80"),
    "composed": (String, "\u00e9", b"String", b"\xc3\xa9"),
    "decomposed": (String, "e\u0301", b"String", b"e\xcc\x81"),
    "true": (Bool, True, b"Bool", b"True"),
    "bytes": (Bytes, b"\x00\xff", b"Bytes", b"\x00\xff"),
    "day": (Date, date(1, 1, 1), b"Date", b"0001-01-01"),
    "moment": (Timestamp, datetime(1969, 12, 31, 23, 59, 59, 999999, UTC), b"Timestamp", b"-1"),
    "amount": (Decimal(9, 2), PyDecimal("-0.50"), b"Decimal(9, 2)", b"-0.50"),
    "no amount": (Decimal(9, 2), PyDecimal("-0.00"), b"Decimal(9, 2)", b"0.00"),
    "uuid": (UUID, "00000000-0000-0000-0000-000000000001", b"UUID", b"00000000-0000-0000-0000-000000000001"),
}


def part(tag: bytes, value: bytes) -> bytes:
    return struct.pack(">B", len(tag)) + struct.pack(">I", len(value)) + tag + value


@pytest.mark.parametrize("of, value, tag, text", KEYS.values(), ids=KEYS)
def test_the_bytes_of_a_key_stay_as_they_are(of: FeatureType, value: Any, tag: bytes, text: bytes) -> None:
    assert key_bytes(keyed(of))((value,)) == b"\x01" + part(tag, text)
    assert key_bytes(keyed(of, String))((value, "z")) == b"\x01" + part(tag, text) + part(b"String", b"z")
    assert key_bytes(keyed(of, String))((value, None)) is None
    encoded = key_bytes(keyed(of, String))((value, "z"))
    assert encoded is not None
    assert key_text(encoded) == f"{text.decode(errors='replace')}/z"


TYPES = [Int8, Int64, String, Bool, Bytes, Date, Timestamp, Decimal(9, 2), UUID]


@given(st.data())
def test_keys_that_differ_in_value_number_or_type_have_different_bytes(data: st.DataObject) -> None:
    """Whatever the values, and however their parts would read when they are glued together."""

    def drawn() -> tuple[tuple[FeatureType, ...], tuple[Any, ...]]:
        types = tuple(data.draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=3)))
        return types, tuple(data.draw(values(of)) for of in types)

    (one_types, one), (other_types, other) = drawn(), drawn()
    same = [str(of) for of in one_types] == [str(of) for of in other_types] and one == other
    assert (key_bytes(keyed(*one_types))(one) == key_bytes(keyed(*other_types))(other)) is same


@pytest.mark.parametrize("of", ALL_TYPES, ids=str)
@given(data=st.data())
def test_no_value_takes_more_than_its_bound(of: FeatureType, data: st.DataObject) -> None:
    held = data.draw(st.lists(st.none() | values(of), min_size=1, max_size=4))
    bounds = pl.select(of.to_frame("v", held)).select(most_bytes(pl.col("v"), of).alias("v"))["v"]
    for value, bound in zip(held, bounds.extend_constant(bounds[-1], len(held) - len(bounds)), strict=True):
        if value is not None:
            assert item_size({"": of.to_dynamodb(value)}) <= bound
