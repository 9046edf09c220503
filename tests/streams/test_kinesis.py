"""A Kinesis stream reaches both stores exactly once: over HTTP (moto), and with the resharding that emulators lack."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any

import boto3
import httpx
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from feature_assets.config import Settings
from feature_assets.errors import ConfigurationError, DeclarationError, RecordsLost
from feature_assets.objects import open_objects
from feature_assets.offline import OfflineStore
from feature_assets.online import open_online_store
from feature_assets.settlement import pending, verify
from feature_assets.spec import Entity, Field, KinesisSource, Stream, TimePartitions, ViewSpec
from feature_assets.streams import kinesis
from feature_assets.streams.admission import Intake
from feature_assets.streams.consumer import Consumer, Limits
from feature_assets.streams.dead_letters import counted, dead_letter_store
from feature_assets.streams.kinesis import KinesisLog
from feature_assets.streams.kinesis_calls import Calls
from feature_assets.streams.log import Shard
from feature_assets.streams.members import Members
from feature_assets.streams.sink import Sink, Stores
from feature_assets.types import Float64, Int64, String
from tests.aws_server import aws_server
from tests.streams import kinesis_stream

NOW = datetime.now(UTC).replace(microsecond=0)
TRIPS = ViewSpec(
    name="trips",
    entities=(Entity("driver", {"driver_id": Int64}),),
    features=(Field("km", Float64), Field("via", String)),
    event_timestamp="at",
    partitions={
        "partition": TimePartitions(cron="0 0 * * *", timezone="UTC", start="2024-01-01T00:00:00+00:00", fmt="%Y-%m-%d")
    },
    stream=Stream("rides"),
)
RIDES = KinesisSource(name="rides", stream="rides", key_field="via")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else reads these shards: there is nothing to wait for between two reads."""
    monkeypatch.setattr(kinesis, "_BETWEEN", 0.0)
    monkeypatch.setattr(kinesis, "_SHARDS_EVERY", 0.0)


class World:
    """The stores, and consumers of a stream as processes have them."""

    def __init__(self, folder: Path, source: KinesisSource = RIDES) -> None:
        self.settings = Settings(root=folder, durability="process")
        self.source = source
        self.offline = OfflineStore(self.settings.place(self.settings.offline), durability="process")
        self.letters = dead_letter_store(self.settings)
        self.online = open_online_store(self.settings.online_url)
        self.objects = open_objects(folder / "objects")
        self.time = 0.0

    def consumer(self, calls: Any) -> Consumer:
        stores = Stores(OfflineStore(self.offline.root, durability="process"), self.online, self.letters)

        def opened(listener: Consumer) -> KinesisLog:
            members = Members(self.objects, "kinesis/rides/members", beat=0.0, clock=lambda: self.time)
            return KinesisLog(self.source, "rides", calls, self.objects, listener, members=members)

        sink = Sink(Intake(self.source, (TRIPS,), self.settings), stores)
        return Consumer("rides", sink, opened, limits=Limits(rows=50, seconds=0), start=self.source.start)

    def kms(self) -> list[float]:
        if self.offline.state(TRIPS) is None:
            return []
        return self.offline.scan(TRIPS).select("km").collect()["km"].sort().to_list()

    def is_right(self) -> bool:
        if self.offline.state(TRIPS) is None:
            return True
        return verify(TRIPS, self.offline, self.online).total == 0 and pending(TRIPS, self.offline, self.online) == ()


def steps(consumer: Consumer, count: int) -> None:
    for _ in range(count):
        consumer._log.poll = _without_waiting(consumer._log)  # type: ignore[method-assign]
        consumer.step()


def run(world: World, consumer: Consumer, count: int) -> None:
    """Long enough for whoever is dead to count as gone."""
    for _ in range(count):
        world.time += 3.0
        steps(consumer, 1)


def _without_waiting(log: Any) -> Any:
    return lambda rows, bytes, seconds: type(log).poll(log, rows, bytes, 0)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.online.close()


def ride(km: float, driver: int = 1) -> dict[str, Any]:
    return {"driver_id": driver, "at": NOW.isoformat(), "km": km}


# Resharding, members and failures, on a stream that keeps to what is documented.


def test_parents_are_read_before_children(world: World) -> None:
    stream = kinesis_stream.Stream()
    (parent,) = stream.open()
    for km in range(120):
        stream.put(parent, ride(km), key="old")
    left, right = stream.reshard(parent, into=2)
    stream.put(left, ride(1000), key="new")
    (merged,) = stream.reshard(left, right, into=1)
    stream.put(merged, ride(2000), key="newest")
    consumer = world.consumer(stream)
    seen: list[int] = []
    for _ in range(12):
        steps(consumer, 1)
        seen.append(len(world.kms()))
        if 1000.0 in world.kms():
            assert seen[-1] >= 121
        if 2000.0 in world.kms():
            assert seen[-1] == 122
    assert world.kms() == [*map(float, range(120)), 1000.0, 2000.0]
    assert world.is_right()
    latest = world.offline.scan(TRIPS).filter(pl.col("km") == 2000).collect()
    assert latest["via"].to_list() == ["newest"]
    done = [path.rpartition("/")[2].partition(".")[0] for path in world.objects.list("kinesis/rides/done")]
    assert done == [parent, left, right]


