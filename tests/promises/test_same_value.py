"""Promise 8: the same value everywhere. What is published is bit for bit what offline, online and a lookup give back."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets import ContractBroken, Entity, FeatureStore, Field, Int64, Settings, String
from feature_assets.conform import PartitionSlice
from feature_assets.publication import publish
from feature_assets.registry import Registry, RegistryStore
from feature_assets.spec import OnDemandViewSpec, RequestSource, ViewProjection, ViewSpec
from feature_assets.transformations import declared_expressions, declared_function
from feature_assets.types import Bool, FeatureType, Float32, Float64, Int8, List, Timestamp, Vector
from tests.values import ALL_TYPES, bits, values

NOON = datetime(2013, 2, 8, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
TYPES: dict[str, FeatureType] = {f"f{position}": of for position, of in enumerate(ALL_TYPES)}
TYPED = ViewSpec(
    name="typed",
    entities=(Entity("thing", {"code": String, "number": Int64}),),
    features=tuple(Field(name, of) for name, of in TYPES.items()),
    event_timestamp="at",
    ttl=6 * HOUR,
)
Key = tuple[str, int]
KEYS = st.tuples(st.sampled_from(["", "a", "a\x00", "é"]), st.sampled_from([0, 2**63 - 1, -(2**63)]))
AGES = st.sampled_from([0, 1, 6, 7])
FEATURES = st.tuples(*(st.none() | values(of) for of in TYPES.values()))
ROWS = st.dictionaries(st.tuples(KEYS, AGES), FEATURES, min_size=1, max_size=5)


def frame(rows: dict[tuple[Key, int], tuple[Any, ...]], features: dict[str, FeatureType] = TYPES) -> pl.DataFrame:
    types = {"code": String, "number": Int64, "at": Timestamp, **features}
    flat = [(*key, NOON - age * HOUR, *found) for (key, age), found in rows.items()]
    columns = zip(*flat, strict=True)
    return pl.DataFrame([of.to_frame(name, column) for (name, of), column in zip(types.items(), columns, strict=True)])


def latest(rows: dict[tuple[Key, int], tuple[Any, ...]]) -> dict[Key, tuple[int, tuple[Any, ...]]]:
    """By key the age and the features of its latest row."""
    found: dict[Key, tuple[int, tuple[Any, ...]]] = {}
    for (key, age), features in rows.items():
        if key not in found or age < found[key][0]:
            found[key] = age, features
    return found


def platform(folder: Path, *objects: Any) -> FeatureStore:
    settings = Settings(
        root=folder / uuid4().hex,
        offline="offline",
        online="sqlite:online.db",
        registry="registry",
        functions=(__name__,),
        present=NOON,
        durability="process",
    )
    settings.root.mkdir()
    RegistryStore(settings.root / "registry").publish(Registry.of(objects), location="tests", by="tests")
    return FeatureStore(settings)


def published(store: FeatureStore, view: ViewSpec, rows: pl.DataFrame) -> None:
    publish(view, rows, [PartitionSlice()], offline=store.offline, online=store.online, now=NOON)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("same_value")


@pytest.fixture(scope="module")
def typed(folder):
    with platform(folder, TYPED) as store:
        yield store


@settings(max_examples=40)
@given(ROWS)
def test_what_is_published_comes_back_bit_for_bit_from_everywhere(typed, rows):
    """Each example replaces what the former published."""
    published(typed, TYPED, frame(rows))
    assert_offline_has(typed, rows)
    assert_online_has(typed, rows)


def assert_offline_has(store: FeatureStore, rows: dict[tuple[Key, int], tuple[Any, ...]]) -> None:
    found = store.offline.scan(TYPED).collect()
    position = {
        ((code, number), (NOON - at) // HOUR): place
        for place, (code, number, at) in enumerate(found.select("code", "number", "at").iter_rows())
    }
    assert position.keys() == rows.keys()
    for place, (name, of) in enumerate(TYPES.items()):
        column = of.from_frame(found[name])
        assert bits([column[position[at]] for at in rows]) == bits([features[place] for features in rows.values()])


def assert_online_has(store: FeatureStore, rows: dict[tuple[Key, int], tuple[Any, ...]]) -> None:
    expected = latest(rows)
    keys = [*expected, ("absent", 1)]
    answer = store.get_online_features(["typed:*"], [{"code": code, "number": number} for code, number in keys])
    as_frame = answer.to_polars()
    through_json = orjson.loads(orjson.dumps({name: TYPES[name].to_json(answer[name]) for name in TYPES}))
    for place, (name, of) in enumerate(TYPES.items()):
        hidden = [age > 6 for age, _ in expected.values()]
        by_hand = [
            None if too_old else features[place]
            for too_old, (_, features) in zip(hidden, expected.values(), strict=True)
        ]
        assert bits(answer[name]) == bits([*by_hand, None])
        assert bits(of.from_frame(as_frame[name])) == bits(answer[name])
        assert bits([of.parse(value) for value in through_json[name]]) == bits(answer[name])


# The same question asked of training and of serving: a view of every type with defaults and a ttl, and on-demand views on
# it, on the request and on one another.

DEFAULTED = ViewSpec(
    name="defaulted",
    entities=TYPED.entities,
    features=(
        Field("level", Float64, default=-0.0),
        Field("tags", List[String], default=["none"]),
        Field("steps", Int64),
    ),
    event_timestamp="at",
    ttl=6 * HOUR,
)
RATIO = OnDemandViewSpec(
    name="ratio",
    sources=(ViewProjection("defaulted"),),
    request=(RequestSource("asked", (Field("factor", Float64),)),),
    features=(Field("scaled", Float64), Field("tagged", Int64), Field("near", Bool)),
    transformation=declared_expressions(
        "ratio",
        {
            "scaled": (pl.col("level") * pl.col("factor")).sin() / pl.col("steps"),
            "tagged": pl.col("tags").list.len().cast(pl.Int64),
            "near": pl.col("level").is_between(-1.0, 1.0),
        },
    ),
)


def by_frame(inputs: pl.DataFrame) -> pl.DataFrame:
    return inputs.select(root=pl.col("scaled").abs().sqrt())


def by_row(row: dict[str, Any]) -> dict[str, Any]:
    return {"text": f"{row['root']} of {row['tags']}", "doubled": row["steps"] if row["near"] else None}


BY_FRAME = OnDemandViewSpec(
    name="by_frame",
    sources=(ViewProjection("ratio", ("scaled",)),),
    features=(Field("root", Float64),),
    transformation=declared_function(by_frame),
)
BY_ROW = OnDemandViewSpec(
    name="by_row",
    sources=(
        ViewProjection("by_frame"),
        ViewProjection("ratio", ("near",)),
        ViewProjection("defaulted", ("tags", "steps")),
    ),
    features=(Field("text", String), Field("doubled", Int64)),
    transformation=declared_function(by_row, mode="row"),
)
ASKED = ["typed:*", "ratio:*", "by_row:*", "defaulted:*", "by_frame:root"]
FEW = st.dictionaries(
    st.tuples(KEYS, AGES),
    st.tuples(st.none() | values(Float64), st.none() | values(List[String]), st.none() | st.integers(-9, 9)),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module")
def both(folder):
    with platform(folder, TYPED, DEFAULTED, RATIO, BY_FRAME, BY_ROW) as store:
        yield store


@settings(max_examples=25)
@given(rows=ROWS, few=FEW, asked=st.lists(st.tuples(KEYS, st.none() | values(Float64)), min_size=1, max_size=6))
def test_training_and_serving_give_one_answer(both, rows, few, asked):
    published(both, TYPED, frame(rows))
    published(both, DEFAULTED, frame(few, {field.name: field.type for field in DEFAULTED.features}))
    keys = {
        "code": [code for (code, _), _ in asked],
        "number": [number for (_, number), _ in asked],
        "factor": [factor for _, factor in asked],
    }
    schema = {"code": pl.String, "number": pl.Int64, "factor": pl.Float64}
    spine = pl.DataFrame(keys, schema=schema).with_columns(event_timestamp=pl.lit(NOON))
    trained = both.get_historical_features(spine, ASKED).collect()
    served = both.get_online_features(ASKED, keys)
    one_by_one = [
        both.get_online_features(ASKED, [dict(zip(keys, row, strict=True))]) for row in zip(*keys.values(), strict=True)
    ]
    for name in served.names[2:]:
        assert bits(served.types[name].from_frame(trained[name])) == bits(served[name])
        assert bits([one[name][0] for one in one_by_one]) == bits(served[name])


@pytest.mark.parametrize(
    "of, value",
    [
        (Int8, pl.Series([128])),
        (Int64, pl.Series([2**63], dtype=pl.UInt64)),
        (Int64, pl.Series([0.7])),
        (Float32, pl.Series([0.1], dtype=pl.Float64)),
        (Float64, pl.Series([2**53 + 1])),
        (String, pl.Series([b"\xff"])),
        (Timestamp, pl.Series([253_402_300_800_000_000]).cast(pl.Datetime("us", "UTC"))),
        (Timestamp, pl.Series([1], dtype=pl.Int64).cast(pl.Datetime("ns", "UTC"))),
        (Vector[2], pl.Series([[1.0, None]])),
    ],
    ids=str,
)
def test_a_value_that_would_not_come_back_is_refused_by_name(folder, of, value):
    view = ViewSpec(name="one", features=(Field("x", of),), event_timestamp="at")
    with platform(folder, view) as store:
        rows = pl.DataFrame({"at": [NOON]}).with_columns(value.alias("x"))
        with pytest.raises(ContractBroken, match="'x'"):
            published(store, view, rows)
        assert store.offline.state(view) is None
