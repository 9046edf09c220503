"""Types made of others: lists, vectors, structs, maps."""

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
import polars as pl

from feature_assets.errors import DeclarationError, WrongType
from feature_assets.types.base import FeatureType
from feature_assets.types.scalars import Float32, StringType


class NestedType(FeatureType):
    """Types made of others: kept in SQLite as the text of their JSON form."""

    __slots__ = ()
    sqlite = "TEXT"

    def _from_frame(self, value: Any) -> Any:
        """One not-null value of a Polars column as its canonical Python value."""
        raise NotImplementedError

    def _to_frame(self, value: Any) -> Any:
        raise NotImplementedError

    def _to_json(self, value: Any) -> Any:
        raise NotImplementedError

    def to_json(self, values: Sequence[Any]) -> Sequence[Any]:
        return [None if value is None else self._to_json(value) for value in values]

    def from_frame(self, series: pl.Series) -> list[Any]:
        return [None if value is None else self._from_frame(value) for value in series.to_list()]

    def to_frame(self, name: str, values: Sequence[Any]) -> pl.Series:
        framed = [None if value is None else self._to_frame(value) for value in values]
        return pl.Series(name, framed, dtype=self.polars)

    def to_sqlite(self, series: pl.Series) -> list[Any]:
        plain = self.to_json(self.from_frame(series))
        return [None if value is None else orjson.dumps(value).decode() for value in plain]

    def from_sqlite(self, values: Sequence[Any]) -> Sequence[Any]:
        return [None if value is None else self._parse(orjson.loads(value)) for value in values]


def _attribute(of: FeatureType, value: Any) -> dict[str, Any]:
    return {"NULL": True} if value is None else of.to_dynamodb(value)


def _of_attribute(of: FeatureType, stored: dict[str, Any]) -> Any:
    return None if "NULL" in stored else of.from_dynamodb(stored)


def _one(method: Callable[[Sequence[Any]], Sequence[Any]], value: Any) -> Any:
    return method([value])[0]


def _framed(of: FeatureType, value: Any) -> Any:
    return of._to_frame(value) if isinstance(of, NestedType) and value is not None else value


def _unframed(of: FeatureType, value: Any) -> Any:
    return of._from_frame(value) if isinstance(of, NestedType) and value is not None else value


class ListType(NestedType):
    """Any number of one type. Made by `List[element]`; null elements are allowed."""

    __slots__ = ("element",)

    def __init__(self, element: FeatureType) -> None:
        super().__init__(f"List[{element}]")
        self.element = element

    @property
    def polars(self) -> pl.DataType:
        return pl.List(self.element.polars)

    @property
    def delta(self) -> pl.DataType:
        return pl.List(self.element.delta)

    def _parse(self, value: Any) -> list[Any]:
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
            raise self._refuse(value)
        return [self.element.parse(item) for item in value]

    def _from_frame(self, value: Any) -> list[Any]:
        return [_unframed(self.element, item) for item in value]

    def _to_frame(self, value: Any) -> list[Any]:
        return [_framed(self.element, item) for item in value]

    def _to_json(self, value: Any) -> Sequence[Any]:
        return self.element.to_json(value)

    def to_dynamodb(self, value: Sequence[Any]) -> dict[str, Any]:
        return {"L": [_attribute(self.element, item) for item in value]}

    def from_dynamodb(self, stored: dict[str, Any]) -> list[Any]:
        return [_of_attribute(self.element, item) for item in stored["L"]]


class VectorType(NestedType):
    """`length` Float32 numbers, none of them null: an embedding. Made by `Vector[length]`."""

    __slots__ = ("length",)

    def __init__(self, length: int) -> None:
        if not isinstance(length, int) or not 1 <= length <= 65_536:
            raise DeclarationError(f"Vector[{length!r}]: a vector has 1 to 65536 dimensions, a whole number.")
        super().__init__(f"Vector[{length}]")
        self.length = length

    @property
    def polars(self) -> pl.DataType:
        return pl.Array(pl.Float32(), self.length)

    @property
    def delta(self) -> pl.DataType:
        return pl.List(pl.Float32())

    def _parse(self, value: Any) -> list[float]:
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
            raise self._refuse(value)
        numbers = [Float32.parse(item) for item in value]
        if len(numbers) != self.length or None in numbers:
            raise self._refuse(value, f"it needs {self.length} numbers")
        return numbers

    def _from_frame(self, value: Any) -> list[float]:
        return list(value)

    def _to_frame(self, value: Any) -> list[float]:
        return list(value)

    def _to_json(self, value: Any) -> Sequence[Any]:
        return Float32.to_json(value)

    def to_dynamodb(self, value: Sequence[float]) -> dict[str, Any]:
        # As numbers a vector would take three times the room and be parsed one by one.
        return {"B": struct.pack(f"<{self.length}f", *value)}

    def from_dynamodb(self, stored: dict[str, Any]) -> list[float]:
        return list(struct.unpack(f"<{self.length}f", bytes(stored["B"])))


