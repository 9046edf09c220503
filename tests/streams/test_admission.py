"""What becomes of a record does not depend on those beside it, however they are looked at."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets.checks import InRange
from feature_assets.config import Settings
from feature_assets.spec import Field, StaticPartitions, ViewSpec
from feature_assets.streams.admission import Intake
from feature_assets.streams.log import Records
from feature_assets.types import Float64
from tests.streams.shards import shard
from tests.streams.test_consumer import NOW, RIDES, TRIPS, ride

STRICT = msgspec.structs.replace(
    TRIPS, checks=(InRange("km", minimum=0), InRange("km", maximum=100, severity="warn", name="far"))
)
REGIONS = msgspec.structs.replace(
    TRIPS, partitions={"region": StaticPartitions(keys=("east", "west"))}, features=(Field("km", Float64),)
)
LATE = datetime(2020, 1, 1, tzinfo=UTC)
KINDS: list[dict[str, Any]] = [
    {},
    {"km": 500.0},
    {"km": -1.0},
    {"km": None},
    {"driver_id": None},
    {"at": None},
    {"at": LATE.isoformat()},
    {"at": (NOW + timedelta(hours=2)).isoformat()},
    {"at": (NOW - timedelta(days=3)).isoformat()},
    {"km": -1.0, "driver_id": None},
    {"region": "north"},
]


def records_of(values: list[dict[str, Any]]) -> Records:
    data = [msgspec.json.encode(one) for one in values]
    count = len(values)
    return Records([shard(0)] * count, list(range(count)), [None] * count, data, [()] * count, [None] * count)


def became(intake: Intake, values: list[dict[str, Any]]) -> dict[int, Any]:
    """By place the row, or that there is none."""
    read = intake.read(records_of(values), NOW)
    rows, letters = intake.rows("trips", read.fields, NOW)
    found: dict[int, Any] = {one.place: None for one in (*read.letters, *letters)}
    assert len(found) == len(read.letters) + len(letters), "nothing is refused twice"
    if rows is not None:
        order = rows["__sequence"].to_list()
        assert order == sorted(order)
        for row in rows.drop("__event").iter_rows(named=True):
            assert row["__sequence"] not in found
            found[row.pop("__sequence")] = row
    return found


@pytest.mark.parametrize("view", [STRICT, REGIONS], ids=["time", "regions"])
@settings(max_examples=30)
@given(kinds=st.lists(st.integers(0, len(KINDS) - 1), min_size=1, max_size=12))
def test_a_record_is_what_it_is_alone(view: ViewSpec, kinds: list[int]) -> None:
    intake = Intake(RIDES, [view], Settings())
    values = [ride(number) | {"region": "east"} | KINDS[kind] for number, kind in enumerate(kinds)]
    alone = {}
    for place, value in enumerate(values):
        found = became(intake, [value])
        alone[place] = found[0]
    assert became(intake, values) == alone


def reasons(intake: Intake, values: list[dict[str, Any]]) -> dict[int, str]:
    """By place why a record is no row."""
    read = intake.read(records_of(values), NOW)
    _, letters = intake.rows("trips", read.fields, NOW)
    return {one.place: one.reason for one in (*read.letters, *letters)}


def test_of_many_that_the_same_is_wrong_with_each_is_told_what_it_is_told_alone() -> None:
    intake = Intake(RIDES, [STRICT], Settings())
    wrong: list[dict[str, Any]] = [one for one in KINDS if became(intake, [ride(1) | one])[0] is None]
    assert len(wrong) == 6
    values = [
        ride(number, at=NOW - timedelta(minutes=number % 300)) | wrong[number % len(wrong)] for number in range(2_000)
    ]
    for number, value in enumerate(values):
        if value["at"] is not None and value["at"] < "2021":
            value["at"] = (LATE + timedelta(days=number % 90)).isoformat()
    found = reasons(intake, values)
    assert sorted(found) == list(range(2_000))
    for place in (*range(12), *range(600, 612), *range(1_988, 2_000)):
        assert found[place] == reasons(intake, [values[place]])[0]
    assert (
        sum(
            "'at' lies outside the partitions of the view (from 2024-01-01 00:00:00 UTC on)" in one
            for one in found.values()
        )
        == 333
    )


def test_of_many_that_the_same_is_wrong_with_each_is_a_dead_letter() -> None:
    intake = Intake(RIDES, [STRICT], Settings())
    values = [ride(number) | ({"km": -1.0} if number % 2 else {}) for number in range(300)]
    found = became(intake, values)
    assert [place for place, row in found.items() if row is None] == list(range(1, 300, 2))
    assert len(found) == 300


def test_a_frame_with_more_than_its_share_of_checks_that_warn_goes_through_at_once() -> None:
    intake = Intake(RIDES, [STRICT], Settings())
    values = [ride(number) | {"km": 500.0} for number in range(2_000)]
    assert all(row is not None for row in became(intake, values).values())
