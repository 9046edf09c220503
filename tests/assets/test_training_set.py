"""A training set as an asset: made of what is published, kept with its manifest, handed on."""

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import polars as pl
import pytest

from feature_assets import Entity, FeatureService, Field, Int64, String, TrainingSet, feature_view, training_set
from feature_assets.assets import FeatureAssets, registry_from_graph
from feature_assets.errors import DeclarationError
from feature_assets.store import FeatureStore

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-01-04")


@feature_view(schema=[Field("trips", Int64)], event_timestamp="at", entities=[Entity("driver", {"driver": String})])
def stats() -> pl.LazyFrame:
    return pl.LazyFrame({"driver": ["a", "b"], "at": [NOON, NOON], "trips": [1, 2]})


model_features = FeatureService("model_features", features=[stats])


@dg.asset(io_manager_key="feature_assets")
def asked() -> pl.DataFrame:
    days = [NOON + timedelta(days=n) for n in range(3)]
    return pl.DataFrame({"driver": ["b", "nobody", "a"], "event_timestamp": days, "label": [0, 1, 2]})


@training_set(features=model_features, memory_limit="1GB")
def examples(asked: pl.LazyFrame) -> pl.LazyFrame:
    """Whatever was asked."""
    return asked


@training_set(features=[stats[["trips"]]], partitions_def=DAYS, full_feature_names=True)
def daily(context: dg.AssetExecutionContext, asked: pl.LazyFrame) -> pl.LazyFrame:
    start, end = context.partition_time_window
    return asked.filter(pl.col("event_timestamp").is_between(start, end, closed="left"))


ALL = [stats, model_features, asked, examples, daily]


@pytest.fixture
def resources(stores: FeatureAssets, instance: dg.DagsterInstance) -> dict[str, Any]:
    graph = dg.Definitions(assets=ALL, resources={"feature_assets": stores}).resolve_asset_graph()
    stores.registry().publish(registry_from_graph(graph), location="tests", by="tests")
    run([stats, asked], instance, {"feature_assets": stores})
    return {"feature_assets": stores}


def run(assets: list[Any], instance: dg.DagsterInstance, resources: Any, **options: Any) -> dg.ExecuteInProcessResult:
    graph = [one for one in ALL if one not in assets]
    keys = [one.key for one in assets]
    return dg.materialize([*assets, *graph], instance=instance, resources=resources, selection=keys, **options)


def recorded(result: dg.ExecuteInProcessResult, name: str) -> Any:
    (found,) = result.asset_materializations_for_node(name)
    return found


def test_it_is_saved_and_its_manifest_recorded(stores: Any, instance: Any, resources: Any) -> None:
    made = recorded(run([examples], instance, resources), "examples")
    with FeatureStore(stores.settings()) as store:
        saved = store.training_set("examples")
        assert saved.collect()["trips"].to_list() == [2, None, 1]
        assert store.rebuild("examples").manifest.result == saved.manifest.result
    assert made.metadata["dagster/row_count"].value == 3
    assert made.metadata["digest"].value == saved.manifest.result.digest
    assert made.metadata["Delta versions"].value == {"stats@v1": 1}
    assert made.tags["dagster/data_version"] == saved.manifest.result.digest
    again = recorded(run([examples], instance, resources), "examples")
    assert again.tags["dagster/data_version"] == made.tags["dagster/data_version"]


def test_it_is_made_by_the_engine_that_it_names(stores: Any, instance: Any, resources: Any) -> None:
    pytest.importorskip("daft")

    @training_set(features=model_features, engine="daft", memory_limit="1GB")
    def spread(asked: pl.LazyFrame) -> pl.LazyFrame:
        return asked

    made = recorded(run([spread], instance, resources), "spread")
    alone = recorded(run([examples], instance, resources), "examples")
    assert made.metadata["engine"].value == "daft"
    assert made.tags["dagster/data_version"] == alone.tags["dagster/data_version"]


def test_the_lineage_leads_to_what_it_asks() -> None:
    graph = dg.Definitions(assets=ALL, resources={"feature_assets": FeatureAssets()}).resolve_asset_graph()
    assert graph.get(examples.key).parent_keys == {asked.key, model_features.key}
    assert graph.get(daily.key).parent_keys == {asked.key, stats.key}
    assert examples.descriptions_by_key[examples.key] == "Whatever was asked."
    assert not [one for one in registry_from_graph(graph).views if one != "stats"]


def test_each_partition_is_a_set_of_its_own(stores: Any, instance: Any, resources: Any) -> None:
    for day in ("2024-01-01", "2024-01-03"):
        run([daily], instance, resources, partition_key=day)
    with FeatureStore(stores.settings()) as store:
        assert store.training_sets() == ["daily.2024-01-01", "daily.2024-01-03"]
        assert store.training_set("daily.2024-01-03").collect()["stats__trips"].to_list() == [1]


@pytest.mark.parametrize("kind", [pl.LazyFrame, pl.DataFrame, TrainingSet, Any], ids=str)
def test_downstream_gets_what_it_is_annotated_with(stores: Any, instance: Any, resources: Any, kind: Any) -> None:
    seen: list[Any] = []

    def learning(examples: Any) -> None:
        seen.append(examples)

    learning.__annotations__["examples"] = kind
    learned = dg.asset(name="learned", ins={"examples": dg.AssetIn(input_manager_key="feature_assets")})(learning)
    run([examples], instance, resources)
    assert run([learned], instance, resources).success
    assert isinstance(seen[0], pl.LazyFrame if kind is Any else kind)
    rows = seen[0] if isinstance(seen[0], pl.DataFrame) else seen[0].collect()
    assert rows["label"].to_list() == [0, 1, 2]


def test_downstream_of_partitions_gets_them_one_behind_the_other(stores: Any, instance: Any, resources: Any) -> None:
    seen: list[list[int]] = []

    @dg.asset
    def learned(daily: pl.DataFrame) -> None:
        seen.append(daily["label"].to_list())

    for day in DAYS.get_partition_keys():
        run([daily], instance, resources, partition_key=day)
    assert run([learned], instance, resources).success
    assert seen == [[0, 1, 2]]


def test_what_cannot_be_joined_fails_with_the_mend(stores: Any, instance: Any, resources: Any) -> None:
    @training_set(features=model_features)
    def keyless() -> pl.DataFrame:
        return pl.DataFrame({"event_timestamp": [NOON]})

    with pytest.raises(dg.Failure, match="driver"):
        run([keyless], instance, resources)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"features": stats}, r"features= takes a feature service, or a list"),
        ({"features": [3]}, r"3 is no feature view"),
        ({"features": "model_features", "name": "a b"}, r"letters, digits and underscores"),
        ({"features": "model_features", "io_manager_key": "x"}, r"io_manager_key= is not for a training set"),
        ({"features": "model_features", "memry_limit": 1}, r"memory_limit"),
        ({"features": "model_features", "engine": "dask"}, r"no join engine 'dask'\. Known: polars, daft, daft-ray"),
        ({"features": "model_features", "memory_limit": "much"}, r"'much' is no amount of memory"),
    ],
)
def test_a_wrong_declaration_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(DeclarationError, match=told):
        training_set(**options)(pl.DataFrame)
