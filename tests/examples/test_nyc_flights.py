"""The demo's times are the instants that the local clocks meant, and no feature knows what had not happened yet."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from examples.nyc_flights import data, features, model
from feature_assets import expressions

WindowedView = Callable[[pl.LazyFrame, datetime, datetime], pl.LazyFrame]
Row = Mapping[str, Any]

KEYS: dict[str, tuple[list[str], str]] = {
    "airport_departures": (["origin"], "as_of"),
    "aircraft_history": (["tailnum"], "arrived_at"),
    "carrier_performance": (["carrier"], "as_of"),
    "route_performance": (["origin", "dest"], "as_of"),
}
WINDOWED: dict[str, WindowedView] = {name: getattr(features, name) for name in KEYS}
EVERY_VIEW = pytest.mark.parametrize("view", WINDOWED)

SAMPLED = (datetime(2013, 2, 25, tzinfo=UTC), datetime(2013, 3, 18, tzinfo=UTC))
"""Three weeks around the change to summer time and the snow of 8 March."""


def utc(*clock: int) -> datetime:
    return datetime(*clock, tzinfo=UTC)  # type: ignore[misc]


@cache
def all_flights() -> pl.DataFrame:
    return data.flights().collect()


# Times


def flight(dest: str, sched_dep: str, sched_arr: int, dep_delay: int | None, arr: int | None) -> pl.LazyFrame:
    day = datetime.strptime(sched_dep, "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    names = {"carrier": "B6", "tailnum": "N1", "origin": "JFK", "dest": dest}
    numbers = {name: getattr(day, name) for name in ("year", "month", "day", "hour", "minute")} | {
        "flight": 1,
        "distance": 1,
        "sched_arr_time": sched_arr,
        "dep_delay": dep_delay,
        "arr_time": arr,
        "arr_delay": None if arr is None else 0,
    }
    return pl.LazyFrame([names | numbers], schema_overrides=dict.fromkeys(numbers, pl.Int64))


AIRPORTS = pl.LazyFrame(
    {
        "faa": ["BOS", "HNL", "LAX", "PBI", "PHX", "XXX"],
        "tzone": [
            "America/New_York",
            "Pacific/Honolulu",
            "America/Los_Angeles",
            "America/New_York",
            "America/Phoenix",
            None,
        ],
    }
)


@pytest.mark.parametrize(
    "raw, departed, arrived",
    [
        pytest.param(flight("BOS", "2013-01-15 08:00", 915, -5, 910), (1, 15, 12, 55), (1, 15, 14, 10), id="winter"),
        pytest.param(flight("BOS", "2013-07-15 08:00", 915, -5, 910), (7, 15, 11, 55), (7, 15, 13, 10), id="summer"),
        pytest.param(
            flight("LAX", "2013-01-15 18:30", 2150, 30, 2220), (1, 16, 0, 0), (1, 16, 6, 20), id="to the west"
        ),
        pytest.param(
            flight("LAX", "2013-01-15 21:30", 40, 0, 35), (1, 16, 2, 30), (1, 16, 8, 35), id="over midnight there"
        ),
        pytest.param(flight("BOS", "2013-01-15 22:50", 2359, 0, 2400), (1, 16, 3, 50), (1, 16, 5, 0), id="at 2400"),
        pytest.param(
            flight("BOS", "2013-01-15 22:50", 2359, 75, 104), (1, 16, 5, 5), (1, 16, 6, 4), id="delayed to the morrow"
        ),
        pytest.param(
            flight("BOS", "2013-01-16 00:05", 110, -10, 100), (1, 16, 4, 55), (1, 16, 6, 0), id="early, the day before"
        ),
        pytest.param(
            flight("HNL", "2013-07-15 10:00", 1445, 0, 1445), (7, 15, 14, 0), (7, 16, 0, 45), id="ten hours and 45"
        ),
        pytest.param(
            flight("PHX", "2013-07-15 12:00", 1420, 0, 1420), (7, 15, 16, 0), (7, 15, 21, 20), id="no summer time there"
        ),
        pytest.param(
            flight("SJU", "2013-01-15 23:59", 440, 0, 440), (1, 16, 4, 59), (1, 16, 8, 40), id="not in airports.csv"
        ),
        pytest.param(
            flight("PBI", "2013-03-09 21:45", 34, 81, 203), (3, 10, 4, 6), (3, 10, 7, 3), id="the night of the change"
        ),
        pytest.param(flight("BOS", "2013-01-15 08:00", 915, None, None), None, None, id="cancelled"),
    ],
)
def test_local_clocks_become_the_instants_that_they_meant(
    raw: pl.LazyFrame, departed: tuple[int, ...] | None, arrived: tuple[int, ...] | None
):
    row = data.in_utc(raw, AIRPORTS).collect().row(0, named=True)
    assert row["departed_at"] == (departed and utc(2013, *departed))
    assert row["arrived_at"] == (arrived and utc(2013, *arrived))


def test_the_whole_year_is_there_in_the_order_of_its_schedule():
    flights = all_flights()
    assert flights.height == 336_776
    assert flights.schema == data.FLIGHTS_SCHEMA
    assert flights["scheduled_departure"].is_sorted()
    assert flights.null_count().select("scheduled_departure", "scheduled_arrival", "departed_at", "arrived_at").row(
        0
    ) == (0, 0, 8_255, 9_430)
    assert flights.filter(pl.col("departed_at").is_not_null())["tailnum"].null_count() == 0


def test_every_arrival_is_its_scheduled_arrival_plus_its_delay():
    """The delay is the airline's own number: that it fits 327,346 times proves zones, midnights and summer time."""
    arrived = all_flights().filter(pl.col("arr_delay").is_not_null())
    minutes = (pl.col("arrived_at") - pl.col("scheduled_arrival")).dt.total_minutes()
    assert arrived.filter(minutes != pl.col("arr_delay")).is_empty()
    assert arrived.filter(pl.col("arrived_late") != (pl.col("arr_delay") > 15)).is_empty()


