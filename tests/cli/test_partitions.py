"""Which partitions are meant, and that the runs are exactly those partitions."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_assets.cli.failures import Mistake
from feature_assets.cli.partitions import Target, chosen, last_over, runs_of
from feature_assets.errors import RequestError

DAILY = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-02-01")
HOURLY = dg.HourlyPartitionsDefinition("2024-10-26-00:00", end_date="2024-10-28-00:00", timezone="Europe/Berlin")
REGIONS = dg.StaticPartitionsDefinition(["eu", "us", "ap"])
BOTH = dg.MultiPartitionsDefinition({"day": DAILY, "region": REGIONS})
CUSTOMERS = dg.DynamicPartitionsDefinition(name="customers")
NOW = datetime(2024, 1, 10, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        made.add_dynamic_partitions("customers", ["acme", "bolt", "core"])
        yield made


def target(partitions_def: Any, per_run: int | None = None) -> Target:
    return Target("weather", dg.AssetKey("weather"), partitions_def, per_run, "materialize {} --partition")


def covered(partitions_def: Any, run: Sequence[str], instance: dg.DagsterInstance) -> list[str]:
    """What Dagster takes the run's first and last key to mean."""
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        keys = partitions_def.get_partition_keys_in_range(dg.PartitionKeyRange(run[0], run[-1]))
        return sorted(map(str, keys))
    known = partitions_def.get_partition_keys(dynamic_partitions_store=instance)
    return sorted(known[known.index(run[0]) : known.index(run[-1]) + 1])


@pytest.mark.parametrize(
    "partitions_def,asked,expected",
    [
        pytest.param(DAILY, {"partitions": ["2024-01-03"]}, ["2024-01-03"], id="one day"),
        pytest.param(DAILY, {"first": "2024-01-30"}, ["2024-01-30", "2024-01-31"], id="from a day on"),
        pytest.param(DAILY, {"last": "2024-01-02"}, ["2024-01-01", "2024-01-02"], id="up to a day"),
        pytest.param(DAILY, {"latest": True}, ["2024-01-09"], id="the last day that is over"),
        pytest.param(REGIONS, {"every": True}, ["eu", "us", "ap"], id="all regions"),
        pytest.param(REGIONS, {"first": "us", "last": "ap"}, ["us", "ap"], id="some regions, in their order"),
        pytest.param(CUSTOMERS, {"every": True}, ["acme", "bolt", "core"], id="all customers"),
        pytest.param(BOTH, {"partitions": ["2024-01-03|us"]}, ["2024-01-03|us"], id="one region of a day"),
        pytest.param(BOTH, {"latest": True}, [f"2024-01-09|{one}" for one in ("ap", "eu", "us")], id="a day of all"),
        pytest.param(
            BOTH,
            {"first": "2024-01-01|eu", "last": "2024-01-02|us"},
            ["2024-01-01|eu", "2024-01-01|us", "2024-01-02|eu", "2024-01-02|us"],
            id="a rectangle",
        ),
        pytest.param(
            BOTH,
            {"first": "2024-01-30", "last": "2024-01-31"},
            [f"2024-01-{day}|{one}" for day in (30, 31) for one in ("ap", "eu", "us")],
            id="days of all regions",
        ),
        pytest.param(None, {"every": True}, [], id="no partitions"),
    ],
)
def test_what_is_asked_for_is_what_is_meant(
    partitions_def: Any, asked: dict[str, Any], expected: list[str], instance: dg.DagsterInstance
) -> None:
    found = chosen(target(partitions_def), instance, now=NOW, **asked)
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    "partitions_def,asked,message",
    [
        pytest.param(DAILY, {}, r"has partitions \(daily, 2024-01-01 to 2024-01-31, 31 in all\)", id="nothing said"),
        pytest.param(
            DAILY, {"partitions": ["2024-02-30"]}, "'2024-02-30' is not a partition of weather", id="no such day"
        ),
        pytest.param(DAILY, {"partitions": ["yesterday"]}, "'yesterday' is not a partition of weather", id="no day"),
        pytest.param(DAILY, {"first": "2024-01-05", "last": "2024-01-04"}, "comes after '2024-01-04'", id="backwards"),
        pytest.param(REGIONS, {"latest": True}, "is not partitioned by time", id="no latest region"),
        pytest.param(CUSTOMERS, {"partitions": ["nobody"]}, r"acme to core, 3 in all", id="no such customer"),
        pytest.param(BOTH, {"partitions": ["2024-03-01"]}, "'2024-03-01' is not a partition", id="no such day of all"),
        pytest.param(None, {"partitions": ["2024-01-01"]}, "weather has no partitions", id="none at all"),
    ],
)
def test_what_is_no_partition_is_refused_with_what_there_is(
    partitions_def: Any, asked: dict[str, Any], message: str, instance: dg.DagsterInstance
) -> None:
    with pytest.raises(RequestError if partitions_def is None else Mistake, match=message):
        chosen(target(partitions_def), instance, now=NOW, **asked)


