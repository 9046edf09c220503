"""T1: a history and a spine that do not fit in memory are joined within it, with the rows of an oracle.

The process is put under a hard limit by a control group where that may be made; its peak is read in any case. A limit of
addresses (RLIMIT_AS) or of writable ones (RLIMIT_DATA) would be no honest one: the allocator of Polars keeps what it gave
back as addresses, so that both grow to a multiple of what is ever used.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_assets.spec import Field
from feature_assets.types import Float64, Int64
from tests.acceptance.running import MEGABYTE, tell
from tests.historical.world import CLOCK, World, view

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell what peaked")

ROWS, SPINE, DRIVERS, PARTS = 20_000_000, 2_000_000, 100_000, 10
LIMIT = 1_000 * MEGABYTE
BUDGET = "700MB"
START = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
SPAN = int(timedelta(days=90).total_seconds()) * 1_000_000
TTL = timedelta(days=30)
FEATURES = ("a", "b", "c", "d")
STATS = view("stats", {"driver": Int64}, [Field(name, Float64) for name in FEATURES], ttl=TTL)
# One history for all: no share of its keys is smaller than the whole.
CITY = view("city", {}, [Field("rain", Float64)])

CHILD = """
import json, sys
from pathlib import Path
from tests.acceptance.test_little_memory import STATS, CITY
from feature_assets.historical import historical_features
from feature_assets.offline import OfflineStore
from feature_assets.registry import Registry

folder, limit, form = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
asked = historical_features(
    Registry.of([STATS, CITY]), OfflineStore(str(folder / "offline")), folder / "spine.parquet",
    ["stats:*", "city:rain"], memory_limit=limit,
)
getattr(asked, f"write_{form}")(folder / f"answer.{form}")
print(json.dumps(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    chance = np.random.default_rng(1)
    here = World(tmp_path_factory.mktemp("world"), STATS, CITY)
    for part in range(PARTS):
        low, high = SPAN * part // PARTS, SPAN * (part + 1) // PARTS
        for each, count in ((STATS, ROWS // PARTS), (CITY, ROWS // PARTS // 4)):
            columns = {"driver": chance.integers(0, DRIVERS, count)} if each is STATS else {}
            columns |= {"at": chance.integers(START + low, START + high, count)}
            columns |= {field.name: chance.random(count) for field in each.features}
            frame = pl.DataFrame(columns).unique([*each.join_keys, "at"], maintain_order=True)
            here.publish(each, frame.with_columns(pl.col("at").cast(CLOCK)), partition=f"part{part}")
    spine = pl.DataFrame(
        {
            "label": np.arange(SPINE),
            "driver": chance.integers(0, DRIVERS, SPINE),
            "event_timestamp": chance.integers(START, START + SPAN, SPINE),
        }
    )
    spine.with_columns(pl.col("event_timestamp").cast(CLOCK)).write_parquet(here.folder / "spine.parquet")
    return here


@contextmanager
def control_group(limit: int) -> Iterator[Path | None]:
    """A group whose processes have so much memory together, caches of files included; None where none can be made."""
    old, new = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root, name = (old, "memory.limit_in_bytes") if old.is_dir() else (new, "memory.max")
    group = root / f"feature-assets-{os.getpid()}"
    try:
        group.mkdir()
        (group / name).write_text(str(limit))
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


@pytest.fixture(scope="module")
def by_shards(world) -> pl.DataFrame:
    """The answer by a plain as-of join of one seventh of the drivers after the other."""
    spine = pl.scan_parquet(world.folder / "spine.parquet").with_columns(at=pl.col("event_timestamp"))
    shards = []
    for shard in range(7):
        own = pl.col("driver") % 7 == shard
        history = world.offline.scan(STATS).select("driver", "at", *FEATURES).filter(own).sort("at").collect()
        asked = spine.filter(own).sort("at").collect()
        shards.append(asked.join_asof(history, on="at", by="driver", tolerance=TTL, check_sortedness=False))
    city = world.offline.scan(CITY).select("at", "rain").sort("at").collect()
    return pl.concat(shards).sort("at").join_asof(city, on="at").sort("label").drop("at")


@pytest.mark.parametrize("form", ["parquet", "delta"])
def test_a_history_and_a_spine_larger_than_memory_are_joined(world, by_shards, form):
    with control_group(LIMIT) as group:
        command = [sys.executable, "-c", CHILD, str(world.folder), BUDGET, form]
        if group is not None:
            command = ["sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', str(group), *command]
        child = subprocess.run(command, text=True, capture_output=True, cwd=Path(__file__).parents[2], check=False)
        assert child.returncode == 0, child.stderr[-2000:]
    peak = int(json.loads(child.stdout)) * 1024
    stored = sum(world.offline.state(each).rows for each in (STATS, CITY))
    tell(
        f"T1 {form}",
        history=f"{stored:,} rows",
        spine=f"{SPINE:,} rows",
        peak=f"{peak / MEGABYTE:.0f} MB",
        limit="control group" if group is not None else "none could be set",
    )
    assert peak < LIMIT
    written = world.folder / f"answer.{form}"
    answer = pl.read_parquet(written) if form == "parquet" else pl.read_delta(str(written)).sort("label")
    assert answer.equals(by_shards)
