"""From a push to its answer.

Whoever pushes while nobody else does takes all pushes that have gathered, admits them, writes one entry to the journal,
forces it to disk once, answers them all, and hands on to one of those who have come meanwhile. A thread publishes what is
in the journal, everything that has gathered in one commit, and lives only as long as something waits.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from itertools import groupby
from typing import Final

import polars as pl

from feature_assets.config import Settings
from feature_assets.errors import RequestError, StoreFull, StoreUnavailable
from feature_assets.offline import OfflineStore
from feature_assets.online.protocol import OnlineStore
from feature_assets.push.admission import PUSH, Admission, Push, Taken
from feature_assets.push.journal import Entry, Part, PushJournal
from feature_assets.push.publishing import Publisher, drain_orphans, place_of_journals
from feature_assets.registry import Registry
from feature_assets.settlement import reached
from feature_assets.spec import SEQUENCE, ViewSpec

log = logging.getLogger(__name__)

_MODES: Final = ("online", "offline", "online_and_offline")
_LONGEST_ID: Final = 200
_MOST_AT_ONCE: Final = 256
_PAUSE: Final = 1.0
_GATHERING: Final = 0.0005
_LOOK_EVERY: Final = 0.1


@dataclass(frozen=True, slots=True)
class Pushed:
    """An acknowledged push: how many rows were taken for which views. `wait` returns when they are in both stores.

    `journal` and `sequence` say where they are until then.
    """

    rows: int
    views: tuple[str, ...]
    journal: str
    sequence: int
    _published: Callable[["Pushed", float | None], bool] = field(repr=False, compare=False)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the rows are in both stores; whether they are, if not for ever."""
        return self._published(self, seconds)


class _Waiting:
    """A push that has not been answered. `turn` is set when it is, or when it has to answer all that wait."""

    __slots__ = ("admission", "answer", "elsewhere", "gone", "push", "turn")

    def __init__(self, push: Push, admission: Admission, elsewhere: Callable[[], object] | None) -> None:
        self.push, self.admission, self.elsewhere = push, admission, elsewhere
        self.answer: Future[Pushed] = Future()
        self.turn = threading.Event() if elsewhere is None else None
        self.gone = False

    def take_turn(self) -> None:
        if self.elsewhere is not None:
            self.elsewhere()
        elif self.turn is not None:
            self.turn.set()


