"""From files to training sets and lookups, as a person comes with views over tables that something else fills.

The cases in which other feature stores read keys, names or rows of a shared source wrongly.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import polars as pl
import pytest

from feature_assets import (
    DeclarationError,
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    Float64,
    Int32,
    Int64,
    NameCollision,
    OnDemandFeatureView,
    RequestError,
    RequestSource,
    String,
    UnknownFeature,
    WrongType,
    feature_definitions,
    feature_view,
)
from feature_assets.assets import FeatureAssets
from feature_assets.assets.metadata import registry_from_graph

NOON = datetime(2024, 1, 2, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
driver = Entity("driver", {"driver_id": String})
DRIVERS = pl.DataFrame(
    {
        "id": [1, 1, 7],
        "happened": [NOON, NOON + HOUR, NOON],
        "known": [NOON, NOON + 3 * HOUR, NOON],
        "conv": [0.25, 0.5, 0.75],
        "trips": pl.Series([1, 2, 3], dtype=pl.Int32),
    }
)


def made(definitions: dg.Definitions, stores: FeatureAssets, instance: dg.DagsterInstance) -> FeatureStore:
    """Everything materialised by Dagster and published."""
    assert definitions.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance).success
    return FeatureStore(config=stores.config)


def failure(view: FeatureView, stores: FeatureAssets, instance: dg.DagsterInstance) -> tuple[str, int]:
    """What it is told to have failed of, and how often it was tried again."""
    resources = {"feature_assets": stores}
    result = dg.materialize([view], instance=instance, resources=resources, raise_on_error=False)
    assert not result.success
    failed = next(event for event in result.all_events if event.event_type_value == "STEP_FAILURE")
    again = [event for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]
    return failed.step_failure_data.user_failure_data.description, len(again)


@pytest.fixture
def source(tmp_path: Any) -> FileSource:
    """Ints called `id`, where the view has text called `driver_id`."""
    DRIVERS.write_parquet(tmp_path / "drivers.parquet")
    renamed = {"id": "driver_id", "happened": "at", "known": "known_at"}
    return FileSource(name="drivers", path=str(tmp_path / "drivers.parquet"), field_mapping=renamed)


def as_text(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows.with_columns(pl.col("driver_id").cast(pl.String))


def stats(source: FileSource, **more: Any) -> FeatureView:
    declaration: dict[str, Any] = {
        "name": "stats",
        "entities": [driver],
        "event_timestamp": "at",
        "created_timestamp": "known_at",
        "schema": [Field("conv", Float64), Field("trips", Int32)],
        "retry_policy": dg.RetryPolicy(max_retries=1),
    }
    return FeatureView.from_source(source, **(declaration | more))


def test_a_text_key_over_a_column_of_ints_is_refused_until_somebody_says_how(
    source: FileSource, stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    refused, again = failure(stats(source), stores, instance)
    assert refused == (
        "stats: 'driver_id' is declared String and came as Int64. Convert it on purpose: .cast(pl.String), or declare "
        "another type."
    )
    assert again == 0
    assert stores.offline().state(stats(source).spec) is None
    assert stores.online().tables() == []


def test_a_renamed_and_converted_key_is_found_in_training_and_serving(
    source: FileSource, stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    store = made(feature_definitions([stats(source, transform=as_text)], config=stores.config), stores, instance)
    asked = pl.DataFrame(
        {
            "order_id": [10, 11, 11, 12, 13],
            "driver_id": ["1", "7", "7", "01", "9"],
            "event_timestamp": [NOON + 2 * HOUR] * 5,
            "label": [True, False, True, True, None],
        }
    )
    answer = store.get_historical_features(asked, ["stats:trips", "stats:conv"]).collect()
    # The row of one hour later was not known yet.
    assert answer.drop("trips", "conv").equals(asked)
    assert answer.select("trips", "conv").rows() == [(1, 0.25), (3, 0.75), (3, 0.75), (None, None), (None, None)]
    assert answer.schema["trips"] == pl.Int32
    online = store.get_online_features(["stats:trips"], {"driver_id": ["1", "7", "01"]})
    assert online["trips"] == [2, 3, None]


def test_ints_where_the_key_is_text_are_refused_and_not_merely_not_found(
    source: FileSource, stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    store = made(feature_definitions([stats(source, transform=as_text)], config=stores.config), stores, instance)
    asked = pl.DataFrame({"driver_id": [1, 7], "event_timestamp": [NOON, NOON]})
    with pytest.raises(WrongType, match=r"'driver_id' is Int64 and is looked up as String\. Convert it on purpose"):
        store.get_historical_features(asked, ["stats:trips"])
    with pytest.raises(WrongType, match=r"Join key 'driver_id', row 0: int 1 is not a String"):
        store.get_online_features(["stats:trips"], {"driver_id": [1, 7]})


def test_two_views_of_one_source_have_each_its_own_features(
    source: FileSource, stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    """What one view leaves out is not served from the other's columns."""
    rates = stats(source, name="rates", transform=as_text, schema=[Field("conv", Float64)])
    counts = stats(source, name="counts", transform=as_text, schema=[Field("trips", Int32)])
    store = made(feature_definitions([rates, counts], config=stores.config), stores, instance)
    asked = pl.DataFrame({"driver_id": ["1"], "event_timestamp": [NOON]})
    assert store.get_historical_features(asked, ["rates:conv", "counts:trips"]).collect().rows() == [
        ("1", NOON, 0.25, 1)
    ]
    with pytest.raises(UnknownFeature, match=r"'rates' has no feature 'trips'\. Known features: conv"):
        store.get_historical_features(asked, ["rates:trips"])
    with pytest.raises(UnknownFeature, match=r"'counts' has no feature 'conv'"):
        store.get_online_features(["counts:conv"], {"driver_id": ["1"]})
    assert stores.offline().scan(rates.spec).collect_schema().names().count("trips") == 0


