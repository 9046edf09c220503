"""The bytes that an item is found by.

They hold for each join key, in the order of the view, its type, its length and its value: no two keys have the same.
Items that are stored are found by them, so they stay as they are.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from feature_assets.spec import ViewSpec
from feature_assets.types import Bytes, DecimalType, FeatureType, Timestamp, microseconds

KEY: Final = "__key"
"""The attribute with them."""

LARGEST_KEY: Final = 2_048

_FORMAT: Final = b"\x01"
_LENGTHS: Final = struct.Struct(">BI")

KeyBytes = Callable[[Sequence[Any]], bytes | None]


def key_bytes(view: ViewSpec) -> KeyBytes:
    """How a key of canonical values becomes bytes; None for a key with a null in it."""
    types = list(view.join_keys.values())
    tags = [str(of).encode() for of in types]
    encoders = [_encoder(of) for of in types]

    def encode(key: Sequence[Any]) -> bytes | None:
        parts = [_FORMAT]
        for value, tag, to_bytes in zip(key, tags, encoders, strict=True):
            if value is None:
                return None
            encoded = to_bytes(value)
            parts += (_LENGTHS.pack(len(tag), len(encoded)), tag, encoded)
        return b"".join(parts)

    return encode


def key_text(key: bytes) -> str:
    """A key as a person reads it, its values one after the other."""
    values, at = [], len(_FORMAT)
    while at < len(key):
        tag, length = _LENGTHS.unpack_from(key, at)
        at += _LENGTHS.size + tag + length
        values.append(key[at - length : at].decode(errors="replace"))
    return "/".join(values)


def _encoder(of: FeatureType) -> Callable[[Any], bytes]:
    if of == Bytes:
        return bytes
    if of == Timestamp:
        return lambda value: str(microseconds(value)).encode()
    if isinstance(of, DecimalType):
        # A frame has no negative zero: it is the same number, so it has to be the same key.
        return lambda value: f"{value or abs(value):f}".encode()
    return lambda value: str(value).encode()
