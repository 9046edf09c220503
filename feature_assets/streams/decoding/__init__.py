"""What reads the values of records: bytes in one of the declared formats → rows, and of each that is none, why not.

A value means the same as in a pushed row (`FeatureType.parse`), whichever way it is written. Whatever a producer has
sent, `decode` raises nothing for it.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from feature_assets.config import Settings
from feature_assets.errors import ConfigurationError
from feature_assets.spec.formats import AvroFormat, Format, JsonFormat
from feature_assets.streams.decoding.columns import Columns, Decoded
from feature_assets.streams.decoding.framing import SchemaOf, no_schemas
from feature_assets.streams.decoding.json_objects import JsonDecoder
from feature_assets.types import FeatureType

__all__ = ["Decoded", "Decoder", "decoder"]


class Decoder(Protocol):
    """Reads values of one format into rows of the same fields. For one thread at a time."""

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """The rows of those values that can be read, and of the others why not. None, a tombstone, is one of those.

        Raises:
            StoreUnavailable: a schema registry cannot be asked now; the same values may be given again.
        """


def decoder(
    format: Format,
    fields: Mapping[str, FeatureType],
    settings: Settings,
    *,
    optional: Collection[str] = (),
) -> Decoder:
    """What reads values of that format.

    Args:
        format: how they are written.
        fields: the columns of the rows, by the names that the fields have in a value, with their types.
        settings: where the schema registry is.
        optional: fields that a value may lack; the row has null then.

    Raises:
        ConfigurationError: a schema registry is needed and none is set, or a library is not installed.
        DeclarationError: the schema that is declared is none, or lacks one of the fields.
    """
    if isinstance(format, JsonFormat):
        nullable = fields if format.missing == "null" else optional
        return JsonDecoder(format, Columns(fields, optional=nullable, epoch=format.epoch))
    columns = Columns(fields, optional=optional)
    try:
        if isinstance(format, AvroFormat):
            from feature_assets.streams.decoding.avro import AvroDecoder

            asked = format.framing == "confluent"
            return AvroDecoder(format, columns, _schemas(settings) if asked else no_schemas)
        from feature_assets.streams.decoding.protobuf import ProtobufDecoder

        asked = format.framing == "confluent" and format.schema is None and not format.descriptors
        return ProtobufDecoder(format, columns, _schemas(settings) if asked else no_schemas)
    except ImportError as error:
        kind = "Avro" if isinstance(format, AvroFormat) else "Protobuf"
        raise ConfigurationError(
            f"{kind} values are read by libraries that are not installed ({error.name}). "
            "Run: pip install 'feature-assets[kafka]'"
        ) from error


def _schemas(settings: Settings) -> SchemaOf:
    from feature_assets.streams.decoding.schemas import SchemaRegistry

    return SchemaRegistry(settings).schema
