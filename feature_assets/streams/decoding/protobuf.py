"""Protobuf messages as the values of records: of a declared schema, or by the id of a schema registry."""

# mypy: disable-error-code="import-untyped"

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from feature_assets.errors import DeclarationError, WrongType
from feature_assets.spec.formats import ProtobufFormat
from feature_assets.streams.decoding.columns import MISSING, Columns, Decoded
from feature_assets.streams.decoding.framing import TOMBSTONE, SchemaOf, Unreadable, behind_id
from feature_assets.streams.decoding.proto_files import ProtoFiles, compiled
from feature_assets.types import FeatureType, ListType, MapType, StructType, moment

_ROOT: Final = "schema.proto"
_PACKAGE: Final = "google.protobuf."
_JSON: Final = frozenset({"Struct", "Value", "ListValue"})
_WRAPPERS: Final = frozenset(
    f"{of}Value" for of in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
_LONGEST_PATH: Final = 32

Get = Callable[[Message], Any]


class ProtobufDecoder:
    """Reads Protobuf messages."""

    def __init__(self, format: ProtobufFormat, columns: Columns, schema_of: SchemaOf) -> None:
        self._columns, self._schema_of, self._message = columns, schema_of, format.message
        self._framed = format.framing == "confluent"
        self._declared: _Reader | None = None
        if format.schema is not None or format.descriptors:
            self._declared = _declared(format, columns)
        self._files: dict[int, ProtoFiles] = {}
        self._readers: dict[tuple[int, tuple[int, ...]], _Reader] = {}

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """See `Decoder.decode`."""
        failures: dict[int, str] = {}
        at, rows = [], []
        for place, value in enumerate(values):
            try:
                rows.append(self._row(value))
            except Unreadable as error:
                failures[place] = str(error)
            else:
                at.append(place)
        columns: Sequence[Sequence[Any]] = list(zip(*rows, strict=True)) if rows else [[] for _ in self._columns.fields]
        return self._columns.decoded(columns, at, failures)

    def _row(self, value: bytes | None) -> list[Any]:
        if value is None:
            raise Unreadable(TOMBSTONE)
        if not self._framed:
            return self._reading().row(value)
        number, rest = behind_id(value)
        path, datum = _message_path(rest)
        if self._declared is not None:
            return self._declared.row(datum)
        reader = self._readers.get((number, path))
        if reader is None:
            reader = self._readers[number, path] = self._registered(number, path)
        return reader.row(datum)

    def _reading(self) -> "_Reader":
        if self._declared is None:
            raise Unreadable("It is not framed for a schema registry. Declare a schema and a message.")
        return self._declared

    def _registered(self, number: int, path: tuple[int, ...]) -> "_Reader":
        files = self._files.get(number)
        if files is None:
            found = self._schema_of(number)
            if found.kind != "PROTOBUF":
                raise Unreadable(
                    f"Schema {number} of the schema registry is {found.kind}. Write Protobuf, or declare that."
                )
            try:
                files = self._files[number] = compiled({**found.references, _ROOT: found.text}, _ROOT)
            except ValueError as error:
                raise Unreadable(f"Schema {number} of the schema registry cannot be used: {error}") from None
        try:
            message = files.at(path)
        except LookupError:
            raise Unreadable(
                f"It names message {list(path)} of schema {number}, which has none there. Write it with a serializer of the "
                "schema registry."
            ) from None
        if self._message is not None and message.full_name != self._message:
            raise Unreadable(f"It is a '{message.full_name}', and '{self._message}' is declared. Send that.")
        return _Reader(message, self._columns.fields)


def _declared(format: ProtobufFormat, columns: Columns) -> "_Reader":
    try:
        if format.schema is not None:
            files = compiled({**format.imports, _ROOT: format.schema}, _ROOT)
        else:
            files = ProtoFiles.from_set(format.descriptors)
        message = files.named(str(format.message))
    except (ValueError, LookupError) as error:
        raise DeclarationError(f"ProtobufFormat: the schema cannot be used: {error}") from None
    columns.require([one.name for one in message.fields], f"ProtobufFormat: message '{message.full_name}'")
    return _Reader(message, columns.fields)


def _message_path(value: bytes) -> tuple[tuple[int, ...], bytes]:
    """Which message of the schema it is, from the outermost inward, and what stands behind that."""
    count, at = _varint(value, 0)
    if count == 0:
        return (0,), value[at:]
    if not 0 < count <= _LONGEST_PATH:
        raise Unreadable(_NO_PATH)
    path = []
    for _ in range(count):
        index, at = _varint(value, at)
        if index < 0:
            raise Unreadable(_NO_PATH)
        path.append(index)
    return tuple(path), value[at:]


_NO_PATH: Final = "Behind the id it does not say which message of its schema it is. Write it with a Protobuf serializer of the registry."


def _varint(value: bytes, at: int) -> tuple[int, int]:
    """A zigzag number, and where the next one starts."""
    number = shift = 0
    while at < len(value) and shift < 64:
        byte = value[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
    raise Unreadable(_NO_PATH)


class _Reader:
    """Reads messages of one type into the values of fields."""

    def __init__(self, message: Descriptor, fields: Mapping[str, FeatureType]) -> None:
        self._name = message.full_name
        self._parse = GetMessageClass(message).FromString
        self._gets = [_getter(message.fields_by_name.get(name), of) for name, of in fields.items()]

    def row(self, datum: bytes) -> list[Any]:
        """The values; MISSING for a field that the message does not have.

        Raises:
            Unreadable: it is no such message.
        """
        try:
            message = self._parse(datum)
            if not message.IsInitialized():
                lacks = ", ".join(message.FindInitializationErrors())
                raise Unreadable(f"The message '{self._name}' lacks {lacks}, which it requires. Send that too.")
            return [get(message) for get in self._gets]
        except (DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Unreadable(f"It is no message '{self._name}': {error}. Write it by that schema.") from None
        except WrongType as error:
            raise Unreadable(f"A value in the message '{self._name}' is none: {error}. Send one that is.") from None


def _getter(field: FieldDescriptor | None, of: FeatureType | None) -> Get:
    if field is None:
        return lambda _: MISSING
    name = field.name
    plain = _plain(field, of)
    if field.is_repeated:
        return lambda message: plain(getattr(message, name))
    if field.has_presence:
        return lambda message: plain(getattr(message, name)) if message.HasField(name) else None
    return lambda message: plain(getattr(message, name))


def _plain(field: FieldDescriptor, of: FeatureType | None) -> Callable[[Any], Any]:
    """What makes Python values, as a type takes them, of what a field holds."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
        inner = _single(value, of.value if isinstance(of, MapType) else None)
        keys = _single(key, of.key if isinstance(of, MapType) else None)
        return lambda found: {keys(key): inner(item) for key, item in found.items()}
    if field.is_repeated:
        single = _single(field, of.element if isinstance(of, ListType) else None)
        return lambda found: [single(item) for item in found]
    return _single(field, of)


def _single(field: FieldDescriptor, of: FeatureType | None) -> Callable[[Any], Any]:
    if field.enum_type is not None:
        if of is not None and of.polars.is_integer():
            return int
        names = {number: one.name for number, one in field.enum_type.values_by_number.items()}
        # Of an enum that has grown since, the number is kept, and is no text.
        return lambda number: names.get(number, number)
    if field.message_type is None:
        return lambda value: value
    return lambda message: _of_message(message, of)


def _of_message(message: Message, of: FeatureType | None) -> Any:
    """A message within a message: a time, a wrapped value, JSON, or a dict of the fields that are there."""
    descriptor = message.DESCRIPTOR
    known = descriptor.full_name.removeprefix(_PACKAGE) if descriptor.full_name.startswith(_PACKAGE) else ""
    if known == "Timestamp":
        return _moment(message)
    if known in _WRAPPERS:
        return message.value
    if known in _JSON:
        return MessageToDict(message)
    types = of.fields if isinstance(of, StructType) else {}
    return {one.name: _getter(one, types.get(one.name))(message) for one in descriptor.fields}


def _moment(message: Any) -> datetime:
    micros, rest = divmod(message.nanos, 1000)
    if rest:
        raise WrongType(f"a time with {message.nanos} nanoseconds is not one in whole microseconds")
    try:
        return moment(message.seconds * 1_000_000 + micros)
    except OverflowError:
        raise WrongType(f"{message.seconds} seconds of UNIX time lie before year 1 or after year 9999") from None
