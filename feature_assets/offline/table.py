"""A view's Delta table as an object: opened, made, widened by new features, and compared with the declaration."""

import math
import re
import time
from collections.abc import Mapping
from datetime import timedelta

import polars as pl
from deltalake import CommitProperties, DeltaTable, Field, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from feature_assets.errors import (
    ConfigurationError,
    DeclarationError,
    NotReproducible,
    PublicationConflict,
    StoreUnsafe,
    TableMissing,
)
from feature_assets.objects import open_objects
from feature_assets.offline.place import CHECKPOINT_EVERY, LOG, Place, reason_of
from feature_assets.spec import EVENT_ID, PARTITION, PUBLICATION, ViewSpec
from feature_assets.types import FeatureType

MARK = "feature_assets"
"""The key of our part of a commit's information."""

_TYPE = "feature_assets.type"
_ATTEMPTS = 20
_EVER = "interval 36500 days"
_PARQUET = b"PAR1"
_PAUSES = (0.01, 0.03, 0.1)
_MISSED = re.compile(r"but found gap|find any checkpoints|checkpoint\S* not found")


def indexed(view: ViewSpec) -> tuple[str, ...]:
    """The columns whose bounds are kept per file: what readers and the platform itself select by."""
    times = (
        (view.event_timestamp,) if view.created_timestamp is None else (view.event_timestamp, view.created_timestamp)
    )
    return (*view.join_keys, *times, PUBLICATION)


def opened(place: Place, at: int | None = None) -> DeltaTable | None:
    """The table at its latest version, or at version `at`; None if there is none.

    Raises:
        NotReproducible: the table is there and that version of it is not.
        StoreUnsafe: the log is damaged or gone.
        StoreUnavailable: the store did not answer.
    """
    try:
        return _loaded(place, at)
    except TableNotFoundError as error:
        if "Unknown scheme" in str(error):
            raise ConfigurationError(
                f"There is no object store for {place.uri}. Give a folder, s3://…, gs://… or az://… as offline."
            ) from error
        _refuse_lost_log(place)
        return None
    except (DeltaError, OSError) as error:
        if at is not None and (latest := opened(place)) is not None:
            raise NotReproducible(
                f"Version {at} of {place.described} cannot be read; the table is at version {latest.version()} "
                f"({reason_of(error)}). Take a version that is still there, or restore the table from a backup."
            ) from error
        raise place.explained(error) from error


def needed(place: Place, at: int | None = None) -> DeltaTable:
    """As `opened`, but a missing table is an error.

    Raises:
        TableMissing: the view was never materialised.
    """
    table = opened(place, at)
    if table is None:
        raise TableMissing.of(place.view, place.version, "offline")
    return table


def _loaded(place: Place, at: int | None) -> DeltaTable:
    try:
        return _looked_at(place, at)
    except TableNotFoundError:
        raise
    except (DeltaError, OSError):
        if not _set_aside_torn_checkpoints(place):
            raise
        return _looked_at(place, at)


def _looked_at(place: Place, at: int | None) -> DeltaTable:
    """The table as delta-rs reads it. What a look at its log missed is there at the next.

    A folder that others write while it is listed may show an entry and not the one before it, and the checkpoint that a hint
    led to may be gone once later ones stand in for it. Only what stays so is damage.
    """
    for pause in _PAUSES:
        try:
            return _read(place, at)
        except DeltaError as error:
            if not _MISSED.search(str(error)):
                raise
            time.sleep(pause)
    return _read(place, at)


def _read(place: Place, at: int | None) -> DeltaTable:
    return DeltaTable(place.uri, version=at, storage_options=dict(place.options) or None)


def _set_aside_torn_checkpoints(place: Place) -> bool:
    """Rename checkpoints that a power loss cut off, and say whether there were any.

    delta-rs cannot read a table that has one, though a checkpoint only repeats the log, all of which we keep.
    """
    log = place.folder / LOG if place.folder is not None else None
    if log is None or not log.is_dir():
        return False
    torn = [one for one in log.glob("*.checkpoint*.parquet") if not is_whole_parquet(one.read_bytes())]
    for one in torn:
        one.rename(one.with_suffix(".torn"))
    hint = log / "_last_checkpoint"
    hinted = re.search(r'"version":(\d+)', hint.read_text(errors="replace")) if hint.exists() else None
    dangling = hinted is not None and not any(log.glob(f"{int(hinted[1]):020d}.checkpoint*.parquet"))
    if torn or dangling:
        hint.unlink(missing_ok=True)
    return bool(torn) or dangling


def is_whole_parquet(data: bytes) -> bool:
    """Whether a file starts and ends as Parquet does: one that was cut off does not."""
    return len(data) >= 12 and data.startswith(_PARQUET) and data.endswith(_PARQUET)


def _refuse_lost_log(place: Place) -> None:
    """Without its log a table looks as if it had never been; making it anew would hide what it held."""
    if place.folder is not None and any(place.folder.glob(f"{PARTITION}=*/*.parquet")):
        raise StoreUnsafe(
            f"The log of {place.described} is gone, its data files are not. Restore {LOG} from a backup, or move the "
            f"folder away and materialise '{place.view}' again."
        )


