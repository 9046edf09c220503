"""What the benchmark of joins asks: histories published to an offline store, a spine, and what is declared of them.

A case lies in a folder: `registry.json`, `offline/` and `spine.parquet` with `event_timestamp` and, in `label`, each row's
number. Nobody who is measured has to make it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from feature_assets import Entity, Field, Float64, Int64
from feature_assets.offline import OfflineStore
from feature_assets.registry import Registry
from feature_assets.spec import PARTITION, ViewSpec, canonical_json, from_json

START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = 90
PARTS = 9
TTL = timedelta(days=30)
CLOCK = pl.Datetime("us", "UTC")
NAMES = ("driver", "customer", "merchant")
MONTHS = [datetime(2013 + month // 12, month % 12 + 1, 1, tzinfo=UTC) for month in range(13)]


def generated(folder: Path, rows: int, spine: int, entities: int, *, created: bool) -> None:
    """Three views of ten features, ten days to a partition, in no order within one."""
    chance = np.random.default_rng(1)
    span = int(timedelta(days=DAYS).total_seconds()) * 1_000_000
    views = [_view(name, created=created) for name in NAMES]
    offline = _declared(folder, views)
    for view in views:
        (key,) = view.join_keys
        for part in range(PARTS):
            count = rows * (part + 1) // PARTS - rows * part // PARTS
            low, high = span * part // PARTS, span * (part + 1) // PARTS
            frame = pl.DataFrame(
                {
                    key: chance.integers(0, entities, count),
                    "at": _moments(chance.integers(low, high, count)),
                    **{field.name: chance.random(count) for field in view.features},
                }
            ).unique([key, "at"], maintain_order=True)
            late = pl.duration(microseconds=pl.Series(chance.integers(0, 3_600_000_000, frame.height)))
            _publish(offline, view, frame.with_columns(made=pl.col("at") + late), f"part{part}")
    asked = pl.DataFrame({f"{name}_id": chance.integers(0, entities, spine) for name in NAMES})
    times = _moments(chance.integers(0, span, spine))
    asked.with_columns(event_timestamp=times, label=pl.int_range(pl.len())).write_parquet(folder / "spine.parquet")


def flights(folder: Path) -> None:
    """The five views of the example over the flights of 2013, a month to a partition; asked for every departure."""
    from examples.nyc_flights import data, features, views

    declared = (
        views.airport_weather,
        views.airport_departures,
        views.aircraft_history,
        views.carrier_performance,
        views.route_performance,
    )
    specs = [view.spec for view in declared]
    offline = _declared(folder, specs)
    for spec in specs:
        function = getattr(features, spec.name)
        for start, end in pairwise(MONTHS):
            if spec.name == "airport_weather":
                rows = function(data.weather()).filter(pl.col("observed_at").is_between(start, end, closed="left"))
            else:
                rows = function(data.flights(), start, end)
            _publish(offline, spec, rows.select(spec.columns).collect(), f"{start:%Y-%m}")
    rows = data.flights().select("origin", "dest", "tailnum", "carrier", event_timestamp="scheduled_departure")
    rows.with_columns(label=pl.int_range(pl.len())).sink_parquet(folder / "spine.parquet")


def registry_of(folder: Path) -> Registry:
    """What the case declares."""
    return from_json((folder / "registry.json").read_bytes(), Registry)


def history(folder: Path, view: ViewSpec) -> pl.LazyFrame:
    """The rows of a view, read from its files by hand."""
    files = folder / "offline" / view.name / "v1" / "__partition=*" / "*.parquet"
    return pl.scan_parquet(files, hive_partitioning=False)


def _view(name: str, *, created: bool) -> ViewSpec:
    return ViewSpec(
        name=name,
        entities=(Entity(name, {f"{name}_id": Int64}),),
        features=tuple(Field(f"{name}_{number}", Float64) for number in range(10)),
        event_timestamp="at",
        created_timestamp="made" if created else None,
        ttl=TTL,
    )


def _declared(folder: Path, views: Sequence[ViewSpec]) -> OfflineStore:
    (folder / "registry.json").write_bytes(canonical_json(Registry.of(views)))
    return OfflineStore(str(folder / "offline"), durability="process")


def _publish(offline: OfflineStore, view: ViewSpec, rows: pl.DataFrame, partition: str) -> None:
    frame = rows.select(*view.columns, pl.lit(partition).alias(PARTITION))
    offline.replace(view, frame, [partition], metadata={})


def _moments(micros: np.ndarray) -> pl.Series:
    return (pl.Series(micros) + int(START.timestamp()) * 1_000_000).cast(CLOCK)