@pytest.mark.parametrize(
    "partitions_def,first,expected",
    [
        pytest.param(DAILY, "2024-01-02", "2024-01-09", id="up to the last day that is over"),
        pytest.param(DAILY, "2024-01-20", "2024-01-20", id="a day that is not over"),
        pytest.param(REGIONS, "us", "ap", id="up to the last region"),
        pytest.param(BOTH, "2024-01-02", "2024-01-09", id="a day of all regions"),
        pytest.param(BOTH, "2024-01-02|us", "2024-01-09|us", id="one region"),
    ],
)
def test_without_an_end_a_backfill_goes_up_to_what_is_over(
    partitions_def: Any, first: str, expected: str, instance: dg.DagsterInstance
) -> None:
    assert last_over(target(partitions_def), instance, first, now=NOW) == expected


def test_a_day_that_does_not_exist_is_mended_to_the_one_before(instance: dg.DagsterInstance) -> None:
    with pytest.raises(Mistake) as refused:
        chosen(target(DAILY), instance, partitions=["2024-01-32"])
    assert refused.value.attempt == "feature-assets materialize weather --partition 2024-01-31"


def test_before_the_first_partition_is_over_there_is_no_latest(instance: dg.DagsterInstance) -> None:
    with pytest.raises(RequestError, match="No partition of weather is over yet"):
        chosen(target(DAILY), instance, latest=True, now=datetime(2024, 1, 1, 12, tzinfo=UTC))


@pytest.mark.parametrize("partitions_def", [DAILY, HOURLY, REGIONS, BOTH], ids=["daily", "hourly", "static", "multi"])
@given(data=st.data())
def test_runs_cover_exactly_the_partitions_that_are_meant(
    partitions_def: Any, data: st.DataObject, instance: dg.DagsterInstance
) -> None:
    """Whatever is missing: each run is a range as Dagster reads it, and together they are all that was asked for."""
    known = list(map(str, partitions_def.get_partition_keys()))
    start, length = data.draw(st.integers(0, len(known) - 1)), data.draw(st.integers(1, 12))
    some = data.draw(st.lists(st.sampled_from(known), unique=True, max_size=5))
    keys = list(dict.fromkeys([*known[start : start + length], *some]))
    per_run = data.draw(st.none() | st.integers(1, 5))
    runs = runs_of(target(partitions_def), keys, instance, per_run=per_run)
    assert sorted(key for run in runs for key in run) == sorted(keys)
    for run in runs:
        assert covered(partitions_def, run, instance) == sorted(run)
        assert per_run is None or len(run) <= per_run


def test_a_gap_makes_two_runs_and_a_rectangle_one(instance: dg.DagsterInstance) -> None:
    days = [f"2024-01-{day:02}" for day in (2, 3, 4, 8)]
    assert [len(run) for run in runs_of(target(DAILY), days, instance)] == [3, 1]
    rectangle = [f"2024-01-0{day}|{region}" for day in (1, 2) for region in ("eu", "us")]
    assert [len(run) for run in runs_of(target(BOTH), rectangle, instance)] == [4]
    assert [len(run) for run in runs_of(target(BOTH), rectangle[:3], instance)] == [2, 1]


def test_an_asset_that_takes_one_partition_a_run_gets_one(instance: dg.DagsterInstance) -> None:
    assert [len(run) for run in runs_of(target(DAILY, per_run=1), DAILY.get_partition_keys()[:3], instance)] == [
        1,
        1,
        1,
    ]


def test_an_asset_without_partitions_is_one_run(instance: dg.DagsterInstance) -> None:
    assert runs_of(target(None), [], instance) == [[]]
