"""What stands before the datum in the value of a record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn, TypeAlias

TOMBSTONE: Final = (
    "It is null, which a log keeps to say that a key is gone. Remove the key's rows with: feature-assets erase"
)
_ID: Final = 5


class Unreadable(ValueError):
    """A value is no row; the message says why, and the mend."""


def behind_id(value: bytes) -> tuple[int, bytes]:
    """The id of the schema in a schema registry, and what stands behind it.

    Raises:
        Unreadable: the value does not start with a zero byte and four of an id.
    """
    if len(value) < _ID or value[0] != 0:
        raise Unreadable(
            "It does not start with a zero byte and the id of a schema. Write it with a serializer of the schema registry, "
            "or declare the format with framing='none'."
        )
    return int.from_bytes(value[1:_ID]), value[_ID:]


@dataclass(frozen=True, slots=True)
class FoundSchema:
    """A schema: its kind ("AVRO", "PROTOBUF", "JSON"), its text, and the texts of those it needs, by name."""

    kind: str
    text: str
    references: Mapping[str, str] = field(default_factory=dict)


SchemaOf: TypeAlias = Callable[[int], FoundSchema]
"""What knows schemas by their ids."""


def no_schemas(number: int) -> NoReturn:
    """Knows none: for formats that say all themselves."""
    raise Unreadable(
        f"It names schema {number}, and no schema registry is asked. Declare the format with framing='confluent'."
    )
