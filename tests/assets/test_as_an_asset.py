"""Whatever takes an asset of Dagster's takes a feature view: jobs, schedules, checks, other IO managers, what is downstream."""

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from feature_assets import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    Float64,
    String,
    feature_definitions,
    feature_view,
)
from feature_assets.assets import FeatureAssets

DAILY = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-02-01")
airport = Entity("airport", join_keys={"origin": String})


@dg.asset(partitions_def=DAILY)
def readings(context: dg.AssetExecutionContext) -> pl.DataFrame:
    """Kept by Dagster's own IO manager, as a pickle."""
    at = context.partition_time_window.start + timedelta(hours=6)
    return pl.DataFrame({"origin": ["JFK", "LGA"], "observed_at": [at] * 2, "temp": [1.0, 2.0]})


@feature_view(
    entities=[airport],
    schema=[Field("temp", Float64)],
    event_timestamp="observed_at",
    partitions_def=DAILY,
    tags={"a": "b"},
)
def weather(readings: pl.DataFrame) -> pl.DataFrame:
    return readings


outdoors = FeatureService("outdoors", [weather])


@dg.asset_check(asset=weather)
def is_warm(weather: pl.LazyFrame) -> dg.AssetCheckResult:
    warmest = weather.select(pl.col("temp").max()).collect().item()
    return dg.AssetCheckResult(passed=warmest > 1.5, metadata={"warmest": warmest})


@dg.asset(partitions_def=DAILY)
def rows_of_the_day(weather: pl.DataFrame) -> int:
    return len(weather)


@dg.asset(deps=[outdoors])
def model() -> None:
    """What is trained on the service."""


daily = dg.define_asset_job("daily", selection=dg.AssetSelection.tag("a", "b"))
every_day = dg.build_schedule_from_partitioned_job(daily)


@pytest.fixture
def definitions(stores: FeatureAssets) -> dg.Definitions:
    return feature_definitions(
        [readings, weather, outdoors, rows_of_the_day, model],
        config=stores.config,
        asset_checks=[is_warm],
        jobs=[daily],
        schedules=[every_day],
    )


def test_jobs_select_it_and_checks_and_assets_downstream_read_it(
    definitions: dg.Definitions, stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    day, everything = "2024-01-02", definitions.resolve_implicit_global_asset_job_def()
    assert everything.execute_in_process(instance=instance, partition_key=day, asset_selection=[readings.key]).success
    done = definitions.resolve_job_def("daily").execute_in_process(instance=instance, partition_key=day)
    assert [event.asset_key for event in done.get_asset_materialization_events()] == [weather.key]
    assert stores.offline().scan(weather.spec).collect().height == 2
    done = everything.execute_in_process(
        instance=instance, partition_key=day, asset_selection=[weather.key, rows_of_the_day.key]
    )
    (check,) = done.get_asset_check_evaluations()
    assert (check.check_name, check.passed, check.metadata["warmest"].value) == ("is_warm", True, 2.0)
    assert done.output_for_node("rows_of_the_day") == 2


@pytest.mark.filterwarnings("ignore:Function .JobDefinition.run_request_for_partition")
def test_schedules_ask_for_its_partitions(definitions: dg.Definitions, instance: dg.DagsterInstance) -> None:
    schedule = definitions.resolve_schedule_def("daily_schedule")
    context = dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=datetime(2024, 1, 4, tzinfo=UTC),
        repository_def=definitions.get_repository_def(),
    )
    asked = schedule.evaluate_tick(context).run_requests or []
    assert [one.partition_key for one in asked] == ["2024-01-03"]


def test_what_is_trained_on_a_service_is_downstream_of_the_view(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    assert dg.AssetSelection.assets(weather).downstream().resolve(graph) >= {weather.key, outdoors.key, model.key}


def test_definitions_that_are_merged_keep_their_views(stores: FeatureAssets) -> None:
    one = dg.Definitions(assets=[weather], resources={"feature_assets": stores})
    both = dg.Definitions.merge(one, dg.Definitions(assets=[readings, outdoors, rows_of_the_day]))
    assert isinstance(both.resolve_assets_def(weather.key), FeatureView)


FRAMES: dict[str, Any] = {
    "frame": lambda rows: rows,
    "lazy frame": lambda rows: rows.lazy(),
    "arrow table": lambda rows: rows.to_arrow(),
    "arrow reader": lambda rows: pa.Table.to_reader(rows.to_arrow()),
    "pandas": lambda rows: rows.to_pandas(),
}


@pytest.mark.parametrize("form", FRAMES)
def test_its_function_may_return(form: str, stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    rows = pl.DataFrame({"origin": ["JFK", None], "observed_at": [datetime(2024, 1, 2)] * 2, "temp": [1.0, None]})

    @feature_view(entities=[airport], schema=[Field("temp", Float64)], event_timestamp="observed_at")
    def seen() -> Any:
        return FRAMES[form](rows.drop_nulls("origin"))

    assert dg.materialize([seen], instance=instance, resources={"feature_assets": stores}).success
    found = stores.offline().scan(seen.spec).collect().select("origin", "temp").rows()
    assert found == [("JFK", 1.0)]


@pytest.mark.parametrize("kind", [pl.LazyFrame, pl.DataFrame, pd.DataFrame, pa.Table], ids=lambda kind: kind.__module__)
def test_parameters_are_of_the_kind_that_they_are_annotated_with(
    kind: type, stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    """In the function of a view, and in a plain asset that reads one."""
    seen: list[Any] = []

    @dg.asset(partitions_def=DAILY)
    def plain(weather: kind) -> None:  # type: ignore[valid-type]
        seen.append(weather)

    @feature_view(
        entities=[airport], schema=[Field("temp", Float64)], event_timestamp="observed_at", partitions_def=DAILY
    )
    def again(weather: kind, readings: kind) -> Any:  # type: ignore[valid-type]
        seen.extend([weather, readings])
        return weather

    resources = {"feature_assets": stores}
    for one in (readings, weather, plain, again):
        assert dg.materialize(
            [readings, weather, plain, again],
            selection=[one],
            instance=instance,
            resources=resources,
            partition_key="2024-01-02",
        ).success
    assert [type(rows) for rows in seen] == [kind] * 3
    assert stores.offline().scan(again.spec).collect().height == 2


def test_without_the_stores_dagster_names_what_is_missing(instance: dg.DagsterInstance) -> None:
    with pytest.raises(
        dg.DagsterInvalidDefinitionError, match="io manager with key 'feature_assets' required by output"
    ):
        dg.materialize([readings, weather], instance=instance, partition_key="2024-01-02")
