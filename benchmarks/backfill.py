"""A backfill of 365 daily partitions in one Dagster run, against a script that writes the same rows to both stores.

python -m benchmarks.backfill [ROWS_PER_DAY]

What Dagster records is kept on disk, as `feature-assets backfill` keeps it, or in memory by Dagster's own ephemeral instance.
"""

import logging
import shutil
import sqlite3
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import dagster as dg
import numpy as np
import polars as pl
from deltalake import write_deltalake

from benchmarks.timing import compare
from feature_assets import Entity, Field, Float64, Int64
from feature_assets.assets import FeatureAssets, feature_view
from feature_assets.cli.runs import HOME, dagster_instance
from feature_assets.config import Settings

START = datetime(2023, 1, 1, tzinfo=UTC)
DAYS = 365
FEATURES = [f"f{number}" for number in range(10)]
RANGE = {
    "dagster/asset_partition_range_start": "2023-01-01",
    "dagster/asset_partition_range_end": "2023-12-31",
}


def rows(per_day: int) -> pl.DataFrame:
    """The rows of a year: each driver once a day, at noon."""
    chance = np.random.default_rng(0)
    count = per_day * DAYS
    day = np.repeat(np.arange(DAYS), per_day)
    columns = {name: chance.random(count) for name in FEATURES}
    at = pl.Series(day * 86_400_000_000).cast(pl.Duration("us")) + START + timedelta(hours=12)
    return pl.DataFrame({"driver_id": np.tile(np.arange(per_day), DAYS), "at": at, **columns})


def by_hand(frame: pl.DataFrame, folder: Path) -> int:
    """One partitioned Delta write, one upsert of the latest rows: no checks, no guard, no record of what ran."""
    write_deltalake(
        str(folder / "delta"), frame.with_columns(day=pl.col("at").dt.strftime("%Y-%m-%d")), partition_by=["day"]
    )
    latest = (
        frame.sort("at").unique("driver_id", keep="last").sort("driver_id").with_columns(pl.col("at").to_physical())
    )
    connection = sqlite3.connect(folder / "online.db")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"CREATE TABLE trips (driver_id INTEGER PRIMARY KEY, at, {', '.join(FEATURES)})")
    connection.executemany(f"INSERT INTO trips VALUES ({', '.join('?' * latest.width)})", latest.iter_rows())
    connection.commit()
    connection.close()
    return latest.height


def ours(frame: pl.DataFrame, folder: Path, instance: dg.DagsterInstance) -> int:
    (folder / "feature_assets.toml").write_text("")

    @feature_view(
        entities=[Entity("driver", join_keys={"driver_id": Int64})],
        schema=[Field(name, Float64) for name in FEATURES],
        event_timestamp="at",
        partitions_def=dg.DailyPartitionsDefinition("2023-01-01", end_date="2024-01-01"),
    )
    def trips() -> pl.DataFrame:
        return frame

    stores = FeatureAssets(config=str(folder / "feature_assets.toml"))
    result = dg.materialize([trips], instance=instance, resources={"feature_assets": stores}, tags=RANGE)
    assert len(instance.get_materialized_partitions(trips.key)) == DAYS
    told = [one.metadata for one in result.asset_materializations_for_node("trips") if "keys" in one.metadata]
    return int(told[0]["keys"].value)  # type: ignore[arg-type]


def dagster_alone(frame: pl.DataFrame, folder: Path, instance: dg.DagsterInstance) -> int:
    """A run over as many partitions of an asset that does nothing: what recording them costs."""

    @dg.asset(partitions_def=dg.DailyPartitionsDefinition("2023-01-01", end_date="2024-01-01"))
    def nothing() -> None: ...

    dg.materialize([nothing], instance=instance, tags=RANGE)
    return frame["driver_id"].n_unique()


class Sample:
    """A folder and Dagster instances that nobody has used yet: opening them belongs to the start of a process."""

    def __init__(self, home: Path) -> None:
        self.folder = home / uuid4().hex
        (self.folder / HOME).mkdir(parents=True)
        self._open = ExitStack()
        self.kept, lasting = self._open.enter_context(dagster_instance(Settings(root=self.folder)))
        assert lasting
        self.passing = self._open.enter_context(dg.DagsterInstance.ephemeral())

    def close(self) -> None:
        self._open.close()


def main() -> None:
    per_day = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    logging.disable(logging.ERROR)
    frame = rows(per_day)
    home = Path(tempfile.mkdtemp(prefix="backfill-"))
    sample = Sample(home)

    def renew() -> None:
        nonlocal sample
        sample.close()
        sample = Sample(home)

    try:
        compare(
            f"backfill {DAYS} partitions of {per_day:,} rows × 10 features",
            {
                "feature assets, history kept": lambda: ours(frame, sample.folder, sample.kept),
                "feature assets, history in memory": lambda: ours(frame, sample.folder, sample.passing),
                "Dagster, doing nothing, kept": lambda: dagster_alone(frame, sample.folder, sample.kept),
                "Dagster, doing nothing, in memory": lambda: dagster_alone(frame, sample.folder, sample.passing),
                "limit": lambda: by_hand(frame, sample.folder),
            },
            repeats=5,
            mark=3,
            before=renew,
        )
    finally:
        sample.close()
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
