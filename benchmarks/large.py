"""A join that does not fit: by default a history of 100M rows and a spine of 10M in no order, in a process with 4 GB.

python -m benchmarks.large [--rows 100_000_000] [--spine 10_000_000] [--entities 1_000_000] [--memory 4.0] [--limit 3.2GB]

The answer is compared cell by cell with as-of joins of one share of the keys after the other. The process is put into a
control group with so many GB where that may be made (as root on Linux); its peak is read in any case. Takes 15 GB of disk,
and is none of the scripts that `make benchmark` runs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from feature_assets import Entity, Field, Float64, Int64
from feature_assets.historical import Progress, historical_features
from feature_assets.offline import OfflineStore
from feature_assets.registry import Registry
from feature_assets.spec import PARTITION, ViewSpec

PARTS, SHARES = 20, 16
FEATURES = tuple(f"feature_{number}" for number in range(4))
TTL = timedelta(days=30)
START = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
SPAN = int(timedelta(days=90).total_seconds()) * 1_000_000
CLOCK = pl.Datetime("us", "UTC")
VIEW = ViewSpec(
    name="driver",
    entities=(Entity("driver", {"driver_id": Int64}),),
    features=tuple(Field(name, Float64) for name in FEATURES),
    event_timestamp="at",
    ttl=TTL,
)


def prepare(folder: Path, rows: int, spine: int, entities: int) -> None:
    """Publishes the history part by part, and writes the spine piece by piece."""
    chance = np.random.default_rng(1)
    offline = OfflineStore(str(folder / "offline"), durability="process")
    for part in range(PARTS):
        low, high = SPAN * part // PARTS, SPAN * (part + 1) // PARTS
        count = rows // PARTS
        frame = pl.DataFrame(
            {
                "driver_id": chance.integers(0, entities, count),
                "at": chance.integers(START + low, START + high, count),
                **{name: chance.random(count) for name in FEATURES},
            }
        ).unique(["driver_id", "at"], maintain_order=True)
        frame = frame.with_columns(pl.col("at").cast(CLOCK), pl.lit(f"part{part:02d}").alias(PARTITION))
        offline.replace(VIEW, frame.select(*VIEW.columns, PARTITION), [f"part{part:02d}"], metadata={})
    (folder / "spine").mkdir()
    for part in range(PARTS):
        count = spine // PARTS
        piece = pl.DataFrame(
            {
                "label": np.arange(part * count, (part + 1) * count),
                "driver_id": chance.integers(0, entities, count),
                "event_timestamp": chance.integers(START, START + SPAN, count),
            }
        )
        path = folder / "spine" / f"{part:02d}.parquet"
        piece.with_columns(pl.col("event_timestamp").cast(CLOCK)).write_parquet(path)


def ours(folder: Path, limit: str) -> None:
    begun = time.perf_counter()

    def progress(made: Progress) -> None:
        sys.stderr.write(f"  {time.perf_counter() - begun:6.1f} s  {made.stage} {made.done:,} of {made.rows:,}\n")

    asked = historical_features(
        Registry.of([VIEW]),
        OfflineStore(str(folder / "offline")),
        folder / "spine" / "*.parquet",
        ["driver:*"],
        memory_limit=limit,
        progress=progress,
    )
    asked.write_parquet(folder / "answer.parquet")
    # Linux hands the parent's peak (ru_maxrss) down to a child; this one starts anew with the program.
    status = Path("/proc/self/status").read_text()
    print(time.perf_counter() - begun, 1024 * int(status.split("VmHWM:")[1].split()[0]))


def limited(command: list[str], memory: int) -> tuple[list[str], Path | None]:
    """The command in a control group of so many bytes, and the group; as it is where none can be made."""
    old = Path("/sys/fs/cgroup/memory")
    root, name = (old, "memory.limit_in_bytes") if old.is_dir() else (Path("/sys/fs/cgroup"), "memory.max")
    group = root / f"benchmark-{os.getpid()}"
    try:
        group.mkdir()
        (group / name).write_text(str(memory))
    except OSError:
        return command, None
    return ["sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', str(group), *command], group


def differing(folder: Path) -> int:
    """How many cells are not those of an as-of join by hand, one share of the keys after the other; and all rows in order."""
    answer = pl.scan_parquet(folder / "answer.parquet")
    in_order = answer.select((pl.col("label") != pl.int_range(pl.len())).sum()).collect(engine="streaming").item()
    wrong = int(in_order)
    spine = pl.scan_parquet(folder / "spine" / "*.parquet")
    history = pl.scan_parquet(
        folder / "offline" / "driver" / "v1" / "__partition=*" / "*.parquet", hive_partitioning=False
    )
    for share in range(SHARES):
        own = pl.col("driver_id") % SHARES == share
        left = spine.filter(own).with_columns(at="event_timestamp").sort("at").collect(engine="streaming")
        right = history.filter(own).select("driver_id", "at", *FEATURES).sort("at").collect(engine="streaming")
        expected = left.join_asof(right, on="at", by="driver_id", tolerance=TTL, check_sortedness=False).sort("label")
        found = answer.filter(own).collect(engine="streaming").sort("label")
        if found.height != expected.height:
            return abs(found.height - expected.height) * len(FEATURES)
        wrong += sum(int(found[name].ne_missing(expected[name]).sum()) for name in found.columns)
    return wrong


def run(folder: Path, options: argparse.Namespace) -> None:
    prepare(folder, options.rows, options.spine, options.entities)
    command = [sys.executable, "-m", "benchmarks.large", "--measure", str(folder), "--limit", options.limit]
    command, group = limited(command, int(options.memory * 2**30))
    try:
        seconds, peak = map(float, subprocess.check_output(command, text=True).split())
    finally:
        if group is not None:
            group.rmdir()
    print(f"join, {options.rows:,} rows, spine {options.spine:,}, memory_limit {options.limit}")
    held = (
        f"in a control group of {options.memory:g} GB"
        if group
        else "under no hard limit: no control group could be made"
    )
    print(f"  {seconds:,.0f} s, peak {peak / 2**20:,.0f} MB, {held}")
    print(f"  cells that differ from the oracle's: {differing(folder)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--spine", type=int, default=10_000_000)
    parser.add_argument("--entities", type=int, default=1_000_000)
    parser.add_argument("--memory", type=float, default=4.0, help="GB of the control group")
    parser.add_argument("--limit", default="3.2GB", help="the memory limit that the join is given")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        ours(Path(options.measure), options.limit)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options)


if __name__ == "__main__":
    main()
