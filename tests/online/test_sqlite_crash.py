"""A writer that is killed at any moment loses nothing that it acknowledged, and leaves nothing half done."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from feature_assets.online.sqlite import SqliteOnlineStore
from feature_assets.types import microseconds, moment
from tests.online.views import COUNTS, KEYS

KILLS = 8

# Says each batch after it is written: what was said is acknowledged. Checkpoints are frequent, to be hit as well.
WRITER = """
import sys
import polars as pl
from feature_assets.online.protocol import AppliedPublication, row_schema
from feature_assets.online.sqlite import SqliteOnlineStore
from tests.online.views import COUNTS, KEYS
store = SqliteOnlineStore(sys.argv[1])
store._file._writer._checkpoint_bytes = 100_000
store.prepare(COUNTS)
for batch in range(int(sys.argv[2]), 1_000_000):
    rows = pl.DataFrame({"driver": range(KEYS)}).select(
        "driver", pl.from_epoch(pl.lit(batch), "us").dt.replace_time_zone("UTC").alias("at"), pl.lit(batch, pl.Int64).alias("batch"),
        pl.lit(str(batch) * 20).alias("text"), pl.lit(batch, pl.Int64).alias("__publication"))
    store.write(COUNTS, rows, AppliedPublication(batch, batch, {"all": batch}))
    print(batch, flush=True)
"""


def killed_after(path: Path, first: int, seconds: float) -> int:
    """The last batch that a writer acknowledged before it was killed, so long after its first."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(first)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        said = writer.stdout.readline()
        time.sleep(seconds)
        writer.kill()
        said += writer.stdout.read()
    complete = [line for line in said.splitlines(keepends=True) if line.endswith("\n")]
    return int(complete[-1])


SEVERAL = """
import sys
from feature_assets.online.sqlite import SqliteOnlineStore
store = SqliteOnlineStore(sys.argv[1])
store._file._writer._checkpoint_bytes = 1
for number in range(100):
    with store._file.writing() as connection:
        connection.execute("UPDATE counts__v1 SET batch = batch + 1, text = text || 'x' WHERE driver < 20")
"""


def test_writers_with_a_checkpoint_after_each_commit_do_no_damage(tmp_path: Path):
    """SQLite before 3.51.3 can corrupt its log when a checkpoint races a writer; here they take turns."""
    path = tmp_path / "online.db"
    store = SqliteOnlineStore(path)
    store.prepare(COUNTS)
    with store._file.writing() as connection:
        rows = [(number, 0, "") for number in range(40)]
        connection.executemany(
            "INSERT INTO counts__v1 (driver, at, batch, text, __publication) VALUES (?, 1, ?, ?, 1)", rows
        )
    writers = [subprocess.Popen([sys.executable, "-c", SEVERAL, str(path)]) for _ in range(2)]
    read = store.reader(COUNTS, ["batch", "text"])
    while any(writer.poll() is None for writer in writers):
        batches, texts = read([(number,) for number in range(20)])[1]
        assert len(set(batches)) == 1
        assert set(texts) == {"x" * batches[0]}
    assert [writer.returncode for writer in writers] == [0, 0]
    assert read([(0,), (39,)])[1][0] == (200, 0)
    assert store.doctor() == []
    store.close()


@pytest.mark.parametrize("seed", [20240301])
def test_what_was_acknowledged_is_there_whole_after_kill_9(tmp_path: Path, seed: int):
    path = tmp_path / "online.db"
    moments = random.Random(seed)
    keys = [(number,) for number in range(KEYS)]
    watching = SqliteOnlineStore(path)
    read = watching.reader(COUNTS, ["batch", "text"])
    batch = 0
    for kill in range(KILLS):
        acknowledged = killed_after(path, batch + 1, moments.uniform(0, 0.08))
        reopened = SqliteOnlineStore(path) if kill % 2 else watching
        events, (batches, texts) = reopened.reader(COUNTS, ["batch", "text"])(keys)
        batch = batches[0]
        assert acknowledged <= batch <= acknowledged + 1
        assert set(events) == {batch}
        assert set(batches) == {batch}
        assert set(texts) == {str(batch) * 20}
        ledger = reopened.ledger(COUNTS)
        assert ledger.watermark == moment(batch)
        assert ledger.entries["all"].publication == batch
        assert reopened.doctor() == []
        if reopened is not watching:
            reopened.close()
        assert read(keys)[0] == [microseconds(moment(batch))] * KEYS
    assert batch > KILLS
    watching.close()
