"""JSON values of records mean what they mean when they are pushed, and nothing that is sent stops the others."""

import json
import math
from typing import Any

import orjson
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets import Float64, Int64, JsonFormat, List, Settings, String, Timestamp
from feature_assets.errors import WrongType
from feature_assets.streams.decoding import Decoded, decoder
from feature_assets.testing.values import ALL_TYPES, bits, optional
from feature_assets.types import FeatureType
from tests.streams.poison import POISON

TRIP = {"driver_id": Int64, "ended": Timestamp, "km": Float64}
GOOD = b'{"driver_id":7,"ended":"2024-05-01T09:30:00Z","km":12.5}'


def decoded(values: list[bytes | None], fields: dict[str, FeatureType] = TRIP, **said: Any) -> Decoded:
    made = decoder(JsonFormat(**said), fields, Settings())
    found = made.decode(values)
    assert dict(found.rows.schema) == {name: of.polars for name, of in fields.items()}
    assert found.rows.height == len(found.indices)
    assert sorted([*found.indices, *(at for at, _ in found.failures)]) == list(range(len(values)))
    return found


def parsed(of: FeatureType, value: Any) -> Any:
    try:
        return bits(of.parse(value))
    except WrongType:
        return "refused"


@pytest.mark.parametrize("of", ALL_TYPES, ids=str)
@settings(max_examples=25)
@given(data=st.data())
def test_what_a_type_writes_is_read_back(of: FeatureType, data: st.DataObject) -> None:
    values = data.draw(st.lists(optional(of), min_size=1, max_size=5))
    texts = [orjson.dumps({"x": one}, option=orjson.OPT_NON_STR_KEYS) for one in of.to_json(values)]
    found = decoded(texts, {"x": of})
    assert found.failures == []
    assert list(map(bits, of.from_frame(found.rows["x"]))) == list(map(bits, values))


