"""A day of flights as events, and planes whose delay on that day changes what is to be expected of their next flight."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import polars as pl

from examples.nyc_flights import data, features

DAY = datetime(2013, 7, 10, tzinfo=UTC)
"""Thunderstorms over New York."""


class Connection(NamedTuple):
    """A plane that lands late, and the next flight of it that is known: a row of the spine."""

    tailnum: str
    landed: datetime
    delay: int
    where: str
    next: Mapping[str, Any]


def events(start: datetime = DAY, end: datetime = DAY + timedelta(days=1)) -> pl.DataFrame:
    """Departures and arrivals in [start, end), by their times: the fields of `streamed.flight_events`."""
    flights = data.flights().collect()
    departed = flights.filter(pl.col("departed_at").is_between(start, end, closed="left")).select(
        pl.lit("departed").alias("event"),
        at="departed_at",
        tailnum="tailnum",
        airport="origin",
        delay="dep_delay",
        recent_delays=pl.lit(None, pl.List(pl.Int64)),
        arrivals_7d=pl.lit(None, pl.Int64),
    )
    arrived = _arrivals(flights, start, end)
    return pl.concat([departed, arrived]).sort("at", "tailnum", "event", descending=[False, False, True])


def _arrivals(flights: pl.DataFrame, start: datetime, end: datetime) -> pl.DataFrame:
    """What an airline knows of its own planes when one lands."""
    history = features.aircraft_history(flights.lazy(), start, end).collect()
    landed = flights.filter(
        pl.col("arr_delay").is_not_null(),
        pl.col("arrived_at").is_between(start - timedelta(days=28), end, closed="left"),
    ).sort("arrived_at", "scheduled_departure", "carrier", "flight")
    at = pl.col("arrived_at")
    recent = [
        pl.when(at.shift(n) > at - timedelta(days=28)).then(pl.col("arr_delay").shift(n)).over("tailnum")
        for n in range(5)
    ]
    delays = landed.select("tailnum", "arrived_at", recent_delays=pl.concat_list(recent).list.drop_nulls())
    known = delays.unique(["tailnum", "arrived_at"], keep="last", maintain_order=True)
    return history.join(known, on=["tailnum", "arrived_at"], validate="1:1").select(
        pl.lit("arrived").alias("event"),
        at="arrived_at",
        tailnum="tailnum",
        airport="last_dest",
        delay="last_arr_delay",
        recent_delays="recent_delays",
        arrivals_7d="arrivals_7d",
    )


def connections(start: datetime = DAY, count: int = 4, least: int = 60) -> list[Connection]:
    """Planes that landed that many minutes late and were to leave New York again within four hours; the most delayed ones,
    by the time at which they landed.
    """
    end = start + timedelta(days=1)
    spine = features.spine(data.flights_between(start, end)).collect()
    late = events(start, end).filter(pl.col("event") == "arrived", pl.col("delay") >= least)
    both = late.join(spine, on="tailnum").filter(
        (pl.col("event_timestamp") - pl.col("at")).is_between(timedelta(0), timedelta(hours=4), closed="right")
    )
    first = both.sort("event_timestamp").unique(["tailnum"], keep="first", maintain_order=True)
    found = first.sort("delay", descending=True).head(count).sort("at")
    return [
        Connection(row["tailnum"], row["at"], row["delay"], row["airport"], {name: row[name] for name in spine.columns})
        for row in found.iter_rows(named=True)
    ]
