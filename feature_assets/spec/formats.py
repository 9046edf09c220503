"""How the value of a record in a stream is written: JSON, Avro or Protobuf, and by which schema.

A schema that is given travels in the registry snapshot, so that a consumer needs no file of whoever declared it. Where
a schema registry has the schemas, what is declared says so and no more: the registry's address and credentials are
settings of the consumer (`FEATURE_ASSETS_SCHEMA_REGISTRY`).
"""

import re
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from feature_assets.errors import DeclarationError
from feature_assets.spec.base import Spec

Framing = Literal["none", "single-object", "confluent"]
"""What stands before the datum: nothing; Avro's marker and fingerprint; or a zero byte and the id of a schema registry."""

_LARGEST = 1 << 20
_IMPORT = re.compile(r'^\s*import\s+(?:public\s+|weak\s+)?"([^"]+)"\s*;', re.MULTILINE)
_PROVIDED = "google/protobuf/"


class JsonFormat(Spec, frozen=True, kw_only=True, tag="json"):
    """A JSON object for each record; values stand in the JSON form of their types.

    A field that is left out is refused as a pushed one is, or with `missing="null"` read as null. What is not declared is
    dropped, or with `unknown_fields="refuse"` refused. `epoch` says in which unit of UNIX time a whole number stands for a
    Timestamp; without it, times are RFC 3339 texts. `framing="confluent"` passes over the five bytes that a serializer
    with a schema registry writes before the text.
    """

    KIND: ClassVar[str] = "JsonFormat"

    missing: Literal["refuse", "null"] = "refuse"
    unknown_fields: Literal["drop", "refuse"] = "drop"
    epoch: Literal["seconds", "milliseconds", "microseconds"] | None = None
    framing: Literal["none", "confluent"] = "none"


class AvroFormat(Spec, frozen=True, kw_only=True, tag="avro"):
    """An Avro record for each record.

    `schema` is the path of a schema file, which is read when this is made, or its text. With `framing="confluent"` the
    writer's schema comes from the schema registry, and `schema`, if given, is the reader's. With
    `framing="single-object"` the writer's is `schema` or one of `writers`, told by its fingerprint, and `schema` the
    reader's. With `framing="none"` every record is written by `schema`.
    """

    KIND: ClassVar[str] = "AvroFormat"

    schema: str | None = None
    framing: Framing = "none"
    writers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.schema is None and self.framing != "confluent":
            raise DeclarationError(
                "AvroFormat has no schema. Give schema='records.avsc', or framing='confluent' where a schema registry has it."
            )
        if self.writers and self.framing != "single-object":
            raise DeclarationError(
                "AvroFormat: writers= are told apart by fingerprints, so they need framing='single-object'."
            )
        if self.schema is not None:
            msgspec.structs.force_setattr(self, "schema", _text("AvroFormat: schema", self.schema))
        texts = tuple(_text("AvroFormat: writers", one) for one in self.writers)
        msgspec.structs.force_setattr(self, "writers", texts)


class ProtobufFormat(Spec, frozen=True, kw_only=True, tag="protobuf"):
    """A Protobuf message for each record.

    `schema` is the path of a `.proto` file, which is read when this is made together with those beside it that it
    imports; or its text, with `imports` from the names in its import statements to paths or texts. A path that does not
    end in `.proto` is that of a descriptor set (`protoc --include_imports --descriptor_set_out=…`), kept in
    `descriptors`. `message` is the full name of the message. With `framing="confluent"` and no schema, schema and message
    come from the schema registry; with a schema, the bytes before the datum are passed over.
    """

    KIND: ClassVar[str] = "ProtobufFormat"

    schema: str | None = None
    message: str | None = None
    imports: dict[str, str] = {}
    descriptors: bytes = b""
    framing: Literal["none", "confluent"] = "none"

    def __post_init__(self) -> None:
        if self.schema is not None and not _is_text(self.schema) and not self.schema.endswith(".proto"):
            msgspec.structs.force_setattr(self, "descriptors", _file("ProtobufFormat: schema", self.schema))
            msgspec.structs.force_setattr(self, "schema", None)
        given = self.schema is not None or bool(self.descriptors)
        if not given and self.framing != "confluent":
            raise DeclarationError(
                "ProtobufFormat has no schema. Give schema='records.proto', or framing='confluent' where a schema registry "
                "has it."
            )
        if given and not self.message:
            raise DeclarationError("ProtobufFormat has no message. Give message='package.Name', one of its schema.")
        if self.schema is not None:
            texts = {name: _text(f"ProtobufFormat: imports['{name}']", one) for name, one in self.imports.items()}
            found = {} if _is_text(self.schema) else _imported(Path(self.schema).parent, self.schema, texts)
            msgspec.structs.force_setattr(self, "schema", _text("ProtobufFormat: schema", self.schema))
            msgspec.structs.force_setattr(self, "imports", dict(sorted({**found, **texts}.items())))


Format = JsonFormat | AvroFormat | ProtobufFormat
"""How records are written."""


def _is_text(given: str) -> bool:
    """Whether this is a schema and no path: that of a record or message has braces, and a file of mere imports has lines."""
    return "{" in given or "\n" in given


def _text(place: str, given: str) -> str:
    if _is_text(given):
        return given
    try:
        return _file(place, given).decode()
    except UnicodeDecodeError:
        raise DeclarationError(f"{place}: {given} is not text in UTF-8. Name a schema file.") from None


def _file(place: str, path: str) -> bytes:
    try:
        data = Path(path).expanduser().read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise DeclarationError(
            f"{place}: {Path(path).absolute()} cannot be read ({why}). Name a file, or give the text of the schema."
        ) from error
    if len(data) > _LARGEST:
        raise DeclarationError(f"{place}: {path} has {len(data):,} bytes; {_LARGEST:,} is the limit of a schema.")
    return data


def _imported(folder: Path, path: str, known: dict[str, str]) -> dict[str, str]:
    """The files that a `.proto` file and its imports import, by the names that they do it by; but for those known."""
    found: dict[str, str] = {}
    waiting = [_text("ProtobufFormat: schema", path)]
    while waiting:
        for name in _IMPORT.findall(waiting.pop()):
            if name.startswith(_PROVIDED) or name in found or name in known:
                continue
            found[name] = _text(f"ProtobufFormat: import of '{name}'", str(folder / name))
            waiting.append(found[name])
    return found
