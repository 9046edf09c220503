"""From a push to its answer, and from the journal to the stores.

Whoever pushes while nobody else does takes all pushes that have gathered, admits them, writes one entry to the journal,
forces it to disk once and answers them all. A thread publishes what is in the journal, everything that has gathered in
one commit, and lives only as long as something waits.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from feature_assets.access import Decision
from feature_assets.config import Settings
from feature_assets.conform import conformed
from feature_assets.errors import ConfigurationError, FeatureAssetsError, RequestError, StoreFull, StoreUnavailable
from feature_assets.intake import compiled, fields_of, is_row_wise, optional_fields
from feature_assets.lookup.entities import ColumnCheck, as_columns, as_list
from feature_assets.offline import OfflineStore
from feature_assets.online.protocol import OnlineStore
from feature_assets.publication import admitted_checks, append
from feature_assets.push.journal import Entry, Part, PushJournal, read
from feature_assets.registry import Registry
from feature_assets.spec import EVENT_ID, PARTITION, SEQUENCE, ViewSpec, canonical_json, from_json
from feature_assets.windows import slices_of

log = logging.getLogger(__name__)

_PUSH = "__push"
_MODES = ("online", "offline", "online_and_offline")
_LONGEST_ID = 200
_CYCLE_BYTES = 8 << 20
_CROWDED = 32
_LONGEST_PAUSE = 5.0


@dataclass(frozen=True, slots=True)
class Pushed:
    """An acknowledged push: how many rows were taken for which views. `wait` returns when they are in both stores."""

    rows: int
    views: tuple[str, ...]
    sequence: int
    _published: Callable[[int, float | None], bool] = field(repr=False, compare=False)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the rows are in both stores; whether they are, if not for ever."""
        return self._published(self.sequence, seconds)


class _Waiting:
    """A push that has not been answered."""

    def __init__(
        self, source: str, rows: Any, event_id: str | None, only: str | None, decision: Decision | None
    ) -> None:
        self.source, self.rows, self.event_id = source, rows, event_id
        self.only, self.decision = only, decision
        self.done = threading.Event()
        self.answer: Pushed | None = None
        self.error: BaseException | None = None


class _Admitted(NamedTuple):
    rows: int
    by_view: dict[str, tuple[ViewSpec, pl.DataFrame]]


