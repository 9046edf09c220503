"""What every feature type offers."""

from collections.abc import Sequence
from typing import Any, ClassVar

import polars as pl

from feature_assets.errors import WrongType


class FeatureType:
    """What a join key or a feature holds. Equal when the names are equal; `parse_type(str(t)) == t`."""

    __slots__ = ("name",)

    sqlite: ClassVar[str]
    keyable: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def polars(self) -> pl.DataType:
        """The dtype of a conformed column."""
        raise NotImplementedError

    @property
    def delta(self) -> pl.DataType:
        """The dtype of the column as Delta holds it: `polars`, but that Delta has no fixed-size list."""
        return self.polars

    def parse(self, value: Any) -> Any:
        """The canonical Python value of one Python or JSON value; null stays null.

        Raises:
            WrongType: the value is of another type or would lose something. The message starts with what was found;
                the caller says where.
        """
        return None if value is None else self._parse(value)

    def _parse(self, value: Any) -> Any:
        raise NotImplementedError

    def _refuse(self, value: object, why: str = "") -> WrongType:
        shown = f"{type(value).__name__} {_excerpt(value)}"
        return WrongType(f"{shown} is not a {self.name}{': ' + why if why else ''}")

    def to_json(self, values: Sequence[Any]) -> Sequence[Any]:
        """Canonical Python values as what a JSON encoder takes."""
        return values

    def from_frame(self, series: pl.Series) -> list[Any]:
        """A conformed column as canonical Python values."""
        return series.to_list()

    def to_frame(self, name: str, values: Sequence[Any]) -> pl.Series:
        """Canonical Python values as a conformed column."""
        return pl.Series(name, values, dtype=self.polars)

    def to_sqlite(self, series: pl.Series) -> list[Any]:
        """A conformed column as values to bind."""
        return series.to_list()

    def from_sqlite(self, values: Sequence[Any]) -> Sequence[Any]:
        """What SQLite gave back as canonical Python values."""
        return values

    def to_dynamodb(self, value: Any) -> dict[str, Any]:
        """One canonical value that is not null as an attribute value of DynamoDB."""
        return {"S": value}

    def from_dynamodb(self, stored: dict[str, Any]) -> Any:
        """The canonical value of an attribute value, as `to_dynamodb` wrote it."""
        return stored["S"]

    def __repr__(self) -> str:
        return self.name

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureType) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


def _excerpt(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
