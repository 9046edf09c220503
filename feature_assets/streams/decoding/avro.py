"""Avro records as the values of records: by one schema, by fingerprint, or by the id of a schema registry."""

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, Final

from fastavro import schemaless_reader
from fastavro.schema import fingerprint, load_schema, parse_schema, to_parsing_canonical_form

from feature_assets.errors import DeclarationError
from feature_assets.spec.formats import AvroFormat
from feature_assets.streams.decoding.columns import MISSING, Columns, Decoded
from feature_assets.streams.decoding.framing import TOMBSTONE, SchemaOf, Unreadable, behind_id

_MARKER: Final = b"\xc3\x01"
_HEADER: Final = 10
_PARSED = dict[str, Any]


class AvroDecoder:
    """Reads Avro records."""

    def __init__(self, format: AvroFormat, columns: Columns, schema_of: SchemaOf) -> None:
        self._columns, self._schema_of, self._framing = columns, schema_of, format.framing
        self._names = tuple(columns.fields)
        self._reader = None if format.schema is None else _declared(format.schema, columns)
        self._writer = self._reader or {}
        self._by_id: dict[int, _PARSED] = {}
        self._by_print: dict[bytes, _PARSED] = {}
        if format.framing == "single-object" and self._reader is not None:
            writers = [self._reader, *(_declared(one, None) for one in format.writers)]
            self._by_print = {_fingerprint(one): one for one in writers}

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """See `Decoder.decode`."""
        failures: dict[int, str] = {}
        at, records = [], []
        for place, value in enumerate(values):
            try:
                records.append(self._record(value))
            except Unreadable as error:
                failures[place] = str(error)
            else:
                at.append(place)
        columns = [[record.get(name, MISSING) for record in records] for name in self._names]
        return self._columns.decoded(columns, at, failures)

    def _record(self, value: bytes | None) -> Mapping[str, Any]:
        if value is None:
            raise Unreadable(TOMBSTONE)
        writer, datum = self._written(value)
        stream = BytesIO(datum)
        reader = None if writer is self._reader else self._reader
        try:
            record: Mapping[str, Any] = schemaless_reader(stream, writer, reader)  # type: ignore[assignment]
        # What bytes that nobody wrote by this schema lead to, the library does not say in one way.
        except Exception as error:  # noqa: BLE001
            why = str(error) or type(error).__name__
            raise Unreadable(f"It is no Avro record of schema '{writer['name']}': {why}. {_MEND}") from None
        if stream.tell() != len(datum):
            left = len(datum) - stream.tell()
            raise Unreadable(f"{left} bytes stand behind the Avro record of schema '{writer['name']}'. {_MEND}")
        return record

    def _written(self, value: bytes) -> tuple[_PARSED, bytes]:
        """The writer's schema, and the datum."""
        if self._framing == "confluent":
            number, datum = behind_id(value)
            return self._registered(number), datum
        if self._framing == "single-object":
            writer = self._by_print.get(value[len(_MARKER) : _HEADER]) if value.startswith(_MARKER) else None
            if writer is None:
                raise Unreadable(
                    "It does not start with Avro's marker and the fingerprint of a schema that is declared. Add the schema to "
                    "writers=, or declare how it is framed."
                )
            return writer, value[_HEADER:]
        return self._writer, value

    def _registered(self, number: int) -> _PARSED:
        known = self._by_id.get(number)
        if known is None:
            found = self._schema_of(number)
            if found.kind != "AVRO":
                raise Unreadable(
                    f"Schema {number} of the schema registry is {found.kind}. Write Avro, or declare that."
                )
            try:
                known = self._by_id[number] = _parsed(found.text, found.references)
            except ValueError as error:
                raise Unreadable(f"Schema {number} of the schema registry cannot be used: {error}") from None
        return known


_MEND: Final = "Write it by that schema, or declare the one that it was written by."


class _Repository:
    """What fastavro asks for schemas that one refers to by name."""

    def __init__(self, texts: Mapping[str, Any]) -> None:
        self._texts = texts

    def load(self, name: str) -> Any:
        return self._texts[name]


def _parsed(text: str, references: Mapping[str, str]) -> _PARSED:
    """A schema, as the library takes it.

    Raises:
        ValueError: it is none, or one that a few bytes make endless.
    """
    try:
        plain = json.loads(text)
        if references:
            texts = {"": plain, **{name: json.loads(one) for name, one in references.items()}}
            parsed = load_schema("", repo=_Repository(texts))  # type: ignore[arg-type]
        else:
            parsed = parse_schema(plain)
    # The library raises its own errors, and others for what it did not expect.
    except Exception as error:  # noqa: BLE001
        raise ValueError(f"it is no Avro schema: {type(error).__name__}: {error}.") from None
    if not isinstance(parsed, dict) or parsed.get("type") != "record":
        raise ValueError("it is not the schema of a record.")
    _check_bounded(parsed, {}, ())
    return parsed


def _declared(text: str, columns: Columns | None) -> _PARSED:
    try:
        parsed = _parsed(text, {})
    except ValueError as error:
        raise DeclarationError(f"AvroFormat: the schema cannot be used: {error}") from None
    if columns is not None:
        has = [one["name"] for one in parsed["fields"]]
        columns.require(has, f"AvroFormat: schema '{parsed['name']}'")
    return parsed


def _fingerprint(parsed: _PARSED) -> bytes:
    return bytes.fromhex(fingerprint(to_parsing_canonical_form(parsed), "CRC-64-AVRO"))


def _check_bounded(schema: Any, named: dict[str, int], above: tuple[str, ...]) -> int:
    """How many bytes a datum has at least; refuses a schema by which a few bytes could hold any number of values.

    The library reads values by functions that call themselves, in C and without a limit: of a schema that holds itself, a
    record of a megabyte could end the process.
    """
    if isinstance(schema, list):
        for one in schema:
            _check_bounded(one, named, above)
        return 1
    of = schema if isinstance(schema, str) else schema["type"]
    if isinstance(of, dict | list):
        return _check_bounded(of, named, above)
    if of in above:
        raise ValueError(f"'{of}' holds itself, and no feature does. Leave that field out.")
    if of in named:
        return named[of]
    if of in ("record", "error"):
        name = schema["name"]
        named[name] = sum(_check_bounded(one["type"], named, (*above, name)) for one in schema["fields"])
        return named[name]
    if of == "fixed":
        named[schema["name"]] = schema["size"]
        return int(schema["size"])
    if of == "enum":
        named[schema["name"]] = 1
    if of == "map":
        _check_bounded(schema["values"], named, above)
    if of == "array" and _check_bounded(schema["items"], named, above) == 0:
        raise ValueError(
            "it has an array whose items take no bytes, so that a few bytes could hold any number of them."
        )
    return 0 if of == "null" else 1
