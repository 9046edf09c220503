"""The one way to commit: take data files out and put others in, exactly once, beside any number of other writers.

delta-rs refuses a commit when another one named the same application transaction after the table was loaded. So every
commit that takes files out names one per partition that it touches: whatever else happens to one partition in between, a
replacement, an erasure, a compaction, this commit is refused and made again from the new state. Disjoint partitions never
collide. An append takes nothing out, and a commit beside it stands; appends name one transaction of their own, so that
each has seen all that was pushed before it.
It does not compare transaction versions, and it can report failure for a commit that landed; hence each commit carries
a token, and after any error the log is asked for it.
"""

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

import polars as pl
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import PostCommitHookProperties

from feature_assets.errors import PublicationConflict, StoreError, StoreFull, StoreUnavailable, StoreUnsafe
from feature_assets.offline.files import DataFile, discard, removed
from feature_assets.offline.place import LOG, Place
from feature_assets.offline.table import MARK, needed
from feature_assets.spec import PARTITION

_ATTEMPTS = 40
_UNANSWERED = 3
_PATIENCE = 0.02
_LONGEST_WAIT = 0.5
_RANDOM_BITS = 10


@dataclass(frozen=True, slots=True)
class Swap:
    """What one commit does: files in and files out of `partitions`, each with its publication afterwards.

    `publication` is new, or None where the partitions keep theirs. `rows` is what the caller reports, `total`
    what the table holds afterwards, which a replacement alone counts. `transactions` are
    those of the application that the commit names, by default one per partition. `told` is added to what the caller has
    the log say. `token` tells this commit from all others.
    """

    kind: Literal["replace", "append", "erase", "drop", "compact"]
    partitions: Mapping[str, int]
    publication: int | None
    added: Sequence[DataFile]
    removed: pl.DataFrame
    rows: int
    transactions: Mapping[str, int] | None = None
    told: Mapping[str, str] = field(default_factory=dict)
    total: int = 0
    token: str = field(default_factory=lambda: uuid4().hex)

    @property
    def changes_data(self) -> bool:
        return self.kind != "compact"

    def discard(self, place: Place) -> None:
        """Remove the files that it would have put in."""
        discard(place, (file.path for file in self.added))


@dataclass(frozen=True, slots=True)
class Landed:
    """A swap that is in the log as `version`, made from the table as it was at `base`."""

    swap: Swap
    version: int
    base: int


@dataclass(frozen=True, slots=True)
class CommitInfo:
    """One version of a table: when and how it came to be.

    `kind` is replace, append, erase, drop, compact, create or evolve, or what Delta calls an operation that is none of these.
    `metadata` is what the caller gave, and the publication.
    """

    version: int
    at: datetime
    kind: str
    partitions: tuple[str, ...]
    metadata: Mapping[str, str]


class _Refused(Exception):
    """Another commit came in between."""


