"""Small declarations for the tests of this folder."""

from datetime import timedelta
from typing import Any

import polars as pl

from feature_assets.expressions import to_data
from feature_assets.registry import Registry
from feature_assets.spec import (
    Entity,
    Expressions,
    Field,
    FileSource,
    OnDemandViewSpec,
    RequestSource,
    ServiceSpec,
    TimePartitions,
    ViewProjection,
    ViewSpec,
)
from feature_assets.types import Float64, Int64, String

AIRPORT = Entity("airport", {"origin": String})
DAILY = TimePartitions(cron="0 0 * * *", timezone="UTC", start="2013-01-01T00:00:00+00:00", fmt="%Y-%m-%d")


def view(name: str = "weather", **changed: Any) -> ViewSpec:
    """Weather at an airport, two features; with these things different."""
    declared: dict[str, Any] = {
        "entities": (AIRPORT,),
        "features": (Field("temp", Float64), Field("wind", Float64)),
        "event_timestamp": "observed_at",
        "ttl": timedelta(hours=6),
        "partitions": {"partition": DAILY},
        "code_version": "11112222",
    }
    return ViewSpec(name=name, **declared | changed)


def on_demand(name: str = "chill", **changed: Any) -> OnDemandViewSpec:
    """Computed from `weather` and a request field."""
    declared: dict[str, Any] = {
        "sources": (ViewProjection("weather"),),
        "request": (RequestSource("plan", (Field("altitude", Int64),)),),
        "features": (Field("felt", Float64),),
        "transformation": Expressions({"felt": to_data(pl.col("temp") - pl.col("wind"), "chill")}),
    }
    return OnDemandViewSpec(name=name, **declared | changed)


def service(name: str = "delay", *features: ViewProjection, **changed: Any) -> ServiceSpec:
    """By default all of `weather`."""
    return ServiceSpec(name=name, features=features or (ViewProjection("weather"),), **changed)


def source(name: str = "files", **changed: Any) -> FileSource:
    return FileSource(name=name, **{"path": "/data/*.parquet"} | changed)


def whole() -> Registry:
    """One of each kind."""
    return Registry.of([view(), on_demand(), service(), source()])
