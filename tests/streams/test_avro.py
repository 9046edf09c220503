"""Avro values, as their real writers write them: fastavro, and the serializer of Confluent's client."""

import io
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal as PyDecimal
from typing import Any

import fastavro
import pytest
from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from fastavro.schema import fingerprint, to_parsing_canonical_form
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets import (
    AvroFormat,
    Bool,
    Bytes,
    Date,
    Decimal,
    DeclarationError,
    Float32,
    Float64,
    Int64,
    JsonFormat,
    List,
    Map,
    Settings,
    String,
    Struct,
    Timestamp,
)
from feature_assets.errors import ConfigurationError, StoreUnavailable
from feature_assets.streams.decoding import Decoded, decoder
from feature_assets.testing.values import ALL_TYPES, bits, values
from feature_assets.types import DecimalType, FeatureType, ListType, MapType, StructType, VectorType
from tests.streams.poison import POISON
from tests.streams.schema_registry_server import SchemaRegistryServer, schema_registry

TRIP = {"driver_id": Int64, "ended": Timestamp, "km": Float64}
SCHEMA = {
    "type": "record",
    "name": "Trip",
    "fields": [
        {"name": "driver_id", "type": "long"},
        {"name": "ended", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "km", "type": ["null", "double"], "default": None},
    ],
}
ROW = {"driver_id": 7, "ended": datetime(2024, 5, 1, 9, 30, tzinfo=UTC), "km": 12.5}


def written(row: dict[str, Any], schema: Any = SCHEMA) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), row)
    return stream.getvalue()


def decoded(made: Any, values_: list[bytes | None], fields: dict[str, FeatureType] = TRIP) -> Decoded:
    found: Decoded = made.decode(values_)
    assert dict(found.rows.schema) == {name: of.polars for name, of in fields.items()}
    assert found.rows.height == len(found.indices)
    assert sorted([*found.indices, *(at for at, _ in found.failures)]) == list(range(len(values_)))
    return found


def reading(schema: Any = SCHEMA, fields: dict[str, FeatureType] = TRIP, **said: Any) -> Any:
    return decoder(AvroFormat(schema=json.dumps(schema), **said), fields, Settings())


class Schemas:
    """The Avro schema of each feature type, and a value as fastavro takes it."""

    def __init__(self) -> None:
        self.records = 0

    def of(self, of: FeatureType) -> Any:
        if isinstance(of, DecimalType):
            return {"type": "bytes", "logicalType": "decimal", "precision": of.precision, "scale": of.scale}
        if isinstance(of, ListType):
            return {"type": "array", "items": self.of(of.element)}
        if isinstance(of, VectorType):
            return {"type": "array", "items": "float"}
        if isinstance(of, StructType):
            self.records += 1
            fields = [{"name": name, "type": ["null", self.of(part)]} for name, part in of.fields.items()]
            return {"type": "record", "name": f"R{self.records}", "fields": fields}
        if isinstance(of, MapType):
            return {"type": "map", "values": ["null", self.of(of.value)]}
        return _PLAIN[of.name]


_PLAIN: dict[str, Any] = {
    **dict.fromkeys(("Int8", "Int16", "Int32"), "int"),
    "Int64": "long",
    "Float32": "float",
    "Float64": "double",
    "String": "string",
    "Json": "string",
    "Bool": "boolean",
    "Bytes": "bytes",
    "Date": {"type": "int", "logicalType": "date"},
    "Timestamp": {"type": "long", "logicalType": "timestamp-micros"},
    "UUID": {"type": "string", "logicalType": "uuid"},
}


def _avro(of: FeatureType, value: Any) -> Any:
    if value is None:
        return None
    if of.name == "UUID":
        return uuid.UUID(value)
    if isinstance(of, ListType):
        return [_avro(of.element, item) for item in value]
    if isinstance(of, StructType):
        return {name: _avro(part, value[name]) for name, part in of.fields.items()}
    return value


# A map of Avro has text for keys, and an array of these is written without nulls.
WRITABLE = [of for of in ALL_TYPES if not isinstance(of, MapType) or of.key == String]