def test_a_source_that_is_not_there_is_one_failure_that_is_tried_again(
    stores: FeatureAssets, instance: dg.DagsterInstance, tmp_path: Any
) -> None:
    missing = FileSource(name="drivers", path=str(tmp_path / "nothing.parquet"))
    refused, again = failure(stats(missing), stores, instance)
    assert refused.startswith(f"FileSource 'drivers': there is no file at {tmp_path}/nothing.parquet.")
    assert again == 1
    odd = FileSource(name="drivers", path=str(tmp_path / "x.parquet"), field_mapping={"hapened": "at"})
    DRIVERS.write_parquet(tmp_path / "x.parquet")
    assert failure(stats(odd), stores, instance) == (
        "FileSource 'drivers': field_mapping names 'hapened', which its rows do not have. Did you mean 'happened'?",
        0,
    )


def test_plain_definitions_take_a_view_of_a_source_as_the_asset_that_it_is(
    source: FileSource, stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    view = stats(source, transform=as_text)
    definitions = dg.Definitions(assets=[view], resources={"feature_assets": stores})
    graph = definitions.resolve_asset_graph()
    assert graph.get(view.key).parent_keys == {dg.AssetKey("drivers")}
    assert registry_from_graph(graph).views["stats"].upstream == ("drivers",)
    assert definitions.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance).success
    assert dg.materialize([view], instance=instance, resources={"feature_assets": stores}).success
    assert stores.offline().scan(view.spec).collect().height == 3


def test_a_view_may_read_one_source_by_two_windows_beside_an_upstream_asset(
    stores: FeatureAssets, instance: dg.DagsterInstance, tmp_path: Any
) -> None:
    days = [datetime(2024, 1, day, 6, tzinfo=UTC) for day in range(1, 6)]
    pl.DataFrame({"at": days, "x": range(5)}).write_parquet(tmp_path / "x.parquet")
    source = FileSource(name="counts", path=str(tmp_path / "x.parquet"), timestamp_field="at")
    seen: dict[str, list[int]] = {}

    @dg.asset(io_manager_key="feature_assets")
    def factor() -> pl.DataFrame:
        return pl.DataFrame({"factor": [10]})

    @feature_view(
        schema=[Field("x", Int64)],
        event_timestamp="at",
        partitions_def=dg.DailyPartitionsDefinition("2024-01-01"),
        sources={"today": source, "lately": source},
        lookback={"lately": timedelta(days=2)},
    )
    def scaled(today: pl.LazyFrame, factor: pl.DataFrame, lately: pl.DataFrame) -> pl.LazyFrame:
        seen["today"], seen["lately"] = today.collect()["x"].to_list(), lately["x"].to_list()
        return today.with_columns(pl.col("x") * factor["factor"].item())

    resources = {"feature_assets": stores}
    for key in (None, "2024-01-04"):
        selection = ["factor"] if key is None else ["scaled"]
        assert dg.materialize(
            [factor, scaled], instance=instance, resources=resources, partition_key=key, selection=selection
        ).success
    assert seen == {"today": [3], "lately": [1, 2, 3]}
    assert stores.offline().scan(scaled.spec).collect()["x"].to_list() == [30]


