"""Data files: rows streamed into Parquet, one or more files a partition, with the bounds that readers skip files by.

Polars writes them and delta-rs commits them. So they can be on the disk for good before the log names them, nothing is
cast on the way, and a lost race repeats the commit without writing the rows again.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any
from urllib.parse import quote, unquote
from uuid import uuid4

import polars as pl
from deltalake import DeltaTable
from deltalake.transaction import AddAction, RemoveAction

from feature_assets.errors import ContractBroken, StoreFull
from feature_assets.offline.place import Place
from feature_assets.offline.table import indexed
from feature_assets.spec import PARTITION, PUBLICATION, ViewSpec

_FILE_BYTES = 1 << 30
"""What one file holds at most, measured in memory; on disk it is a fraction of that."""

_GROUP_ROWS = 122_880
_BUFFERED_ROWS = 8_000_000
_LONGEST_KEY = 240
_LONGEST_BOUND = 64
_NO_KEYS = ("", "__HIVE_DEFAULT_PARTITION__")
_PATH, _ROWS = "__path", "__rows"
_PUSHED_FILE = "-pushed.parquet"
_FILES = pl.Schema(
    {
        "path": pl.String(),
        "partition": pl.String(),
        "bytes": pl.Int64(),
        "rows": pl.Int64(),
        "publication": pl.Int64(),
        "pushed": pl.Boolean(),
        "modified": pl.Int64(),
    }
)

PUSHED = "__pushed"
"""The column that tells `written` which rows were pushed, in tables that hold both kinds; it is not stored."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A written file that no commit refers to yet: `path` within the table, `bounds` as a Delta log has them."""

    path: str
    partition: str
    bytes: int
    rows: int
    bounds: str

    @property
    def pushed(self) -> bool:
        """Whether its rows were pushed."""
        return self.path.endswith(_PUSHED_FILE)

    def added(self, *, changes_data: bool) -> AddAction:
        return AddAction(self.path, self.bytes, {PARTITION: self.partition}, _milliseconds(), changes_data, self.bounds)


def files_of(table: DeltaTable, *, bounds_of: str | None = None) -> pl.DataFrame:
    """The data files of a table: path, partition, bytes, rows, the greatest publication in each, whether it was pushed.

    A file has either rows that a replacement put in or such as were pushed, also after compaction: its name tells.
    `modified` is in milliseconds since 1970; with `bounds_of` a column of times, `low` and `high` are its bounds, null
    where there are none.
    """
    found = pl.DataFrame(table.get_add_actions())
    time = pl.Datetime("us", "UTC")
    if found.is_empty():
        return pl.DataFrame(schema={**_FILES, **({"low": time, "high": time} if bounds_of else {})})
    # delta-rs gives paths as the log has them, percent-encoded once more, and takes them as they are.
    path = pl.Series("path", [unquote(path) for path in found["path"]], dtype=pl.String())
    bounds = (pl.col(side).struct.field(bounds_of).cast(time) for side in ("min", "max")) if bounds_of else ()
    return found.select(
        path,
        pl.col("partition").struct.field(PARTITION).alias("partition"),
        pl.col("size_bytes").alias("bytes"),
        pl.col("num_records").alias("rows"),
        pl.col("max").struct.field(PUBLICATION).alias("publication"),
        path.str.ends_with(_PUSHED_FILE).alias("pushed"),
        pl.col("modification_time").alias("modified"),
        *(bound.alias(name) for bound, name in zip(bounds, ("low", "high"), strict=False)),
    )


def rows_of(place: Place, table: DeltaTable, files: pl.DataFrame) -> pl.LazyFrame:
    """The rows of some files of a table, with every column as it is stored, and `__pushed`."""
    schema = {name: dtype for name, dtype in pl.scan_delta(table).collect_schema().items() if name != PARTITION}
    parts = [
        pl.scan_parquet(
            [f"{place.uri}/{path}" for path in paths],
            glob=False,
            # The key of the partition stands in the name of the folder.
            hive_partitioning=True,
            hive_schema={PARTITION: pl.String()},
            schema=schema,
            missing_columns="insert",
            extra_columns="ignore",
            storage_options=dict(place.options) or None,
        ).with_columns(pl.lit(pushed).alias(PUSHED))
        for pushed, paths in files.group_by("pushed").agg("path").iter_rows()
    ]
    return pl.concat(parts)


