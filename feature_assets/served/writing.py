"""From answers to rows, beside the answers: taking one costs a look at its size, all else is done in a thread.

What waits to be written is bounded; what comes beyond is dropped and counted. It is written every few seconds, and when
the server ends; a killed process loses what it took since. What was written is there once, also where the answer to a
commit was lost.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Condition, Thread
from time import monotonic
from typing import Any, Final
from uuid import uuid4

import polars as pl

from feature_assets.errors import DeclarationError, FeatureAssetsError, StoreError
from feature_assets.lookup import OnlineResponse
from feature_assets.lookup.entities import EntityReader
from feature_assets.offline import InJournal, OfflineStore
from feature_assets.served.shape import DAY, REGISTRY, REQUEST_ID, REQUEST_ROW, SERVED_AT, LogShape
from feature_assets.spec import EVENT_ID, PARTITION, SEQUENCE
from feature_assets.types import FeatureType, Int64, String, Timestamp

log = logging.getLogger(__name__)

_SHAPES: Final = 100
"""Versions of a service's log that are tried: each is a change of a type, or a feature that went."""

_CROWDED: Final = 64
"""So many small files of a day are made one."""


def is_sampled(request_id: bytes, rate: float) -> bool:
    """Whether this request is among those that are logged: the same wherever and whenever it is asked."""
    if rate >= 1:
        return True
    return int.from_bytes(hashlib.blake2b(request_id, digest_size=8).digest()) < rate * 2**64


@dataclass(frozen=True, slots=True)
class Served:
    """One answer: what was asked and found, `at` what moment, in microseconds."""

    shape: LogShape
    registry: str
    request_id: str
    at: int
    entities: Any
    answer: OnlineResponse
    size: int


@dataclass(slots=True)
class _Journal:
    """Numbers the rows of one shape, in the order in which they are written: what is tried again has its numbers again.

    A shape has a journal of its own, for each fails and is tried again by itself.
    """

    id: str = field(default_factory=lambda: uuid4().hex)
    written: int = 0


@dataclass
class Counts:
    """What became of rows, by service."""

    written: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)


