"""Stream views: a batch side and a stream side, in one declaration."""

from typing import Any

import dagster as dg
import polars as pl
import pytest

from feature_assets import (
    DeclarationError,
    Entity,
    Field,
    FileSource,
    Float64,
    Int64,
    PushSource,
    StreamFeatureView,
    String,
    Timestamp,
    feature_definitions,
    stream_feature_view,
)
from feature_assets.assets.feature_view import FeatureView
from feature_assets.assets.metadata import registry_from_graph
from feature_assets.registry import Registry, check_registry, plan
from feature_assets.spec import Function

DAILY = dg.DailyPartitionsDefinition("2024-01-01")
driver = Entity("driver", join_keys={"driver_id": Int64})
trips = PushSource(name="trips", description="Trips as they end.")
raw_trips = PushSource(
    name="raw_trips",
    schema=[Field("driver", Int64), Field("ended", Timestamp), Field("meters", Float64), Field("id", String)],
    event_id="id",
    field_mapping={"driver": "driver_id"},
    batch_source=FileSource(name="trip_files", path="trips.parquet", timestamp_field="ended"),
)
VIEW: dict[str, Any] = {
    "entities": [driver],
    "schema": [Field("km", Float64)],
    "event_timestamp": "ended",
    "partitions_def": DAILY,
}


@stream_feature_view(source=trips, **VIEW)
def driver_trips(trip_files: pl.LazyFrame) -> pl.LazyFrame:
    """Trips of a driver."""
    return trip_files


