"""Promises 3 to 5 beside `kill -9`: real processes that publish, erase and reconcile at once, and are killed."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import settings

from feature_assets.settlement import pending, reconcile, verify
from tests.promises.published import CASES, Platform

KILLS = max(10, settings().max_examples // 40)


def started(folder: Path, case: str, seed: int, rounds: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.promises.publisher", str(folder), case, str(seed), str(rounds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def begin(children: list[subprocess.Popen[str]]) -> None:
    """Let them begin together."""
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.close()


def acknowledged(child: subprocess.Popen[str], killed_after: float | None = None) -> set[int]:
    """The publications that it was told of; a line that was cut off was not said. It is killed so long after the first."""
    assert child.stdout is not None
    lines = []
    if killed_after is not None:
        lines.append(child.stdout.readline())
        threading.Timer(killed_after, os.kill, (child.pid, signal.SIGKILL)).start()
    lines += child.stdout.readlines()
    child.wait()
    child.stdout.close()
    return {int(line) for line in lines if line.endswith("\n") and line != "conflict\n"}


def landed(here: Platform) -> list[int]:
    return [int(one.metadata["publication"]) for one in here.offline.commits(here.view) if one.kind == "replace"]


@pytest.mark.parametrize("case", ["days", "regions"])
def test_writers_at_once_leave_online_as_offline_says(tmp_path: Path, case: str) -> None:
    here = Platform(CASES[case], tmp_path)
    children = [started(tmp_path, case, seed, rounds=8) for seed in range(3)]
    begin(children)
    told = [acknowledged(child) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert sorted(set().union(*told)) == sorted(landed(here)), "each once, whoever was told"
    assert verify(here.view, here.offline, here.online).total == 0
    assert pending(here.view, here.offline, here.online) == ()
    here.online.close()


def test_killed_processes_lose_nothing_and_one_reconcile_closes_the_gap(tmp_path: Path) -> None:
    chance, case = random.Random(7), "regions"
    here = Platform(CASES[case], tmp_path)
    told: set[int] = set()
    for kill in range(KILLS):
        children = [started(tmp_path, case, 100 * kill + number, rounds=10_000) for number in range(1 + kill % 2)]
        begin(children)
        if kill % 5 == 0:  # While it makes the tables, or is at its first publication.
            threading.Timer(chance.uniform(0.02, 0.4), os.kill, (children[0].pid, signal.SIGKILL)).start()
            told |= acknowledged(children.pop(0))
        for child in children:
            told |= acknowledged(child, killed_after=chance.uniform(0.0, 0.15))
        if here.offline.state(here.view) is None:
            continue
        reconcile(here.view, here.offline, here.online)
        assert verify(here.view, here.offline, here.online).total == 0
        assert pending(here.view, here.offline, here.online) == ()
        numbers = landed(here)
        assert len(set(numbers)) == len(numbers), "each in the log once"
        assert told <= set(numbers), "what was acknowledged is there"
        assert here.offline.check(here.view) == []
        versions = [one.version for one in here.offline.commits(here.view)]
        assert versions == list(reversed(range(len(versions))))
        with sqlite3.connect(tmp_path / "online.db") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
    assert len(told) >= KILLS
    here.online.close()
