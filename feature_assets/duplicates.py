"""Which rows a later one replaces, found in memory that does not grow with the rows."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl

ROW = "__row"

AT_ONCE = 4_000_000
"""So many hashes are compared in memory at once; those of more rows go to disk first, into parts of this size."""

_HASH, _PART = "__hash", "__part"


def superseded(rows: pl.LazyFrame, columns: Sequence[str], total: int, *, at_once: int = AT_ONCE) -> pl.DataFrame:
    """The positions of rows that a later one with equal values replaces: a column `__row`, empty for distinct rows.

    Args:
        rows: `total` rows, in the same order whenever they are read.
        columns: what is compared; null equals null.
        at_once: how many rows' hashes memory may hold.
    """
    digest = pl.struct(columns).hash(0).alias(_HASH)
    # Equal values have equal hashes. Who shares his with nobody is no duplicate, and few others are left to compare.
    shared = _shared(rows.select(digest), total, at_once)
    suspects = (
        rows.select(columns).with_row_index(ROW).filter(digest.is_in(shared.implode())).collect(engine="streaming")
        if len(shared)
        else rows.select(columns).with_row_index(ROW).head(0).collect()
    )
    kept = suspects.unique(subset=columns, keep="last")
    return suspects.join(kept, on=ROW, how="anti").select(ROW)


def without(rows: pl.LazyFrame, superseded: pl.DataFrame) -> pl.LazyFrame:
    """The rows in their order, but for those at these positions."""
    if superseded.is_empty():
        return rows
    return rows.with_row_index(ROW).join(superseded.lazy(), on=ROW, how="anti", maintain_order="left").drop(ROW)


def _shared(hashes: pl.LazyFrame, total: int, at_once: int) -> pl.Series:
    """The hashes that are there more than once."""
    if total <= at_once:
        return _repeated(hashes)
    parts = -(-total // at_once)
    with tempfile.TemporaryDirectory(prefix="feature-assets-") as folder:
        hashes.with_columns((pl.col(_HASH) % parts).alias(_PART)).sink_parquet(
            pl.PartitionBy(folder, key=_PART, include_key=False), compression="lz4", statistics=False
        )
        # Equal hashes are in one part, so each can be looked at alone.
        return pl.concat([_repeated(pl.scan_parquet(part)) for part in sorted(Path(folder).iterdir())])


def _repeated(hashes: pl.LazyFrame) -> pl.Series:
    column = hashes.select(_HASH).collect(engine="streaming").to_series()
    return column.filter(column.is_duplicated()).unique()
