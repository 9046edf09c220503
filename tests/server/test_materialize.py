"""Feast's materialize, done by a real Dagster webserver that the test starts: runs, backfills, what is under way."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from feature_assets.config import ServerSettings, Settings
from feature_assets.errors import TableMissing
from feature_assets.online import open_online_store
from feature_assets.registry import RegistryStore
from feature_assets.server.spans import after, overlap, start_of, touched
from feature_assets.spec import TimePartitions
from tests.server.conftest import NOW, Platform, bearer, client_of, fill

DEFINITIONS = """
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import dagster as dg
import polars as pl

from feature_assets import Entity, Field, Int64, String, feature_definitions, feature_view

driver = Entity("driver", join_keys={"driver_id": Int64})
days = dg.DailyPartitionsDefinition("2013-01-01", end_date="2013-01-11")
HERE = Path(__file__).parent


def rows(context, times):
    if (HERE / "broken").exists():
        raise ValueError("the source is broken")
    while (HERE / "slow").exists():
        time.sleep(0.1)
    return pl.DataFrame({"driver_id": [1] * len(times), "at": times, "trips": [at.day for at in times]})


def each_day(window):
    length = (window.end - window.start).days
    return [window.start + timedelta(days=number) for number in range(length)]


options = {"entities": [driver], "event_timestamp": "at", "schema": [Field("trips", Int64)]}


@feature_view(partitions_def=days, **options)
def daily(context: dg.AssetExecutionContext) -> pl.DataFrame:
    return rows(context, each_day(context.partition_time_window))


@feature_view(partitions_def=days, **options)
def nightly(context: dg.AssetExecutionContext) -> pl.DataFrame:
    return rows(context, each_day(context.partition_time_window))


@feature_view(partitions_def=days, backfill_policy=dg.BackfillPolicy.multi_run(2), **options)
def by_two(context: dg.AssetExecutionContext) -> pl.DataFrame:
    return rows(context, each_day(context.partition_time_window))


@feature_view(**options)
def whole(context: dg.AssetExecutionContext) -> pl.DataFrame:
    return rows(context, [datetime(2013, 1, 5, tzinfo=timezone.utc)])


