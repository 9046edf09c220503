"""Workers of a backfill are killed while they compute and while they publish. It ends, with nothing lost or doubled."""

import asyncio
import json
import os
import random
import re
import signal
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from feature_assets.config import Settings
from feature_assets.settlement import verify
from feature_assets.store import FeatureStore
from tests.acceptance.hosts import Host
from tests.acceptance.running import tell

START = datetime(2024, 3, 1, tzinfo=UTC)
HOURS, PER_RUN, KEYS, KILLS = 480, 24, 20, 4

DEFINITIONS = f'''
"""A view of hours whose function says which processes are at it."""
import os
import time
from datetime import UTC
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from feature_assets import Entity, Field, Int64, feature_definitions, feature_view

WORKING = Path(__file__).parent / "working"
WORKING.mkdir(exist_ok=True)


@feature_view(
    entities=[Entity("driver", join_keys={{"driver_id": Int64}})],
    partitions_def=dg.HourlyPartitionsDefinition("2024-03-01-00:00", end_date="2024-03-21-00:00"),
    event_timestamp="at",
    schema=[Field("km", Int64)],
    backfill_policy=dg.BackfillPolicy.multi_run({PER_RUN}),
)
def trips(context: dg.AssetExecutionContext) -> pl.DataFrame:
    """Each driver once an hour."""
    (WORKING / f"{{context.run_id}}.{{os.getppid()}}.{{os.getpid()}}").touch()
    time.sleep(0.3)
    window = context.partition_time_window
    hours = pl.datetime_range(window.start, window.end, "1h", closed="left", eager=True).alias("at")
    rows = hours.to_frame().join(pl.DataFrame({{"driver_id": range({KEYS})}}), how="cross")
    return rows.with_columns(km=(pl.col("at").dt.epoch("s") // 3600 + pl.col("driver_id") * 7) % 1000)


defs = feature_definitions([trips])
'''


def expected() -> pl.DataFrame:
    """What the view has to hold, computed without any of it."""
    rows = [
        (driver, at, (int(at.timestamp()) // 3600 + driver * 7) % 1000)
        for at in (START + timedelta(hours=hour) for hour in range(HOURS))
        for driver in range(KEYS)
    ]
    schema = {"driver_id": pl.Int64(), "at": pl.Datetime("us", "UTC"), "km": pl.Int64()}
    return pl.DataFrame(rows, schema=schema, orient="row")


def a_host(folder: Path) -> Host:
    """One that looks for dead workers every three seconds and stores events together, and else is as the project ships it."""
    host = Host(folder, DEFINITIONS, "host", "http://127.0.0.1:1", DAGSTER_EVENT_BATCH_SIZE="250")
    (folder / "feature_assets.toml").write_text('location = "host"\n')
    shipped = folder / "dagster" / "dagster.yaml"
    text, found = re.subn(r"poll_interval_seconds: \d+", "poll_interval_seconds: 3", shipped.read_text())
    assert found == 1
    log: dict[str, Any] = {"module": "feature_assets.cli.event_log", "class": "BatchedSqliteEventLog"}
    log["config"] = {"base_dir": str(folder / "dagster" / "history" / "runs")}
    shipped.write_text(f"{text}\nevent_log_storage: {json.dumps(log)}\n")
    return host


def at_work(working: Path) -> list[str]:
    """Of each step that has begun its run, the process that runs it and its own."""
    return [one.name for one in working.iterdir()] if working.is_dir() else []


async def killed(working: Path, chance: random.Random) -> int:
    """Kill workers of runs that have just begun, each at another moment; how many there were.

    Of every other one only the process that runs it: the step that it started goes on, and publishes beside the next try.
    """
    done: set[str] = set()
    count = 0
    for _ in range(20_000):
        new = [one for one in at_work(working) if one.split(".")[0] not in done]
        if len(done) < 4 or not new:
            # The first few are let through, so that the middle is reached.
            done |= {one.split(".")[0] for one in new[:1]}
            await asyncio.sleep(0.05)
            continue
        run, worker, step = new[0].split(".")
        done.add(run)
        await asyncio.sleep(chance.uniform(0.0, 0.6))
        for process in (worker, step) if count % 2 else (worker,):
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        count += 1
        if count == KILLS:
            break
    return count


@pytest.mark.timeout(1_800)
async def test_a_backfill_outlives_its_workers(tmp_path: Path) -> None:
    host = a_host(tmp_path / "host")
    await host.done("apply", "--yes")
    keys = [(START + timedelta(hours=hour)).strftime("%Y-%m-%d-%H:%M") for hour in range(HOURS)]
    began = time.monotonic()
    async with host.running():
        backfill = await host.backfill("trips", keys)
        count = await killed(host.folder / "working", random.Random(8))
        assert count == KILLS, host.log
        await host.ended(backfill)
        runs = await host.runs()
        seconds = time.monotonic() - began
    statuses = [one["status"] for one in runs.values()]
    assert statuses.count("FAILURE") >= 2, "workers were killed while they were at it"
    # What no try of Dagster's has done, one command does.
    missing = await host.done("backfill", "trips", keys[0], keys[-1], "--missing-only")
    with FeatureStore(Settings.load(host.folder / "feature_assets.toml")) as store:
        view = store.registry.view("trips")
        found = store.offline.scan(view).select("driver_id", "at", "km").collect()
        assert found.sort("at", "driver_id").equals(expected().sort("at", "driver_id"))
        online = pl.concat(store.online.scan(view)).select("driver_id", "at", "km").sort("driver_id")
        assert online.equals(expected().filter(pl.col("at") == pl.col("at").max()).sort("driver_id"))
        assert verify(view, store.offline, store.online).total == 0
        commits = [one for one in store.offline.commits(view) if one.kind == "replace"]
    assert host_has_all(host, keys)
    tell(
        "P13",
        partitions=HOURS,
        workers_killed=count,
        runs=len(runs),
        failed=statuses.count("FAILURE"),
        commits=len(commits),
        left_for_missing_only=0 if "Nothing is missing" in missing else missing.count("2024-03"),
        seconds=f"{seconds:.0f}",
    )


def host_has_all(host: Host, keys: list[str]) -> bool:
    """Whether Dagster has every partition as materialised."""
    with dg.DagsterInstance.local_temp(str(host.folder / "dagster")) as instance:
        return instance.get_materialized_partitions(dg.AssetKey("trips")) == set(keys)
