"""`push`: files of every kind, from stdin, again, and what is wrong with one."""

import io
import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from feature_assets import FeatureStore, Settings
from feature_assets.checks import InRange
from feature_assets.errors import StoreError
from feature_assets.offline import OfflineStore
from feature_assets.push import publish_waiting
from feature_assets.registry import Registry, RegistryStore
from feature_assets.spec import Entity, Field, PushSource, Stream, ViewSpec
from feature_assets.types import Float64, Int64, String

NOW = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
TRIPS = ViewSpec(
    name="driver_trips",
    entities=(Entity("driver", {"driver_id": Int64}),),
    features=(Field("km", Float64), Field("plate", String)),
    event_timestamp="ended",
    checks=(InRange("km", minimum=0),),
    stream=Stream("trips"),
)
ROWS = [
    {"driver_id": 7, "ended": f"{NOW:%Y-%m-%dT%H:%M:%SZ}", "km": 12.5, "plate": "007"},
    {"driver_id": 8, "ended": f"{NOW:%Y-%m-%dT%H:%M:%SZ}", "km": None, "plate": "B"},
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (tmp_path / "feature_assets.toml").write_text("push_interval_seconds = 0.01\n")
    monkeypatch.chdir(tmp_path)
    settings = Settings.load()
    registry = Registry.of([TRIPS, PushSource(name="trips")])
    RegistryStore(settings.place(settings.registry)).publish(registry, location="tests", by="tests")
    return settings


def kept(settings: Settings) -> list[Any]:
    rows = OfflineStore(settings.place(settings.offline)).scan(TRIPS).collect()
    return sorted(rows.select("driver_id", "ended", "km", "plate").rows())


WHOLE = [(7, NOW, 12.5, "007"), (8, NOW, None, "B")]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet", "stdin"])
def test_a_file_is_pushed_and_again_changes_nothing(
    kind: str, run: Any, project: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(f"rows.{kind}")
    frame = pl.DataFrame(ROWS)
    match kind:
        case "csv":
            frame.write_csv(path)
        case "jsonl":
            frame.write_ndjson(path)
        case "parquet":
            frame.with_columns(ended=pl.lit(NOW)).write_parquet(path)
        case _:
            path.write_text(json.dumps(ROWS))
    for _ in range(2):
        if kind == "stdin":
            monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(ROWS)))
        told = run("push", "trips", "-" if kind == "stdin" else str(path), "--json").rows
        assert told == [{"source": "trips", "rows": 2, "views": ["driver_trips"], "published": True}]
        assert kept(project) == WHOLE


def test_it_says_what_it_did(run: Any, project: Settings) -> None:
    Path("rows.json").write_text(json.dumps(ROWS))
    lines = run("push", "trips", "rows.json", "--batch", "1", "--event-id", "may").out.splitlines()
    assert lines[0].split() == ["source", "views", "rows", "in", "both", "stores"]
    assert lines[2].split() == ["trips", "driver_trips", "2", "yes"]
    Path("rows.json").write_text(json.dumps([{**row, "km": 99.0} for row in ROWS]))
    run("push", "trips", "rows.json", "--batch", "1", "--event-id", "may")
    assert kept(project) == WHOLE


WRONG: dict[str, tuple[Any, str, str]] = {
    "a value": ([ROWS[0], {**ROWS[1], "km": "far"}], "trips", "Row 1, 'km': 'far'"),
    "a field": ([{**ROWS[0], "speed": 1}], "trips", "have 'speed', which it does not take"),
    "a check": ([{**ROWS[0], "km": -1}], "trips", "Mend the rows before pushing to 'trips'"),
    "a key": ([{**ROWS[0], "driver_id": None}], "trips", "Drop those rows before pushing to 'trips'"),
    "no source": (ROWS, "trip", "There is no push source 'trip'"),
    "no rows": ([], "trips", "has no rows"),
}


