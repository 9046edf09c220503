"""C5: a host dies in the middle of a run that holds the only slot of its pool. The next one is not wedged by it."""

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import pytest

from feature_assets.config import Settings
from feature_assets.settlement import verify
from feature_assets.store import FeatureStore
from tests.acceptance.hosts import Host
from tests.acceptance.running import tell

DEFINITIONS = '''
"""A view whose run waits where a gate stands."""
import time
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import polars as pl

from feature_assets import Entity, Field, Int64, feature_definitions, feature_view

HERE = Path(__file__).parent


@feature_view(
    entities=[Entity("driver", join_keys={"driver_id": Int64})],
    partitions_def=dg.DailyPartitionsDefinition("2024-03-01", end_date="2024-03-13"),
    event_timestamp="at",
    schema=[Field("km", Int64)],
    pool="trips",
)
def trips(context: dg.AssetExecutionContext) -> pl.DataFrame:
    """One row a day."""
    (HERE / context.run_id).touch()
    while (HERE / "gate").exists():
        time.sleep(0.05)
    day = context.partition_time_window.start.astimezone(UTC)
    return pl.DataFrame({"driver_id": [1], "at": [day], "km": [day.day]})


defs = feature_definitions([trips])
'''
MAX_RUNTIME = 40
UNDER_WAY = {"NOT_STARTED", "QUEUED", "STARTING", "STARTED"}
HELD, OTHER = "2024-03-01", "2024-03-02"


def a_host(folder: Path) -> Host:
    """One that keeps things on its own disk; the times of the settings that the project ships made short."""
    host = Host(folder, DEFINITIONS, "host", "http://127.0.0.1:1")
    (folder / "feature_assets.toml").write_text('location = "host"\n')
    shipped = folder / "dagster" / "dagster.yaml"
    text = shipped.read_text()
    for name, seconds in {
        "max_runtime_seconds": MAX_RUNTIME,
        "poll_interval_seconds": 3,
        "free_slots_after_run_end_seconds": 1,
    }.items():
        text, found = re.subn(rf"{name}: \d+", f"{name}: {seconds}", text)
        assert found == 1
    shipped.write_text(text)
    return host


async def reached(mark: Path) -> None:
    for _ in range(1_200):
        if await asyncio.to_thread(mark.exists):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"no run has made {mark}")


async def all_over(host: Host, count: int) -> dict[str, dict[str, Any]]:
    """All runs of the host, once there are so many and none is under way."""
    for _ in range(400):
        runs = await host.runs()
        if len(runs) >= count and not any(one["status"] in UNDER_WAY for one in runs.values()):
            return runs
        await asyncio.sleep(0.5)
    raise AssertionError(host.log)


@pytest.mark.timeout(500)
async def test_a_dead_host_wedges_nothing(tmp_path: Path) -> None:
    host = a_host(tmp_path / "host")
    await host.done("apply", "--yes")
    gate = host.folder / "gate"
    gate.touch()
    async with host.running():
        held = await host.materialise("trips", HELD)
        await reached(host.folder / held.id)
        assert (await host.runs())[held.id]["status"] == "STARTED"
        host.kill()
    gate.unlink()
    async with host.running():
        other, began = await host.materialise("trips", OTHER), time.monotonic()
        assert await host.ended(other)
        seconds = time.monotonic() - began
        runs = await all_over(host, 3)
    statuses = {run: one["status"] for run, one in runs.items()}
    assert statuses.pop(held.id) == "FAILURE"
    assert list(statuses.values()) == ["SUCCESS"] * 2, "the other run, and the dead one tried again"
    with FeatureStore(Settings.load(host.folder / "feature_assets.toml")) as store:
        view = store.registry.view("trips")
        assert sorted(store.offline.scan(view).collect()["km"]) == [1, 2]
        assert store.get_online_features("trips:km", {"driver_id": [1]})["km"] == [2]
        assert verify(view, store.offline, store.online).total == 0
    tell("C5", next_run_done_after=f"{seconds:.0f} s", dead_run="FAILURE, and tried again")