defs = feature_definitions([daily, nightly, by_two, whole])
"""

INSTANCE = """\
telemetry: {enabled: false}
run_coordinator:
  module: dagster._core.run_coordinator
  class: DefaultRunCoordinator
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class World:
    """A project, its Dagster, and a feature server's settings that name it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        (folder / "definitions.py").write_text(DEFINITIONS)
        (folder / "feature_assets.toml").write_text('durability = "process"\n')
        home = folder / "dagster"
        home.mkdir()
        (home / "dagster.yaml").write_text(INSTANCE)
        self.environment = os.environ | {
            "DAGSTER_HOME": str(home),
            "FEATURE_ASSETS_CONFIG": str(folder / "feature_assets.toml"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        self.settings = Settings(
            root=folder,
            server=ServerSettings(dagster_url=f"http://127.0.0.1:{self.port}", registry_refresh_seconds=0.05),
        )
        self.platform = Platform.__new__(Platform)
        self.platform.settings = self.settings
        self.platform.registry = RegistryStore(self.settings.place(self.settings.registry))

    def start(self) -> "subprocess.Popen[bytes]":
        subprocess.run(
            [sys.executable, "-m", "feature_assets.cli", "apply", "--yes"],
            check=True, cwd=self.folder, env=self.environment, capture_output=True, timeout=120,
        )  # fmt: skip
        command = [sys.executable, "-m", "dagster_webserver", "-f", "definitions.py", "-p", str(self.port)]
        with (self.folder / "webserver.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(600):
            try:
                answer = httpx.post(
                    f"http://127.0.0.1:{self.port}/graphql", json={"query": "{ assetNodes { id } }"}, timeout=10
                )
                if len(answer.json()["data"]["assetNodes"]) >= 4:
                    return process
            except (httpx.HTTPError, ValueError):
                pass
            assert process.poll() is None, (self.folder / "webserver.log").read_text()
            time.sleep(0.1)
        raise AssertionError((self.folder / "webserver.log").read_text())

    def token(self, *scopes: str) -> dict[str, Any]:
        return bearer(self.platform.token(*(scopes or ("features:materialize", "registry:read"))))

    def trips(self, view: str) -> int | None:
        """What is online of driver 1; None before anything is."""
        with closing(open_online_store(self.settings.online_url)) as store:
            spec = self.platform.registry.read().registry.view(view)
            try:
                found = store.reader(spec, ["trips"])([(1,)])
            except TableMissing:
                return None
        value: int | None = found[1][0][0]
        return value

    def switch(self, name: str, *, on: bool) -> None:
        if on:
            (self.folder / name).touch()
        else:
            (self.folder / name).unlink()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    process = made.start()
    yield made
    # What a failed test left waiting ends too; then the group, of which runs are processes.
    (made.folder / "slow").unlink(missing_ok=True)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=30)


@pytest.fixture(scope="module")
async def http(world) -> Any:
    app = world.platform.app()
    async with client_of(app, timeout=200) as client:
        yield client


async def ask(http: httpx.AsyncClient, world: World, path: str, body: Any, *scopes: str) -> httpx.Response:
    return await http.post(path, content=json.dumps(body), headers=world.token(*scopes))


pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("dagster")]


async def test_a_window_is_one_run_over_the_partitions_that_it_touches(http, world):
    """Naive times are UTC, both ends count, and what Feast sends besides is passed over."""
    body = {
        "start_ts": "2013-01-02T23:00:00",
        "end_ts": "2013-01-05T00:00:00+00:00",
        "feature_views": ["daily"],
        "disable_event_timestamp": False,
        "full_feature_names": False,
        "version": None,
    }
    before = await materialised(world)
    answer = await ask(http, world, "/materialize", body)
    assert answer.status_code == 200, answer.text
    (run,) = answer.json()["runs"]
    assert (run["feature_view"], run["kind"], answer.json()["status"]) == ("daily", "run", "succeeded")
    asked = {"2013-01-02", "2013-01-03", "2013-01-04", "2013-01-05"}
    assert set(await materialised(world)) == asked.union(before)
    assert world.trips("daily") == int(max(asked.union(before))[-2:])


async def asked_of_dagster(world: World, query: str) -> Any:
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"http://127.0.0.1:{world.port}/graphql", json={"query": query}, timeout=30)
    return answer.json()["data"]


async def materialised(world: World, view: str = "daily") -> list[str]:
    asked = "latestMaterializationByPartition { partition }"
    query = f'{{ assetNodeOrError(assetKey: {{path: ["{view}"]}}) {{ ... on AssetNode {{ {asked} }} }} }}'
    node = (await asked_of_dagster(world, query))["assetNodeOrError"]
    return sorted(one["partition"] for one in node["latestMaterializationByPartition"] if one)


async def all_ended(world: World) -> None:
    """Wait for the runs, so that the next test finds nothing under way."""
    query = "{ runsOrError(filter: {statuses: [QUEUED, STARTING, STARTED]}) { ... on Runs { results { id } } } }"
    for _ in range(600):
        if not (await asked_of_dagster(world, query))["runsOrError"]["results"]:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("runs are still going")


async def test_the_increment_goes_from_the_last_materialised_partition_on(http, world):
    first = {"start_ts": "2013-01-03", "end_ts": "2013-01-05", "feature_views": ["nightly"]}
    assert (await ask(http, world, "/materialize", first)).status_code == 200
    body = {"end_ts": "2013-01-07T12:00:00", "feature_views": ["nightly"]}
    answer = await ask(http, world, "/materialize-incremental", body)
    assert answer.status_code == 200, answer.text
    made = ["2013-01-03", "2013-01-04", "2013-01-05", "2013-01-06", "2013-01-07"]
    assert await materialised(world, "nightly") == made
    assert world.trips("nightly") == 7
    again = await ask(http, world, "/materialize-incremental", body)
    assert (again.status_code, again.json()["runs"]) == (200, [])


async def test_a_view_without_partitions_is_made_as_a_whole(http, world):
    body = {"start_ts": "2013-01-01", "end_ts": "2013-01-02", "feature_views": ["whole"]}
    answer = await ask(http, world, "/materialize", body)
    assert answer.status_code == 200, answer.text
    assert world.trips("whole") == 5


async def test_what_is_under_way_is_not_started_again_unless_that_is_asked_for(http, world):
    world.switch("slow", on=True)
    body = {"start_ts": "2013-01-08", "end_ts": "2013-01-09", "feature_views": ["daily"]}
    started = await ask(http, world, "/materialize?async=true", body)
    assert (started.status_code, started.json()["status"]) == (202, "accepted")
    refused = await ask(http, world, "/materialize", body)
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:feature-assets:problem:already-running")
    # What Feast's SDK shows.
    assert refused.json()["error"] == "'daily' is being materialised"
    assert started.json()["runs"][0]["id"] in refused.json()["detail"]
    beside = await ask(
        http, world, "/materialize?async=true", {**body, "start_ts": "2013-01-10", "end_ts": "2013-01-10"}
    )
    assert beside.status_code == 202, beside.text
    forced = await ask(http, world, "/materialize?async=true&force=true", body)
    assert forced.status_code == 202
    assert forced.json()["runs"][0]["id"] != started.json()["runs"][0]["id"]
    both = await asyncio.gather(
        *(ask(http, world, "/materialize?async=true", {**body, "feature_views": ["whole"]}) for _ in range(2))
    )
    assert sorted(one.status_code for one in both) == [202, 409]
    world.switch("slow", on=False)
    for _ in range(600):
        if world.trips("daily") == 10:
            break
        await asyncio.sleep(0.1)
    assert world.trips("daily") == 10
    await all_ended(world)


async def test_more_partitions_than_one_run_may_have_are_a_backfill(http, world):
    """No daemon runs here, so that it stays requested: and that is under way."""
    body = {"start_ts": "2013-01-01", "end_ts": "2013-01-05", "feature_views": ["by_two"]}
    answer = await ask(http, world, "/materialize?async=true", body)
    assert answer.status_code == 202, answer.text
    (run,) = answer.json()["runs"]
    assert run["kind"] == "backfill"
    refused = await ask(http, world, "/materialize", {**body, "start_ts": "2013-01-05", "end_ts": "2013-01-06"})
    assert (refused.status_code, run["id"] in refused.json()["detail"]) == (409, True)
    two = await ask(http, world, "/materialize", {**body, "start_ts": "2013-01-07", "end_ts": "2013-01-08"})
    assert (two.status_code, two.json()["runs"][0]["kind"]) == (200, "run")
    assert world.trips("by_two") == 8


async def test_a_run_that_fails_is_told_with_its_id(http, world):
    world.switch("broken", on=True)
    body = {"start_ts": "2013-01-01", "end_ts": "2013-01-01", "feature_views": ["daily"]}
    answer = await ask(http, world, "/materialize", body)
    world.switch("broken", on=False)
    assert (answer.status_code, answer.json()["type"]) == (424, "urn:feature-assets:problem:materialisation-failed")
    assert "the run" in answer.json()["detail"]


async def test_who_waits_no_longer_leaves_the_runs_going(world):
    server = world.settings.server.model_copy(update={"materialize_seconds": 0.2})
    short = Platform.__new__(Platform)
    short.settings = world.settings.model_copy(update={"server": server})
    world.switch("slow", on=True)
    async with client_of(short.app(), timeout=60) as http:
        body = {"start_ts": "2013-01-01", "end_ts": "2013-01-02", "feature_views": ["daily"]}
        answer = await ask(http, world, "/materialize?force=true", body)
    world.switch("slow", on=False)
    assert (answer.status_code, answer.json()["status"]) == (202, "accepted")
    await all_ended(world)


@pytest.mark.parametrize(
    "path, body, status, words",
    [
        ("/materialize", {"feature_views": ["daily"]}, 422, "start_ts"),
        ("/materialize", {"start_ts": "2013-01-02", "end_ts": "2013-01-01", "feature_views": ["daily"]}, 422, "Swap"),
        ("/materialize", {"start_ts": "yesterday", "end_ts": "2013-01-01"}, 422, "start_ts"),
        ("/materialize", {"start_ts": 1, "end_ts": "2013-01-01"}, 422, "Expected"),
        (
            "/materialize",
            {"start_ts": "2013-01-01", "end_ts": "2013-01-01", "feature_views": ["dialy"]},
            404,
            "Did you mean",
        ),
        ("/materialize", {"start_ts": "2013-01-01", "end_ts": "2013-01-01", "version": "v9"}, 422, "version 1"),
        ("/materialize?async=perhaps", {"start_ts": "2013-01-01", "end_ts": "2013-01-01"}, 422, "true or false"),
        ("/materialize", [], 422, "Expected"),
        ("/materialize-incremental", {}, 422, "end_ts"),
        ("/materialize-incremental", {"end_ts": "soon"}, 422, "end_ts"),
    ],
)
async def test_what_cannot_be_meant_is_refused_before_anything_starts(http, world, path, body, status, words):
    answer = await ask(http, world, path, body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]


async def test_who_may_not_materialise_one_of_the_views_starts_none(http, world):
    body = {"start_ts": "2013-01-01", "end_ts": "2013-01-01"}
    narrow = ("features:materialize:daily", "registry:read")
    assert (await ask(http, world, "/materialize?async=true", body, *narrow)).status_code == 403
    named = await ask(http, world, "/materialize?async=true", {**body, "feature_views": ["daily", "whole"]}, *narrow)
    assert (named.status_code, "features:materialize:whole" in named.json()["detail"]) == (403, True)
    assert (await ask(http, world, "/materialize", body, "features:read")).status_code == 403
    assert (await http.post("/materialize", json=body)).status_code == 401


async def test_without_dagster_it_says_what_is_missing(tmp_path):
    platform = Platform(tmp_path)
    fill(platform)
    async with client_of(platform.app()) as http:
        token = bearer(platform.token("features:materialize"))
        answer = await http.post("/materialize", json={}, headers=token)
        assert "/materialize" not in (await http.get("/openapi.json")).json()["paths"]
    assert answer.status_code == 501
    assert "server.dagster_url" in answer.json()["detail"]
    platform.store.close()


async def test_a_dagster_that_is_not_there_is_named_and_nothing_of_its_place(tmp_path):
    platform = Platform(tmp_path, dagster_url=f"http://127.0.0.1:{free_port()}")
    fill(platform)
    async with client_of(platform.app()) as http:
        token = bearer(platform.token("features:materialize"))
        body = {"start_ts": str(NOW), "end_ts": str(NOW)}
        answer = await http.post("/materialize", json=body, headers=token)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:feature-assets:problem:dagster-unreachable")
    assert "127.0.0.1" not in answer.text
    platform.store.close()


BERLIN = TimePartitions(
    cron="0 * * * *", timezone="Europe/Berlin", start="2026-10-24T22:00:00+00:00", fmt="%Y-%m-%d-%H:%M"
)
DAYS = TimePartitions(cron="0 0 * * *", timezone="UTC", start="2013-01-01T00:00:00+00:00", fmt="%Y-%m-%d")


def test_the_hour_that_comes_twice_is_two_windows():
    keys = ["2026-10-25-01:00", "2026-10-25-02:00", "2026-10-25-02:00+0100", "2026-10-25-03:00"]
    starts = [start_of(key, BERLIN) for key in keys]
    assert [start - starts[0] for start in starts] == [timedelta(hours=number) for number in range(4)]
    assert touched(keys, BERLIN, starts[2], starts[2]) == [keys[2]]


def test_windows_end_where_the_next_begins():
    keys = ["2013-01-01", "2013-01-02", "2013-01-03"]

    def at(day: int, hour: int = 0) -> datetime:
        return datetime(2013, 1, day, hour, tzinfo=UTC)

    assert touched(keys, DAYS, at(1, 23), at(2)) == keys[:2]
    assert touched(keys, DAYS, at(2), at(2)) == [keys[1]]
    assert touched(keys, DAYS, at(3, 23), at(9)) == [keys[2]]
    assert touched(keys, DAYS, at(4), at(9)) == []
    assert touched(keys, DAYS, None, None) == keys
    assert touched([], DAYS, at(1), at(2)) == []
    assert touched(keys[:1], DAYS, at(1, 5), at(9)) == keys[:1]


def test_what_follows_and_what_overlaps():
    keys = list("abcde")
    assert after(keys, ["b", "x", "a"]) == ["c", "d", "e"]
    assert after(keys, []) == keys
    assert overlap(keys, ("a", "b"), ("b", "c"))
    assert not overlap(keys, ("a", "b"), ("c", "e"))
    assert overlap(keys, ("a", "a"), None)
    assert overlap(keys, ("a", "a"), ("x", "y"))
