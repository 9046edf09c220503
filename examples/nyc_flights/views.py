"""The feature views of the flights: what is known about a departure half an hour before it leaves.

Each view is a daily asset over the functions in `features`; days are UTC. Event times are honest: a delay at arrival is
known when the plane has arrived.
"""

from datetime import UTC, datetime, timedelta

import dagster as dg
import polars as pl

from examples.nyc_flights import features
from feature_assets import (
    AllowedValues,
    Bool,
    Entity,
    FeatureService,
    Field,
    Float64,
    InRange,
    Int64,
    NotNull,
    OnDemandFeatureView,
    RequestSource,
    RowCount,
    String,
    Timestamp,
    feature_view,
)

TEAM = "team:flight-ops"
# The flights of 31 December land on 1 January.
DAYS = dg.DailyPartitionsDefinition("2013-01-01", end_date="2014-01-02")
PRESENT = datetime(2013, 12, 31, tzinfo=UTC)
"""The weather ends on 30 December. From here on the demo takes this moment for now."""

airport = Entity("airport", join_keys={"origin": String}, description="A departure airport, by FAA code.")
aircraft = Entity("aircraft", join_keys={"tailnum": String}, description="An aeroplane, by its registration.")
carrier = Entity("carrier", join_keys={"carrier": String}, description="An airline, by its two letters.")
route = Entity("route", join_keys={"origin": String, "dest": String}, description="From one airport to another.")


def _window(context: dg.AssetExecutionContext) -> tuple[datetime, datetime]:
    return context.partition_time_window.start, context.partition_time_window.end


@feature_view(
    entities=[airport],
    partitions_def=DAYS,
    event_timestamp="observed_at",
    ttl=timedelta(hours=6),
    schema=[
        Field("temp", Float64, description="Air temperature in °F"),
        Field("dewp", Float64, description="Dew point in °F"),
        Field("humid", Float64, description="Relative humidity in %"),
        Field("wind_dir", Int64, description="Where the wind comes from, in degrees"),
        Field("wind_speed", Float64, description="Wind speed in mph"),
        Field("wind_gust", Float64, description="Speed of gusts in mph"),
        Field("precip", Float64, description="Precipitation of the hour in inches"),
        Field("pressure", Float64, description="Sea level pressure in millibars"),
        Field("visib", Float64, description="Visibility in miles"),
    ],
    checks=[
        AllowedValues("origin", ("EWR", "JFK", "LGA")),
        InRange("temp", minimum=-40, maximum=130),
        InRange("wind_speed", minimum=0, maximum=features.FASTEST_WIND),
        NotNull("temp", severity="warn"),
    ],
    owners=[TEAM],
    group_name="flights",
)
def airport_weather(context: dg.AssetExecutionContext, weather_observations: pl.LazyFrame) -> pl.LazyFrame:
    """Hourly weather at the departure airport."""
    start, end = _window(context)
    return features.airport_weather(weather_observations).filter(
        pl.col("observed_at").is_between(start, end, closed="left")
    )


@feature_view(
    entities=[airport],
    partitions_def=DAYS,
    event_timestamp="as_of",
    ttl=timedelta(hours=3),
    schema=[
        Field("departures_2h", Int64, description="Departures of the last two hours"),
        Field("mean_dep_delay_2h", Float64, description="Their mean delay in minutes"),
        Field("overdue_3h", Int64, description="Scheduled in the last three hours and not gone yet"),
    ],
    checks=[InRange("departures_2h", minimum=0), InRange("overdue_3h", minimum=0)],
    owners=[TEAM],
    group_name="flights",
)
def airport_departures(context: dg.AssetExecutionContext, flights: pl.LazyFrame) -> pl.LazyFrame:
    """How departures go at each airport, every 15 minutes."""
    return features.airport_departures(flights, *_window(context))


