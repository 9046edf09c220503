"""One join by one process, by Daft on this machine, and by Ray clusters of 1, 2 and 4 workers: same answer, what it costs.

python -m benchmarks.spread [--rows 2_000_000] [--spine 1_000_000] [--entities 50_000] [--limit 200MB] [--workers 1 2 4]

Histories of three views with ten features each; the spine is in no order, so that its parts are apart by time and the
answer has to be brought back into its order. Each way writes a folder of Parquet files in a process of its own, and all
are compared cell by cell. Told are seconds by the clock for each stage, and seconds of processor time for whoever asked and
for the workers: on a machine that has less processors than workers the clock cannot fall below the latter. A worker is a
raylet with one processor. Takes minutes, and is none of the scripts that `make benchmark` runs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.join_cases import NAMES, generated, registry_of
from feature_assets.historical import Progress, historical_features, parts
from feature_assets.joins import run_by
from feature_assets.offline import OfflineStore
from feature_assets.training import training_set

WORKER = b"RaySwordfishActor"
EMPTY_TASKS = 200


@contextmanager
def cluster(workers: int) -> Iterator[str]:
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(workers - 1):
            made.add_node(num_cpus=1)
        yield made.address
    finally:
        made.shutdown()


def processor_seconds_of_workers() -> float:
    """What the processes in which Daft runs tasks on Ray have taken of processors so far."""
    ticks = 0
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and WORKER in (folder / "cmdline").read_bytes():
                ticks += sum(map(int, (folder / "stat").read_text().rpartition(")")[2].split()[11:13]))
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def same(text: str) -> str:
    return text


class Stages:
    """When each stage was at its end."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def end(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0) + now - self._last
        self._last = now

    def watching(self, filed: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            found = filed(*arguments)
            self.end("parting")
            return found

        return watched


def measure(folder: Path, engine: str, address: str | None, limit: str, name: str) -> dict[str, float]:
    """One way, in this process."""
    if run := run_by(engine, address):
        # What is loaded and begun once is not what is measured.
        list(run(same, ["warm"] * 4))
    workers, own = processor_seconds_of_workers(), sum(os.times()[:2])
    stages = Stages()
    parts.Parts.filed = stages.watching(parts.Parts.filed)

    def progress(made: Progress) -> None:
        stages.end(made.stage)

    asked = historical_features(
        registry_of(folder),
        OfflineStore(str(folder / "offline")),
        folder / "spine.parquet",
        [f"{view}:*" for view in NAMES],
        engine=engine,
        address=address,
        memory_limit=limit,
        progress=progress,
    )
    asked.write_parquet(f"{folder / name}/")
    stages.end("writing")
    told = dict(stages.seconds)
    told["total"] = sum(stages.seconds.values())
    told["own"] = sum(os.times()[:2]) - own
    told["workers"] = processor_seconds_of_workers() - workers
    if run:
        begun = time.perf_counter()
        list(run(same, ["x"] * EMPTY_TASKS))
        told["task"] = (time.perf_counter() - begun) / EMPTY_TASKS
    return told


def in_a_process_of_its_own(folder: Path, engine: str, address: str | None, limit: str, name: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.spread", "--measure", str(folder), engine, address or "", limit, name]
    told = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)
    return dict(json.loads(told.splitlines()[-1]))


def show(label: str, told: dict[str, float]) -> None:
    # One process brings the rows into order as it writes them.
    told["writing"] = told.get("writing", 0) + told.get("ordering", 0)
    stages = "  ".join(f"{stage} {told.get(stage, 0):6.1f} s" for stage in ("parting", "joining", "writing"))
    task = f"  an empty task {1000 * told['task']:.1f} ms" if "task" in told else ""
    print(
        f"  {label:18} {stages}  total {told['total']:6.1f} s  processors: asker {told['own']:5.1f} s, "
        f"workers {told['workers']:5.1f} s{task}",
        flush=True,
    )


def run(folder: Path, options: argparse.Namespace) -> None:
    generated(folder, options.rows, options.spine, options.entities, created=False)
    print(
        f"join, 3 views × 10 features × {options.rows:,} rows, spine {options.spine:,} in no order, "
        f"{options.limit} a task, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"
    )
    show("polars", in_a_process_of_its_own(folder, "polars", None, options.limit, "polars"))
    expected = pl.read_parquet(folder / "polars")
    ways = [("daft", 0), *(("daft-ray", workers) for workers in options.workers)]
    for engine, workers in ways:
        name = f"{engine}{workers or ''}"
        if workers:
            with cluster(workers) as address:
                told = in_a_process_of_its_own(folder, engine, address, options.limit, name)
        else:
            told = in_a_process_of_its_own(folder, engine, None, options.limit, name)
        show(f"{engine}, {workers} workers" if workers else engine, told)
        assert pl.read_parquet(folder / name).equals(expected), f"{name} gives another answer"
    print("  all answers are the same, cell by cell and in order")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000, help="history rows of each view")
    parser.add_argument("--spine", type=int, default=1_000_000)
    parser.add_argument("--entities", type=int, default=50_000)
    parser.add_argument("--limit", default="200MB", help="memory limit of a task, which decides how many there are")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument(
        "--measure", nargs=5, metavar=("FOLDER", "ENGINE", "ADDRESS", "LIMIT", "NAME"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.measure:
        # Files of 65,536 rows: as many stretches as a large answer has, of a small one.
        training_set.PIECE_BYTES = 0
        folder, engine, address, limit, name = options.measure
        print(json.dumps(measure(Path(folder), engine, address or None, limit, name)))
        return
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options)


if __name__ == "__main__":
    main()
