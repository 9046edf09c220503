"""A process that may have little memory: it materialises a partition through Dagster, or tries to hold it at once.

    python -m tests.acceptance.small_memory <folder> materialise|hold

The partition is `rows()`. Each row follows from its number, so that what is stored can be compared with what went in
without a second copy of it.
"""

import resource
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import dagster as dg
import polars as pl

from feature_assets import Entity, Field, FileSource, Float64, InRange, Int64, NotNull, RowCount
from feature_assets.assets import FeatureAssets, FeatureView

ROWS: Final = 16_000_000
KEYS: Final = 50_000
TURNS: Final = ROWS // KEYS
FEATURES: Final = tuple(f"reading_{number}" for number in range(12))
ROW_BYTES: Final = 8 * (2 + len(FEATURES))
DAY: Final = "2024-01-02"
SOURCE: Final = "readings.parquet"

START: Final = datetime(2024, 1, 2, tzinfo=UTC)
_PRIME: Final = 1_000_003


def rows(numbers: pl.LazyFrame) -> pl.LazyFrame:
    """The rows of some numbers `n`: in each second each key has one."""
    n = pl.col("n")
    second = pl.lit(START, pl.Datetime("us", "UTC")) + pl.duration(seconds=n // KEYS)
    return numbers.select((n % KEYS).alias("sensor_id"), second.alias("at"), *values(n))


def values(n: pl.Expr) -> list[pl.Expr]:
    """What the features of the row of a number are; an eighth is exact in floats."""
    return [(n * (2 * place + 3) % _PRIME / 8).alias(name) for place, name in enumerate(FEATURES)]


def view(folder: Path) -> FeatureView:
    return FeatureView.from_source(
        FileSource(name="readings", path=str(folder / SOURCE), timestamp_field="at"),
        name="sensors",
        entities=[Entity("sensor", join_keys={"sensor_id": Int64})],
        schema=[Field(name, Float64) for name in FEATURES],
        event_timestamp="at",
        partitions_def=dg.DailyPartitionsDefinition("2024-01-01"),
        checks=[NotNull(FEATURES[0]), InRange(FEATURES[1], minimum=0), RowCount(minimum=ROWS)],
    )


def main() -> None:
    folder, what = Path(sys.argv[1]), sys.argv[2]
    if what == "hold":
        print(pl.scan_parquet(folder / SOURCE).collect(engine="streaming").height)
        return
    stores = FeatureAssets(config=str(folder / "feature_assets.toml"))
    with dg.DagsterInstance.ephemeral() as instance:
        done = dg.materialize(
            [view(folder)], instance=instance, resources={"feature_assets": stores}, partition_key=DAY
        )
    assert done.success
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024)


if __name__ == "__main__":
    main()
