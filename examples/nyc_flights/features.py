"""What is known about a departure before it leaves: pure functions from frames to frames.

Each row carries the time from which its values were known. A function that looks back takes a window [start, end) in
UTC and returns the rows of that window; its flights must reach back by `LOOKBACK`, and those scheduled at `end` or
later make no difference: a year computed at once and day by day gives the same rows, to the bit. Delays are minutes,
summed as integers.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import polars as pl

from examples.nyc_flights.data import NEW_YORK

PREDICTED_BEFORE = timedelta(minutes=30)
"""A departure is scored half an hour before it is scheduled to leave the gate."""

LOOKBACK = timedelta(days=30)
"""28 days of arrivals, and 2 in which the first of them were scheduled: none of 2013 arrived later than that after."""

RUNWAY_HEADINGS = {"EWR": 26.0, "JFK": 121.0, "LGA": 32.0}
"""Degrees from true north, as winds are reported, of a much used runway of each: 4L, 13R, 4 (magnetic numbers)."""

FASTEST_WIND = 150.0
"""mph; a reading beyond is a fault of the instrument (EWR, 12 February: 1048)."""


def spine(flights: pl.LazyFrame) -> pl.LazyFrame:
    """One row per departure whose lateness is known: keys, time of prediction, request data, label `arrived_late`.

    Cancelled and diverted flights are left out: the question is whether a flight arrives late, given that it arrives.
    """
    return flights.filter(pl.col("arrived_late").is_not_null()).select(
        "origin",
        "dest",
        "carrier",
        "tailnum",
        "scheduled_departure",
        "distance",
        "arrived_late",
        event_timestamp=pl.col("scheduled_departure") - PREDICTED_BEFORE,
        runway_heading=pl.col("origin").replace_strict(RUNWAY_HEADINGS, return_dtype=pl.Float64),
    )


def airport_weather(weather: pl.LazyFrame) -> pl.LazyFrame:
    """Hourly weather at each airport, impossible winds made null (key `origin`, event timestamp `observed_at`)."""
    winds = ("wind_speed", "wind_gust")
    return weather.with_columns(pl.when(pl.col(wind) <= FASTEST_WIND).then(pl.col(wind)).alias(wind) for wind in winds)


def airport_departures(flights: pl.LazyFrame, start: datetime, end: datetime) -> pl.LazyFrame:
    """How departures go at each airport, every 15 minutes (key `origin`, event timestamp `as_of`).

    `departures_2h`, `mean_dep_delay_2h`: those that left in the last two hours. `overdue_3h`: scheduled in the last
    three hours and not gone yet, be it that they leave later or never (the data has no time of a cancellation).
    """
    every, first = timedelta(minutes=15), start - timedelta(hours=3)
    scheduled, departed = pl.col("scheduled_departure"), pl.col("departed_at")
    due = flights.filter(scheduled > first, departed.is_null() | (departed > scheduled))
    # One that leaves early counts from its schedule on: a day's flights are those scheduled in it.
    gone = flights.filter(departed.is_not_null()).with_columns(at=pl.max_horizontal(scheduled, departed))
    events = pl.concat(
        [
            gone.select("origin", "at", "dep_delay", departures=1, overdue=0),
            due.select("origin", at=scheduled, dep_delay=0, departures=0, overdue=1),
            due.select(
                "origin",
                at=pl.min_horizontal(departed, scheduled + timedelta(hours=3)),
                dep_delay=0,
                departures=0,
                overdue=-1,
            ),
        ],
        how="vertical_relaxed",
    )
    two_hours = timedelta(hours=2) // every
    departures = pl.col("departures").rolling_sum(two_hours, min_samples=1).over("origin", order_by="as_of")
    dep_delay = pl.col("dep_delay").rolling_sum(two_hours, min_samples=1).over("origin", order_by="as_of")
    return (
        _at_ticks(events, ["origin"], first, end, every=every)
        .select(
            "origin",
            "as_of",
            departures_2h=departures,
            mean_dep_delay_2h=_ratio(dep_delay, departures),
            overdue_3h=pl.col("overdue").cum_sum().over("origin", order_by="as_of"),
        )
        .filter(_within("as_of", start, end))
    )


def aircraft_history(flights: pl.LazyFrame, start: datetime, end: datetime) -> pl.LazyFrame:
    """What each plane did, up to and with each of its arrivals (key `tailnum`, event timestamp `arrived_at`).

    `mean_arr_delay_5` is over the last five arrivals within 28 days, `arrivals_7d` counts those of seven days.
    Flights to New York are not in the data: a plane's arrivals are those at the other end.
    """
    arrived = pl.col("arrived_at")
    last_five = [
        pl.when(arrived.shift(n) > arrived - timedelta(days=28)).then(pl.col("arr_delay").shift(n)).over("tailnum")
        for n in range(5)
    ]
    return (
        _arrivals(flights)
        .filter(arrived < end)
        .sort("arrived_at", "scheduled_departure", "carrier", "flight")
        .select(
            "tailnum",
            "arrived_at",
            last_arrival_at=arrived,
            last_arr_delay=pl.col("arr_delay"),
            last_dest=pl.col("dest"),
            mean_arr_delay_5=pl.mean_horizontal(last_five),
            arrivals_7d=pl.col("arrivals").rolling_sum_by("arrived_at", "7d").over("tailnum"),
        )
        # Two arrivals of one plane in one minute are a slip of the record; the row that counts both is the last.
        .unique(["tailnum", "arrived_at"], keep="last", maintain_order=True)
        .filter(_within("arrived_at", start, end))
    )


def carrier_performance(flights: pl.LazyFrame, start: datetime, end: datetime) -> pl.LazyFrame:
    """How punctual each carrier was in 1, 7 and 28 days, every hour (key `carrier`, event timestamp `as_of`).

    Counts the arrivals known by then. A late flight is known late: the last hours look a little better than they were.
    """
    return _performance(flights, "carrier", ["carrier"], (1, 7, 28), start, end, every=timedelta(hours=1))


def route_performance(flights: pl.LazyFrame, start: datetime, end: datetime) -> pl.LazyFrame:
    """How punctual each route was in 28 days, every night (keys `origin` and `dest`, event timestamp `as_of`).

    Night is 08:00 UTC, between New York's last departure and its first.
    """
    return _performance(
        flights, "route", ["origin", "dest"], (28,), start, end, every=timedelta(days=1), offset=timedelta(hours=8)
    )


_LOCAL_DEPARTURE = pl.col("scheduled_departure").dt.convert_time_zone(NEW_YORK)

FLIGHT_CONTEXT = {
    "crosswind": pl.col("wind_speed") * (pl.col("wind_dir") - pl.col("runway_heading")).radians().sin().abs(),
    "icing": (pl.col("temp") <= 32.0) & (pl.col("precip") > 0.0),
    "minutes_since_last_arrival": (pl.col("scheduled_departure") - pl.col("last_arrival_at")).dt.total_minutes(),
    "carrier_delay_trend": pl.col("carrier_mean_arr_delay_1d") - pl.col("carrier_mean_arr_delay_28d"),
    "scheduled_hour": _LOCAL_DEPARTURE.dt.hour().cast(pl.Int64),
    "scheduled_weekday": _LOCAL_DEPARTURE.dt.weekday().cast(pl.Int64),
}
"""On demand, from features and the request (`scheduled_departure`, `runway_heading`): mph across the runway, whether
it freezes and rains, minutes, minutes, New York's hour and ISO weekday. Null where an input is. Plain expressions,
which `meta.serialize` stores as data."""


def _performance(
    flights: pl.LazyFrame,
    prefix: str,
    keys: Sequence[str],
    days: Sequence[int],
    start: datetime,
    end: datetime,
    *,
    every: timedelta,
    offset: timedelta = timedelta(0),
) -> pl.LazyFrame:
    """Count, mean delay and share late of the arrivals in the trailing `days`, where the longest of these has any."""

    def trailing(column: str, window: int) -> pl.Expr:
        return pl.col(column).rolling_sum(timedelta(days=window) // every, min_samples=1).over(keys, order_by="as_of")

    def measures(window: int) -> dict[str, pl.Expr]:
        arrivals = trailing("arrivals", window)
        return {
            f"{prefix}_arrivals_{window}d": arrivals,
            f"{prefix}_mean_arr_delay_{window}d": _ratio(trailing("arr_delay", window), arrivals),
            f"{prefix}_share_late_{window}d": _ratio(trailing("late", window), arrivals),
        }

    events = _arrivals(flights).select(
        *keys, "arr_delay", "arrivals", at="arrived_at", late=pl.col("arrived_late").cast(pl.Int64)
    )
    features = {name: expression for window in days for name, expression in measures(window).items()}
    return (
        _at_ticks(events, keys, start - timedelta(days=max(days)), end, every=every, offset=offset)
        .select(*keys, "as_of", **features)
        .filter(pl.col(f"{prefix}_arrivals_{max(days)}d") > 0, _within("as_of", start, end))
    )


def _arrivals(flights: pl.LazyFrame) -> pl.LazyFrame:
    return flights.filter(pl.col("arr_delay").is_not_null()).with_columns(arrivals=pl.lit(1, pl.Int64))


def _at_ticks(
    events: pl.LazyFrame,
    keys: Sequence[str],
    first: datetime,
    end: datetime,
    *,
    every: timedelta,
    offset: timedelta = timedelta(0),
) -> pl.LazyFrame:
    """The events' numbers, summed at the first tick that is not before their time `at`.

    Ticks are `every` from midnight UTC + `offset` on. Each key has all ticks in [first, end), with zeros where
    nothing happened.
    """
    before = pl.duration(microseconds=1)
    sums = (
        events.with_columns(
            pl.col(pl.Int32, pl.Int64).cast(pl.Int64),
            as_of=(pl.col("at") - offset - before).dt.truncate(every) + every + offset,
        )
        .drop("at")
        .group_by(*keys, "as_of")
        .sum()
        .filter(_within("as_of", first, end))
    )
    midnight = datetime(1970, 1, 1, tzinfo=UTC)
    first_tick = first + (midnight + offset - first) % every
    ticks = pl.LazyFrame(
        {"as_of": pl.datetime_range(first_tick, end, every, closed="left", time_unit="us", eager=True)}
    )
    return (
        sums.select(keys)
        .unique()
        .join(ticks, how="cross")
        .join(sums, on=[*keys, "as_of"], how="left")
        .with_columns(pl.exclude(*keys, "as_of").fill_null(0))
        .sort("as_of", *keys)
    )


def _ratio(total: pl.Expr, count: pl.Expr) -> pl.Expr:
    return pl.when(count > 0).then(total / count)


def _within(time: str, start: datetime, end: datetime) -> pl.Expr:
    return pl.col(time).is_between(start, end, closed="left")
