"""Pushed rows in Dagster's history, and what is downstream of them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from feature_assets import FeatureStore
from feature_assets.assets import FeatureAssets, feature_definitions
from feature_assets.assets.metadata import registry_from_graph
from feature_assets.errors import StoreError
from tests.assets.test_metrics_reference import documented
from tests.assets.test_platform import _tick
from tests.assets.test_stream_view import driver_trips

NOW = datetime.now(UTC).replace(microsecond=0)
YESTERDAY = NOW - timedelta(days=1)
SENSOR = "report_pushed_rows"


@dg.asset(
    deps=[driver_trips],
    partitions_def=dg.DailyPartitionsDefinition("2024-01-01"),
    automation_condition=dg.AutomationCondition.eager(),
)
def downstream() -> None:
    """Wants to run when there are new trips."""


def platform(stores: FeatureAssets) -> dg.Definitions:
    return feature_definitions([driver_trips, dg.AssetSpec("trip_files"), downstream], config=stores.config)


def opened(stores: FeatureAssets, definitions: dg.Definitions) -> FeatureStore:
    stores.registry().publish(registry_from_graph(definitions.resolve_asset_graph()), location="tests", by="me")
    return FeatureStore(stores.settings().model_copy(update={"push_interval_seconds": 0.01}))


def push(store: FeatureStore, *moments: datetime) -> None:
    rows = [{"driver_id": number, "ended": at, "km": 1.0} for number, at in enumerate(moments)]
    assert store.push("trips", rows).wait(30)


def reports(tick: Any) -> dict[str, dict[str, Any]]:
    return {one.partition: {name: value.value for name, value in one.metadata.items()} for one in tick.asset_events}


def test_what_is_pushed_is_reported_once_by_partition(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    definitions = platform(stores)
    nothing = _tick(definitions, SENSOR, instance)
    assert (nothing.asset_events, nothing.skip_message) == ([], "Nothing was pushed since the last look.")
    with opened(stores, definitions) as store:
        push(store, YESTERDAY, YESTERDAY - timedelta(seconds=1))
        push(store, NOW)
        first = _tick(definitions, SENSOR, instance, nothing.cursor)
        told = reports(first)
        assert {
            day: (one["rows"], one["watermark"], one["dagster/partition_row_count"]) for day, one in told.items()
        } == {
            f"{YESTERDAY:%Y-%m-%d}": (2, YESTERDAY.timestamp(), 2),
            f"{NOW:%Y-%m-%d}": (1, NOW.timestamp(), 1),
        }
        assert {one["dagster/row_count"] for one in told.values()} == {3}
        again = _tick(definitions, SENSOR, instance, first.cursor)
        assert not again.asset_events
        push(store, NOW, NOW - timedelta(seconds=2))
        more = _tick(definitions, SENSOR, instance, again.cursor)
        # One of the two was pushed before, and is the same row.
        assert {day: one["rows"] for day, one in reports(more).items()} == {f"{NOW:%Y-%m-%d}": 1}
        store.offline.compact(driver_trips.spec)
        assert not _tick(definitions, SENSOR, instance, more.cursor).asset_events, "compaction is no news"
    names = {name for event in first.asset_events for name in event.metadata}
    assert names == documented("Of pushed rows")


@pytest.mark.filterwarnings("ignore:Parameter `include_sources`")
def test_what_is_downstream_reacts(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    definitions = platform(stores)
    day = f"{YESTERDAY:%Y-%m-%d}"
    before = dg.evaluate_automation_conditions(definitions, instance)
    assert before.total_requested == 0
    with opened(stores, definitions) as store:
        push(store, YESTERDAY)
        for event in _tick(definitions, SENSOR, instance).asset_events:
            instance.report_runless_asset_event(event)
    assert instance.get_materialized_partitions(driver_trips.key) == {day}
    after = dg.evaluate_automation_conditions(definitions, instance, cursor=before.cursor)
    assert after.get_requested_partitions(downstream.key) == {day}


def test_a_table_that_cannot_be_read_is_told(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    definitions = platform(stores)
    place = Path(stores.offline().uri(driver_trips.spec))
    place.parent.mkdir(parents=True)
    place.write_text("in the way")
    with pytest.raises(StoreError):
        _tick(definitions, SENSOR, instance)


def test_without_stream_views_there_is_no_such_sensor(stores: FeatureAssets) -> None:
    names = {one.name for one in platform(stores).sensors or ()}
    assert SENSOR in names
    assert SENSOR not in {one.name for one in feature_definitions([], config=stores.config).sensors or ()}
