"""The sensor that has finished what a crash left between the stores, among any number of views."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import dagster as dg

from feature_assets.assets.feature_view import FeatureView
from feature_assets.assets.resources import RESOURCE, FeatureAssets
from feature_assets.errors import FeatureAssetsError
from feature_assets.offline import OfflineStore
from feature_assets.online.protocol import OnlineStore
from feature_assets.push import orphaned
from feature_assets.settlement import pending
from feature_assets.spec import ViewSpec

JOB = "reconcile_online_store_job"

SECONDS = 20.0
"""So long a tick looks at views; Dagster gives up on one after a minute."""

AGAIN = 3_600.0
"""After so many seconds a view is looked at as a whole, though its table has not moved."""


class _Whole(NamedTuple):
    """At that Delta version nothing of a view was pending, at that time."""

    version: int
    at: float


@dataclass
class _Looks:
    """What a code server remembers of each table between ticks: when it was looked at, and when nothing was pending.

    To list the partitions of both stores takes a tenth of a second for a year of hours, and nearly always nothing has
    happened; that the log has no newer entry shows at one look.
    """

    views: Sequence[FeatureView]
    looked: dict[str, float] = field(default_factory=dict)
    whole: dict[str, _Whole] = field(default_factory=dict)

    @cached_property
    def specs(self) -> list[ViewSpec]:
        return [view.spec for view in self.views]

    def in_turn(self, first: Sequence[str], offline: OfflineStore) -> Iterator[ViewSpec]:
        """These first, then those that were not looked at for longest; until the time is over, but one at least."""
        end = time.monotonic() + SECONDS
        for view in sorted(
            self.specs, key=lambda one: (one.name not in first, self.looked.get(offline.uri(one), -1.0))
        ):
            self.looked[offline.uri(view)] = time.monotonic()
            yield view
            if time.monotonic() >= end:
                return

    def pending(self, view: ViewSpec, offline: OfflineStore, online: OnlineStore) -> tuple[str, ...]:
        table, now = offline.uri(view), time.monotonic()
        whole = self.whole.get(table)
        if whole is not None and now - whole.at < AGAIN and offline.is_at(view, whole.version):
            return ()
        state = offline.state(view)
        partitions = pending(view, offline, online, state=state)
        if state is not None and not partitions:
            self.whole[table] = _Whole(state.version, now)
        else:
            self.whole.pop(table, None)
        return partitions


def reconcile_sensor(views: Sequence[FeatureView]) -> dg.SensorDefinition:
    """Requests `reconcile_online_store_job` where a crash left a view between the two stores, by a look at the ledger."""
    looks = _Looks(views)

    @dg.sensor(
        name="reconcile_online_store",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        job_name=JOB,
        required_resource_keys={RESOURCE},
        description="Brings the online store up to the offline one where a run died between the two.",
    )
    def reconcile_online_store(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        stores: FeatureAssets = getattr(context.resources, RESOURCE)
        offline, online, seen = stores.offline(), stores.online(), context.cursor or ""
        behind: dict[str, tuple[str, ...]] = {}
        failed, looked = [], 0
        for view in looks.in_turn([one.partition(":")[0] for one in seen.split(";")], offline):
            looked += 1
            try:
                partitions = looks.pending(view, offline, online)
            except FeatureAssetsError as error:
                # One that cannot be looked at does not keep the others from being served.
                context.log.exception("%s cannot be looked at; the other views are", view.name)
                failed.append(error)
                continue
            if partitions:
                behind[view.name] = partitions
        if failed and not behind:
            raise failed[0]
        if orphaned(stores.settings()):
            behind["pushed rows"] = ("of a process that is gone",)
        return _decided(behind, seen, looked, len(views))

    return reconcile_online_store


def _decided(behind: Mapping[str, Sequence[str]], seen: str, looked: int, views: int) -> dg.SensorResult:
    found = ";".join(f"{name}:{','.join(parts)}" for name, parts in sorted(behind.items()))
    if not behind:
        reason = (
            "Every view is served as published."
            if looked == views
            else f"Looked at {looked} of {views:,} views; the next tick goes on."
        )
        return dg.SensorResult(cursor="", skip_reason=dg.SkipReason(reason))
    if found != seen:
        # What a run is publishing right now looks pending too; it is left a tick to finish.
        return dg.SensorResult(cursor=found, skip_reason=dg.SkipReason(f"Waiting for {', '.join(behind)} to finish."))
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=None)], cursor="")