def _without_nulls(of: FeatureType, value: Any) -> bool:
    if isinstance(of, ListType) and value is not None:
        return None not in value and all(_without_nulls(of.element, item) for item in value)
    if isinstance(of, StructType) and value is not None:
        return all(_without_nulls(part, value[name]) for name, part in of.fields.items())
    return True


@pytest.mark.parametrize("of", WRITABLE, ids=str)
@settings(max_examples=25)
@given(data=st.data())
def test_what_fastavro_writes_is_read_back(of: FeatureType, data: st.DataObject) -> None:
    one = values(of).filter(lambda value: _without_nulls(of, value))
    rows = data.draw(st.lists(st.none() | one, min_size=1, max_size=4))
    schema = {"type": "record", "name": "Row", "fields": [{"name": "x", "type": ["null", Schemas().of(of)]}]}
    found = decoded(reading(schema, {"x": of}), [written({"x": _avro(of, row)}, schema) for row in rows], {"x": of})
    assert found.failures == []
    expected = [PyDecimal(f"{row:f}") if isinstance(row, PyDecimal) and not row else row for row in rows]
    if isinstance(of, DecimalType):
        # Avro has no sign of a zero.
        expected = [abs(row) if row is not None and not row else row for row in expected]
    assert list(map(bits, of.from_frame(found.rows["x"]))) == list(map(bits, expected))


@pytest.mark.parametrize(
    "poison", [*POISON, b"\x0e\x00", written(ROW) + b"\x00", written(ROW)[:-1]], ids=lambda p: repr(p)[:20]
)
def test_poison_is_refused_and_stops_nothing(poison: bytes | None) -> None:
    found = decoded(reading(), [written(ROW), poison, written(ROW)])
    assert found.indices == [0, 2]
    [(at, reason)] = found.failures
    assert at == 1
    assert ". " in reason


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=24), max_size=4), st.sampled_from(["none", "single-object"]))
def test_no_bytes_raise(garbage: list[bytes], framing: str) -> None:
    decoded(reading(framing=framing), [*garbage, *(b"\xc3\x01" + one for one in garbage)])


def test_a_reader_schema_fills_renames_and_widens() -> None:
    old = {
        "type": "record",
        "name": "Trip",
        "fields": [{"name": "driver", "type": "int"}, {"name": "ended", "type": SCHEMA["fields"][1]["type"]}],
    }
    new = {**SCHEMA, "fields": [{**SCHEMA["fields"][0], "aliases": ["driver"]}, *SCHEMA["fields"][1:]]}
    mark = b"\xc3\x01" + bytes.fromhex(
        fingerprint(to_parsing_canonical_form(fastavro.parse_schema(old)), "CRC-64-AVRO")
    )
    own = b"\xc3\x01" + bytes.fromhex(fingerprint(to_parsing_canonical_form(fastavro.parse_schema(new)), "CRC-64-AVRO"))
    made = reading(new, framing="single-object", writers=[json.dumps(old)])
    unknown = b"\xc3\x01" + b"\x07" * 8
    found = decoded(
        made,
        [mark + written({"driver": 7, "ended": ROW["ended"]}, old), own + written(ROW, new), unknown + written(ROW)],
    )
    assert found.rows["driver_id"].to_list() == [7, 7]
    assert found.rows["km"].to_list() == [None, 12.5]
    assert "Add the schema to writers=" in found.failures[0][1]


def test_the_fingerprint_is_that_of_the_specification() -> None:
    """It gives an int's as 0x7275d51a3f395c8f, and writes it from the least byte on."""
    assert fingerprint('"int"', "CRC-64-AVRO") == "8f5c393f1ad57572"


