"""Digests of a frame's values, to the bit, and of nothing else: not of chunks, of batches or of a library's version.

Two frames of the same columns have equal digests if and only if each value is there or null in both alike, with the same
bits: NaNs may differ, and -0.0 is not 0.0.

A column is digested block by block, and its digest is that of its blocks. So several processes can digest one frame, each
its own blocks.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import polars as pl

from feature_assets.spec import Spec, digest

BLOCK_ROWS: Final = 1 << 16
"""So many rows are a block."""

Blocks = dict[str, tuple[str, ...]]
"""Of each column the SHA-256 of its blocks, in their order."""


class Digests(Spec, frozen=True):
    """How many rows there are, and the SHA-256 of each column's values.

    `block_rows` is how many rows a block had; 0 where columns were digested as a whole, as they once were.
    """

    rows: int
    columns: dict[str, str]
    block_rows: int = 0

    @classmethod
    def of_stretches(cls, stretches: Iterable[tuple[int, Blocks]]) -> "Digests":
        """Those of rows that follow one another: of each stretch how many rows it has, and its blocks.

        Each but the last has whole blocks.
        """
        rows, columns = 0, dict[str, list[str]]()
        for count, blocks in stretches:
            if rows % BLOCK_ROWS:
                raise AssertionError("a stretch begins within a block")
            rows += count
            for name, of_blocks in blocks.items():
                columns.setdefault(name, []).extend(of_blocks)
        return cls(rows, {name: digest(blocks) for name, blocks in columns.items()}, BLOCK_ROWS)

    @property
    def digest(self) -> str:
        """One digest of all."""
        return digest([self.rows, list(self.columns.items())])

    def only(self, columns: Iterable[str]) -> "Digests":
        """Those of some of the columns."""
        return Digests(self.rows, {name: self.columns[name] for name in columns})


class Digester:
    """Takes a frame piece by piece; into which pieces it was cut makes no difference.

    Args:
        schema: the columns.
        block_rows: how many rows a block has; 0 digests columns as a whole, to compare with digests that are so.
    """

    def __init__(self, schema: Mapping[str, pl.DataType], block_rows: int = BLOCK_ROWS) -> None:
        self._schema, self._block_rows = pl.Schema(schema), block_rows
        self._rows = 0
        self._done: dict[str, list[str]] = {name: [] for name in schema}
        self._begin()

    def update(self, piece: pl.DataFrame) -> None:
        """Take the next rows."""
        while self._block_rows and piece.height > (room := self._block_rows - self._in_block):
            self._take(piece.head(room))
            self._end()
            self._begin()
            piece = piece.slice(room)
        self._take(piece)

    @property
    def rows(self) -> int:
        """How many rows were taken."""
        return self._rows

    def blocks(self) -> Blocks:
        """The digests of the blocks; the last one is taken for whole. This ends the digesting."""
        self._end()
        return {name: tuple(done) for name, done in self._done.items()}

    def result(self) -> Digests:
        """The digests of all rows. This ends the digesting."""
        blocks = self.blocks()
        if self._block_rows:
            return Digests.of_stretches([(self._rows, blocks)])
        return Digests(self._rows, {name: whole for name, (whole,) in blocks.items()})

    def _begin(self) -> None:
        self._in_block = 0
        self._hashes: dict[str, dict[str, Any]] = {name: {} for name in self._schema}
        # No piece at all and an empty one are the same.
        self._take(self._schema.to_frame())

    def _take(self, piece: pl.DataFrame) -> None:
        self._rows += piece.height
        self._in_block += piece.height
        for name, hashes in self._hashes.items():
            for part, data in _parts(piece.get_column(name)):
                hashes.setdefault(part, hashlib.sha256()).update(data)

    def _end(self) -> None:
        for name, hashes in self._hashes.items():
            self._done[name].append(digest(sorted((part, each.hexdigest()) for part, each in hashes.items())))


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