@pytest.mark.parametrize("rows, source, words", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_line(rows: Any, source: str, words: str, run: Any, project: Settings) -> None:
    Path("rows.json").write_text(json.dumps(rows))
    assert words in run("push", source, "rows.json", code=1).said
    assert not Path(project.place(project.push)).exists()


def test_of_a_file_in_parts_it_is_said_how_far_it_was_taken(run: Any, project: Settings) -> None:
    Path("rows.json").write_text(json.dumps([*ROWS, {**ROWS[0], "km": -1}]))
    said = run("push", "trips", "rows.json", "--batch", "2", code=1).said
    assert "The first 2 rows were taken, the others not." in said
    assert kept(project) == WHOLE


def test_a_file_that_is_not_there(run: Any, project: Settings) -> None:
    assert "There is no file nowhere.csv" in run("push", "trips", "nowhere.csv", code=1).said


def row(driver: int, minutes: int) -> dict[str, Any]:
    return {"driver_id": driver, "ended": NOW - timedelta(minutes=minutes), "km": 1.0, "plate": "X"}


def test_who_is_erased_does_not_come_back_from_a_journal_that_somebody_left(run: Any, project: Settings) -> None:
    """The rows of a process that died wait there, and the next one publishes them."""
    place = Path(OfflineStore(project.place(project.offline)).uri(TRIPS))
    with FeatureStore(project) as store:
        store.push("trips", [row(7, 2), row(8, 2)]).wait(30)
    place.rename(place.with_name("aside"))
    place.write_text("in the way")
    with FeatureStore(project) as store:
        store.push("trips", [row(7, 1), row(8, 1)])
    place.unlink()
    place.with_name("aside").rename(place)
    run("erase", "--entity", "driver_id=7", "--yes")
    run("reconcile")
    assert {driver for driver, *_ in kept(project)} == {8}
    assert len(kept(project)) == 2


def test_who_is_erased_does_not_come_back_from_a_journal_of_a_process_that_lives(run: Any, project: Settings) -> None:
    """What it was pushed before is published first, and erased with the rest."""
    with FeatureStore(project.model_copy(update={"push_interval_seconds": 2.0})) as store:
        pushes = [store.push("trips", [row(7, minutes), row(8, minutes)]) for minutes in (1, 2, 3)]
        run("erase", "--entity", "driver_id=7", "--yes")
        assert all(one.wait(30) for one in pushes)
        assert {driver for driver, *_ in kept(project)} == {8}
        assert store.get_online_features(["driver_trips:km"], {"driver_id": [7, 8]})["km"] == [None, 1.0]
    assert {driver for driver, *_ in kept(project)} == {8}


def test_who_is_erased_does_not_come_back_from_a_journal_of_another_machine(run: Any, project: Settings) -> None:
    """Which this one does not see. What was acknowledged there waits, for its process has died."""
    other = project.model_copy(update={"push": "journals-of-the-other"})
    place = Path(OfflineStore(project.place(project.offline)).uri(TRIPS))
    with FeatureStore(other) as store:
        store.push("trips", [row(7, 2), row(8, 2)]).wait(30)
    place.rename(place.with_name("aside"))
    place.write_text("in the way")
    with FeatureStore(other) as store:
        store.push("trips", [row(driver, 1) for driver in (7, 8, 9)])
    place.unlink()
    place.with_name("aside").rename(place)
    run("erase", "--entity", "driver_id=7", "--yes")
    assert "No view knows driver_id=9" in run("erase", "--entity", "driver_id=9", "--yes").said
    assert {driver for driver, *_ in kept(project)} == {8}
    with FeatureStore(other) as store:
        assert store.push("trips", [row(8, 0)]).wait(30)
        latest = time.monotonic() + 30
        while len(kept(project)) < 3:
            assert time.monotonic() < latest
            time.sleep(0.05)
        assert {driver for driver, *_ in kept(project)} == {8}
        assert store.get_online_features(["driver_trips:km"], {"driver_id": [7, 8, 9]})["km"] == [None, 1.0, None]


def test_nobody_is_erased_while_rows_wait_that_cannot_be_published(project: Settings) -> None:
    with FeatureStore(project) as store:
        store.push("trips", [row(7, 2)]).wait(30)
        place = Path(store.offline.uri(TRIPS))
        place.rename(place.with_name("aside"))
        place.write_text("in the way")
        waits = store.push("trips", [row(7, 1)])
        with pytest.raises(StoreError):
            publish_waiting(project, store.offline, store.online, seconds=0.3)
        place.unlink()
        place.with_name("aside").rename(place)
        assert waits.wait(30)
        assert len(kept(project)) == 2
