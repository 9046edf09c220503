"""One SQLite file and its connections: one that writes, one that reads for each thread, and the lock that writers share.

Every SQLite from 3.7.0 to 3.51.2 can corrupt a WAL when a checkpoint races a writer. So a writer holds the file lock
`<path>.lock` for its whole transaction and the checkpoint after it, nobody checkpoints otherwise (`wal_autocheckpoint`
is off, and a read-only connection never does), and `mmap` stays off. Readers take no turn: in WAL mode they neither
wait for the writer nor hold it up.
"""

import logging
import os
import shutil
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

from feature_assets.errors import StoreError, StoreFull, StoreUnavailable, StoreUnsafe
from feature_assets.online.sqlite.lock import FileLock, file_identity

log = logging.getLogger(__name__)

_BUSY_SECONDS = 30.0
_TRUST_SECONDS = 1.0
_READER_CACHE_KIB = 32 * 1024
_WRITER_CACHE_KIB = 64 * 1024

# What a child process inherits by fork() must be neither used nor closed there: POSIX locks stay with the parent.
_inherited: list[object] = []


class FileMissing(StoreUnavailable):
    """There is no such file (any more)."""


class Reading:
    """The read-only connection of one thread, and `execute` of its one cursor."""

    __slots__ = ("__weakref__", "connection", "execute", "identity", "pid", "trusted_until")

    def __init__(self, connection: sqlite3.Connection, identity: tuple[int, int] | None) -> None:
        self.connection, self.identity = connection, identity
        self.execute: Callable[..., sqlite3.Cursor] = connection.cursor().execute
        self.pid = os.getpid()
        self.trusted_until = time.monotonic() + _TRUST_SECONDS

    @classmethod
    def of(cls, path: Path) -> Self:
        identity = file_identity(path)
        return cls(_connect(path, "ro", _READER_CACHE_KIB), identity)

    def close(self) -> None:
        self.trusted_until = 0.0
        if self.pid == os.getpid():
            self.connection.close()
        else:
            _inherited.append(self.connection)

    __del__ = close


class DatabaseFile:
    """A database file that may not exist yet, be replaced, or be shared with other processes.

    `checkpoint_bytes` is how large the WAL grows before its pages are moved into the file.
    """

    def __init__(self, path: Path, *, lock_seconds: float = 300.0, checkpoint_bytes: int = 4 << 20) -> None:
        self.path = path
        self._local = threading.local()
        self._readings: weakref.WeakSet[Reading] = weakref.WeakSet()
        self._writer = _Writer(path, FileLock(path.with_name(path.name + ".lock"), lock_seconds), checkpoint_bytes)
        self._closed = False
        # Also at the end of the process: an orderly close leaves one plain file behind.
        self._finalizer = weakref.finalize(self, _let_go, self._local, self._writer)

    def reading(self) -> Reading:
        """This thread's connection.

        Raises:
            FileMissing: nothing was ever written.
            StoreUnavailable: the file cannot be opened.
        """
        found: Reading | None = getattr(self._local, "reading", None)
        if found is None or found.pid != os.getpid() or time.monotonic() > found.trusted_until:
            return self.renewed_reading()
        return found

    def renewed_reading(self) -> Reading:
        """This thread's connection, to the file that is there now; `reading` asks once a second."""
        self._refuse_if_closed()
        found: Reading | None = getattr(self._local, "reading", None)
        if found is not None and found.pid == os.getpid() and found.identity == file_identity(self.path):
            found.trusted_until = time.monotonic() + _TRUST_SECONDS
            return found
        self.forget_reading()
        with self.translating():
            made = self._local.reading = Reading.of(self.path)
        self._readings.add(made)
        return made

    def forget_reading(self) -> None:
        """Let go of this thread's connection, as after an error; the next read opens another."""
        _forget_reading(self._local)

    @contextmanager
    def scanning(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own for a long read: it keeps one state of the file until it ends."""
        self._refuse_if_closed()
        with self.translating():
            reading = Reading.of(self.path)
            try:
                reading.execute("BEGIN")
                yield reading.connection
            finally:
                reading.close()

    @contextmanager
    def writing(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        """One write transaction: all that happens inside is durable when this ends, or none of it ever happened.

        Raises:
            FileMissing: there is no file, and `create` is false.
            StoreFull, StoreUnavailable, StoreUnsafe: nothing was written.
        """
        self._refuse_if_closed()
        before = self._writer.file_identity
        with self.translating(), self._writer.transaction(create=create) as connection:
            yield connection
        if self._writer.file_identity != before:
            # What was just written is read from now on, although the file is another one.
            for reading in self._all_readings():
                reading.trusted_until = 0.0

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Raise what SQLite says as errors of ours."""
        try:
            yield
        except sqlite3.Error as error:
            raise self.translated(error) from error

    def translated(self, error: sqlite3.Error) -> Exception:
        """The error of ours that says the same; the error itself where it is a mistake in this code."""
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return error
        return _translated(error, code & 0xFF, self.path)

    def close(self) -> None:
        """Close every connection. No other thread may be using one."""
        self._closed = True
        for reading in self._all_readings():
            reading.close()
        self._finalizer()

    def _all_readings(self) -> list[Reading]:
        while True:
            # No lock: a child of fork() would inherit one that another thread holds.
            with suppress(RuntimeError):  # A thread came in between.
                return list(self._readings)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"The online store {self.path} was closed; open it again.")


