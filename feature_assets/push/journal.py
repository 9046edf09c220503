"""What makes the answer to a push durable: a file that only grows, forced to disk before anybody is answered.

Each process has a journal of its own, a folder that it holds a lock on, so no two write to one file. A process that comes
later takes up a journal whose process is gone, with all that waits in it; so there are as many as ever ran at once.

    <push>/<journal>/lock
    <push>/<journal>/00001764040000000000.rows     a segment, named by the first sequence number that it may have

A segment is the line `feature-assets push 1` and then entries: a mark, the length of the body, its CRC-32, the body. One
entry is written and forced at a time. So at most the last one can be torn, and then nobody was answered for it.
"""

import logging
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from struct import Struct
from uuid import uuid4

import filelock
import msgspec

from feature_assets.errors import StoreFull, StoreUnavailable, StoreUnsafe

log = logging.getLogger(__name__)

_HEAD = b"feature-assets push 1\n"
_MARK = b"\xf5\xabPR"
_FRAME = Struct("<4sII")
_SUFFIX = ".rows"
SEGMENT_BYTES = 16 << 20


class Part(msgspec.Struct, array_like=True, frozen=True):
    """Admitted rows of one view, as an Arrow stream; `view` is its declaration when they were admitted, as JSON."""

    source: str
    view: bytes
    data: bytes


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """The pushes that were answered together; `last` is the sequence number of the last of them."""

    last: int
    parts: list[Part]


