"""FeatureStore: retrieval by the published registry, which it takes up as a whole or not at all."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from feature_assets import (
    ConfigurationError,
    Entity,
    FeatureStore,
    Field,
    Float64,
    Int64,
    NotPublished,
    RequestError,
    Settings,
    String,
    UnknownFeature,
    UnknownService,
    UnknownTrainingSet,
    UnknownView,
)
from feature_assets.conform import PartitionSlice
from feature_assets.publication import publish as publish_rows
from feature_assets.registry import Registry, RegistryStore
from feature_assets.spec import PUBLICATION, OnDemandViewSpec, ServiceSpec, ViewProjection, ViewSpec
from feature_assets.transformations import declared_expressions

NOON = datetime(2013, 2, 8, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
WEATHER = ViewSpec(
    name="weather",
    entities=(Entity("airport", {"origin": String}),),
    features=(Field("temp", Float64), Field("wind", Float64)),
    event_timestamp="at",
    ttl=timedelta(hours=1),
)
WARM = OnDemandViewSpec(
    name="warm",
    sources=(ViewProjection("weather", ("temp",)),),
    features=(Field("celsius", Float64),),
    transformation=declared_expressions("warm", {"celsius": (pl.col("temp") - 32) / 1.8}),
)
MODEL = ServiceSpec(name="model", features=(ViewProjection("weather", ("wind",)), ViewProjection("warm")))
ORIGIN = [{"origin": "JFK"}]


class Declared:
    """Stands for a declared view or service: known by its reference."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference


def publish(folder: Path, *objects: Any) -> None:
    RegistryStore(folder / "registry").publish(Registry.of(objects), location="tests", by="tests")


def write(store: FeatureStore, view: ViewSpec, **columns: Any) -> None:
    store.online.prepare(view)
    schema = {name: of.polars for name, of in view.join_keys.items()} | {"at": pl.Datetime("us", "UTC")}
    rows = pl.DataFrame({**columns, "at": [NOON], PUBLICATION: [1]}, schema_overrides=schema)
    store.online.write(view, rows, None)


@pytest.fixture
def settings(tmp_path):
    return Settings(
        root=tmp_path,
        registry="registry",
        online="sqlite:online.db",
        offline="offline",
        training="training",
        present=NOON,
    )


@pytest.fixture
def store(tmp_path, settings):
    publish(tmp_path, WEATHER, WARM, MODEL)
    with FeatureStore(settings) as made:
        write(made, WEATHER, origin=["JFK"], temp=[50.0], wind=[7.0])
        yield made


@pytest.mark.parametrize(
    "features",
    [
        "model",
        ["model"],
        ["weather:wind", "warm:celsius"],
        ("weather@v1:wind", "warm:*"),
        [ViewProjection("weather", ("wind",)), ViewProjection("warm")],
        [ViewProjection("weather", ("wind",)), "warm:celsius"],
        [Declared(ViewProjection("weather", ("wind",))), Declared(ViewProjection("warm"))],
        Declared("model"),
        (one for one in ["weather:wind", "warm:celsius"]),
    ],
    ids=[
        "service",
        "service in a list",
        "references",
        "versions",
        "projections",
        "mixed",
        "views",
        "declared",
        "iterator",
    ],
)
def test_features_are_asked_for_in_many_ways(store, features):
    assert store.get_online_features(features, ORIGIN).to_dict() == {
        "origin": ["JFK"],
        "wind": [7.0],
        "celsius": [10.0],
    }


def test_views_and_services_are_known_by_name(store):
    dest = store.view("weather")[["temp"]].with_name("dest_weather").with_join_key_map({"origin": "dest"})
    found = store.get_online_features(
        [*store.service("model"), dest], [{"origin": "JFK", "dest": "LGA"}], full_feature_names=True
    )
    assert found.rows() == [
        {"origin": "JFK", "dest": "LGA", "weather__wind": 7.0, "warm__celsius": 10.0, "dest_weather__temp": None}
    ]
    assert store.view("weather", 1) == ViewProjection("weather", version=1)
    assert store.view("warm") == ViewProjection("warm")
    for ask, error in [
        (lambda: store.view("wether"), UnknownView),
        (lambda: store.view("weather", 7), UnknownView),
        (lambda: store.service("mode"), UnknownService),
    ]:
        with pytest.raises(error):
            ask()