def widened(place: Place, view: ViewSpec, *, for_pushes: bool = False) -> DeltaTable:
    """The table with every declared column; made if there is none, evolved where features are new.

    `for_pushes`: with a column for event ids. Rows may have waited in a journal while their view got more features: they
    go in without those.

    Raises:
        DeclarationError: a stored column is declared with another type, or no longer.
    """
    for _ in range(_ATTEMPTS):
        table = opened(place) or _made(place, view)
        check_types(view, table)
        stored, declared = stored_types(table), view.types
        gone = [name for name in stored if name not in declared]
        if gone and not for_pushes:
            raise DeclarationError(
                f"View '{view.name}' (version {view.version}): '{gone[0]}' is stored and no longer declared. Declare it "
                f"again, or give the view version={view.version + 1}: a new version has tables of its own."
            )
        new = [_field(one.name, one.type) for one in view.features if one.name not in stored]
        if for_pushes and all(field.name != EVENT_ID for field in table.schema().fields):
            new.append(_plain(EVENT_ID, pl.String()))
        if not new:
            return table
        try:
            table.alter.add_columns(
                new,
                commit_properties=CommitProperties(custom_metadata={MARK: {"kind": "evolve"}}),
            )
            place.sync_log(table.version())
            return table
        except CommitFailedError:
            continue  # another process changed the table first: look again
        except (DeltaError, OSError) as error:
            raise place.explained(error) from error
    raise PublicationConflict(f"{place.described} kept changing while columns were added to it. Publish again.")


def _made(place: Place, view: ViewSpec) -> DeltaTable:
    if place.folder is None:
        # What Delta's log rests on, before there is one.
        root, _, _ = place.uri.rsplit("/", 2)
        open_objects(root, place.options).probe()
    try:
        table = DeltaTable.create(
            place.uri,
            _schema(view),
            partition_by=[PARTITION],
            name=view.name,
            description=view.description or None,
            configuration=_configuration(view, place.forgets),
            storage_options=dict(place.options) or None,
            # No second attempt: delta-rs would make the table again as version 1, on top of the one who was first.
            commit_properties=CommitProperties(custom_metadata={MARK: {"kind": "create"}}, max_commit_retries=0),
        )
    except (DeltaError, OSError) as error:
        if (present := opened(place)) is not None:  # another process was first, or the answer was lost
            return present
        raise place.explained(error) from error
    place.sync_made()
    return table


def _configuration(view: ViewSpec, forgets: timedelta | None) -> Mapping[str, str]:
    # Old versions are what training sets are rebuilt from: `vacuum` alone decides when they go. Where nobody rebuilds from
    # them, every checkpoint would name all files that there ever were for nothing.
    kept = _EVER if forgets is None else f"interval {math.ceil(forgets / timedelta(hours=1))} hours"
    return {
        "delta.enableDeletionVectors": "false",
        "delta.checkpointInterval": str(CHECKPOINT_EVERY),
        "delta.enableExpiredLogCleanup": "false",
        "delta.logRetentionDuration": _EVER,
        "delta.deletedFileRetentionDuration": kept,
        "delta.dataSkippingStatsColumns": ",".join(indexed(view)),
    }


def _schema(view: ViewSpec) -> Schema:
    types = view.types
    bounded = [_field(name, types[name]) for name in indexed(view) if name != PUBLICATION]
    features = [_field(one.name, one.type) for one in view.features]
    # The publication comes before the features: delta-rs loses the statistics of all columns behind a struct.
    return Schema([*bounded, _plain(PUBLICATION, pl.Int64()), *features, _plain(PARTITION, pl.String())])


def _field(name: str, of: FeatureType) -> Field:
    """A column that remembers its feature type: several share one Delta type."""
    return Field(name, _plain(name, of.delta).type, metadata={_TYPE: str(of)})


def _plain(name: str, dtype: pl.DataType) -> Field:
    (field,) = Schema.from_arrow(pl.Schema({name: dtype})).fields
    return field


def stored_types(table: DeltaTable) -> dict[str, str]:
    """The name of the feature type of every column that a table has, ours apart."""
    return {
        field.name: str(field.metadata.get(_TYPE, ""))
        for field in table.schema().fields
        if field.name not in (PUBLICATION, PARTITION, EVENT_ID)
    }


def check_types(view: ViewSpec, table: DeltaTable) -> None:
    """Compare the declaration with what is stored; a feature that is not stored yet is no difference.

    Raises:
        DeclarationError: a column is declared with another type than it is stored with, or a key or time is missing.
    """
    stored = stored_types(table)
    place = f"View '{view.name}' (version {view.version})"
    mend = f"give the view version={view.version + 1}: a new version has tables of its own."
    features = {one.name for one in view.features}
    for name, of in view.types.items():
        if name not in stored and name not in features:
            raise DeclarationError(f"{place}: '{name}' is a key or time that its Delta table does not have; {mend}")
        if stored.get(name, str(of)) != str(of):
            raise DeclarationError(
                f"{place}: '{name}' is stored as {stored[name]} and declared {of}. Declare {stored[name]} again, or {mend}"
            )
