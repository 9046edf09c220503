"""Two `feature-assets stream run` share a Kinesis stream over HTTP (moto), and are killed again and again."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from feature_assets.config import Settings
from feature_assets.offline import OfflineStore
from feature_assets.online import open_online_store
from feature_assets.registry import Registry, RegistryStore
from feature_assets.settlement import pending, verify
from feature_assets.spec import Entity, Field, KinesisSource, Stream, TimePartitions, ViewSpec
from feature_assets.streams.dead_letters import counted, dead_letter_store
from feature_assets.types import Float64, Int64
from tests.aws_server import aws_server

RECORDS, POISON, KILLS = 6_000, 60, 10
AT = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
CREDENTIALS = {"region_name": "us-east-1", "aws_access_key_id": "key", "aws_secret_access_key": "secret"}
TRIPS = ViewSpec(
    name="trips",
    entities=(Entity("driver", {"driver_id": Int64}),),
    features=(Field("number", Int64), Field("km", Float64)),
    event_timestamp="at",
    partitions={
        "partition": TimePartitions(cron="0 0 * * *", timezone="UTC", start="2024-01-01T00:00:00+00:00", fmt="%Y-%m-%d")
    },
    stream=Stream("rides"),
)


@pytest.fixture
def endpoint() -> Iterator[str]:
    with aws_server() as found:
        yield found


def prepared(folder: Path, endpoint: str) -> Settings:
    """A published view of the stream; the settings file says where the stream is."""
    lines = [f'{name} = "{value}"' for name, value in {**CREDENTIALS, "endpoint_url": endpoint}.items()]
    file = folder / "feature_assets.toml"
    file.write_text(
        "\n".join(['durability = "process"', "[stream]", "rows = 100", "[stream.connections.kinesis]", *lines])
    )
    settings = Settings.load(file)
    registry = Registry.of([TRIPS, KinesisSource(name="rides", stream="rides")])
    RegistryStore(settings.place(settings.registry)).publish(registry, location="test", by="test")
    return settings


def write(client: Any, numbers: range) -> None:
    """Records, and among them what is none."""
    for some in (numbers[start : start + 100] for start in range(0, len(numbers), 100)):
        records = []
        for number in some:
            row = {
                "driver_id": number % 97,
                "at": (AT + timedelta(seconds=number)).isoformat(),
                "number": number,
                "km": 1.5,
            }
            data = b"\xff{" if number % (RECORDS // POISON) == 7 else json.dumps(row).encode()
            records.append({"Data": data, "PartitionKey": f"driver {number % 97}"})
        assert client.put_records(StreamName="rides", Records=records)["FailedRecordCount"] == 0


def test_each_record_is_in_both_stores_once_whoever_dies(tmp_path: Path, endpoint: str) -> None:
    settings, dice = prepared(tmp_path, endpoint), random.Random(5)
    client = boto3.session.Session().client("kinesis", endpoint_url=endpoint, **CREDENTIALS)
    client.create_stream(StreamName="rides", ShardCount=3)
    command = [sys.executable, "-m", "feature_assets.cli", "stream", "run"]
    environment = {**os.environ, "FEATURE_ASSETS_CONFIG": str(tmp_path / "feature_assets.toml")}

    def started() -> "subprocess.Popen[bytes]":
        with (tmp_path / "consumer.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    offline = OfflineStore(settings.place(settings.offline), durability="process")
    begun = time.monotonic()
    consumers = [started(), started()]
    try:
        for turn in range(KILLS):
            write(client, range(turn * RECORDS // KILLS, (turn + 1) * RECORDS // KILLS))
            time.sleep(dice.uniform(0.5, 3.0))
            which = dice.randrange(2)
            consumers[which].kill()
            consumers[which].wait()
            consumers[which] = started()
        expected = RECORDS - POISON
        while offline.state(TRIPS) is None or offline.scan(TRIPS).select("number").collect().height < expected:
            assert all(one.poll() is None for one in consumers), (tmp_path / "consumer.log").read_text()[-2000:]
            assert time.monotonic() - begun < 300, (tmp_path / "consumer.log").read_text()[-2000:]
            time.sleep(0.2)
    finally:
        for one in consumers:
            one.terminate()
        for one in consumers:
            one.wait(30)
        client.close()
    seconds = time.monotonic() - begun
    numbers = Counter(offline.scan(TRIPS).select("number").collect()["number"].to_list())
    letters = dead_letter_store(settings)
    online = open_online_store(settings.online_url)
    try:
        assert set(numbers.values()) == {1}
        assert len(numbers) == expected
        assert sum(one.letters for one in counted(letters, "rides")) == POISON
        assert verify(TRIPS, offline, online).total == 0
        assert pending(TRIPS, offline, online) == ()
    finally:
        online.close()
    print(f"\n{len(numbers):,} records and {POISON} dead letters, each once, {KILLS} kills, {seconds:.0f} s")
