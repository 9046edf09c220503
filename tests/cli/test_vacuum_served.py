"""`vacuum` covers what services served: days past their retention, and files that nothing needs."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from feature_assets import FeatureStore
from feature_assets.served.shape import log_store, log_table, shape_of
from feature_assets.served.writing import Served, ServedLog
from feature_assets.spec import LoggingConfig, ServiceSpec, ViewProjection
from feature_assets.types import microseconds
from tests.cli.conftest import Run
from tests.server.conftest import NOW, WEATHER, Platform

LOGGED = ServiceSpec(
    name="logged", features=(ViewProjection("weather"),), logging=LoggingConfig(retention=timedelta(days=30))
)
FOR_EVER = ServiceSpec(name="for_ever", features=(ViewProjection("weather"),), logging=LoggingConfig())
ROWS = ("JFK", NOW, 40.5, 11.0)


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """Two services, one row of each logged by each of three writes, forty days apart."""
    monkeypatch.chdir(tmp_path)
    settings = f'online = "sqlite:online.db"\nregistry = "registry"\npresent = "{NOW.isoformat()}"\n'
    (tmp_path / "feature_assets.toml").write_text(settings)
    made = Platform(tmp_path)
    made.add(WEATHER, ROWS)
    made.past(WEATHER, ROWS)
    made.add(LOGGED)
    made.add(FOR_EVER)
    made.publish()
    made.store.close()
    for moment in (NOW - timedelta(days=40), NOW, NOW):
        serve(made, moment)
    return made


def serve(made: Platform, moment: datetime) -> None:
    log = ServedLog(log_store(made.settings), seconds=60, max_bytes=1 << 20)
    with FeatureStore(made.settings) as store:
        for service in ("logged", "for_ever"):
            answer = store.get_online_features(service, {"origin": ["JFK"]})
            shape, request = shape_of(store.registry, service), f"{service}-{moment.isoformat()}"
            log.take(Served(shape, "digest", request, microseconds(moment), {"origin": ["JFK"]}, answer, 1))
    log.close()


def state_of(made: Platform, service: str) -> tuple[list[str], int, int]:
    """The days of a log, its rows, and how many data files there are on the disk."""
    store = log_store(made.settings)
    state = store.state(log_table(service))
    assert state is not None
    files = list(Path(store.uri(log_table(service))).rglob("__partition=*/*.parquet"))
    return list(state.rows_by_partition), state.rows, len(files)


OLD, TODAY = f"{NOW - timedelta(days=40):%Y-%m-%d}", f"{NOW:%Y-%m-%d}"


def test_what_would_go_is_told_and_stays(platform: Platform, run: Run) -> None:
    before = state_of(platform, "logged"), state_of(platform, "for_ever")
    rows = {row["view"]: row for row in run("vacuum", "--older-than", "0", "--dry-run", "--json").rows}
    assert set(rows) == {"weather", "logged (served)", "for_ever (served)"}
    assert {name: row["days"] for name, row in rows.items()} == {
        "weather": [],
        "logged (served)": [OLD],
        "for_ever (served)": [],
    }
    assert (state_of(platform, "logged"), state_of(platform, "for_ever")) == before


def test_days_past_their_retention_go_and_small_files_become_one(platform: Platform, run: Run) -> None:
    rows = {row["view"]: row for row in run("vacuum", "--older-than", "0", "--compact", "--json").rows}
    assert rows["logged (served)"]["days"] == [OLD]
    assert rows["logged (served)"]["removed"] == 3
    assert rows["for_ever (served)"]["removed"] == 2
    assert state_of(platform, "logged") == ([TODAY], 2, 1)
    assert state_of(platform, "for_ever") == ([OLD, TODAY], 3, 2)
    with FeatureStore(platform.settings) as store:
        assert store.get_served_features("for_ever").collect().height == 3


def test_one_is_asked_for_by_the_name_of_its_service(platform: Platform, run: Run) -> None:
    out = run("vacuum", "logged", "--older-than", "0").out
    assert "logged (served)" in out
    assert "days removed" in " ".join(out.split())
    assert "weather" not in out
    assert state_of(platform, "logged")[0] == [TODAY]
    assert state_of(platform, "for_ever")[0] == [OLD, TODAY]
    assert [row["view"] for row in run("vacuum", "weather", "--json").rows] == ["weather"]


def test_a_name_of_neither_is_refused_with_the_nearest(platform: Platform, run: Run) -> None:
    assert "'weather'" in run("vacuum", "whether", code=1).said
