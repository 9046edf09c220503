"""Rows with which plainly nothing is wrong, conformed in memory at once.

What a push brings has nearly always the exact types, a key and a time in every row, and passes every check. To see that
takes a few column operations; to say what is wrong, as `conform` does, takes some milliseconds. So this is asked first. It
answers with the very rows that `conform` would give, or with nothing: then it is for `conform` to say why.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import polars as pl

from feature_assets.casting import NotCastable, lossless
from feature_assets.checks import Expression, RowCheck, Unique
from feature_assets.conform import PartitionSlice, identity
from feature_assets.duplicates import superseded, without
from feature_assets.errors import DeclarationError
from feature_assets.expressions import check_row_wise
from feature_assets.spec import PARTITION, TimePartitions, ViewSpec
from feature_assets.windows import slices_of


class PlainRows:
    """The rows of one view. `together`: whether what is asked of a row does not depend on the rows beside it."""

    def __init__(self, view: ViewSpec) -> None:
        self._view = view
        self._types, self._columns, self._keys = view.types, view.columns, tuple(view.join_keys)
        self._identity = identity(view)
        checks = [one for one in view.checks if isinstance(one, RowCheck) and not isinstance(one, Unique)]
        self.together = all(map(_is_row_wise, checks))
        self._failing = [one.failing().any().alias(str(at)) for at, one in enumerate(checks)]
        # Where other columns than time tell partitions apart, those are joined in, which `conform` does.
        self._by_time = all(isinstance(one, TimePartitions) for one in view.partitions.values())
        self._casts: dict[tuple[pl.DataType, ...], tuple[list[pl.Expr], list[pl.Expr]] | None] = {}

    def of(self, frame: pl.DataFrame, now: datetime, along: Sequence[str]) -> pl.DataFrame | None:
        """The view's columns, `__partition` and what comes `along`; None if something may be wrong with a row.

        Args:
            frame: rows as `conformed` takes them.
            now: the present (UTC).
            along: columns that come along as they are; rows that differ in them are not duplicates.
        """
        casts = self._casts_of(frame) if self._by_time else None
        if casts is None:
            return None
        values, broken = casts
        if broken and any(frame.select(broken).row(0)):
            return None
        rows = frame.select(*values, *along)
        events = rows[self._view.event_timestamp]
        if events.null_count() or any(rows[key].null_count() for key in self._keys):
            return None
        latest = events.max()
        if not isinstance(latest, datetime) or latest > now + self._view.max_future:
            return None
        partition = self._partition(rows, events)
        if partition is None:
            return None
        rows = rows.select(*self._columns, partition, *along)
        if self._failing and any(rows.select(self._failing).row(0)):
            return None
        compared = [*self._identity, *along]
        if rows.height > 1 and rows.select(compared).is_duplicated().any():
            return without(rows.lazy(), superseded(rows.lazy(), compared, rows.height)).collect()
        return rows

    def _casts_of(self, frame: pl.DataFrame) -> tuple[list[pl.Expr], list[pl.Expr]] | None:
        """What makes the view's columns of those of the frame, and what is true where a value does not survive it."""
        schema = frame.schema
        if any(name not in schema for name in self._types):
            return None
        dtypes = tuple(schema[name] for name in self._types)
        if dtypes not in self._casts:
            self._casts[dtypes] = self._casting(dict(zip(self._types, dtypes, strict=True)))
        return self._casts[dtypes]

    def _casting(self, dtypes: dict[str, pl.DataType]) -> tuple[list[pl.Expr], list[pl.Expr]] | None:
        values, broken = [], []
        for name, of in self._types.items():
            try:
                cast = lossless(pl.col(name), dtypes[name], of)
            except NotCastable:
                return None
            values.append(cast.value.alias(name))
            if cast.broken is not None:
                broken.append(cast.broken.any().alias(name))
        return values, broken

    def _partition(self, rows: pl.DataFrame, events: pl.Series) -> pl.Expr | pl.Series | None:
        slices = slices_of(self._view, rows)
        if len(slices) == 1 and slices[0].start is None:
            return pl.lit(slices[0].key, pl.String).alias(PARTITION)
        first, last = events.min(), events.max()
        if len(slices) == 1 and _has(slices[0], first) and _has(slices[0], last):
            return pl.lit(slices[0].key, pl.String).alias(PARTITION)
        starts = pl.Series([one.start for one in slices], dtype=pl.Datetime("us", "UTC"))
        ends = pl.Series([one.end for one in slices], dtype=pl.Datetime("us", "UTC"))
        if starts.is_empty():
            return None
        at = starts.search_sorted(events, side="right").cast(pl.Int64) - 1
        if (at < 0).any() or (events >= ends.gather(at)).any():
            return None
        return pl.Series(PARTITION, [one.key for one in slices], dtype=pl.String).gather(at)


def _has(one: PartitionSlice, event: object) -> bool:
    return (
        isinstance(event, datetime)
        and one.start is not None
        and one.end is not None
        and one.start <= event.astimezone(UTC) < one.end
    )


def _is_row_wise(check: RowCheck) -> bool:
    if not isinstance(check, Expression):
        return True
    try:
        check_row_wise(check.condition, check.name)
    except DeclarationError:
        return False
    return True