class Pushes:
    """Takes pushes for the views of the registry. Safe to share between threads.

    Args:
        settings: where the journals lie.
        registry: the registry snapshot in force.
        offline, online: where rows go.
    """

    def __init__(
        self, settings: Settings, registry: Callable[[], Registry], offline: OfflineStore, online: OnlineStore
    ) -> None:
        self._settings, self._registry, self._offline, self._online = settings, registry, offline, online
        self._mutex = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._leading = False
        self._journal: PushJournal | None = None
        self._published = 0
        self._progress = threading.Condition()
        self._drainer: threading.Thread | None = None
        self._closed = False

    def push(
        self,
        source: str,
        rows: Any,
        *,
        to: str = "online_and_offline",
        event_id: str | None = None,
        only: str | None = None,
        decision: Decision | None = None,
    ) -> Pushed:
        """Take rows; when this returns, they survive and will reach both stores. See `FeatureStore.push`.

        `only` names the one view of the source that they are for; `decision` is what allows them.
        """
        if to not in _MODES:
            raise RequestError(
                f"to={to!r} is none of {', '.join(map(repr, _MODES))}. Each of them means both stores here."
            )
        if event_id is not None and not 0 < len(event_id) <= _LONGEST_ID:
            raise RequestError(f"An event id has 1 to {_LONGEST_ID} characters, not {len(event_id)}.")
        mine = _Waiting(source, rows, event_id, only, decision)
        with self._mutex:
            if self._closed:
                raise StoreUnavailable("The feature store was closed; open it again to push.")
            self._waiting.append(mine)
            lead = not self._leading
            self._leading = True
        if lead:
            self._lead()
        mine.done.wait()
        if mine.error is not None:
            raise mine.error
        assert mine.answer is not None  # noqa: S101 (whoever is done has one or the other)
        return mine.answer

    def _lead(self) -> None:
        while True:
            with self._mutex:
                batch, self._waiting = self._waiting, []
                if not batch:
                    self._leading = False
                    return
            try:
                self._answer(batch)
            except BaseException as error:  # noqa: BLE001 (nobody may wait for ever)
                for one in batch:
                    one.error = one.error or error
            finally:
                for one in batch:
                    one.done.set()

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        registry, now = self._registry(), datetime.now(UTC)
        accepted: list[tuple[_Waiting, _Admitted]] = []
        for one in batch:
            try:
                accepted.append((one, self._admitted(registry, one, now)))
            except FeatureAssetsError as error:
                one.error = error
        if not accepted:
            return
        journal = self._opened()
        if journal.bytes() > self._settings.push_backlog_bytes:
            raise StoreFull(
                f"More than {self._settings.push_backlog_bytes:,} bytes of pushed rows wait at {journal.folder}, since a store "
                "does not take them. None of these was taken; the log says which store and why."
            )
        numbers = journal.numbers(len(accepted))
        parts = [
            Part(one.source, canonical_json(view), _ipc(rows.with_columns(pl.lit(number, pl.Int64).alias(SEQUENCE))))
            for number, (one, admitted) in zip(numbers, accepted, strict=True)
            for view, rows in admitted.by_view.values()
        ]
        journal.write(Entry(numbers[-1], parts))
        for number, (one, admitted) in zip(numbers, accepted, strict=True):
            one.answer = Pushed(admitted.rows, tuple(admitted.by_view), number, self._wait)
        self._start_draining()

    def _admitted(self, registry: Registry, one: _Waiting, now: datetime) -> _Admitted:
        found = admit(registry, self._settings.functions, one.source, one.rows, one.event_id, now, only=one.only)
        if one.decision is not None:
            frames = [rows for _, rows in found.by_view.values()]
            one.decision.admit(lambda name: [value for rows in frames if name in rows.columns for value in rows[name]])
        return found

    def _opened(self) -> PushJournal:
        if self._journal is None:
            self._journal = next(iter(PushJournal.taken(_root(self._settings), sync=_sync(self._settings))))
        return self._journal

    def recover(self) -> None:
        """Take up journals whose process is gone: publish what waits there."""
        drain_orphans(self._settings, self._offline, self._online)

    def _start_draining(self) -> None:
        with self._progress:
            if self._drainer is None:
                # No daemon: a process that ends waits until what it has taken is published.
                self._drainer = threading.Thread(target=self._drain, name="push-drain")
                self._drainer.start()

    def _drain(self) -> None:
        pause = 0.05
        while True:
            journal = self._journal
            assert journal is not None  # noqa: S101 (something was written)
            started = time.monotonic()
            try:
                reached = publish_entries(journal, self._published, self._offline, self._online)
                pause = 0.05
            except Exception as error:  # noqa: BLE001 (the journal has the rows, and they are tried again)
                log.warning("pushed rows wait journal=%s error=%s: %s", journal.id, type(error).__name__, error)
                if not threading.main_thread().is_alive() or self._closed:
                    self._stopped()
                    return
                time.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
                continue
            with self._progress:
                self._published = reached
                self._progress.notify_all()
                if reached >= journal.last:
                    self._drainer = None
                    return
            if not self._closed:
                # More has come: what comes in the meantime goes into one commit with it.
                time.sleep(max(0.0, self._settings.push_interval_seconds - (time.monotonic() - started)))

    def _stopped(self) -> None:
        with self._progress:
            self._drainer = None
            self._progress.notify_all()

    def _wait(self, sequence: int, seconds: float | None) -> bool:
        with self._progress:
            return self._progress.wait_for(lambda: self._published >= sequence, seconds)

    def close(self, seconds: float = 30.0) -> None:
        """Publish what waits, as far as the stores take it, and let go of the journal; nothing in it is lost."""
        with self._mutex:
            self._closed = True
            drainer = self._drainer
        if drainer is not None:
            drainer.join(seconds)
        if self._journal is not None and (drainer is None or not drainer.is_alive()):
            self._journal.close(published=self._published)
            self._journal = None


