"""Reading a view's history: all of it, some of it, or the latest row of each key, now or as of an earlier version."""

from collections.abc import Sequence
from datetime import UTC, datetime

import polars as pl
from deltalake import DeltaTable

from feature_assets.errors import NotReproducible, UnknownFeature
from feature_assets.offline.files import files_of
from feature_assets.offline.place import LOG, Place
from feature_assets.offline.table import check_types, stored_types
from feature_assets.spec import PARTITION, PUBLICATION, ViewSpec

_FEW = 1000


def scanned(
    view: ViewSpec,
    table: DeltaTable,
    *,
    features: Sequence[str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    partitions: Sequence[str] | None = None,
) -> pl.LazyFrame:
    """See `OfflineStore.scan`."""
    check_types(view, table)
    # The version travels along for a plan that is sent to another process.
    rows = pl.scan_delta(table, version=table.version())
    if partitions is not None:
        rows = rows.filter(pl.col(PARTITION).is_in(list(partitions)))
    event = pl.col(view.event_timestamp)
    if since is not None:
        rows = rows.filter(event >= _utc(since))
    if until is not None:
        rows = rows.filter(event <= _utc(until))
    return rows.select(*_columns(view, table, features), PUBLICATION, PARTITION)


def _columns(view: ViewSpec, table: DeltaTable, features: Sequence[str] | None) -> list[pl.Expr]:
    known = [one.name for one in view.features]
    wanted = known if features is None else list(features)
    if unknown := [name for name in wanted if name not in known]:
        raise UnknownFeature.among(view.name, unknown[0], known)
    stored, columns = stored_types(table), []
    for name, of in view.types.items():
        if name in wanted or name not in known:
            column = pl.col(name) if name in stored else pl.lit(None).alias(name)
            columns.append(column if name in stored and of.delta == of.polars else column.cast(of.polars))
    return columns


def latest(view: ViewSpec, rows: pl.LazyFrame, keys: pl.DataFrame | None) -> pl.LazyFrame:
    """Of each key the row that is latest by event, created (none before any) and publication."""
    event = view.event_timestamp
    order = [event, PUBLICATION] if view.created_timestamp is None else [event, view.created_timestamp, PUBLICATION]
    names = list(view.join_keys)
    if not names:
        newest = rows.filter(pl.col(event) == pl.col(event).max())
        return newest.sort(order, nulls_last=False).tail(1)
    if keys is not None:
        rows = _of_keys(rows, keys)
    # Two passes: the first reads keys and times only, the second few rows more than there are keys. To sort all rows,
    # or to take each column by the maximum of several others, costs a multiple in time and in memory.
    newest = rows.group_by(names).agg(pl.col(event).max())
    candidates = rows.join(newest, on=[*names, event], how="semi")
    return candidates.sort(order, nulls_last=False).unique(names, keep="last")


def _of_keys(rows: pl.LazyFrame, keys: pl.DataFrame) -> pl.LazyFrame:
    if keys.height <= _FEW:
        # The reader can look for listed values before it decodes the other columns; a join comes after.
        rows = rows.filter(pl.col(name).is_in(keys[name].unique().implode()) for name in keys.columns)
    return rows.join(keys.lazy(), on=keys.columns, how="semi")


def rows_between(files: pl.DataFrame, since: datetime | None, until: datetime) -> int:
    """At most about how many rows have an event in that time, by the bounds of the files that `files_of` tells of."""
    late = pl.lit(value=False) if since is None else pl.col("high") < _utc(since)
    outside = (late | (pl.col("low") > _utc(until))).fill_null(value=False)
    return int(files.filter(~outside)["rows"].sum())


def refuse_vacuumed(place: Place, table: DeltaTable, partitions: Sequence[str] | None) -> None:
    """Say at once that files of an earlier version are gone, where a look at the disk tells.

    Raises:
        NotReproducible: files that this version needs have been vacuumed.
    """
    version = table.version()
    if place.folder is None or not (place.folder / LOG / f"{version + 1:020d}.json").exists():
        return
    files = files_of(table)
    if partitions is not None:
        files = files.filter(pl.col("partition").is_in(list(partitions)))
    gone = [path for path in files["path"] if not (place.folder / path).exists()]
    if gone:
        raise NotReproducible(
            f"Version {version} of {place.described} is not whole any more: {len(gone)} of its {files.height} data files "
            "have been vacuumed. Read a later version, or keep old files longer: vacuum with a greater older_than."
        )


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
