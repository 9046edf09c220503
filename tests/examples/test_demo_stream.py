"""`make demo-stream` without its weeks of batches: its events mean what the batch side computes, and go through its broker."""

import json
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta

import polars as pl
from confluent_kafka import Producer

from examples.nyc_flights import data, features, replay
from examples.nyc_flights.demo import ROOT
from examples.nyc_flights.demo_stream import _latency, broker, kept_at
from examples.nyc_flights.streamed import arrivals
from feature_assets import FeatureStore, Settings, TableMissing

HOUR = timedelta(hours=1)


def test_a_day_of_events_gives_the_rows_of_the_batch():
    start, end = replay.DAY, replay.DAY + timedelta(days=1)
    streamed = arrivals(replay.events(start, end).lazy()).collect().sort("tailnum", "arrived_at")
    computed = features.aircraft_history(data.flights(), start, end).collect().sort("tailnum", "arrived_at")
    assert streamed.equals(computed.select(streamed.columns))
    assert streamed.height > 800


def test_planes_that_are_shown_land_late_and_leave_again():
    shown = replay.connections()
    assert len(shown) == 4
    for one in shown:
        assert one.delay >= 60
        assert one.landed < one.next["event_timestamp"] <= one.landed + 4 * HOUR
        assert one.next["tailnum"] == one.tailnum


def test_an_hour_of_events_reaches_both_stores(tmp_path, monkeypatch):
    def run(*words: str) -> str:
        command = [sys.executable, "-m", "feature_assets.cli", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    events = replay.events(replay.DAY + 12 * HOUR, replay.DAY + 15 * HOUR)
    rows = arrivals(events.lazy()).collect().sort("arrived_at")
    assert rows.height > 20
    with broker(tmp_path) as address:
        for name, value in kept_at(tmp_path, address).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(ROOT)
        run("apply", "--yes")
        producer = Producer({"bootstrap.servers": address, "log_level": "0"})
        for event in events.to_dicts():
            producer.produce("flights", json.dumps({**event, "at": event["at"].isoformat()}), key=event["tailnum"])
        assert producer.flush(20) == 0
        command = [sys.executable, "-m", "feature_assets.cli", "stream", "run", "aircraft_history"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as consumer:
            latest = rows.unique("tailnum", keep="last", maintain_order=True)
            found: list[object] = []
            with FeatureStore(Settings.load()) as store:
                while found != latest["last_arrival_at"].to_list():
                    assert consumer.poll() is None
                    with suppress(TableMissing):
                        planes = {"tailnum": latest["tailnum"].to_list()}
                        answer = store.get_online_features(["aircraft_history:last_arrival_at"], planes)
                        found = answer.to_dict()["last_arrival_at"]
            consumer.terminate()
        assert consumer.returncode == 0
    assert json.loads(run("verify", "aircraft_history", "--json"))[0]["differences"] == 0
    told = json.loads(run("stream", "status", "aircraft_history", "--json"))[0]
    assert told["dead_letters"] == 0


def test_the_plot_counts_every_arrival():
    seconds = [0.1] * 50 + [0.2] * 30 + [0.9] * 20
    table = _latency(seconds)
    assert "100 arrivals: half within 0.20 s, 99 % within 0.90 s" in str(table.title)
    counts = [int(cell) for cell in table.columns[2].cells]
    assert sum(counts) == 100
    assert pl.Series(counts).max() == 50
