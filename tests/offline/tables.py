"""A small view, rows of it, and what a store holds of it, for the tests of this folder."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from feature_assets.offline import OfflineStore
from feature_assets.spec import PARTITION, PUBLICATION, Entity, Field, ViewSpec
from feature_assets.types import Float64, Int64, String, Struct

START = datetime(2024, 3, 1, tzinfo=UTC)

WEATHER = ViewSpec(
    name="weather",
    entities=(Entity("airport", join_keys={"origin": String}),),
    # A struct first: behind one, delta-rs forgets the bounds of every column.
    features=(Field("wind", Struct({"speed": Float64})), Field("temp", Int64)),
    event_timestamp="observed_at",
    created_timestamp="reported_at",
)

Row = tuple[str, int, int | None, int | None]
"""origin, minutes after START, minutes until it was reported, temperature"""


def at(minutes: int) -> datetime:
    return START + timedelta(minutes=minutes)


def frame(rows: Mapping[str, Iterable[Row]], view: ViewSpec = WEATHER) -> pl.DataFrame:
    """Conformed rows: partition → rows."""
    flat = [
        {
            "origin": origin,
            "observed_at": at(minutes),
            "reported_at": None if delay is None else at(minutes + delay),
            "wind": None if temp is None else {"speed": temp / 2},
            "temp": temp,
            PARTITION: partition,
        }
        for partition, of_partition in rows.items()
        for origin, minutes, delay, temp in of_partition
    ]
    columns = [of.to_frame(name, [row.get(name) for row in flat]) for name, of in view.types.items()]
    return pl.DataFrame([*columns, pl.Series(PARTITION, [row[PARTITION] for row in flat], pl.String)])


def held(store: OfflineStore, version: int | None = None, view: ViewSpec = WEATHER) -> dict[str, list[Row]]:
    """Partition → sorted rows, of those that have any."""
    found: dict[str, list[Row]] = {}
    for row in store.scan(view, at=version).collect().iter_rows(named=True):
        minutes = (row["observed_at"] - START) // timedelta(minutes=1)
        delay = (
            None if row["reported_at"] is None else (row["reported_at"] - row["observed_at"]) // timedelta(minutes=1)
        )
        found.setdefault(row[PARTITION], []).append((row["origin"], minutes, delay, row["temp"]))
    return {partition: sorted(rows, key=repr) for partition, rows in found.items()}


def sorted_rows(rows: Mapping[str, Iterable[Row]]) -> dict[str, list[Row]]:
    return {partition: sorted(of_partition, key=repr) for partition, of_partition in rows.items() if of_partition}


def publications(store: OfflineStore, view: ViewSpec = WEATHER) -> dict[str, set[int]]:
    """Partition → the publications that its rows carry."""
    rows = store.scan(view).select(PARTITION, PUBLICATION).unique().collect()
    found: dict[str, set[int]] = {}
    for partition, publication in rows.iter_rows():
        found.setdefault(partition, set()).add(publication)
    return found


def data_files(store: OfflineStore, view: ViewSpec = WEATHER) -> list[Path]:
    return sorted(Path(store.uri(view)).glob(f"{PARTITION}=*/*.parquet"))


def log_entries(store: OfflineStore, view: ViewSpec = WEATHER) -> list[Path]:
    return sorted((Path(store.uri(view)) / "_delta_log").glob("*.json"))


def replace(store: OfflineStore, rows: Mapping[str, Iterable[Row]], **metadata: Any) -> Any:
    return store.replace(WEATHER, frame(rows), list(rows), metadata=metadata)
