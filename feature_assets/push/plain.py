"""Rows with which plainly nothing is wrong, conformed in memory at once.

What a push brings has nearly always the exact types, a key and a time in every row, and passes every check. To see that
takes a few column operations; to say what is wrong, as `conform` does, takes some milliseconds. So this is asked first. It
answers with the very rows that `conform` would give, or with nothing: then it is for `conform` to say why.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import polars as pl

from feature_assets.casting import FIRST, LAST, NotCastable, lossless
from feature_assets.checks import Expression, RowCheck, Unique
from feature_assets.conform import PartitionSlice, identity
from feature_assets.duplicates import superseded, without
from feature_assets.errors import DeclarationError
from feature_assets.expressions import check_row_wise
from feature_assets.spec import PARTITION, TimePartitions, ViewSpec
from feature_assets.types import (
    Bool,
    Bytes,
    DecimalType,
    FeatureType,
    Float32,
    Float64,
    Int8,
    Int16,
    Int32,
    Int64,
    String,
    Timestamp,
)
from feature_assets.windows import slices_of

_EXACT: Final = frozenset({Int8, Int16, Int32, Int64, Float32, Float64, Bool, String, Bytes})
_FEW: Final = 512


class PlainRows:
    """The rows of one view. `together`: whether what is asked of a row does not depend on the rows beside it; `by_time`:
    whether time alone tells partitions apart, else nothing is plain.
    """

    def __init__(self, view: ViewSpec) -> None:
        self._view = view
        self._types, self._columns, self._keys = view.types, view.columns, tuple(view.join_keys)
        self._identity = identity(view)
        checks = [one for one in view.checks if isinstance(one, RowCheck) and not isinstance(one, Unique)]
        self.together = all(map(_is_row_wise, checks))
        self._failing_rows = [one.failing() for one in checks]
        self._failing = [one.any().alias(str(at)) for at, one in enumerate(self._failing_rows)]
        # Those that others tell apart are joined in, which `conform` does.
        self.by_time = all(isinstance(one, TimePartitions) for one in view.partitions.values())
        self._broken: dict[tuple[pl.DataType, ...], list[pl.Expr]] = {}
        self._casts: dict[tuple[pl.DataType, ...], tuple[list[pl.Expr], list[pl.Expr]] | None] = {}

    def of(self, frame: pl.DataFrame, now: datetime, along: Sequence[str]) -> pl.DataFrame | None:
        """The view's columns, `__partition` and what comes `along`; None if something may be wrong with a row.

        Args:
            frame: rows as `conformed` takes them.
            now: the present (UTC).
            along: columns that come along as they are; rows that differ in them are not duplicates.
        """
        columns = self._cast(frame) if self.by_time else None
        if columns is None or any(columns[key].null_count() for key in self._keys):
            return None
        events = columns[self._view.event_timestamp]
        latest = events.max()
        if events.null_count() or not isinstance(latest, datetime) or latest > now + self._view.max_future:
            return None
        partition = self._partition(events)
        if partition is None:
            return None
        # Series by series: a query, even of one row, is handed to Polars' threads and waits for one of them.
        rows = pl.DataFrame([*columns.values(), partition, *(frame[name] for name in along)])
        if self._failing and any(rows.select(self._failing).row(0)):
            return None
        if _has_duplicates(rows, self._identity, along):
            compared = [*self._identity, *along]
            return without(rows.lazy(), superseded(rows.lazy(), compared, rows.height)).collect()
        return rows

    def suspects(self, frame: pl.DataFrame, now: datetime) -> pl.Series | None:
        """For each row a text that is empty if it is plain, and else the same for rows that the same may be wrong with; None
        where rows do not tell.

        Args: as of `of`.
        """
        if not self.by_time or not self.together or any(name not in frame.columns for name in self._types):
            return None
        casts = self._casts_of(frame)
        if casts is None:
            return None
        rows, event = frame.select(casts[0]), self._view.event_timestamp
        wrong = [pl.col(name).is_null() for name in (*self._keys, event)]
        wrong += [pl.col(event) > now + self._view.max_future, *self._failing_rows]
        broken = self._broken[tuple(frame.schema[name] for name in self._types)]
        found = [
            *rows.select(one.fill_null(value=False).alias(str(at)) for at, one in enumerate(wrong)).get_columns(),
            *frame.select(one.alias(f"cast {at}") for at, one in enumerate(broken)).get_columns(),
            self._outside(rows[event]).alias("outside"),
        ]
        marks = [pl.when(one.name).then(pl.lit(f"{one.name};")).otherwise(pl.lit("")) for one in found]
        return pl.DataFrame(found).select(pl.concat_str(marks)).to_series()

    def _outside(self, events: pl.Series) -> pl.Series:
        """Which of these times lie in no partition."""
        slices = slices_of(self._view, pl.DataFrame([events]))
        if not slices or slices[0].start is None:
            return pl.Series([not slices], dtype=pl.Boolean).new_from_index(0, len(events))
        starts = pl.Series([one.start for one in slices], dtype=pl.Datetime("us", "UTC"))
        ends = pl.Series([one.end for one in slices], dtype=pl.Datetime("us", "UTC"))
        at = starts.search_sorted(events.fill_null(starts[0]), side="right").cast(pl.Int64) - 1
        return ((at < 0) | (events >= ends.gather(at.clip(0)))).fill_null(value=True)

    def _cast(self, frame: pl.DataFrame) -> dict[str, pl.Series] | None:
        """The view's columns by name; None if one is missing, or a value would not survive."""
        given = dict(zip(frame.columns, frame.get_columns(), strict=True))
        if any(name not in given for name in self._types):
            return None
        if all(given[name].dtype == of.polars and _is_exact(of, given[name]) for name, of in self._types.items()):
            return {name: given[name] for name in self._types}
        casts = self._casts_of(frame)
        if casts is None:
            return None
        values, broken = casts
        if broken and any(frame.select(broken).row(0)):
            return None
        rows = frame.select(values)
        return dict(zip(rows.columns, rows.get_columns(), strict=True))

    def _casts_of(self, frame: pl.DataFrame) -> tuple[list[pl.Expr], list[pl.Expr]] | None:
        """What makes the view's columns of those of the frame, and what is true where a value does not survive it."""
        schema = frame.schema
        dtypes = tuple(schema[name] for name in self._types)
        if dtypes not in self._casts:
            self._casts[dtypes] = self._casting(dict(zip(self._types, dtypes, strict=True)))
        return self._casts[dtypes]

    def _casting(self, dtypes: dict[str, pl.DataType]) -> tuple[list[pl.Expr], list[pl.Expr]] | None:
        values, broken = [], []
        self._broken[tuple(dtypes.values())] = rows_broken = []
        for name, of in self._types.items():
            try:
                cast = lossless(pl.col(name), dtypes[name], of)
            except NotCastable:
                return None
            values.append(cast.value.alias(name))
            if cast.broken is not None:
                rows_broken.append(cast.broken)
                broken.append(cast.broken.any().alias(name))
        return values, broken

    def _partition(self, events: pl.Series) -> pl.Series | None:
        slices = slices_of(self._view, pl.DataFrame([events]))
        if not slices:
            return None
        if len(slices) == 1 and (
            slices[0].start is None or all(_has(slices[0], at) for at in (events.min(), events.max()))
        ):
            return pl.Series(PARTITION, [slices[0].key], dtype=pl.String).new_from_index(0, len(events))
        starts = pl.Series([one.start for one in slices], dtype=pl.Datetime("us", "UTC"))
        ends = pl.Series([one.end for one in slices], dtype=pl.Datetime("us", "UTC"))
        at = starts.search_sorted(events, side="right").cast(pl.Int64) - 1
        if (at < 0).any() or (events >= ends.gather(at)).any():
            return None
        return pl.Series(PARTITION, [one.key for one in slices], dtype=pl.String).gather(at)


def _is_exact(of: FeatureType, column: pl.Series) -> bool:
    """Whether every value of the right dtype is one of the type, as far as that is known at once."""
    if of == Timestamp:
        micros = column.cast(pl.Int64)
        first, last = micros.min(), micros.max()
        return first is None or (isinstance(first, int) and isinstance(last, int) and first >= FIRST and last <= LAST)
    return of in _EXACT or isinstance(of, DecimalType)


def _has_duplicates(rows: pl.DataFrame, identity: Sequence[str], along: Sequence[str]) -> bool:
    """Whether two rows are equal in all of these columns."""
    if rows.height == 1:
        return False
    if rows.height > _FEW:
        return bool(rows.select(*identity, *along).is_duplicated().any())
    # What comes along tells most rows apart: each push has one.
    for names in (along[-1:], [*identity, *along]):
        columns = [rows[name].to_list() for name in names]
        if len(set(zip(*columns, strict=True))) == rows.height:
            return False
    return True


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