def next_publication(greatest: int) -> int:
    """A publication number: the time in microseconds and 10 random bits, but greater than `greatest` in any case.

    So a clock that was set back, or another host's that is behind, never makes a later publication the lesser.
    """
    stamp = max(time.time_ns() // 1000, (greatest >> _RANDOM_BITS) + 1)
    return stamp << _RANDOM_BITS | random.getrandbits(_RANDOM_BITS)


def committed(
    place: Place,
    prepare: Callable[[DeltaTable, Swap | None], Swap | None],
    table: DeltaTable,
    metadata: Mapping[str, str],
) -> Landed | None:
    """Prepare a swap from the table as it is, commit it, and begin again when another writer was first.

    Args:
        prepare: makes the swap from a loaded table, None where there is nothing to do. Given what it made at the last
            attempt, which it returns again or discards.
        table: the table, just loaded.

    Raises:
        PublicationConflict: others were first at every attempt.
        StoreError: the store failed. The message says if it is not known whether the commit landed.
    """
    swap: Swap | None = None
    for attempt in range(_ATTEMPTS):
        swap = prepare(table, swap)
        if swap is None:
            return None
        base = table.version()
        try:
            return Landed(swap, _commit(place, table, swap, metadata, patient=attempt < _UNANSWERED), base)
        except _Refused:
            time.sleep(min(_LONGEST_WAIT, _PATIENCE * 1.5**attempt) * random.random())
            table = needed(place)
    if swap is not None:
        swap.discard(place)
    raise PublicationConflict(
        f"{place.view}: other publications of the same partitions were first {_ATTEMPTS} times in a row; nothing of this "
        "one was written. Publish again when fewer runs write these partitions."
    )


def _commit(place: Place, table: DeltaTable, swap: Swap, metadata: Mapping[str, str], *, patient: bool) -> int:
    """Commit through the handle that the swap was made from; the version that it became."""
    base = table.version()
    try:
        _send(table, swap, metadata)
        table.update_incremental()
        version = table.version() if table.version() == base + 1 else _landed(place, table, swap.token, base)
    except (DeltaError, OSError) as error:
        version = _after_an_error(place, swap.token, base, error)
        if version is None:
            # A bucket may answer 409 or 503 to the put of a log entry; it did not land, so it may be sent again.
            unanswered = patient and place.folder is None and isinstance(error, OSError)
            if (unanswered or isinstance(error, CommitFailedError)) and not StoreFull.is_told_by(error):
                raise _Refused from error
            swap.discard(place)
            raise place.explained(error) from error
    if version is None:
        raise StoreUnsafe(
            f"A commit to {place.described} was accepted and is not in its log. Run: feature-assets doctor"
        )
    place.sync_log(version)
    place.thin_checkpoints(version)
    return version


def _send(table: DeltaTable, swap: Swap, metadata: Mapping[str, str]) -> None:
    told = {"publication": str(swap.publication)} if swap.publication is not None else {}
    transactions = swap.transactions or {application(name): number for name, number in swap.partitions.items()}
    ours = {
        "kind": swap.kind,
        "token": swap.token,
        "partitions": list(swap.partitions),
        "metadata": {**metadata, **swap.told, **told},
    }
    table.create_write_transaction(
        [
            *(file.added(changes_data=swap.changes_data) for file in swap.added),
            *removed(swap.removed, changes_data=swap.changes_data),
        ],
        "append",
        table.schema(),
        [PARTITION],
        commit_properties=CommitProperties(
            app_transactions=[Transaction(name, number) for name, number in transactions.items()],
            custom_metadata={MARK: ours},
        ),
        post_commithook_properties=PostCommitHookProperties(create_checkpoint=True),
    )


def application(partition: str) -> str:
    """The id of the application transaction that guards a partition; its version is the partition's publication."""
    return f"feature-assets/{partition}"


def _after_an_error(place: Place, token: str, base: int, error: Exception) -> int | None:
    try:
        return _landed(place, needed(place), token, base)
    except StoreError as second:
        raise StoreUnavailable(
            f"{place.described}: the answer to a commit was lost ({place.explained(error)}), and the log cannot be read "
            f"to see whether it landed ({second}). Publish again: that leaves the same rows either way."
        ) from error


def _landed(place: Place, table: DeltaTable, token: str, base: int) -> int | None:
    """The version after `base` that carries the token."""
    for version, information in _entries(place, base + 1, table.version()):
        if (information.get(MARK) or {}).get("token") == token:
            return version
    return None


def history(place: Place, table: DeltaTable, limit: int | None) -> list[CommitInfo]:
    """What the log says of its versions, the latest first."""
    last = table.version()
    first = 0 if limit is None else max(0, last - limit + 1)
    return [_info(version, entry) for version, entry in reversed(_entries(place, first, last))]


def _entries(place: Place, first: int, last: int) -> list[tuple[int, dict[str, Any]]]:
    """The commit information of some versions, from their log entries.

    Not from `DeltaTable.history`, which counts versions down from that of its table while it lists the newest entries:
    beside another writer it tells versions that are not theirs.
    """
    paths = {f"{place.uri}/{LOG}/{version:020d}.json": version for version in range(first, last + 1)}
    if not paths:
        return []
    lines = pl.scan_lines(
        list(paths), include_file_paths="path", glob=False, storage_options=dict(place.options) or None
    )
    try:
        found = lines.filter(pl.col("line").str.starts_with('{"commitInfo":')).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise place.explained(error) from error
    entries = {paths[path]: json.loads(line)["commitInfo"] for line, path in found.select("line", "path").iter_rows()}
    return sorted(entries.items(), key=lambda entry: entry[0])


def _info(version: int, entry: Mapping[str, Any]) -> CommitInfo:
    ours = entry.get(MARK) or {}
    return CommitInfo(
        version=version,
        at=datetime.fromtimestamp(entry.get("timestamp", 0) / 1000, UTC),
        kind=str(ours.get("kind") or entry.get("operation", "")),
        partitions=tuple(ours.get("partitions") or ()),
        metadata={name: str(value) for name, value in (ours.get("metadata") or {}).items()},
    )
