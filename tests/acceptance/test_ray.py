"""T2: a Ray cluster of several raylets joins the parts of a spine and writes the result; workers are killed meanwhile."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from feature_assets.spec import Field
from feature_assets.training import training_set
from feature_assets.types import Float64, Int64
from tests.acceptance.running import tell
from tests.historical.engines import ADDRESS_VARIABLE, ENGINE_VARIABLE
from tests.historical.world import CLOCK, World, view

pytest.importorskip("daft")
pytest.importorskip("ray")

ROOT = Path(__file__).parents[2]
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
from feature_assets.training import TrainingSets, training_set

folder, address, form, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
training_set.PIECE_BYTES = 0  # stretches as short as can be: 23 of them
asked = historical_features(
    Registry.of([STATS]), OfflineStore(str(folder / "offline")), folder / "spine.parquet", ["stats:*"],
    memory_limit="100MB", engine="daft-ray", address=address, scratch=str(folder), sets=TrainingSets(folder / "training"),
    progress=lambda made: print(made.stage, made.done, flush=True),
)
writes = {
    "file": lambda: asked.write_parquet(folder / name),
    "folder": lambda: asked.write_parquet(f"{folder / name}/"),
    "table": lambda: asked.write_delta(folder / name),
    "set": lambda: asked.save(name),
}
writes[form]()
"""


FED = """
import sys
from pathlib import Path
import polars as pl
import ray
from feature_assets.training import TrainingSets, saved
from tests.acceptance.test_ray import STATS
from feature_assets.historical import historical_features
from feature_assets.offline import OfflineStore
from feature_assets.registry import Registry

folder, address, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
ray.init(address, log_to_driver=False)
ray.data.DataContext.get_current().execution_options.preserve_order = True
if name == "joined":
    fed = historical_features(
        Registry.of([STATS]), OfflineStore(str(folder / "offline")), folder / "spine.parquet", ["stats:*"], memory_limit="100MB"
    )
else:
    fed = TrainingSets(folder / "training").load(name)
whole, read = TrainingSets.read, []
TrainingSets.read = lambda *given: read.append(given) or whole(*given)
dataset = fed.to_ray_dataset()
assert dataset.count() == fed.manifest.result.rows
fed_rows = [pl.from_arrow(each) for each in dataset.iter_batches(batch_size=None, batch_format="pyarrow")]
pl.concat(fed_rows).write_parquet(folder / f"fed-{name}")
print(len(fed.portions), len(read), flush=True)
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


def written(world: World, form: str, name: str) -> pl.DataFrame:
    """What is there: every file counts, so that a row that is written twice shows."""
    if form == "set":
        return world.sets.load(name).collect()
    paths = sorted((world.folder / name).glob("*.parquet")) if form != "file" else [world.folder / name]
    return pl.read_parquet(paths, glob=False)


# Of workers killed one dies while parts are joined, the other while stretches are written.
@pytest.mark.parametrize(
    "form, killed", [("folder", []), *((form, ["joining", "writing"]) for form in ("folder", "table", "set"))]
)
def test_a_cluster_gives_the_rows_of_one_process_whoever_dies(world, cluster, form, killed):
    asked = world.ask(pl.scan_parquet(world.folder / "spine.parquet"), ["stats:*"])
    name = f"answer-{form}-{len(killed)}"
    command = [sys.executable, "-c", CHILD, str(world.folder), cluster.address, form, name]
    dead: list[str] = []
    seen = 0
    begun = time.monotonic()
    with (
        (world.folder / f"log-{name}").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT) as child,
    ):
        watchdog = threading.Timer(280, child.kill)
        watchdog.start()
        for line in child.stdout or ():
            seen = max(seen, len(workers()))
            stage = line.split()[0]
            if stage in killed and stage not in dead and (found := workers()):
                os.kill(found[0], signal.SIGKILL)
                dead.append(stage)
        child.wait()
        watchdog.cancel()
    assert child.returncode == 0, (world.folder / f"log-{name}").read_text()[-3000:]
    assert dead == killed
    tell("T2", form=form, workers=seen, killed=len(dead), seconds=round(time.monotonic() - begun))
    expected = asked.collect()
    assert written(world, form, name).equals(expected)
    if form == "table":
        assert pl.read_delta(str(world.folder / name)).height == SPINE
    if form == "set":
        assert world.sets.manifest(name).result == asked.manifest.result
    assert not list(world.folder.rglob(".*.parquet*")), "somebody's drafts were left behind"


@pytest.mark.parametrize("name", ["kept", "joined"])
def test_ray_data_has_the_rows_and_its_workers_read_a_saved_set(world, cluster, monkeypatch, name):
    monkeypatch.setattr(training_set, "PIECE_BYTES", 0)
    asked = world.ask(pl.scan_parquet(world.folder / "spine.parquet"), ["stats:*"])
    if name == "kept":
        asked.save(name)
    command = [sys.executable, "-c", FED, str(world.folder), cluster.address, name]
    begun = time.monotonic()
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert run.returncode == 0, run.stderr[-3000:]
    files, read = (int(number) for number in run.stdout.split()[-2:])
    tell("T2", of=f"ray data, {name}", files=files, seconds=round(time.monotonic() - begun))
    assert_frame_equal(pl.read_parquet(world.folder / f"fed-{name}"), asked.collect(), check_exact=True)
    if name == "kept":
        assert files > 20
        assert read == 2, "who asks looks at one portion, to tell Ray how large it is"


@pytest.mark.parametrize(
    "tests",
    ["tests/promises/test_point_in_time.py::test_the_same_rows_come_out_of_many_processes", "tests/objects/test_s3.py"],
)
def test_the_promises_hold_on_the_cluster(cluster, tests):
    """The property test of point-in-time joins, and the join of what lies in S3, as they are run with Daft alone."""
    environment = {**os.environ, ENGINE_VARIABLE: "daft-ray", ADDRESS_VARIABLE: cluster.address}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", tests]
    begun = time.monotonic()
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert run.returncode == 0, run.stdout[-3000:]
    assert "skipped" not in run.stdout
    tell(
        "T2",
        of=tests.partition("::")[2] or tests,
        told=run.stdout.strip().splitlines()[-1],
        seconds=round(time.monotonic() - begun),
    )