def test_logical_types_enums_and_nested_values() -> None:
    schema = {
        "type": "record",
        "name": "All",
        "fields": [
            {
                "name": "fare",
                "type": {
                    "type": "fixed",
                    "name": "F",
                    "size": 8,
                    "logicalType": "decimal",
                    "precision": 12,
                    "scale": 3,
                },
            },
            {"name": "day", "type": {"type": "int", "logicalType": "date"}},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "local", "type": {"type": "long", "logicalType": "local-timestamp-micros"}},
            {"name": "kind", "type": {"type": "enum", "name": "K", "symbols": ["CASH", "CARD"]}},
            {"name": "tags", "type": {"type": "map", "values": "double"}},
            {
                "name": "stops",
                "type": {
                    "type": "array",
                    "items": {"type": "record", "name": "S", "fields": [{"name": "m", "type": "long"}]},
                },
            },
            {"name": "raw", "type": "bytes"},
            {"name": "ok", "type": "boolean"},
            {"name": "share", "type": "float"},
        ],
    }
    fields = {
        "fare": Decimal(12, 3),
        "day": Date,
        "at": Timestamp,
        "local": Timestamp,
        "kind": String,
        "tags": Map[String, Float64],
        "stops": List[Struct({"m": Int64})],
        "raw": Bytes,
        "ok": Bool,
        "share": Float32,
    }
    moment = datetime(2024, 5, 1, 9, 30, 0, 5000, tzinfo=UTC)
    row = {
        "fare": PyDecimal("12.500"),
        "day": date(2024, 5, 1),
        "at": moment,
        "local": moment.replace(tzinfo=None),
        "kind": "CARD",
        "tags": {"a": 1.5},
        "stops": [{"m": 3}],
        "raw": b"\x00\xff",
        "ok": True,
        "share": 0.5,
    }
    found = decoded(reading(schema, fields), [written(row, schema)], fields)
    got = {name: of.from_frame(found.rows[name])[0] for name, of in fields.items()}
    assert got == {**row, "local": moment}


ENDLESS = {
    "holds itself": {"type": "record", "name": "N", "fields": [{"name": "next", "type": ["null", "N"]}]},
    "any number of them": {
        "type": "record",
        "name": "N",
        "fields": [{"name": "x", "type": {"type": "array", "items": "null"}}],
    },
    "no Avro schema": {"type": "record", "name": "N", "fields": [{"name": "x", "type": "longer"}]},
    "not the schema of a record": {"type": "enum", "name": "N", "symbols": ["A"]},
    "has no field 'driver_id'": {"type": "record", "name": "N", "fields": [{"name": "x", "type": "long"}]},
}


@pytest.mark.parametrize(("why", "schema"), ENDLESS.items())
def test_a_schema_that_cannot_be_used_is_refused_before_anything_is_read(why: str, schema: Any) -> None:
    with pytest.raises(DeclarationError, match=why):
        reading(schema)


@pytest.fixture
def registry() -> Iterator[SchemaRegistryServer]:
    with schema_registry() as server:
        yield server


def serialized(registry: SchemaRegistryServer, schema: Any = SCHEMA, row: Any = ROW) -> bytes:
    client = SchemaRegistryClient({"url": registry.url})
    serializer = AvroSerializer(client, json.dumps(schema))
    data = serializer(row, SerializationContext("trips", MessageField.VALUE))
    client.close()
    assert data is not None
    return data


def asking(registry: SchemaRegistryServer, fields: Any = TRIP, **said: Any) -> Any:
    options = said.pop("options", {})
    known = Settings(schema_registry=registry.url, schema_registry_options=options)
    return decoder(AvroFormat(framing="confluent", **said), fields, known)


def test_the_schema_of_an_id_comes_from_the_registry_once(registry: SchemaRegistryServer) -> None:
    value = serialized(registry)
    made = asking(registry)
    registry.asked.clear()
    assert decoded(made, [value] * 3).rows["km"].to_list() == [12.5] * 3
    assert decoded(made, [value]).indices == [0]
    assert registry.asked == ["/schemas/ids/1"]


def test_a_schema_that_grows_is_read_by_the_readers(registry: SchemaRegistryServer) -> None:
    older = {**SCHEMA, "fields": SCHEMA["fields"][:2]}
    values_ = [serialized(registry, older, {**ROW}), serialized(registry)]
    assert decoded(asking(registry, schema=json.dumps(SCHEMA)), values_).rows["km"].to_list() == [None, 12.5]
    found = decoded(asking(registry), values_)
    assert found.failures == [(0, "It has no 'km'. Send that too, as null where there is no value.")]


