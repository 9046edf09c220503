"""Delta tables that are not the platform's own: read as sources, and written for others to read.

A table is written as the platform's own ones are: Polars writes data files, several processes at once if wished, and one
commit names them all. What delta-rs would write itself others could not read: of vectors it tells lists, and a column of
categories ends the process's thread.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

import polars as pl
from deltalake import CommitProperties, DeltaTable, Field, Schema
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, create_table_with_add_actions

from feature_assets.errors import FeatureAssetsError, RequestError, StoreFull, StoreUnavailable
from feature_assets.offline.files import column_bounds
from feature_assets.offline.place import reason_of

Mode = Literal["error", "append", "overwrite"]

_DECIMAL_DIGITS = 38
_INDEXED = 32
"""Of so many columns the log has bounds, as delta-rs has it."""

_WHOLE: dict[type[pl.DataType], pl.DataType] = {
    pl.UInt8: pl.Int16(),
    pl.UInt16: pl.Int32(),
    pl.UInt32: pl.Int64(),
    pl.UInt64: pl.Int64(),
}
_AS_THEY_ARE = (
    pl.Int8,
    pl.Int16,
    pl.Int32,
    pl.Int64,
    pl.Float32,
    pl.Float64,
    pl.Boolean,
    pl.String,
    pl.Binary,
    pl.Date,
)


class TableFile(Protocol):
    """A data file that no commit names yet: its path within the table, and its bounds as a Delta log has them."""

    @property
    def path(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def bounds(self) -> str: ...


def scan_table(uri: str, storage_options: Mapping[str, str]) -> pl.LazyFrame:
    """Any Delta table as it is now; the frame stays at that version.

    Raises:
        StoreUnavailable: there is no table, or it cannot be read.
    """
    try:
        table = DeltaTable(uri, storage_options=dict(storage_options) or None)
    except TableNotFoundError as error:
        raise StoreUnavailable(f"there is no Delta table at {uri}") from error
    except (DeltaError, OSError) as error:
        raise StoreUnavailable(f"the Delta table at {uri} cannot be read: {reason_of(error)}") from error
    return pl.scan_delta(table, version=table.version())


def stored(schema: Mapping[str, pl.DataType]) -> pl.Schema:
    """The dtypes that a Delta table has these columns in.

    Raises:
        RequestError: Delta has no type for a column.
    """
    return pl.Schema({name: _stored(name, dtype) for name, dtype in schema.items()})


def _stored(name: str, dtype: Any) -> pl.DataType:
    if isinstance(dtype, _AS_THEY_ARE):
        return dtype
    if type(dtype) in _WHOLE:
        return _WHOLE[type(dtype)]
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.String()
    if isinstance(dtype, pl.Datetime):
        return pl.Datetime("us", "UTC" if dtype.time_zone else None)
    if isinstance(dtype, pl.Decimal) and dtype.precision <= _DECIMAL_DIGITS:
        return dtype
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_stored(name, dtype.inner))
    if isinstance(dtype, pl.Struct):
        return pl.Struct({field.name: _stored(name, field.dtype) for field in dtype.fields})
    raise RequestError(f"Column '{name}' is {dtype}, for which Delta has no type. Convert it, or leave it out.")


def as_stored(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows in the dtypes that a Delta table has them in; times to the microsecond, finer digits are cut off.

    Raises:
        RequestError: Delta has no type for a column, or a value is too large for it.
    """
    columns = []
    for column, dtype in zip(rows.get_columns(), stored(rows.schema).values(), strict=True):
        try:
            columns.append(column.cast(dtype))
        except pl.exceptions.PolarsError as error:
            raise RequestError(
                f"Column '{column.name}' is {column.dtype}, of which Delta has {dtype}: {reason_of(error)}. Convert it on purpose."
            ) from error
    return pl.DataFrame(columns)


class Bounds:
    """Least and greatest values and nulls of the rows of one file, as they are written."""

    def __init__(self) -> None:
        self._seen: list[pl.DataFrame] = []

    def seen(self, rows: pl.DataFrame) -> None:
        """Take some more rows of the file into account."""
        columns = list(rows.schema.items())[:_INDEXED]
        bounds = (bound for name, dtype in columns for bound in column_bounds(name, dtype))
        self._seen.append(rows.select(pl.len().alias("rows"), *bounds))

    @property
    def rows(self) -> int:
        """How many rows the file has."""
        return sum(one["rows"].item() for one in self._seen)

    def told(self) -> str:
        """What a Delta log says of the file."""
        seen = pl.concat(self._seen)
        found: dict[str, dict[str, Any]] = {"min": {}, "max": {}, "nulls": {}}
        for column in seen.get_columns()[1:]:
            label, _, name = column.name.partition(" ")
            # A piece without a bound has none that could be told: a text that is too long, or nulls alone.
            if label == "nulls":
                found[label][name] = int(column.sum())
            elif not column.null_count():
                found[label][name] = column.min() if label == "min" else column.max()
        return json.dumps(
            {
                "numRecords": self.rows,
                "minValues": found["min"],
                "maxValues": found["max"],
                "nullCount": found["nulls"],
            },
            ensure_ascii=False,
        )


