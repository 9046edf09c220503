"""A view of a logged service is raised to a version with another type: what becomes of the log that there is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from feature_assets import FeatureStore
from feature_assets.served.days import changed_days
from feature_assets.served.shape import log_store, shape_of
from feature_assets.served.writing import Served, ServedLog
from feature_assets.spec import Entity, Field, LoggingConfig, ServiceSpec, ViewProjection, ViewSpec
from feature_assets.types import Float64, Int64, String, microseconds
from tests.server.conftest import HOUR, NOW, Platform, view

BEFORE = view("weather", Field("temp", Float64), Field("wind", Float64), ttl=6 * HOUR)
SERVICE = ServiceSpec(name="weathered", features=(ViewProjection("weather"),), logging=LoggingConfig())


def raised(*features: Field, key: Any = String) -> ViewSpec:
    return ViewSpec(
        name="weather",
        version=2,
        entities=(Entity("airport", {"origin": key}),),
        features=features,
        event_timestamp=BEFORE.event_timestamp,
        ttl=6 * HOUR,
    )


RETYPED = raised(Field("temp", Float64), Field("wind", Int64))
REKEYED = raised(Field("temp", Float64), Field("wind", Float64), key=Int64)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Platform]:
    platform = Platform(tmp_path)
    platform.add(BEFORE, ("JFK", NOW - HOUR, 40.5, 11.0), ("7", NOW - HOUR, 1.5, 2.5))
    platform.add(SERVICE)
    platform.past(BEFORE, ("JFK", NOW - HOUR, 40.5, 11.0), ("7", NOW - HOUR, 1.5, 2.5))
    platform.publish()
    yield platform
    platform.store.close()


def serve(made: Platform, request: str, *keys: Any) -> None:
    """Have an answer logged, as a server that has taken up what is published."""
    log = ServedLog(log_store(made.settings), seconds=60, max_bytes=1 << 20)
    with FeatureStore(made.settings) as store:
        entities = {"origin": list(keys)}
        answer = store.get_online_features("weathered", entities)
        shape, digest = shape_of(store.registry, "weathered"), store.registry.digest
        log.take(Served(shape, digest, request, microseconds(NOW), entities, answer, 1))
    log.close()
    assert log.counts.written == {"weathered": len(keys)}


def change(made: Platform, to: ViewSpec, *given: tuple[Any, ...]) -> None:
    made.objects.remove(BEFORE)
    made.add(to, *given)
    made.past(to, *given)
    made.publish()


@pytest.fixture
def retyped(made: Platform) -> Platform:
    """Served once with a wind of floats, and once with one of whole numbers."""
    serve(made, "before", "JFK", "nowhere")
    change(made, RETYPED, ("JFK", NOW - HOUR, 40.5, 12))
    serve(made, "after", "JFK")
    return made


def test_every_row_is_read_and_of_another_type_is_no_value(retyped: Platform) -> None:
    with FeatureStore(retyped.settings) as store:
        rows = store.get_served_features("weathered", statuses=True).collect().sort("request_id", "request_row")
    assert rows.schema["wind"] == pl.Int64
    assert rows.select("request_id", "origin", "temp", "temp__status", "wind", "wind__status").rows() == [
        ("after", "JFK", 40.5, "PRESENT", 12, "PRESENT"),
        ("before", "JFK", 40.5, "PRESENT", None, None),
        ("before", "nowhere", None, "NOT_FOUND", None, None),
    ]
    assert rows["registry_digest"].n_unique() == 2, "by which registry a row was answered tells the two apart"


def test_skew_compares_what_is_of_the_type_that_the_feature_has(retyped: Platform) -> None:
    with FeatureStore(retyped.settings) as store:
        found = {one.feature: (one.rows, one.equal) for one in store.skew("weathered")}
    assert found == {"temp": (3, 3), "wind": (1, 1)}


def test_what_was_served_under_keys_of_another_type_is_read_and_not_compared(made: Platform) -> None:
    serve(made, "before", "JFK", "7")
    change(made, REKEYED, (7, NOW - HOUR, 1.5, 2.5))
    serve(made, "after", 7)
    with FeatureStore(made.settings) as store:
        rows = store.get_served_features("weathered").collect().sort("request_id", "request_row")
        assert rows.select("request_id", "origin", "temp").rows() == [
            ("after", 7, 1.5),
            ("before", None, 40.5),
            ("before", None, 1.5),
        ]
        assert {one.feature: (one.rows, one.equal) for one in store.skew("weathered")} == {
            "temp": (1, 1),
            "wind": (1, 1),
        }


def test_training_on_the_log_keeps_every_row(retyped: Platform) -> None:
    with FeatureStore(retyped.settings) as store:
        spine = store.get_served_features("weathered").select("request_id", "origin", "served_at").collect()
        rows = store.get_historical_features(spine, "weathered", timestamp_column="served_at").collect()
    assert sorted(rows.select("request_id", "origin", "wind").rows(), key=str) == [
        ("after", "JFK", 12),
        ("before", "JFK", 12),
        ("before", "nowhere", None),
    ]


def test_the_days_of_both_tables_are_one_asset(retyped: Platform) -> None:
    changes = changed_days("weathered", log_store(retyped.settings), {})
    assert [(one.day, one.rows) for one in changes.days] == [(f"{NOW:%Y-%m-%d}", 3)]
    assert sorted(changes.versions) == [1, 2]
    assert changes.rows == 3
