"""What the server answers from: one registry snapshot at a time, and the questions compiled for it.

A request takes the snapshot once and keeps it to its end, so that no answer mixes two; the next snapshot is put in place
between two requests, with the questions of the last one compiled already.
"""

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from feature_assets.access import READ, Access, Principal, Reading
from feature_assets.config import Settings
from feature_assets.errors import (
    FeatureAssetsError,
    NotPublished,
    RequestError,
)
from feature_assets.lookup import OnlineLookup
from feature_assets.online import open_online_store
from feature_assets.online.protocol import OnlineStore
from feature_assets.references import parse_reference
from feature_assets.registry import Published, Registry, RegistryStore
from feature_assets.server import metrics
from feature_assets.server.meters import Meters, Watched
from feature_assets.server.problems import Problem
from feature_assets.server.wire import Asked, OnlineAnswer, OnlineQuestion, QuestionKey
from feature_assets.spec import Function, ServiceSpec
from feature_assets.types import microseconds

if TYPE_CHECKING:
    from feature_assets.served.shape import LogShape

log = logging.getLogger(__name__)

_QUESTIONS_KEPT: Final = 1_024
_QUESTIONS_WARMED: Final = 64


class Question:
    """A feature list, compiled: what it needs to be allowed, and how it is answered."""

    __slots__ = ("answer", "asked", "in_thread", "logging", "lookup", "reading", "width")

    def __init__(
        self, asked: OnlineQuestion, reading: Reading, lookup: OnlineLookup, meters: Meters, *, local: bool
    ) -> None:
        # Without its entities: they are those of whoever asked first.
        self.asked = msgspec.structs.replace(asked, entities={}, features=msgspec.Raw(bytes(asked.features)))
        self.reading, self.lookup = reading, lookup
        self.logging: LoggedService | None = None
        plan = lookup.plan
        self.answer = OnlineAnswer(lookup, meters.values(plan), with_types=asked.include_types)
        self.width = len(plan.outputs)
        # What may wait for a network, or runs code that somebody else wrote, must not hold up other requests.
        self.in_thread = not local or any(isinstance(one.spec.transformation, Function) for one in plan.on_demand)


@dataclass(frozen=True, slots=True)
class LoggedService:
    """A service whose answers are logged."""

    shape: "LogShape"
    rate: float
    registry: str

    @classmethod
    def of(cls, snapshot: "Snapshot", service: ServiceSpec) -> "LoggedService | None":
        """None where its log cannot be made, which the program's log says."""
        from feature_assets.served.shape import shape_of

        try:
            shape = shape_of(snapshot.registry, service.name)
        except FeatureAssetsError as error:
            log.warning("service is not logged service=%s error=%s", service.name, error)
            return None
        return cls(shape, shape.config.sample_rate, snapshot.digest)


class Snapshot:
    """One registry snapshot in force. Questions are compiled when they are first asked, in any thread."""

    def __init__(self, published: Published, store: OnlineStore, settings: Settings, meters: Meters) -> None:
        self.registry: Registry = published.registry
        self.access = Access(self.registry)
        self.digest, self.etag = published.digest, published.etag
        self.published_at = published.published_at
        self.headers = ((b"content-type", b"application/json"), (b"x-feature-registry", published.digest.encode()))
        self.lines = b"".join(b"%b: %b\r\n" % header for header in self.headers)
        self._store, self._settings, self._meters = meters.reads(store), settings, meters
        self._local = is_local(settings)
        self.compiled: dict[QuestionKey, Question] = {}

    def reading(
        self, features: Asked, principal: Principal | None, act: str, *, full_feature_names: bool = False
    ) -> Reading:
        """What to read for that and what it needs to be allowed. Raises as `question`."""
        limits = self._settings.server
        _check_references(features)
        reading = self.access.reading(principal, act, features, full_feature_names=full_feature_names)
        plan = reading.plan
        if len(plan.outputs) > limits.max_features or len(plan.reads) > limits.max_views:
            raise Problem(
                422,
                "too-many-features",
                f"That is {len(plan.outputs)} features of {len(plan.reads)} views; {limits.max_features} features and "
                f"{limits.max_views} views are the limit. Ask in parts.",
            )
        return reading

    def question(self, asked: OnlineQuestion, principal: Principal | None) -> Question:
        """The question, compiled and kept in `compiled`.

        What the principal may not read is refused before it is looked at more closely.

        Raises:
            Problem: a reference is malformed, or it is too much at once.
            Forbidden: the principal may not read all of it.
            FeatureAssetsError: it cannot be answered as it was asked.
        """
        features = asked.asked(self._settings.server.max_features)
        reading = self.reading(features, principal, READ, full_feature_names=asked.full_feature_names)
        plan = reading.plan
        present, functions = self._settings.present, self._settings.functions
        on_seconds = self._meters.histogram(metrics.ON_DEMAND_SECONDS).add
        if present is None:
            lookup = OnlineLookup(plan, self._store, functions, on_seconds=on_seconds)
        else:
            now = microseconds(present)
            lookup = OnlineLookup(plan, self._store, functions, clock=lambda: now, on_seconds=on_seconds)
        question = Question(asked, reading, lookup, self._meters, local=self._local)
        service = self.registry.services[asked.feature_service] if asked.feature_service else None
        if service is not None and service.logging is not None:
            question.logging = LoggedService.of(self, service)
        if len(self.compiled) >= _QUESTIONS_KEPT:
            # Those that are asked all the time are compiled again at once; to keep track of them would cost each.
            self.compiled.clear()
        self.compiled[asked.key] = question
        return question

    def warm(self, former: "Snapshot") -> None:
        """Compile what was asked of the former snapshot last."""
        for question in list(former.compiled.values())[-_QUESTIONS_WARMED:]:
            with suppress(FeatureAssetsError, Problem):
                self.question(question.asked, None)


