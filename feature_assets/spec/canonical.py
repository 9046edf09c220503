"""The one JSON form of a declaration, and its digest."""

import hashlib
from threading import Lock
from typing import Any, TypeVar

import msgspec

from feature_assets.types import FeatureType, parse_type

_T = TypeVar("_T")


def _encode_hook(value: object) -> object:
    if isinstance(value, FeatureType):
        return value.name
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _decode_hook(of: type, value: object) -> object:
    if issubclass(of, FeatureType) and isinstance(value, str):
        return parse_type(value)
    raise TypeError(f"{of.__name__} cannot be read from {value!r}")


_encoder = msgspec.json.Encoder(enc_hook=_encode_hook, order="sorted")
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}
_first_use = Lock()


def _decoder(of: type) -> msgspec.json.Decoder[Any]:
    """The decoder of that type, made once.

    What msgspec knows of a structure it puts together at first use, and two threads at that at once crash the process.
    """
    decoder = _decoders.get(of)
    if decoder is None:
        with _first_use:
            decoder = _decoders[of] = msgspec.json.Decoder(of, dec_hook=_decode_hook)
    return decoder


def canonical_json(value: object) -> bytes:
    """The one JSON of a declaration: sorted keys, no spaces, defaults left out. Equal values give equal bytes."""
    return _encoder.encode(value)


def from_json(data: bytes | str, of: type[_T]) -> _T:
    """What `canonical_json` wrote.

    Raises:
        msgspec.ValidationError: the data is not of that shape.
    """
    return _decoder(of).decode(data)  # type: ignore[no-any-return]


def to_builtins(value: object) -> Any:
    """The declaration as plain dicts and lists, for metadata and tables."""
    return msgspec.to_builtins(value, enc_hook=_encode_hook, order="sorted")


def convert(data: Any, of: type[_T]) -> _T:
    """What `to_builtins` made plain.

    Raises:
        msgspec.ValidationError: the data is not of that shape.
    """
    _decoder(of)
    return msgspec.convert(data, type=of, dec_hook=_decode_hook)


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
