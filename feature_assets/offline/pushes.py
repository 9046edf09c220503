"""Pushed rows added to the partitions that their event times belong to, each exactly once.

Three things tell a row that is there already. The commit that put it in carries its number (`positions`), so that a commit
whose answer was lost, or whose process died, is not made again. An event id is found among the pushed rows. Where none was
given, a row that is equal in every column is the same row; of a stream, whose records have numbers that stay theirs, only
if a materialisation has put it in. Appends name one transaction of the application, so whoever commits has seen all that
others pushed before.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias

import polars as pl
from deltalake import DeltaTable

from feature_assets.offline.commits import Swap, next_publication
from feature_assets.offline.erasures import Fence, fence, of_nobody_erased
from feature_assets.offline.files import PUSHED, files_of, rows_of, written
from feature_assets.offline.place import Place
from feature_assets.offline.positions import InJournal, Moved, Overtaken
from feature_assets.spec import EVENT_ID, PARTITION, PUBLICATION, SEQUENCE, ViewSpec
from feature_assets.types import FeatureType, Float32, Float64, ListType, MapType, StructType, VectorType

log = logging.getLogger(__name__)

EVENT_IDS_KEPT = timedelta(days=1)
"""An event id is known again for so long at least, unless its partition is materialised in between."""

_PUSHES = "feature-assets-pushes"
_ROW = "__row"
_MILLISECOND = timedelta(milliseconds=1)


KnownBy: TypeAlias = Literal["content", "position", "number"]
"""How rows without an event id are known that come again under another number: pushed ones by their content; records of a
stream, if a materialisation has put them in; or not at all."""


@dataclass(frozen=True, slots=True)
class Sorted:
    """What became of rows: `fresh` are put in with these publications, `recovered` were by an earlier attempt."""

    fresh: pl.DataFrame
    recovered: pl.DataFrame


class Appending:
    """Prepares the swap that adds rows; `sorted_rows` says afterwards what became of them.

    Args:
        rows: conformed, with `__partition`, `__event` and `__sequence`, in the order of their numbers.
        seen: remembers event ids from one append to the next.
        erased: whose keys were erased up to a sequence number or later, as `erasures` has it.
    """

    def __init__(
        self,
        place: Place,
        view: ViewSpec,
        rows: pl.DataFrame,
        numbering: InJournal | Moved | Fence,
        known_by: KnownBy,
        seen: "SeenEvents",
        erased: Callable[[int], pl.DataFrame],
    ) -> None:
        self._place, self._view, self._rows, self._seen = place, view, rows, seen
        self._numbering, self._known_by, self._erased = numbering, known_by, erased
        self.sorted_rows = Sorted(_numbered(view, rows.clear(), 0), rows.clear())

    def __call__(self, table: DeltaTable, former: Swap | None) -> Swap | None:
        late = self._late(table, former)
        if late is None:
            self.sorted_rows = Sorted(self.sorted_rows.fresh.clear(), self._rows)
            return None
        recovered = self._rows.clear()
        if late.height < self._rows.height:
            recovered = self._rows.join(late, on=SEQUENCE, how="anti", maintain_order="left")
        fresh = self._unknown(table, self._not_erased(table, late))
        before = self.sorted_rows.fresh.drop(PUBLICATION)
        if former is not None and before.equals(fresh):
            return former  # what was pushed in between is none of these rows
        if former is not None:
            former.discard(self._place)
        files = files_of(table)
        number = next_publication(int(files["publication"].max() or 0))  # type: ignore[arg-type]
        self.sorted_rows = Sorted(_numbered(self._view, fresh, number), recovered)
        if fresh.is_empty() and not self._numbering.moves:
            return None
        return self._swap(number, self._numbering.transactions(table, late, number), files.clear())

    def _late(self, table: DeltaTable, former: Swap | None) -> pl.DataFrame | None:
        try:
            late = self._numbering.late(table, self._rows)
        except Overtaken:
            if former is not None:
                former.discard(self._place)
            raise
        if late is None and former is not None:
            former.discard(self._place)
        return late

    def _not_erased(self, table: DeltaTable, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows without those whose keys were erased since they were acknowledged."""
        if rows.is_empty() or not isinstance(self._numbering, InJournal):
            return rows
        until, first = fence(table), int(rows[SEQUENCE].min())  # type: ignore[arg-type]
        if until is None or until < first:
            return rows
        left = of_nobody_erased(self._view, rows, self._erased(first))
        if left.height < rows.height:
            log.info("left out view=%s rows=%d: their keys were erased", self._view.name, rows.height - left.height)
        return left

    def _swap(self, number: int, said: Mapping[str, int], nothing: pl.DataFrame) -> Swap:
        fresh = self.sorted_rows.fresh
        partitions = fresh[PARTITION].unique().sort().to_list()
        casts = [pl.col(name).cast(of.delta) for name, of in self._view.types.items() if of.delta != of.polars]
        stored = fresh.lazy().drop(SEQUENCE).with_columns(*casts, pl.lit(True).alias(PUSHED))
        return Swap(
            kind="append",
            partitions=dict.fromkeys(partitions, number),
            publication=number,
            added=written(self._place, self._view, stored, partitions) if partitions else (),
            removed=nothing,
            rows=fresh.height,
            transactions={_PUSHES: number, **said},
            told=_told(self._view, fresh),
        )

    def _unknown(self, table: DeltaTable, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows that are neither in the table nor further up, in their order."""
        if rows.is_empty() or self._known_by == "number":
            return rows
        rows = rows.with_row_index(_ROW)
        named, plain = rows.filter(pl.col(EVENT_ID).is_not_null()), rows.filter(pl.col(EVENT_ID).is_null())
        if not named.is_empty():
            first = named.group_by(EVENT_ID).agg(pl.col(SEQUENCE).min())
            named = named.join(first, on=[EVENT_ID, SEQUENCE], how="semi")
            named = named.join(self._seen.among(self._place, table, named[EVENT_ID]), on=EVENT_ID, how="anti")
            # Another event than any that was pushed; but what a materialisation has put in may be itself.
            named = self._not_stored(table, named, replaced_only=True)
        plain = self._not_stored(table, plain, replaced_only=self._known_by == "position")
        both = pl.concat([named, plain]).sort(_ROW)
        if self._known_by == "position":
            return both.drop(_ROW)
        earliest = comparable(self._view, both).to_struct().is_first_distinct()
        return both.filter(earliest | both[EVENT_ID].is_not_null()).drop(_ROW)

    def _not_stored(self, table: DeltaTable, rows: pl.DataFrame, *, replaced_only: bool) -> pl.DataFrame:
        if rows.is_empty():
            return rows
        files = _near(self._view, table, rows, replaced_only=replaced_only)
        if files.is_empty():
            return rows
        event = self._view.event_timestamp
        times = pl.col(event).is_between(pl.lit(rows[event].min()), pl.lit(rows[event].max()))
        identity = [*self._view.join_keys, event]
        stored = (
            rows_of(self._place, table, files)
            .filter(times)
            .join(rows.lazy().select(identity), on=identity, how="semi")
            .select(pl.col(name).cast(of.polars) for name, of in self._view.types.items())
            .collect(engine="streaming")
        )
        ours, theirs = comparable(self._view, rows).with_columns(rows[_ROW]), comparable(self._view, stored)
        known = ours.join(theirs, on=theirs.columns, how="semi", nulls_equal=True)[_ROW]
        return rows.filter(~pl.col(_ROW).is_in(known.implode()))


def no_pushed_rows(view: ViewSpec) -> pl.DataFrame:
    """No rows, as an append takes them."""
    schema = {name: of.polars for name, of in view.types.items()}
    return pl.DataFrame(schema={**schema, PARTITION: pl.String(), EVENT_ID: pl.String(), SEQUENCE: pl.Int64()})


def _told(view: ViewSpec, rows: pl.DataFrame) -> dict[str, str]:
    """What the log says of pushed rows: how many by partition, and the latest event time of each (UTC)."""
    each = rows.group_by(PARTITION).agg(pl.len(), pl.col(view.event_timestamp).max().alias("last"))
    counts = {partition: [count, last.isoformat()] for partition, count, last in each.sort(PARTITION).iter_rows()}
    return {"pushed": json.dumps(counts)}


def _numbered(view: ViewSpec, rows: pl.DataFrame, number: int) -> pl.DataFrame:
    """Rows with their publications: what has one key and one time is numbered on, so that the later push is later."""
    identity = [name for name in (*view.join_keys, view.event_timestamp, view.created_timestamp) if name is not None]
    turn = pl.int_range(pl.len(), dtype=pl.Int64).over(identity) if rows.height > 1 else pl.lit(0, pl.Int64)
    return rows.with_columns((turn + number).cast(pl.Int64).alias(PUBLICATION))


def comparable(view: ViewSpec, rows: pl.DataFrame) -> pl.DataFrame:
    """The view's columns, as far as they are there, as ones that are equal for rows that are equal bit for bit."""
    columns = []
    for name, of in view.types.items():
        if name not in rows.columns:
            continue
        if isinstance(of, ListType | VectorType | StructType | MapType):
            columns.append(pl.col(name).map_batches(_texts(of), return_dtype=pl.String, is_elementwise=True))
            continue
        columns.append(pl.col(name))
        if of in (Float32, Float64):
            # Zero and minus zero are equal, and two values.
            columns.append(((pl.col(name) == 0) & (1 / pl.col(name) < 0)).alias(f"minus {name}"))
    return rows.select(columns)


def _texts(of: FeatureType) -> Callable[[pl.Series], pl.Series]:
    return lambda series: pl.Series(series.name, of.to_sqlite(series), dtype=pl.String)


def _near(view: ViewSpec, table: DeltaTable, rows: pl.DataFrame, *, replaced_only: bool) -> pl.DataFrame:
    """The files of the rows' partitions that have event times like theirs."""
    event = view.event_timestamp
    files = files_of(table, bounds_of=event)
    if replaced_only:
        files = files.filter(~pl.col("pushed"))
    times = rows.group_by(pl.col(PARTITION).alias("partition")).agg(
        pl.col(event).min().alias("first"), pl.col(event).max().alias("last")
    )
    # Delta keeps milliseconds, cut off.
    apart = (pl.col("low") > pl.col("last")) | (pl.col("high") + _MILLISECOND < pl.col("first"))
    return files.filter(pl.col("rows") > 0).join(times, on="partition").filter(~apart.fill_null(False))


class SeenEvents:
    """The event ids of the rows that were pushed lately: 64 bits of each, sorted by file. A file is read once, and again where
    it may have an id that is asked for, which nearly none is.
    """

    def __init__(self) -> None:
        self._by_table: dict[str, dict[str, pl.Series]] = {}

    def among(self, place: Place, table: DeltaTable, asked: pl.Series) -> pl.DataFrame:
        """Those of these ids that pushed rows have, as a column."""
        since = (datetime.now(UTC) - EVENT_IDS_KEPT).timestamp() * 1000
        files = files_of(table).filter(pl.col("pushed"), pl.col("modified") >= since)
        former = self._by_table.get(place.uri, {})
        known = self._by_table[place.uri] = {}
        hashes, hits = asked.hash(), [asked.clear()]
        for file in files.iter_slices(1):
            path = file["path"].item()
            known[path] = former[path] if path in former else _ids(place, table, file).hash().sort()
            if _has_any(known[path], hashes):
                hits.append(asked.filter(asked.is_in(_ids(place, table, file).implode())))
        return pl.DataFrame({EVENT_ID: pl.concat(hits).unique()})


def _has_any(ordered: pl.Series, asked: pl.Series) -> bool:
    if ordered.is_empty():
        return False
    places = ordered.search_sorted(asked).clip(upper_bound=len(ordered) - 1)
    return bool((ordered.gather(places) == asked).any())


def _ids(place: Place, table: DeltaTable, file: pl.DataFrame) -> pl.Series:
    return rows_of(place, table, file).select(EVENT_ID).drop_nulls().collect(engine="streaming")[EVENT_ID]
