"""How types are written: `List[Int64]` in Python, "List[Int64]" in the registry, both ways."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NoReturn

from feature_assets.errors import DeclarationError
from feature_assets.types.base import FeatureType
from feature_assets.types.nested import ListType, MapType, StructType, VectorType
from feature_assets.types.scalars import SCALARS, DecimalType


class _Written:
    """A type that is written like its example; what is written otherwise, as in other libraries, says so."""

    def __init__(self, example: str) -> None:
        self._example = example

    def __repr__(self) -> str:
        return f"{self._example.partition('[')[0].partition('(')[0]} without brackets"


class _Bracketed(_Written):
    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise DeclarationError(f"A type is written with square brackets, as in {self._example}.")


class _Parenthesised(_Written):
    def __getitem__(self, _: object) -> NoReturn:
        raise DeclarationError(f"This type is written with parentheses, as in {self._example}.")


class _ListOf(_Bracketed):
    """`List[element]`: any number of one type."""

    def __getitem__(self, element: FeatureType) -> ListType:
        return ListType(_a_type(element, "List[…]"))


class _VectorOf(_Bracketed):
    """`Vector[n]`: n Float32 numbers, none of them null."""

    def __getitem__(self, length: int) -> VectorType:
        return VectorType(length)


class _MapOf(_Bracketed):
    """`Map[key, value]`: values found by a key; keys are not null and keep their order."""

    def __getitem__(self, key_and_value: tuple[FeatureType, FeatureType]) -> MapType:
        if not isinstance(key_and_value, tuple) or len(key_and_value) != 2:
            self()
        key, value = key_and_value
        return MapType(_a_type(key, "Map[…]"), _a_type(value, "Map[…]"))


def _a_type(given: object, place: str) -> FeatureType:
    if not isinstance(given, FeatureType):
        raise DeclarationError(f"{place}: {given!r} is not a feature type. Use one of: {', '.join(SCALARS)}, …")
    return given


class _DecimalOf(_Parenthesised):
    """`Decimal(precision, scale)`: a number with `precision` digits, `scale` of them behind the point."""

    def __call__(self, precision: int, scale: int) -> DecimalType:
        return DecimalType(precision, scale)


class _StructOf(_Parenthesised):
    """`Struct({name: type, …})`: named values of different types."""

    def __call__(self, fields: Mapping[str, FeatureType]) -> StructType:
        return StructType({name: _a_type(of, f"Struct field '{name}'") for name, of in fields.items()})


List: Final = _ListOf("List[String]")
Vector: Final = _VectorOf("Vector[384]")
Map: Final = _MapOf("Map[String, Int64]")
Decimal: Final = _DecimalOf("Decimal(10, 2)")
Struct: Final = _StructOf('Struct({"city": String})')


@lru_cache(maxsize=4096)
def parse_type(text: str) -> FeatureType:
    """The type of that name: the inverse of `str(type)`.

    Raises:
        DeclarationError: the text names no type.
    """
    try:
        of, rest = _parse(text)
    except (ValueError, RecursionError):
        of, rest = None, text
    if of is None or rest:
        raise DeclarationError(f"'{text}' is not a feature type. Known: {', '.join(SCALARS)}, List[…], Vector[n], …")
    return of


def _parse(text: str) -> tuple[FeatureType, str]:
    """The type at the start of the text, and what follows it."""
    found = re.match(r"[A-Za-z0-9]+", text)
    word = found.group() if found else ""
    rest = text[len(word) :]
    if word in SCALARS:
        return SCALARS[word], rest
    if word == "Decimal" and (digits := re.match(r"\((\d+), (\d+)\)", rest)):
        return DecimalType(int(digits[1]), int(digits[2])), rest[digits.end() :]
    if word == "Vector" and (length := re.match(r"\[(\d+)\]", rest)):
        return VectorType(int(length[1])), rest[length.end() :]
    if word == "List":
        element, rest = _parse(_after("[", rest))
        return ListType(element), _after("]", rest)
    if word == "Map":
        key, rest = _parse(_after("[", rest))
        value, rest = _parse(_after(", ", rest))
        return MapType(key, value), _after("]", rest)
    if word == "Struct":
        fields: dict[str, FeatureType] = {}
        while not fields or rest.startswith(", "):
            name, _, rest = rest[2 if fields else 1 :].partition(": ")
            fields[name], rest = _parse(rest)
        return StructType(fields), _after("}", rest)
    raise ValueError(text)


def _after(mark: str, text: str) -> str:
    if not text.startswith(mark):
        raise ValueError(text)
    return text[len(mark) :]
