"""How history lies in its files: rows in no order, by time or by key; row groups and files of several sizes.

python -m benchmarks.layout [--rows 3_000_000] [--spine 200_000] [--entities 50_000] [--repeats 3]

One view of ten features and ninety days in nine partitions is published by the store in each layout, and asked four things:
every row of a spine over all days; one of an hour, which the ttl lets look a day back; the first again within a memory
limit, part by part; the latest rows of ten keys. Answers are the same for each layout, which is checked. Told are the least
seconds of processor time, which other programs disturb less than the clock, and the megabytes of the files. The mark is a
layout to be chosen by; none of the scripts that `make benchmark` runs.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from feature_assets import Entity, Field, Float64, Int64
from feature_assets.historical import historical_features
from feature_assets.offline import OfflineStore, files
from feature_assets.registry import Registry
from feature_assets.spec import PARTITION, ViewSpec

DAYS, PARTS = 90, 9
START = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
SPAN = int(timedelta(days=DAYS).total_seconds()) * 1_000_000
HOUR = 3_600_000_000
FEATURES = [f"feature_{number}" for number in range(10)]
CLOCK = pl.Datetime("us", "UTC")
VIEW = ViewSpec(
    name="driver",
    entities=(Entity("driver", {"driver_id": Int64}),),
    features=tuple(Field(name, Float64) for name in FEATURES),
    event_timestamp="at",
    ttl=timedelta(days=1),
)


class Layout(NamedTuple):
    """The order of a partition's rows, and how many rows a group and megabytes in memory a file has."""

    order: tuple[str, ...]
    group: int
    megabytes: int

    def __str__(self) -> str:
        order = ", ".join(self.order) or "as they come"
        return f"{order:15} groups of {self.group:>7,}  files of {self.megabytes:>5,} MB"


USUAL = files._GROUP_ROWS
LAYOUTS = [
    Layout((), USUAL, 1024),
    Layout(("at",), USUAL, 1024),
    Layout(("driver_id", "at"), USUAL, 1024),
    Layout(("at",), 16_384, 1024),
    Layout(("at",), 1_000_000, 1024),
    Layout(("at",), USUAL, 8),
]


@contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """While the store writes row groups and files of that size."""
    usual = files._GROUP_ROWS, files._FILE_BYTES
    files._GROUP_ROWS, files._FILE_BYTES = layout.group, layout.megabytes << 20
    try:
        yield
    finally:
        files._GROUP_ROWS, files._FILE_BYTES = usual


def publish(offline: OfflineStore, layout: Layout, rows: int, entities: int) -> float:
    """Publish every partition in this layout; the processor seconds that it took, with the sort."""
    chance = np.random.default_rng(1)
    taken = 0.0
    for part in range(PARTS):
        low, high = SPAN * part // PARTS, SPAN * (part + 1) // PARTS
        count = rows // PARTS
        frame = pl.DataFrame(
            {
                "driver_id": chance.integers(0, entities, count),
                "at": chance.integers(START + low, START + high, count),
                **{name: chance.random(count).round(3) for name in FEATURES},
            }
        ).unique(["driver_id", "at"], maintain_order=True)
        frame = frame.with_columns(pl.col("at").cast(CLOCK), pl.lit(f"part{part}").alias(PARTITION))
        frame = frame.select(*VIEW.columns, PARTITION)
        begun = processor()
        ordered = frame.sort(layout.order) if layout.order else frame
        with laid_out(layout):
            offline.replace(VIEW, ordered, [f"part{part}"], metadata={})
        taken += processor() - begun
    return taken


def spine(rows: int, entities: int, low: int, high: int) -> pl.DataFrame:
    chance = np.random.default_rng(2)
    keys, times = chance.integers(0, entities, rows), pl.Series(chance.integers(START + low, START + high, rows))
    return pl.DataFrame({"label": np.arange(rows), "driver_id": keys, "event_timestamp": times.cast(CLOCK)})


def questions(rows: int, entities: int) -> dict[str, Callable[[OfflineStore], pl.DataFrame]]:
    registry = Registry.of([VIEW])
    whole, hour = spine(rows, entities, 0, SPAN), spine(rows // 20, entities, SPAN // 2, SPAN // 2 + HOUR)
    few = pl.DataFrame({"driver_id": np.arange(10)})

    def asked(offline: OfflineStore, frame: pl.DataFrame, limit: str | None = None) -> pl.DataFrame:
        return historical_features(registry, offline, frame, ["driver:*"], memory_limit=limit).collect()

    return {
        "all days": lambda offline: asked(offline, whole),
        "an hour": lambda offline: asked(offline, hour),
        "all, 100 MB": lambda offline: asked(offline, whole, "100MB"),
        "ten keys": lambda offline: (
            offline.latest(VIEW, keys=few).collect(engine="streaming").select(VIEW.columns).sort("driver_id")
        ),
    }


def processor() -> float:
    return sum(os.times()[:2])


def run(folder: Path, options: argparse.Namespace) -> None:
    asked = questions(options.spine, options.entities)
    print(f"history {options.rows:,} rows × {len(FEATURES)} features, {PARTS} partitions; spine {options.spine:,}")
    print(f"  {'':50}  {'publish':>11}" + "".join(f"  {name:>11}" for name in asked) + f"  {'on disk':>8}")
    first: dict[str, pl.DataFrame] = {}
    for number, layout in enumerate(LAYOUTS):
        offline = OfflineStore(str(folder / str(number)), durability="process")
        seconds = [publish(offline, layout, options.rows, options.entities)]
        for name, ask in asked.items():
            taken = []
            for _ in range(options.repeats):
                begun = processor()
                answer = ask(offline)
                taken.append(processor() - begun)
            assert first.setdefault(name, answer).equals(answer), f"{layout}: {name} gives another answer"
            seconds.append(min(taken))
        size = sum(path.stat().st_size for path in (folder / str(number)).rglob("*.parquet")) / 1e6
        print(f"  {layout!s:50}" + "".join(f"  {one:>9.2f} s" for one in seconds) + f"  {size:>5,.0f} MB", flush=True)
    print("  all answers are the same")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--spine", type=int, default=200_000)
    parser.add_argument("--entities", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options)


if __name__ == "__main__":
    main()
