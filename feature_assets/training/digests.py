"""Digests of a frame's values, to the bit, and of nothing else: not of chunks, of batches or of a library's version.

Two frames of the same columns have equal digests if and only if each value is there or null in both alike, with the same
bits: NaNs may differ, and -0.0 is not 0.0.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import polars as pl

from feature_assets.spec import Spec, digest


class Digests(Spec, frozen=True):
    """How many rows there are, and the SHA-256 of each column's values."""

    rows: int
    columns: dict[str, str]

    @property
    def digest(self) -> str:
        """One digest of all."""
        return digest([self.rows, list(self.columns.items())])

    def only(self, columns: Iterable[str]) -> "Digests":
        """Those of some of the columns."""
        return Digests(self.rows, {name: self.columns[name] for name in columns})


class Digester:
    """Takes a frame piece by piece; into which pieces it was cut makes no difference."""

    def __init__(self, schema: Mapping[str, pl.DataType]) -> None:
        self._rows = 0
        self._columns: dict[str, dict[str, Any]] = {name: {} for name in schema}
        # No piece at all and an empty one are the same.
        self.update(pl.DataFrame(schema=schema))

    def update(self, piece: pl.DataFrame) -> None:
        """Take the next rows."""
        self._rows += piece.height
        for name, hashes in self._columns.items():
            for part, data in _parts(piece.get_column(name)):
                hashes.setdefault(part, hashlib.sha256()).update(data)

    def result(self) -> Digests:
        columns = {
            name: digest(sorted((part, each.hexdigest()) for part, each in hashes.items()))
            for name, hashes in self._columns.items()
        }
        return Digests(self._rows, columns)


def _parts(column: pl.Series, at: str = "") -> Iterator[tuple[str, Any]]:
    """A column as streams of bytes that can each be cut anywhere: what is null, then lengths and values of the rest."""
    valid = column.is_not_null()
    yield f"{at}/valid", _bytes(valid.cast(pl.UInt8))
    # drop_nulls() leaves the nulls of a struct column where they came of a join.
    there = column.filter(valid)
    dtype = column.dtype
    if isinstance(dtype, pl.Categorical | pl.Enum | pl.Int128):
        there, dtype = there.cast(pl.String), pl.String()
    if isinstance(dtype, pl.String | pl.Binary):
        there = there.cast(pl.Binary)
        yield f"{at}/lengths", _bytes(there.bin.size().cast(pl.Int64))
        yield f"{at}/values", _joined(there)
    elif isinstance(dtype, pl.List):
        yield f"{at}/lengths", _bytes(there.list.len().cast(pl.Int64))
        yield from _parts(there.filter(there.list.len() > 0).explode(), f"{at}/items")
    elif isinstance(dtype, pl.Array):
        yield from _parts(there.explode(), f"{at}/items")
    elif isinstance(dtype, pl.Struct):
        for field in dtype.fields:
            yield from _parts(there.struct.field(field.name), f"{at}/{field.name}")
    elif dtype == pl.Boolean():
        yield f"{at}/values", _bytes(there.cast(pl.UInt8))
    elif dtype != pl.Null():
        yield f"{at}/values", _bytes(there if isinstance(dtype, pl.Decimal) else there.to_physical())


def _bytes(values: pl.Series) -> Any:
    """Fixed-width values without nulls as they lie in memory."""
    array = values.rechunk().to_arrow()
    width = array.type.bit_width // 8
    return memoryview(array.buffers()[1] or b"")[array.offset * width : (array.offset + len(array)) * width]


def _joined(values: pl.Series) -> Any:
    """Binary values without nulls, one behind the other."""
    array = values.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets, data = array.buffers()
    if data is None:
        return b""
    ends = memoryview(offsets).cast("q")
    return memoryview(data)[ends[array.offset] : ends[array.offset + len(array)]]