def in_kilometres(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows.select("driver_id", "ended", km=pl.col("meters") / 1000)


def test_a_stream_view_is_a_feature_view_in_every_copy() -> None:
    copy = driver_trips.with_attributes(group_names_by_key={driver_trips.key: "moved"})
    assert type(copy) is type(driver_trips) is StreamFeatureView
    assert isinstance(copy, FeatureView)
    assert copy.spec == driver_trips.spec
    assert (copy.spec.stream.source, copy.spec.stream.transform) == ("trips", None)  # type: ignore[union-attr]
    assert copy[["km"]].reference.view == "driver_trips"


def test_its_source_is_a_node_of_the_graph_and_in_the_registry() -> None:
    graph = feature_definitions([driver_trips, dg.AssetSpec("trip_files")]).resolve_asset_graph()
    parents = graph.get(dg.AssetKey("driver_trips")).parent_keys
    assert {key.to_user_string() for key in parents} == {"trip_files", "trips"}
    assert graph.get(dg.AssetKey("trips")).kinds == {"push"}
    registry = registry_from_graph(graph)
    check_registry(registry)
    assert registry.sources == {"trips": trips}
    assert [view.name for view in registry.fed_by("trips")] == ["driver_trips"]
    assert registry.fed_by("others") == ()


def test_both_sides_can_be_made_alike() -> None:
    view = StreamFeatureView.from_source(raw_trips, name="trips_in_km", transform=in_kilometres, **VIEW)
    stream = view.spec.stream
    assert stream is not None
    assert isinstance(stream.transform, Function)
    assert stream.transform.path.endswith("test_stream_view:in_kilometres")
    registry = registry_from_graph(feature_definitions([view]).resolve_asset_graph())
    check_registry(registry)
    assert set(registry.sources) == {"raw_trips", "trip_files"}
    by_expressions = StreamFeatureView.from_source(raw_trips, transform={"km": pl.col("meters") / 1000}, **VIEW)
    check_registry(registry_from_graph(feature_definitions([by_expressions]).resolve_asset_graph()))
    assert by_expressions.spec.name == "raw_trips_view"


def test_the_plan_tells_what_changes_for_a_stream() -> None:
    def registry(source: PushSource, **more: Any) -> Any:
        view = stream_feature_view(source=source, **VIEW, **more)(lambda: None)
        return registry_from_graph(feature_definitions([view]).resolve_asset_graph())

    def changes(old: Any, new: Any) -> set[tuple[str, str, str]]:
        return {(change.action, change.name, change.detail) for change in plan(old, new)}

    more = {"name": "view", "code_version": "1"}
    before, kilometres = registry(trips, **more), {"km": pl.col("meters") / 1000}
    after = registry(raw_trips, transform=kilometres, **more)
    assert changes(before, after) == {
        ("changed", "view", "stream trips → raw_trips"),
        ("changed", "view", "upstream +raw_trips, −trips"),
        ("added", "raw_trips", "push source"),
        ("removed", "trips", "push source"),
    }
    assert [change.breaking for change in plan(before, after) if change.kind == "source"] == [False, True]
    later = registry(raw_trips, transform={"km": pl.col("meters") / 1e3 + 0}, **more)
    assert changes(after, later) == {("changed", "view", "transform of its stream")}


def _declared(source: Any, **changed: Any) -> Any:
    return stream_feature_view(source=source, **{**VIEW, "name": "view", **changed})(lambda: None)


def _together(*changed: dict[str, Any]) -> None:
    views = [_declared(trips, name=f"view{number}", **each) for number, each in enumerate(changed)]
    check_registry(Registry.of([trips, *(view.spec for view in views)]))


WRONG: dict[str, tuple[Any, str]] = {
    "no push source": (lambda: _declared(FileSource(name="f", path="p")), r"or KinesisSource\(…\), not FileSource"),
    "its own name": (lambda: _declared(trips, name="trips"), "takes the rows of a source of its own name"),
    "a window": (
        lambda: PushSource(name="p", timestamp_field="at"),
        "PushSource 'p': nothing cuts pushed rows to a window, so timestamp_field= says nothing",
    ),
    "an event id that is no text": (
        lambda: PushSource(name="p", schema=[Field("id", Int64)], event_id="id"),
        "the event id 'id' is a Int64; declare a String",
    ),
    "a field twice": (lambda: PushSource(name="p", schema=[Field("x", Int64), Field("x", Int64)]), "names field 'x' twice"),
    "a transform of what nobody knows": (
        lambda: _declared(trips, transform=in_kilometres),
        r"View 'view' transforms the rows of PushSource 'trips', which does not say what is in them. Give it schema=",
    ),
    "a column that is not there": (
        lambda: _declared(raw_trips),
        r"takes the rows of PushSource 'raw_trips' as they are, and those have no 'km'",
    ),
    "a column of another type": (
        lambda: _declared(PushSource(name="p", schema=[Field("driver_id", String), Field("ended", Timestamp), Field("km", Float64)])),
        "'driver_id' is declared Int64 and comes as String",
    ),
    "an expression of another type": (
        lambda: _declared(raw_trips, transform={"km": pl.col("id")}),
        "View 'view', transform of 'km': 'km' is declared Float64 and comes as String",
    ),
    "an expression of nothing": (lambda: _declared(raw_trips, transform={"km": pl.col("miles")}), "cannot be computed: .*miles"),
    "an expression of other rows": (lambda: _declared(raw_trips, transform={"km": pl.col("meters").sum()}), "transform of 'km'"),
    "an expression for no column": (
        lambda: _declared(raw_trips, transform={"km": pl.col("meters"), "miles": pl.col("meters")}),
        "transform of 'miles': the view has no such column",
    ),
    "a column that no expression makes": (lambda: _declared(raw_trips, transform={}), "transform= makes no 'km'"),
    "no expression": (lambda: _declared(raw_trips, transform={"km": 3}), "3 is not a Polars expression"),
    "a lambda": (lambda: _declared(raw_trips, transform=lambda rows: rows), "is a lambda, which has no name to import it by"),
    "nowhere to read the batch from": (
        lambda: StreamFeatureView.from_source(trips, **VIEW),
        r"from_source\(\) makes the batch side of the rows of PushSource 'trips' as they are kept. Say where",
    ),
    "views that disagree": (
        lambda: _together({}, {"schema": [Field("km", Int64)]}),
        "PushSource 'trips': 'km' is Float64 in one of its views and Int64 in 'view1'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("make, message", WRONG.values(), ids=WRONG)
def test_what_cannot_be_right_is_refused_when_made(make: Any, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        make()
