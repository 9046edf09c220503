"""A feature view is a Dagster asset, through and through."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import dagster as dg
import polars as pl
import pytest
from deltalake import DeltaTable

from feature_assets import (
    DeclarationError,
    Entity,
    Expression,
    Field,
    FileSource,
    Float64,
    Fresh,
    InRange,
    Int64,
    NotNull,
    RowCount,
    String,
    Unique,
)
from feature_assets.assets import FeatureAssets, FeatureView, feature_view
from feature_assets.assets.metadata import SPEC
from feature_assets.offline.commits import application
from feature_assets.spec import DynamicPartitions, StaticPartitions, TimePartitions

DAILY = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-02-01")
airport = Entity("airport", join_keys={"origin": String})
EVENT_RANGE = {"dagster/asset_partition_range_start": "2024-01-02", "dagster/asset_partition_range_end": "2024-01-04"}


def weather_at(*days: int, temp: Any = 1.0) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "origin": ["JFK"] * len(days),
            "observed_at": [datetime(2024, 1, day, 6) for day in days],
            "temp": pl.Series([temp] * len(days), dtype=pl.Float64),
        }
    )


def view(rows: Callable[[dg.AssetExecutionContext], Any], **more: Any) -> FeatureView:
    declaration = {
        "entities": [airport],
        "schema": [Field("temp", Float64, description="°F")],
        "event_timestamp": "observed_at",
        "partitions_def": DAILY,
        "name": "weather",
    }

    @feature_view(**(declaration | more))
    def weather(context: dg.AssetExecutionContext) -> Any:
        """Hourly weather."""
        return rows(context)

    return weather


def run(asset: Any, stores: FeatureAssets, instance: dg.DagsterInstance, **more: Any) -> dg.ExecuteInProcessResult:
    assets = asset if isinstance(asset, list) else [asset]
    return dg.materialize(assets, instance=instance, resources={"feature_assets": stores}, raise_on_error=False, **more)


def days_of(context: dg.AssetExecutionContext) -> list[int]:
    return [int(key[-2:]) for key in context.partition_keys]


def online(stores: FeatureAssets, asset: FeatureView) -> list[tuple[Any, ...]]:
    return [row for frame in stores.online().scan(asset.spec) for row in frame.select(asset.spec.columns).iter_rows()]


def failure(result: dg.ExecuteInProcessResult) -> str:
    event = next(event for event in result.all_events if event.event_type_value == "STEP_FAILURE")
    return event.step_failure_data.user_failure_data.description or ""


def test_a_partition_is_published_offline_and_online(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    weather = view(lambda context: weather_at(*days_of(context)))
    result = run(weather, stores, instance, partition_key="2024-01-02")
    assert result.success
    assert online(stores, weather) == [("JFK", datetime(2024, 1, 2, 6, tzinfo=UTC), 1.0)]
    assert stores.offline().scan(weather.spec).collect().height == 1


def test_the_materialisation_says_what_it_did(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    weather = view(lambda context: weather_at(2, 2).with_columns(note=pl.lit("x")))
    result = run(weather, stores, instance, partition_key="2024-01-02")
    metadata = result.asset_materializations_for_node("weather")[0].metadata
    assert metadata["dagster/row_count"].value == 1
    assert metadata["keys"].value == 1
    assert metadata["duplicates_dropped"].value == 1
    assert metadata["undeclared_columns_dropped"].value == "note"
    assert metadata["online"].value == "1 written, 0 already later, 0 corrected"
    assert metadata["delta_version"].value == stores.offline().state(weather.spec).version  # type: ignore[union-attr]
    assert "temp | 0.0% | 1 |  | 1" in metadata["features"].value


def test_row_counts_are_of_the_partition_and_of_the_whole_view(
    stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    weather = view(lambda context: weather_at(*days_of(context)))
    run(weather, stores, instance, tags=EVENT_RANGE)
    records = instance.fetch_materializations(weather.key, limit=3).records
    told = {one.partition_key: one.asset_materialization.metadata for one in records}  # type: ignore[union-attr]
    assert [told[key]["dagster/partition_row_count"].value for key in sorted(told)] == [1, 1, 1]  # type: ignore[type-var]
    assert told["2024-01-04"]["dagster/row_count"].value == told["2024-01-04"]["rows"].value == 3
    both = view(lambda context: weather_at(2, 2).with_columns(origin=pl.Series(["JFK", "LGA"])))
    result = run(both, stores, instance, partition_key="2024-01-02")
    metadata = result.asset_materializations_for_node("weather")[0].metadata
    assert metadata["dagster/partition_row_count"].value == 2
    assert metadata["dagster/row_count"].value == 4


def test_a_range_is_one_run_and_one_commit(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    calls = []

    def rows(context: dg.AssetExecutionContext) -> pl.DataFrame:
        calls.append(days_of(context))
        return weather_at(*days_of(context))

    weather = view(rows)
    result = run(weather, stores, instance, tags=EVENT_RANGE)
    assert result.success
    assert calls == [[2, 3, 4]]
    state = stores.offline().state(weather.spec)
    assert state is not None
    assert sorted(state.publications) == ["2024-01-02", "2024-01-03", "2024-01-04"]
    assert len(set(state.publications.values())) == 1
    materialised = instance.get_materialized_partitions(weather.key)
    assert materialised == {"2024-01-02", "2024-01-03", "2024-01-04"}


def test_the_commit_says_which_run_made_which_partitions_by_which_code(
    stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    weather = view(lambda context: weather_at(*days_of(context)))
    result = run(weather, stores, instance, tags=EVENT_RANGE)
    (commit,) = (one for one in stores.offline().commits(weather.spec) if one.kind == "replace")
    assert commit.partitions == ("2024-01-02", "2024-01-03", "2024-01-04")
    assert commit.metadata["run_id"] == result.run_id
    assert commit.metadata["code_version"] == weather.spec.code_version
    table = DeltaTable(stores.offline().uri(weather.spec))
    for partition in commit.partitions:
        assert table.transaction_version(application(partition)) == int(commit.metadata["publication"])


def test_each_partition_of_a_range_has_its_own_data_version(
    stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    weather = view(lambda context: weather_at(2, 3, 4))
    run(weather, stores, instance, tags=EVENT_RANGE)

    def versions() -> dict[str, str]:
        records = instance.fetch_materializations(weather.key, limit=50).records
        newest: dict[str, str] = {}
        for record in records:
            tags = record.asset_materialization.tags or {}
            newest.setdefault(record.partition_key or "", tags.get("dagster/data_version", ""))
        return newest

    first = versions()
    changed = view(lambda context: weather_at(3, temp=2.0))
    run(changed, stores, instance, partition_key="2024-01-03")
    second = versions()
    assert len(set(first.values())) == 3
    assert {key for key in first if first[key] != second[key]} == {"2024-01-03"}


def test_a_partition_of_a_range_has_one_event_with_all_that_is_known(
    stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    def rows(context: dg.AssetExecutionContext) -> pl.DataFrame:
        context.add_output_metadata({"station": "JFK"}, output_name="result")
        context.add_asset_metadata({"source": "mail"})
        context.add_asset_metadata({"file": "third.csv"}, partition_key="2024-01-03")
        return weather_at(*days_of(context))

    weather = view(rows, deps=["readings"])
    result = run(weather, stores, instance, tags=EVENT_RANGE)
    records = instance.fetch_materializations(weather.key, limit=50).records
    assert sorted(record.partition_key or "" for record in records) == ["2024-01-02", "2024-01-03", "2024-01-04"]
    assert len(result.asset_materializations_for_node("weather")) == 3
    for record in records:
        told = record.asset_materialization
        assert told is not None
        assert told.metadata["station"].value == "JFK"
        assert told.metadata["source"].value == "mail"
        assert ("file" in told.metadata) is (record.partition_key == "2024-01-03")
        assert not [name for name in told.metadata if name.startswith("__")]
    single = run(weather, stores, instance, partition_key="2024-01-03").asset_materializations_for_node("weather")[0]
    kept = next(one.asset_materialization for one in records if one.partition_key == "2024-01-03")
    assert kept is not None
    assert single.tags == kept.tags
    assert {"station", "source", "file", "rows"} <= set(single.metadata)


def test_the_same_rows_in_another_order_have_the_same_data_version(
    stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    rows = pl.DataFrame(
        {"origin": ["JFK", "LGA"], "observed_at": [datetime(2024, 1, 2, 6)] * 2, "temp": [1.0, float("nan")]}
    )
    versions = []
    for frame in (rows, rows.reverse().lazy()):
        result = run(view(lambda context, frame=frame: frame), stores, instance, partition_key="2024-01-02")
        tags = result.asset_materializations_for_node("weather")[0].tags or {}
        versions.append(tags["dagster/data_version"])
    assert versions[0] == versions[1] != ""


CHECKS: dict[str, Any] = {
    "not null": (NotNull("temp"), weather_at(2, temp=None), "not_null_temp .*1 of 1 rows fail"),
    "range": (InRange("temp", maximum=0), weather_at(2), "in_range_temp"),
    "unique": (
        Unique(("temp",)),
        pl.concat([weather_at(2), weather_at(2).with_columns(origin=pl.lit("LGA"))]),
        "unique_temp",
    ),
    "row count": (RowCount(minimum=2), weather_at(2), r"row_count \(2 ≤ rows\): 1 rows"),
    "freshness": (Fresh(max_age=timedelta(hours=1)), weather_at(2), "fresh .*the newest row is of 2024-01-02 06:00:00"),
    "expression": (Expression(pl.col("temp") > 5, name="warm"), weather_at(2), "warm"),
}


@pytest.mark.parametrize("check, rows, message", CHECKS.values(), ids=CHECKS)
def test_a_failed_check_publishes_nothing(
    check: Any, rows: pl.DataFrame, message: str, stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    weather = view(lambda context: rows, checks=[check])
    result = run(weather, stores, instance, partition_key="2024-01-02")
    assert not result.success
    assert stores.offline().state(weather.spec) is None
    assert stores.online().tables() == []
    evaluation = result.get_asset_check_evaluations()[0]
    assert not evaluation.passed
    assert re.search(f"weather: nothing was published, for 1 of 1 checks failed: {message}", failure(result))


def test_the_offending_rows_are_kept_where_the_message_says(
    stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    weather = view(lambda context: weather_at(2, temp=99.0), checks=[InRange("temp", maximum=50)])
    result = run(weather, stores, instance, partition_key="2024-01-02")
    place = result.get_asset_check_evaluations()[0].metadata["kept_at"].value
    assert place in failure(result)
    assert pl.read_parquet(place)["temp"].to_list() == [99.0]


def test_how_many_rows_fail_is_told_where_none_does_as_well(
    stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    """Dagster plots it over time."""
    weather = view(lambda context: weather_at(2, temp=9.0), checks=[InRange("temp", maximum=50), RowCount(minimum=1)])
    result = run(weather, stores, instance, partition_key="2024-01-02")
    row_check, count = result.get_asset_check_evaluations()
    assert (row_check.metadata["failing_rows"].value, "failing_rows" in count.metadata) == (0, False)


def test_a_check_that_warns_is_reported_and_publishes(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    weather = view(lambda context: weather_at(2, temp=99.0), checks=[InRange("temp", maximum=50, severity="warn")])
    result = run(weather, stores, instance, partition_key="2024-01-02")
    assert result.success
    evaluation = result.get_asset_check_evaluations()[0]
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert len(online(stores, weather)) == 1


def test_a_broken_contract_is_one_clear_failure(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    weather = view(lambda context: weather_at(3))
    result = run(weather, stores, instance, partition_key="2024-01-02")
    assert not result.success
    assert failure(result).startswith(
        "weather, partition 2024-01-02: 'observed_at' lies outside 2024-01-02 00:00:00 ≤ t <"
    )


PARTITIONINGS: dict[str, Any] = {
    "hourly": (dg.HourlyPartitionsDefinition("2024-01-01-00:00"), "2024-01-02-06:00"),
    "weekly": (dg.WeeklyPartitionsDefinition("2023-12-31"), "2023-12-31"),
    "monthly": (dg.MonthlyPartitionsDefinition("2024-01-01"), "2024-01-01"),
    "cron": (
        dg.TimeWindowPartitionsDefinition(start="2024-01-01-00:00", cron_schedule="15 2 * * *", fmt="%Y-%m-%d-%H:%M"),
        "2024-01-02-02:15",
    ),
    "zone": (dg.DailyPartitionsDefinition("2024-01-01", timezone="Pacific/Auckland"), "2024-01-02"),
    "static": (dg.StaticPartitionsDefinition(["eu", "us"]), "us"),
    "none": (None, None),
}


@pytest.mark.parametrize("partitions_def, key", PARTITIONINGS.values(), ids=PARTITIONINGS)
def test_every_partitioning_is_materialised(
    partitions_def: dg.PartitionsDefinition | None, key: str | None, stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    weather = view(lambda context: weather_at(2), partitions_def=partitions_def)
    assert run(weather, stores, instance, partition_key=key).success
    state = stores.offline().state(weather.spec)
    assert state is not None
    assert list(state.publications) == [key or "all"]
    assert len(online(stores, weather)) == 1


def test_a_range_of_static_partitions_is_told_apart_by_a_column(
    stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    regions = dg.StaticPartitionsDefinition(["eu", "us"])
    tags = {"dagster/asset_partition_range_start": "eu", "dagster/asset_partition_range_end": "us"}
    rows = weather_at(2, 3)
    weather = view(lambda context: rows, partitions_def=regions)
    assert "no column 'partition' to tell them apart" in failure(run(weather, stores, instance, tags=tags))
    weather = view(lambda context: rows.with_columns(partition=pl.Series(["us", "eu"])), partitions_def=regions)
    assert run(weather, stores, instance, tags=tags).success
    state = stores.offline().state(weather.spec)
    assert state is not None
    assert state.rows_by_partition == {"eu": 1, "us": 1}


def test_a_function_that_asks_for_the_key_of_a_range_says_what_to_do(
    stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    weather = view(lambda context: weather_at(int(context.partition_key[-2:])))
    said = failure(run(weather, stores, instance, tags=EVENT_RANGE))
    assert said == (
        "weather() asks for context.partition_key, and this run is for 3 partitions: 2024-01-02 to 2024-01-04. Compute all of "
        "context.partition_keys there, or give weather backfill_policy=dg.BackfillPolicy.multi_run(1), which makes each of "
        "them a run."
    )
    assert stores.offline().state(weather.spec) is None
    assert run(weather, stores, instance, partition_key="2024-01-02").success


def test_what_else_dagster_refuses_stays_in_its_words(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    weather = view(lambda context: context.op_execution_context.asset_partition_key_for_input("nothing"))
    result = run(weather, stores, instance, tags=EVENT_RANGE)
    assert "asks for context.partition_key" not in str(result.all_events)


@pytest.mark.filterwarnings("ignore:Parameter .backfill_policy.")
def test_a_plain_asset_keeps_the_rows_of_a_range_once(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    both = dg.MultiPartitionsDefinition({"day": DAILY, "region": dg.StaticPartitionsDefinition(["eu", "us"])})
    tags = {
        "dagster/asset_partition_range_start": "2024-01-02|eu",
        "dagster/asset_partition_range_end": "2024-01-03|us",
    }
    rows = weather_at(2, 3).with_columns(region=pl.Series(["us", "eu"]))
    seen = []

    @dg.asset(
        io_manager_key="feature_assets",
        partitions_def=both,
        backfill_policy=dg.BackfillPolicy.single_run(),
        metadata={"feature_assets/timestamp": "observed_at"},
    )
    def readings() -> pl.DataFrame:
        return rows

    @feature_view(
        entities=[airport], schema=[Field("temp", Float64)], event_timestamp="observed_at", partitions_def=both
    )
    def weather(readings: pl.DataFrame) -> pl.DataFrame:
        seen.append(readings.height)
        return readings

    assert run([readings, weather], stores, instance, tags=tags).success
    key = dg.MultiPartitionKey({"day": "2024-01-02", "region": "us"})
    assert run([readings, weather], stores, instance, partition_key=key, selection=[weather]).success
    assert seen == [2, 1]
    rows = rows.drop("region")
    assert not run([readings, weather], stores, instance, tags=tags).success


def test_resources_are_parameters(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    class Station(dg.ConfigurableResource):  # type: ignore[type-arg]
        temp: float

    @feature_view(entities=[airport], schema=[Field("temp", Float64)], event_timestamp="observed_at")
    def weather(station: Station, offset: dg.ResourceParam[float]) -> pl.DataFrame:
        return weather_at(2, temp=station.temp + offset)

    resources = {"feature_assets": stores, "station": Station(temp=7.0), "offset": 0.5}
    assert dg.materialize([weather], instance=instance, resources=resources).success
    assert online(stores, weather)[0][2] == 7.5


def test_the_code_version_of_a_view_of_a_source_follows_its_whole_declaration() -> None:
    def made(path: str = "weather.csv", **more: Any) -> str:
        source = FileSource(name="station", path=path, format="csv")
        declaration = {"entities": [airport], "schema": [Field("temp", Float64)], "event_timestamp": "observed_at"}
        return FeatureView.from_source(source, **(declaration | more)).spec.code_version

    assert made() == made()
    others = [
        made("rain.csv"),
        made(ttl=timedelta(hours=1)),
        made(transform=lambda rows: rows.drop_nulls()),
        made(schema=[Field("temp", Float64), Field("dew", Float64)]),
    ]
    assert len({made(), *others}) == 5


def test_time_by_static_and_dynamic_dimensions(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions("tenants", ["acme"])
    both = {
        "static": dg.MultiPartitionsDefinition({"day": DAILY, "region": dg.StaticPartitionsDefinition(["eu", "us"])}),
        "dynamic": dg.MultiPartitionsDefinition(
            {"day": DAILY, "tenant": dg.DynamicPartitionsDefinition(name="tenants")}
        ),
    }
    keys = {
        "static": dg.MultiPartitionKey({"day": "2024-01-02", "region": "us"}),
        "dynamic": dg.MultiPartitionKey({"day": "2024-01-02", "tenant": "acme"}),
    }
    for name, partitions_def in both.items():
        weather = view(lambda context: weather_at(2), partitions_def=partitions_def, name=f"weather_{name}")
        assert run(weather, stores, instance, partition_key=keys[name]).success
        state = stores.offline().state(weather.spec)
        assert state is not None
        assert list(state.publications) == [str(keys[name])]
    assert isinstance(weather.spec.partitions["tenant"], DynamicPartitions)


def test_the_hour_that_is_there_twice_is_two_partitions(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    hourly = dg.HourlyPartitionsDefinition("2024-10-27-00:00", timezone="Europe/Berlin", end_date="2024-10-28-00:00")
    first, second = datetime(2024, 10, 27, 0, 30), datetime(2024, 10, 27, 1, 30)
    keys = [key for key in hourly.get_partition_keys() if "-02:00" in key]
    assert len(keys) == 2
    assert len(hourly.get_partition_keys()) == 25
    for key, at in zip(keys, (first, second), strict=True):
        weather = view(lambda context, at=at: weather_at(2).with_columns(observed_at=pl.lit(at)), partitions_def=hourly)
        assert run(weather, stores, instance, partition_key=key).success, key
    assert [row[1] for row in online(stores, weather)] == [second.replace(tzinfo=UTC)]


def test_a_view_without_entities_has_one_row(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    weather = view(lambda context: weather_at(2).drop("origin"), entities=[])
    assert run(weather, stores, instance, partition_key="2024-01-02").success
    assert online(stores, weather) == [(datetime(2024, 1, 2, 6, tzinfo=UTC), 1.0)]


def test_a_view_of_a_view_reads_its_window_and_looks_back(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    weather = view(lambda context: weather_at(*days_of(context)))
    seen: dict[str, list[datetime]] = {}

    @feature_view(
        entities=[airport],
        schema=[Field("readings", Int64)],
        event_timestamp="as_of",
        partitions_def=DAILY,
        lookback=timedelta(days=1),
    )
    def readings(context: dg.AssetExecutionContext, weather: pl.LazyFrame) -> pl.LazyFrame:
        seen["times"] = weather.collect()["observed_at"].sort().to_list()
        start = context.partition_time_window.start
        return weather.group_by("origin").agg(readings=pl.len().cast(pl.Int64)).with_columns(as_of=pl.lit(start))

    run(weather, stores, instance, tags=EVENT_RANGE)
    assert run([weather, readings], stores, instance, partition_key="2024-01-03", selection=[readings]).success
    assert [time.day for time in seen["times"]] == [2, 3]


def test_a_source_is_read_for_the_window_and_renamed(
    stores: FeatureAssets, instance: dg.DagsterInstance, tmp_path: Any
) -> None:
    weather_at(1, 2, 3).rename({"temp": "temperature"}).write_csv(
        tmp_path / "weather.csv", datetime_format="%Y-%m-%dT%H:%M:%S"
    )
    source = FileSource(
        name="station",
        path=str(tmp_path / "weather.csv"),
        format="csv",
        timestamp_field="observed_at",
        field_mapping={"temperature": "temp"},
    )
    weather = FeatureView.from_source(
        source,
        name="weather",
        entities=[airport],
        schema=[Field("temp", Float64)],
        event_timestamp="observed_at",
        partitions_def=DAILY,
    )
    assert run([weather, dg.AssetSpec("station")], stores, instance, partition_key="2024-01-02").success
    assert online(stores, weather) == [("JFK", datetime(2024, 1, 2, 6, tzinfo=UTC), 1.0)]
    assert weather.dependency_keys == {dg.AssetKey("station")}


def test_what_dagster_copies_stays_a_view() -> None:
    weather = view(lambda context: weather_at(2))
    copies = [
        weather.with_attributes(group_names_by_key={weather.key: "flights"}),
        weather.with_attributes(asset_key_replacements={weather.key: dg.AssetKey(["us", "weather"])}),
        weather.map_asset_specs(lambda spec: spec.replace_attributes(owners=["team:x"])),
    ]
    module = ModuleType("platform")
    module.weather = weather  # type: ignore[attr-defined]
    copies += dg.load_assets_from_modules([module], group_name="loaded", key_prefix="prefix")
    for copy in copies:
        assert isinstance(copy, FeatureView)
        assert copy.spec == weather.spec


def test_the_asset_carries_what_the_ui_shows() -> None:
    weather = view(
        lambda context: weather_at(2),
        owners=["team:flight-ops"],
        tags={"tier": "gold"},
        ttl=timedelta(hours=6),
        checks=[NotNull("temp")],
    )
    spec = next(iter(weather.specs))
    assert spec.owners == ["team:flight-ops"]
    assert spec.tags["tier"] == "gold"
    assert spec.kinds == {"polars", "delta"}
    assert spec.description == "Hourly weather."
    assert [column.name for column in spec.metadata["dagster/column_schema"].columns] == [
        "origin",
        "observed_at",
        "temp",
    ]
    assert spec.code_version == weather.spec.code_version != ""
    assert [check.name for check in weather.check_specs] == ["not_null_temp"]
    assert weather.backfill_policy == dg.BackfillPolicy.single_run()
    assert SPEC in spec.metadata


def test_partitions_are_kept_as_data() -> None:
    partitions = view(
        lambda context: None,
        partitions_def=dg.MultiPartitionsDefinition({"day": DAILY, "region": dg.StaticPartitionsDefinition(["eu"])}),
    ).spec.partitions
    assert partitions["region"] == StaticPartitions(("eu",))
    assert isinstance(partitions["day"], TimePartitions)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no features": ({"schema": []}, "View 'weather' has no features"),
    "negative ttl": ({"ttl": timedelta(hours=-1)}, "ttl -1 day, 23:00:00 is not positive"),
    "feature twice": ({"schema": [Field("temp", Float64), Field("Temp", Float64)]}, "names column 'Temp' twice"),
    "feature is a key": ({"schema": [Field("origin", String)]}, "names column 'origin' twice"),
    "entity twice": ({"entities": [airport, airport]}, "names entity 'airport' twice"),
    "check of nothing": ({"checks": [NotNull("dew")]}, "reads 'dew', which the view does not have"),
    "a check of no name": (
        {"checks": [Expression(pl.col("temp") > 0, name="no/ghosts")]},
        "a check cannot be called 'no/ghosts'.*letters, digits and underscores",
    ),
    "version zero": ({"version": 0}, "version 0 is not 1 or more"),
    "lookback of nothing": ({"lookback": {"rain": timedelta(1)}}, "no parameter 'rain'"),
    "checks without results": ({"check_specs": [dg.AssetCheckSpec("mine", asset="weather")]}, "no check results"),
    "a bad name": ({"name": "hourly weather"}, "a name starts with a letter"),
}


@pytest.mark.parametrize("declaration, message", WRONG.values(), ids=WRONG)
def test_a_declaration_that_cannot_be_right_fails_when_made(declaration: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        view(lambda context: None, **declaration)
