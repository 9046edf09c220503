"""The log of requests: one line each, written in batches.

Python's logging takes longer for one line than reading ten features does. Where a program has arranged for its logging
the lines go there all the same; this is for the server on its own, which has stderr to itself.
"""

import asyncio
import time
from typing import Final, TextIO

_SECONDS: Final = 0.25
_LINES: Final = 1_000


class Journal:
    """Lines with the time in UTC. What a killed process loses of them is a quarter of a second."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._second, self._written = 0, ""
        self._waiting: asyncio.TimerHandle | None = None

    def add(self, line: str) -> None:
        """Write a line soon. Called in the event loop."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._written = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        self._lines.append(f"{self._written}.{int((now - second) * 1e3):03d}Z {line}\n")
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().call_later(_SECONDS, self.flush)
        elif len(self._lines) >= _LINES:
            self.flush()

    def flush(self) -> None:
        """Write what there is."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        lines, self._lines = self._lines, []
        self._stream.write("".join(lines))
        self._stream.flush()