@feature_view(
    entities=[aircraft],
    partitions_def=DAYS,
    event_timestamp="arrived_at",
    ttl=timedelta(days=28),
    schema=[
        Field("last_arrival_at", Timestamp, description="When the plane last arrived"),
        Field("last_arr_delay", Int64, description="By how many minutes it was late then"),
        Field("last_dest", String, description="Where that was"),
        Field("mean_arr_delay_5", Float64, description="Mean delay of its last five arrivals, in minutes"),
        Field("arrivals_7d", Int64, description="Arrivals in seven days"),
    ],
    checks=[NotNull("last_arr_delay"), InRange("arrivals_7d", minimum=1)],
    owners=[TEAM],
    group_name="flights",
)
def aircraft_history(context: dg.AssetExecutionContext, flights: pl.LazyFrame) -> pl.LazyFrame:
    """What was known of this plane's earlier flights: a row at each of its arrivals."""
    return features.aircraft_history(flights, *_window(context))


def _performance(prefix: str, days: tuple[int, ...]) -> list[Field]:
    return [
        field
        for n in days
        for field in (
            Field(f"{prefix}_arrivals_{n}d", Int64, description=f"Arrivals in {n} days"),
            Field(f"{prefix}_mean_arr_delay_{n}d", Float64, description="Their mean delay in minutes"),
            Field(f"{prefix}_share_late_{n}d", Float64, description="The share that was more than 15 minutes late"),
        )
    ]


@feature_view(
    entities=[carrier],
    partitions_def=DAYS,
    event_timestamp="as_of",
    ttl=timedelta(days=2),
    schema=_performance("carrier", (1, 7, 28)),
    checks=[InRange("carrier_share_late_28d", minimum=0, maximum=1)],
    owners=[TEAM],
    group_name="flights",
)
def carrier_performance(context: dg.AssetExecutionContext, flights: pl.LazyFrame) -> pl.LazyFrame:
    """How punctual each carrier was in 1, 7 and 28 days, every hour."""
    return features.carrier_performance(flights, *_window(context))


@feature_view(
    entities=[route],
    partitions_def=DAYS,
    event_timestamp="as_of",
    ttl=timedelta(days=7),
    schema=_performance("route", (28,)),
    checks=[RowCount(minimum=1, severity="warn")],
    owners=[TEAM],
    group_name="flights",
)
def route_performance(context: dg.AssetExecutionContext, flights: pl.LazyFrame) -> pl.LazyFrame:
    """How punctual each route was in 28 days, every night."""
    return features.route_performance(flights, *_window(context))


departure = RequestSource(
    "departure",
    (
        Field("scheduled_departure", Timestamp, description="When the flight is to leave the gate"),
        Field("runway_heading", Float64, description="Of the runway in use, in degrees from true north"),
    ),
)

flight_context = OnDemandFeatureView(
    "flight_context",
    sources=[
        departure,
        airport_weather[["wind_speed", "wind_dir", "temp", "precip"]],
        aircraft_history[["last_arrival_at"]],
        carrier_performance[["carrier_mean_arr_delay_1d", "carrier_mean_arr_delay_28d"]],
    ],
    schema=[
        Field("crosswind", Float64, description="Wind across the runway in mph"),
        Field("icing", Bool, description="Whether it freezes and rains"),
        Field("minutes_since_last_arrival", Int64, description="From the plane's last arrival to this departure"),
        Field("carrier_delay_trend", Float64, description="Mean delay of a day over that of 28, in minutes"),
        Field("scheduled_hour", Int64, description="New York's hour of the departure"),
        Field("scheduled_weekday", Int64, description="1 is Monday"),
    ],
    expressions=features.FLIGHT_CONTEXT,
    description="What this departure meets, from the request and from other features.",
    owners=[TEAM],
    group_name="flights",
)

departure_delay = FeatureService(
    "departure_delay",
    [airport_weather, airport_departures, aircraft_history, carrier_performance, route_performance, flight_context],
    description="All that the model of late arrivals is given.",
    owners=[TEAM],
    group_name="flights",
)