ACTION = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 7)),
    st.tuples(st.just("reshard"), st.integers(0, 7)),
    st.tuples(st.just("step"), st.integers(0, 1)),
    st.tuples(st.just("die"), st.integers(0, 1)),
    st.tuples(st.just("fail"), st.integers(0, 1)),
    st.tuples(st.just("wait"), st.just(0)),
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(ACTION, max_size=24))
def test_each_record_is_in_the_stores_once_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int]]
) -> None:
    """Two consumers come, die and come again, while shards are split and merged and calls fail."""
    world = World(tmp_path_factory.mktemp("world"))
    stream = kinesis_stream.Stream(2)
    consumers: list[Consumer | None] = [world.consumer(stream), None]
    written: list[float] = []
    for what, which in actions:
        world.time += 1.0
        open_ = stream.open()
        if what == "put":
            for _ in range(3):
                written.append(float(len(written)))
                stream.put(open_[which % len(open_)], ride(written[-1], len(written) % 3))
        elif what == "reshard":
            at = which % len(open_)
            stream.reshard(*open_[at : at + 1 + which % 2], into=1 + (which // 2) % 2)
        elif what == "fail":
            stream.failing = [kinesis_stream.FAILURES[which]]
        elif what == "wait":
            world.time += 30.0
        elif what == "die":
            consumers[which] = None
        else:
            stream.failing = stream.failing if consumers[which] else []
            consumers[which] = consumers[which] or world.consumer(stream)
            steps(consumers[which], 1)  # type: ignore[arg-type]
    world.time += 100.0
    stream.failing = []
    run(world, world.consumer(stream), 24)
    assert world.kms() == written
    assert world.is_right()
    world.online.close()


def test_members_share_the_shards_and_take_over_from_who_is_gone(world: World) -> None:
    stream = kinesis_stream.Stream(32)
    first, second = world.consumer(stream), world.consumer(stream)
    for _ in range(2):
        world.time += 1.0
        steps(first, 1)
        steps(second, 1)
    assert first.progress.shards.isdisjoint(second.progress.shards)
    assert len(first.progress.shards | second.progress.shards) == 32
    assert len(first.progress.shards) in range(1, 32)
    for _ in range(4):
        world.time += 5.0
        steps(first, 1)
    assert len(first.progress.shards) == 32, "the second one has not been seen for longer than members live"
    for shard in stream.open():
        stream.put(shard, ride(1.0))
    # It was only asleep, and takes its shards for its own still: the tables know better.
    steps(first, 2)
    steps(second, 4)
    assert world.kms() == [1.0] * 32
    assert world.is_right()


def test_who_leaves_hands_over_at_once(world: World) -> None:
    stream = kinesis_stream.Stream(4)
    first, second = world.consumer(stream), world.consumer(stream)
    for _ in range(2):
        world.time += 1.0
        steps(first, 1)
        steps(second, 1)
    second.run(lambda: True)
    world.time += 1.0
    steps(first, 1)
    assert len(first.progress.shards) == 4


def test_latest_begins_where_it_was_first_read_and_leaves_nothing_out_after(tmp_path: Path) -> None:
    world = World(tmp_path, KinesisSource(name="rides", stream="rides", key_field="via", start="latest"))
    stream = kinesis_stream.Stream(2)
    old, kept = stream.open()
    stream.put(old, ride(1.0))
    stream.put(kept, ride(2.0))
    (new,) = stream.reshard(old, into=1)
    world.consumer(stream)  # dies before it has read anything
    stream.put(kept, ride(3.0))
    stream.put(new, ride(4.0))
    (newer,) = stream.reshard(new, into=1)
    stream.put(newer, ride(5.0))
    run(world, world.consumer(stream), 12)
    assert world.kms() == [3.0, 4.0, 5.0]
    world.online.close()


def test_a_shard_that_vanished_before_its_end_is_named(world: World) -> None:
    stream = kinesis_stream.Stream()
    (shard,) = stream.open()
    stream.put(shard, ride(1.0))
    consumer = world.consumer(stream)
    steps(consumer, 1)
    stream.put(shard, ride(2.0))
    (child,) = stream.reshard(shard, into=1)
    stream.put(child, ride(3.0))
    stream.forget(shard, 2)
    world.time += 1.0
    with pytest.raises(RecordsLost, match=f"shard rides/{shard} is no longer there"):
        steps(consumer, 2)
    run(world, world.consumer(stream), 8)
    assert world.kms() == [1.0, 3.0]


def test_what_a_shard_no_longer_has_is_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    stream = kinesis_stream.Stream()
    (shard,) = stream.open()
    first = stream.put(shard, ride(1.0))
    steps(world.consumer(stream), 1)
    stream.put(shard, ride(2.0))
    third = stream.put(shard, ride(3.0))
    stream.forget(shard, 2)
    run(world, world.consumer(stream), 8)
    assert world.kms() == [1.0, 3.0]
    assert f"shard={shard} begins at position {third}, and what is published is up to {first}" in caplog.text


def test_a_stream_that_was_made_anew_is_noticed_and_read_from_its_start_when_told(world: World) -> None:
    old = kinesis_stream.Stream()
    (shard,) = old.open()
    old.put(shard, ride(1.0))
    (child,) = old.reshard(shard, into=1)
    old.put(child, ride(2.0))
    run(world, world.consumer(old), 4)
    new = kinesis_stream.Stream(2, first=kinesis_stream.FIRST * 2)
    for at, name in enumerate(new.open()):
        new.put(name, ride(10.0 + at))
    with pytest.raises(RecordsLost, match="made anew"):
        run(world, world.consumer(new), 8)
    sink = Sink(Intake(world.source, (TRIPS,), world.settings), Stores(world.offline, world.online, world.letters))
    shards = [Shard("rides", name) for name in new.open()]
    sink.assigned(shards)
    for one in shards:
        sink.move(one, -1)
    run(world, world.consumer(new), 8)
    assert world.kms() == [1.0, 2.0, 10.0, 11.0]
    assert world.is_right()


# Over HTTP.


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_server() as found:
        yield found


CREDENTIALS = {"region_name": "us-east-1", "aws_access_key_id": "key", "aws_secret_access_key": "secret"}


def calls(endpoint: str, source: KinesisSource = RIDES, **more: str) -> Calls:
    said = {**CREDENTIALS, "endpoint_url": endpoint, **more}
    return Calls(source, {"kinesis": {name: SecretStr(value) for name, value in said.items()}})


def faults(endpoint: str, *wanted: tuple[str, str, float]) -> None:
    told = [{"operation": operation, "how": how, "share": share, "only": ""} for operation, how, share in wanted]
    httpx.put(f"{endpoint}/_faults", json=told).raise_for_status()


@pytest.fixture
def client(endpoint: str) -> Iterator[Any]:
    made = boto3.session.Session().client("kinesis", endpoint_url=endpoint, **CREDENTIALS)
    yield made
    faults(endpoint)
    for name in made.list_streams()["StreamNames"]:
        made.delete_stream(StreamName=name)
    made.close()


def test_a_stream_over_http_reaches_both_stores_once(world: World, endpoint: str, client: Any) -> None:
    client.create_stream(StreamName="rides", ShardCount=1)
    (shard,) = client.list_shards(StreamName="rides")["Shards"]
    client.split_shard(StreamName="rides", ShardToSplit=shard["ShardId"], NewStartingHashKey=str(2**127))
    for km in range(60):
        data = b"poison" if km == 30 else json.dumps(ride(km, km % 5)).encode()
        client.put_record(StreamName="rides", Data=data, PartitionKey=f"k{km}")
    wrong = [("GetRecords", "throttle", 0.2), ("GetRecords", "drop", 0.2), ("GetShardIterator", "503", 0.3)]
    faults(endpoint, *wrong, ("ListShards", "500", 0.3))
    for _ in range(2):
        # The second one begins where the tables are, and finds nothing new.
        consumer = world.consumer(calls(endpoint))
        stop = Event()
        running = Thread(target=consumer.run, args=(stop.is_set,))
        running.start()
        while len(world.kms()) < 59 or (consumer.progress.batches == 0 and _ == 0):
            assert running.is_alive()
        stop.set()
        running.join()
        world.time += 100.0
    assert world.kms() == [float(km) for km in range(60) if km != 30]
    assert [one.letters for one in counted(world.letters, "rides")] == [1]
    assert world.is_right()
    via = world.offline.scan(TRIPS).filter(pl.col("km") == 7).collect()["via"].to_list()
    assert via == ["k7"]


def test_what_is_wrong_with_the_way_to_a_stream_is_said(world: World, endpoint: str, client: Any) -> None:
    with pytest.raises(ConfigurationError, match="There is no stream 'rides'"):
        world.consumer(calls(endpoint))
    with pytest.raises(ConfigurationError, match="'region' is not known"):
        calls(endpoint, region="x")
    with pytest.raises(DeclarationError, match="is no stream; give its name"):
        KinesisSource(name="rides", stream="rides/1")


def test_a_sequence_number_is_a_position(world: World) -> None:
    stream = kinesis_stream.Stream()
    (shard,) = stream.open()
    position = stream.put(shard, ride(1.0))
    assert position > 2**63
    steps(world.consumer(stream), 1)
    name = str(Shard("rides", shard))
    assert world.offline.streamed(TRIPS, "rides", [name])[name].position == position