class StructType(NestedType):
    """Named values of different types. Made by `Struct({"name": type})`."""

    __slots__ = ("fields",)

    def __init__(self, fields: Mapping[str, FeatureType]) -> None:
        if not fields:
            raise DeclarationError("Struct({}) has no fields; name at least one, as in Struct({'x': Float64}).")
        bad = [name for name in fields if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)]
        if bad:
            raise DeclarationError(f"Struct field '{bad[0]}' is not a name: use letters, digits and underscores.")
        super().__init__("Struct{" + ", ".join(f"{name}: {of}" for name, of in fields.items()) + "}")
        self.fields = dict(fields)

    @property
    def polars(self) -> pl.DataType:
        return pl.Struct({name: of.polars for name, of in self.fields.items()})

    @property
    def delta(self) -> pl.DataType:
        return pl.Struct({name: of.delta for name, of in self.fields.items()})

    def _parse(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self._refuse(value)
        unknown = [name for name in value if name not in self.fields]
        if unknown:
            raise self._refuse(value, f"it has no field {unknown[0]!r}")
        return {name: of.parse(value.get(name)) for name, of in self.fields.items()}

    def _from_frame(self, value: Any) -> dict[str, Any]:
        return {name: _unframed(of, value[name]) for name, of in self.fields.items()}

    def _to_frame(self, value: Any) -> dict[str, Any]:
        return {name: _framed(of, value[name]) for name, of in self.fields.items()}

    def _to_json(self, value: Any) -> dict[str, Any]:
        return {name: _one(of.to_json, value[name]) for name, of in self.fields.items()}

    def to_dynamodb(self, value: Mapping[str, Any]) -> dict[str, Any]:
        return {"M": {name: _attribute(of, value[name]) for name, of in self.fields.items()}}

    def from_dynamodb(self, stored: dict[str, Any]) -> dict[str, Any]:
        return {name: _of_attribute(of, stored["M"][name]) for name, of in self.fields.items()}


class MapType(NestedType):
    """Values found by a key. Made by `Map[key, value]`; keys are not null and keep their order."""

    __slots__ = ("key", "value")

    def __init__(self, key: FeatureType, value: FeatureType) -> None:
        if not key.keyable:
            raise DeclarationError(f"Map[{key}, {value}]: a {key} cannot be a key; use String or an integer type.")
        super().__init__(f"Map[{key}, {value}]")
        self.key, self.value = key, value

    @property
    def polars(self) -> pl.DataType:
        return pl.List(pl.Struct({"key": self.key.polars, "value": self.value.polars}))

    @property
    def delta(self) -> pl.DataType:
        return pl.List(pl.Struct({"key": self.key.delta, "value": self.value.delta}))

    def _parse(self, value: Any) -> dict[Any, Any]:
        pairs = value.items() if isinstance(value, Mapping) else value
        if isinstance(pairs, str | bytes) or not hasattr(pairs, "__iter__"):
            raise self._refuse(value)
        try:
            parsed = [(self.key.parse(key), self.value.parse(item)) for key, item in pairs]
        except (TypeError, ValueError) as error:
            if isinstance(error, WrongType):
                raise
            raise self._refuse(value, "give an object, or a list of [key, value]") from None
        found = dict(parsed)
        if None in found:
            raise self._refuse(value, "a key is null")
        if len(found) != len(parsed):
            raise self._refuse(value, "a key stands twice")
        return found

    def _from_frame(self, value: Any) -> dict[Any, Any]:
        return {item["key"]: _unframed(self.value, item["value"]) for item in value}

    def _to_frame(self, value: Any) -> list[dict[str, Any]]:
        return [{"key": key, "value": _framed(self.value, item)} for key, item in value.items()]

    def _to_json(self, value: Any) -> Any:
        items = self.value.to_json(list(value.values()))
        if isinstance(self.key, StringType):
            return dict(zip(value, items, strict=True))
        return [list(pair) for pair in zip(self.key.to_json(list(value)), items, strict=True)]

    def to_dynamodb(self, value: Mapping[Any, Any]) -> dict[str, Any]:
        # Pairs, and not a map of DynamoDB's: that has text keys only, and no order.
        pairs = ({"L": [self.key.to_dynamodb(key), _attribute(self.value, item)]} for key, item in value.items())
        return {"L": list(pairs)}

    def from_dynamodb(self, stored: dict[str, Any]) -> dict[Any, Any]:
        pairs = (pair["L"] for pair in stored["L"])
        return {self.key.from_dynamodb(key): _of_attribute(self.value, item) for key, item in pairs}
