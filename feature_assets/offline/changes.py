"""What changes a view's history: partitions replaced or dropped, keys erased, small files made one."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import polars as pl
from deltalake import DeltaTable

from feature_assets.errors import ContractBroken, MissingJoinKey, RequestError
from feature_assets.offline.commits import Swap, next_publication
from feature_assets.offline.files import DataFile, files_of, hollow, numbered, rows_of, written
from feature_assets.offline.place import Place
from feature_assets.spec import PARTITION, PUBLICATION, ViewSpec

Prepare = Callable[[DeltaTable, Swap | None], Swap | None]

_SMALL = 64 << 20


def check_rows(view: ViewSpec, rows: pl.LazyFrame, more: Mapping[str, pl.DataType] | None = None) -> None:
    """Compare dtypes exactly: the libraries below would cast 0.7 to 0 without a word.

    Raises:
        ContractBroken: a column is missing, too many, or of another dtype.
    """
    found = rows.collect_schema()
    expected = {name: of.polars for name, of in view.types.items()} | {PARTITION: pl.String()} | dict(more or {})
    for name, dtype in expected.items():
        if name not in found:
            raise ContractBroken(
                f"{view.name}: the rows have no column '{name}' ({dtype}). Conform them before storing."
            )
        if found[name] != dtype:
            raise ContractBroken(
                f"{view.name}: column '{name}' is {found[name]}, not {dtype}. Conform the rows before storing them."
            )
    if extra := [name for name in found if name not in expected]:
        raise ContractBroken(f"{view.name}: the rows have column '{extra[0]}', which the view does not declare.")


def replacing(place: Place, view: ViewSpec, rows: pl.LazyFrame, partitions: Sequence[str]) -> Prepare:
    """Put these rows in the place of all that the partitions hold."""
    casts = [pl.col(name).cast(of.delta) for name, of in view.types.items() if of.delta != of.polars]

    def prepare(table: DeltaTable, former: Swap | None) -> Swap | None:
        files = files_of(table)
        present = _within(files, partitions)
        if former is not None:
            if (former.publication or 0) > max(replaced(present).values(), default=0):
                # Nobody replaced one of them in between.
                return dataclasses.replace(former, removed=present, total=_total(files, present, former.added))
            former.discard(place)
        number = next_publication(_greatest(files))
        numbered = rows.with_columns(*casts, pl.lit(number, pl.Int64()).alias(PUBLICATION))
        full = written(place, view, numbered, partitions)
        publications = dict.fromkeys(partitions, number)
        added = _with_hollow(place, view, full, publications)
        rows_in, total = sum(file.rows for file in full), _total(files, present, full)
        return Swap("replace", publications, number, added, present, rows_in, total=total)

    return prepare


def erasing(place: Place, view: ViewSpec, keys: pl.DataFrame) -> Prepare:
    """Leave out every row of these keys, in whatever partition.

    The rows that stay keep their publications, by which they are ordered; the partitions get a new one. So whoever
    published them and has not been online yet is late there, as behind any other publication, and a crash shows.
    """
    names = list(view.join_keys)

    def prepare(table: DeltaTable, former: Swap | None) -> Swap | None:
        if former is not None:
            former.discard(place)
        rows = pl.scan_delta(table, version=table.version())
        found = rows.join(keys.lazy(), on=names, how="semi").group_by(PARTITION).len().collect(engine="streaming")
        if found.is_empty():
            return None
        partitions, files = found[PARTITION].to_list(), files_of(table)
        number, present = next_publication(_greatest(files)), _within(files, partitions)
        kept = rows_of(place, table, present).join(keys.lazy(), on=names, how="anti")
        publications = dict.fromkeys(partitions, number)
        added = _with_hollow(place, view, written(place, view, kept, partitions), publications)
        return Swap("erase", publications, number, added, present, int(found["len"].sum()))

    return prepare


def dropping(partitions: Sequence[str]) -> Prepare:
    """Take out all that the partitions hold, and leave nothing that tells of them."""

    def prepare(table: DeltaTable, former: Swap | None) -> Swap | None:
        files = files_of(table)
        present = _within(files, partitions)
        if present.is_empty():
            return None
        number = next_publication(_greatest(files))
        touched = dict.fromkeys(present["partition"].unique().sort().to_list(), number)
        return Swap("drop", touched, number, (), present, int(present["rows"].sum()), total=_total(files, present, ()))

    return prepare


def compacting(
    place: Place, view: ViewSpec, partitions: Sequence[str] | None = None, *, largest: int = _SMALL
) -> Prepare:
    """Make one of several small files of a partition, of what was pushed and of the rest apart.

    Args:
        partitions: only of what was pushed into these.
        largest: files of so many bytes stay as they are.
    """

    def prepare(table: DeltaTable, former: Swap | None) -> Swap | None:
        if former is not None:
            former.discard(place)
        files = files_of(table).filter(pl.col("bytes") < largest)
        if partitions is not None:
            files = files.filter(pl.col("partition").is_in(partitions), pl.col("pushed"))
        several = files.group_by("partition", "pushed").len().filter(pl.col("len") > 1)
        present = files.join(several, on=["partition", "pushed"], how="semi")
        if present.is_empty():
            return None
        publications, touched = replaced(present), present["partition"].unique().sort().to_list()
        rows = rows_of(place, table, present).sort(view.event_timestamp)
        added = _with_hollow(place, view, written(place, view, rows, touched), publications)
        return Swap("compact", {key: publications.get(key, 0) for key in touched}, None, added, present, 0)

    return prepare


def _total(files: pl.DataFrame, removed: pl.DataFrame, added: Sequence[DataFile]) -> int:
    """The rows of the whole table once these files are out and those in."""
    return int(files["rows"].sum()) - int(removed["rows"].sum()) + sum(file.rows for file in added)


def check_keys(view: ViewSpec, keys: pl.DataFrame) -> pl.DataFrame:
    """The join keys of the frame, each once.

    Raises:
        RequestError: the view has no join keys, or a column is missing or of another dtype.
    """
    if not view.join_keys:
        raise RequestError(f"View '{view.name}' has no entities, so no keys to choose rows by.")
    if missing := [name for name in view.join_keys if name not in keys.columns]:
        raise MissingJoinKey.of(view.name, missing, keys.columns, "the frame of keys")
    for name, of in view.join_keys.items():
        if keys.schema[name] != of.polars:
            raise RequestError(
                f"View '{view.name}': key column '{name}' is {keys.schema[name]}, not {of.polars}; rows would be missed. "
                f"Cast it: .cast({{'{name}': pl.{of.polars!r}}})."
            )
    return keys.select(list(view.join_keys)).unique()


def _within(files: pl.DataFrame, partitions: Sequence[str]) -> pl.DataFrame:
    return files.filter(pl.col("partition").is_in(partitions))


def _with_hollow(
    place: Place, view: ViewSpec, full: Sequence[DataFile], publications: Mapping[str, int]
) -> list[DataFile]:
    """The files, and one without rows for every partition that has none but pushed ones; each with its publication."""
    held = {file.partition for file in full if not file.pushed}
    added = hollow(place, view, {key: number for key, number in publications.items() if key not in held})
    return [*(file if file.pushed else numbered(file, publications[file.partition]) for file in full), *added]


def replaced(files: pl.DataFrame) -> dict[str, int]:
    """The last publication of each partition, where it was materialised or rows were erased from it."""
    found = files.filter(~pl.col("pushed"))
    return dict(found.group_by("partition").agg(pl.col("publication").max()).iter_rows())


def _greatest(files: pl.DataFrame) -> int:
    return int(files["publication"].max() or 0)  # type: ignore[arg-type]
