"""Lines, written in batches: Python's logging takes longer for one line than reading ten features does.

A line is written within a quarter of a second; that much is lost if the process is killed. What a sink does not take is
counted and not kept: a full disk must not fill the memory too.
"""

import asyncio
import logging
import os
import stat
import time
from pathlib import Path
from typing import Final, Protocol

from feature_assets.errors import ConfigurationError

log = logging.getLogger(__name__)

SECONDS: Final = 0.25
"""How long a line may wait."""

_LINES: Final = 1_000
_LARGEST_PART: Final = 4_096


class Sink(Protocol):
    """Where lines go."""

    def write(self, data: bytes) -> None:
        """Append whole lines. Other processes may append to the same place; lines of theirs stay whole too.

        Raises:
            OSError: not all of it could be written.
        """

    def sync(self) -> None:
        """Return when what was written outlives the machine, as far as the place can do that. Raises OSError."""


class Journal:
    """Lines to one sink. `add` and `flush` are called in the event loop; `lost` counts the lines that were not written."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.lost = 0
        self._lines: list[bytes] = []
        self._waiting: asyncio.TimerHandle | None = None
        self._failing = False

    def add(self, line: bytes) -> None:
        """Write a line soon."""
        self._lines.append(line)
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().call_later(SECONDS, self.flush)
        elif len(self._lines) >= _LINES:
            self.flush()

    def flush(self) -> None:
        """Write what there is."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        try:
            self.sink.write(b"\n".join((*lines, b"")))
            self._failing = False
        except OSError as error:
            self.lost += len(lines)
            if not self._failing:
                # Once, and not for each batch: the log may well be on the same disk.
                log.error("lines cannot be written error=%s lines=%d", error.strerror, len(lines))  # noqa: TRY400
            self._failing = True


class Stream:
    """A file descriptor that is open already, as that of stderr.

    What others write to a pipe at the same time is mixed in between two parts, so each part ends with a line.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._at_once = _LARGEST_PART if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else 1 << 30

    def write(self, data: bytes) -> None:
        """See `Sink`."""
        start = 0
        while start < len(data):
            end = start + self._at_once
            end = len(data) if end >= len(data) else data.rfind(b"\n", start, end) + 1 or data.index(b"\n", start) + 1
            start += os.write(self._descriptor, data[start:end])

    def sync(self) -> None:
        """Nothing: a stream belongs to whoever reads it."""


class AppendedFile:
    """A file that is only appended to, for its owner alone. One that was moved away is begun anew: so logs are rotated.

    Raises:
        ConfigurationError: it cannot be opened for that.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._descriptor = self._opened()
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written to: {error.strerror}.") from error
        self._torn = False

    def write(self, data: bytes) -> None:
        """See `Sink`."""
        if not self._is_in_place():
            os.close(self._descriptor)
            self._descriptor = self._opened()
        data = b"\n" + data if self._torn else data
        while data:
            # One call appends all of it at once, so that lines of several processes do not mix.
            written = os.write(self._descriptor, data)
            self._torn = data[:written][-1:] != b"\n"
            data = data[written:]

    def sync(self) -> None:
        """See `Sink`."""
        os.fsync(self._descriptor)

    def _is_in_place(self) -> bool:
        try:
            there, here = self._path.stat(), os.fstat(self._descriptor)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def _opened(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(self._path, flags, 0o600)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode) and stat.S_IMODE(mode) & 0o022:
            os.close(descriptor)
            raise ConfigurationError(
                f"Others may write into {self._path}, which is evidence. Run: chmod 600 {self._path}"
            )
        return descriptor


class Stamp:
    """The time in UTC, as 2013-02-08T12:00:00.250Z."""

    def __init__(self) -> None:
        self._second, self._written = 0, ""

    def __call__(self) -> str:
        """Of now."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._written = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._written}.{int((now - second) * 1e3):03d}Z"
