"""What the server answers from: one registry snapshot at a time, and the questions compiled for it.

A request takes the snapshot once and keeps it to its end, so that no answer mixes two; the next snapshot is put in place
between two requests, with the questions of the last one compiled already.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

from feature_assets.access import Grant
from feature_assets.config import Settings
from feature_assets.errors import (
    FeatureAssetsError,
    NotPublished,
    RequestError,
    UnknownService,
    UnknownView,
)
from feature_assets.lookup import OnlineLookup
from feature_assets.online import open_online_store
from feature_assets.online.protocol import OnlineStore
from feature_assets.references import ReadPlan, projections, resolve
from feature_assets.registry import Published, Registry, RegistryStore
from feature_assets.server.problems import Problem
from feature_assets.server.wire import OnlineAnswer, OnlineQuestion
from feature_assets.spec import Function
from feature_assets.types import microseconds

log = logging.getLogger(__name__)

Asked: TypeAlias = str | tuple[str, ...]
"""The name of a service, or references."""

_QUESTIONS_KEPT: Final = 1_024
_QUESTIONS_WARMED: Final = 64

READ: Final = "features:read"
_SEE_PERSONAL: Final = "pii:read"
KNOW: Final = "registry:read"


@dataclass(frozen=True, slots=True)
class _Need:
    """One thing that was asked for, and the views that whoever asks has to be allowed to read."""

    kind: str
    name: str
    views: frozenset[str]
    known: bool

    def met(self, grant: Grant) -> bool:
        return self.known and all(grant.allows(READ, view) for view in self.views)


class Question:
    """A feature list, compiled: what it needs to be allowed, and how it is answered."""

    __slots__ = ("_needs", "answer", "asked", "in_thread", "lookup", "personal", "width")

    def __init__(self, asked: OnlineQuestion, needs: Sequence[_Need], lookup: OnlineLookup, *, local: bool) -> None:
        # Without its entities: they are those of whoever asked first.
        self.asked = msgspec.structs.replace(asked, entities={}, features=msgspec.Raw(bytes(asked.features)))
        self._needs, self.lookup = needs, lookup
        self.answer = OnlineAnswer(lookup)
        plan = lookup.plan
        self.personal = _personal(plan)
        self.width = len(plan.outputs)
        # What may wait for a network, or runs code that somebody else wrote, must not hold up other requests.
        self.in_thread = not local or any(isinstance(one.spec.transformation, Function) for one in plan.on_demand)

    def allowed(self, grant: Grant) -> bool:
        """Whether all of it may be read."""
        return grant.everywhere(READ) or all(need.met(grant) for need in self._needs)

    def hidden(self, grant: Grant) -> list[str]:
        """The features that this grant does not see, because they hold personal data or are made from it."""
        return [
            name
            for name, views in self.personal.items()
            if not all(grant.allows(_SEE_PERSONAL, view) for view in views)
        ]


def _personal(plan: ReadPlan) -> Mapping[str, frozenset[str]]:
    """The outputs that hold personal data, each with the views that declare it."""
    tainted: dict[str, frozenset[str]] = {}
    for read in plan.reads:
        for field in read.features:
            if field.pii:
                tainted[read.column(field.name)] = frozenset({read.view.name})
    for computed in plan.on_demand:
        # Nobody but its author knows what a transformation lets through; so all of it counts.
        source: frozenset[str] = frozenset().union(*(tainted.get(column, frozenset()) for _, column in computed.inputs))
        for field in computed.features:
            views = source | {computed.spec.name} if field.pii else source
            if views:
                tainted[computed.column(field.name)] = views
    return {output.name: tainted[output.column] for output in plan.outputs if output.column in tainted}


class Snapshot:
    """One registry snapshot in force. Questions are compiled when they are first asked, in any thread."""

    def __init__(self, published: Published, store: OnlineStore, settings: Settings) -> None:
        self.registry: Registry = published.registry
        self.digest, self.etag = published.digest, published.etag
        self.published_at = published.published_at
        self.headers = ((b"content-type", b"application/json"), (b"x-feature-registry", published.digest.encode()))
        self.lines = b"".join(b"%b: %b\r\n" % header for header in self.headers)
        self._store, self._settings = store, settings
        self._local = settings.online_url.startswith("sqlite:")
        self.compiled: dict[tuple[bytes, str | None, bool], Question] = {}

    def question(self, asked: OnlineQuestion, grant: Grant) -> Question:
        """The question, compiled and kept in `compiled`.

        What is not allowed is refused before it is looked at more closely: a message may tell of what is there.

        Raises:
            Problem: some of it is not there, or not allowed: the two look alike to who may not know the registry.
            FeatureAssetsError: it cannot be answered as it was asked.
        """
        needs = tuple(self._needs(asked.asked(self._settings.server.max_features)))
        for need in needs:
            if not need.met(grant):
                raise self._refusal(need, grant)
        return self._compile(asked, needs)

    def _compile(self, asked: OnlineQuestion, needs: Sequence[_Need]) -> Question:
        limits = self._settings.server
        features = asked.asked(limits.max_features)
        plan = resolve(self.registry, features, full_feature_names=asked.full_feature_names)
        if len(plan.outputs) > limits.max_features or len(plan.reads) > limits.max_views:
            raise Problem(
                422,
                "too-many-features",
                f"That is {len(plan.outputs)} features of {len(plan.reads)} views; {limits.max_features} features and "
                f"{limits.max_views} views are the limit. Ask in parts.",
            )
        present = self._settings.present
        if present is None:
            lookup = OnlineLookup(plan, self._store, self._settings.functions)
        else:
            now = microseconds(present)
            lookup = OnlineLookup(plan, self._store, self._settings.functions, clock=lambda: now)
        question = Question(asked, needs, lookup, local=self._local)
        if len(self.compiled) >= _QUESTIONS_KEPT:
            # Those that are asked all the time are compiled again at once; to keep track of them would cost each.
            self.compiled.clear()
        self.compiled[asked.key] = question
        return question

    def warm(self, former: "Snapshot") -> None:
        """Compile what was asked of the former snapshot last."""
        most = self._settings.server.max_features
        for question in list(former.compiled.values())[-_QUESTIONS_WARMED:]:
            with suppress(FeatureAssetsError, Problem):
                self._compile(question.asked, tuple(self._needs(question.asked.asked(most))))

    def _needs(self, asked: Asked) -> Iterator[_Need]:
        for position, item in enumerate([asked] if isinstance(asked, str) else asked):
            try:
                found = projections(self.registry, [item])
            except UnknownService:
                yield _Need("feature service", item, frozenset(), known=False)
                continue
            except RequestError as error:
                raise Problem(422, "bad-reference", str(error), pointer=f"/features/{position}") from None
            if ":" in item:
                yield self._need("feature view", found[0].view, [found[0].view])
            else:
                yield self._need("feature service", item, [one.view for one in found])

    def _need(self, kind: str, name: str, asked: Sequence[str]) -> _Need:
        views: set[str] = set()
        waiting = list(asked)
        while waiting:
            view = waiting.pop()
            if view not in views:
                views.add(view)
                if view in self.registry.on_demand:
                    waiting += [source.view for source in self.registry.on_demand[view].sources]
        known = all(view in self.registry.views or view in self.registry.on_demand for view in views)
        return _Need(kind, name, frozenset(views), known)

    def _refusal(self, need: _Need, grant: Grant) -> Exception:
        if not grant.allows(KNOW, need.name):
            return Problem(
                404,
                "unknown-or-forbidden",
                f"There is no {need.kind} '{need.name}', or this token may not read it. Look at its name, or ask for a "
                f"token with the scope {READ}.",
            )
        if not need.known:
            registry = self.registry
            if need.kind == "feature service":
                return UnknownService.among(need.name, [name for name in registry.services if grant.allows(KNOW, name)])
            return UnknownView.among(
                need.name, [name for name in (*registry.views, *registry.on_demand) if grant.allows(KNOW, name)]
            )
        missing = sorted(view for view in need.views if grant.allows(KNOW, view) and not grant.allows(READ, view))
        return insufficient_scope(f"This token may not read the {need.kind} '{need.name}'.", missing)


def insufficient_scope(why: str, views: Sequence[str] = (), *, act: str = READ) -> Problem:
    """A token that is good and does not allow this (RFC 6750)."""
    scope = " ".join(f"{act}:{view}" for view in views[:20]) or act
    return Problem(
        403,
        "insufficient-scope",
        f"{why} Ask for one with: {scope}",
        challenge=f'error="insufficient_scope", scope="{scope}"',
    )


class Serving:
    """The snapshot in force, kept up to date."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
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

    def refresh(self) -> bool:
        """Take up what was published since; whether there was anything."""
        former = self.snapshot
        published = self.registry_store.read() if former is None else self.registry_store.poll(former.etag)
        if published is None:
            return False
        if former is not None and published.digest == former.digest:
            former.etag = published.etag
            return False
        snapshot = Snapshot(published, self._store, self._settings)
        if former is not None:
            snapshot.warm(former)
        self.snapshot = snapshot
        log.info("registry in force digest=%s sequence=%d", published.digest, published.sequence)
        return True

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
