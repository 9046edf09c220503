"""Whoever is erased is erased from what services served as well, whatever their keys are called there."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from feature_assets import FeatureStore
from feature_assets.registry import Registry, RegistryStore
from feature_assets.served.shape import log_store, shape_of
from feature_assets.served.writing import Served, ServedLog
from feature_assets.spec import Entity, LoggingConfig, ServiceSpec, ViewProjection
from feature_assets.types import Int64
from tests.cli.conftest import Run
from tests.server.conftest import NOW, WEATHER, Platform

JOURNEY = ServiceSpec(
    name="journey",
    features=(
        ViewProjection("weather", features=("temp",)),
        ViewProjection("weather", features=("wind",), alias="there", join_key_map={"origin": "dest"}),
    ),
    logging=LoggingConfig(),
)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    """Answers about three journeys in the log, and no history of the weather."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "feature_assets.toml").write_text('online = "sqlite:online.db"\nregistry = "registry"\n')
    platform = Platform(tmp_path)
    platform.add(WEATHER, ("JFK", NOW, 40.5, 11.0), ("LGA", NOW, 1.0, 3.5))
    platform.add(JOURNEY)
    platform.past(WEATHER, ("JFK", NOW, 40.5, 11.0), ("LGA", NOW, 1.0, 3.5))
    platform.publish()
    platform.store.close()
    store = FeatureStore(platform.settings)
    shape = shape_of(store.registry, "journey")
    log = ServedLog(log_store(platform.settings), seconds=60, max_bytes=1 << 20)
    entities = {"origin": ["JFK", "LGA", "LGA"], "dest": ["LGA", "JFK", "EWR"]}
    answer = store.get_online_features("journey", entities)
    at = int(datetime(2013, 2, 8, tzinfo=UTC).timestamp() * 1e6)
    log.take(Served(shape, "digest", "r1", at, entities, answer, 100))
    log.close()
    return store


def test_erase_forgets_in_the_logs_of_services(served: FeatureStore, run: Run, tmp_path: Path) -> None:
    rows = run("erase", "-e", "origin=JFK", "--yes", "--vacuum", "--json").rows
    assert {row["view"]: row["offline_rows"] for row in rows} == {"weather": 1, "journey (served)": 2}
    left = served.get_served_features("journey").collect()
    assert left.select("origin", "dest").rows() == [("LGA", "EWR")]
    served.close()
    assert not any(b"JFK" in file.read_bytes() for file in tmp_path.rglob("*.parquet"))


def test_named_views_are_those_alone(served: FeatureStore, run: Run) -> None:
    rows = run("erase", "weather", "-e", "origin=JFK", "--yes", "--json").rows
    assert [row["view"] for row in rows] == ["weather"]
    assert served.get_served_features("journey").collect().height == 3
    served.close()


MOVED = ServiceSpec(name="journey", features=(ViewProjection("weather", features=("temp",)),), logging=JOURNEY.logging)


def republished(store: FeatureStore, *objects: Any) -> None:
    registry = RegistryStore(store.settings.place(store.settings.registry))
    registry.publish(Registry.of(objects), location="tests", by="tests")


@pytest.mark.parametrize("then", [(WEATHER, MOVED), (WEATHER,)], ids=["asked for by fewer keys", "gone"])
def test_what_was_served_under_a_former_declaration_is_forgotten(
    served: FeatureStore, run: Run, tmp_path: Path, then: tuple[Any, ...]
) -> None:
    """The service asks for `dest` no longer, or is no more; whoever was `dest` stands in its log all the same."""
    republished(served, *then)
    rows = run("erase", "-e", "origin=JFK", "--yes", "--vacuum", "--json").rows
    assert {row["view"]: row["offline_rows"] for row in rows} == {"weather": 1, "journey (served)": 2}
    served.close()
    assert not any(b"JFK" in file.read_bytes() for file in tmp_path.rglob("*.parquet"))


def test_keys_are_of_the_type_that_each_version_and_each_log_has_them_in(
    served: FeatureStore, run: Run, tmp_path: Path
) -> None:
    """The key became a number in version 2; `7` is a text in version 1 and in what was served of it."""
    numbered = msgspec.structs.replace(WEATHER, version=2, entities=(Entity("airport", {"origin": Int64}),))
    platform = Platform(tmp_path)
    platform.past(WEATHER, ("7", NOW, 1.0, 1.0), ("JFK", NOW, 1.0, 1.0))
    platform.past(numbered, (7, NOW, 1.0, 1.0))
    platform.store.prepare(numbered)
    platform.store.close()
    shape = shape_of(served.registry, "journey")
    log = ServedLog(log_store(served.settings), seconds=60, max_bytes=1 << 20)
    entities = {"origin": ["7", "JFK"], "dest": ["LGA", "LGA"]}
    log.take(Served(shape, "digest", "r2", 1, entities, served.get_online_features("journey", entities), 100))
    log.close()
    republished(served, numbered, JOURNEY)
    rows = run("erase", "-e", "origin=7", "--yes", "--vacuum", "--json").rows
    assert {row["view"]: row["offline_rows"] for row in rows} == {"weather": 1, "weather@v1": 1, "journey (served)": 1}
    # What no number can be is no key of version 2, and one of version 1.
    rows = run("erase", "-e", "origin=JFK", "--yes", "--vacuum", "--json").rows
    assert {row["view"]: row["offline_rows"] for row in rows} == {"weather@v1": 1, "journey (served)": 3}
    served.close()
