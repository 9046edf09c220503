"""Where a view's Delta table lies, what makes a write on a local disk survive power loss, and errors in our words."""

import os
import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from feature_assets.errors import StoreError, StoreFull, StoreUnavailable, StoreUnsafe

LOG = "_delta_log"

_WRITTEN_BACK = 60.0
_UNSYNCED_AT_MOST = 64
_ONE_BY_ONE = 8
CHECKPOINT_EVERY = 20
"""So many versions lie between two checkpoints."""

# Of those before the last few, what stays cuts short how much of the log is read for an old version.
_CHECKPOINTS_KEPT, _LANDMARK = 3, 5_000


@dataclass(frozen=True, slots=True)
class Place:
    """One table: `uri` is an absolute path or an object-store URL, `sync` whether local writes are forced to disk.

    `forced` is shared by all places of a store: up to which version the log of each table is known to be on the disk.
    `forgets`: removed files may be forgotten after so long; never if None.
    """

    view: str
    version: int
    uri: str
    options: Mapping[str, str]
    sync: bool
    forced: dict[str, int]
    forgets: timedelta | None = None

    @property
    def folder(self) -> Path | None:
        """The table's folder, None in an object store."""
        return None if "://" in self.uri else Path(self.uri)

    @property
    def described(self) -> str:
        """What a message calls it."""
        return f"the Delta table of view '{self.view}' (version {self.version}) at {self.uri}"

    def sync_made(self) -> None:
        """Force a new table to disk: its first log entry, and every folder above that may be new."""
        if self.sync and self.folder is not None:
            self.sync_log(0)
            _sync(self.folder, *list(self.folder.parents)[:4])

    def sync_data(self, paths: Iterable[str]) -> None:
        """Force new data files to disk, and their names."""
        if self.sync and self.folder is not None:
            files = [self.folder / path for path in paths]
            _sync(*files, *{file.parent for file in files}, self.folder)

    def sync_log(self, version: int) -> None:
        """Force the log up to a version to disk: delta-rs never does.

        Entries before ours may be another process's, committed but not yet forced: ours is worth nothing without them.
        What is older than a minute the kernel has written back.
        """
        if not self.sync or self.folder is None:
            return
        log = self.folder / LOG
        names = [f"{version:020d}.json", f"{version:020d}.checkpoint.parquet", "_last_checkpoint"]
        recent = time.time() - _WRITTEN_BACK
        known = self.forced.get(self.uri, -1)
        for earlier in range(version - 1, max(version - _UNSYNCED_AT_MOST, known, -1), -1):
            entry = log / f"{earlier:020d}.json"
            if not entry.exists() or entry.stat().st_mtime < recent:
                break
            names.append(entry.name)
        _sync(*(log / name for name in names if (log / name).exists()), log)
        self.forced[self.uri] = version

    def thin_checkpoints(self, version: int) -> None:
        """Remove a checkpoint that later ones stand in for, once there is one of this version. Of a local table.

        Each has every file that was ever removed, since nobody but `vacuum` may forget those: a day of pushes would leave
        tens of gigabytes. The log entries, which say the same, all stay, so that every version can still be read.
        """
        if self.folder is None or not self._checkpoint(version).exists():
            return
        former = version - _CHECKPOINTS_KEPT * CHECKPOINT_EVERY
        if former > 0 and (former + 1) % _LANDMARK:
            self._checkpoint(former).unlink(missing_ok=True)

    def _checkpoint(self, version: int) -> Path:
        return Path(self.uri) / LOG / f"{version:020d}.checkpoint.parquet"

    def explained(self, error: Exception) -> StoreError:
        """What delta-rs, Polars or the system said, as an error of the platform."""
        reason = reason_of(error)
        if StoreFull.is_told_by(error):
            return StoreFull(
                f"No room is left for {self.described} ({reason}). Nothing of this was published and all that was before "
                "is there. Free space, or remove what no version needs: feature-assets vacuum"
            )
        if isinstance(error, OSError):
            return StoreUnavailable(
                f"Cannot reach {self.described}: {reason}. Check the offline setting and its options."
            )
        return StoreUnsafe(f"Cannot read {self.described}: {reason}. What is damaged, says: feature-assets doctor")


def reason_of(error: Exception) -> str:
    """One line of an error, without the colours and stack frames that delta-rs adds."""
    text = re.sub(r"\x1b\[[0-9;]*m|↳", "", str(error))
    text = re.split(r"\s*\n\s+0: ", text)[0]
    return " ".join(text.split())[:300].rstrip(". ") or type(error).__name__


def _sync(*paths: Path) -> None:
    if len(paths) <= _ONE_BY_ONE:
        for path in paths:
            _sync_one(path)
        return
    # Together: a journal that is forced for one takes the others with it.
    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(_sync_one, paths))


def _sync_one(path: Path) -> None:
    # Windows cannot open a folder; there its journal keeps names.
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
