"""Filling the online store: guarded, with ledger and durable, against an `executemany` upsert written by hand.

    python -m benchmarks.fill [entities …]

The mark is 1.5 times the limit. By hand means: the same frame, the same columns in a table of the same key, WAL and
`synchronous=FULL`, one transaction, one checkpoint, and neither guard, ledger nor lock.
"""

import sqlite3
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import polars as pl

from benchmarks.timing import compare
from feature_assets.online.protocol import AppliedPublication
from feature_assets.online.sqlite import SqliteOnlineStore
from feature_assets.spec import PUBLICATION, Entity, Field, ViewSpec
from feature_assets.types import Float64, Int64, String, Timestamp

FEATURES = [f"feature_{number}" for number in range(10)]


def driver_view(key: str) -> ViewSpec:
    return ViewSpec(
        name=f"driver_{key}",
        entities=(Entity("driver", {"driver": Int64 if key == "integer" else String}),),
        features=tuple(Field(name, Float64) for name in FEATURES),
        event_timestamp="observed_at",
    )


def driver_rows(key: str, entities: int, *, shuffled: bool) -> pl.DataFrame:
    numbers = pl.int_range(entities, eager=True).alias("driver")
    if shuffled:
        numbers = numbers.shuffle(seed=7)
    keys = numbers if key == "integer" else "driver-" + numbers.cast(pl.String).str.zfill(9)
    return pl.DataFrame(
        {
            "driver": keys,
            "observed_at": pl.repeat(datetime(2026, 1, 1, tzinfo=UTC), entities, dtype=Timestamp.polars, eager=True),
            **{name: numbers.hash(seed).cast(pl.Float64) / 2**64 for seed, name in enumerate(FEATURES)},
        }
    )


def later(rows: pl.DataFrame, step: int) -> pl.DataFrame:
    """The rows of another hour with other values: SQLite would skip an overwrite with identical content."""
    return rows.with_columns(
        pl.col("observed_at") + timedelta(hours=step),
        pl.col(FEATURES) + step,
        pl.lit(step, pl.Int64).alias(PUBLICATION),
    )


class ByHand:
    """The shortest code that puts a frame into a table."""

    def __init__(self, path: Path, key: str) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=FULL")
        columns = ["driver", "observed_at", *FEATURES, PUBLICATION]
        types = f"driver {'INTEGER' if key == 'integer' else 'TEXT'} PRIMARY KEY, observed_at INTEGER"
        self.connection.execute(
            f"CREATE TABLE t ({types}, {', '.join(f'{name} REAL' for name in FEATURES)}, {PUBLICATION} INTEGER)"
        )
        self.upsert = (
            f"INSERT INTO t VALUES ({', '.join('?' * len(columns))}) ON CONFLICT (driver) DO UPDATE SET "
            + ", ".join(f"{name}=excluded.{name}" for name in columns[1:])
        )

    def fill(self, rows: pl.DataFrame) -> int:
        before = self.connection.total_changes
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(self.upsert, rows.with_columns(pl.col("observed_at").to_physical()).iter_rows())
        self.connection.execute("COMMIT")
        return self.connection.total_changes - before


def run(key: str, entities: int, *, shuffled: bool, repeats: int) -> None:
    rows, view = driver_rows(key, entities, shuffled=shuffled), driver_view(key)
    order = "any order" if shuffled else "key order"
    title = f"{entities:,} entities × {len(FEATURES)} features, {key} key, {order}"
    steps = count(1)

    def first(folder: Path) -> dict[str, Callable[[], int]]:
        names = count()

        def ours() -> int:
            store = SqliteOnlineStore(folder / f"{next(names)}.db")
            store.prepare(view)
            step = next(steps)
            written = store.write(view, later(rows, step), AppliedPublication(step, step, {"day": entities})).written
            store.close()
            return written

        def limit() -> int:
            hand = ByHand(folder / f"{next(names)}.db", key)
            written = hand.fill(later(rows, next(steps)))
            hand.connection.close()
            return written

        return {"ours": ours, "limit": limit}

    def again(folder: Path) -> dict[str, Callable[[], int]]:
        store, hand = SqliteOnlineStore(folder / "ours.db"), ByHand(folder / "hand.db", key)
        store.prepare(view)

        def ours() -> int:
            step = next(steps)
            return store.write(view, later(rows, step), AppliedPublication(step, step, {"day": entities})).written

        return {"ours": ours, "limit": lambda: hand.fill(later(rows, next(steps)))}

    for what, ways in (("first fill", first), ("every row overwritten", again)):
        with tempfile.TemporaryDirectory() as folder:
            compare(f"{what}: {title}", ways(Path(folder)), repeats, mark=1.5)


def main() -> None:
    for entities in [int(number) for number in sys.argv[1:]] or [100_000]:
        for key in ("integer", "text"):
            for shuffled in (False, True):
                run(key, entities, shuffled=shuffled, repeats=5 if entities <= 200_000 else 3)


if __name__ == "__main__":
    main()
