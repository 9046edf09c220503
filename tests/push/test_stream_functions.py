"""Functions that make rows of what is pushed: read from allowed modules, one push at a time, and known again."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from feature_assets import FeatureStore, Settings
from feature_assets.errors import ContractBroken, RequestError, TransformationRefused
from feature_assets.registry import Registry, RegistryStore
from feature_assets.spec import Entity, Field, PushSource, Stream, ViewSpec
from feature_assets.transformations import declared_function
from feature_assets.types import Float64, Int64, String, Timestamp

NOW = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
SOURCE = PushSource(
    name="raw",
    schema=(Field("driver", Int64), Field("ended", Timestamp), Field("meters", Float64), Field("id", String)),
    event_id="id",
    field_mapping={"driver": "driver_id"},
)


def long_trips(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Fewer rows than come, with the ids of their events."""
    return rows.filter(pl.col("meters") > 100).with_columns(km=pl.col("meters") / 1000)


def by_driver(rows: pl.LazyFrame) -> pl.LazyFrame:
    """A row for each driver of one push; whose event it is cannot be said of several."""
    return rows.group_by("driver_id").agg(pl.col("ended").max(), km=pl.col("meters").sum() / 1000)


def fails(rows: pl.LazyFrame) -> pl.LazyFrame:
    raise KeyError("no such thing")


def returns_nothing(rows: pl.LazyFrame) -> Any:
    return None


def opened(folder: Path, function: Any, *, allowed: bool = True) -> FeatureStore:
    view = ViewSpec(
        name="trips",
        entities=(Entity("driver", {"driver_id": Int64}),),
        features=(Field("km", Float64),),
        event_timestamp="ended",
        stream=Stream("raw", declared_function(function)),
    )
    functions = (__name__,) if allowed else ()
    made = Settings(root=folder, durability="process", push_interval_seconds=0.01, functions=functions)
    RegistryStore(made.place(made.registry)).publish(Registry.of([view, SOURCE]), location="tests", by="tests")
    return FeatureStore(made)


def row(driver: int, meters: float, event: str | None) -> dict[str, Any]:
    return {"driver": driver, "ended": NOW, "meters": meters, "id": event}


def kept(store: FeatureStore) -> list[Any]:
    view = store.registry.view("trips")
    if store.offline.state(view) is None:
        return []
    return sorted(store.offline.scan(view).select("driver_id", "km").collect().rows())


def test_a_function_may_leave_rows_out_and_events_are_known_again(tmp_path: Path) -> None:
    with opened(tmp_path, long_trips) as store:
        rows = [row(1, 500.0, "a"), row(2, 50.0, "b"), row(3, 700.0, "c")]
        assert store.push("raw", rows).wait(30)
        assert kept(store) == [(1, 0.5), (3, 0.7)]
        assert store.push("raw", [row(1, 900.0, "a"), row(4, 900.0, "d")]).wait(30)
        assert kept(store) == [(1, 0.5), (3, 0.7), (4, 0.9)]


def test_a_push_of_which_no_row_is_left_is_taken(tmp_path: Path) -> None:
    with opened(tmp_path, long_trips) as store:
        store.push("raw", [row(2, 50.0, "b")])
        assert store.push("raw", [row(3, 700.0, "c")]).wait(30)
        assert kept(store) == [(3, 0.7)]


def test_who_loses_the_ids_is_told_how_to_keep_them(tmp_path: Path) -> None:
    with opened(tmp_path, by_driver) as store:
        with pytest.raises(
            RequestError, match=r"The transform of view 'trips' drops '__event'.*Pass it on, or push one row"
        ):
            store.push("raw", [row(1, 500.0, "a"), row(1, 700.0, "b")])
        assert store.push("raw", [row(1, 500.0, "a")]).wait(30)
        assert store.push("raw", [row(2, 500.0, None), row(2, 700.0, None)]).wait(30)
        assert kept(store) == [(1, 0.5), (2, 1.2)]


@pytest.mark.parametrize(
    "function, words",
    [(fails, "The transform of view 'trips' failed: KeyError"), (returns_nothing, "returned NoneType")],
)
def test_a_function_that_fails_refuses_the_push(function: Any, words: str, tmp_path: Path) -> None:
    with opened(tmp_path, function) as store:
        with pytest.raises(ContractBroken, match=words):
            store.push("raw", [row(1, 500.0, "a")])
        assert not Path(store.settings.place(store.settings.push)).exists()


def test_a_function_of_a_module_that_is_not_allowed_is_not_run(tmp_path: Path) -> None:
    with opened(tmp_path, long_trips, allowed=False) as store, pytest.raises(TransformationRefused):
        store.push("raw", [row(1, 500.0, "a")])