ODD: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 0.0, -0.0, 1.0, 0.1),
    *(1e300, 3.5e38, 3.4028235e38, "", "NaN", "-Infinity", "12", "1.5", "2013-02-08", "2013-02-30", "0000-01-01", "é"),
    *("2013-02-08T07:00:00Z", "2013-02-08T07:00:60Z", "2013-02-08T24:00:00Z", "2013-02-08T07:00:00.1234567Z"),
    *("2013-02-08T07:00:00+01:00", "2013-02-08 07:00", "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z"),
    *("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "AA==", "====", "{", "{}"),
    *([], [None], [1], [1.5], [1.5, 2], ["a"], [1, "a"], [1.0, 2.0, 3.0], [1e39, 0.0, 0.0], {}, {"x": 1}, {"y": 1}),
)


@pytest.mark.parametrize("of", ALL_TYPES, ids=str)
@settings(max_examples=40)
@given(values=st.lists(st.sampled_from(ODD), min_size=1, max_size=4))
def test_a_value_means_what_it_means_when_it_is_pushed(of: FeatureType, values: list[Any]) -> None:
    found = decoded([json.dumps({"x": value}).encode() for value in values], {"x": of})
    rows = dict(zip(found.indices, map(bits, of.from_frame(found.rows["x"])), strict=True))
    for at, value in enumerate(values):
        assert rows.get(at, "refused") == parsed(of, value), value
    assert all(reason.startswith("'x': ") for _, reason in found.failures)


@pytest.mark.parametrize("poison", POISON, ids=lambda one: repr(one)[:20])
def test_poison_is_refused_and_stops_nothing(poison: bytes | None) -> None:
    found = decoded([GOOD, poison, GOOD])
    assert found.indices == [0, 2]
    assert found.rows["driver_id"].to_list() == [7, 7]
    [(at, reason)] = found.failures
    assert at == 1
    assert reason.count(". ") >= 1, f"no mend: {reason}"


@given(st.lists(st.binary(max_size=30) | st.none() | st.just(GOOD), max_size=6))
def test_no_bytes_raise(values: list[bytes | None]) -> None:
    decoded(values)


REFUSED = {
    b'{"driver_id":7.5,"ended":"2024-05-01T09:30:00Z","km":1}': "'driver_id': float 7.5 is not a Int64",
    b'{"driver_id":9223372036854775808,"ended":null,"km":1}': "'driver_id': int 9223372036854775808 is not a Int64",
    b'{"driver_id":7,"ended":1714555800,"km":1}': "say the unit, as in epoch=",
    b'{"driver_id":7,"ended":"2024-05-01T09:30:00Z"}': "It has no 'km'. Send that too",
    b'{"driver_id":7,"ended":"2024-05-01T09:30:00Z","km":1e999}': "'km': Number out of range",
    b"[1]": "It is JSON, but no object.",
    b"{": "It is not JSON: ",
}


@pytest.mark.parametrize(("value", "why"), REFUSED.items(), ids=lambda one: repr(one)[:30])
def test_a_refusal_names_the_field_and_the_mend(value: bytes, why: str) -> None:
    [(_, reason)] = decoded([value]).failures
    assert why in reason


def test_whole_numbers_are_exact_and_texts_are_kept_as_they_are() -> None:
    fields = {"a": Int64, "b": Float64, "c": String}
    found = decoded([b'{"a":9007199254740993,"b":9007199254740993,"c":"1.50"}'], fields)
    assert "'b': int 9007199254740993" in found.failures[0][1]
    found = decoded([b'{"a":9007199254740993,"b":9007199254740992,"c":"1.50"}'], fields)
    assert found.rows.row(0) == (9007199254740993, 9007199254740992.0, "1.50")


def test_a_member_that_stands_twice_counts_as_it_stands_last() -> None:
    assert decoded([b'{"a":1,"a":2}'], {"a": Int64}).rows["a"].to_list() == [2]


def test_what_is_left_out_is_null_where_that_is_said() -> None:
    value = b'{"driver_id":7,"ended":"2024-05-01T09:30:00Z"}'
    assert decoded([value, GOOD], missing="null").rows["km"].to_list() == [None, 12.5]
    found = decoder(JsonFormat(), TRIP, Settings(), optional=["km"]).decode([value, GOOD, b'{"km":1}'])
    assert found.rows["km"].to_list() == [None, 12.5]
    assert found.failures == [(2, "It has no 'driver_id'. Send that too, as null where there is no value.")]


def test_what_is_not_declared_is_dropped_or_refused() -> None:
    value = GOOD.replace(b"{", b'{"tip":1,', 1)
    assert decoded([value]).indices == [0]
    [(_, reason)] = decoded([value], unknown_fields="refuse").failures
    assert reason.startswith("It has 'tip', which is not declared.")


def test_fields_may_have_any_name() -> None:
    fields = {"ended at": Int64, "class": Int64, "größe": Int64, "__": Int64}
    found = decoded([orjson.dumps({name: at for at, name in enumerate(fields)})], fields)
    assert found.rows.row(0) == (0, 1, 2, 3)


@pytest.mark.parametrize(("unit", "factor"), [("seconds", 1), ("milliseconds", 1000), ("microseconds", 1_000_000)])
def test_a_number_is_a_time_in_the_unit_that_is_said(unit: str, factor: int) -> None:
    value = b'{"driver_id":7,"ended":%d,"km":1}'
    times = [1714555800 * factor, -5 * factor, 2**62]
    found = decoded([value % one for one in times] + [GOOD], epoch=unit)
    moments = pl.Series([1714555800000000, -5000000, 1714555800000000]).cast(Timestamp.polars)
    assert found.rows["ended"].to_list() == moments.to_list()
    assert [at for at, _ in found.failures] == [2]


def test_the_bytes_of_a_schema_registry_are_passed_over() -> None:
    found = decoded([b"\x00\x00\x00\x01\x02" + GOOD, GOOD, b"", None], framing="confluent")
    assert found.indices == [0]
    assert "framing='none'" in found.failures[0][1]


def test_lists_of_numbers_are_exact() -> None:
    found = decoded([b'{"x":[1,2.5]}', b'{"x":[9007199254740993]}', b'{"x":[1.5,null,"NaN"]}'], {"x": List[Float64]})
    assert found.indices == [0, 2]
    assert found.rows["x"].to_list()[0] == [1.0, 2.5]
    assert math.isnan(found.rows["x"].to_list()[1][2])
