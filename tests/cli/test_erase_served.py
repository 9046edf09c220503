"""Whoever is erased is erased from what services served as well, whatever their keys are called there."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from feature_assets import FeatureStore
from feature_assets.served.shape import log_store, shape_of
from feature_assets.served.writing import Served, ServedLog
from feature_assets.spec import LoggingConfig, ServiceSpec, ViewProjection
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
