"""The sensor that looks for what a crash left, where there are many views: what it looks at, and how long."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from feature_assets import Entity, Field, Float64, String
from feature_assets.assets import FeatureAssets, FeatureView, feature_definitions, feature_view, reconciling
from feature_assets.assets.partitions import slices
from feature_assets.offline import OfflineStore
from feature_assets.publication import publish

DAILY = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-02-01")
ROWS = pl.DataFrame({"origin": ["JFK"], "observed_at": [datetime(2024, 1, 2, 6)], "temp": [1.0]})


def view(number: int) -> FeatureView:
    @feature_view(
        name=f"view_{number}",
        entities=[Entity("airport", join_keys={"origin": String})],
        schema=[Field("temp", Float64)],
        event_timestamp="observed_at",
        partitions_def=DAILY,
    )
    def weather() -> pl.DataFrame:
        return ROWS

    return weather


VIEWS = [view(number) for number in range(4)]


@pytest.fixture
def stores(tmp_path: Path) -> FeatureAssets:
    (tmp_path / "feature_assets.toml").write_text('durability = "process"\n')
    return FeatureAssets(config=str(tmp_path / "feature_assets.toml"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The views whose tables were read, in turn."""
    names: list[str] = []
    state = OfflineStore.state

    def noted(store: OfflineStore, spec, **more):  # type: ignore[no-untyped-def]
        names.append(spec.name)
        return state(store, spec, **more)

    monkeypatch.setattr(OfflineStore, "state", noted)
    return names


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


class Sensor:
    """That of a code server that goes on running."""

    def __init__(self, stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
        self._stores, self._instance = stores, instance
        self._repository = feature_definitions(VIEWS, config=stores.config).get_repository_def()
        self._cursor: str | None = ""

    def tick(self) -> bool:
        """Whether a run was asked for."""
        context = dg.build_sensor_context(
            instance=self._instance,
            cursor=self._cursor,
            resources={"feature_assets": self._stores},
            repository_def=self._repository,
        )
        found = self._repository.get_sensor_def("reconcile_online_store").evaluate_tick(context)
        self._cursor, self.skipped = found.cursor, found.skip_message
        return bool(found.run_requests)


def published(stores: FeatureAssets, number: int, *, whole: bool = True) -> None:
    """All the way, or as by a process that died between the stores."""
    online = stores.online() if whole else None
    publish(VIEWS[number].spec, ROWS, slices(DAILY, ["2024-01-02"]), offline=stores.offline(), online=online)


def test_a_table_that_has_not_moved_is_not_read_again(
    stores: FeatureAssets, instance: dg.DagsterInstance, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        published(stores, number)
    sensor = Sensor(stores, instance)
    assert not sensor.tick()
    assert sorted(opened) == [f"view_{number}" for number in range(4)]
    opened.clear()
    published(stores, 2, whole=False)
    assert not sensor.tick()
    assert opened == ["view_2"]
    assert sensor.tick(), "it was pending at two ticks"
    opened.clear()
    # What is left behind without a commit, as a note of who settled and died, is found in the end.
    monkeypatch.setattr(reconciling, "AGAIN", 0.0)
    sensor.tick()
    assert len(opened) == 4


def test_where_a_tick_is_too_short_for_all_the_next_one_goes_on(
    stores: FeatureAssets, instance: dg.DagsterInstance, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "SECONDS", 0.0)
    for number in range(4):
        published(stores, number, whole=number != 3)
    sensor = Sensor(stores, instance)
    ticks = [sensor.tick() for _ in range(4)]
    assert opened == [f"view_{number}" for number in range(4)]
    assert ticks == [False] * 4
    assert sensor.skipped == "Waiting for view_3 to finish."
    assert sensor.tick(), "what was pending is looked at first"
    assert opened[4:] == ["view_3"]


def test_a_tick_that_has_not_seen_all_does_not_say_that_all_is_well(
    stores: FeatureAssets, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor = Sensor(stores, instance)
    sensor.tick()
    assert sensor.skipped == "Every view is served as published."
    monkeypatch.setattr(reconciling, "SECONDS", 0.0)
    sensor.tick()
    assert sensor.skipped == "Looked at 1 of 4 views; the next tick goes on."