def _check_references(features: Asked) -> None:
    for position, item in enumerate(features if isinstance(features, tuple) else ()):
        if isinstance(item, str) and ":" in item:
            try:
                parse_reference(item)
            except RequestError as error:
                raise Problem(422, "bad-reference", str(error), pointer=f"/features/{position}") from None


def is_local(settings: Settings) -> bool:
    """Whether the latest rows are on this machine, so that no read waits for a network."""
    return settings.online_url.startswith("sqlite:")


class Serving:
    """The snapshot in force, kept up to date. `is_local`: whether the latest rows are on this machine."""

    def __init__(self, settings: Settings, meters: Meters) -> None:
        self._settings, self._meters = settings, meters
        self.is_local = is_local(settings)
        self._refreshed = 0.0
        meters.watch(self._watched)
        self.registry_store = RegistryStore(settings.place(settings.registry), settings.storage())
        self._store = open_online_store(settings.online_url)
        self.snapshot: Snapshot | None = None

    @property
    def current(self) -> Snapshot:
        """The snapshot in force.

        Raises:
            NotPublished: there is none yet.
        """
        if self.snapshot is None:
            raise NotPublished.at(self.registry_store.place)
        return self.snapshot

    @property
    def store(self) -> OnlineStore:
        """The online store, which rows are written to as well."""
        return self._store

    def refresh(self) -> bool:
        """Take up what was published since; whether there was anything."""
        try:
            changed = self._taken_up()
        except Exception:
            self._meters.count(metrics.REFRESHES, "failed")
            raise
        self._refreshed = time.time()
        self._meters.count(metrics.REFRESHES, "taken_up" if changed else "unchanged")
        return changed

    def _taken_up(self) -> bool:
        former = self.snapshot
        published = self.registry_store.read() if former is None else self.registry_store.poll(former.etag)
        if published is None:
            return False
        if former is not None and published.digest == former.digest:
            former.etag = published.etag
            return False
        snapshot = Snapshot(published, self._store, self._settings, self._meters)
        if former is not None:
            snapshot.warm(former)
        self.snapshot = snapshot
        log.info("registry in force digest=%s sequence=%d", published.digest, published.sequence)
        return True

    def _watched(self) -> Watched:
        snapshot = self.snapshot
        if snapshot is not None:
            yield metrics.SNAPSHOT_INFO, (snapshot.digest,), 1
            yield metrics.SNAPSHOT_TIME, (), snapshot.published_at.timestamp()
        if self._refreshed:
            yield metrics.REFRESH_TIME, (), self._refreshed

    async def keep_fresh(self) -> None:
        """Refresh for ever. What cannot be read leaves the snapshot that is in force."""
        failed = ""
        while True:
            try:
                await asyncio.to_thread(self.refresh)
                failed = ""
            except Exception as error:  # noqa: BLE001 (the one thing that may never end is this)
                reason = f"{type(error).__name__}: {error}"
                if reason != failed:
                    log.warning("registry cannot be read error=%s", reason)
                failed = reason
            await asyncio.sleep(self._settings.server.registry_refresh_seconds)

    def close(self) -> None:
        """Let go of the store."""
        self._store.close()
