"""Declarations that change: what is added in place, and what needs a new version."""

import msgspec
import polars as pl
import pytest

from feature_assets.errors import DeclarationError, UnknownFeature
from feature_assets.offline import OfflineStore
from feature_assets.spec import Entity, Field, ViewSpec
from feature_assets.types import (
    UUID,
    FeatureType,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    List,
    Map,
    String,
    Struct,
    Vector,
)
from tests.offline.tables import WEATHER, frame, held, replace


def declared(*features: Field) -> ViewSpec:
    return msgspec.structs.replace(WEATHER, features=features)


def test_an_added_feature_is_null_where_it_was_not_known(store: OfflineStore) -> None:
    replace(store, {"p": [("k", 0, None, 1)], "q": [("k", 1, None, 2)]})
    wider = declared(*WEATHER.features, Field("humidity", Vector[2]))
    assert store.scan(wider).collect()["humidity"].to_list() == [None, None], "declared, and not stored by anybody yet"
    assert store.latest(wider).select("temp", "humidity").collect().rows() == [(2, None)]
    rows = frame({"p": [("k", 0, None, 3)]}, wider).with_columns(
        pl.lit([0.5, 1.5], pl.Array(pl.Float32, 2)).alias("humidity")
    )
    commit = store.replace(wider, rows, ["p"], metadata={})
    found = store.scan(wider).select("temp", "humidity").sort("temp").collect()
    assert found.rows() == [(2, None), (3, [0.5, 1.5])]
    assert found.schema["humidity"] == pl.Array(pl.Float32, 2)
    assert [one.kind for one in store.commits(wider)] == ["replace", "evolve", "replace", "create"]
    assert commit.base == 2
    assert held(store) == {"p": [("k", 0, None, 3)], "q": [("k", 1, None, 2)]}, "who does not know it reads on"
    assert store.scan(wider, at=1).select("humidity").collect()["humidity"].to_list() == [None, None]
    assert store.check(wider) == []


def test_erasing_keeps_a_feature_that_the_eraser_does_not_know(store: OfflineStore) -> None:
    wider = declared(*WEATHER.features, Field("humidity", Int64))
    rows = frame({"p": [("k", 0, None, 3), ("gone", 0, None, 3)]}, wider).with_columns(
        pl.lit(7, pl.Int64).alias("humidity")
    )
    store.replace(wider, rows, ["p"], metadata={})
    store.erase(WEATHER, pl.DataFrame({"origin": ["gone"]}), metadata={})
    assert store.scan(wider).select("origin", "humidity").collect().rows() == [("k", 7)]


CHANGES = [
    (Int64, Int32),
    (Int64, Float64),
    (Float32, Float64),
    (String, UUID),
    (String, Json),
    (Vector[2], Vector[3]),
    (Vector[2], List[Float32]),
    (Map[String, Int64], List[Struct({"key": String, "value": Int64})]),
    (Struct({"a": Int64}), Struct({"a": Int64, "b": Int64})),
]


@pytest.mark.parametrize(("before", "after"), CHANGES, ids=str)
def test_a_changed_type_is_refused(store: OfflineStore, before: FeatureType, after: FeatureType) -> None:
    """Several of these are one type to Delta; the table remembers ours."""
    first, second = declared(Field("f", before)), declared(Field("f", after))
    store.replace(first, frame({}, first), ["p"], metadata={})
    told = f"View 'weather' (version 1): 'f' is stored as {before} and declared {after}. Declare {before} again, or give the "
    for act in (
        lambda: store.replace(second, frame({}, second), ["p"], metadata={}),
        lambda: store.scan(second),
        lambda: store.latest(second),
    ):
        with pytest.raises(DeclarationError) as refused:
            act()
        assert str(refused.value) == told + "view version=2: a new version has tables of its own."
    assert store.version(first) == 1


def test_a_dropped_feature_is_refused_for_writing_and_left_out_when_read(store: OfflineStore) -> None:
    replace(store, {"p": [("k", 0, None, 1)]})
    narrower = declared(WEATHER.features[0])
    assert store.scan(narrower).collect_schema().names() == [*narrower.columns, "__publication", "__partition"]
    with pytest.raises(
        DeclarationError, match=r"'temp' is stored and no longer declared. Declare it again, or .* version=2"
    ):
        store.replace(narrower, frame({}, narrower), ["p"], metadata={})


@pytest.mark.parametrize(
    "change",
    [
        {"entities": (Entity("airport", join_keys={"origin": Int64}),)},
        {"entities": (Entity("airport", join_keys={"origin": String, "terminal": String}),)},
        {"event_timestamp": "seen_at"},
        {"created_timestamp": None},
        {"created_timestamp": "known_at"},
    ],
    ids=str,
)
def test_keys_and_times_stay_as_they_are(store: OfflineStore, change: dict[str, object]) -> None:
    replace(store, {"p": [("k", 0, None, 1)]})
    changed = msgspec.structs.replace(WEATHER, **change)
    with pytest.raises(DeclarationError, match="version=2: a new version has tables of its own"):
        store.replace(changed, frame({}, changed), ["p"], metadata={})


def test_an_unknown_feature_is_named(store: OfflineStore) -> None:
    replace(store, {"p": []})
    with pytest.raises(UnknownFeature, match="Did you mean 'temp'"):
        store.scan(WEATHER, features=["tmp"])
