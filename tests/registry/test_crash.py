"""Several publishers at once, and publishers that are killed: nothing is lost, and the registry always reads."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from feature_assets.errors import NotPublished
from feature_assets.registry import RegistryStore, check_registry

PUBLISHER = [sys.executable, str(Path(__file__).with_name("publisher.py"))]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def test_four_publishers_of_ten_make_forty(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    running = [
        subprocess.Popen([*PUBLISHER, str(folder), f"location{number}", "10"], env=ENVIRONMENT, stdout=subprocess.PIPE)
        for number in range(4)
    ]
    answers = [process.communicate(timeout=120)[0].decode().splitlines() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0, 0]
    store = RegistryStore(folder)
    published = store.read()
    assert published.sequence == 40
    assert sorted(int(line.split()[1]) for lines in answers for line in lines) == list(range(1, 41))
    assert published.registry.views.keys() == {f"view_location{number}" for number in range(4)}
    assert {view.description for view in published.registry.views.values()} == {"number 9"}
    assert_consistent(store, [line for lines in answers for line in lines])


def test_killed_at_any_moment_the_registry_is_as_before_or_as_after(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    store = RegistryStore(folder)
    with subprocess.Popen(
        [*PUBLISHER, str(folder), "--spawn"], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as spawner:
        assert spawner.stdin is not None
        assert spawner.stdout is not None
        acknowledged: list[str] = []
        for turn in range(15):
            spawner.stdin.write(b"\n")
            spawner.stdin.flush()
            pid = next_pid(spawner.stdout, acknowledged)
            # Some are killed in their first publication, some later, by count and not by the clock of a busy machine.
            for _ in range(turn % 3):
                acknowledged.append(spawner.stdout.readline().decode().strip())
            time.sleep(chance.uniform(0.0, 0.03))
            os.kill(pid, signal.SIGKILL)
            assert_consistent(store, acknowledged, seed)
        spawner.stdin.close()
        acknowledged += [line.decode().strip() for line in spawner.stdout]
    assert_consistent(store, acknowledged, seed)
    assert len(acknowledged) >= 15


def next_pid(lines: IO[bytes], acknowledged: list[str]) -> int:
    """The next child; what former ones told on the way is kept."""
    for line in lines:
        word, value = line.decode().strip().split(maxsplit=1)
        if word == "pid":
            return int(value)
        acknowledged.append(f"{word} {value}")
    raise AssertionError("the publisher ended")


def assert_consistent(store: RegistryStore, acknowledged: list[str], seed: int = 0) -> None:
    """All that was acknowledged is in the history, which has no gap, and each snapshot of it reads."""
    try:
        latest = store.read()
    except NotPublished:
        assert not acknowledged, f"seed {seed}"
        return
    history = store.history(limit=100_000)
    assert history[0] == latest.entry, f"seed {seed}"
    assert [entry.sequence for entry in history] == list(range(latest.sequence, 0, -1)), f"seed {seed}"
    assert [entry.previous for entry in history] == [*(entry.digest for entry in history[1:]), None], f"seed {seed}"
    for entry in history:
        check_registry(store.snapshot(entry.digest))
    told = {f"published {entry.sequence} {entry.digest}" for entry in history}
    assert set(acknowledged) <= told, f"seed {seed}"