class Pushes:
    """Takes pushes for the views of a registry. Safe to share between threads.

    Args:
        settings: where the journals lie.
        offline, online: where rows go.
    """

    def __init__(self, settings: Settings, offline: OfflineStore, online: OnlineStore) -> None:
        self._settings, self._offline, self._online = settings, offline, online
        self._mutex = threading.Lock()
        self._idle = threading.Condition(self._mutex)
        self._gathered = threading.Condition(self._mutex)
        self._former = 1
        self._backlog, self._looked = 0, 0.0
        self._waiting: list[_Waiting] = []
        self._leading = False
        self._admission: Admission | None = None
        self._journal: PushJournal | None = None
        self._publisher: Publisher | None = None
        self._progress = threading.Condition()
        self._wake = threading.Event()
        self._drainer: threading.Thread | None = None
        self._closed = False

    def push(self, push: Push, registry: Registry, *, to: str = "online_and_offline") -> Pushed:
        """Take rows; when this returns, they survive and will reach both stores. See `FeatureStore.push`.

        The views are those of the registry, by which was decided whether the rows may be pushed.
        """
        mine = self._entered(push, registry, to, None)
        turn = mine.turn
        assert turn is not None  # noqa: S101 (it is not done elsewhere)
        try:
            turn.wait()
        except BaseException:
            with self._mutex:
                mine.gone = True
                leads = turn.is_set() and not mine.answer.done()
            if leads:
                self._lead()
            raise
        if not mine.answer.done():
            self._lead()
        return mine.answer.result()

    def submit(
        self, push: Push, registry: Registry, threads: Executor, *, to: str = "online_and_offline"
    ) -> Future[Pushed]:
        """The same without waiting: the answer comes later, and the work is done in one of these threads."""
        return self._entered(push, registry, to, lambda: threads.submit(self._lead)).answer

    def _entered(self, push: Push, registry: Registry, to: str, elsewhere: Callable[[], object] | None) -> _Waiting:
        if to not in _MODES:
            raise RequestError(
                f"to={to!r} is none of {', '.join(map(repr, _MODES))}. Each of them means both stores here."
            )
        if push.event_id is not None and not 0 < len(push.event_id) <= _LONGEST_ID:
            raise RequestError(f"An event id has 1 to {_LONGEST_ID} characters, not {len(push.event_id)}.")
        with self._mutex:
            if self._closed:
                raise StoreUnavailable("The feature store was closed; open it again to push.")
            if self._admission is None or self._admission.registry is not registry:
                self._admission = Admission(registry, self._settings.functions, self._online)
            mine = _Waiting(push, self._admission, elsewhere)
            self._waiting.append(mine)
            leads = not self._leading
            self._leading = True
            if len(self._waiting) == self._former:
                self._gathered.notify()
        if leads:
            mine.take_turn()
        return mine

    def _lead(self) -> None:
        """Answer those that wait, and hand on to one of those who have come meanwhile."""
        while True:
            with self._mutex:
                # Who pushed together before is about to again: a write to disk saved is worth more than this wait.
                self._gathered.wait_for(lambda: len(self._waiting) >= self._former, _GATHERING)
                batch, self._waiting = self._waiting[:_MOST_AT_ONCE], self._waiting[_MOST_AT_ONCE:]
            self._former = len(batch)
            # Whoever does not wait any more is not pushed for, if it is not too late.
            self._answer([one for one in batch if one.answer.set_running_or_notify_cancel()])
            for one in batch:
                if one.turn is not None:
                    one.turn.set()
            with self._mutex:
                following = next((one for one in self._waiting if not one.gone), None)
                self._leading = bool(self._waiting)
                if not self._leading:
                    self._idle.notify_all()
                if following is not None or not self._waiting:
                    break
        if following is not None:
            following.take_turn()

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        for admission, group in groupby(batch, key=lambda one: one.admission):
            each = list(group)
            try:
                self._taken(admission, each)
            except BaseException as error:  # noqa: BLE001 (nobody may wait for ever)
                for one in each:
                    if not one.answer.done():
                        one.answer.set_exception(error)

    def _taken(self, admission: Admission, group: Sequence[_Waiting]) -> None:
        admitted = admission.of([one.push for one in group], datetime.now(UTC))
        taken: list[tuple[int, Taken]] = []
        for at, outcome in enumerate(admitted.outcomes):
            if isinstance(outcome, Taken):
                taken.append((at, outcome))
            else:
                group[at].answer.set_exception(outcome)
        if not taken:
            return
        journal = self._opened()
        if self._waits_in(journal) > self._settings.push_backlog_bytes:
            raise StoreFull(
                f"More than {self._settings.push_backlog_bytes:,} bytes of pushed rows wait at {journal.folder}, since a store "
                "does not take them. None of these was taken; the log says which store and why."
            )
        numbers = journal.numbers(len(taken))
        number_of = dict(zip((at for at, _ in taken), numbers, strict=True))
        numbered = pl.Series([number_of.get(at) for at in range(len(group))], dtype=pl.Int64)
        parts = [
            Part(each.source, each.declaration, _ipc(_numbered(rows, numbered.gather(rows[PUSH]))))
            for each, rows in admitted.rows
        ]
        journal.write(Entry(numbers[-1], parts))
        for at, outcome in taken:
            group[at].answer.set_result(Pushed(outcome.rows, outcome.views, journal.id, number_of[at], self._wait))
        self._start_draining()

    def _waits_in(self, journal: PushJournal) -> int:
        """How many bytes wait there, as of a moment ago."""
        now = time.monotonic()
        if now - self._looked > _LOOK_EVERY:
            self._backlog, self._looked = journal.bytes(), now
        return self._backlog

    def _opened(self) -> PushJournal:
        if self._journal is None:
            root, sync = place_of_journals(self._settings), self._settings.durability == "power-loss"
            self._journal = next(iter(PushJournal.taken(root, sync=sync)))
            self._publisher = Publisher(self._journal, self._offline, self._online)
        return self._journal

    def published(self, journal: str, sequence: int, views: Sequence[ViewSpec]) -> bool:
        """Whether what has this number in a journal, of any process, is in both stores for all of these views."""
        if self._journal is not None and self._publisher is not None and self._journal.id == journal:
            return self._publisher.has(sequence, [view.name for view in views])
        return all(reached(view, journal, self._offline, self._online) >= sequence for view in views)

    def waiting(self) -> tuple[int, int]:
        """The last sequence numbers that are in the journal and that are published; equal where nothing waits."""
        journal, publisher = self._journal, self._publisher
        if journal is None or publisher is None:
            return 0, 0
        return journal.written, min(publisher.published, journal.written)

    def waiting_bytes(self) -> int:
        """The size of the journal, if something in it waits."""
        journal, (written, published) = self._journal, self.waiting()
        if journal is None or published >= written:
            return 0
        try:
            return journal.bytes()
        except FileNotFoundError:
            return 0  # a segment was published and went in between

    def recover(self) -> None:
        """Take up journals whose process is gone: publish what waits there."""
        drain_orphans(self._settings, self._offline, self._online)

    def _start_draining(self) -> None:
        with self._progress:
            if self._publisher is not None and self._publisher.failed is not None:
                self._wake.set()
            if self._drainer is None:
                # No daemon: a process that ends waits until what it has taken is published.
                self._drainer = threading.Thread(target=self._drain, name="push-drain")
                self._drainer.start()

    def _drain(self) -> None:
        journal, publisher = self._journal, self._publisher
        assert journal is not None and publisher is not None  # noqa: S101, PT018 (something was written)
        while True:
            started = time.monotonic()
            try:
                publisher.step(at_once=self._closed)
            except Exception as error:  # noqa: BLE001 (the journal has the rows, and they are tried again)
                log.warning("pushed rows wait journal=%s error=%s: %s", journal.id, type(error).__name__, error)
                if self._ending():
                    self._stopped()
                    break
                time.sleep(_PAUSE)
                continue
            with self._progress:
                self._progress.notify_all()
                if publisher.published >= journal.written or (publisher.failed is not None and self._ending()):
                    self._drainer = None
                    break
                # While more comes: what comes in the meantime goes into one commit with it.
                pause = self._settings.push_interval_seconds - (time.monotonic() - started)
                if publisher.reached >= journal.written:
                    pause = publisher.wait_until_due()
            if not self._closed and self._wake.wait(max(0.0, pause)):
                self._wake.clear()
        with self._mutex:
            # What is published need not stay on this disk: somebody may have to be forgotten.
            if not self._leading and not self._closed and publisher.published >= journal.written:
                journal.renew()

    def _stopped(self) -> None:
        with self._progress:
            self._drainer = None
            self._progress.notify_all()

    def _ending(self) -> bool:
        return self._closed or not threading.main_thread().is_alive()

    def _wait(self, pushed: Pushed, seconds: float | None) -> bool:
        publisher = self._publisher
        assert publisher is not None  # noqa: S101 (it was pushed)
        with self._progress:
            return self._progress.wait_for(lambda: publisher.has(pushed.sequence, pushed.views), seconds)

    def close(self, seconds: float = 30.0) -> None:
        """Publish what waits, as far as the stores take it, and let go of the journal; nothing in it is lost."""
        with self._mutex:
            self._closed = True
            self._idle.wait_for(lambda: not self._leading, seconds)
        self._wake.set()
        with self._progress:
            drainer = self._drainer
        if drainer is not None:
            drainer.join(seconds)
        if self._journal is not None and self._publisher is not None and (drainer is None or not drainer.is_alive()):
            self._journal.close(published=self._publisher.published)
            self._journal = None


def _numbered(rows: pl.DataFrame, numbers: pl.Series) -> pl.DataFrame:
    kept = [column for column in rows.get_columns() if column.name != PUSH]
    return pl.DataFrame([*kept, numbers.alias(SEQUENCE)])


def _ipc(rows: pl.DataFrame) -> bytes:
    stream = BytesIO()
    rows.write_ipc_stream(stream)
    return stream.getvalue()
