"""From the journals to the stores: each row exactly once offline, and online a moment later.

Views are published one by one. One that a store does not take, or that others keep from being written, is left behind
with what waits for it and tried again by itself, with growing pauses; it holds up no other view of its journal.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final, TypeAlias

import polars as pl

from feature_assets.config import Settings
from feature_assets.errors import ConfigurationError, FeatureAssetsError, StoreUnavailable
from feature_assets.offline import InJournal, OfflineStore
from feature_assets.online.protocol import OnlineStore
from feature_assets.publication import append
from feature_assets.push.journal import Part, PushJournal, entries_of
from feature_assets.settlement import reached
from feature_assets.spec import SEQUENCE, ViewSpec, from_json

log = logging.getLogger(__name__)

Table: TypeAlias = tuple[str, int]
"""The name and version of a view: what has a table."""

_AT_ONCE: Final = 8 << 20
_CROWDED: Final = 32
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
_WAIT_SECONDS: Final = 30.0


@dataclass(slots=True)
class _Behind:
    """A view that could not be published: up to where it is, and when it is tried again."""

    reached: int
    pause: float
    due: float
    error: Exception


class Publisher:
    """Publishes one journal, in its order. One thread uses it.

    `reached`: everything up to this number is published, but for the views that are behind.
    """

    def __init__(self, journal: PushJournal, offline: OfflineStore, online: OnlineStore | None) -> None:
        self._journal, self._offline, self._online = journal, offline, online
        self.reached = 0
        self._behind: dict[Table, _Behind] = {}

    @property
    def published(self) -> int:
        """The number up to which nothing waits."""
        return min([self.reached, *(one.reached for one in self._behind.values())])

    @property
    def failed(self) -> Exception | None:
        """Why a view is behind, if one is."""
        return next((one.error for one in self._behind.values()), None)

    def has(self, sequence: int, views: Iterable[str]) -> bool:
        """Whether what has this number is published for all of these views."""
        wanted = set(views)
        behind = [one.reached for (name, _), one in self._behind.items() if name in wanted]
        return min([self.reached, *behind]) >= sequence

    def wait_until_due(self) -> float:
        """Seconds until one of the views that are behind is tried again."""
        return max(0.0, min((one.due for one in self._behind.values()), default=0.0) - time.monotonic())

    def step(self, *, at_once: bool = False) -> None:
        """Publish some of what waits; what fails is behind from then on.

        With `at_once` views that are behind are tried though their time has not come.
        """
        before = self.published
        if self.reached < self._journal.written:
            runs, reached = _gathered(self._journal, self.reached)
            for table, run in runs.items():
                if table not in self._behind:
                    self._publish(table, run, self.reached)
            self.reached = reached
        for table, one in list(self._behind.items()):
            if at_once or one.due <= time.monotonic():
                runs, reached = _gathered(self._journal, one.reached, table)
                if self._publish(table, runs.get(table, []), one.reached):
                    one.reached, one.pause = reached, _FIRST_PAUSE
                    if reached >= self.reached:
                        del self._behind[table]
        if self.published > before:
            self._journal.remove_up_to(self.published)

    def _publish(self, table: Table, run: "_Run", after: int) -> bool:
        name, version = table
        try:
            for declaration, parts in run:
                self._append(from_json(declaration, ViewSpec), parts)
        except Exception as error:  # noqa: BLE001 (the journal has the rows, and they are tried again)
            log.warning(
                "pushed rows wait journal=%s view=%s version=%d error=%s: %s",
                *(self._journal.id, name, version, type(error).__name__, error),
            )
            one = self._behind.get(table) or _Behind(after, _FIRST_PAUSE / 2, 0.0, error)
            one.pause, one.error = min(_LONGEST_PAUSE, one.pause * 2), error
            one.due = time.monotonic() + one.pause
            self._behind[table] = one
            return False
        return True

    def _append(self, view: ViewSpec, parts: list[Part]) -> None:
        rows = pl.concat([pl.read_ipc_stream(BytesIO(part.data)) for part in parts])
        done = append(view, rows, numbered=InJournal(self._journal.id), offline=self._offline, online=self._online)
        if done.partitions:
            try:
                self._offline.compact_pushes(view, done.partitions, more_than=_CROWDED)
            except FeatureAssetsError as error:
                log.info("compaction postponed view=%s error=%s", view.name, type(error).__name__)


_Run: TypeAlias = list[tuple[bytes, list[Part]]]
"""Rows of one view in the order of the journal; apart where its declaration changed in between."""


def _gathered(journal: PushJournal, after: int, only: Table | None = None) -> tuple[dict[Table, _Run], int]:
    """What comes after a number, up to a size, by view; and the number that was reached."""
    runs: dict[Table, _Run] = {}
    tables: dict[bytes, Table] = {}
    size, reached = 0, after
    for entry in journal.entries(after):
        for part in entry.parts:
            table = tables.get(part.view)
            if table is None:
                view = from_json(part.view, ViewSpec)
                table = tables[part.view] = view.name, view.version
            if only in (None, table):
                run = runs.setdefault(table, [])
                if not run or run[-1][0] != part.view:
                    run.append((part.view, []))
                run[-1][1].append(part)
                size += len(part.data)
        reached = entry.last
        if size > _AT_ONCE:
            break
    return runs, reached


def place_of_journals(settings: Settings) -> Path:
    """The folder of the journals.

    Raises:
        ConfigurationError: it is none of this machine.
    """
    place = settings.place(settings.push)
    if "://" in place:
        raise ConfigurationError(
            f"push is {settings.push}, and journals need a local folder: their files are forced to disk."
        )
    return Path(place)


def drain_orphans(settings: Settings, offline: OfflineStore, online: OnlineStore | None) -> int:
    """Publish what waits in the journals of processes that are gone; how many journals had something.

    Raises:
        FeatureAssetsError: a view could not be published; what waits for it is still there.
    """
    found = 0
    failed: Exception | None = None
    for journal in _orphans(settings):
        publisher = Publisher(journal, offline, online)
        try:
            waiting = next(iter(journal.entries(0)), None) is not None
            while waiting and publisher.reached < journal.written:
                before = publisher.reached
                publisher.step()
                if publisher.reached == before:
                    break
            while publisher.failed is not None and publisher.published < journal.written:
                before = publisher.published
                publisher.step(at_once=True)
                if publisher.published == before:
                    break
            found += waiting
            failed = failed or publisher.failed
        finally:
            journal.close(published=publisher.published)
    if failed is not None:
        raise failed
    return found


def publish_waiting(
    settings: Settings, offline: OfflineStore, online: OnlineStore, *, seconds: float = _WAIT_SECONDS
) -> None:
    """Return when all that waited in this machine's journals is in both stores, whichever process it waited in.

    Whoever forgets somebody asks for this first: rows that are published afterwards would bring them back.

    Raises:
        StoreUnavailable: it is not after so many seconds; the message names the view.
        FeatureAssetsError: what a process left behind could not be published.
    """
    latest = time.monotonic() + seconds
    drain_orphans(settings, offline, online)
    root = place_of_journals(settings)
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        for view, sequence in _last_of(folder).values():
            while reached(view, folder.name, offline, online) < sequence and _waits(folder, sequence):
                if time.monotonic() > latest:
                    raise StoreUnavailable(
                        f"Rows that were pushed to view '{view.name}' still wait in {folder}, for the process that pushed them "
                        f"could not publish them within {seconds:g} s. Its log says why."
                    )
                time.sleep(_FIRST_PAUSE)
                # Its process may have died by now.
                drain_orphans(settings, offline, online)


def _last_of(folder: Path) -> dict[Table, tuple[ViewSpec, int]]:
    """The views whose rows are in a journal, with the last number of each."""
    last: dict[bytes, Part] = {part.view: part for entry in entries_of(folder) for part in entry.parts}
    found: dict[Table, tuple[ViewSpec, int]] = {}
    for declaration, part in last.items():
        view = from_json(declaration, ViewSpec)
        number = int(pl.read_ipc_stream(BytesIO(part.data))[SEQUENCE].max() or 0)  # type: ignore[arg-type]
        table = view.name, view.version
        if table not in found or found[table][1] < number:
            found[table] = view, number
    return found


def _waits(folder: Path, sequence: int) -> bool:
    """Whether a journal still has what has this number: it goes when all is published."""
    return any(entry.last >= sequence for entry in entries_of(folder))


def orphaned(settings: Settings) -> bool:
    """Whether something waits in the journal of a process that is gone."""
    found = False
    for journal in _orphans(settings):
        found |= next(iter(journal.entries(0)), None) is not None
        journal.close(published=0)
    return found


def _orphans(settings: Settings) -> Iterator[PushJournal]:
    root = place_of_journals(settings)
    if root.is_dir():
        yield from PushJournal.taken(root, sync=settings.durability == "power-loss", make=False)
