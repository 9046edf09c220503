"""T2: a Ray cluster of several raylets joins the parts of a spine, and workers are killed meanwhile."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from feature_assets.spec import Field
from feature_assets.types import Float64, Int64
from tests.acceptance.running import tell
from tests.historical.world import CLOCK, World, view

pytest.importorskip("daft")
pytest.importorskip("ray")

ROWS, SPINE, PARTS = 1_000_000, 1_500_000, 6
START = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
SPAN = int(timedelta(days=60).total_seconds()) * 1_000_000
STATS = view("stats", {"driver": Int64}, [Field("a", Float64), Field("b", Float64)], ttl=timedelta(days=10))

CHILD = """
import sys
from pathlib import Path
from tests.acceptance.test_ray import STATS
from feature_assets.historical import historical_features
from feature_assets.offline import OfflineStore
from feature_assets.registry import Registry

folder, address, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
asked = historical_features(
    Registry.of([STATS]), OfflineStore(str(folder / "offline")), folder / "spine.parquet", ["stats:*"],
    memory_limit="100MB", engine="daft-ray", address=address, scratch=str(folder),
    progress=lambda made: print(made.stage, made.done, flush=True),
)
asked.write_parquet(folder / name)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    chance = np.random.default_rng(1)
    here = World(tmp_path_factory.mktemp("world"), STATS)
    for part in range(PARTS):
        low, high = SPAN * part // PARTS, SPAN * (part + 1) // PARTS
        count = ROWS // PARTS
        frame = pl.DataFrame(
            {
                "driver": chance.integers(0, 5_000, count),
                "at": chance.integers(START + low, START + high, count),
                "a": chance.random(count),
                "b": chance.random(count),
            }
        ).unique(["driver", "at"], maintain_order=True)
        here.publish(STATS, frame.with_columns(pl.col("at").cast(CLOCK)), partition=f"part{part}")
    spine = pl.DataFrame(
        {
            "label": np.arange(SPINE),
            "driver": chance.integers(0, 5_000, SPINE),
            "event_timestamp": chance.integers(START, START + SPAN, SPINE),
        }
    )
    spine.with_columns(pl.col("event_timestamp").cast(CLOCK)).write_parquet(here.folder / "spine.parquet")
    return here


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def workers() -> list[int]:
    """The processes in which Daft runs tasks."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if b"RaySwordfishActor" in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("killed", [0, 2])
def test_a_cluster_gives_the_rows_of_one_process_whoever_dies(world, cluster, killed):
    expected = world.ask(pl.scan_parquet(world.folder / "spine.parquet"), ["stats:*"]).collect()
    name = f"answer-{killed}.parquet"
    command = [sys.executable, "-c", CHILD, str(world.folder), cluster.address, name]
    root = Path(__file__).parents[2]
    with (
        (world.folder / f"log-{killed}").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=root) as child,
    ):
        watchdog = threading.Timer(300, child.kill)
        watchdog.start()
        dead = seen = 0
        for line in child.stdout or ():
            seen = max(seen, len(workers()))
            if line.startswith("joining") and dead < killed and (found := workers()):
                os.kill(found[0], signal.SIGKILL)
                dead += 1
        child.wait()
        watchdog.cancel()
    assert child.returncode == 0, (world.folder / f"log-{killed}").read_text()[-3000:]
    assert dead == killed
    tell("T2", spine=f"{SPINE:,} rows", workers=seen, killed=dead)
    assert pl.read_parquet(world.folder / name).equals(expected)
