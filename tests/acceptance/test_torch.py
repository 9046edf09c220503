"""A saved set fed to PyTorch as it is: DataLoader, spawned workers, two ranks.

PyTorch is some hundreds of megabytes and no dependency. It is taken from where it is installed, or from `.venv-torch`:
pip install --target .venv-torch torch
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from feature_assets.spec import Field
from feature_assets.types import Bool, Float64, String, Vector
from tests.acceptance.running import tell
from tests.historical.world import HOUR, NOON, World, spine, view

ROOT = Path(__file__).parents[2]
BESIDE = ROOT / ".venv-torch"
COUNT = 10_001
STATS = view(
    "stats", {"driver": String}, [Field("mean", Float64), Field("on", Bool, default=False), Field("way", Vector[2])]
)


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict:
    if importlib.util.find_spec("torch") is None and not (BESIDE / "torch").is_dir():
        pytest.skip("PyTorch is not there: pip install --target .venv-torch torch")
    here = World(tmp_path_factory.mktemp("world"), STATS)
    here.publish(STATS, [{"driver": "a", "at": NOON, "mean": 0.5, "on": True, "way": [1.0, -1.0]}])
    asked = spine([NOON + HOUR] * COUNT, driver=["a"] * COUNT, label=pl.Series(range(COUNT), dtype=pl.Int64))
    here.ask(asked, ["stats:mean", "stats:on", "stats:way"]).save("rows")
    where = "" if importlib.util.find_spec("torch") else str(BESIDE)
    program = [sys.executable, str(Path(__file__).with_name("torch_loading.py")), where, here.sets.place, "rows"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(program, capture_output=True, text=True, check=False, timeout=280, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_each_row_is_once_over_two_ranks_of_two_workers(told):
    for epoch in ("ranks", "again", "next"):
        first, second = told[epoch]
        assert sorted(first + second) == list(range(COUNT))
        # No rank has more than two rows more than another, one for each worker.
        assert abs(len(first) - len(second)) <= 2
    tell("PyTorch", torch=told["torch"], rows=f"{COUNT:,}", ranks=2, workers=2)


def test_the_seed_decides_the_order_and_an_epoch_has_another(told):
    assert told["ranks"] == told["again"]
    assert told["ranks"] != told["next"]
    assert all(rank != sorted(rank) for rank in told["ranks"])


def test_what_comes_are_tensors_of_the_types_of_the_features(told):
    assert told["shapes"] == {
        "label": ["torch.int64", []],
        "mean": ["torch.float64", []],
        "on": ["torch.bool", []],
        "way": ["torch.float32", [2]],
    }