def test_no_flight_arrives_before_it_left_or_later_than_the_lookback_allows():
    arrived = all_flights().filter(pl.col("arrived_at").is_not_null())
    assert arrived.filter(pl.col("arrived_at") <= pl.col("departed_at")).is_empty()
    assert arrived.filter(pl.col("arrived_at").dt.date() < pl.col("scheduled_departure").dt.date()).is_empty()
    assert arrived.select((pl.col("arrived_at") - pl.col("scheduled_departure")).max()).item() < timedelta(days=2)


def test_weather_counts_as_observed_when_its_hour_is_over():
    weather = data.weather().collect()
    assert weather.schema == data.WEATHER_SCHEMA
    assert weather.height == weather.n_unique(["origin", "observed_at"]) == 26_115
    first = weather.filter(pl.col("origin") == "EWR").row(0, named=True)
    assert (first["observed_at"], first["temp"]) == (utc(2013, 1, 1, 7), 39.02)  # labelled 01:00 in New York
    of_that_night = weather.filter(pl.col("observed_at").is_between(utc(2013, 11, 3, 6), utc(2013, 11, 3, 9)))
    assert of_that_night.height == 3 * 4  # of 1, 1, 2 and 3 o'clock: the clocks went back


def test_a_window_has_its_start_and_not_its_end():
    start, end = utc(2013, 6, 1, 10, 0), utc(2013, 6, 1, 10, 30)
    times = data.flights_between(start, end).collect()["scheduled_departure"]
    assert (times.min(), times.max() < end) == (start, True)  # type: ignore[operator]
    assert (
        data.weather_between(utc(2013, 6, 1, 10), utc(2013, 6, 1, 11)).collect()["observed_at"].to_list()
        == [utc(2013, 6, 1, 10)] * 3
    )


# Honesty


def as_known_at(time: datetime) -> pl.LazyFrame:
    """The flights as their record stood: the schedule of the whole year, what had left, what had arrived."""
    left, arrived = pl.col("departed_at") <= time, pl.col("arrived_at") <= time
    return (
        all_flights()
        .lazy()
        .with_columns(
            *(pl.when(left).then(name).alias(name) for name in ("departed_at", "dep_delay")),
            *(pl.when(arrived).then(name).alias(name) for name in ("arrived_at", "arr_delay", "arrived_late")),
        )
    )


