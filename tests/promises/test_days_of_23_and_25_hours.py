"""Where clocks are set, a local day has 23 or 25 hours: no row is lost, doubled or filed under two keys."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg
import polars as pl
import pytest

from feature_assets.assets.partitions import slices
from feature_assets.offline import OfflineStore
from feature_assets.online import open_online_store
from feature_assets.online.protocol import OnlineStore
from feature_assets.publication import publish
from feature_assets.settlement import pending, verify
from feature_assets.spec import Entity, Field, ViewSpec
from feature_assets.types import Int64

VIEW = ViewSpec(
    name="meter",
    entities=(Entity("meter", join_keys={"meter": Int64}),),
    features=(Field("reading", Int64),),
    event_timestamp="at",
)
NOW = datetime(2027, 1, 1, tzinfo=UTC)
DAYS = [
    ("Europe/Berlin", "2026-03-29", 23),
    ("Europe/Berlin", "2026-10-25", 25),
    ("America/New_York", "2026-03-08", 23),
    ("America/New_York", "2026-11-01", 25),
    ("UTC", "2026-10-25", 24),
]


def readings(start: datetime, end: datetime) -> pl.DataFrame:
    """One every ten minutes, of a meter of its own."""
    times = pl.datetime_range(start, end, "10m", closed="left", time_unit="us", eager=True).alias("at")
    number = pl.int_range(times.len(), dtype=pl.Int64, eager=True)
    return pl.DataFrame([number.alias("meter"), times, number.alias("reading")])


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[OfflineStore, OnlineStore]]:
    online = open_online_store(f"sqlite:{tmp_path / 'online.db'}")
    yield OfflineStore(str(tmp_path / "offline"), durability="process"), online
    online.close()


@pytest.mark.parametrize("zone, day, hours", DAYS)
@pytest.mark.parametrize("cut", [dg.HourlyPartitionsDefinition, dg.DailyPartitionsDefinition], ids=["hourly", "daily"])
@pytest.mark.parametrize("at_once", [True, False], ids=["in one run", "one by one"])
def test_every_row_is_in_one_partition_and_online(
    stores: tuple[OfflineStore, OnlineStore], zone: str, day: str, hours: int, cut: type, at_once: bool
) -> None:
    offline, online = stores
    first = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    start, end = first.astimezone(UTC), (first + timedelta(days=1)).astimezone(UTC)
    definition = cut(start_date=first, timezone=zone, end_date=first + timedelta(days=1))
    keys = definition.get_partition_keys(current_time=NOW)
    windows = slices(definition, keys)
    assert len(keys) == len(set(keys)) == (hours if cut is dg.HourlyPartitionsDefinition else 1)
    assert [one.start for one in windows] == [start, *(one.end for one in windows[:-1])]
    assert windows[-1].end == end
    rows = readings(start, end)
    assert rows.height == hours * 6
    order = random.Random(day).sample(windows, len(windows))
    for part in [order] if at_once else [[one] for one in order]:
        inside = pl.any_horizontal(pl.col("at").is_between(one.start, one.end, closed="left") for one in part)
        publish(VIEW, rows.filter(inside), part, offline=offline, online=online, now=NOW)
    state = offline.state(VIEW)
    assert state is not None
    assert set(state.rows_by_partition) == set(online.ledger(VIEW).entries) == set(keys)
    assert set(state.rows_by_partition.values()) == {rows.height // len(keys)}
    assert offline.scan(VIEW).select(VIEW.columns).sort("at").collect().equals(rows)
    assert pl.concat(online.scan(VIEW)).select(VIEW.columns).sort("at").equals(rows)
    assert verify(VIEW, offline, online).total == 0
    assert pending(VIEW, offline, online) == ()
