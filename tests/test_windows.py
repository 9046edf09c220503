"""Event times find the partitions that Dagster has for them, in every granularity and zone, on the days clocks are set."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import dagster as dg
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_assets.assets.partitions import dimensions, slices
from feature_assets.conform import PartitionSlice
from feature_assets.errors import ContractBroken
from feature_assets.spec import Entity, Field, ViewSpec
from feature_assets.types import Int64, String
from feature_assets.windows import slices_of

NOW = datetime(2027, 6, 1, tzinfo=UTC)
START = "2023-10-01"
END = "2025-01-01"
# Berlin and New York set their clocks in the night, Havana, Beirut and the Azores at midnight, Tehran no more; Kolkata and
# Kathmandu are not a whole number of hours ahead.
ZONES = [
    "UTC", "Europe/Berlin", "America/New_York", "America/Havana", "Asia/Beirut", "Atlantic/Azores", "Asia/Kolkata",
    "Asia/Kathmandu", "Australia/Sydney", "America/Santiago", "Asia/Tokyo", "Europe/Dublin",
]  # fmt: skip
GRIDS: dict[str, tuple[str, str]] = {
    "hourly": ("0 * * * *", "%Y-%m-%d-%H:%M"),
    "hourly at a quarter": ("15 * * * *", "%Y-%m-%d-%H:%M"),
    "every half hour": ("0,30 * * * *", "%Y-%m-%d-%H:%M"),
    "every ten minutes": ("*/10 * * * *", "%Y-%m-%d-%H:%M"),
    "daily": ("0 0 * * *", "%Y-%m-%d"),
    "daily at half past two": ("30 2 * * *", "%Y-%m-%d"),
    "on weekdays": ("0 1 * * 1-5", "%Y-%m-%d"),
    "weekly": ("0 0 * * 0", "%Y-%m-%d"),
    "monthly": ("0 0 1 * *", "%Y-%m"),
    "at the month's end": ("0 4 29 * *", "%Y-%m-%d"),
    "quarterly": ("0 0 1 1,4,7,10 *", "%Y-%m-%d"),
    "twice a day": ("0 2,14 * * *", "%Y-%m-%d-%H:%M"),
}


def view(partitions_def: dg.PartitionsDefinition | None) -> ViewSpec:
    return ViewSpec(
        name="weather",
        entities=(Entity("airport", {"origin": String}),),
        features=(Field("temp", Int64),),
        event_timestamp="at",
        partitions=dimensions(partitions_def, "View 'weather'"),
    )


def frame(times: list[datetime | None], **columns: list[str | None]) -> pl.DataFrame:
    return pl.DataFrame({"at": times, **columns}, schema_overrides={"at": pl.Datetime("us", "UTC")})


def definition(grid: str, zone: str, **more: object) -> dg.TimeWindowPartitionsDefinition:
    cron, fmt = GRIDS[grid]
    start, end = (datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)) for day in (START, END))
    return dg.TimeWindowPartitionsDefinition(
        start=start, end=end, cron_schedule=cron, fmt=fmt, timezone=zone, **more  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture(autouse=True)
def later_than_all() -> Iterator[None]:
    with dg.partition_loading_context(NOW):
        yield


DAYS = [
    ("2024-03-09", 2),
    ("2024-03-30", 2),
    ("2024-10-26", 2),
    ("2023-11-04", 2),
    ("2024-04-06", 2),
    ("2024-09-07", 2),
]
"""Days on which clocks are set in one zone or another, each with how many days to look at."""


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_window_is_dagsters_own(grid: str, zone: str) -> None:
    of = definition(grid, zone)
    first = of.get_first_partition_window()
    assert first is not None
    for day, count in DAYS:
        start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
        before = timedelta(days=95 if "month" in grid or grid == "quarterly" else 8 if grid == "weekly" else 1)
        window = dg.TimeWindow(max(start - before, first.start), start + timedelta(days=count))
        keys = list(of.get_partition_keys_in_time_window(window))
        windows = of.time_windows_for_partition_keys(frozenset(keys))
        expected = [
            PartitionSlice(key, each.start.astimezone(UTC), each.end.astimezone(UTC))
            for key, each in zip(keys, windows, strict=True)
        ]
        edges = [edge for each in expected for edge in (each.start, each.end and each.end - timedelta(microseconds=1))]
        assert slices_of(view(of), frame([*edges, None])) == expected
        assert expected


@given(
    grid=st.sampled_from(list(GRIDS)),
    zone=st.sampled_from(ZONES),
    times=st.lists(st.datetimes(datetime(2023, 9, 25), datetime(2025, 1, 9)), min_size=1, max_size=4),
)
def test_each_time_lies_in_its_window(grid: str, zone: str, times: list[datetime]) -> None:
    of = definition(grid, zone)
    given_times = [time.replace(tzinfo=UTC) for time in times]
    with dg.partition_loading_context(NOW):
        found = slices_of(view(of), frame(list(given_times)))
        assert found == slices(of, [each.key for each in found])
        assert all(of.has_partition_key(each.key) for each in found)
        first, last = of.get_first_partition_window(), of.get_last_partition_window()
    assert first is not None
    assert last is not None
    for time in given_times:
        inside = [each for each in found if each.start and each.end and each.start <= time < each.end]
        assert len(inside) == (first.start <= time < last.end)
    assert all(one.end <= other.start for one, other in pairwise(found) if one.end and other.start)


def test_the_present_window_counts_before_dagster_lists_it() -> None:
    of = dg.DailyPartitionsDefinition("2024-01-01", timezone="Europe/Berlin")
    with dg.partition_loading_context(datetime(2024, 5, 3, 10, tzinfo=UTC)):
        assert not of.has_partition_key("2024-05-03")
        assert [each.key for each in slices_of(view(of), frame([datetime(2024, 5, 3, 10)]))] == ["2024-05-03"]


def test_what_is_left_out_is_no_partition() -> None:
    of = definition("daily", "Europe/Berlin", exclusions=["0 0 * * 0", datetime(2024, 5, 1)])
    days = [datetime(2024, 4, 28, 12), datetime(2024, 4, 29, 12), datetime(2024, 5, 1, 12), datetime(2024, 5, 2, 12)]
    assert [each.key for each in slices_of(view(of), frame(list(days)))] == ["2024-04-29", "2024-05-02"]
    assert [day.day for day in days if of.has_partition_key(f"{day:%Y-%m-%d}")] == [29, 2]


@pytest.mark.parametrize("year", [1, 9999])
def test_the_ends_of_time_lie_in_no_partition(year: int) -> None:
    declared = view(definition("daily", "Europe/Berlin"))
    assert slices_of(declared, frame([datetime(year, 12 if year > 1 else 1, 31 if year > 1 else 1)])) == []


def test_an_unpartitioned_view_has_one_slice() -> None:
    assert slices_of(view(None), frame([datetime(2024, 1, 1)])) == [PartitionSlice()]


def test_the_other_dimensions_are_columns() -> None:
    daily = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-02-01")
    both = dg.MultiPartitionsDefinition({"region": dg.StaticPartitionsDefinition(["eu", "us"]), "day": daily})
    rows = frame([datetime(2024, 1, 2, 5), datetime(2024, 1, 3, 5), None], region=["us", "eu", "mars"])
    found = slices_of(view(both), rows)
    # Every combination of what occurs; `conformed` puts each row into its own.
    assert {each.key for each in found} == {"2024-01-02|eu", "2024-01-02|us", "2024-01-03|eu", "2024-01-03|us"}
    assert found == slices(both, [each.key for each in found])
    static = view(dg.StaticPartitionsDefinition(["eu", "us"]))
    assert slices_of(static, frame([None], partition=["us"])) == [PartitionSlice("us", dimensions={"partition": "us"})]
    dynamic = view(dg.DynamicPartitionsDefinition(name="regions"))
    assert [each.key for each in slices_of(dynamic, frame([None], partition=["moon"]))] == ["moon"]
    with pytest.raises(ContractBroken, match="its partitions are divided by 'partition', and the rows have no such"):
        slices_of(static, frame([None]))
