"""Online lookup in this process, against `sqlite3` written by hand.

    python -m benchmarks.lookup

The marks are 2.5 times the limit for 1 row, 1.3 times for 100 rows of one view and of three. By hand means: the same
rows in tables of the same key, one connection with everything prepared, one SELECT per view, and the answer turned into
columns in the order that was asked. Ours goes through `FeatureStore.get_online_features` as a caller would: references
to a plan, keys checked against their type, ttl, statuses and timestamps at hand.
"""

import random
import sqlite3
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.timing import compare
from feature_assets import FeatureStore, Settings
from feature_assets.lookup import OnlineResponse
from feature_assets.registry import Registry, RegistryStore
from feature_assets.spec import PUBLICATION, Entity, Field, ViewSpec
from feature_assets.types import FeatureType, Float64, Int64, String, Timestamp

ENTITIES, VIEWS, FEATURES = 100_000, 3, 10


def names(view: int) -> list[str]:
    return [f"feature_{view}_{number}" for number in range(FEATURES)]


def views(key: FeatureType) -> list[ViewSpec]:
    driver = Entity("driver", {"driver": key})
    return [
        ViewSpec(
            name=f"view_{view}",
            entities=(driver,),
            features=tuple(Field(name, Float64) for name in names(view)),
            event_timestamp="observed_at",
            ttl=timedelta(days=1),
        )
        for view in range(VIEWS)
    ]


def rows(key: FeatureType, view: int) -> pl.DataFrame:
    numbers = pl.Series("driver", range(ENTITIES), dtype=pl.Int64)
    return pl.DataFrame(
        {
            "driver": numbers if key == Int64 else "driver-" + numbers.cast(pl.String),
            "observed_at": pl.repeat(datetime.now(UTC), ENTITIES, dtype=Timestamp.polars, eager=True),
            **{name: numbers.cast(pl.Float64) / (place + 3) + view for place, name in enumerate(names(view))},
            PUBLICATION: pl.repeat(1, ENTITIES, dtype=pl.Int64, eager=True),
        }
    )


def platform(folder: Path, key: FeatureType) -> FeatureStore:
    """A published platform, and the same rows in tables made by hand."""
    store = FeatureStore(Settings(root=folder, registry="registry", online="sqlite:online.db"))
    RegistryStore(folder / "registry").publish(Registry.of(views(key)), location="benchmark", by="benchmark")
    hand = sqlite3.connect(folder / "hand.db")
    hand.execute("PRAGMA journal_mode=WAL")
    for number, view in enumerate(views(key)):
        store.online.prepare(view)
        frame = rows(key, number)
        store.online.write(view, frame, None)
        columns = ", ".join(f"{name} REAL" for name in names(number))
        kind = "INTEGER" if key == Int64 else "TEXT"
        hand.execute(f"CREATE TABLE view_{number} (driver {kind} PRIMARY KEY, observed_at INTEGER, {columns})")
        hand.executemany(
            f"INSERT INTO view_{number} VALUES ({', '.join('?' * (2 + FEATURES))})",
            frame.drop(PUBLICATION).with_columns(pl.col("observed_at").to_physical()).iter_rows(),
        )
    hand.commit()
    hand.close()
    return store


class ByHand:
    """The shortest code that answers such a question."""

    def __init__(self, path: Path, views: int, count: int) -> None:
        self.connection = sqlite3.connect(path)
        # With SQLite's default of 2 MB three tables of 10 MB push one another out.
        self.connection.execute("PRAGMA cache_size=-65536")
        self.nothing = (None,) * (1 + FEATURES)
        self.queries = [
            f"SELECT driver, observed_at, {', '.join(names(view))} FROM view_{view} "
            + ("WHERE driver = ?" if count == 1 else f"WHERE driver IN ({', '.join('?' * count)})")
            for view in range(views)
        ]

    def __call__(self, keys: Sequence[Any]) -> list[Sequence[Any]]:
        columns: list[Sequence[Any]] = []
        for query in self.queries:
            found = {row[0]: row[1:] for row in self.connection.execute(query, keys)}
            columns += zip(*[found.get(key, self.nothing) for key in keys], strict=True)
        return columns


def same(one: Any, other: Any) -> bool:
    return cells(one) == cells(other)


def cells(answer: OnlineResponse | list[Sequence[Any]]) -> list[list[Any]]:
    """Event timestamps in microseconds and features, view by view."""
    if isinstance(answer, list):
        return [list(column) for column in answer]
    columns = []
    for start in range(1, len(answer.names), FEATURES):
        features = answer.names[start : start + FEATURES]
        columns += [answer.event_micros(features[0]), *map(answer.__getitem__, features)]
    return columns


def run(folder: Path, store: FeatureStore, key: FeatureType, count: int, views: int, mark: float) -> None:
    features = [f"view_{view}:{name}" for view in range(views) for name in names(view)]
    hand = ByHand(folder / "hand.db", views, count)
    # One in twenty is not there.
    numbers = random.Random(7).sample(range(ENTITIES * 20 // 19), count)
    keys: list[Any] = numbers if key == Int64 else [f"driver-{number}" for number in numbers]
    ways = {
        "ours": lambda: store.get_online_features(features, {"driver": keys}),
        "limit": lambda: hand(keys),
    }
    title = f"{count} {'rows' if count > 1 else 'row'} × {FEATURES} features × {views} views, {key} key"
    compare(title, ways, 15, mark=mark, calls=2_000 if count == 1 else 100, same=same)


def main() -> None:
    for key in (String, Int64):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            with platform(folder, key) as store:
                run(folder, store, key, 1, 1, 2.5)
                run(folder, store, key, 100, 1, 1.3)
                run(folder, store, key, 100, 3, 1.3)


if __name__ == "__main__":
    main()
