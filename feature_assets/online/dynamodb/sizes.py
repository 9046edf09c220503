"""Which rows are larger than DynamoDB takes, told before anything is done with them.

Most rows are far from it. A bound that Polars computes tells those; of the others the items themselves are made.
"""

from typing import Final

import polars as pl

from feature_assets.online.dynamodb.items import LARGEST_ITEM, Shape
from feature_assets.online.dynamodb.keys import LARGEST_KEY
from feature_assets.spec import PUBLICATION, ViewSpec
from feature_assets.types import Bytes, FeatureType, Json, ListType, MapType, String, StructType, VectorType

_SCALAR: Final = 48
"""No number, time or UUID takes more, as an attribute or in a key."""

_AROUND: Final = 300
"""Key, token and expiry of an item, beside the bytes of its join keys."""

_LARGEST_PUBLICATION: Final = 2**63 - 1


def check_sizes(view: ViewSpec, rows: pl.LazyFrame) -> None:
    """See that an item can be made of each of these conformed rows.

    Raises:
        ContractBroken: a row or its key is larger than DynamoDB takes.
    """
    bounds = {name: most_bytes(pl.col(name), of).fill_null(0) for name, of in view.types.items()}
    key = pl.sum_horizontal(pl.lit(1), *(bounds[name] + len(str(of)) + 5 for name, of in view.join_keys.items()))
    names = sum(len(name) for name in view.columns)
    item = pl.sum_horizontal(key, *bounds.values()) + names + _AROUND
    near = rows.filter((key > LARGEST_KEY) | (item > LARGEST_ITEM)).select(view.columns).collect(engine="streaming")
    shape = Shape(view)
    for _ in shape.items(near.with_columns(pl.lit(_LARGEST_PUBLICATION, pl.Int64).alias(PUBLICATION))):
        pass


def most_bytes(column: pl.Expr, of: FeatureType) -> pl.Expr:
    """What a value takes at most, as an attribute or in a key; null may be null."""
    if of in (String, Json):
        return column.str.len_bytes().cast(pl.Int64)
    if of == Bytes:
        return column.bin.size().cast(pl.Int64)
    if isinstance(of, VectorType):
        return pl.lit(4 * of.length, pl.Int64)
    if isinstance(of, ListType):
        return _of_each(column, most_bytes(pl.element(), of.element).fill_null(0) + 1)
    if isinstance(of, MapType):
        pair = [
            most_bytes(pl.element().struct.field(name), each) for name, each in (("key", of.key), ("value", of.value))
        ]
        return _of_each(column, pl.sum_horizontal(*pair) + 6)
    if isinstance(of, StructType):
        fields = [most_bytes(column.struct.field(name), each) for name, each in of.fields.items()]
        return pl.sum_horizontal(*fields) + 3 + sum(len(name.encode()) + 1 for name in of.fields)
    return pl.lit(_SCALAR, pl.Int64)


def _of_each(column: pl.Expr, bound: pl.Expr) -> pl.Expr:
    return column.list.eval(bound).list.sum() + 3
