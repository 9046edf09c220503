"""Several hosts run Dagster on one S3 and one DynamoDB: disjoint partitions, the same partition, an apply meanwhile.

Each row holds the id of the run that made it, twice, and which keys a run gives a partition depends on that id. So a
partition of two runs, a row of two runs, and a key that another run should have taken back all show.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from zlib import crc32

import pytest

from feature_assets.config import Settings
from feature_assets.store import FeatureStore
from tests.acceptance.cloud_oracle import Held, held
from tests.acceptance.clouds import BOTH, KEYS, client
from tests.acceptance.hosts import Host
from tests.acceptance.running import tell

DRIVERS = 12
DAYS = [f"2024-03-{day:02}" for day in range(1, 13)]
BY_TWO, BY_ONE = "2024-03-03", "2024-03-04"

DEFINITIONS = '''
"""One view, whose rows say which run made them."""
import os
import time
from datetime import timedelta
from pathlib import Path
from zlib import crc32

import dagster as dg
import polars as pl

from feature_assets import Entity, Field, Int64, String, feature_definitions, feature_view

driver = Entity("driver", join_keys={"driver_id": Int64})
days = dg.DailyPartitionsDefinition("2024-03-01", end_date="2024-03-13")
GATE = Path(os.environ["GATE"])


def wait_for_the_other(context):
    """Where two runs of a partition are to meet, each waits here until both are there."""
    for key in context.partition_keys:
        met = GATE / key
        if met.is_dir():
            (met / context.run_id).touch()
            while len(list(met.iterdir())) < 2:
                time.sleep(0.02)


def has(run, day, key):
    return crc32(f"{run}/{day:%Y-%m-%d}/{key}".encode()) % 4 > 0


@feature_view(
    entities=[driver],
    partitions_def=days,
    event_timestamp="at",
    schema=[Field("run", String), Field("copy", String), Field("day", Int64)],
    backfill_policy=dg.BackfillPolicy.multi_run(2),
    pool="trips",
)
def trips(context: dg.AssetExecutionContext) -> pl.DataFrame:
    """Some drivers, by chance of the run."""
    wait_for_the_other(context)
    run, window = context.run_id, context.partition_time_window
    starts = [window.start + timedelta(days=number) for number in range((window.end - window.start).days)]
    rows = [
        {"driver_id": key, "at": day + timedelta(minutes=key), "run": run, "copy": run, "day": day.day}
        for day in starts
        for key in range(12)
        if has(run, day, key)
    ]
    return pl.DataFrame(rows)


defs = feature_definitions([trips])
'''

SHOPS = '''
"""Another team's view, of which they publish one change after the other."""
from pathlib import Path

import polars as pl

from feature_assets import Entity, Field, Int64, feature_definitions, feature_view

shop = Entity("shop", join_keys={"shop_id": Int64})


@feature_view(
    entities=[shop],
    event_timestamp="at",
    schema=[Field("orders", Int64)],
    description=(Path(__file__).parent / "description").read_text(),
)
def shops() -> pl.DataFrame:
    raise NotImplementedError


