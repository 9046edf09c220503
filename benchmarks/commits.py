"""Commits to one Delta table by many processes at once, each to partitions of its own, and how long one takes as the log grows.

    python -m benchmarks.commits [--processes 8] [--commits 50] [--versions 1000 10000] [--partitions 8760]

First all processes publish one partition after the other, and every commit is looked for in the log. Then the log is made
so many versions long, and one writer's commits are timed there; last, with a table of a year of hours. A commit loads the
table, writes a file of one row, and enters it; what it forces to disk is not part of this (`durability="process"`).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import polars as pl

from feature_assets.offline import OfflineStore
from feature_assets.spec import PARTITION, Entity, Field, ViewSpec
from feature_assets.types import Float64, Int64

VIEW = ViewSpec(
    name="trips",
    entities=(Entity("driver", {"driver_id": Int64}),),
    features=(Field("km", Float64),),
    event_timestamp="at",
)
START = datetime(2023, 1, 1, tzinfo=UTC)


def rows(partitions: Sequence[str]) -> pl.DataFrame:
    columns = {"driver_id": range(len(partitions)), "at": [START] * len(partitions), "km": [1.0] * len(partitions)}
    return pl.DataFrame(
        {**columns, PARTITION: list(partitions)},
        schema={
            "driver_id": pl.Int64(),
            "at": pl.Datetime("us", "UTC"),
            "km": pl.Float64(),
            PARTITION: pl.String(),
        },
    )


def commit(store: OfflineStore, partition: str) -> tuple[int, float]:
    """The version that it became, and the seconds it took."""
    begun = time.perf_counter()
    made = store.replace(VIEW, rows([partition]), [partition], metadata={})
    return made.version, time.perf_counter() - begun


def write(root: str, writer: int, count: int) -> None:
    store = OfflineStore(root, durability="process")
    sys.stdin.readline()
    for number in range(count):
        version, seconds = commit(store, f"w{writer}-{number % 10}")
        print(version, seconds, flush=True)


def at_once(root: str, processes: int, count: int) -> list[tuple[int, float]]:
    """What all writers were told, once all of them are ready."""
    command = [sys.executable, "-m", "benchmarks.commits", "--write", root]
    writers = [
        subprocess.Popen([*command, str(number), str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(processes)
    ]
    with ThreadPoolExecutor(processes) as pool:
        told = list(pool.map(lambda writer: writer.communicate("go\n")[0], writers))
    assert all(writer.returncode == 0 for writer in writers)
    lines = [line.split() for out in told for line in out.splitlines()]
    return [(int(version), float(seconds)) for version, seconds in lines]


def show(what: str, taken: Sequence[float]) -> None:
    ordered = sorted(taken)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    print(f"  {what:56}  median {median(ordered) * 1e3:7.1f} ms   p99 {p99 * 1e3:7.1f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--commits", type=int, default=50)
    parser.add_argument("--versions", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--partitions", type=int, default=8_760)
    parser.add_argument("--write", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(options.write[0], int(options.write[1]), int(options.write[2]))
        return
    with tempfile.TemporaryDirectory() as place:
        store = OfflineStore(f"{place}/grown", durability="process")
        begun = time.perf_counter()
        told = at_once(store.root, options.processes, options.commits)
        seconds, expected = time.perf_counter() - begun, options.processes * options.commits
        versions = {version for version, _ in told}
        assert versions == set(range(1, expected + 1)), "each commit has a version of its own, and none is missing"
        assert store.check(VIEW) == []
        print(
            f"{options.processes} processes × {options.commits} commits: {expected / seconds:.1f} a second, none lost"
        )
        show("one commit among them", [seconds for _, seconds in told])
        for length in options.versions:
            while (version := store.version(VIEW)) < length:
                at_once(store.root, 2, max(1, min(500, (length - version) // 2)))
            taken = [commit(store, f"w0-{number % 10}")[1] for number in range(30)]
            show(f"one writer, log of {length:,} versions", taken)
        hours = [(START + timedelta(hours=hour)).strftime("%Y-%m-%d-%H") for hour in range(options.partitions)]
        year = OfflineStore(f"{place}/year", durability="process")
        year.replace(VIEW, rows(hours), hours, metadata={})
        show(f"one writer, table of {options.partitions:,} partitions", [commit(year, one)[1] for one in hours[:60]])
        log = Path(year.uri(VIEW)) / "_delta_log"
        print(f"  its log: {sum(one.stat().st_size for one in log.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