def _root(settings: Settings) -> Path:
    place = settings.place(settings.push)
    if "://" in place:
        raise ConfigurationError(
            f"push is {settings.push}, and journals need a local folder: their files are forced to disk."
        )
    return Path(place)


def _sync(settings: Settings) -> bool:
    return settings.durability == "power-loss"


def drain_orphans(settings: Settings, offline: OfflineStore, online: OnlineStore | None) -> int:
    """Publish what waits in the journals of processes that are gone; how many journals had something.

    Raises:
        StoreError: a store failed; what waits is still there.
    """
    root, found = _root(settings), 0
    if not root.is_dir():
        return 0
    for journal in PushJournal.taken(root, sync=_sync(settings), make=False):
        published = 0
        try:
            waiting = any(True for segment in journal.segments() for _ in read(segment))
            while waiting and published < journal.last:
                reached = publish_entries(journal, published, offline, online)
                if reached == published:
                    break
                published = reached
            found += waiting
            published = journal.last
        finally:
            journal.close(published=published)
    return found


def orphaned(settings: Settings) -> bool:
    """Whether something waits in the journal of a process that is gone."""
    root, found = _root(settings), False
    if root.is_dir():
        for journal in PushJournal.taken(root, sync=_sync(settings), make=False):
            found |= any(True for segment in journal.segments() for _ in read(segment))
            journal.close(published=0)
    return found


def publish_entries(journal: PushJournal, after: int, offline: OfflineStore, online: OnlineStore | None) -> int:
    """Publish some entries of a journal that come after a number, in their order; the number that was reached."""
    frames: dict[bytes, list[pl.DataFrame]] = {}
    size, reached = 0, after
    for entry in _entries(journal, after):
        for part in entry.parts:
            frames.setdefault(part.view, []).append(pl.read_ipc_stream(BytesIO(part.data)))
            size += len(part.data)
        reached = entry.last
        if size > _CYCLE_BYTES:
            break
    for declaration, rows in frames.items():
        view = from_json(declaration, ViewSpec)
        done = append(view, pl.concat(rows), journal=journal.id, offline=offline, online=online)
        if done.partitions:
            try:
                offline.compact_pushes(view, done.partitions, more_than=_CROWDED)
            except FeatureAssetsError as error:
                log.info("compaction postponed view=%s error=%s", view.name, type(error).__name__)
    journal.remove_up_to(reached)
    return reached


def _entries(journal: PushJournal, after: int) -> Iterable[Entry]:
    for segment in journal.segments():
        yield from read(segment, after)


def _ipc(rows: pl.DataFrame) -> bytes:
    stream = BytesIO()
    rows.write_ipc_stream(stream)
    return stream.getvalue()


def admit(
    registry: Registry,
    modules: Sequence[str],
    name: str,
    rows: Any,
    event_id: str | None,
    now: datetime,
    *,
    only: str | None = None,
) -> _Admitted:
    """The rows of a push as each of its views has them, conformed and checked.

    Raises:
        UnknownSource: there is no such source, or no view takes its rows.
        RequestError: fields are missing or unknown, or a value is of another type.
        ContractBroken: a key or time is null, a time lies in no partition or in the future, or a type loses something.
        ChecksFailed: a check of error severity failed.
    """
    source = registry.stream_source(name)
    views = tuple(view for view in registry.fed_by(name) if only in (None, view.name))
    if not views:
        raise RequestError(f"No view takes the rows of '{name}'. Declare one with @stream_feature_view(source=…).")
    drop = source.unknown_fields == "drop"
    frame = _typed(name, rows, fields_of(source, views), optional_fields(source, views), drop=drop)
    if frame.is_empty():
        raise RequestError(f"The push to '{name}' has no rows. Push at least one.")
    ids = pl.lit(event_id, pl.String)
    if source.event_id is not None and event_id is None:
        ids = pl.col(source.event_id)
    frame = frame.with_columns(ids.alias(EVENT_ID)).rename(source.field_mapping, strict=False)
    if source.event_id is not None and event_id is None:
        # A row that stands twice in one push is the same event.
        frame = frame.filter(pl.col(EVENT_ID).is_first_distinct() | pl.col(EVENT_ID).is_null())
    return _Admitted(frame.height, {view.name: (view, _for_view(view, frame, modules, now)) for view in views})


