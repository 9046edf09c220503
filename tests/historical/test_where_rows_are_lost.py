"""Cases in which other feature stores lose training rows, multiply them, mix them up or let the future in."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from feature_assets.errors import NameCollision, RequestError, UnknownFeature
from feature_assets.spec import Field, OnDemandViewSpec, RequestSource, ViewProjection
from feature_assets.transformations import declared_expressions
from feature_assets.types import Float64, Int64, String
from tests.historical.world import CLOCK, HOUR, MICROSECOND, NOON, World, spine, view

STATS = view("stats", {"driver": String}, [Field("trips", Int64)], created_timestamp="made", ttl=2 * HOUR)
CUSTOMER = view("customer", {"customer": String}, [Field("orders", Int64)])
PAIR = view("pair", {"one": String, "other": String}, [Field("score", Int64)])
PLAIN = view("plain", {"driver": String}, [Field("rank", Int64)])
MIXED = OnDemandViewSpec(
    name="mixed",
    sources=(ViewProjection("stats", ("trips",)),),
    request=(RequestSource("request", (Field("extra", Int64),)),),
    features=(Field("sum", Int64), Field("difference", Int64)),
    transformation=declared_expressions(
        "mixed", {"sum": pl.col("trips") + pl.col("extra"), "difference": pl.col("trips") - pl.col("extra")}
    ),
)


@pytest.fixture
def world(tmp_path):
    here = World(tmp_path, STATS, CUSTOMER, PAIR, PLAIN, MIXED)
    here.publish(STATS, [{"driver": "d1", "at": NOON, "made": NOON, "trips": 7}])
    here.publish(CUSTOMER, [{"customer": "A", "at": NOON, "orders": 1}, {"customer": "B", "at": NOON, "orders": 2}])
    here.publish(PLAIN, [{"driver": "d1", "at": NOON, "rank": 1}])
    return here


def trips(world, *times, keys=None, **options):
    asked = spine(times, driver=keys or ["d1"] * len(times))
    return world.ask(asked, ["stats:trips"], **options).collect()["trips"].to_list()


# Rows that get lost


def test_a_row_whose_only_history_is_later_stays(world):
    assert trips(world, NOON - HOUR) == [None]


def test_a_row_whose_only_history_is_older_than_the_ttl_stays(world):
    assert trips(world, NOON + 3 * HOUR) == [None]


def test_a_row_of_an_unknown_key_stays(world):
    assert trips(world, NOON, keys=["nobody"]) == [None]


def test_a_row_with_a_null_key_stays_and_matches_no_row(world):
    assert trips(world, NOON, NOON, keys=[None, "d1"]) == [None, 7]


def test_a_row_without_a_time_stays_and_matches_no_row(world):
    assert trips(world, None, NOON) == [None, 7]


def test_two_rows_that_differ_in_the_label_only_stay_two(world):
    asked = spine([NOON, NOON], driver=["d1", "d1"], label=[0, 1])
    answer = world.ask(asked, ["stats:trips"]).collect()
    assert answer.rows() == [("d1", 0, NOON, 7), ("d1", 1, NOON, 7)]


def test_equal_rows_stay_as_many_as_they_were(world):
    assert trips(world, NOON, NOON, NOON) == [7, 7, 7]


def test_rows_that_differ_in_the_key_of_the_second_view_only_stay_two(world):
    asked = spine([NOON, NOON], driver=["d1", "d1"], customer=["A", "B"])
    answer = world.ask(asked, ["stats:trips", "customer:orders"]).collect()
    assert answer.rows() == [("d1", "A", NOON, 7, 1), ("d1", "B", NOON, 7, 2)]


def test_rows_keep_the_order_of_the_spine(world):
    times = [NOON, NOON - HOUR, NOON + HOUR, NOON - HOUR, NOON]
    asked = spine(times, driver=["d1", "x", "d1", "d1", None], place=list("edcba"))
    assert world.ask(asked, ["stats:trips"]).collect()["place"].to_list() == list("edcba")


def test_an_empty_spine_gives_the_columns_and_no_rows(world):
    asked = spine([], driver=pl.Series([], dtype=pl.String))
    answer = world.ask(asked, ["stats:trips"]).collect()
    assert answer.schema == {"driver": pl.String, "event_timestamp": CLOCK, "trips": pl.Int64}
    assert answer.is_empty()


def test_an_empty_history_gives_nulls(world):
    world.publish(STATS, [])
    assert trips(world, NOON) == [None]


# Rows that get multiplied or mixed up


def test_full_ties_give_one_row_the_one_that_was_published_last(world):
    """The same key, event and creation in two partitions: SQL templates return both."""
    world.publish(STATS, [{"driver": "d1", "at": NOON, "made": NOON, "trips": 8}], partition="late")
    assert trips(world, NOON) == [8]
    world.publish(STATS, [{"driver": "d1", "at": NOON, "made": NOON, "trips": 9}])
    assert trips(world, NOON) == [9]


def test_ties_without_a_created_timestamp_give_one_row_too(world):
    world.publish(PLAIN, [{"driver": "d1", "at": NOON, "rank": 2}], partition="late")
    assert world.ask(spine(driver=["d1"]), ["plain:rank"]).collect()["rank"].to_list() == [2]


def test_keys_that_are_alike_when_glued_together_are_not_alike(world):
    world.publish(
        PAIR,
        [{"one": "a", "other": "bc", "at": NOON, "score": 1}, {"one": "ab", "other": "c", "at": NOON, "score": 2}],
    )
    asked = spine([NOON] * 3, one=["a", "ab", "abc"], other=["bc", "c", ""])
    assert world.ask(asked, ["pair:score"]).collect()["score"].to_list() == [1, 2, None]


def test_a_key_that_is_null_in_part_matches_nothing(world):
    world.publish(PAIR, [{"one": "a", "other": "b", "at": NOON, "score": 1}])
    asked = spine([NOON] * 3, one=["a", None, "a"], other=["b", "b", None])
    assert world.ask(asked, ["pair:score"]).collect()["score"].to_list() == [1, None, None]


# Which row it is


@pytest.mark.parametrize(
    "later, found",
    [
        (timedelta(0), 7),
        (-MICROSECOND, None),
        (2 * HOUR - MICROSECOND, 7),
        (2 * HOUR, 7),
        (2 * HOUR + MICROSECOND, None),
    ],
    ids=["at the event", "1 µs before", "1 µs within ttl", "at ttl", "1 µs beyond ttl"],
)
def test_both_ends_of_the_ttl_count(world, later, found):
    assert trips(world, NOON + later) == [found]


def test_a_ttl_under_a_second_is_not_cut_to_whole_seconds(tmp_path):
    brief = view("brief", {"driver": String}, [Field("x", Int64)], ttl=timedelta(milliseconds=1))
    here = World(tmp_path, brief)
    here.publish(brief, [{"driver": "d1", "at": NOON, "x": 1}])
    times = [NOON, NOON + timedelta(milliseconds=1), NOON + timedelta(microseconds=1001), NOON + timedelta(seconds=1)]
    assert here.ask(spine(times, driver=["d1"] * 4), ["brief:x"]).collect()["x"].to_list() == [1, 1, None, None]


def test_without_a_ttl_a_value_never_expires(world):
    century = NOON + timedelta(days=36_500)
    assert world.ask(spine([century], driver=["d1"]), ["plain:rank"]).collect()["rank"].to_list() == [1]


def test_of_equal_events_the_one_created_last_wins_and_a_later_event_beats_a_later_creation(world):
    world.publish(
        STATS,
        [
            {"driver": "d1", "at": NOON, "made": NOON, "trips": 1},
            {"driver": "d1", "at": NOON, "made": NOON + HOUR, "trips": 2},
            {"driver": "d1", "at": NOON, "made": None, "trips": 0},
            {"driver": "d2", "at": NOON, "made": NOON + HOUR, "trips": 3},
            {"driver": "d2", "at": NOON + MICROSECOND, "made": NOON, "trips": 4},
        ],
    )
    late = NOON + HOUR
    assert trips(world, late, late, keys=["d1", "d2"]) == [2, 4]
    assert trips(world, NOON, keys=["d1"]) == [1]


def test_rows_created_later_are_not_known_yet_unless_asked_for(world):
    """A backfill that corrects the past does not leak into what was known then."""
    corrected = {"driver": "d1", "at": NOON, "made": NOON + HOUR, "trips": 100}
    world.publish(STATS, [{"driver": "d1", "at": NOON - HOUR, "made": NOON - HOUR, "trips": 6}, corrected])
    times = [NOON, NOON + HOUR - MICROSECOND, NOON + HOUR]
    assert trips(world, *times) == [6, 6, 100]
    assert trips(world, *times, created_cutoff=False) == [100, 100, 100]


def test_the_cutoff_does_not_touch_views_without_a_created_timestamp(world):
    asked = spine(driver=["d1"])
    for cutoff in (True, False):
        assert world.ask(asked, ["plain:rank"], created_cutoff=cutoff).collect()["rank"].to_list() == [1]


def test_naive_times_are_utc_and_others_are_converted(world):
    naive = [NOON.replace(tzinfo=None), NOON.replace(tzinfo=None) - timedelta(seconds=1)]
    berlin = [NOON.astimezone(ZoneInfo("Europe/Berlin")), NOON - timedelta(seconds=1)]
    for times, zone in ((naive, None), (berlin, "Europe/Berlin")):
        asked = pl.DataFrame({"driver": ["d1", "d1"], "event_timestamp": times})
        asked = asked.with_columns(pl.col("event_timestamp").cast(pl.Datetime("us", zone)))
        answer = world.ask(asked, ["stats:trips"]).collect()
        assert answer["trips"].to_list() == [7, None]
        assert_frame_equal(answer.select(asked.columns), asked)


def test_a_time_finer_than_a_microsecond_does_not_see_ahead(world):
    at = int(NOON.timestamp()) * 1_000_000_000
    asked = pl.DataFrame(
        {"driver": ["d1", "d1"], "event_timestamp": pl.Series([at - 1, at + 999]).cast(pl.Datetime("ns"))}
    )
    assert world.ask(asked, ["stats:trips"]).collect()["trips"].to_list() == [None, 7]
    before_1970 = pl.DataFrame({"driver": ["d1"], "event_timestamp": pl.Series([-1]).cast(pl.Datetime("ns"))})
    world.publish(STATS, [{"driver": "d1", "at": datetime(1970, 1, 1, tzinfo=UTC), "made": None, "trips": 0}])
    assert world.ask(before_1970, ["stats:trips"]).collect()["trips"].to_list() == [None]


# Names


def test_columns_are_the_spine_then_the_features_in_the_order_asked_for(world):
    asked = spine(label=[1], customer=["A"], driver=["d1"])
    answer = world.ask(asked, ["customer:orders", "stats:trips"])
    assert answer.columns == ["label", "customer", "driver", "event_timestamp", "orders", "trips"]
    full = world.ask(asked, ["stats:trips", "customer:orders"], full_feature_names=True)
    assert full.columns[-2:] == ["stats__trips", "customer__orders"]


def test_a_feature_with_the_name_of_a_spine_column_is_refused(world):
    asked = spine(driver=["d1"], trips=[1])
    with pytest.raises(NameCollision, match=r"'trips' would be the name of both stats:trips and a column of the spine"):
        world.ask(asked, ["stats:trips"])
    answer = world.ask(asked, ["stats:trips"], full_feature_names=True).collect()
    assert (answer["trips"].item(), answer["stats__trips"].item()) == (1, 7)


def test_the_same_view_twice_by_two_columns(world):
    twice = [
        ViewProjection("customer", ("orders",), alias="buyer", join_key_map={"customer": "buyer"}),
        ViewProjection("customer", ("orders",), alias="seller", join_key_map={"customer": "seller"}),
    ]
    asked = spine([NOON] * 2, buyer=["A", "B"], seller=["B", "B"])
    with pytest.raises(NameCollision, match="full_feature_names=True"):
        world.ask(asked, twice)
    answer = world.ask(asked, twice, full_feature_names=True).collect()
    assert answer.select("buyer__orders", "seller__orders").rows() == [(1, 2), (2, 2)]


def test_a_feature_that_the_view_does_not_have_is_refused_by_name(world):
    with pytest.raises(UnknownFeature, match=r"'trip'.*Did you mean 'trips'"):
        world.ask(spine(driver=["d1"]), ["stats:trip"])


def test_what_names_no_features_is_refused_and_an_iterator_of_names_is_a_list(world):
    for nothing in (3, None, [3]):
        with pytest.raises(RequestError, match=r"is not a feature reference, a view, a projection or a service"):
            world.ask(spine(driver=["d1"]), nothing)
    once = (f"stats:{name}" for name in ["trips"])
    assert world.ask(spine(driver=["d1"]), once).collect()["trips"].to_list() == [7]


# On-demand features


def test_on_demand_features_come_after_the_join_and_only_those_asked_for(world):
    asked = spine([NOON, NOON - HOUR], driver=["d1", "d1"], extra=[3, 4])
    answer = world.ask(asked, ["mixed:sum"])
    assert answer.columns == ["driver", "extra", "event_timestamp", "sum"]
    assert answer.collect()["sum"].to_list() == [10, None]


def test_missing_request_data_is_named(world):
    with pytest.raises(RequestError, match=r"lacks 'extra', which on-demand features need as request data \(Int64"):
        world.ask(spine(driver=["d1"]), ["mixed:sum"])


def test_one_key_with_many_rows_and_many_questions(world):
    """A merge on keys before any look at times would make forty thousand million rows of these."""
    count = 200_000
    times = pl.select(pl.lit(NOON).cast(CLOCK) + pl.duration(seconds=pl.int_range(count))).to_series()
    rows = {"driver": ["d1"] * count, "at": times, "made": pl.repeat(None, count, dtype=CLOCK, eager=True)}
    world.publish(STATS, pl.DataFrame({**rows, "trips": pl.int_range(count, eager=True)}))
    asked = pl.DataFrame({"driver": ["d1"] * count, "event_timestamp": times + timedelta(milliseconds=500)})
    assert world.ask(asked, ["stats:trips"]).collect()["trips"].equals(pl.int_range(count, eager=True))


def test_a_feature_of_another_kind_of_null(world, tmp_path):
    """A stored null stays null; the default stands where there is no row."""
    defaulted = view("defaulted", {"driver": String}, [Field("x", Float64, default=-1.0)])
    here = World(tmp_path / "other", defaulted)
    here.publish(defaulted, [{"driver": "d1", "at": NOON, "x": None}, {"driver": "d2", "at": NOON, "x": 2.0}])
    asked = spine([NOON] * 4, driver=["d1", "d2", "d3", None])
    assert here.ask(asked, ["defaulted:x"]).collect()["x"].to_list() == [None, 2.0, -1.0, -1.0]
