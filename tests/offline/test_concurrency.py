"""Many writers at once, in processes of their own, and processes that are killed."""

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from feature_assets.errors import PublicationConflict
from feature_assets.offline import OfflineStore
from feature_assets.offline import commits as commit_protocol
from feature_assets.offline.changes import erasing
from feature_assets.offline.table import needed
from tests.offline.tables import WEATHER, data_files, frame, held, publications, replace

_WRITER = """
import sys, time
from feature_assets.offline import OfflineStore
from tests.offline.tables import WEATHER, frame, replace
root, start, writer, partitions, rounds = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4].split(","), int(sys.argv[5])
store = OfflineStore(root, durability="process")
print("ready", flush=True)
sys.stdin.readline()
for turn in range(rounds):
    commit = replace(store, {name: [(f"w{writer}", turn, None, row) for row in range(writer + 1)] for name in partitions})
    print(commit.version, commit.publication, flush=True)
"""


def _start(root: str, writer: int, partitions: list[str], rounds: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, root, "0", str(writer), ",".join(partitions), str(rounds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def _run(root: str, partitions: list[list[str]], rounds: int) -> list[list[tuple[int, int]]]:
    """Writers that begin together; what each was told: version and publication of every commit."""
    writers = [_start(root, number, names, rounds) for number, names in enumerate(partitions)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    answers: list[list[tuple[int, int]]] = []
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        out, _ = writer.communicate(timeout=120)
        assert writer.returncode == 0
        answers.append([(int(version), int(number)) for version, number in map(str.split, out.splitlines())])
    return answers


def test_writers_of_different_partitions_do_not_notice_one_another(store: OfflineStore) -> None:
    """From the first on: all of them find no table and make it."""
    answers = _run(store.root, [[f"p{writer}", f"q{writer}"] for writer in range(4)], 6)
    flat = [answer for of_writer in answers for answer in of_writer]
    assert len({version for version, _ in flat}) == len({number for _, number in flat}) == 24
    assert store.version(WEATHER) == 24
    assert held(store) == {
        f"{name}{writer}": sorted([(f"w{writer}", 5, None, row) for row in range(writer + 1)], key=repr)
        for writer in range(4)
        for name in "pq"
    }
    assert store.check(WEATHER) == []


def test_writers_of_one_partition_leave_the_rows_of_the_last(store: OfflineStore) -> None:
    """Their sets of partitions overlap and are not equal."""
    answers = _run(store.root, [["p", "q"], ["q", "r"], ["p", "q", "r"]], 5)
    flat = sorted((version, number, writer) for writer, told in enumerate(answers) for version, number in told)
    assert [version for version, _, _ in flat] == list(range(1, 16)), "each was told the version that is its own"
    assert [number for _, number, _ in flat] == sorted(number for _, number, _ in flat), "later means greater"
    by_version = {one.version: one.metadata.get("publication") for one in store.commits(WEATHER)}
    assert all(by_version[version] == str(number) for version, number, _ in flat)
    writers = {"p": {0, 2}, "q": {0, 1, 2}, "r": {1, 2}}
    last = {name: max((number, writer) for _, number, writer in flat if writer in of) for name, of in writers.items()}
    assert publications(store) == {name: {number} for name, (number, _) in last.items()}
    assert {name: {row[0] for row in rows} for name, rows in held(store).items()} == {
        name: {f"w{writer}"} for name, (_, writer) in last.items()
    }


def test_a_killed_writer_leaves_whole_commits_only(store: OfflineStore) -> None:
    chance = random.Random(5)
    told = 0
    for turn in range(8):
        writer = _start(store.root, turn, ["p", "q"], 1000)
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdout.readline()
        killer = threading.Timer(chance.uniform(0.0, 0.25), os.kill, (writer.pid, signal.SIGKILL))
        writer.stdin.write("go\n")
        writer.stdin.flush()
        killer.start()
        lines = [line for line in writer.stdout.readlines() if line.endswith("\n")]
        writer.wait()
        writer.stdin.close()
        writer.stdout.close()
        told += len(lines)
        if store.state(WEATHER) is None:
            continue
        assert store.check(WEATHER) == []
        landed = {one.metadata["publication"] for one in store.commits(WEATHER) if one.kind == "replace"}
        assert {line.split()[1] for line in lines} <= landed
        rows = held(store)
        assert rows.get("p") == rows.get("q"), "both partitions of a commit, or none"
    assert told >= 8


def test_threads_share_a_store(store: OfflineStore) -> None:
    failed: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for turn in range(3):
                replace(store, {f"p{number}": [("k", turn, None, number)], "shared": [("k", turn, None, number)]})
        except BaseException as error:  # noqa: BLE001 (a thread's failure is told after the join)
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(held(store)) == 5


def test_an_erasure_and_a_compaction_give_way_to_a_replacement_and_then_finish(store: OfflineStore) -> None:
    """Each is prepared from a table that then changes; what it had read would bring old rows back."""
    replace(store, {"p": [("a", 0, None, 1), ("b", 0, None, 1)]})
    place = store._place(WEATHER)
    prepare = erasing(place, WEATHER, frame({"": [("a", 0, None, 1)]}).select("origin"))
    stale = needed(place)
    replace(store, {"p": [("a", 0, None, 2), ("b", 0, None, 2)], "new": [("a", 0, None, 3)]})
    landed = commit_protocol.committed(place, prepare, stale, {})
    assert landed is not None
    assert landed.swap.rows == 2
    assert held(store) == {"p": [("b", 0, None, 2)]}


def test_one_who_is_never_first_gives_up_and_leaves_nothing(
    store: OfflineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other writer commits each time between this one's look at the table and its commit."""
    monkeypatch.setattr(commit_protocol, "_ATTEMPTS", 3)
    monkeypatch.setattr(commit_protocol, "_PATIENCE", 0.0)
    replace(store, {"p": [("other", 0, None, 0)]})
    send, busy = commit_protocol._send, []

    def second(*arguments: object) -> None:
        if not busy:
            busy.append(True)
            replace(store, {"p": [("other", 0, None, 0)]})
            busy.clear()
        send(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(commit_protocol, "_send", second)
    with pytest.raises(PublicationConflict, match="were first 3 times in a row; nothing of this one was written"):
        replace(store, {"p": [("me", 0, None, 0)]})
    assert {row[0] for row in held(store)["p"]} == {"other"}
    assert len(data_files(store)) == 4, "one for each commit of the other writer"
