"""What services served is logged in Delta, read back as it was, and compared with history."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import polars as pl
import pytest

from feature_assets import FeatureStore
from feature_assets.errors import TableMissing
from feature_assets.offline import OfflineStore
from feature_assets.served.writing import is_sampled
from feature_assets.spec import PARTITION, PUBLICATION, LoggingConfig, ServiceSpec, ViewProjection
from tests.server.conftest import DRIVERS, HOUR, NOW, WEATHER, Platform, bearer, client_of, rows

ASK = "/get-online-features"
WEATHERED = ServiceSpec(name="weathered", features=(ViewProjection("weather"),), logging=LoggingConfig())
DRIVEN = ServiceSpec(name="driven", features=(ViewProjection("driver_stats"),), logging=LoggingConfig())


def made(folder: Path, **server: object) -> Platform:
    platform = Platform(folder, feature_log_seconds=0.05, **server)
    weather = [("JFK", NOW - HOUR, 40.5, 11.0), ("LGA", NOW, None, 3.5), ("EWR", NOW - 9 * HOUR, 1.0, 2.0)]
    platform.add(WEATHER, *weather)
    platform.add(DRIVERS, (1, NOW, 10, "a@b.example"))
    platform.add(WEATHERED)
    platform.add(DRIVEN)
    platform.publish()
    offline = OfflineStore(platform.settings.place(platform.settings.offline), durability="process")
    history = rows(WEATHER, *weather).drop(PUBLICATION).with_columns(pl.lit("all").alias(PARTITION))
    offline.replace(WEATHER, history, ["all"], metadata={})
    return platform


async def ask(http: httpx.AsyncClient, platform: Platform, service: str, **entities: list[object]) -> str:
    body = {"feature_service": service, "entities": entities}
    answer = await http.post(ASK, json=body, headers=bearer(platform.token()))
    assert answer.status_code == 200, answer.text
    return answer.headers["x-request-id"]


async def test_what_was_served_is_read_back_as_it_was(tmp_path):
    platform = made(tmp_path)
    async with client_of(platform.app()) as http:
        first = await ask(http, platform, "weathered", origin=["JFK", "LGA", "EWR", "XXX"])
        await http.post(
            ASK,
            json={"features": ["weather:temp"], "entities": {"origin": ["JFK"]}},
            headers=bearer(platform.token()),
        )
    with FeatureStore(platform.settings) as store:
        found = store.get_served_features("weathered", statuses=True).collect()
    assert found["request_id"].to_list() == [first] * 4
    assert found["served_at"].to_list() == [NOW] * 4
    assert found["registry_digest"].unique().to_list() == [platform.registry.read().digest]
    by_origin = {row["origin"]: row for row in found.to_dicts()}
    assert {key: (row["temp"], row["temp__status"]) for key, row in by_origin.items()} == {
        "JFK": (40.5, "PRESENT"),
        "LGA": (None, "NULL_VALUE"),
        "EWR": (None, "OUTSIDE_MAX_AGE"),
        "XXX": (None, "NOT_FOUND"),
    }
    assert by_origin["JFK"]["event_timestamp__weather"] == NOW - HOUR
    platform.store.close()


async def test_personal_data_is_not_logged_unless_it_is_declared(tmp_path):
    platform = made(tmp_path)
    async with client_of(platform.app()) as http:
        headers = bearer(platform.token("features:read", "pii:read"))
        body = {"feature_service": "driven", "entities": {"driver_id": [1]}}
        assert "a@b.example" in (await http.post(ASK, json=body, headers=headers)).text
    with FeatureStore(platform.settings) as store:
        found = store.get_served_features("driven", statuses=True).collect()
    assert found["trips"].to_list() == [10]
    assert not [name for name in found.columns if "email" in name]
    platform.store.close()


async def test_skew_is_none_where_nothing_changed_and_finds_what_did(tmp_path):
    platform = made(tmp_path)
    async with client_of(platform.app()) as http:
        await ask(http, platform, "weathered", origin=["JFK", "LGA", "EWR", "XXX"])
    with FeatureStore(platform.settings) as store:
        same = {one.feature: one for one in store.skew("weathered")}
        assert {name: (one.rows, one.equal) for name, one in same.items()} == {"temp": (4, 4), "wind": (4, 4)}
        # History is written anew: another temperature, and a row that has come late.
        changed = [("JFK", NOW - HOUR, 41.0, 11.0), ("LGA", NOW, None, 3.5), ("XXX", NOW - HOUR, 7.0, 1.0)]
        history = rows(WEATHER, *changed).drop(PUBLICATION).with_columns(pl.lit("all").alias(PARTITION))
        store.offline.replace(WEATHER, history, ["all"], metadata={})
        found = {one.feature: one for one in store.skew("weathered")}
    temp = found["temp"]
    assert (temp.rows, temp.equal, temp.different, temp.missing) == (4, 2, 1, 1)
    assert temp.largest == pytest.approx(0.5)
    assert {(one["origin"], one["served"], one["offline"]) for one in temp.examples} == {
        ("JFK", 40.5, 41.0),
        ("XXX", None, 7.0),
    }
    assert found["wind"].missing == 1
    platform.store.close()


async def test_what_is_too_much_is_dropped_and_counted_and_answered_all_the_same(tmp_path):
    platform = made(tmp_path, feature_log_max_bytes=1)
    app = platform.app()
    async with client_of(app) as http:
        for _ in range(3):
            await ask(http, platform, "weathered", origin=["JFK", "LGA"])
        text = (await http.get("/metrics", headers=bearer(platform.token("admin")))).text
    line = 'feature_assets_feature_log_rows_total{outcome="dropped",service="weathered"} 6.0'
    assert line in text.splitlines()
    with FeatureStore(platform.settings) as store, pytest.raises(TableMissing, match="LoggingConfig"):
        store.get_served_features("weathered")
    platform.store.close()


async def test_a_time_is_asked_for_from_and_before(tmp_path):
    platform = made(tmp_path)
    async with client_of(platform.app()) as http:
        await ask(http, platform, "weathered", origin=["JFK"])
    with FeatureStore(platform.settings) as store:
        assert store.get_served_features("weathered", since=NOW).collect().height == 1
        assert store.get_served_features("weathered", until=NOW).collect().height == 0
        assert store.get_served_features("weathered", since=NOW + timedelta(microseconds=1)).collect().height == 0
    platform.store.close()


def test_a_sample_is_the_same_wherever_it_is_taken():
    ids = [b"%x-%x" % (at % 7, at) for at in range(20_000)]
    taken = [one for one in ids if is_sampled(one, 0.1)]
    assert 1_700 < len(taken) < 2_300
    assert [one for one in taken if is_sampled(one, 0.2)] == taken
    assert all(is_sampled(one, 1.0) for one in ids)
    assert datetime.now(UTC) > NOW
