"""Publishing one partition: conform → Delta → online, against the shortest code that writes the same to both stores.

python -m benchmarks.publish [ROWS]
"""

import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from deltalake import write_deltalake

from benchmarks.timing import compare
from feature_assets import Entity, Field, Float64, Int64
from feature_assets.conform import PartitionSlice
from feature_assets.offline import OfflineStore
from feature_assets.online import open_online_store
from feature_assets.publication import publish
from feature_assets.spec import ViewSpec

FEATURES = [f"f{number}" for number in range(10)]
DAY = datetime(2024, 3, 1, tzinfo=UTC)
VIEW = ViewSpec(
    name="trips",
    entities=(Entity("driver", join_keys={"driver_id": Int64}),),
    features=tuple(Field(name, Float64) for name in FEATURES),
    event_timestamp="at",
)


def rows(count: int, seed: int) -> pl.DataFrame:
    """One row per driver, each at its own time, in no order; other values for each seed."""
    chance = np.random.default_rng(seed)
    drivers = np.random.default_rng(0).permutation(count)
    at = pl.datetime_range(
        DAY, DAY + timedelta(hours=23), f"{23 * 3_600_000_000 // count}us", eager=True, time_zone="UTC"
    )
    columns = {name: chance.random(count) for name in FEATURES}
    return pl.DataFrame({"driver_id": drivers, "at": at.head(count), **columns})


def by_hand(frame: pl.DataFrame, folder: Path) -> None:
    """An overwrite of the Delta partition and one upsert transaction: no checks, no guard, no ledger, no fsync of Delta."""
    stored = frame.with_columns(partition=pl.lit("2024-03-01"))
    place = str(folder / "delta")
    if (folder / "delta").exists():
        write_deltalake(place, stored, mode="overwrite", predicate="partition = '2024-03-01'")
    else:
        write_deltalake(place, stored, partition_by=["partition"])
    names = ["driver_id", "at", *FEATURES]
    connection = sqlite3.connect(folder / "online.db")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"CREATE TABLE IF NOT EXISTS trips (driver_id INTEGER PRIMARY KEY, {', '.join(names[1:])})")
    update = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
    latest = (
        frame.sort("at").unique("driver_id", keep="last").sort("driver_id").with_columns(pl.col("at").to_physical())
    )
    connection.executemany(
        f"INSERT INTO trips VALUES ({', '.join('?' * len(names))}) ON CONFLICT (driver_id) DO UPDATE SET {update}",
        zip(*(latest[name].to_list() for name in names), strict=True),
    )
    connection.commit()
    connection.close()


def ours(frame: pl.DataFrame, folder: Path) -> None:
    offline = OfflineStore(str(folder / "offline"))
    online = open_online_store(f"sqlite:{folder / 'online.db'}")
    publish(VIEW, frame, [PartitionSlice("2024-03-01", DAY, DAY + timedelta(days=1))], offline=offline, online=online)
    online.close()


def served(path: Path, table: str) -> tuple[int, float]:
    """How many rows are online, and the sum of a feature."""
    connection = sqlite3.connect(path)
    count, total = connection.execute(f"SELECT count(*), sum(f0) FROM {table}").fetchone()
    connection.close()
    return count, round(total, 6)


class Publisher:
    """Publishes other values at every turn, since SQLite skips an overwrite with the same content."""

    def __init__(self, home: Path, count: int) -> None:
        self.home, self.count, self.turn = home, count, 0
        self.rows = rows(count, 0)

    def next_turn(self) -> None:
        self.turn += 1
        self.rows = rows(self.count, self.turn)

    def into(self, way: Callable[[pl.DataFrame, Path], None], table: str, *, fresh: bool) -> tuple[int, float]:
        folder = self.home / way.__name__ / (str(self.turn) if fresh else "again")
        folder.mkdir(parents=True, exist_ok=True)
        way(self.rows, folder)
        return served(folder / "online.db", table)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    home = Path(tempfile.mkdtemp(prefix="publish-"))
    publisher = Publisher(home, count)
    try:
        for name, fresh in (("first publication", True), ("the same partition again", False)):
            # The answers are compared before anything is timed, both ways on the same rows.
            same = {way.__name__: publisher.into(way, table, fresh=fresh) for way, table in WAYS}
            assert len(set(same.values())) == 1, f"{name}: {same}"
            compare(
                f"publish {count:,} rows × 10 features, {name}",
                {
                    "feature assets": lambda fresh=fresh: publisher.into(ours, "trips__v1", fresh=fresh)[0],
                    "limit": lambda fresh=fresh: publisher.into(by_hand, "trips", fresh=fresh)[0],
                },
                repeats=3,
                mark=1.5,
                before=publisher.next_turn,
            )
    finally:
        shutil.rmtree(home)


WAYS = ((ours, "trips__v1"), (by_hand, "trips"))

if __name__ == "__main__":
    main()
