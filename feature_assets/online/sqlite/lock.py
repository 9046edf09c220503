"""Whose turn it is to write: a lock over all threads and processes of this machine."""

import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feature_assets.errors import StoreError, StoreFull, StoreUnavailable


class FileLock:
    """An exclusive lock over all threads and processes of this machine; it goes with its process, however that ends."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._seconds = path, seconds
        self._thread_lock = threading.Lock()
        self._descriptor: int | None = None
        self._pid = os.getpid()

    @contextmanager
    def held(self, seconds: float | None = None) -> Iterator[None]:
        """Wait for the turn, at most so long.

        Raises:
            StoreUnavailable: another writer kept it all that time, or the lock file cannot be made.
        """
        seconds = self._seconds if seconds is None else seconds
        self._start_over_after_fork()
        deadline = time.monotonic() + seconds
        if not self._thread_lock.acquire(timeout=seconds):
            raise self._taken(seconds)
        try:
            descriptor = self._acquired(deadline, seconds)
            try:
                yield
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            self._thread_lock.release()

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _start_over_after_fork(self) -> None:
        if self._pid != os.getpid():
            # The descriptor shares the parent's lock, and another thread of the parent may have held the thread lock.
            self._pid, self._thread_lock = os.getpid(), threading.Lock()
            self.close()

    def _acquired(self, deadline: float, seconds: float) -> int:
        pause = 0.0005
        while True:
            descriptor = self._opened()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EINTR):
                    raise self._unusable(error) from error
                if time.monotonic() > deadline:
                    raise self._taken(seconds) from None
                time.sleep(pause)
                pause = min(pause * 1.5, 0.02)
                continue
            if file_identity(self._path) == file_identity(descriptor):
                return descriptor
            self.close()  # Somebody deleted the lock file: whoever comes now makes a new one.

    def _opened(self) -> int:
        if self._descriptor is None:
            try:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise self._unusable(error) from error
        return self._descriptor

    def _unusable(self, error: OSError) -> StoreError:
        kind = StoreFull if StoreFull.is_told_by(error) else StoreUnavailable
        return kind(
            f"The lock file {self._path} cannot be used ({error.strerror}). Writers need it beside the database."
        )

    def _taken(self, seconds: float) -> StoreUnavailable:
        return StoreUnavailable(
            f"Another process has been writing to the online store for {seconds:g} s and keeps {self._path} locked. "
            f"Find it with: fuser {self._path}"
        )


def file_identity(place: Path | int) -> tuple[int, int] | None:
    """What tells one file from another that took its name; None where there is none."""
    try:
        found = os.stat(place)  # noqa: PTH116 (a descriptor, too)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnavailable(f"The online store {place} cannot be opened ({error.strerror}).") from error
    if not stat.S_ISREG(found.st_mode):
        raise StoreUnavailable(f"The online store {place} is not a file. Name one, as in sqlite:{place}/online.db")
    return found.st_dev, found.st_ino