class ServedLog:
    """Takes answers and writes them. Safe to share between threads."""

    def __init__(self, offline: OfflineStore, *, seconds: float, max_bytes: int) -> None:
        self._offline, self._seconds, self._most = offline, seconds, max_bytes
        self._changed, self._waiting, self._bytes, self._ends = Condition(), list[Served](), 0, False
        self._thread: Thread | None = None
        self._journals: dict[bytes, _Journal] = {}
        self.counts = Counts()

    @property
    def waiting_bytes(self) -> int:
        """The answers that wait to be written, as large as they were sent."""
        return self._bytes

    def take(self, served: Served) -> None:
        """Have it written soon, or drop it if too much waits."""
        with self._changed:
            if self._ends or self._bytes + served.size > self._most:
                _add(self.counts.dropped, served.shape.table.name, len(served.answer))
                return
            self._waiting.append(served)
            self._bytes += served.size
            if self._thread is None:
                self._thread = Thread(target=self._run, name="feature-log", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Write what waits, and end."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        ends = False
        while not ends:
            with self._changed:
                due = monotonic() + self._seconds
                while not self._ends and (left := due - monotonic()) > 0:
                    self._changed.wait(left)
                ends, waiting = self._ends, self._waiting
                self._waiting = []
            by_shape: dict[bytes, list[Served]] = {}
            for one in waiting:
                by_shape.setdefault(one.shape.digest, []).append(one)
            for several in by_shape.values():
                self._write(several, last=ends)

    def _write(self, several: Sequence[Served], *, last: bool) -> None:
        shape, size = several[0].shape, sum(one.size for one in several)
        service, rows = shape.table.name, sum(len(one.answer) for one in several)
        try:
            self._append(shape, rows_of(shape, several))
        except Exception as error:  # noqa: BLE001 (a log that cannot be written must not end the thread that writes it)
            log.warning(
                "served features cannot be logged service=%s error=%s: %s", service, type(error).__name__, error
            )
            _add(self.counts.failures, service, 1)
            if isinstance(error, StoreError) and not last:
                # They go on counting as waiting: what comes meanwhile is dropped when it is too much.
                with self._changed:
                    self._waiting[:0] = several
                return
            # Whether they landed after all is not asked again, so their numbers may not be used again.
            self._journals.pop(shape.digest, None)
            _add(self.counts.dropped, service, rows)
        else:
            _add(self.counts.written, service, rows)
        with self._changed:
            self._bytes -= size

    def _append(self, shape: LogShape, rows: pl.DataFrame) -> None:
        journal = self._journals.setdefault(shape.digest, _Journal())
        first = journal.written + 1
        numbers = pl.int_range(first, first + rows.height, dtype=pl.Int64, eager=True)
        numbered = rows.with_columns(numbers.alias(SEQUENCE))
        for version in range(1, _SHAPES):
            try:
                # No request comes twice, so nothing that is stored has to be compared with it.
                self._offline.append(
                    shape.at(version),
                    numbered,
                    numbered=InJournal(journal.id),
                    metadata={"kind": "served"},
                    known_by="number",
                )
            except DeclarationError:
                if version == _SHAPES - 1:
                    raise
                continue  # the service has changed in a way that this table cannot follow
            break
        journal.written += rows.height
        try:
            self._offline.compact_pushes(shape.at(version), rows[PARTITION].unique().to_list(), more_than=_CROWDED)
        except FeatureAssetsError as error:
            log.info("compaction postponed service=%s error=%s", shape.table.name, type(error).__name__)


def _add(counts: dict[str, int], name: str, by: int) -> None:
    counts[name] = counts.get(name, 0) + by


def rows_of(shape: LogShape, several: Sequence[Served]) -> pl.DataFrame:
    """The rows of some answers of one shape, with the columns of its table and those that an append needs."""
    columns: dict[str, list[Any]] = {name: [] for name in (REQUEST_ID, REQUEST_ROW, SERVED_AT, REGISTRY)}
    types: dict[str, FeatureType] = {REQUEST_ID: String, REQUEST_ROW: Int64, SERVED_AT: Timestamp, REGISTRY: String}
    types |= shape.keys
    types |= shape.request
    types |= {name: of for name, (_, of) in shape.outputs.items()}
    types |= {f"{name}__status": String for name in shape.outputs}
    types |= {f"event_timestamp__{read}": Timestamp for read in shape.events}
    columns = {name: [] for name in types}
    reader, keys = EntityReader(shape.plan), len(shape.keys)
    for one in several:
        answer, count = one.answer, len(one.answer)
        columns[REQUEST_ID] += [one.request_id] * count
        columns[REQUEST_ROW] += range(count)
        columns[SERVED_AT] += [one.at] * count
        columns[REGISTRY] += [one.registry] * count
        _, asked = reader.read(one.entities)
        for name, values in zip(reader.names, asked, strict=True):
            if name in shape.keys or name in shape.request:
                columns[name] += values
        statuses = answer.statuses()
        for name, (position, _) in shape.outputs.items():
            columns[name] += answer.values[keys + position]
            columns[f"{name}__status"] += statuses[keys + position]
        for read, position in shape.events.items():
            columns[f"event_timestamp__{read}"] += answer.event_micros(answer.names[keys + position])
    moments = {SERVED_AT, *(f"event_timestamp__{read}" for read in shape.events)}
    frame = pl.DataFrame(
        [
            pl.Series(name, values, pl.Int64).cast(Timestamp.polars)
            if name in moments
            else types[name].to_frame(name, values)
            for name, values in columns.items()
        ]
    )
    return frame.with_columns(
        pl.col(SERVED_AT).dt.strftime(DAY).alias(PARTITION), pl.lit(None, pl.String).alias(EVENT_ID)
    )