def test_a_parameter_is_a_source_or_an_upstream_asset(source: FileSource) -> None:
    with pytest.raises(DeclarationError, match=r"'rows' is among sources= and among ins="):

        @feature_view(
            schema=[Field("x", Int64)],
            event_timestamp="at",
            sources={"rows": source},
            ins={"rows": dg.AssetIn("other")},
        )
        def twice(rows: pl.LazyFrame) -> pl.LazyFrame:
            return rows


def test_the_questions_that_feasts_own_test_asks(
    source: FileSource, stores: FeatureAssets, instance: dg.DagsterInstance, tmp_path: Any
) -> None:
    """Views of several entities, one of them twice, one without; on-demand features; columns that are nobody's.

    Feast sorts and drops duplicates on both sides before it compares; here rows, order and types have to be the same.
    """
    at = [NOON] * 3
    pl.DataFrame({"location": ["a", "b", "c"], "at": at, "warmth": [1, 2, 3]}).write_parquet(tmp_path / "l.parquet")
    pl.DataFrame({"at": [NOON - HOUR, NOON], "rides": [0.5, 0.75]}).write_parquet(tmp_path / "g.parquet")
    place = Entity("place", {"location": String})
    drivers = stats(source, transform=as_text)
    places = FeatureView.from_source(
        FileSource(name="places_file", path=str(tmp_path / "l.parquet")),
        name="places",
        entities=[place],
        event_timestamp="at",
        schema=[Field("warmth", Int64)],
    )
    everywhere = FeatureView.from_source(
        FileSource(name="rides_file", path=str(tmp_path / "g.parquet")),
        name="everywhere",
        event_timestamp="at",
        schema=[Field("rides", Float64)],
    )
    plus = OnDemandFeatureView(
        "plus",
        sources=[drivers[["conv"]], RequestSource("given", (Field("val_to_add", Int32),))],
        schema=[Field("more", Float64), Field("added", Float64), Field("rounded", Int32)],
        expressions={
            "more": pl.col("conv") + 100,
            "added": pl.col("conv") + pl.col("val_to_add"),
            "rounded": (pl.col("conv") + 100).round().cast(pl.Int32),
        },
    )
    origin = places.with_name("origin").with_join_key_map({"location": "origin_id"})
    destination = places.with_name("destination").with_join_key_map({"location": "destination_id"})
    features = [drivers[["trips"]], origin, destination, everywhere, plus[["rounded", "added"]]]
    model = FeatureService("model", features)
    store = made(
        feature_definitions([drivers, places, everywhere, plus, model], config=stores.config), stores, instance
    )
    asked = pl.DataFrame(
        {
            "order_id": [5, 6, 6, 7],
            "driver_id": ["7", "1", "1", None],
            "origin_id": ["c", "a", "a", "a"],
            "destination_id": ["a", "b", "b", "x"],
            "val_to_add": pl.Series([1, 2, 2, 3], dtype=pl.Int32),
            "event_timestamp": [NOON, NOON, NOON, NOON - timedelta(minutes=1)],
        }
    )
    for wanted in ("model", features):
        with pytest.raises(NameCollision, match=r"'warmth' would be the name of both .*full_feature_names=True"):
            store.get_historical_features(asked, wanted)
        answer = store.get_historical_features(asked, wanted, full_feature_names=True).collect()
        added = {
            "stats__trips": pl.Series([3, 1, 1, None], dtype=pl.Int32),
            "origin__warmth": [3, 1, 1, None],
            "destination__warmth": [1, 2, 2, None],
            "everywhere__rides": [0.75, 0.75, 0.75, 0.5],
            "plus__rounded": pl.Series([101, 100, 100, None], dtype=pl.Int32),
            "plus__added": [1.75, 2.25, 2.25, None],
        }
        assert answer.equals(pl.DataFrame({**asked.to_dict(), **added}))
        assert answer.schema == {**asked.schema, **pl.DataFrame(added).schema}
    with pytest.raises(RequestError, match=r"lacks 'val_to_add', which on-demand features need as request data"):
        store.get_historical_features(asked.drop("val_to_add"), "model", full_feature_names=True)
    kept = store.get_historical_features(asked, "model", full_feature_names=True)
    kept.save("orders")
    assert store.training_set("orders").collect().equals(kept.collect())
