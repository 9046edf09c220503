"""Removing files that no version needs."""

import math
from collections.abc import Sequence
from datetime import timedelta

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from feature_assets.errors import RequestError
from feature_assets.offline.files import discard
from feature_assets.offline.place import Place

_UNDER_WAY = timedelta(days=1)


def vacuumed(
    place: Place, table: DeltaTable, older_than: timedelta, keep: Sequence[int], *, dry_run: bool
) -> list[str]:
    """See `OfflineStore.vacuum`."""
    if older_than < timedelta(0):
        raise RequestError(f"older_than is {older_than}; give the age that removed files have to have reached.")
    # First what commits took out, then what no commit ever named: only the former is surely not just being written.
    # A table that was made anew has not had them.
    kept = [version for version in keep if version <= table.version()]
    files = _removed(place, table, older_than, kept, dry_run=dry_run, full=False)
    files += _removed(place, table, max(older_than, _UNDER_WAY), kept, dry_run=dry_run, full=True)
    return sorted(set(files))


def _removed(
    place: Place, table: DeltaTable, older_than: timedelta, keep: list[int], *, dry_run: bool, full: bool
) -> list[str]:
    # delta-rs enters a vacuum into the log first, for which a disk that has to be vacuumed may have no room.
    only_told = dry_run or place.folder is not None
    try:
        files = table.vacuum(
            retention_hours=math.ceil(older_than / timedelta(hours=1)),
            dry_run=only_told,
            # The table's own retention is for ever, so that no other tool removes what a training set needs.
            enforce_retention_duration=False,
            full=full,
            keep_versions=keep or None,
        )
        if place.folder is not None:
            # The log names them for ever.
            files = [path for path in files if (place.folder / path).exists()]
        if not dry_run:
            discard(place, files)
    except (DeltaError, OSError) as error:
        raise place.explained(error) from error
    return files