@pytest.mark.parametrize(
    "features, error, why",
    [
        ("mode", UnknownService, "Did you mean 'model'"),
        (["wether:temp"], UnknownView, "Did you mean 'weather'"),
        (["weather:temperature"], UnknownFeature, "weather"),
        (["weather@v2:temp"], UnknownView, "has no version 2"),
        ([], RequestError, "No features were asked for"),
        ([3], RequestError, "3 is not a feature reference"),
        ([{}], RequestError, "{} is not a feature reference"),
        (3, RequestError, "3 is not a feature reference"),
        (None, RequestError, "None is not a feature reference"),
    ],
)
def test_what_is_not_known_is_an_error_that_helps(store, features, error, why):
    with pytest.raises(error, match=why):
        store.get_online_features(features, ORIGIN)


def test_max_age_counts_from_the_present_of_the_settings(tmp_path, settings, store):
    later = settings.model_copy(update={"present": NOON + timedelta(hours=2)})
    with FeatureStore(later) as another:
        assert another.get_online_features(["weather:temp"], ORIGIN).status("temp") == ["OUTSIDE_MAX_AGE"]
    with FeatureStore(settings.model_copy(update={"present": None})) as today:
        assert today.get_online_features(["weather:temp"], ORIGIN).status("temp") == ["OUTSIDE_MAX_AGE"]
    assert store.get_online_features(["weather:temp"], ORIGIN).status("temp") == ["PRESENT"]


def test_an_equal_question_is_compiled_once(store):
    lookup = store.lookup(["weather:temp"])
    assert store.lookup(["weather:temp"]) is lookup
    assert store.lookup(["weather:temp"], full_feature_names=True) is not lookup
    projected = store.lookup([ViewProjection("weather", ("temp",), join_key_map={"origin": "dest"})])
    assert store.lookup([ViewProjection("weather", ("temp",), join_key_map={"origin": "dest"})]) is projected


def test_what_is_published_is_taken_up_by_refresh_and_not_before(tmp_path, store):
    lookup = store.lookup("model")
    assert not store.refresh()
    assert store.lookup("model") is lookup
    traffic = ViewSpec(
        name="traffic", entities=WEATHER.entities, features=(Field("cars", Int64),), event_timestamp="at"
    )
    publish(tmp_path, WEATHER, WARM, MODEL, traffic)
    write(store, traffic, origin=["JFK"], cars=[3])
    with pytest.raises(UnknownView):
        store.get_online_features(["traffic:cars"], ORIGIN)
    assert store.refresh()
    assert store.get_online_features(["traffic:cars"], ORIGIN)["cars"] == [3]
    assert lookup.read(ORIGIN)["celsius"] == [10.0]
    assert "traffic" in store.registry.views
    assert not store.refresh()


def test_before_anything_is_published_it_says_what_to_do(settings):
    store = FeatureStore(settings)
    with pytest.raises(NotPublished, match="feature-assets apply"):
        store.get_online_features("model", ORIGIN)
    with pytest.raises(NotPublished):
        store.refresh()
    publish(settings.root, WEATHER)
    assert store.refresh()


def test_settings_come_from_the_nearest_file_or_a_named_one(tmp_path, monkeypatch, store):
    (tmp_path / "feature_assets.toml").write_text(
        f'registry = "registry"\nonline = "sqlite:online.db"\npresent = {NOON.isoformat()}\n'
    )
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    for found in (FeatureStore(), FeatureStore(config=tmp_path / "feature_assets.toml")):
        with found:
            assert found.get_online_features("model", ORIGIN)["celsius"] == [10.0]
            assert repr(found) == f"FeatureStore(registry='{tmp_path}/registry', online='sqlite:online.db')"
    with pytest.raises(ConfigurationError, match="is not there"):
        FeatureStore(config=tmp_path / "missing.toml")


