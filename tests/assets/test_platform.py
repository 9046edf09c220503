"""The definitions of a platform: registry asset, sensors, jobs, lineage; services and on-demand views as nodes."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from feature_assets import (
    DeclarationError,
    Entity,
    FeatureStore,
    Field,
    FileSource,
    Float64,
    Int64,
    RequestSource,
    String,
)
from feature_assets.assets import (
    FeatureAssets,
    FeatureService,
    FeatureView,
    OnDemandFeatureView,
    feature_definitions,
    feature_view,
    on_demand_feature_view,
)
from feature_assets.assets.metadata import metadata_for, registry_from_graph, spec_from_metadata
from feature_assets.assets.partitions import slices
from feature_assets.errors import StoreUnsafe
from feature_assets.publication import publish
from feature_assets.registry import check_registry
from feature_assets.settlement import pending

DAILY = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-02-01")
airport = Entity("airport", join_keys={"origin": String})


@feature_view(
    entities=[airport],
    schema=[Field("temp", Float64), Field("wind", Float64)],
    event_timestamp="observed_at",
    partitions_def=DAILY,
    ttl=timedelta(hours=6),
    sources={"readings": FileSource(name="station_readings", path="readings.parquet")},
)
def weather(readings: pl.LazyFrame) -> pl.LazyFrame:
    return readings


moment = RequestSource("moment", (Field("hour", Int64),))
feels_like = OnDemandFeatureView(
    "feels_like",
    sources=[weather[["temp", "wind"]], moment],
    schema=[Field("chill", Float64)],
    expressions={"chill": pl.col("temp") - pl.col("wind") * 0.7},
)
outdoors = FeatureService("outdoors", [weather[["temp"]].with_name("air"), feels_like], owners=["team:walks"])


def platform(stores: FeatureAssets) -> dg.Definitions:
    return feature_definitions([weather, feels_like, outdoors], config=stores.config)


def test_lineage_reads_source_view_on_demand_service_registry(stores: FeatureAssets) -> None:
    graph = platform(stores).resolve_asset_graph()
    parents = {
        key.to_user_string(): sorted(parent.to_user_string() for parent in graph.get(key).parent_keys)
        for key in graph.get_all_asset_keys()
    }
    assert parents == {
        "station_readings": [],
        "weather": ["station_readings"],
        "feels_like": ["weather"],
        "outdoors": ["feels_like", "weather"],
        "feature_registry": ["feels_like", "outdoors", "weather"],
    }


def test_the_registry_is_computed_from_the_graph(stores: FeatureAssets) -> None:
    registry = registry_from_graph(platform(stores).resolve_asset_graph())
    assert registry.views["weather"].upstream == ("station_readings",)
    assert registry.views["weather"].asset_key == ("weather",)
    assert registry.services["outdoors"].features[0].alias == "air"
    assert registry.on_demand["feels_like"].request == (moment,)
    assert set(registry.sources) == {"station_readings"}


def test_materialising_the_registry_publishes_it(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    job = platform(stores).resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(asset_selection=[dg.AssetKey("feature_registry")], instance=instance)
    metadata = result.asset_materializations_for_node("feature_registry")[0].metadata
    published = stores.registry().read()
    assert metadata["digest"].value == published.digest
    assert (metadata["views"].value, metadata["features"].value) == (1, 3)
    assert published.registry.service("outdoors").owners == ("team:walks",)


def _tick(definitions: dg.Definitions, name: str, instance: dg.DagsterInstance, cursor: str | None = None) -> Any:
    context = dg.build_sensor_context(
        instance=instance,
        definitions=definitions,
        cursor=cursor,
        resources={"feature_assets": definitions.resources["feature_assets"]},  # type: ignore[index]
    )
    return (
        definitions.resolve_sensor_def(name).evaluate_tick(context)
        if hasattr(definitions, "resolve_sensor_def")
        else definitions.get_sensor_def(name).evaluate_tick(context)
    )


def test_the_registry_sensor_asks_once_and_rests(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    definitions = platform(stores)
    first = _tick(definitions, "publish_registry", instance)
    assert len(first.run_requests) == 1
    again = _tick(definitions, "publish_registry", instance, first.cursor)
    assert again.run_requests[0].run_key != first.run_requests[0].run_key, "a failed run is asked for again"
    definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        asset_selection=[dg.AssetKey("feature_registry")], instance=instance
    )
    rested = _tick(definitions, "publish_registry", instance, again.cursor)
    assert not rested.run_requests
    assert rested.skip_message.startswith("Published: ")


def test_the_registry_sensor_leaves_a_rollback_alone(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    def publish_as(service: FeatureService) -> dg.Definitions:
        definitions = feature_definitions([weather, feels_like, service], config=stores.config)
        stores.registry().publish(registry_from_graph(definitions.resolve_asset_graph()), location="tests", by="me")
        return definitions

    publish_as(outdoors)
    faulty = publish_as(FeatureService("outdoors", [weather[["wind"]]]))
    stores.registry().rollback(1, by="me")
    left = _tick(faulty, "publish_registry", instance)
    assert not left.run_requests
    assert left.skip_message.startswith("Rolled back: ")
    mended = feature_definitions(
        [weather, feels_like, FeatureService("outdoors", [weather[["temp", "wind"]]])], config=stores.config
    )
    assert _tick(mended, "publish_registry", instance).run_requests


def test_the_reconcile_sensor_waits_a_tick_and_then_finishes_what_a_crash_left(
    stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    definitions = platform(stores)
    rows = pl.DataFrame(
        {"origin": ["JFK"], "observed_at": [datetime(2024, 1, 2, 6)], "temp": [1.0], "wind": [2.0]},
    )
    calm = _tick(definitions, "reconcile_online_store", instance)
    assert not calm.run_requests
    # A process that died between the stores has committed to Delta and written nothing online.
    publish(weather.spec, rows, slices(DAILY, ["2024-01-02"]), offline=stores.offline(), online=None)
    first = _tick(definitions, "reconcile_online_store", instance)
    assert not first.run_requests
    second = _tick(definitions, "reconcile_online_store", instance, first.cursor)
    assert len(second.run_requests) == 1
    assert definitions.resolve_job_def("reconcile_online_store_job").execute_in_process(instance=instance).success
    online = pl.concat(stores.online().scan(weather.spec))
    assert online["observed_at"].to_list() == [datetime(2024, 1, 2, 6, tzinfo=UTC)]
    assert _tick(definitions, "reconcile_online_store", instance).skip_message == "Every view is served as published."


def test_the_upkeep_job_runs(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    rows = pl.DataFrame({"origin": ["JFK"], "observed_at": [datetime(2024, 1, 2, 6)], "temp": [1.0], "wind": [2.0]})
    publish(weather.spec, rows, slices(DAILY, ["2024-01-02"]), offline=stores.offline(), online=stores.online())
    assert platform(stores).resolve_job_def("maintain_stores").execute_in_process(instance=instance).success


def test_upkeep_takes_nothing_from_whoever_reads_right_now(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    """Who has opened a version reads it to its end, though it was replaced, compacted and vacuumed meanwhile."""
    definitions = platform(stores)
    stores.registry().publish(registry_from_graph(definitions.resolve_asset_graph()), location="tests", by="me")

    def publish_at(temp: float) -> None:
        moments = [datetime(2024, 1, 2, hour) for hour in range(24)]
        rows = pl.DataFrame({"origin": ["JFK"] * 24, "observed_at": moments, "temp": [temp] * 24, "wind": [0.0] * 24})
        publish(weather.spec, rows, slices(DAILY, ["2024-01-02"]), offline=stores.offline(), online=stores.online())

    publish_at(1.0)
    with FeatureStore(stores.settings()) as store:
        spine = pl.DataFrame({"origin": ["JFK"] * 3, "event_timestamp": [datetime(2024, 1, 2, 6)] * 3})
        training = store.get_historical_features(spine, ["weather:temp"])
        batches = training.batches(1)
        read = [next(batches)]
        scanned = stores.offline().scan(weather.spec)
        publish_at(2.0)
        assert definitions.resolve_job_def("maintain_stores").execute_in_process(instance=instance).success
        assert set(scanned.collect()["temp"]) == {1.0}
        read += batches
        assert pl.concat(read)["temp"].to_list() == [1.0] * 3


def test_a_damaged_view_does_not_keep_the_others_from_being_finished(
    stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    @feature_view(
        entities=weather.spec.entities,
        event_timestamp="observed_at",
        schema=[Field("x", Float64)],
        partitions_def=DAILY,
    )
    def damaged() -> pl.DataFrame:
        return pl.DataFrame()

    rows = pl.DataFrame(
        {"origin": ["JFK"], "observed_at": [datetime(2024, 1, 2, 6)], "temp": [1.0], "wind": [2.0], "x": [1.0]}
    )
    for view in (damaged, weather):
        publish(view.spec, rows, slices(DAILY, ["2024-01-02"]), offline=stores.offline(), online=None)
    entry = next((Path(stores.offline().uri(damaged.spec)) / "_delta_log").glob("*1.json"))
    entry.write_text("{")
    definitions = feature_definitions([damaged, weather], config=stores.config)
    first = _tick(definitions, "reconcile_online_store", instance)
    assert _tick(definitions, "reconcile_online_store", instance, first.cursor).run_requests
    for job in ("reconcile_online_store_job", "maintain_stores"):
        done = definitions.resolve_job_def(job).execute_in_process(instance=instance, raise_on_error=False)
        assert not done.success, "what is damaged is told"
    assert pending(weather.spec, stores.offline(), stores.online()) == ()
    assert pl.concat(stores.online().scan(weather.spec)).height == 1
    with pytest.raises(StoreUnsafe, match="Cannot read the Delta table of view 'damaged'"):
        _tick(definitions, "reconcile_online_store", instance)


def test_declarations_survive_what_dagster_does_to_assets() -> None:
    for declared in (weather, feels_like, outdoors):
        copy = declared.with_attributes(group_names_by_key={declared.key: "group"})
        assert type(copy) is type(declared)
        assert copy.spec == declared.spec  # type: ignore[attr-defined]
        assert spec_from_metadata(metadata_for(declared.spec)) == declared.spec


def double(frame: pl.DataFrame) -> pl.DataFrame:
    """Twice the temperature."""
    return frame.select(twice=pl.col("temp") * 2)


def test_a_function_is_kept_as_path_and_digest() -> None:
    view = on_demand_feature_view(sources=[weather[["temp"]]], schema=[Field("twice", Float64)])(double)
    transformation = view.spec.transformation
    assert transformation.path.endswith("test_platform:double")  # type: ignore[union-attr]
    assert len(transformation.digest) == 64  # type: ignore[union-attr]
    assert view.spec.description == "Twice the temperature."


def _service(*features: Any) -> dg.Definitions:
    return feature_definitions([weather, FeatureService("s", list(features))])


def _published(expression: pl.Expr) -> None:
    """Checked where all is known: when the registry is published."""
    view = OnDemandFeatureView("o", sources=[weather], schema=[Field("x", Float64)], expressions={"x": expression})
    check_registry(registry_from_graph(feature_definitions([weather, view]).resolve_asset_graph()))


WRONG: dict[str, tuple[Any, str]] = {
    "no features": (lambda: FeatureService("s", []), "Feature service 's' has no features"),
    "not a view": (lambda: FeatureService("s", ["weather"]), "'weather' is no feature view"),
    "unknown feature": (lambda: weather[["dew"]], "View 'weather' has no feature 'dew'"),
    "view twice": (lambda: FeatureService("s", [weather, weather]), "names view 'weather' twice"),
    "lambda": (
        lambda: OnDemandFeatureView("o", sources=[weather], schema=[Field("x", Float64)], function=lambda frame: frame),
        "lambda",
    ),
    "python in an expression": (
        lambda: OnDemandFeatureView(
            "o",
            sources=[weather],
            schema=[Field("x", Float64)],
            expressions={"x": pl.col("temp").map_elements(abs, return_dtype=pl.Float64)},
        ),
        "calls Python",
    ),
    "not row by row": (
        lambda: OnDemandFeatureView(
            "o", sources=[weather], schema=[Field("x", Float64)], expressions={"x": pl.col("temp").mean()}
        ),
        "On-demand view 'o', feature 'x'",
    ),
    "declared but not computed": (
        lambda: OnDemandFeatureView("o", sources=[weather], schema=[Field("x", Float64)], expressions={}),
        "'x' is declared but not computed",
    ),
    "an input that is not there": (
        lambda: _published(pl.col("rain") * 2),
        "On-demand view 'o', feature 'x' reads 'rain', which is no input of the view: temp, wind",
    ),
    "computed as another type": (
        lambda: _published(pl.col("temp") > 0),
        "On-demand view 'o', feature 'x' is declared Float64 and computed as Boolean",
    ),
    "neither": (lambda: OnDemandFeatureView("o", sources=[weather], schema=[Field("x", Float64)]), "give either"),
    "unknown view in the registry": (
        lambda: check_registry(registry_from_graph(feature_definitions([outdoors]).resolve_asset_graph())),
        "weather",
    ),
}


@pytest.mark.parametrize("make, message", WRONG.values(), ids=WRONG)
def test_what_cannot_be_right_is_refused_when_made(make: Any, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        make()


def test_lineage_follows_a_view_with_a_prefix_through_its_projections() -> None:
    """A projection knows the asset that it is of, not only the view's name."""

    @feature_view(
        entities=[airport], schema=[Field("rain", Float64)], event_timestamp="observed_at", key_prefix=["gold", "us"]
    )
    def rainfall() -> pl.DataFrame:
        return pl.DataFrame()

    wet = OnDemandFeatureView(
        "wet", sources=[rainfall[["rain"]]], schema=[Field("inches", Float64)], expressions={"inches": pl.col("rain")}
    )
    there = FeatureService("there", [rainfall[["rain"]].with_name("there_rain").with_join_key_map({"origin": "dest"})])
    graph = feature_definitions([rainfall, wet, there]).resolve_asset_graph()
    for declared in (wet, there):
        assert graph.get(declared.key).parent_keys == {dg.AssetKey(["gold", "us", "rainfall"])}
    check_registry(registry_from_graph(graph))


def test_two_assets_with_one_name_are_refused() -> None:
    twin = weather.with_attributes(asset_key_replacements={weather.key: dg.AssetKey(["us", "weather"])})
    definitions = feature_definitions([weather, twin])
    with pytest.raises(DeclarationError, match="'weather' is declared twice, differently"):
        registry_from_graph(definitions.resolve_asset_graph())


def test_a_view_is_no_sequence() -> None:
    assert isinstance(weather, FeatureView)
    with pytest.raises(TypeError, match="not a sequence"):
        list(weather)  # type: ignore[call-overload]