defs = feature_definitions([shops])
'''


@dataclass
class Lookups:
    """What was looked up while the hosts wrote."""

    asked: int = 0
    failures: list[str] = field(default_factory=list)
    mixed: list[tuple[object, ...]] = field(default_factory=list)


@contextlib.contextmanager
def looked_up(settings: Settings) -> Iterator[Lookups]:
    """Rows are asked for again and again by a process that only reads."""
    seen, done = Lookups(), threading.Event()
    store = FeatureStore(settings)

    def ask() -> None:
        while not done.wait(0.05):
            try:
                answer = store.get_online_features(["trips:*"], [{"driver_id": key} for key in range(DRIVERS)])
            except Exception as error:  # noqa: BLE001 (told by the test)
                seen.failures.append(repr(error))
                continue
            seen.asked += 1
            found = answer.to_dict()
            rows = zip(found["run"], found["copy"], strict=True)
            seen.mixed += [row for row in rows if row[0] != row[1]]

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
        store.close()


@contextlib.asynccontextmanager
async def applied_meanwhile(third: Host) -> AsyncIterator[list[str]]:
    """A third host publishes, each time something else; the descriptions that it was told are published."""
    done, told = asyncio.Event(), list[str]()

    async def apply() -> None:
        while not done.is_set():
            description = f"number {len(told)}"
            (third.folder / "description").write_text(description)
            await third.done("apply", "--yes")
            told.append(description)

    task = asyncio.create_task(apply())
    try:
        yield told
    finally:
        done.set()
        await task


def expected(run: str, day: str) -> set[int]:
    """The drivers that a run gives a day: what `has` of the definitions says."""
    return {key for key in range(DRIVERS) if crc32(f"{run}/{day}/{key}".encode()) % 4}


def each_partition_is_of_one_run(found: Held) -> dict[str, str]:
    """Promise 4: every partition has just the rows of one run. Which run that is."""
    by_partition = found.by_partition()
    assert sorted(by_partition) == DAYS
    made_by: dict[str, str] = {}
    for day, rows in by_partition.items():
        (made_by[day],) = {row["run"] for row in rows}
        assert len({row["__publication"] for row in rows}) == 1
        assert len(rows) == len({row["driver_id"] for row in rows}), "no row twice"
        assert {row["driver_id"] for row in rows} == expected(made_by[day], day)
    return made_by


def online_is_latest_of_offline(found: Held) -> None:
    """Promise 3, by the items themselves; and every partition's last publication stands in the ledger, settled."""
    latest = found.latest("driver_id", "at")
    items = {int(item["driver_id"]["N"]): item for item in found.items}
    assert items.keys() == latest.keys()
    for key, row in latest.items():
        item = items[key]
        told = (item["run"]["S"], item["copy"]["S"], int(item["day"]["N"]))
        assert told == (row["run"], row["copy"], row["day"])
        at = datetime.fromtimestamp(int(item["at"]["N"]) / 1e6, UTC)
        assert at == row["at"].astimezone(UTC)
        assert int(item["__publication"]["N"]) == row["__publication"]
    assert not [name for name in found.ledger if name.startswith("writing/")], "somebody counts as writing"
    last = {row["__partition"]: row["__publication"] for row in found.rows}
    assert {name: int(entry["publication"]["N"]) for name, entry in found.ledger.items()} == last
    assert all(entry["settled"]["BOOL"] for entry in found.ledger.values())


def nothing_is_lost_or_doubled(found: Held, succeeded: set[str]) -> None:
    """Promise 5: each run that was told to have gone well is in the log, and none is there twice."""
    assert found.files_added_twice() == []
    published = found.runs()
    assert len(published) == len(set(published)), "a run is in the log twice"
    assert succeeded == set(published)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("cloud", BOTH)
async def test_what_several_hosts_write_at_once_is_whole_right_and_there_once(cloud: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()
    with BOTH[cloud](tmp_path) as endpoint:
        client("s3", endpoint).create_bucket(Bucket="features")
        one, two = (Host(tmp_path / name, DEFINITIONS, "rides", endpoint, GATE=str(gate)) for name in ("one", "two"))
        third = Host(tmp_path / "three", SHOPS, "shops", endpoint)
        await one.done("apply", "--yes")
        async with one.running(), two.running(), applied_meanwhile(third) as applied:
            with (
                pytest.MonkeyPatch.context() as patched,
                contextlib.ExitStack() as reading,
            ):
                for name, value in KEYS.items():
                    patched.setenv(name, value)
                # Disjoint partitions of one view, from the first on.
                backfills = [(one, await one.backfill("trips", DAYS[:6])), (two, await two.backfill("trips", DAYS[6:]))]
                assert await asyncio.gather(*(host.ended(backfill) for host, backfill in backfills)) == [True, True]
                seen = reading.enter_context(looked_up(Settings.load(one.folder / "feature_assets.toml")))
                # The same partition: by two hosts, whose pools know nothing of one another, and twice by one host.
                (gate / BY_TWO).mkdir()
                apart = [(host, await host.materialise("trips", BY_TWO)) for host in (one, two)]
                assert await asyncio.gather(*(host.ended(run) for host, run in apart)) == [True, True]
                queued = [await one.materialise("trips", BY_ONE) for _ in range(2)]
                assert await asyncio.gather(*map(one.ended, queued)) == [True, True]
            runs = {run: told | {"host": host.name} for host in (one, two) for run, told in (await host.runs()).items()}
        verified = json.loads(await two.done("verify", "trips", "--json"))
        doctor = await two.done("doctor")
        history = json.loads(await third.done("registry", "history", "--limit", "1000", "--json"))
        found = held(endpoint, "trips", prefix="hosts")
    made_by = each_partition_is_of_one_run(found)
    online_is_latest_of_offline(found)
    of_view = {run for run, told in runs.items() if told["pipelineName"].startswith("__ASSET_JOB")}
    nothing_is_lost_or_doubled(found, {run for run in of_view if runs[run]["status"] == "SUCCESS"})
    assert verified[0]["differences"] == 0
    assert made_by[BY_TWO] in {run.id for _, run in apart}
    assert made_by[BY_ONE] in {run.id for run in queued}
    assert {runs[made_by[day]]["host"] for day in DAYS} == {"one", "two"}
    first, second = sorted((runs[run.id]["stepStats"][0] for run in queued), key=lambda step: step["startTime"])
    assert first["endTime"] <= second["startTime"], "the pool has one place"
    assert [seen.failures, seen.mixed] == [[], []]
    assert seen.asked > 20
    assert {one["number"] for one in history} == set(range(1, len(applied) + 2)), "each apply is one publication"
    tell(
        f"K3 on {cloud}",
        runs=len(of_view),
        commits=len(found.entries),
        lookups_meanwhile=seen.asked,
        applies_meanwhile=len(applied),
        differences=verified[0]["differences"],
    )
    assert "✗" not in doctor
