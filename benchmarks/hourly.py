"""A year of hourly partitions of ten views, by several `feature-assets backfill` at once, one of them interrupted half way.

    python -m benchmarks.hourly [--views 10] [--hours 8760] [--keys 100] [--per-run 730] [--processes 4]

Each view is backfilled by a process of its own, so many at a time. The first is stopped as Ctrl-C does in the middle, and
goes on with `--missing-only`. The limit writes the same rows to both stores by hand, in as many commits and processes.
Afterwards every row of every view is compared with a plain computation, offline and online, and what the backfill left is
counted: commits, the log, files, and how often each key was written online. None of those that `make benchmark` runs: Dagster
records each partition, in SQLite, which takes most of the time.
"""

import argparse
import json
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from deltalake import DeltaTable, write_deltalake

from benchmarks.timing import as_installed
from feature_assets.config import Settings
from feature_assets.offline import OfflineStore
from feature_assets.online import open_online_store
from feature_assets.settlement import verify
from feature_assets.spec import Entity, Field, ViewSpec
from feature_assets.types import Float64, Int64

START = datetime(2023, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
FEATURES = tuple(f"f{number}" for number in range(3))

DEFINITIONS = """
import dagster as dg
import polars as pl

from benchmarks.hourly import FEATURES, START, rows
from feature_assets import Entity, Field, Float64, Int64, feature_definitions, feature_view

driver = Entity("driver", join_keys={{"driver_id": Int64}})


def view(number: int):
    @feature_view(
        name=f"view_{{number}}",
        entities=[driver],
        partitions_def=dg.HourlyPartitionsDefinition(START, end_date="{end}"),
        event_timestamp="at",
        schema=[Field(name, Float64) for name in FEATURES],
        backfill_policy={policy},
    )
    def hourly(context: dg.AssetExecutionContext) -> pl.LazyFrame:
        window = context.partition_time_window
        return rows(number, {keys}, window.start, window.end)

    return hourly


defs = feature_definitions([view(number) for number in range({views})])
"""


def rows(view: int, keys: int, start: datetime, end: datetime) -> pl.LazyFrame:
    """What a view has from `start` to `end`: of each hour three keys in four, half past it."""
    first, last = ((one - START) // HOUR for one in (start, end))
    hours = pl.LazyFrame({"hour": pl.int_range(first, last, eager=True)})
    every = hours.join(pl.LazyFrame({"driver_id": pl.int_range(keys, eager=True)}), how="cross")
    of = pl.col("hour") * 7 + pl.col("driver_id") * 13 + view
    return every.filter((pl.col("hour") * 3 + pl.col("driver_id") + view) % 4 != 0).select(
        "driver_id",
        (pl.lit(START) + pl.duration(hours=pl.col("hour"), minutes=30)).cast(pl.Datetime("us", "UTC")).alias("at"),
        *(((of * (number + 2)) % 1_000 / 8).alias(name) for number, name in enumerate(FEATURES)),
    )


def spec(view: int) -> ViewSpec:
    """What the stores are read by."""
    return ViewSpec(
        name=f"view_{view}",
        entities=(Entity("driver", {"driver_id": Int64}),),
        features=tuple(Field(name, Float64) for name in FEATURES),
        event_timestamp="at",
    )


def write_project(folder: Path, options: argparse.Namespace, *, policy: str = "None") -> None:
    """A project whose Dagster keeps its history in its folder."""
    end = START + options.hours * HOUR
    text = DEFINITIONS.format(end=end.strftime("%Y-%m-%d-%H:%M"), keys=options.keys, views=options.views, policy=policy)
    (folder / "definitions.py").write_text(text)
    (folder / "feature_assets.toml").write_text('location = "hourly"\n')
    (folder / ".dagster").mkdir()


class Done(NamedTuple):
    """What one view's backfill printed, run by run, and how long it took."""

    runs: list[dict[str, Any]]
    seconds: float


def backfill(folder: Path, options: argparse.Namespace, view: int, *, interrupt: bool) -> Done:
    """`feature-assets backfill` of a whole view; stopped half way and taken up again if `interrupt`."""
    words = ["backfill", f"view_{view}", START.strftime("%Y-%m-%d-%H:%M"), last_hour(options)]
    words += ["--per-run", str(options.per_run)]
    begun, told = time.perf_counter(), []
    if interrupt:
        told += stopped(folder, words, options.hours // options.per_run // 2)
        words.append("--missing-only")
    with started(folder, [*words, "--json"]) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    return Done(told + json.loads(out), time.perf_counter() - begun)


def stopped(folder: Path, words: Sequence[str], after: int) -> list[dict[str, Any]]:
    """Ctrl-C once so many runs are done, in the midst of the next; the runs that it had done by its own words."""
    with started(folder, [*words, "--json"]) as process:
        for line in process.stderr or ():
            if line.startswith(f"[{after}/"):
                break
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130, err
    print(f"  stopped with: {' '.join(err.split())}", flush=True)
    return list(json.loads(out)) if out else []


@contextmanager
def started(folder: Path, words: Sequence[str]) -> "Iterator[subprocess.Popen[str]]":
    """`feature-assets` in the folder."""
    environment = {**as_installed(), "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONWARNINGS": "ignore"}
    environment |= {"DAGSTER_HOME": str(folder / ".dagster"), "DAGSTER_DISABLE_TELEMETRY": "yes"}
    command = [sys.executable, "-m", "feature_assets.cli", *words]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process


def last_hour(options: argparse.Namespace) -> str:
    return (START + (options.hours - 1) * HOUR).strftime("%Y-%m-%d-%H:%M")


def in_turn(work: Callable[[int], Any], options: argparse.Namespace) -> tuple[list[Any], float]:
    """The work for each view, so many at once, and the seconds of all."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(options.processes) as pool:
        found = list(pool.map(work, range(options.views)))
    return found, time.perf_counter() - begun


def by_hand(folder: Path, hours: int, keys: int, per_run: int, view: int) -> None:
    """The same rows in as many commits: no checks, no guard, no record of what ran."""
    connection = sqlite3.connect(folder / f"online_{view}.db", timeout=60)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"CREATE TABLE latest (driver_id INTEGER PRIMARY KEY, at, {', '.join(FEATURES)})")
    for first in range(0, hours, per_run):
        end = START + min(hours, first + per_run) * HOUR
        frame = rows(view, keys, START + first * HOUR, end).collect()
        parted = frame.with_columns(hour=pl.col("at").dt.strftime("%Y-%m-%d-%H"))
        write_deltalake(str(folder / f"view_{view}"), parted, partition_by=["hour"], mode="append")
        latest = frame.sort("at").unique("driver_id", keep="last").with_columns(pl.col("at").to_physical())
        marks = ", ".join("?" * latest.width)
        connection.executemany(f"INSERT OR REPLACE INTO latest VALUES ({marks})", latest.iter_rows())
        connection.commit()
    connection.close()


def hand_process(folder: Path, options: argparse.Namespace, view: int) -> None:
    code = "import sys; from pathlib import Path; from benchmarks.hourly import by_hand; "
    code += "by_hand(Path(sys.argv[1]), *map(int, sys.argv[2:]))"
    numbers = (options.hours, options.keys, options.per_run, view)
    subprocess.run([sys.executable, "-c", code, str(folder), *map(str, numbers)], check=True)


def differing(folder: Path, options: argparse.Namespace, view: int) -> int:
    """Rows of both stores that a plain computation does not have, or the other way round."""
    settings, of = Settings.load(folder / "feature_assets.toml"), spec(view)
    offline, online = OfflineStore(settings.place(settings.offline)), open_online_store(settings.online_url)
    expected = rows(view, options.keys, START, START + options.hours * HOUR).sort("driver_id", "at").collect()
    found = offline.scan(of).select(expected.columns).sort("driver_id", "at").collect()
    latest = expected.group_by("driver_id").last().sort("driver_id").select(expected.columns)
    served = pl.concat(online.scan(of)).select(expected.columns).sort("driver_id")
    return not_shared(found, expected) + not_shared(served, latest) + verify(of, offline, online).total


def not_shared(one: pl.DataFrame, other: pl.DataFrame) -> int:
    if one.equals(other):
        return 0
    return one.join(other, on=one.columns, how="anti").height + other.join(one, on=one.columns, how="anti").height or 1


def told(folder: Path, options: argparse.Namespace, done: Sequence[Done]) -> None:
    """What the backfill left, of the view that has most of it."""
    settings = Settings.load(folder / "feature_assets.toml")
    offline = OfflineStore(settings.place(settings.offline))
    figures = []
    for view, each in enumerate(done):
        place = Path(offline.uri(spec(view)))
        log = list((place / "_delta_log").iterdir())
        begun = time.perf_counter()
        DeltaTable(str(place)).version()
        opened = time.perf_counter() - begun
        begun = time.perf_counter()
        state = offline.state(spec(view))
        assert state is not None
        figures.append(
            {
                "partitions": len(state.publications),
                "commits": sum(one.kind == "replace" for one in offline.commits(spec(view))),
                "data files": state.files,
                "entries in the log": sum(one.suffix == ".json" for one in log),
                "checkpoints": sum(".checkpoint" in one.name for one in log),
                "log, MB": round(sum(one.stat().st_size for one in log) / 1e6, 2),
                "rows, MB": round(state.bytes / 1e6, 2),
                "open, ms": round(opened * 1e3, 1),
                "open and list partitions, ms": round((time.perf_counter() - begun) * 1e3, 1),
                "online writes per key": round(sum(map(written, each.runs)) / options.keys, 2),
            }
        )
    for name in figures[0]:
        values = sorted(one[name] for one in figures)
        print(f"  {name:28}  {values[0]:>10,}  to {values[-1]:>10,}")


def written(run: dict[str, Any]) -> int:
    found = re.search(r"([\d,]+) written", run["online"])
    return int(found[1].replace(",", "")) if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--hours", type=int, default=8_760)
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--per-run", type=int, default=730)
    parser.add_argument("--processes", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, hand = Path(place) / "project", Path(place) / "by_hand"
        folder.mkdir()
        hand.mkdir()
        write_project(folder, options)
        work = lambda view: backfill(folder, options, view, interrupt=view == 0)  # noqa: E731
        done, ours = in_turn(work, options)
        _, limit = in_turn(partial(hand_process, hand, options), options)
        wrong = [differing(folder, options, view) for view in range(options.views)]
        print(
            f"\n{options.views} views × {options.hours:,} hours, {options.per_run} in a run, {options.processes} at once"
        )
        print(f"  ours {ours:.1f} s, by hand {limit:.1f} s, {ours / limit:.1f} times")
        told(folder, options, done)
        print(f"  rows that differ from a plain computation, in both stores: {sum(wrong)}")
        assert not any(wrong)


if __name__ == "__main__":
    main()