@EVERY_VIEW
@pytest.mark.parametrize(
    "now", [utc(2013, 1, 9, 18, 7), utc(2013, 3, 8, 15, 0), utc(2013, 7, 1, 3, 59), utc(2013, 12, 31, 23, 30)], ids=str
)
def test_what_had_not_happened_yet_makes_no_difference(view: str, now: datetime):
    start, end = now - timedelta(days=2), now + timedelta(minutes=1)
    known = WINDOWED[view](as_known_at(now), start, end).filter(pl.col(KEYS[view][1]) <= now).collect()
    in_hindsight = WINDOWED[view](all_flights().lazy(), start, end).filter(pl.col(KEYS[view][1]) <= now).collect()
    assert known.height > 0
    assert_frame_equal(known, in_hindsight, check_exact=True)


@EVERY_VIEW
@pytest.mark.parametrize("start", [utc(2013, 1, 1), utc(2013, 3, 8), utc(2013, 11, 2)], ids=str)
def test_days_one_by_one_give_the_rows_of_all_at_once(view: str, start: datetime):
    """Each day sees only the flights scheduled within the lookback, as its partition will."""
    days = [start + timedelta(days=n) for n in range(4)]
    one_by_one = [
        WINDOWED[view](
            data.flights_between(day - features.LOOKBACK, day + timedelta(days=1)), day, day + timedelta(days=1)
        )
        for day in days
    ]
    at_once = WINDOWED[view](all_flights().lazy(), start, start + timedelta(days=4))
    order = [KEYS[view][1], *KEYS[view][0]]
    assert_frame_equal(pl.concat(one_by_one).sort(order).collect(), at_once.sort(order).collect(), check_exact=True)


@EVERY_VIEW
def test_rows_have_their_keys_one_time_each_and_lie_in_the_window(view: str):
    keys, time = KEYS[view]
    rows = WINDOWED[view](all_flights().lazy(), *SAMPLED).collect()
    assert rows.select(*keys, time).null_count().sum_horizontal().item() == 0
    assert rows.n_unique([*keys, time]) == rows.height
    assert rows.filter(~pl.col(time).is_between(*SAMPLED, closed="left")).is_empty()


def by_hand_airport_departures(flights: Iterable[Row], at: datetime) -> Row:
    left = [
        f
        for f in flights
        if f["departed_at"] and at - timedelta(hours=2) < max(f["departed_at"], f["scheduled_departure"]) <= at
    ]
    due = [f for f in flights if at - timedelta(hours=3) < f["scheduled_departure"] <= at]
    return {
        "departures_2h": len(left),
        "mean_dep_delay_2h": mean([f["dep_delay"] for f in left]),
        "overdue_3h": sum(1 for f in due if not f["departed_at"] or f["departed_at"] > at),
    }


def by_hand_aircraft_history(flights: Iterable[Row], at: datetime) -> Row:
    arrived = sorted(arrivals_within(flights, at, days=28), key=lambda f: (f["arrived_at"], f["scheduled_departure"]))
    return {
        "last_arrival_at": arrived[-1]["arrived_at"],
        "last_arr_delay": arrived[-1]["arr_delay"],
        "last_dest": arrived[-1]["dest"],
        "mean_arr_delay_5": mean([f["arr_delay"] for f in arrived[-5:]]),
        "arrivals_7d": len(arrivals_within(flights, at, days=7)),
    }


def by_hand_performance(name: str, days: Sequence[int]) -> Callable[[Iterable[Row], datetime], Row]:
    def expected(flights: Iterable[Row], at: datetime) -> Row:
        row = {}
        for window in days:
            arrived = arrivals_within(flights, at, days=window)
            row[f"{name}_arrivals_{window}d"] = len(arrived)
            row[f"{name}_mean_arr_delay_{window}d"] = mean([f["arr_delay"] for f in arrived])
            row[f"{name}_share_late_{window}d"] = mean([f["arr_delay"] > 15 for f in arrived])
        return row

    return expected


def arrivals_within(flights: Iterable[Row], at: datetime, *, days: int) -> list[Row]:
    return [f for f in flights if f["arrived_at"] and at - timedelta(days=days) < f["arrived_at"] <= at]


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


BY_HAND = {
    "airport_departures": by_hand_airport_departures,
    "aircraft_history": by_hand_aircraft_history,
    "carrier_performance": by_hand_performance("carrier", (1, 7, 28)),
    "route_performance": by_hand_performance("route", (28,)),
}