class PushJournal:
    """One process's journal. One thread writes; one reads.

    `last` is the last number that was given, `written` the last that is there.
    """

    def __init__(self, folder: Path, lock: filelock.BaseFileLock, *, sync: bool) -> None:
        self.folder, self._lock, self._sync = folder, lock, sync
        self._pid = os.getpid()
        segments = self.segments()
        for segment in segments:
            _cut_torn_end(segment)
        entries = [entry.last for segment in segments for entry in read(segment)]
        named = [int(segment.stem) - 1 for segment in segments]
        self.last = max([0, *entries, *named])
        self.written = max(entries, default=0)
        self._file: int | None = None
        self._size = 0
        # Where each segment was read up to: the number of an entry, and the place behind it.
        self._places: dict[Path, tuple[int, int]] = {}

    @property
    def id(self) -> str:
        return self.folder.name

    @classmethod
    def taken(cls, root: Path, *, sync: bool, make: bool = True) -> Iterator["PushJournal"]:
        """Journals that no process holds, each held from then on; in the end a new one, if it is to be made."""
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            folders = sorted(folder for folder in root.iterdir() if folder.is_dir())
        except OSError as error:
            raise _explained(error, root) from error
        for folder in folders:
            lock = filelock.FileLock(folder / "lock", mode=0o600)
            try:
                lock.acquire(blocking=False)
            except filelock.Timeout:
                continue
            yield cls(folder, lock, sync=sync)
        while make:
            folder = root / uuid4().hex
            folder.mkdir(mode=0o700)
            lock = filelock.FileLock(folder / "lock", mode=0o600)
            try:
                lock.acquire(blocking=False)
            except filelock.Timeout:
                # Another process looked for journals that nobody holds just now, and has this one.
                continue
            if sync:
                _force(root)
            yield cls(folder, lock, sync=sync)
            return

    def segments(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{_SUFFIX}"))

    def entries(self, after: int) -> Iterator["Entry"]:
        """The entries whose last number is greater than `after`, in their order."""
        segments = self.segments()
        # Whatever lies before a segment has numbers below its name.
        first = max((at for at, each in enumerate(segments) if int(each.stem) <= after), default=0)
        for segment in segments[first:]:
            place = self._places.get(segment, (0, 0))
            start = place[1] if place[0] <= after else 0
            for entry, end in _read(segment, start):
                if end > self._places.get(segment, place)[1]:
                    self._places[segment] = entry.last, end
                if entry.last > after:
                    yield entry

    def bytes(self) -> int:
        return sum(segment.stat().st_size for segment in self.segments())

    def numbers(self, count: int) -> range:
        """The next sequence numbers. They follow the clock, so that a journal that was put back never uses one again."""
        first = max(self.last + 1, time.time_ns() // 1000)
        self.last = first + count - 1
        return range(first, first + count)

    def write(self, entry: Entry) -> None:
        """Add an entry; when this returns, it survives.

        Raises:
            StoreFull, StoreUnavailable: it is not there.
        """
        body = msgspec.msgpack.encode(entry)
        frame = _FRAME.pack(_MARK, len(body), zlib.crc32(body)) + body
        try:
            if self._file is None or self._size > SEGMENT_BYTES:
                self._open(min(self.last, entry.last))
            assert self._file is not None  # noqa: S101 (just opened)
            view = memoryview(frame)
            while view:
                view = view[os.write(self._file, view) :]
            if self._sync:
                os.fdatasync(self._file)
            self._size += len(frame)
            self.written = entry.last
        except OSError as error:
            self._give_up()
            raise _explained(error, self.folder) from error

    def _open(self, first: int) -> None:
        self._close_file()
        self._size = 0
        while (path := self.folder / f"{first:020d}{_SUFFIX}").exists():
            first += 1
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        os.write(self._file, _HEAD)
        self._size = len(_HEAD)
        if self._sync:
            os.fsync(self._file)
            _force(self.folder)

    def _give_up(self) -> None:
        """Take back what may have been written in part; what comes next goes to another file."""
        if self._file is not None:
            with suppress(OSError):  # Then it is cut off when it is read.
                os.ftruncate(self._file, self._size)
            self._close_file()

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def remove_up_to(self, last: int) -> None:
        """Remove segments of which every entry is published; the one that is being written stays."""
        segments = self.segments()
        for segment, following in pairwise(segments):
            if int(following.stem) <= last:
                segment.unlink(missing_ok=True)
                self._places.pop(segment, None)

    def renew(self) -> None:
        """Begin an empty segment and remove the others, of which everything is published. Nobody writes meanwhile."""
        former = self.segments()
        if self._file is None or self._size == len(_HEAD):
            return
        try:
            self._open(self.last + 1)
        except OSError as error:
            self._give_up()
            log.info("journal is not renewed journal=%s error=%s", self.id, error.strerror)
            return
        for segment in former:
            segment.unlink(missing_ok=True)
        self._places.clear()

    def close(self, *, published: int) -> None:
        """Let go of it. If all is published, an empty segment remembers the last number."""
        if self._pid != os.getpid():
            return
        self._close_file()
        if published >= self.written and (former := self.segments()):
            kept = self.folder / f"{self.last + 1:020d}{_SUFFIX}"
            if kept not in former:
                kept.write_bytes(_HEAD)
                if self._sync:
                    _force(kept, self.folder)
            for segment in former:
                if segment != kept:
                    segment.unlink(missing_ok=True)
        self._lock.release()


def entries_of(folder: Path) -> Iterator[Entry]:
    """What waits in a journal, whoever holds it; what is published meanwhile may be among it or not."""
    for segment in sorted(folder.glob(f"*{_SUFFIX}")):
        with suppress(FileNotFoundError):
            yield from read(segment)


def read(segment: Path, after: int = 0) -> Iterator[Entry]:
    """The whole entries of a segment whose last number is greater than `after`.

    Raises:
        StoreUnsafe: an entry is damaged and others follow it.
    """
    for entry, _ in _read(segment):
        if entry.last > after:
            yield entry


def _read(segment: Path, start: int = 0) -> Iterator[tuple[Entry, int]]:
    """The whole entries from a place on, each with the place behind it."""
    start = start or len(_HEAD)
    with segment.open("rb") as file:
        file.seek(start)
        data = file.read()
    place = 0
    while (found := _entry(data, place)) is not None:
        entry, place = found
        yield entry, start + place
    _refuse_damage(segment, data, place, start)


def _entry(data: bytes, place: int) -> tuple[Entry, int] | None:
    if place + _FRAME.size > len(data):
        return None
    mark, length, crc = _FRAME.unpack_from(data, place)
    body = data[place + _FRAME.size : place + _FRAME.size + length]
    if mark != _MARK or len(body) < length or zlib.crc32(body) != crc:
        return None
    try:
        return msgspec.msgpack.decode(body, type=Entry), place + _FRAME.size + length
    except msgspec.DecodeError:
        return None


def _refuse_damage(segment: Path, data: bytes, place: int, start: int = 0) -> None:
    later = data.find(_MARK, place + 1)
    while later >= 0:
        if _entry(data, later) is not None:
            raise StoreUnsafe(
                f"The journal {segment} is damaged at byte {start + place}, and acknowledged rows follow. Restore the file from a "
                "backup, or move it away and push again what was pushed since."
            )
        later = data.find(_MARK, later + 1)


def _cut_torn_end(segment: Path) -> None:
    data = segment.read_bytes()
    place = len(_HEAD)
    while (found := _entry(data, place)) is not None:
        place = found[1]
    _refuse_damage(segment, data, place)
    if place < len(data):
        os.truncate(segment, place)


def _force(*paths: Path) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _explained(error: OSError, folder: Path) -> StoreFull | StoreUnavailable:
    if StoreFull.is_told_by(error):
        return StoreFull(
            f"No room is left for pushed rows at {folder}; none of these was taken. Free space and push again."
        )
    return StoreUnavailable(f"Pushed rows cannot be kept at {folder}: {error.strerror}. None of these was taken.")