def _forget_reading(local: threading.local) -> None:
    found = local.__dict__.pop("reading", None)
    if found is not None:
        found.close()


def _let_go(local: threading.local, writer: "_Writer") -> None:
    _forget_reading(local)
    writer.close()


class _Writer:
    """The writing connection, and whose turn it is to use it."""

    def __init__(self, path: Path, lock: "FileLock", checkpoint_bytes: int) -> None:
        self._path, self._lock, self._checkpoint_bytes = path, lock, checkpoint_bytes
        self._wal = path.with_name(path.name + "-wal")
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self.file_identity: tuple[int, int] | None = None
        self._left_in_wal = 0

    @contextmanager
    def transaction(self, *, create: bool) -> Iterator[sqlite3.Connection]:
        if create:
            _make_folder(self._path.parent)
        elif file_identity(self._path) is None:
            raise _missing(self._path)
        with self._lock.held():
            connection = self._opened(create=create)
            # IMMEDIATE: a transaction that reads first and writes later cannot wait for a foreign writer, SQLite fails
            # it at once (lang_transaction.html).
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            # Also when it is stopped: a connection that stays in its transaction would hold up every writer.
            except BaseException:
                self._roll_back()
                raise
            self._checkpoint(connection)

    def _opened(self, *, create: bool) -> sqlite3.Connection:
        identity = file_identity(self._path)
        if self._pid != os.getpid() or identity is None or identity != self.file_identity:
            self._let_go()
        if self._connection is None:
            self._connection = _connect(self._path, "rwc" if create else "rw", _WRITER_CACHE_KIB)
            self._pid, self.file_identity, self._left_in_wal = os.getpid(), file_identity(self._path), 0
            self._settings(self._connection)
        return self._connection

    def _settings(self, connection: sqlite3.Connection) -> None:
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            self._let_go()
            raise StoreUnsafe(
                f"SQLite cannot keep a write-ahead log beside {self._path} (journal mode '{mode}'). "
                "Put the online store on a local file system."
            )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=0")

    def _roll_back(self) -> None:
        try:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._let_go()

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Move a large WAL into the file. The commit stands whatever comes of it."""
        try:
            size = self._wal.stat().st_size
            if size < self._left_in_wal + self._checkpoint_bytes:
                return
            # TRUNCATE moves what it can, and cuts the WAL if no reader is in its way; it need not wait long for one.
            connection.execute("PRAGMA busy_timeout=20")
            try:
                busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                connection.execute(f"PRAGMA busy_timeout={int(_BUSY_SECONDS * 1000)}")
            self._left_in_wal = size if busy else 0
        except (sqlite3.Error, OSError) as error:
            log.warning("checkpoint postponed store=%s reason=%s", self._path, error)

    def close(self) -> None:
        """The last connection to close moves the WAL into the file; it does so in its turn, like every checkpoint."""
        if self._connection is None:
            return
        if self._pid != os.getpid():
            self._let_go()
            return
        with suppress(StoreError), self._lock.held(seconds=5.0):
            self._let_go()
        # Who keeps the lock has the file open, so this connection is not the last.
        self._let_go()
        self._lock.close()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._pid != os.getpid():
            _inherited.append(connection)
            return
        with suppress(sqlite3.Error):
            connection.close()


def _connect(path: Path, mode: str, cache_kib: int) -> sqlite3.Connection:
    if mode != "rwc" and file_identity(path) is None:
        raise _missing(path)
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        connection.execute(f"PRAGMA cache_size=-{cache_kib}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _missing(path: Path) -> FileMissing:
    return FileMissing(
        f"There is no online store at {path}: nothing was materialised there. "
        "Run: feature-assets materialize <view> --latest"
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"The folder {folder} of the online store cannot be made ({error.strerror}).") from error


def _translated(error: sqlite3.Error, code: int, path: Path) -> StoreError:
    where = f"The online store {path}"
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _no_room(path)):
        return StoreFull(
            f"{where} has no room left ({error}); what was acknowledged before is still there. "
            f"Free some space on the file system of {path.parent} and repeat."
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreUnsafe(
            f"{where} is damaged ({error}). Move it away and rebuild it from the offline store: "
            "feature-assets reconcile --force"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
        return StoreUnavailable(f"{where} is locked by another program ({error}). Find it with: fuser {path}")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH):
        return StoreUnavailable(
            f"{where} cannot be opened ({error}). Its file and folder must be writable by this user."
        )
    if code == sqlite3.SQLITE_IOERR:
        return StoreUnavailable(f"{where} cannot be read or written ({error}). Look at the disk and repeat.")
    return StoreError(f"{where} refused: {error}.")


def _no_room(path: Path) -> bool:
    """SQLite calls it an input/output error when its shared-memory file cannot grow, or a file-size limit is reached."""
    try:
        free = shutil.disk_usage(path.parent).free
        limit = _file_size_limit()
        return free < (1 << 20) or max(_size(path), _size(path.with_name(path.name + "-wal"))) + (1 << 16) > limit
    except OSError:
        return False


def _file_size_limit() -> float:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return float("inf") if soft == resource.RLIM_INFINITY else soft


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
