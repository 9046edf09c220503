"""`FeatureStore`: the features of the published registry, as training sets and as the latest values.

It never sees the definitions. Stores open when they are first asked; what a question needs is worked out once per
registry snapshot and kept.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from feature_assets.access import PUSH, READ, Access, Principal
from feature_assets.errors import Forbidden, Unauthenticated
from feature_assets.lookup import EntityRows, OnlineLookup, OnlineResponse
from feature_assets.online import open_online_store
from feature_assets.online.protocol import OnlineStore, ReadsOverNetwork
from feature_assets.references import Features, Question, asked_for, question
from feature_assets.registry import Published, Registry, RegistryStore
from feature_assets.spec import ViewProjection
from feature_assets.types import microseconds

if TYPE_CHECKING:
    import polars as pl

    from feature_assets.config import Settings
    from feature_assets.historical import Progress
    from feature_assets.historical.spine import Frame
    from feature_assets.offline import OfflineStore
    from feature_assets.push import Pushed, Pushes
    from feature_assets.remote import RemoteFeatureStore
    from feature_assets.served.shape import LogShape
    from feature_assets.served.skew import FeatureSkew
    from feature_assets.training import Differences, TrainingSet, TrainingSets

_ONLINE_WITHIN = 30.0
_LOOKUPS_IN_PLACE = 4

PLANS_KEPT = 256
"""Questions of which a store keeps the compiled plan; the one that was not asked for longest goes first."""


class FeatureStore:
    """Retrieval for training and for serving. Safe to share between threads.

    `features` is the name of a feature service, a list of references ("view:feature", "view@v2:feature", "view:*"), of
    projections (`store.view("weather")[["temp"]].with_name("dest_weather")`) or of declared views and services.
    """

    def __init__(
        self,
        settings: "Settings | None" = None,
        *,
        config: str | Path | None = None,
        principal: Principal | None = None,
    ) -> None:
        """Open the platform of these settings, else of a `feature_assets.toml`: `config`, or the nearest one upward.

        With a principal every question is decided as the server would decide it: `Forbidden` where it may not ask, `MASKED`
        or left out what it may not see. Without one the process does what its credentials for the stores let it do.

        Raises:
            ConfigurationError: the file is missing, or a setting is wrong.
        """
        if settings is None:
            # Reading settings costs more than all else here; whoever has some already has paid.
            from feature_assets.config import Settings

            settings = Settings.load(config)
        self.settings = settings
        self.principal = principal
        self._opening = Lock()
        self._snapshot: _Snapshot | None = None
        self._online: OnlineStore | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._pushes: Pushes | None = None
        self._registry = RegistryStore(settings.place(settings.registry), settings.storage())

    @staticmethod
    def remote(url: str, **options: Any) -> "RemoteFeatureStore":
        """The same questions, put to a feature server; `options` are those of `RemoteFeatureStore`.

        Raises:
            ConfigurationError: the URL is not HTTPS and not on this machine, or it is not clear where tokens come from.
        """
        # Who has the stores at hand does without an HTTP client.
        from feature_assets.remote import RemoteFeatureStore

        return RemoteFeatureStore(url, **options)

    @property
    def registry(self) -> Registry:
        """The registry snapshot in use.

        Raises:
            NotPublished: there is none yet.
            RegistryUnreadable: what is published is damaged, or of a newer release.
        """
        return self._current().published.registry

    def refresh(self) -> bool:
        """Take up what was published since; whether there was anything. Raises as `registry` does.

        A question that is being answered meanwhile is answered by the former snapshot as a whole.
        """
        if self._snapshot is None:
            self._current()
            return True
        published = self._registry.poll(self._snapshot.published.etag)
        if published is None:
            return False
        changed = published.digest != self._snapshot.published.digest
        self._snapshot = _Snapshot(published, self)
        return changed

    def view(self, name: str, version: int | None = None) -> ViewProjection:
        """A view to ask for: `store.view("weather")[["temp"]].with_join_key_map({"origin": "dest"})`.

        Raises:
            UnknownView: there is no such view or version.
        """
        if name in self.registry.on_demand and version is None:
            return ViewProjection(name)
        return ViewProjection(self.registry.view(name, version).name, version=version)

    def service(self, name: str) -> tuple[ViewProjection, ...]:
        """What a feature service asks for, to be changed and asked for instead.

        Raises:
            UnknownService: there is no such service.
        """
        return self.registry.service(name).features

    def get_historical_features(
        self,
        spine: "Frame | None" = None,
        features: Features = (),
        *,
        full_feature_names: bool = False,
        created_cutoff: bool = True,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        timestamp_column: str | None = None,
        tables: "Mapping[str, Frame] | None" = None,
        engine: str = "polars",
        memory_limit: int | str | None = None,
        progress: "Callable[[Progress], None] | None" = None,
    ) -> "TrainingSet":
        """The spine's rows, in its order, each with the features as they were known at its time.

        What was published since is taken up first (`refresh`), and the Delta version of every view is fixed; rows are
        read when the training set is.

        Args:
            spine: a Polars, pandas or Arrow frame; a path or URL of Parquet, CSV, JSON lines or Delta; a query
                ("SELECT …") over views, sources and `tables`; or None for every key and time at which one of the views
                has a row from `since` on and before `until`. It has the join keys, the request fields of on-demand
                views, and a time; naive times are UTC.
            features: see the class; they stand in this order behind the spine's columns.
            full_feature_names: features are called `view__feature`.
            created_cutoff: leave out rows that were created after the spine row's time.
            since, until: see `spine`.
            timestamp_column: the spine's column of times; by default `event_timestamp`, else its only datetime column.
            tables: frames that a query names.
            engine: what joins: "polars", or "daft" or "daft-ray", which spread the parts of the spine over the processors of
                this machine or over a Ray cluster; the rows are the same.
            memory_limit: about how much memory joining may take, in bytes or as "4GB"; by default that of the settings.
                What does not fit is joined part by part, by way of the temporary folder; the rows are the same. `.collect()`,
                `.to_pandas()` and `.to_arrow()` have all of the answer in memory all the same.
            progress: is told how many rows are done, whenever some are.

        Raises:
            Forbidden: the principal may not ask this.
            RequestError: the question cannot be answered as it was asked.
            UnknownView, UnknownFeature, UnknownService: the registry has nothing of that name.
            TableMissing: a view was never materialised.
        """
        # Delta is loaded by whoever trains, and not by whoever only looks up.
        from feature_assets.historical import historical_features

        self.refresh()
        current = self._current()
        return historical_features(
            current.published.registry,
            self.offline,
            spine,
            features,
            full_feature_names=full_feature_names,
            created_cutoff=created_cutoff,
            since=since,
            until=until,
            timestamp_column=timestamp_column,
            tables=tables or {},
            engine=engine,
            memory_limit=self.settings.memory_limit if memory_limit is None else memory_limit,
            progress=progress,
            address=self.settings.ray_address,
            scratch=None if self.settings.scratch is None else self.settings.place(self.settings.scratch),
            allowed_modules=self.settings.functions,
            sets=self._sets(),
            access=current.access,
            principal=self._asking(),
        )

    def training_set(self, name: str) -> "TrainingSet":
        """A saved training set, as it was saved.

        Raises:
            UnknownTrainingSet: there is none of that name.
            Forbidden: it holds what the principal may not see.
        """
        self._admit_saved(name)
        return self._sets().load(name)

    def rebuild(
        self,
        name: str,
        *,
        memory_limit: int | str | None = None,
        progress: "Callable[[Progress], None] | None" = None,
    ) -> "TrainingSet":
        """A saved training set made again from its manifest, the same bit for bit.

        `memory_limit` and `progress` are those of `get_historical_features`.

        Raises:
            UnknownTrainingSet: there is none of that name.
            NotReproducible: naming what is no longer there, or what came out otherwise.
            Forbidden: it holds what the principal may not see.
        """
        from feature_assets.historical import rebuild

        self._admit_saved(name)
        return rebuild(
            name,
            sets=self._sets(),
            snapshot=self._registry.snapshot,
            offline=self.offline,
            allowed_modules=self.settings.functions,
            memory_limit=self.settings.memory_limit if memory_limit is None else memory_limit,
            progress=progress,
        )

    def training_sets(self) -> list[str]:
        """The names of the saved training sets."""
        return self._sets().names()

    def compare(self, first: str, second: str) -> "Differences":
        """What the second saved training set has otherwise than the first: views and versions, columns, rows.

        Raises:
            UnknownTrainingSet: there is none of that name.
            Forbidden: one holds what the principal may not see.
        """
        from feature_assets.training import differences

        for name in (first, second):
            self._admit_saved(name)
        return differences(self._sets(), first, second)

    def get_online_features(
        self, features: Features, entity_rows: EntityRows = None, *, full_feature_names: bool = False
    ) -> OnlineResponse:
        """The latest values of some entities, with a status and an event timestamp for each.

        Args:
            features: see the class; the answer has them in this order.
            entity_rows: join keys, and request fields of on-demand views: a list of dicts, a dict of columns, or a
                frame. The answer has a row for each, in their order.
            full_feature_names: answers are called `view__feature`.

        Raises:
            Forbidden: the principal may not ask this.
            RequestError: the question cannot be answered as it was asked.
            UnknownView, UnknownFeature, UnknownService: the registry has nothing of that name.
            TableMissing: a view was never materialised.
        """
        return self.lookup(features, full_feature_names=full_feature_names).read(entity_rows)

    async def get_online_features_async(
        self, features: Features, entity_rows: EntityRows = None, *, full_feature_names: bool = False
    ) -> OnlineResponse:
        """`get_online_features` beside other coroutines; it runs in a thread.

        Over a network as many wait for the store at once as it allows (`lookups` in the URL of DynamoDB), and more take
        their turn. Of one that is cancelled before its turn nothing is read; a read that was begun ends for nobody.
        """
        read = partial(self.get_online_features, features, entity_rows, full_feature_names=full_feature_names)
        threads = self._threads or await asyncio.to_thread(self._started_threads)
        return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, read)

    def _started_threads(self) -> ThreadPoolExecutor:
        online = self.online
        count = online.lookups_at_once if isinstance(online, ReadsOverNetwork) else _LOOKUPS_IN_PLACE
        with self._opening:
            self._threads = self._threads or ThreadPoolExecutor(count, thread_name_prefix="lookup")
        return self._threads

    def get_served_features(
        self,
        service: str,
        *,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        statuses: bool = False,
    ) -> "pl.LazyFrame":
        """The vectors that the server answered with, of a service that is declared with `logging=`, by time.

        Args:
            service: its name.
            since, until: when they were served (UTC), from the one on and before the other.
            statuses: also the status of each value and the event timestamp of each view.

        Returns:
            `request_id` (the answer's X-Request-Id), `request_row`, `served_at`, `registry_digest`, join keys, request
            fields, features: to train on as they are, or as a spine with `timestamp_column="served_at"`.

        Raises:
            UnknownService: there is no such service.
            TableMissing: nothing of it was logged yet.
            Forbidden: the store has a principal; the log holds what others were answered.
        """
        from feature_assets.served.reading import served_rows

        shape, log, _ = self._served(service)
        return served_rows(shape, log, since=since, until=until, statuses=statuses)

    def skew(
        self, service: str, *, since: datetime | str | None = None, until: datetime | str | None = None
    ) -> "list[FeatureSkew]":
        """Compare what was served of a service with what the offline store says now of the same keys and times.

        Raises as `get_served_features`.
        """
        from feature_assets.served.skew import skew_of

        shape, log, registry = self._served(service)
        modules = self.settings.functions
        return skew_of(registry, shape, log, self.offline, since=since, until=until, allowed_modules=modules)

    def _served(self, service: str) -> "tuple[LogShape, OfflineStore, Registry]":
        from feature_assets.served.shape import log_store, shape_of

        if self.principal is not None:
            raise Forbidden("The log of what was served is open to a store without a principal alone.")
        self.refresh()
        registry = self.registry
        return shape_of(registry, service), log_store(self.settings), registry

    def lookup(self, features: Features, *, full_feature_names: bool = False) -> OnlineLookup:
        """The compiled lookup of these features, for many reads by one snapshot. Raises as `get_online_features`."""
        self._asking()
        return self._current().lookup(question(features), full_feature_names)

    def push(
        self,
        source: str,
        rows: Any,
        *,
        to: str = "online_and_offline",
        event_id: str | None = None,
    ) -> "Pushed":
        """Push rows to every view that takes those of a push source.

        When this returns, the rows are in a journal that survives the death of this process and a power loss; they are
        offline exactly once and online a moment later (`.wait()` for it). The rows are taken as a whole or not at all.

        Args:
            source: the name of a `PushSource`.
            rows: a Polars, pandas or Arrow frame, a dict of columns or a list of dicts; naive times are UTC.
            to: "online", "offline" or "online_and_offline", as Feast has them. Offline is what online is the latest of,
                so each of them means both.
            event_id: the same push sent again with the same id changes nothing. Without one, and without a field of ids
                in the source, rows that are equal in every column are the same rows.

        Raises:
            UnknownSource: there is no such source.
            RequestError, ContractBroken, ChecksFailed: the rows are not what the views take; none was taken.
            Forbidden: the principal may not push to one of the views, or not these rows: to a view with a row filter only
                rows with its own key. All are refused.
            StoreFull, StoreUnavailable: they cannot be kept; none was taken.
        """
        from feature_assets.push import Push

        self.refresh()
        asking, current = self._asking(), self._current()
        decision = None if asking is None else current.access.pushing(asking, source).enforce()
        push = Push(source, rows, event_id, decision=decision)
        return self._pushing().push(push, current.published.registry, to=to)

    async def push_async(
        self, source: str, rows: Any, *, to: str = "online_and_offline", event_id: str | None = None
    ) -> "Pushed":
        """`push` beside other coroutines; it runs in a thread."""
        return await asyncio.to_thread(self.push, source, rows, to=to, event_id=event_id)

    def write_to_online_store(self, feature_view_name: str, rows: Any, *, event_id: str | None = None) -> "Pushed":
        """Push rows to one view, and to no other view of its source.

        It comes back when they are online, and offline: a row that online is not the latest of offline would not stay. If
        a store is away, it comes back after half a minute; the rows are safe all the same (`.wait()` for them).

        Args:
            feature_view_name: a view that takes the rows of a push source as they are.
            rows: as `push` takes them, with the columns of the view.
            event_id: see `push`.

        Raises:
            UnknownView: there is no such view.
            RequestError, ContractBroken, ChecksFailed: the view does not take the rows; none was taken.
            Forbidden: the principal may not push to the view, or not these rows.
            StoreFull, StoreUnavailable: they cannot be kept; none was taken.
        """
        from feature_assets.push import Push, source_of

        self.refresh()
        asking, current = self._asking(), self._current()
        decision = None if asking is None else current.access.decide(asking, PUSH, feature_view_name).enforce()
        registry = current.published.registry
        source = source_of(registry.view(feature_view_name))
        push = Push(source, rows, event_id, only=feature_view_name, decision=decision)
        pushed = self._pushing().push(push, registry)
        pushed.wait(_ONLINE_WITHIN)
        return pushed

    async def write_to_online_store_async(
        self, feature_view_name: str, rows: Any, *, event_id: str | None = None
    ) -> "Pushed":
        """`write_to_online_store` beside other coroutines; it runs in a thread."""
        return await asyncio.to_thread(self.write_to_online_store, feature_view_name, rows, event_id=event_id)

    def _pushing(self) -> "Pushes":
        from feature_assets.push import Pushes

        with self._opening:
            if self._pushes is None:
                self._pushes = Pushes(self.settings, self.offline, self._opened_online())
        return self._pushes

    def _opened_online(self) -> OnlineStore:
        self._online = self._online or open_online_store(self.settings.online_url)
        return self._online

    @property
    def online(self) -> OnlineStore:
        """The online store."""
        if self._online is None:
            with self._opening:
                self._online = self._online or open_online_store(self.settings.online_url)
        return self._online

    @property
    def offline(self) -> "OfflineStore":
        """The offline store."""
        from feature_assets.offline import OfflineStore

        settings = self.settings
        root = settings.place(settings.offline)
        return OfflineStore(root, storage_options=settings.storage(), durability=settings.durability)

    def _sets(self) -> "TrainingSets":
        from feature_assets.training import TrainingSets

        return TrainingSets(self.settings.place(self.settings.training), self.settings.storage())

    def _asking(self) -> Principal | None:
        """The principal, as long as it counts.

        Raises:
            Unauthenticated: it does no longer.
        """
        if self.principal is not None and self.principal.ends <= time.time():
            raise Unauthenticated("The principal's token has ended. Open the store with a new one.")
        return self.principal

    def _admit_saved(self, name: str) -> None:
        principal = self._asking()
        if principal is not None:
            from feature_assets.historical import admit_saved

            self.refresh()
            admit_saved(name, self._sets(), self._current().access, principal)

    def close(self) -> None:
        """Let go of files and connections; what was pushed is published first."""
        if self._pushes is not None:
            self._pushes.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._online is not None:
            self._online.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FeatureStore(registry={self._registry.place!r}, online={self.settings.online!r})"

    def _current(self) -> "_Snapshot":
        if self._snapshot is None:
            published = self._registry.read()
            with self._opening:
                self._snapshot = self._snapshot or _Snapshot(published, self)
        return self._snapshot


class _Snapshot:
    """One registry snapshot, and the lookups that were compiled for it."""

    def __init__(self, published: Published, store: FeatureStore) -> None:
        self.published = published
        self.access = Access(published.registry)
        self._store = store
        self.lookup = lru_cache(maxsize=PLANS_KEPT)(self._compiled)

    def _compiled(self, asked: Question, full_feature_names: bool) -> OnlineLookup:  # noqa: FBT001 (cached by position)
        features = asked_for(asked)
        principal, settings = self._store.principal, self._store.settings
        reading = self.access.reading(principal, READ, features, full_feature_names=full_feature_names)
        decision = None if principal is None else reading.decide(principal).enforce()
        clock: dict[str, Any] = {}
        if settings.present is not None:
            now = microseconds(settings.present)
            clock["clock"] = lambda: now
        lookup = OnlineLookup(reading.plan, self._store.online, settings.functions, **clock)
        return lookup if decision is None else lookup.within(decision)
