"""Who was erased, kept for rows that were acknowledged before and are published afterwards.

An erasure sees the tables, and the journals of its own machine. In the journal of another host rows of the same keys may
wait, or be on their way. So it leaves digests of the keys in a table of its own, and then a fence in the view's table: an
append like others, which therefore all later ones have seen. Whoever appends rows of a journal looks, where some are older
than the fence, for their keys among the digests.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import polars as pl
from deltalake import DeltaTable

from feature_assets.spec import EVENT_ID, PARTITION, SEQUENCE, UNPARTITIONED, Entity, Field, ViewSpec
from feature_assets.types import String, Timestamp

FOLDER: Final = "__erased"
"""Of the offline store: names of views have no two underscores."""

_FENCE: Final = "feature-assets/erased"
_DIGEST, _UNTIL = "__digest", "__until"


@dataclass(frozen=True, slots=True)
class Fence:
    """Numbers no rows: says in the table up to which sequence number of journals somebody was erased."""

    until: int
    moves: ClassVar[bool] = True

    def late(self, table: DeltaTable, rows: pl.DataFrame) -> pl.DataFrame:
        """None is there yet."""
        return rows

    def transactions(self, table: DeltaTable, rows: pl.DataFrame, number: int) -> dict[str, int]:
        """What its commit says."""
        return {_FENCE: max(self.until, fence(table) or 0)}


def fence(table: DeltaTable) -> int | None:
    """Up to which sequence number of journals rows may be of somebody who was erased; None if nobody ever was."""
    return table.transaction_version(_FENCE)


def marks_of(view: ViewSpec) -> ViewSpec:
    """The table of the digests of a view: which join keys they are of, and up to which sequence number, as a time."""
    return ViewSpec(
        name=view.name,
        version=view.version,
        entities=(Entity("erased", {"digest": String}),),
        features=(Field("columns", String, "The join keys, as JSON."),),
        event_timestamp="until",
        online=False,
    )


def marks(view: ViewSpec, keys: pl.DataFrame, until: int) -> pl.DataFrame:
    """The rows of that table for some or all of the join keys, as an append takes them."""
    names = [name for name in view.join_keys if name in keys.columns]
    return pl.DataFrame(_digests(view, names, keys).alias("digest").unique()).select(
        "digest",
        pl.lit(until, pl.Int64).cast(Timestamp.polars).alias("until"),
        pl.lit(json.dumps(names)).alias("columns"),
        pl.lit(UNPARTITIONED).alias(PARTITION),
        pl.lit(None, pl.String).alias(EVENT_ID),
        pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(SEQUENCE),
    )


def of_nobody_erased(view: ViewSpec, rows: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """The rows of a journal that were acknowledged after their keys were erased, or whose keys never were.

    Args:
        found: rows of the digests' table.
    """
    for (columns,), alike in found.group_by("columns"):
        names = json.loads(str(columns))
        latest = alike.group_by(pl.col("digest").alias(_DIGEST)).agg(pl.col("until").max().to_physical().alias(_UNTIL))
        asked = rows.select(SEQUENCE, *names, _digests(view, names, rows).alias(_DIGEST))
        erased = asked.join(latest, on=_DIGEST, how="inner").filter(pl.col(SEQUENCE) <= pl.col(_UNTIL))
        rows = rows.join(erased.select(SEQUENCE, *names), on=[SEQUENCE, *names], how="anti", maintain_order="left")
    return rows


def _digests(view: ViewSpec, names: Sequence[str], rows: pl.DataFrame) -> pl.Series:
    each = rows.select(names).unique()
    found = pl.Series(_DIGEST, [_digest(view, key) for key in each.iter_rows(named=True)], dtype=pl.String)
    return rows.select(names).join(each.with_columns(found), on=names, how="left", maintain_order="left")[_DIGEST]


def _digest(view: ViewSpec, key: Mapping[str, Any]) -> str:
    said = [[name, str(view.join_keys[name]), str(value)] for name, value in key.items()]
    return hashlib.sha256(json.dumps([view.name, said]).encode()).hexdigest()
