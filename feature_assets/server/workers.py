"""What several server processes count, put together: whichever of them is asked answers for all.

Each process has a place of its own in a folder that they share, and writes its values there once a second. Places are
held by a file lock, which goes with its process: who comes after one that died, or was replaced, takes its place and
counts on from where it stopped, so that counters never fall and files never pile up.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from time import time
from typing import Final

import msgspec
from filelock import FileLock, Timeout

from feature_assets.server import metrics
from feature_assets.server.meters import Meters
from feature_assets.server.metrics import METRICS, Key, Spread, Value

log = logging.getLogger(__name__)

_SECONDS: Final = 1.0
_LATE: Final = 10.0
"""Seconds after which a process that has not written is taken for gone: its gauges say nothing any more."""


class _Written(msgspec.Struct, array_like=True):
    """The file of one process."""

    at: float
    numbers: list[tuple[str, tuple[str, ...], float]]
    spreads: list[tuple[str, tuple[str, ...], tuple[int, ...], float]]


_decoder = msgspec.msgpack.Decoder(_Written)


class Workers:
    """The values of this process, together with those of the others if there is a folder that they share."""

    def __init__(self, meters: Meters, folder: Path | None = None) -> None:
        self._meters = meters
        self._before: Mapping[Key, Value] = {}
        self._file: Path | None = None
        self._writing = Lock()
        if folder is not None:
            self._file, self._lock = _place(folder)
            self._before = _read(self._file, with_gauges=False)
        meters.watch(lambda: [(metrics.WORKERS, (), 1.0)])

    def collect(self) -> dict[Key, Value]:
        """The values of all processes; those of others are a second old at most.

        What has been told is in the files, for whichever process tells it next: no counter ever falls.
        """
        if self._file is None:
            return self._own()
        self.write()
        return merged(_read(file, with_gauges=True) for file in sorted(self._file.parent.glob("*.counts")))

    async def keep_written(self) -> None:
        """Write the values of this process once a second, for ever."""
        while True:
            await asyncio.sleep(_SECONDS)
            try:
                await asyncio.to_thread(self.write)
            except OSError as error:
                log.warning("metrics cannot be shared error=%s: %s", type(error).__name__, error)

    def write(self, *, last: bool = False) -> None:
        """Write the values of this process for the others; the `last` time without what is true only while it runs."""
        if self._file is None:
            return
        with self._writing:
            own = self._own()
            written = _Written(
                0.0 if last else time(),
                [(name, labels, one) for (name, labels), one in own.items() if not isinstance(one, Spread)],
                [
                    (name, labels, one.counts, one.total)
                    for (name, labels), one in own.items()
                    if isinstance(one, Spread)
                ],
            )
            partial = self._file.with_suffix(".partial")
            partial.write_bytes(msgspec.msgpack.encode(written))
            partial.replace(self._file)
        # Systems that clean up their temporary files go by age, and a lock whose file is gone holds nobody off.
        self._file.with_suffix(".lock").touch()

    def close(self) -> None:
        """Leave the counts to whoever takes the place."""
        if self._file is not None:
            with suppress(OSError):
                self.write(last=True)
            self._lock.release()

    def _own(self) -> dict[Key, Value]:
        return merged([self._before, self._meters.collect()])


def merged(each: Iterable[Mapping[Key, Value]]) -> dict[Key, Value]:
    """The values of several processes as one; see `Metric.across`."""
    found: dict[Key, Value] = {}
    for values in each:
        for key, value in values.items():
            found[key] = _together(key[0], found[key], value) if key in found else value
    return found


def _together(name: str, one: Value, other: Value) -> Value:
    if isinstance(one, Spread) and isinstance(other, Spread):
        counts = tuple(a + b for a, b in zip(one.counts, other.counts, strict=True))
        return Spread(counts, one.total + other.total)
    assert not isinstance(one, Spread)  # noqa: S101 (a metric has one kind)
    assert not isinstance(other, Spread)  # noqa: S101
    return {"sum": one + other, "max": max(one, other), "min": min(one, other)}[METRICS[name].across]


def _place(folder: Path) -> tuple[Path, FileLock]:
    """The first place that nobody holds."""
    number = 0
    while True:
        lock = FileLock(folder / f"{number}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            number += 1
        else:
            return folder / f"{number}.counts", lock


def _read(file: Path, *, with_gauges: bool) -> dict[Key, Value]:
    try:
        written = _decoder.decode(file.read_bytes())
    except FileNotFoundError:
        return {}
    alive = with_gauges and time() - written.at < _LATE
    found: dict[Key, Value] = {
        (name, tuple(labels)): value
        for name, labels, value in written.numbers
        if alive or METRICS[name].kind == "counter"
    }
    found.update(
        {(name, tuple(labels)): Spread(tuple(counts), total) for name, labels, counts, total in written.spreads}
    )
    return found
