"""What is pushed to stream views in Dagster's history: materialisations without a run, by a look at the Delta log.

Who pushes knows no Dagster. A sensor reads what has been appended since its last tick, so that automation conditions
downstream react to pushed rows as to materialised ones.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import dagster as dg

from feature_assets.assets.resources import RESOURCE, FeatureAssets
from feature_assets.assets.stream_view import StreamFeatureView
from feature_assets.errors import FeatureAssetsError
from feature_assets.offline import OfflineState, OfflineStore
from feature_assets.spec import ViewSpec

SENSOR: Final = "report_pushed_rows"

_FAR: Final = 10_000
"""Versions that are looked at; of what was pushed before, only the partitions' present rows are told."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What was pushed since somebody looked: by partition the rows, and the latest event time (UTC)."""

    rows: Mapping[str, int]
    watermarks: Mapping[str, datetime]
    state: OfflineState
    version: int


def arrivals(view: ViewSpec, offline: OfflineStore, seen: int | None) -> Arrivals | None:
    """What was pushed to a view after a Delta version; None if it has no table yet."""
    state = offline.state(view)
    if state is None:
        return None
    # A table that was made anew begins anew.
    after = seen if seen is not None and seen <= state.version else -1
    commits = offline.commits(view, after=max(after, state.version - _FAR))
    rows: Counter[str] = Counter()
    watermarks: dict[str, datetime] = {}
    for commit in commits:
        for partition, (count, last) in json.loads(commit.metadata.get("pushed", "{}")).items():
            rows[partition] += count
            at = datetime.fromisoformat(last)
            watermarks[partition] = max(at, watermarks.get(partition, at))
    return Arrivals(rows, watermarks, state, max((commit.version for commit in commits), default=state.version))


def report_pushes_sensor(views: Sequence[StreamFeatureView]) -> dg.SensorDefinition:
    """Reports pushed rows as materialisations of the partitions that they are in."""

    @dg.sensor(
        name=SENSOR,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={RESOURCE},
        description="Reports rows that were pushed since the last look as materialisations.",
    )
    def report_pushed_rows(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        stores: FeatureAssets = getattr(context.resources, RESOURCE)
        seen: dict[str, int] = json.loads(context.cursor or "{}")
        events: list[dg.AssetMaterialization] = []
        failed: list[FeatureAssetsError] = []
        for view in views:
            name = f"{view.spec.name}@v{view.spec.version}"
            try:
                found = arrivals(view.spec, stores.offline(), seen.get(name))
            except FeatureAssetsError as error:
                context.log.exception("the table of %s cannot be looked at; the others are", view.spec.name)
                failed.append(error)
                continue
            if found is not None:
                events += _materializations(view, found)
                seen[name] = found.version
        if failed and not events:
            raise failed[0]
        told = f"Reported, by partition: {len(events)}. There is nothing to run."
        skipped = dg.SkipReason(told if events else "Nothing was pushed since the last look.")
        return dg.SensorResult(cursor=json.dumps(seen, sort_keys=True), asset_events=events, skip_reason=skipped)

    return report_pushed_rows


def _materializations(view: StreamFeatureView, found: Arrivals) -> Iterator[dg.AssetMaterialization]:
    for partition in sorted(found.rows):
        metadata: dict[str, Any] = {
            "rows": found.rows[partition],
            "watermark": dg.MetadataValue.timestamp(found.watermarks[partition]),
            "dagster/row_count": found.state.rows,
            "dagster/partition_row_count": found.state.rows_by_partition.get(partition, 0),
            "delta_version": found.version,
        }
        yield dg.AssetMaterialization(
            view.key,
            partition=partition if view.partitions_def is not None else None,
            metadata=metadata,
            # No digest of the rows: reading a partition for every few pushed ones would cost more than they did.
            tags={"dagster/data_version": f"pushed-{found.version}"},
        )
