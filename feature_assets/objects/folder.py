"""Objects as files of a local folder."""

import errno
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from uuid import uuid4

import filelock

from feature_assets.errors import StoreError, StoreFull, StoreUnavailable, StoreUnsafe
from feature_assets.objects.protocol import Objects, PutConflict, Stored

_LOCK_SECONDS = 60.0
_DRAFT_SECONDS = 3600.0
_INSTANT_SECONDS = 2.0
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


class Folder(Objects):
    """Objects as files; the tag of one is the SHA-256 of its bytes.

    Writers of all processes take turns under a lock that the kernel drops when its holder dies, so that the file
    `.lock` never needs removing. Readers take no lock: a file appears whole, by renaming a synced draft.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.place = str(self.root)
        self._seen: dict[str, tuple[tuple[int, ...], str]] = {}
        # A filesystem without flock is refused: the library's substitute for it would outlive a killed process.
        self._lock = filelock.FileLock(
            self.root / ".lock", timeout=_LOCK_SECONDS, poll_interval=0.005, fallback_to_soft=False
        )

    def get(self, path: str) -> Stored | None:
        with self._errors("read", path):
            try:
                data = self._file(path).read_bytes()
            except FileNotFoundError:
                return None
        return Stored(data, _tag(data))

    def changed(self, path: str, etag: str) -> bool:
        # Asked before every push: a look at the file's times is a tenth of reading it.
        with self._errors("read", path):
            try:
                now = _signature(self._file(path).stat())
            except FileNotFoundError:
                return True
        if self._seen.get(path) == (now, etag):
            return False
        stored = self.get(path)
        if stored is None or stored.etag != etag:
            return True
        # Of two writes within a tick of the clock the times may be equal. What was read before the file was an instant old
        # may have been the first of two.
        if time.time() - max(now[1], now[2]) / 1e9 > _INSTANT_SECONDS:
            self._seen[path] = now, etag
        return False

    def put(self, path: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        target = self._file(path)
        with self._errors("write", path):
            draft = self._draft(data)
            try:
                with self._lock:
                    self._check(path, if_match, if_absent=if_absent)
                    _make_folder(target.parent)
                    draft.replace(target)
                    _sync_folder(target.parent)
            finally:
                draft.unlink(missing_ok=True)
        return _tag(data)

    def delete(self, path: str) -> None:
        target = self._file(path)
        with self._errors("delete", path):
            if not target.exists():
                return
            with self._lock:
                target.unlink(missing_ok=True)
                _sync_folder(target.parent)

    def list(self, folder: str) -> Sequence[str]:
        with self._errors("list", folder):
            start = self._file(folder) if folder else self.root
            files = [file.relative_to(self.root) for file in start.rglob("*") if file.is_file()]
        # What begins with a dot is the folder's own: its lock and its drafts.
        return sorted(file.as_posix() for file in files if not file.parts[0].startswith("."))

    def _file(self, path: str) -> Path:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or any(part.startswith(".") for part in parts):
            raise ValueError(f"'{path}' is not the path of an object")
        return self.root.joinpath(*parts)

    def _check(self, path: str, if_match: str | None, *, if_absent: bool) -> None:
        stored = self.get(path) if if_match is not None or if_absent else None
        if if_absent and stored is not None:
            raise PutConflict(f"{self.place}: {path} is there already.")
        if if_match is not None and (stored is None or stored.etag != if_match):
            raise PutConflict(f"{self.place}: {path} was changed by another writer.")

    def _draft(self, data: bytes) -> Path:
        """A synced file with these bytes, on the same filesystem as its target and out of every listing."""
        drafts = self.root / ".drafts"
        _make_folder(drafts)
        _sweep(drafts)
        draft = drafts / uuid4().hex
        try:
            with draft.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        return draft

    @contextmanager
    def _errors(self, action: str, path: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except filelock.Timeout as error:
            raise StoreUnavailable(
                f"Another process has held the lock {self._lock.lock_file} for {_LOCK_SECONDS:.0f} s. "
                f"Find it with: lsof {self._lock.lock_file}"
            ) from error
        except OSError as error:
            if StoreFull.is_told_by(error):
                raise StoreFull(f"No room is left in {self.place} to {action} {path}. Free some and repeat.") from error
            if error.errno in _NO_LOCKS:
                raise StoreUnsafe(
                    f"The filesystem of {self.place} has no file locks, so two publishers at once would overwrite each "
                    "other's work. Use a local disk or a bucket."
                ) from error
            raise StoreUnavailable(
                f"Cannot {action} {path} in {self.place}: {error.strerror or error}. "
                "Check that it is a folder and that this user may use it."
            ) from error


def _signature(told: os.stat_result) -> tuple[int, ...]:
    return told.st_ino, told.st_mtime_ns, told.st_ctime_ns, told.st_size


def _tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _make_folder(folder: Path) -> None:
    """Make the folder and its parents, durably: a synced file in an unsynced folder is lost with the folder."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(drafts: Path) -> None:
    """Remove what killed writers left: no living one takes an hour from draft to rename."""
    for draft in drafts.iterdir():
        try:
            if draft.stat().st_mtime < time.time() - _DRAFT_SECONDS:
                draft.unlink()
        except FileNotFoundError:
            continue