class ForeignTable:
    """A table to be written, checked to take the rows before any is made.

    Args:
        uri: a folder or an object-store URL.
        schema: of the rows.
        mode: what to do if there is a table already.
        storage_options: of the object store.

    Raises:
        RequestError: there is a table already, it does not take such rows, or Delta has no type for a column.
        StoreUnavailable: it cannot be read.
    """

    def __init__(
        self, uri: str, schema: Mapping[str, pl.DataType], *, mode: Mode, storage_options: Mapping[str, str]
    ) -> None:
        self.uri, self._mode, self._options = uri, mode, dict(storage_options)
        self._schema = Schema.from_arrow(stored(schema))
        table = self._opened()
        if table is not None:
            self._check(table)

    def _opened(self) -> DeltaTable | None:
        try:
            return DeltaTable(self.uri, storage_options=self._options or None)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise StoreUnavailable(f"the Delta table at {self.uri} cannot be read: {reason_of(error)}") from error

    def _check(self, table: DeltaTable) -> None:
        if self._mode == "error":
            self._refuse("there is one already")
        if partitioned := table.metadata().partition_columns:
            self._refuse(f"it is partitioned by {', '.join(partitioned)}")
        has, gets = _fields(table.schema()), _fields(self._schema)
        if odd := sorted(name for name in {**has, **gets} if has.get(name) != gets.get(name)):
            told = [f"{name} is {_type(has, name)} there and {_type(gets, name)} here" for name in odd[:3]]
            self._refuse("; ".join(told))
        if ruled := [name for name in table.metadata().configuration if name.startswith("delta.constraints.")]:
            self._refuse(f"it has a constraint, {ruled[0]}, which is not looked at here")

    def _refuse(self, reason: str) -> NoReturn:
        raise RequestError(
            f"The Delta table at {self.uri} does not take the rows: {reason}. mode='append' adds to a table of the same "
            "columns that is there, mode='overwrite' takes its place."
        )

    def commit(self, files: Sequence[TableFile]) -> None:
        """Make these files the table, or a part of it, in one commit; what is not committed is removed.

        Raises:
            RequestError: the table does not take the rows any more.
            StoreUnavailable, StoreFull: it cannot be written.
        """
        now = time.time_ns() // 1_000_000
        added = [AddAction(file.path, file.bytes, {}, now, data_change=True, stats=file.bounds) for file in files]
        try:
            self._send(added)
        except (DeltaError, OSError, RequestError) as error:
            # Of a commit that landed the answer may be lost. If the log cannot be read now, its files stay.
            if self._names(files):
                return
            self.discard(file.path for file in files)
            raise self._explained(error) from error

    def _send(self, added: list[AddAction]) -> None:
        table = self._opened()
        if table is None:
            # A second attempt would make the table on top of one that was made meanwhile.
            once = CommitProperties(max_commit_retries=0)
            options = self._options or None
            create_table_with_add_actions(
                self.uri, self._schema, added, mode="error", storage_options=options, commit_properties=once
            )
            return
        self._check(table)
        mode = "overwrite" if self._mode == "overwrite" else "append"
        table.create_write_transaction([*added], mode, self._schema, [])

    @contextmanager
    def made(self, token: str) -> Iterator[None]:
        """While files are made whose names have this token: if it fails, they go, and drafts of who was killed in any case.

        In an object store files that no commit names stay until the table is vacuumed.
        """
        folder = None if "://" in self.uri else Path(self.uri)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        try:
            yield
        except BaseException:
            if folder is not None:
                self.discard(path.name for path in folder.glob(f"*{token}.parquet"))
            raise
        finally:
            if folder is not None:
                self.discard(path.name for path in folder.glob(f".*{token}.parquet.*"))

    def discard(self, paths: Iterable[str]) -> None:
        """Remove files that no commit names, and the folder if that was all there is."""
        folder = None if "://" in self.uri else Path(self.uri)
        if folder is None:
            return
        for path in paths:
            (folder / path).unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def _names(self, files: Sequence[TableFile]) -> bool:
        """Whether the log names the files: of a commit that landed the answer may be lost."""
        table = self._opened()
        if table is None:
            return False
        named = {path.rpartition("/")[2] for path in table.file_uris()}
        return all(file.path in named for file in files)

    def _explained(self, error: Exception) -> Exception:
        if isinstance(error, FeatureAssetsError):
            return error
        if StoreFull.is_told_by(error):
            return StoreFull(f"No room is left for the Delta table at {self.uri} ({reason_of(error)}).")
        return StoreUnavailable(f"the Delta table at {self.uri} cannot be written: {reason_of(error)}")


def _fields(schema: Schema) -> dict[str, Field]:
    return {field.name: field for field in schema.fields}


def _type(fields: Mapping[str, Field], name: str) -> str:
    if name not in fields:
        return "missing"
    field = fields[name]
    of = getattr(field.type, "type", None) or type(field.type).__name__
    return f"{of}{'' if field.nullable else ' not null'}"


def bounded(pieces: Iterator[pl.DataFrame], bounds: Bounds) -> Iterator[pl.DataFrame]:
    """The rows in the dtypes of a Delta table, with their bounds told on the way."""
    for piece in pieces:
        rows = as_stored(piece)
        bounds.seen(rows)
        yield rows