@EVERY_VIEW
def test_rows_are_what_a_loop_over_the_flights_known_by_then_counts(view: str):
    keys, time = KEYS[view]
    flights_of = defaultdict(list)
    for row in data.flights_between(SAMPLED[0] - features.LOOKBACK, SAMPLED[1]).collect().iter_rows(named=True):
        flights_of[tuple(row[key] for key in keys)].append(row)
    sample = WINDOWED[view](all_flights().lazy(), *SAMPLED).collect().sample(60, seed=5)
    for row in sample.iter_rows(named=True):
        assert {name: row[name] for name in row if name not in {*keys, time}} == BY_HAND[view](
            flights_of[tuple(row[key] for key in keys)], row[time]
        )


# Weather, request, label


def test_impossible_winds_are_made_null():
    raw, clean = data.weather().collect(), features.airport_weather(data.weather()).collect()
    assert raw["wind_speed"].max() == pytest.approx(1048.36058)
    assert clean["wind_speed"].max() < 60  # type: ignore[operator]
    assert clean["wind_speed"].null_count() == raw["wind_speed"].null_count() + 1
    assert_frame_equal(clean.drop("wind_speed", "wind_gust"), raw.drop("wind_speed", "wind_gust"))


REQUEST = {
    "scheduled_departure": utc(2013, 7, 15, 12, 30),
    "runway_heading": 121.0,
    "wind_dir": 211,
    "wind_speed": 10.0,
    "temp": 32.0,
    "precip": 0.01,
    "last_arrival_at": utc(2013, 7, 15, 3, 0),
    "carrier_mean_arr_delay_1d": 12.5,
    "carrier_mean_arr_delay_28d": 10.0,
}


def test_flight_context_is_stored_as_data_and_computes_the_same():
    stored = {name: expressions.to_data(expression, name) for name, expression in features.FLIGHT_CONTEXT.items()}
    computed = pl.DataFrame([REQUEST]).select(
        **{name: expressions.from_data(text, name) for name, text in stored.items()}
    )
    assert computed.row(0, named=True) == {
        "crosswind": pytest.approx(10.0),
        "icing": True,
        "minutes_since_last_arrival": 570,
        "carrier_delay_trend": 2.5,
        "scheduled_hour": 8,
        "scheduled_weekday": 1,
    }


@pytest.mark.parametrize("wind_dir, crosswind", [(121, 0.0), (301, 0.0), (31, 10.0), (151, 5.0), (None, None)])
def test_crosswind_is_the_same_on_either_end_of_the_runway(wind_dir: int | None, crosswind: float | None):
    row = pl.DataFrame([{**REQUEST, "wind_dir": wind_dir}], schema_overrides={"wind_dir": pl.Int64})
    expected = None if crosswind is None else pytest.approx(crosswind, abs=1e-9)
    assert row.select(features.FLIGHT_CONTEXT["crosswind"]).item() == expected


def test_the_spine_has_every_flight_that_arrived_half_an_hour_before_its_schedule():
    spine = features.spine(all_flights().lazy()).collect()
    assert spine.height == 327_346
    assert spine.null_count().sum_horizontal().item() == 0
    assert spine["arrived_late"].sum() == 77_630
    assert spine.filter(pl.col("scheduled_departure") - pl.col("event_timestamp") != timedelta(minutes=30)).is_empty()


# The model


def test_a_join_by_day_looks_brilliant_because_it_knows_the_arrival():
    flights = data.flights_between(utc(2013, 8, 1), utc(2013, 11, 1))
    spine = features.spine(flights).sort("event_timestamp")
    history = features.aircraft_history(flights, utc(2013, 8, 1), utc(2013, 11, 1)).sort("arrived_at")
    known = spine.join_asof(
        history, left_on="event_timestamp", right_on="arrived_at", by="tailnum", check_sortedness=False
    ).collect()
    leaky = model.joined_by_day(spine, history, ["tailnum"], "arrived_at").collect()
    assert known.height == leaky.height == spine.collect().height
    assert known.filter(pl.col("last_arrival_at") > pl.col("event_timestamp")).is_empty()

    columns = ["carrier", "distance", "last_arr_delay", "minutes_since_last_arrival"]
    since = {"minutes_since_last_arrival": features.FLIGHT_CONTEXT["minutes_since_last_arrival"]}
    known, leaky = known.with_columns(**since), leaky.with_columns(**since)
    honest, brilliant = (model.evaluate(rows, columns, training_rows=20_000) for rows in (known, leaky))
    assert 0.55 < honest.auc < 0.75
    assert brilliant.auc > honest.auc + 0.25
    assert model.evaluate(known, columns, training_rows=20_000).auc == honest.auc