def removed(files: pl.DataFrame, *, changes_data: bool) -> list[RemoveAction]:
    """What takes these files out of the table."""
    now = _milliseconds()
    return [
        RemoveAction(path, changes_data, now, size, {PARTITION: partition})
        for path, partition, size in files.select("path", "partition", "bytes").iter_rows()
    ]


def check_partitions(view: ViewSpec, partitions: Iterable[str]) -> None:
    """Refuse keys that no folder can be named after.

    Raises:
        ContractBroken: a key is empty, too long, or what Hive writes for null.
    """
    for key in partitions:
        if key in _NO_KEYS or len(quote(key, safe="")) > _LONGEST_KEY:
            raise ContractBroken(
                f"{view.name}: {key[:40]!r} cannot be a partition of a Delta table: a key has 1 to {_LONGEST_KEY} "
                "characters, counting %-escapes. Give the partition a shorter name."
            )


def written(place: Place, view: ViewSpec, rows: pl.LazyFrame, partitions: Sequence[str]) -> list[DataFile]:
    """Stream rows into new data files, in their order.

    Args:
        rows: the columns of the table in its dtypes, `__partition` and `__publication` among them; and `__pushed`, without
            which none of them was.
        partitions: what the rows may belong to; with many of them row groups are smaller, since the unfinished one of
            each is held in memory.

    Raises:
        ContractBroken: a row is of another partition, or a key or time is null.
        StoreError: the store failed. Whatever is raised, on a local disk no file is left behind.
    """
    token, numbers = uuid4().hex, count()
    named: dict[str, str] = {}
    keys = [PARTITION, PUSHED] if PUSHED in rows.collect_schema() else [PARTITION]

    def name(file: pl.FileProviderArgs) -> str:
        key = file.partition_keys[PARTITION].item() or ""
        pushed = len(keys) == 2 and file.partition_keys[PUSHED].item()
        path = f"{_folder(key)}/{token}-{next(numbers)}{_PUSHED_FILE if pushed else '.parquet'}"
        named[path] = key
        return path

    sinked: list[Any] = []
    with _nothing_left_behind(place, named):
        rows.sink_parquet(
            pl.PartitionBy(
                place.uri,
                key=keys,
                include_key=False,
                file_path_provider=name,
                approximate_bytes_per_file=_FILE_BYTES,
            ),
            compression_level=1,
            row_group_size=max(4096, min(_GROUP_ROWS, _BUFFERED_ROWS // max(1, len(partitions)))),
            sinked_paths_callback=lambda done: sinked.extend(done.paths),
            **_target(place),
        )
        sizes = {one.path.rpartition("/")[2]: one.num_bytes for one in sinked}
        # Reading them back keeps the processor busy, forcing them to the disk does not.
        with ThreadPoolExecutor(1) as beside:
            forced = beside.submit(place.sync_data, list(named))
            bounds = _bounds(place, view, list(named))
            forced.result()
        files = [_file(view, path, key, sizes[path.rpartition("/")[2]], bounds[path]) for path, key in named.items()]
        if stray := sorted(set(named.values()) - set(partitions)):
            raise ContractBroken(
                f"{view.name}: there are rows of partition '{stray[0]}', which is not among those that are replaced. "
                "Replace it too, or leave its rows out."
            )
    return files


def hollow(place: Place, view: ViewSpec, publications: Mapping[str, int]) -> list[DataFile]:
    """A file without rows for each of these partitions, so that the log knows its publication all the same."""
    named = {f"{_folder(key)}/{uuid4().hex}-empty.parquet": key for key in publications}
    nothing = pl.LazyFrame(schema={name: of.polars for name, of in view.join_keys.items()} | {PUBLICATION: pl.Int64()})
    files = []
    with _nothing_left_behind(place, named):
        for path, key in named.items():
            sinked: list[Any] = []
            nothing.sink_parquet(f"{place.uri}/{path}", sinked_paths_callback=sinked.append, **_target(place))
            limit = {PUBLICATION: publications[key]}
            bounds = {"numRecords": 0, "minValues": limit, "maxValues": limit, "nullCount": {PUBLICATION: 0}}
            files.append(DataFile(path, key, sinked[0].paths[0].num_bytes, 0, _json(bounds)))
        place.sync_data(named)
    return files


def numbered(file: DataFile, publication: int) -> DataFile:
    """The file with a publication that is later than those of its rows as their bound.

    So the log knows of what was done to the rows; readers skip files by bounds, and these still hold.
    """
    bounds = json.loads(file.bounds)
    if bounds["maxValues"][PUBLICATION] >= publication:
        return file
    bounds["maxValues"][PUBLICATION] = publication
    return replace(file, bounds=_json({**bounds, "tightBounds": False}))


def discard(place: Place, paths: Iterable[str]) -> None:
    """Remove files that no commit refers to. In an object store they stay until they are vacuumed."""
    if place.folder is not None:
        for path in paths:
            (place.folder / path).unlink(missing_ok=True)


def _folder(key: str) -> str:
    # Polars reads the key back from the folder's name; escaped like this it may hold any character.
    return f"{PARTITION}={quote(key, safe='')}"


def _target(place: Place) -> dict[str, Any]:
    return {"mkdir": place.folder is not None, "storage_options": dict(place.options) or None}


@contextmanager
def _nothing_left_behind(place: Place, paths: Iterable[str]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        discard(place, paths)
        # Any other failure may be of the rows' own source: its words fit better than ours.
        if isinstance(error, Exception) and (StoreFull.is_told_by(error) or place.uri in str(error)):
            raise place.explained(error) from error
        raise


def _bounds(place: Place, view: ViewSpec, paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Per file: its rows, and of each indexed column the least and greatest value and the nulls."""
    if not paths:
        return {}
    found = pl.scan_parquet(
        [f"{place.uri}/{path}" for path in paths],
        include_file_paths=_PATH,
        hive_partitioning=False,
        glob=False,
        storage_options=dict(place.options) or None,
    )
    dtypes = found.select(indexed(view)).collect_schema()
    aggregated = found.group_by(_PATH).agg(
        pl.len().alias(_ROWS), *(one for name, dtype in dtypes.items() for one in column_bounds(name, dtype))
    )
    rows = aggregated.collect(engine="streaming").iter_rows(named=True)
    return {row[_PATH].removeprefix(f"{place.uri}/"): row for row in rows}


def column_bounds(name: str, dtype: pl.DataType) -> Iterator[pl.Expr]:
    """Of a column its nulls ("nulls x"), and where a log may have them its bounds ("min x", "max x"); of a nested one none."""
    if dtype.is_nested():
        return
    column = pl.col(name)
    yield column.null_count().alias(f"nulls {name}")
    for label, bound in (("min", column.min()), ("max", column.max())):
        if dtype.is_integer():
            yield bound.alias(f"{label} {name}")
        elif dtype == pl.String():
            yield pl.when(bound.str.len_bytes() <= _LONGEST_BOUND).then(bound).alias(f"{label} {name}")
        elif dtype == pl.Date():
            yield bound.dt.strftime("%Y-%m-%d").alias(f"{label} {name}")
        elif isinstance(dtype, pl.Datetime):
            # Delta keeps milliseconds, cut off at both ends; readers widen the upper one.
            zone = "Z" if dtype.time_zone else ""
            yield bound.dt.strftime(f"%Y-%m-%dT%H:%M:%S%.3f{zone}").alias(f"{label} {name}")


def _file(view: ViewSpec, path: str, key: str, size: int, found: Mapping[str, Any]) -> DataFile:
    names = indexed(view)
    for name in names:
        if found[f"nulls {name}"] and name != view.created_timestamp:
            raise ContractBroken(
                f"{view.name}, partition {key}: '{name}' is null in {found[f'nulls {name}']} of {found[_ROWS]} rows. "
                "Keys and event timestamps are never null: drop those rows, or give them a value."
            )
    bounds = {
        "numRecords": found[_ROWS],
        "minValues": {name: found[f"min {name}"] for name in names if found.get(f"min {name}") is not None},
        "maxValues": {name: found[f"max {name}"] for name in names if found.get(f"max {name}") is not None},
        "nullCount": {name: found[f"nulls {name}"] for name in names},
    }
    return DataFile(path, key, size, found[_ROWS], _json(bounds))


def _json(bounds: Mapping[str, Any]) -> str:
    # Not escaped: delta-rs reads the two halves of an escaped character beyond U+FFFF as another, lesser one, and rows
    # at the upper bound would not be found.
    return json.dumps(bounds, ensure_ascii=False)


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000
