"""The point-in-time join: 3 views × 10 features, against `join_asof` by hand on the same Parquet files.

python -m benchmarks.join [--rows 1_000_000] [--spine 100_000] [--entities 10_000] [--created] [--repeats 5]

Both answers are compared cell by cell. Peak memory is that of a process of its own that does nothing else.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.timing import compare
from feature_assets import Entity, Field, Float64, Int64
from feature_assets.historical import historical_features
from feature_assets.offline import OfflineStore
from feature_assets.registry import Registry
from feature_assets.spec import PARTITION, ViewSpec

START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = 90
PARTS = 9
TTL = timedelta(days=30)
CLOCK = pl.Datetime("us", "UTC")
NAMES = ("driver", "customer", "merchant")
MARK_SECONDS, MARK_MEMORY = 1.15, 1.1


def views(*, created: bool) -> list[ViewSpec]:
    return [
        ViewSpec(
            name=name,
            entities=(Entity(name, {f"{name}_id": Int64}),),
            features=tuple(Field(feature, Float64) for feature in features(name)),
            event_timestamp="at",
            created_timestamp="made" if created else None,
            ttl=TTL,
        )
        for name in NAMES
    ]


def features(name: str) -> list[str]:
    return [f"{name}_{number}" for number in range(10)]


def prepare(folder: Path, rows: int, spine: int, entities: int, *, created: bool) -> None:
    """Publishes the histories, ten days to a partition, in no order within one; writes the spine."""
    chance = np.random.default_rng(1)
    span = int(timedelta(days=DAYS).total_seconds()) * 1_000_000
    offline = OfflineStore(str(folder / "offline"), durability="process")
    for view in views(created=created):
        (key,) = view.join_keys
        for part in range(PARTS):
            count = rows * (part + 1) // PARTS - rows * part // PARTS
            low, high = span * part // PARTS, span * (part + 1) // PARTS
            frame = pl.DataFrame(
                {
                    key: chance.integers(0, entities, count),
                    "at": moments(chance.integers(low, high, count)),
                    **{feature: chance.random(count) for feature in features(view.name)},
                }
            ).unique([key, "at"], maintain_order=True)
            late = pl.duration(microseconds=pl.Series(chance.integers(0, 3_600_000_000, frame.height)))
            frame = frame.with_columns(pl.lit(f"part{part}").alias(PARTITION), made=pl.col("at") + late)
            offline.replace(view, frame.select(*view.columns, PARTITION), [f"part{part}"], metadata={})
    asked = pl.DataFrame({f"{name}_id": chance.integers(0, entities, spine) for name in NAMES})
    times = moments(chance.integers(0, span, spine))
    asked.with_columns(event_timestamp=times, label=pl.lit(1)).write_parquet(folder / "spine.parquet")


def moments(micros: np.ndarray) -> pl.Series:
    return (pl.Series(micros) + int(START.timestamp()) * 1_000_000).cast(CLOCK)


def ours(folder: Path, *, created: bool) -> pl.DataFrame:
    registry = Registry.of(views(created=created))
    offline = OfflineStore(str(folder / "offline"))
    asked = [f"{name}:*" for name in NAMES]
    return historical_features(registry, offline, folder / "spine.parquet", asked).collect()


def by_hand(folder: Path, *, created: bool) -> pl.DataFrame:
    rows = pl.scan_parquet(folder / "spine.parquet").with_row_index("row").sort("event_timestamp")
    for name in NAMES:
        key = f"{name}_id"
        history = pl.scan_parquet(folder / "offline" / name / "v1" / "*" / "*.parquet", hive_partitioning=False)
        if created:
            rows = joined_as_known(rows, history.select(key, "at", "made", *features(name)), key, features(name))
            continue
        history = history.select(key, pl.col("at").alias("event_timestamp"), *features(name)).sort("event_timestamp")
        rows = rows.join_asof(history, on="event_timestamp", by=key, tolerance=TTL, check_sortedness=False)
    return rows.sort("row").drop("row").collect(engine="streaming")


def joined_as_known(rows: pl.LazyFrame, history: pl.LazyFrame, key: str, names: list[str]) -> pl.LazyFrame:
    """Each row's latest event among those known by then: the ones that rank highest when they become known."""
    known = history.sort("at", "made").with_row_index("rank").with_columns(known=pl.max_horizontal("at", "made"))
    best = known.sort("known", maintain_order=True).filter(pl.col("rank") == pl.col("rank").cum_max().over(key))
    joined = rows.join_asof(best, left_on="event_timestamp", right_on="known", by=key, check_sortedness=False)
    fresh = pl.col("at") >= pl.col("event_timestamp") - TTL
    return joined.with_columns(pl.when(fresh).then(pl.col(names))).drop("at", "made", "rank", "known", strict=False)


WAYS: dict[str, Callable[..., pl.DataFrame]] = {"ours": ours, "limit": by_hand}


def in_a_process_of_its_own(way: str, folder: Path, *, created: bool) -> tuple[float, int]:
    """Seconds, and peak memory in bytes."""
    command = [sys.executable, "-m", "benchmarks.join", "--measure", way, str(folder)] + ["--created"] * created
    seconds, peak = subprocess.check_output(command, text=True).split()
    return float(seconds), int(peak)


def measure(way: str, folder: Path, *, created: bool) -> None:
    start = time.perf_counter()
    WAYS[way](folder, created=created)
    seconds = time.perf_counter() - start
    # Linux hands the parent's peak (ru_maxrss) down to a child; this one starts anew with the program.
    status = Path("/proc/self/status").read_text()
    print(seconds, 1024 * int(status.split("VmHWM:")[1].split()[0]))


def run(folder: Path, options: argparse.Namespace) -> None:
    created = options.created
    prepare(folder, options.rows, options.spine, options.entities, created=created)
    title = f"join, 3 views × 10 features × {options.rows:,} rows, spine {options.spine:,}"
    ways = {label: lambda way=way: way(folder, created=created) for label, way in WAYS.items()}
    compare(title, ways, options.repeats, mark=MARK_SECONDS)
    peaks = {way: min(in_a_process_of_its_own(way, folder, created=created)[1] for _ in range(3)) for way in WAYS}
    ratio = peaks["ours"] / peaks["limit"]
    verdict = "within" if ratio <= MARK_MEMORY else "OVER"
    print(f"\npeak memory  [{verdict} the mark: {ratio:.2f} of {MARK_MEMORY:g}]")
    for way, peak in peaks.items():
        print(f"  {way:5}  {peak / 2**20:>7,.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="history rows of each view")
    parser.add_argument("--spine", type=int, default=100_000)
    parser.add_argument("--entities", type=int, default=10_000)
    parser.add_argument("--created", action="store_true", help="views with a created timestamp")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]), created=options.created)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options)


if __name__ == "__main__":
    main()