def _for_view(view: ViewSpec, frame: pl.DataFrame, modules: Sequence[str], now: datetime) -> pl.DataFrame:
    made = compiled(view, modules)(frame)
    if EVENT_ID not in made.columns:
        if not is_row_wise(view) and frame[EVENT_ID].n_unique() > 1:
            raise RequestError(
                f"The transform of view '{view.name}' drops '{EVENT_ID}', by which rows that come again are known. Pass it on, or "
                "push one row at a time."
            )
        made = made.with_columns(pl.lit(frame[EVENT_ID].first(), pl.String).alias(EVENT_ID))
    created = view.created_timestamp
    if created is not None and created not in made.columns:
        made = made.with_columns(pl.lit(now).alias(created))
    slices = _slices(view, made)
    with conformed(view, made, slices, now=now, along=(EVENT_ID,)) as rows:
        admitted_checks(view, rows, now)
        return rows.rows.select(*view.columns, PARTITION, EVENT_ID).collect()


def _slices(view: ViewSpec, rows: pl.DataFrame) -> Any:
    from feature_assets.conform import PartitionSlice

    event = rows.get_column(view.event_timestamp, default=None)
    if event is None or not isinstance(event.dtype, pl.Datetime):
        return [PartitionSlice()]  # What is wrong, `conformed` says.
    column = event.dt.cast_time_unit("us")
    utc = column.dt.convert_time_zone("UTC") if event.dtype.time_zone else column.dt.replace_time_zone("UTC")
    found = slices_of(view, rows.with_columns(utc.alias(view.event_timestamp)))
    return found or [PartitionSlice("none", datetime(1, 1, 1, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC))]


def _typed(name: str, rows: Any, types: Mapping[str, Any], optional: set[str], *, drop: bool) -> pl.DataFrame:
    if isinstance(rows, pl.LazyFrame):
        rows = rows.collect()
    frame: pl.DataFrame | None = None
    if isinstance(rows, pl.DataFrame) or hasattr(rows, "__arrow_c_stream__"):
        frame = rows if isinstance(rows, pl.DataFrame) else pl.DataFrame(rows)
        given: Mapping[str, Any] = dict.fromkeys(frame.columns)
    else:
        if isinstance(rows, list | tuple):
            names = dict.fromkeys(key for row in rows for key in row)
            rows = {key: [row.get(key) for row in rows] for key in names}
        given = as_columns(rows)
    if missing := [field for field in types if field not in given and field not in optional]:
        raise RequestError(
            f"The rows pushed to '{name}' have no '{missing[0]}' (they have: {', '.join(map(str, given)) or 'nothing'}). Push it "
            "too, as null where there is no value."
        )
    unknown = [field for field in given if field not in types]
    if unknown and not drop:
        raise RequestError(
            f"The rows pushed to '{name}' have '{unknown[0]}', which it does not take (it takes: {', '.join(types)}). Leave it "
            "out, or declare the source with unknown_fields='drop'."
        )
    wanted = [field for field in types if field in given]
    if frame is not None:
        return frame.select(wanted)
    columns = {field: as_list(field, given[field]) for field in wanted}
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"'{field}' {len(values)}" for field, values in columns.items())
        raise RequestError(f"The columns pushed to '{name}' differ in length: {lengths}. Give a value per row in each.")
    return pl.DataFrame(
        [
            types[field].to_frame(field, ColumnCheck(f"'{field}'", types[field], nullable=True)(values))
            for field, values in columns.items()
        ]
    )
