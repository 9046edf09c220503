"""A partition that is larger than memory is materialised through Dagster, in a process that the kernel gives less.

The limit is a control group's, as a container has it: it counts the pages that the processes touch, and the files that they
write until these are on disk. Limits of a process would say something else. RLIMIT_AS and RLIMIT_DATA count addresses, of
which Polars' allocator keeps what it has given back: two gigabytes of them where 700 MB were ever in use. A limit of the
resident set Linux does not enforce.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import polars as pl
import pytest

from feature_assets.offline import OfflineStore
from feature_assets.online import open_online_store
from tests.acceptance.running import MEGABYTE, tell
from tests.acceptance.small_memory import FEATURES, KEYS, ROW_BYTES, ROWS, SOURCE, START, TURNS, rows, values, view

LIMIT = 900 * MEGABYTE
GROUPS = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """A group of processes that together get so many bytes, and no swap; skips where none can be made."""
    first = (GROUPS / "memory").is_dir()
    folder = (GROUPS / "memory" if first else GROUPS) / f"feature-assets-{uuid4().hex[:12]}"
    limits = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"] if first else ["memory.max", "memory.swap.max"]
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            (folder / limits[0]).write_text(str(limit))
            if (folder / limits[1]).exists():
                (folder / limits[1]).write_text(str(limit) if first else "0")
        except OSError as error:
            pytest.skip(f"control groups limit no memory here: {error}")
        yield folder
    finally:
        folder.rmdir()


def run(group: Path, folder: Path, what: str) -> "subprocess.CompletedProcess[str]":
    def join() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    return subprocess.run(
        [sys.executable, "-m", "tests.acceptance.small_memory", str(folder), what],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=join,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the source of the partition."""
    made = tmp_path_factory.mktemp("large")
    (made / "feature_assets.toml").write_text("")
    numbers = pl.LazyFrame({"n": pl.int_range(0, ROWS, dtype=pl.Int64, eager=True)})
    rows(numbers).sink_parquet(made / SOURCE)
    return made


def test_so_little_memory_cannot_hold_it(folder: Path) -> None:
    """Without this the other test would hold for any limit."""
    with control_group(LIMIT) as group:
        done = run(group, folder, "hold")
    assert done.returncode == -9, f"the kernel did not stop it: {done.stdout}{done.stderr}"


@pytest.mark.timeout(900)
def test_it_is_materialised_and_both_stores_have_what_went_in(folder: Path) -> None:
    began = time.monotonic()
    with control_group(LIMIT) as group:
        done = run(group, folder, "materialise")
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr[-2_000:]
    spec = view(folder).spec
    offline = OfflineStore(str(folder / ".feature_assets" / "offline"))
    stored = offline.scan(spec)
    assert compared(stored) == (ROWS, ROWS, 0)
    online = open_online_store(f"sqlite:{folder / '.feature_assets' / 'online.db'}")
    latest = pl.concat(online.scan(spec))
    online.close()
    assert latest["at"].unique().to_list() == [START + timedelta(seconds=TURNS - 1)]
    assert compared(latest.lazy()) == (KEYS, KEYS, 0)
    tell(
        "larger than memory",
        partition=f"{ROWS * ROW_BYTES / MEGABYTE:,.0f} MB",
        limit=f"{LIMIT / MEGABYTE:,.0f} MB",
        the_process_had=f"{int(done.stdout) / MEGABYTE:,.0f} MB",
        seconds=f"{seconds:.0f}",
    )


def compared(stored: pl.LazyFrame) -> tuple[int, ...]:
    """How many rows there are, of how many that went in, and how many of them hold something else than went in."""
    number = (pl.col("at") - pl.lit(START)).dt.total_seconds() * KEYS + pl.col("sensor_id")
    one_of_them = number.is_between(0, ROWS - 1) & (pl.col("at") == pl.col("at").dt.truncate("1s"))
    others = [pl.col(name).ne_missing(value) for name, value in zip(FEATURES, values(number), strict=True)]
    wrong = pl.any_horizontal(~one_of_them, *others)
    found = stored.select(count=pl.len(), distinct=number.n_unique(), different=wrong.sum())
    return found.collect(engine="streaming").row(0)
