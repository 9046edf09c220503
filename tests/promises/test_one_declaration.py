"""Promise 1: nothing about a feature is written twice; the registry is the asset graph, and nothing else."""

from datetime import timedelta
from typing import Any

import dagster as dg
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets.assets import FeatureAssets, FeatureService, FeatureView, feature_view, registry_from_graph
from feature_assets.registry import Registry
from feature_assets.spec import Entity, Field, canonical_json, from_json
from feature_assets.types import Bool, Date, Decimal, Float32, Int8, Int64, List, Map, String, Struct, Timestamp, Vector

names = st.from_regex(r"[a-z][a-z0-9]{0,8}(_[a-z0-9]{1,4})?", fullmatch=True)
types = st.sampled_from(
    [
        Int8,
        Int64,
        Float32,
        String,
        Bool,
        Date,
        Timestamp,
        Decimal(9, 2),
        List[String],
        Vector[3],
        Map[String, Int64],
        Struct({"x": Bool}),
    ]
)
fields = st.lists(
    st.builds(Field, names, types, description=st.text(max_size=10)),
    min_size=1,
    max_size=4,
    unique_by=lambda one: one.name,
)


@st.composite
def views(draw: st.DrawFn, key: Any = String) -> FeatureView:
    schema = draw(fields)
    declaration: dict[str, Any] = {
        "name": f"view_{draw(names)}",
        "entities": [Entity("thing", join_keys={"thing_key": key})],
        "schema": [one for one in schema if one.name not in ("thing_key", "at_time")] or [Field("only", Int64)],
        "event_timestamp": "at_time",
        "ttl": draw(st.none() | st.timedeltas(min_value=timedelta(microseconds=1), max_value=timedelta(days=9))),
        "version": draw(st.integers(1, 9)),
        "description": draw(st.text(max_size=10)) or "described",
        "partitions_def": draw(
            st.sampled_from(
                [None, dg.DailyPartitionsDefinition("2024-01-01"), dg.StaticPartitionsDefinition(["a", "b"])]
            )
        ),
    }
    return feature_view(**declaration)(lambda: None)


@settings(max_examples=20)
@given(
    # An entity has one type wherever it stands.
    declared=st.sampled_from([Int64, String]).flatmap(
        lambda key: st.lists(views(key), min_size=1, max_size=3, unique_by=lambda one: one.spec.name)
    )
)
def test_the_registry_is_what_was_declared(declared: list[FeatureView]) -> None:
    service = FeatureService("all_of_it", [view[[view.spec.features[0].name]] for view in declared])
    graph = dg.Definitions(
        assets=[*declared, service], resources={"feature_assets": FeatureAssets()}
    ).resolve_asset_graph()
    registry = registry_from_graph(graph)
    assert set(registry.views) == {view.spec.name for view in declared}
    for view in declared:
        published = registry.views[view.spec.name]
        assert published.features == view.spec.features
        assert published.entities == view.spec.entities
        assert (published.ttl, published.version, published.partitions) == (
            view.spec.ttl,
            view.spec.version,
            view.spec.partitions,
        )
    assert registry.services["all_of_it"].features == service.spec.features
    assert from_json(canonical_json(registry), Registry).digest == registry.digest


@settings(max_examples=20)
@given(view=views())
def test_the_same_declaration_gives_the_same_registry_whatever_stands_beside_it(view: FeatureView) -> None:
    other = feature_view(schema=[Field("x", Int64)], event_timestamp="at", name="zz_other")(lambda: None)
    alone = registry_from_graph(
        dg.Definitions(assets=[view], resources={"feature_assets": FeatureAssets()}).resolve_asset_graph()
    )
    beside = registry_from_graph(
        dg.Definitions(assets=[other, view], resources={"feature_assets": FeatureAssets()}).resolve_asset_graph()
    )
    assert canonical_json(alone.views[view.spec.name]) == canonical_json(beside.views[view.spec.name])
