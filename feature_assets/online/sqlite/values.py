"""Values on their way in and out: what is bound for a key, and columns that become a frame again."""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import polars as pl

from feature_assets.types import Bool, Date, DecimalType, FeatureType, Timestamp, microseconds

Bind = Callable[[tuple[Any, ...]], tuple[Any, ...]]


def key_binding(types: Sequence[FeatureType]) -> Bind | None:
    """How a key of canonical values becomes what is bound; None where it is bound as it is."""
    encoders = [_encoder(of) for of in types]
    if not any(encoders):
        return None

    def bind(key: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            [
                value if encode is None or value is None else encode(value)
                for value, encode in zip(key, encoders, strict=True)
            ]
        )

    return bind


def _encoder(of: FeatureType) -> Callable[[Any], Any] | None:
    """The key's value as `of.to_sqlite` would write it, without a frame: on the read path one key is the usual case."""
    if of == Timestamp:
        return microseconds
    if of == Date:
        return lambda value: value.isoformat()
    if isinstance(of, DecimalType):
        return _decimal_text
    return None


def _decimal_text(value: Decimal) -> str:
    # A frame has no negative zero: it is the same number, so it has to be the same key.
    return f"{value:f}" if value else f"{abs(value):f}"


def frame(types: Mapping[str, FeatureType], rows: Sequence[Sequence[Any]]) -> pl.DataFrame:
    """Rows as SQLite gave them, with these columns in this order, as a conformed frame."""
    columns = list(zip(*rows, strict=True)) or [()] * len(types)
    return pl.DataFrame([_series(name, of, values) for (name, of), values in zip(types.items(), columns, strict=True)])


def _series(name: str, of: FeatureType, values: Sequence[Any]) -> pl.Series:
    """By a column operation where there is one, else by way of canonical values."""
    if of == Timestamp:
        return pl.Series(name, values, pl.Int64()).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if of == Date:
        return pl.Series(name, values, pl.String()).str.to_date("%Y-%m-%d")
    if of == Bool:
        return pl.Series(name, values, pl.Int64()).cast(pl.Boolean())
    return of.to_frame(name, of.from_sqlite(values))
