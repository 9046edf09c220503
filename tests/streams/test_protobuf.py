"""Protobuf values, as messages and the serializer of Confluent's client write them."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets import (
    Bool,
    Bytes,
    DeclarationError,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    List,
    Map,
    ProtobufFormat,
    Settings,
    String,
    Struct,
    Timestamp,
)
from feature_assets.errors import StoreUnavailable
from feature_assets.spec import canonical_json, from_json
from feature_assets.streams.decoding import Decoded, decoder
from feature_assets.testing.values import bits, values
from feature_assets.types import FeatureType
from tests.streams.poison import POISON
from tests.streams.schema_registry_server import SchemaRegistryServer, schema_registry

PROTO = """
syntax = "proto3";
package rides;
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
import "google/protobuf/struct.proto";

message Trip {
  int64 driver_id = 1;
  google.protobuf.Timestamp ended = 2;
  optional double km = 3;
}

message All {
  enum Kind { UNKNOWN = 0; CASH = 1; CARD = 2; }
  message Stop { string name = 1; google.protobuf.Timestamp at = 2; google.protobuf.Int64Value people = 3; Kind kind = 4; }
  int32 i32 = 1;
  int64 i64 = 2;
  uint64 u64 = 3;
  float f32 = 4;
  double f64 = 5;
  string text = 6;
  bytes raw = 7;
  bool yes = 8;
  Kind kind = 9;
  Kind number = 10;
  repeated double many = 11;
  map<string, double> named = 12;
  Stop stop = 13;
  repeated Stop stops = 14;
  map<int64, Stop> by_id = 15;
  google.protobuf.StringValue wrapped = 16;
  google.protobuf.Struct free = 17;
  oneof one { string left = 18; int64 right = 19; }
  optional int64 maybe = 20;
}
"""
TRIP = {"driver_id": Int64, "ended": Timestamp, "km": Float64}
MOMENT = datetime(2024, 5, 1, 9, 30, 0, 5, tzinfo=UTC)
STOP = Struct({"name": String, "at": Timestamp, "people": Int64, "kind": String})
ALL: dict[str, FeatureType] = {
    "i32": Int32,
    "i64": Int64,
    "u64": Int64,
    "f32": Float32,
    "f64": Float64,
    "text": String,
    "raw": Bytes,
    "yes": Bool,
    "kind": String,
    "number": Int32,
    "many": List[Float64],
    "named": Map[String, Float64],
    "stop": STOP,
    "stops": List[STOP],
    "by_id": Map[Int64, STOP],
    "wrapped": String,
    "free": Json,
    "left": String,
    "right": Int64,
    "maybe": Int64,
}


@cache
def pool(folder: Path) -> tuple[DescriptorPool, bytes]:
    (folder / "rides.proto").write_text(PROTO)
    command = ["--include_imports", f"--descriptor_set_out={folder / 'set'}", f"-I{folder}", "rides.proto"]
    include = subprocess.check_output(
        [sys.executable, "-c", "from importlib.resources import files; print(files('grpc_tools') / '_proto')"],
        text=True,
    )
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{include.strip()}", *command], check=True)
    made, data = DescriptorPool(), (folder / "set").read_bytes()
    for file in FileDescriptorSet.FromString(data).file:
        made.Add(file)
    return made, data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rides")


@pytest.fixture
def message(folder: Path) -> Any:
    """What makes an empty message of that name."""
    return lambda name: GetMessageClass(pool(folder)[0].FindMessageTypeByName(f"rides.{name}"))()


@cache
def reading(name: str = "Trip") -> Any:
    fields = TRIP if name == "Trip" else ALL
    return decoder(ProtobufFormat(schema=PROTO, message=f"rides.{name}"), fields, Settings())


def decoded(made: Any, values_: list[bytes | None], fields: dict[str, FeatureType] = TRIP) -> Decoded:
    found: Decoded = made.decode(values_)
    assert dict(found.rows.schema) == {name: of.polars for name, of in fields.items()}
    assert found.rows.height == len(found.indices)
    assert sorted([*found.indices, *(at for at, _ in found.failures)]) == list(range(len(values_)))
    return found


def trip(message: Any, driver: int = 7, km: float | None = 12.5) -> Any:
    made = message("Trip")
    made.driver_id = driver
    made.ended.FromDatetime(MOMENT)
    if km is not None:
        made.km = km
    return made


def test_every_kind_of_field_is_read(message: Any) -> None:
    made = message("All")
    made.i32, made.i64, made.u64, made.f32, made.f64 = -(2**31), -(2**63), 2**63 - 1, 0.5, 5e-324
    made.text, made.raw, made.yes, made.kind, made.number = "😀\x00", b"\x00\xff", True, 2, 2
    made.many.extend([1.5, -0.0])
    made.named["a"] = 2.5
    made.stop.name = "first"
    made.stop.at.FromDatetime(MOMENT)
    made.stop.people.value = 3
    made.stops.add().kind = 1
    made.by_id[9].name = "ninth"
    made.wrapped.value = ""
    made.free.update({"a": [1, None, "x"]})
    made.right = 4
    found = decoded(reading("All"), [made.SerializeToString()], ALL)
    got = {name: of.from_frame(found.rows[name])[0] for name, of in ALL.items()}
    free = json.loads(got.pop("free"))
    assert free == {"a": [1, None, "x"]}
    empty = {"name": "", "at": None, "people": None, "kind": "UNKNOWN"}
    assert got == {
        "i32": -(2**31),
        "i64": -(2**63),
        "u64": 2**63 - 1,
        "f32": 0.5,
        "f64": 5e-324,
        "text": "😀\x00",
        "raw": b"\x00\xff",
        "yes": True,
        "kind": "CARD",
        "number": 2,
        "many": [1.5, -0.0],
        "named": {"a": 2.5},
        "stop": {"name": "first", "at": MOMENT, "people": 3, "kind": "UNKNOWN"},
        "stops": [{**empty, "kind": "CASH"}],
        "by_id": {9: {**empty, "name": "ninth"}},
        "wrapped": "",
        "left": None,
        "right": 4,
        "maybe": None,
    }


def test_what_is_not_there_is_null_only_where_the_schema_can_tell(message: Any) -> None:
    found = decoded(reading("All"), [message("All").SerializeToString()], ALL)
    row = found.rows.row(0, named=True)
    assert [row[name] for name in ("i64", "text", "yes", "kind", "many", "named")] == [0, "", False, "UNKNOWN", [], []]
    assert [row[name] for name in ("stop", "wrapped", "left", "right", "maybe", "free")] == [None] * 6


SCALARS = {"i32": Int32, "i64": Int64, "f32": Float32, "f64": Float64, "text": String, "raw": Bytes, "yes": Bool}


@settings(max_examples=100)
@given(data=st.data())
def test_what_messages_write_is_read_back(folder: Path, data: st.DataObject) -> None:
    made = GetMessageClass(pool(folder)[0].FindMessageTypeByName("rides.All"))()
    row = {name: data.draw(values(of), label=name) for name, of in SCALARS.items()}
    for name, value in row.items():
        setattr(made, name, value)
    many = data.draw(st.lists(values(Float64), max_size=3))
    made.many.extend(many)
    at = data.draw(values(Timestamp))
    made.stop.at.FromDatetime(at)
    found = decoded(reading("All"), [made.SerializeToString()], ALL)
    for name, value in row.items():
        assert bits(ALL[name].from_frame(found.rows[name])[0]) == bits(value)
    assert bits(ALL["many"].from_frame(found.rows["many"])[0]) == bits(many)
    assert STOP.from_frame(found.rows["stop"])[0]["at"] == at


def test_values_that_no_feature_holds_are_dead_letters(message: Any) -> None:
    large, unknown, fine, late = message("All"), message("All"), message("Trip"), message("Trip")
    large.u64 = 2**63
    unknown.kind = 7
    found = decoded(reading("All"), [large.SerializeToString(), unknown.SerializeToString()], ALL)
    assert [reason.split(":")[0] for _, reason in found.failures] == ["'u64'", "'kind'"]
    fine.ended.nanos = 1
    late.ended.seconds = 2**60
    found = decoded(reading(), [fine.SerializeToString(), late.SerializeToString()])
    assert "whole microseconds" in found.failures[0][1]
    assert "after year 9999" in found.failures[1][1]


def test_poison_stops_nothing(message: Any) -> None:
    good = trip(message).SerializeToString()
    for poison in [*POISON, good[:-1], b"\x12\x7f", b"\x0a" * 10]:
        found = decoded(reading(), [good, poison, good])
        assert {0, 2} <= set(found.indices)
        assert all(". " in reason for _, reason in found.failures)
    assert decoded(reading(), [None, good[:-1]]).indices == []


@settings(max_examples=200)
@given(garbage=st.lists(st.binary(max_size=24), max_size=4))
def test_no_bytes_raise(garbage: list[bytes]) -> None:
    decoded(reading(), list(garbage))


def test_a_schema_is_a_file_with_its_imports_or_a_descriptor_set(message: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "place.proto").write_text('syntax = "proto3";\nmessage Place { string name = 1; }\n')
    text = PROTO.replace("message Trip {", "message Trip {\n  Place place = 4;").replace(
        'import "google/protobuf/struct.proto";', 'import "google/protobuf/struct.proto";\nimport "common/place.proto";'
    )
    (tmp_path / "rides.proto").write_text(text)
    declared = ProtobufFormat(schema=str(tmp_path / "rides.proto"), message="rides.Trip")
    described = ProtobufFormat(schema=str(folder / "set"), message="rides.Trip")
    for one in (declared, described):
        # What travels in the registry needs no file.
        kept = from_json(canonical_json(one), ProtobufFormat)
        assert kept == one
        made = decoder(kept, TRIP, Settings())
        assert decoded(made, [trip(message).SerializeToString()]).rows["km"].to_list() == [12.5]
    assert list(declared.imports) == ["common/place.proto"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"schema": PROTO, "message": "rides.Tripp"}, "Did you mean 'rides.Trip'"),
        ({"schema": "message {", "message": "X"}, "protoc says: "),
        ({"schema": PROTO, "message": "rides.All"}, "has no field 'driver_id'"),
        (
            {"schema": 'import "../x";\nmessage X {}', "message": "X", "imports": {"../x": "message Y {}"}},
            "no name of a file",
        ),
        ({"schema": PROTO}, "has no message"),
        ({"schema": "nowhere.proto", "message": "X"}, "cannot be read"),
        ({}, "framing='confluent'"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_before_anything_is_read(said: dict[str, Any], why: str) -> None:
    with pytest.raises(DeclarationError, match=why):
        decoder(ProtobufFormat(**said), TRIP, Settings())


@pytest.fixture
def registry() -> Iterator[SchemaRegistryServer]:
    with schema_registry() as server:
        yield server


def serialized(registry: SchemaRegistryServer, made: Any) -> bytes:
    with SchemaRegistryClient({"url": registry.url}) as client:
        serializer = ProtobufSerializer(type(made), client, {"use.deprecated.format": False})
        data = serializer(made, SerializationContext("trips", MessageField.VALUE))
    assert data is not None
    return data


def with_text(registry: SchemaRegistryServer, made: Any) -> bytes:
    """As a Java serializer registers it: the text, and not the descriptor in base64."""
    number = registry.register("trips", {"schema": PROTO, "schemaType": "PROTOBUF"})
    place = list(made.DESCRIPTOR.file.message_types_by_name).index(made.DESCRIPTOR.name)
    path = b"\x00" if place == 0 else b"\x02" + bytes([place * 2])
    return b"\x00" + number.to_bytes(4) + path + made.SerializeToString()


def asking(registry: SchemaRegistryServer, **said: Any) -> Any:
    return decoder(ProtobufFormat(framing="confluent", **said), TRIP, Settings(schema_registry=registry.url))


@pytest.mark.parametrize("write", [serialized, with_text])
def test_schema_and_message_come_from_the_registry(registry: SchemaRegistryServer, message: Any, write: Any) -> None:
    value = write(registry, trip(message))
    other = write(registry, message("All"))
    made = asking(registry)
    registry.asked.clear()
    found = decoded(made, [value, other, value, *POISON])
    assert found.indices == [0, 2]
    assert found.rows["km"].to_list() == [12.5, 12.5]
    assert "has no 'driver_id'" in found.failures[0][1]
    assert registry.asked.count("/schemas/ids/1") == 1 or write is serialized
    found = decoded(asking(registry, message="rides.Trip"), [value, other])
    assert "It is a 'rides.All', and 'rides.Trip' is declared" in found.failures[0][1]


def test_a_declared_schema_needs_no_registry(registry: SchemaRegistryServer, message: Any) -> None:
    value = with_text(registry, trip(message))
    made = decoder(ProtobufFormat(framing="confluent", schema=PROTO, message="rides.Trip"), TRIP, Settings())
    assert decoded(made, [value]).rows["km"].to_list() == [12.5]


def test_a_path_to_no_message_is_a_dead_letter(registry: SchemaRegistryServer, message: Any) -> None:
    head = with_text(registry, trip(message))[:5]
    paths = [b"", b"\x02\x64", b"\x01", b"\x7f" * 3, b"\x02\x01", b"\x80" * 12, b"\x04\x00\x02"]
    found = decoded(asking(registry), [head + path for path in paths])
    assert len(found.failures) == len(paths)


def test_a_registry_that_cannot_be_asked_is_no_dead_letter(registry: SchemaRegistryServer, message: Any) -> None:
    value = with_text(registry, trip(message))
    made = asking(registry)
    registry.status = 503
    with pytest.raises(StoreUnavailable):
        made.decode([value])
    registry.status = None
    assert decoded(made, [value]).indices == [0]


def test_descriptors_that_import_one_another_are_a_dead_letter(registry: SchemaRegistryServer) -> None:
    file = FileDescriptorProto(name="schema.proto", syntax="proto3", dependency=["schema.proto"])
    file.message_type.add().name = "X"
    text = base64.b64encode(file.SerializeToString()).decode()
    numbers = [
        registry.register("a", {"schema": text, "schemaType": "PROTOBUF"}),
        registry.register("b", {"schema": "bm8gZGVzY3JpcHRvcg==", "schemaType": "PROTOBUF"}),
        registry.register("c", {"schema": "message {", "schemaType": "PROTOBUF"}),
        registry.register("d", {"schema": '"string"'}),
    ]
    found = decoded(asking(registry), [b"\x00" + number.to_bytes(4) + b"\x00" for number in numbers])
    assert ["cannot be used" in why for _, why in found.failures] == [True, True, True, False]
    assert "is AVRO. Write Protobuf" in found.failures[3][1]
