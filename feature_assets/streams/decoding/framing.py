"""What stands before the datum in the value of a record."""

from typing import Final

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