def test_the_async_twin_answers_the_same(store):
    async def many() -> list[Any]:
        return await asyncio.gather(*(store.get_online_features_async("model", ORIGIN) for _ in range(20)))

    expected = store.get_online_features("model", ORIGIN).to_dict()
    assert [found.to_dict() for found in asyncio.run(many())] == [expected] * 20


def test_threads_share_a_store_from_the_first_question_on(settings, store):
    with FeatureStore(settings) as fresh, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: fresh.get_online_features("model", ORIGIN).to_dict(), range(64)))
    assert answers == [{"origin": ["JFK"], "wind": [7.0], "celsius": [10.0]}] * 64


class TestTraining:
    @pytest.fixture
    def history(self, store):
        rows = pl.DataFrame(
            {
                "origin": ["JFK", "JFK", "LGA"],
                "at": [NOON - HOUR, NOON, NOON],
                "temp": [50.0, 68.0, None],
                "wind": [1.0, 2.0, 3.0],
            }
        )
        publish_rows(WEATHER, rows, [PartitionSlice()], offline=store.offline, online=store.online, now=NOON)
        return store

    SPINE = pl.DataFrame(
        {
            "label": [1, 0, 1],
            "origin": ["JFK", "JFK", "EWR"],
            "event_timestamp": [NOON, NOON - timedelta(minutes=1), NOON],
        }
    )

    def test_a_training_set_has_the_spine_and_the_features(self, history):
        found = history.get_historical_features(self.SPINE, "model").collect()
        assert found.drop("wind", "celsius").equals(self.SPINE)
        assert found.select("wind", "celsius").rows() == [(2.0, 20.0), (1.0, 10.0), (None, None)]

    def test_full_names_a_time_column_and_no_cutoff(self, history):
        spine = self.SPINE.rename({"event_timestamp": "seen"}).with_columns(other=pl.col("seen"))
        found = history.get_historical_features(
            spine, ["weather:wind"], full_feature_names=True, timestamp_column="seen", created_cutoff=False
        )
        assert found.columns == ["label", "origin", "seen", "other", "weather__wind"]

    def test_without_a_spine_every_row_of_a_time_is_taken(self, history):
        found = history.get_historical_features(features=["weather:wind"], since=NOON, until=NOON + HOUR).collect()
        assert found.rows() == [("JFK", NOON, 2.0), ("LGA", NOON, 3.0)]

    def test_a_query_is_a_spine(self, history):
        query = "SELECT origin, at AS event_timestamp FROM mine WHERE label = 0"
        mine = self.SPINE.rename({"event_timestamp": "at"})
        assert history.get_historical_features(query, ["weather:wind"], tables={"mine": mine}).collect()[
            "wind"
        ].to_list() == [1.0]

    def test_what_was_published_since_is_taken_up(self, history, tmp_path):
        assert "gusts" not in history.registry.services
        publish(
            tmp_path, WEATHER, WARM, MODEL, ServiceSpec(name="gusts", features=(ViewProjection("weather", ("wind",)),))
        )
        assert history.get_historical_features(self.SPINE, "gusts").collect()["wind"].to_list() == [2.0, 1.0, None]

    def test_nothing_asked_for_and_no_such_engine_are_refused(self, history):
        with pytest.raises(RequestError, match="No features were asked for"):
            history.get_historical_features(self.SPINE)
        with pytest.raises(RequestError, match="no join engine 'spark'"):
            history.get_historical_features(self.SPINE, "model", engine="spark")

    def test_a_saved_set_is_listed_loaded_and_rebuilt(self, history):
        made = history.get_historical_features(self.SPINE, "model")
        made.save("january")
        assert history.training_sets() == ["january"]
        assert history.training_set("january").collect().equals(made.collect())
        assert history.rebuild("january").collect().equals(made.collect())
        with pytest.raises(UnknownTrainingSet, match="Did you mean 'january'"):
            history.training_set("januar")