def test_an_unknown_id_is_a_dead_letter_and_is_not_asked_for_each_time(registry: SchemaRegistryServer) -> None:
    value = serialized(registry)
    stranger = b"\x00\x00\x00\x01\x00" + value[5:]
    made = asking(registry)
    registry.asked.clear()
    found = decoded(made, [stranger, value, stranger, *POISON])
    assert found.indices == [1]
    assert "has no schema 256" in found.failures[0][1]
    assert registry.asked.count("/schemas/ids/256") == 1


@pytest.mark.parametrize("status", [500, 503, 401, 429])
def test_a_registry_that_cannot_be_asked_is_no_dead_letter(registry: SchemaRegistryServer, status: int) -> None:
    value = serialized(registry)
    made = asking(registry)
    registry.status = status
    with pytest.raises(StoreUnavailable, match=f"cannot be asked for schema 1 .HTTP {status}"):
        made.decode([value])
    registry.status = None
    assert decoded(made, [value]).indices == [0]


def test_a_registry_that_is_gone_is_no_dead_letter() -> None:
    with schema_registry() as registry:
        value = serialized(registry)
        made = asking(registry)
    with pytest.raises(StoreUnavailable, match="See that it runs"):
        made.decode([value])


def test_credentials_are_sent_and_told_to_nobody(registry: SchemaRegistryServer) -> None:
    value = serialized(registry)
    registry.authorization = "Basic dXNlcjpzM2NyZXQ="
    assert decoded(asking(registry, options={"basic.auth.user.info": "user:s3cret"}), [value]).indices == [0]
    with pytest.raises(StoreUnavailable) as refused:
        asking(registry, options={"basic.auth.user.info": "user:wrong"}).decode([value])
    assert "wrong" not in str(refused.value)


def test_a_schema_may_refer_to_others(registry: SchemaRegistryServer) -> None:
    client = SchemaRegistryClient({"url": registry.url})
    stop = {"type": "record", "name": "Stop", "fields": [{"name": "m", "type": "long"}]}
    client.register_schema("stops", Schema(json.dumps(stop), "AVRO"))
    trip = {"type": "record", "name": "Trip", "fields": [{"name": "stop", "type": "Stop"}]}
    schema = Schema(json.dumps(trip), "AVRO", [SchemaReference("Stop", "stops", 1)])
    number = client.register_schema("trips", schema)
    client.close()
    datum = written({"m": 3}, stop)
    fields = {"stop": Struct({"m": Int64})}
    found = decoded(asking(registry, fields), [b"\x00" + number.to_bytes(4) + datum], fields)
    assert found.rows["stop"].to_list() == [{"m": 3}]


def test_a_schema_of_another_kind_or_without_end_is_a_dead_letter(registry: SchemaRegistryServer) -> None:
    numbers = [
        registry.register("a", {"schema": "{}", "schemaType": "JSON"}),
        registry.register("b", {"schema": json.dumps(ENDLESS["holds itself"])}),
        registry.register("c", {"schema": "{"}),
    ]
    found = decoded(asking(registry), [b"\x00" + number.to_bytes(4) + b"\x02" * 400_000 for number in numbers])
    reasons = [reason for _, reason in found.failures]
    assert "is JSON. Write Avro" in reasons[0]
    assert "holds itself" in reasons[1]
    assert "no Avro schema" in reasons[2]


def test_what_is_missing_to_ask_a_registry_is_said() -> None:
    with pytest.raises(ConfigurationError, match="Set schema_registry to its URL"):
        decoder(AvroFormat(framing="confluent"), TRIP, Settings())
    with pytest.raises(ConfigurationError, match=r"basic\.auth\.user\.info") as refused:
        decoder(AvroFormat(framing="confluent"), TRIP, Settings(schema_registry="http://me:s3cret@localhost"))
    assert "s3cret" not in str(refused.value)
    with pytest.raises(DeclarationError, match="framing='confluent'"):
        AvroFormat()
    assert decoder(JsonFormat(framing="confluent"), TRIP, Settings())
