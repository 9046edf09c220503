"""Consumers that run until they are told to end: one thread per source, each following the published registry.

What passes by itself, a store or a broker that is away, is waited for. What does not, ends the consumer of its source and is
told at the end; the others go on.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from feature_assets.config import Settings
from feature_assets.errors import (
    ConfigurationError,
    FeatureAssetsError,
    PublicationConflict,
    RegistryError,
    RequestError,
    StoreError,
)
from feature_assets.offline import OfflineStore
from feature_assets.online import open_online_store
from feature_assets.registry import Published, Registry, RegistryStore
from feature_assets.spec import LogSource, ViewSpec, canonical_json
from feature_assets.streams.admission import Intake
from feature_assets.streams.consumer import Consumer, Limits
from feature_assets.streams.dead_letters import dead_letter_store
from feature_assets.streams.opening import group_of, opener
from feature_assets.streams.progress import Progress
from feature_assets.streams.sink import Sink, Stores

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_LOOK_EVERY: Final = 5.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """A source whose records are read, and the views that take them; `group` is that of its consumers."""

    source: LogSource
    views: tuple[ViewSpec, ...]
    group: str

    @property
    def names(self) -> str:
        """The views, for a person to read."""
        return ", ".join(view.name for view in self.views)


def chosen(registry: Registry, names: Sequence[str] = ()) -> list[Chosen]:
    """The sources of these views, or of all views that take records.

    Raises:
        UnknownView: there is no such view.
        RequestError: a view takes no records, or no view does.
    """
    wanted: dict[str, list[ViewSpec]] = {}
    views = [registry.view(name) for name in dict.fromkeys(names)] or list(registry.views.values())
    for view in views:
        source = registry.sources.get(view.stream.source) if view.stream is not None else None
        if isinstance(source, LogSource):
            wanted.setdefault(source.name, []).append(view)
        elif names:
            raise RequestError(
                f"View '{view.name}' takes no records of a log. Declare it with @stream_feature_view(source=KafkaSource(…))."
            )
    if not wanted:
        raise RequestError(
            "No published view takes records of a log. Declare one with @stream_feature_view(source=KafkaSource(…)), and "
            "publish it: feature-assets apply"
        )
    found = []
    for name, of in sorted(wanted.items()):
        source = registry.stream_source(name)
        assert isinstance(source, LogSource)  # noqa: S101 (it was just looked at)
        everything = [view.name for view in registry.fed_by(name)]
        ordered = tuple(sorted(of, key=lambda view: view.name))
        found.append(Chosen(source, ordered, group_of(source, [view.name for view in ordered], everything)))
    return found


@dataclass(slots=True)
class Running:
    """The consumer of one source in this process."""

    source: str
    progress: Progress = field(default_factory=Progress)
    error: FeatureAssetsError | None = None


class Consumers:
    """Consumes the sources of some views, or of all.

    Args:
        names: of views.

    Raises:
        NotPublished, RegistryUnreadable, UnknownView, RequestError: as `chosen`.
        ConfigurationError: a connection is not set, or a library is not installed.
    """

    def __init__(self, settings: Settings, names: Sequence[str] = ()) -> None:
        self._settings, self._names = settings, tuple(names)
        self._registry = RegistryStore(settings.place(settings.registry), settings.storage())
        first = self._registry.read()
        self.chosen = chosen(first.registry, names)
        for one in self.chosen:
            # What can be told before anything runs, is.
            opener(one.source, one.group, settings)
            Intake(one.source, one.views, settings)
        self.running = {one.source.name: Running(one.source.name) for one in self.chosen}
        self._stop = threading.Event()

    def stop(self) -> None:
        """Have all end when they have published what they have gathered."""
        self._stop.set()

    def run(self) -> None:
        """Consume until told to stop, or until no source can be consumed any more.

        Raises:
            FeatureAssetsError: of the first source that could not be consumed any more.
        """
        threads = [
            threading.Thread(target=self._consume, args=(one,), name=f"stream-{one.source}")
            for one in self.running.values()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            # With a limit, so that a signal is seen meanwhile.
            while thread.is_alive():
                thread.join(0.5)
        for one in self.running.values():
            if one.error is not None:
                raise one.error

    def _consume(self, running: Running) -> None:
        stores, pause = _stores(self._settings), _FIRST_PAUSE
        try:
            while not self._stop.is_set():
                before = running.progress.batches
                try:
                    self._until_changed(running, stores)
                except (StoreError, PublicationConflict, RegistryError) as error:
                    running.progress.error = str(error)
                    running.progress.failures += 1
                    log.warning("waits source=%s error=%s: %s", running.source, type(error).__name__, error)
                    pause = _FIRST_PAUSE if running.progress.batches > before else min(_LONGEST_PAUSE, pause * 2)
                    self._stop.wait(pause)
        except FeatureAssetsError as error:
            log.error("ended source=%s error=%s: %s", running.source, type(error).__name__, error)  # noqa: TRY400
            running.error = error
        except Exception as error:
            log.exception("ended source=%s", running.source)
            running.error = FeatureAssetsError(f"The consumer of '{running.source}' failed: {error!r}")
        finally:
            if stores.online is not None:
                stores.online.close()

    def _until_changed(self, running: Running, stores: Stores) -> None:
        """Consume by the registry as it is now, until what it says of the source changes."""
        published = self._registry.read()
        mine = self._mine(published, running.source)
        settings, limits = self._settings, self._settings.stream

        def sink_of(one: Chosen) -> Sink:
            return Sink(Intake(one.source, one.views, settings, stores.online), stores, running.progress)

        consumer = Consumer(
            running.source,
            sink_of(mine),
            opener(mine.source, mine.group, settings),
            limits=Limits(limits.rows, limits.bytes, limits.seconds),
            start=mine.source.start,
            on_lost=limits.on_lost,
        )
        running.progress.error = ""
        watch = _Watch(self._registry, published, mine, lambda now: self._mine(now, running.source))
        log.info("consumes source=%s views=%s group=%s", mine.source.name, mine.names, mine.group)

        def ends() -> bool:
            return self._stop.is_set() or (
                watch.look() and (watch.found.source, watch.found.group) != (mine.source, mine.group)
            )

        def renewed() -> Sink | None:
            if not watch.is_new:
                return None
            watch.is_new = False
            log.info("consumes source=%s views=%s group=%s", mine.source.name, watch.found.names, mine.group)
            return sink_of(watch.found)

        consumer.run(ends, renewed)

    def _mine(self, published: Published, source: str) -> Chosen:
        for one in chosen(published.registry, self._names):
            if one.source.name == source:
                return one
        raise ConfigurationError(f"Source '{source}' feeds no view any more; its consumer has ended.")


class _Watch:
    """Looks now and then whether the registry says something else of one source; `found` is what it says."""

    def __init__(
        self, registry: RegistryStore, published: Published, found: Chosen, mine: Callable[[Published], Chosen]
    ) -> None:
        self._registry, self._etag, self._mine = registry, published.etag, mine
        self.found, self.is_new = found, False
        self._due = time.monotonic() + _LOOK_EVERY

    def look(self) -> bool:
        """Whether it does, and has not been taken up."""
        if time.monotonic() < self._due:
            return self.is_new
        self._due = time.monotonic() + _LOOK_EVERY
        try:
            published = self._registry.poll(self._etag)
        except (RegistryError, StoreError) as error:
            log.warning("the registry cannot be read error=%s: %s", type(error).__name__, error)
            return self.is_new
        if published is not None:
            now = self._mine(published)
            self.is_new |= canonical_json([now.source, now.views]) != canonical_json(
                [self.found.source, self.found.views]
            )
            self._etag, self.found = published.etag, now
        return self.is_new


def _stores(settings: Settings) -> Stores:
    offline = OfflineStore(
        settings.place(settings.offline), storage_options=settings.storage(), durability=settings.durability
    )
    online = open_online_store(settings.online_url)
    return Stores(offline, online, dead_letter_store(settings), settings.stream.dead_letter_bytes)
