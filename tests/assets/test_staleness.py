"""What Dagster takes for stale: partitions whose upstream rows changed, and no others."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import dagster as dg
import polars as pl
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from feature_assets import Entity, Field, Float64, String
from feature_assets.assets import FeatureAssets, FeatureView, feature_view

DAILY = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-02-01")
DAYS = ("2024-01-02", "2024-01-03", "2024-01-04")
RANGE = {"dagster/asset_partition_range_start": DAYS[0], "dagster/asset_partition_range_end": DAYS[-1]}
DECLARED: dict[str, Any] = {
    "entities": [Entity("airport", join_keys={"origin": String})],
    "schema": [Field("temp", Float64)],
    "event_timestamp": "observed_at",
}


class Platform:
    """Weather by day and what is made of it, on one instance."""

    def __init__(self, stores: FeatureAssets, instance: dg.DagsterInstance, partitions_def: Any = DAILY) -> None:
        self._stores, self._instance = stores, instance
        self.temperatures = dict.fromkeys(DAYS, 1.0)
        self.both = [self._weather(partitions_def), self._warmth(partitions_def)]

    def _weather(self, partitions_def: Any) -> FeatureView:
        @feature_view(partitions_def=partitions_def, **DECLARED)
        def weather(context: dg.AssetExecutionContext) -> pl.DataFrame:
            days = [str(key)[:10] for key in context.partition_keys]
            return pl.DataFrame(
                {
                    "origin": ["JFK"] * len(days),
                    "observed_at": [datetime.fromisoformat(day) for day in days],
                    "temp": [self.temperatures[day] for day in days],
                }
            )

        return weather

    def _warmth(self, partitions_def: Any) -> FeatureView:
        @feature_view(partitions_def=partitions_def, **DECLARED)
        def warmth(weather: pl.LazyFrame) -> pl.LazyFrame:
            return weather

        return warmth

    def materialize(self, *which: int, **more: Any) -> None:
        resources = {"feature_assets": self._stores}
        selection = [self.both[number] for number in which]
        more |= {"selection": selection, "instance": self._instance, "resources": resources}
        assert dg.materialize(self.both, **more).success

    def stale(self, partitions: tuple[str, ...] = DAYS) -> set[tuple[str, str]]:
        """What the UI would ask to materialise again."""
        resources = {"feature_assets": self._stores}
        graph = dg.Definitions(assets=self.both, resources=resources).resolve_asset_graph()
        resolver = CachingStaleStatusResolver(self._instance, graph, LoadingContextForTest(self._instance))
        return {
            (key.to_user_string(), partition)
            for key in (one.key for one in self.both)
            for partition in partitions
            if resolver.get_status(key, partition) != StaleStatus.FRESH
        }


@pytest.fixture
def platform(stores: FeatureAssets, instance: dg.DagsterInstance) -> Iterator[Platform]:
    return Platform(stores, instance)


def test_nothing_is_stale_after_a_range(platform: Platform) -> None:
    platform.materialize(0, 1, tags=RANGE)
    assert platform.stale() == set()


def test_what_was_materialised_in_two_runs_is_not_stale_either(platform: Platform) -> None:
    platform.materialize(0, tags=RANGE)
    platform.materialize(1, tags=RANGE)
    assert platform.stale() == set()


def test_a_changed_partition_makes_that_one_stale_downstream(platform: Platform) -> None:
    platform.materialize(0, 1, tags=RANGE)
    platform.temperatures["2024-01-03"] = 2.0
    platform.materialize(0, tags=RANGE)
    assert platform.stale() == {("warmth", "2024-01-03")}
    platform.materialize(1, partition_key="2024-01-03")
    assert platform.stale() == set()


@pytest.mark.parametrize("how", [{"tags": RANGE}, {"partition_key": "2024-01-03"}], ids=["range", "one"])
def test_the_same_rows_again_make_nothing_stale(platform: Platform, how: dict[str, Any]) -> None:
    platform.materialize(0, 1, tags=RANGE)
    platform.materialize(0, **how)
    assert platform.stale() == set()


def test_partitions_of_two_dimensions_are_told_apart(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    both = dg.MultiPartitionsDefinition({"day": DAILY, "region": dg.StaticPartitionsDefinition(["eu"])})
    platform = Platform(stores, instance, both)
    start, end = f"{DAYS[0]}|eu", f"{DAYS[-1]}|eu"
    tags = {"dagster/asset_partition_range_start": start, "dagster/asset_partition_range_end": end}
    platform.materialize(0, 1, tags=tags)
    assert platform.stale(tuple(f"{day}|eu" for day in DAYS)) == set()
    newest = instance.fetch_materializations(platform.both[0].key, limit=1).records[0].asset_materialization
    assert newest is not None
    assert (newest.tags or {})["dagster/partition/region"] == "eu"
