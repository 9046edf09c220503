"""The spine: the rows that a training set is to have.

Its rows, their order and its columns are theirs and stay as they are. Beside them stand the *moments*: each row's time
and join keys in the types of the platform, which is all that the join looks at.
"""

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeAlias

import polars as pl

from feature_assets.casting import NotCastable, lossless
from feature_assets.errors import MissingJoinKey, RequestError, StoreFull, WrongType
from feature_assets.joins import TIME
from feature_assets.references import ReadPlan
from feature_assets.types import UUID, FeatureType, Timestamp

EVENT_TIMESTAMP: Final = "event_timestamp"
"""The spine's column with each row's time, if it has one of that name."""

Frame: TypeAlias = Any
"""A Polars frame, lazy or not, a pandas frame, an Arrow table or reader, a path, a source, or a query over such."""

_FIRST, _LAST = -62_135_596_800_000_000, 253_402_300_799_999_999
_MICROSECONDS = {"us": 1, "ms": 1_000, "day": 86_400_000_000}
_WHOLE_FLOATS = 2**53
_YEAR_FIRST = r"^\s*\d{4}[-/]"
_GROUP_ROWS = 100_000


class Spine:
    """Rows in their order; `timestamp` is their column of times.

    What was given is read once: a query or a lazy frame may have its rows in another order the next time, and a file other
    rows. They are kept in memory if they are wanted there, else in a file that goes with the spine.
    """

    def __init__(self, frame: pl.DataFrame | pl.LazyFrame, timestamp: str) -> None:
        self._frame, self.timestamp = frame, timestamp
        self._is_read = isinstance(frame, pl.DataFrame)
        self.schema = frame.collect_schema()

    def read(self, *, into_memory: bool) -> None:
        """Read what was given, unless that was done.

        Raises:
            RequestError: it cannot be read.
            StoreFull: it does not fit into the temporary folder.
        """
        if self._is_read:
            return
        try:
            self._frame = self._frame.lazy().collect(engine="streaming") if into_memory else self._staged()
        except (pl.exceptions.PolarsError, OSError) as error:
            if StoreFull.is_told_by(error):
                raise StoreFull.of_temporary(tempfile.gettempdir(), "the spine") from error
            raise RequestError(f"The spine cannot be read: {error}") from error
        self._is_read = True

    def _staged(self) -> pl.LazyFrame:
        folder = tempfile.mkdtemp(prefix="feature-assets-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        path = Path(folder) / "spine.parquet"
        self._frame.lazy().sink_parquet(path, compression="lz4", row_group_size=_GROUP_ROWS)
        return pl.scan_parquet(path)

    @cached_property
    def height(self) -> int:
        """How many rows were read."""
        if isinstance(self._frame, pl.DataFrame):
            return self._frame.height
        return int(self._frame.select(pl.len()).collect().item())

    def slice(self, offset: int, length: int) -> pl.DataFrame:
        """So many of the rows that were read."""
        piece = self._frame.slice(offset, length)
        return piece.collect(engine="streaming") if isinstance(piece, pl.LazyFrame) else piece

    def moments(self, keys: Mapping[str, FeatureType], offset: int = 0, length: int | None = None) -> pl.DataFrame:
        """Of each row that was read (of so many from an offset on) its `TIME` and, as `moment_column(name)`, its join keys.

        What cannot be a value of the key's type is null.

        Raises:
            WrongType: a float that stands for an integer is none.
            RequestError: a time is no time of the years 1 to 9999.
        """
        rows = self._frame.lazy().select(list(dict.fromkeys([self.timestamp, *keys]))).slice(offset, length)
        return moments(rows.collect(engine="streaming"), self.timestamp, keys, offset)

    def pieces(self, rows: int | None, count: int) -> Iterator[pl.DataFrame]:
        """The `count` rows that were read, so many at a time and in one frame at least; None gives them in one."""
        for offset in range(0, count or 1, rows or count or 1):
            yield self.slice(offset, rows or count)


def moments(rows: pl.DataFrame, timestamp: str, keys: Mapping[str, FeatureType], offset: int = 0) -> pl.DataFrame:
    """As `Spine.moments`, of these rows; the first of them is called row `offset`."""
    columns = [_key(rows.get_column(name), of, offset).alias(moment_column(name)) for name, of in keys.items()]
    return pl.DataFrame([_times(rows.get_column(timestamp), offset).alias(TIME), *columns])


def moment_column(name: str) -> str:
    """The name that a spine column's keys have among the moments."""
    return f"key:{name}"


def read_spine(frame: pl.DataFrame | pl.LazyFrame, plan: ReadPlan, *, timestamp_column: str | None = None) -> Spine:
    """The spine, checked to have what the plan looks up.

    Args:
        frame: the rows; a lazy frame is read when they are needed.
        plan: what they are a spine for.
        timestamp_column: the column with each row's time; by default `event_timestamp`, else the only datetime column.

    Raises:
        MissingJoinKey: a join key is missing.
        WrongType: a column is of another kind than its key.
        RequestError: it cannot be read, or has no column of times.
    """
    schema = _schema(frame)
    for read in plan.reads:
        if missing := [column for _, column in read.keys if column not in schema]:
            raise MissingJoinKey.of(read.name, missing, schema, "the spine")
    for name, of in plan.join_keys.items():
        _castable(name, schema[name], of)
    return Spine(frame, _timestamp(schema, timestamp_column))


def _schema(frame: pl.DataFrame | pl.LazyFrame) -> pl.Schema:
    try:
        schema = frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RequestError(f"The spine cannot be read: {error}") from error
    for name, dtype in schema.items():
        if dtype == pl.Object():
            raise RequestError(
                f"Spine column '{name}' holds Python objects. Convert it to a column of values, or drop it."
            )
    return schema


def _timestamp(schema: pl.Schema, asked: str | None) -> str:
    times = [name for name, dtype in schema.items() if isinstance(dtype, pl.Datetime)]
    if asked is not None and asked not in schema:
        raise RequestError(f"The spine has no column '{asked}' (it has: {', '.join(schema)}).")
    name = asked or (EVENT_TIMESTAMP if EVENT_TIMESTAMP in schema else times[0] if len(times) == 1 else None)
    if name is None:
        found = f"several datetime columns: {', '.join(times)}" if times else f"no datetime column: {', '.join(schema)}"
        raise RequestError(f"The spine has no column '{EVENT_TIMESTAMP}', and {found}. Name it: timestamp_column='…'.")
    dtype = schema[name]
    if not isinstance(dtype, pl.Datetime | pl.Date | pl.String | pl.Null):
        raise RequestError(
            f"Spine column '{name}' is {dtype}, which is no time. Make it one, as in "
            f"pl.from_epoch('{name}', time_unit='s')."
        )
    return name


def _times(column: pl.Series, offset: int) -> pl.Series:
    """Times in whole microseconds of UTC; a naive one is UTC. Finer digits are cut off: nobody may see the future."""
    if column.dtype == pl.String():
        column = _parsed(column, offset)
    if column.dtype == pl.Null():
        return column.cast(Timestamp.polars)
    ticks = column.to_physical().cast(pl.Int64)
    unit = column.dtype.time_unit if isinstance(column.dtype, pl.Datetime) else "day"
    if unit == "ns":
        return (ticks // 1_000).cast(Timestamp.polars)
    length = _MICROSECONDS[unit]
    if (rows := (~ticks.is_between(_FIRST // length, _LAST // length)).arg_true()).len():
        raise RequestError(
            f"Spine column '{column.name}' has a time before year 1 or after year 9999 in row {offset + rows[0]}. Correct it, or "
            "set it to null to get no features."
        )
    return (ticks * length).cast(Timestamp.polars)


def _parsed(column: pl.Series, offset: int) -> pl.Series:
    # Polars would take 02/08/2013 for the second of August, and who meant February would see half a year ahead.
    iso = column.to_frame().select(pl.when(pl.col(column.name).str.contains(_YEAR_FIRST)).then(column.name)).to_series()
    parsed = iso.str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
    if (rows := (parsed.is_null() & column.is_not_null()).arg_true()).len():
        raise RequestError(
            f"Spine column '{column.name}' is text, and {column[rows[0]]!r} (row {offset + rows[0]}) is not read as a time. Write "
            "all as 2013-02-08T07:00:00Z, or convert the column."
        )
    return parsed


def _castable(name: str, dtype: pl.DataType, of: FeatureType) -> None:
    try:
        lossless(pl.col(name), dtype, of)
    except NotCastable as error:
        raise WrongType(f"Spine column '{name}' is {dtype} and is looked up as {of}. {error}") from None


def _key(column: pl.Series, of: FeatureType, offset: int) -> pl.Series:
    """The column in the key's type. A value that the type cannot hold equals no key, and is null.

    A float stands for an integer key only as pandas has it, which makes floats of integers with gaps.
    """
    name = column.name
    if of == UUID and column.dtype == pl.String():
        column = _hyphened(column)
    cast = lossless(pl.col(name), column.dtype, of)
    if cast.broken is None:
        return column.to_frame().select(cast.value.alias(name)).to_series()
    held = column.to_frame().select(cast.value.alias(name), broken=cast.broken)
    if column.dtype.is_float():
        not_whole = held["broken"] | (column.abs() > _WHOLE_FLOATS).fill_null(value=False)
        if (rows := not_whole.arg_true()).len():
            raise WrongType(
                f"Spine column '{name}' is {column.dtype} and is looked up as {of}; {column[rows[0]]!r} (row {offset + rows[0]}) "
                f"is not exactly one. Cast it on purpose: .cast(pl.{of.polars!r})."
            )
    return held.select(pl.when(~pl.col("broken")).then(name).alias(name)).to_series()


def _hyphened(column: pl.Series) -> pl.Series:
    """UUIDs as people write them: with or without hyphens, in either case."""
    plain = r"^([0-9a-f]{8})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{12})$"
    return column.str.to_lowercase().str.replace(plain, "$1-$2-$3-$4-$5")
