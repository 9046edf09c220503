"""The Kafka cluster inside librdkafka: brokers that answer what a test wants, over TCP."""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

import confluent_kafka

PRODUCE, FETCH, OFFSET_COMMIT, HEARTBEAT = 0, 1, 8, 12
_PRODUCER = 0


def _library() -> ctypes.CDLL:
    """The library that the client has loaded already; its mock cluster is exported."""
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    (path,) = folder.glob("librdkafka*.so*")
    found = ctypes.CDLL(str(path))
    found.rd_kafka_conf_new.restype = ctypes.c_void_p
    found.rd_kafka_new.restype = ctypes.c_void_p
    found.rd_kafka_new.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    found.rd_kafka_destroy.argtypes = [ctypes.c_void_p]
    found.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
    found.rd_kafka_mock_cluster_new.argtypes = [ctypes.c_void_p, ctypes.c_int]
    found.rd_kafka_mock_cluster_destroy.argtypes = [ctypes.c_void_p]
    found.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    found.rd_kafka_mock_cluster_bootstraps.argtypes = [ctypes.c_void_p]
    found.rd_kafka_mock_topic_create.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    found.rd_kafka_mock_group_initial_rebalance_delay_ms.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    found.rd_kafka_mock_broker_set_down.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    found.rd_kafka_mock_broker_set_up.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    found.rd_kafka_mock_push_request_errors_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int16,
        ctypes.c_size_t,
        ctypes.POINTER(ctypes.c_int),
    ]
    return found


class Cluster:
    """A cluster that runs."""

    def __init__(self, library: ctypes.CDLL, handle: int) -> None:
        self._library, self._handle = library, handle
        self.address = library.rd_kafka_mock_cluster_bootstraps(handle).decode()

    def make(self, topic: str, partitions: int) -> None:
        assert self._library.rd_kafka_mock_topic_create(self._handle, topic.encode(), partitions, 1) == 0

    def answer(self, request: int, *errors: int) -> None:
        """Answer the next requests of this kind with these errors."""
        array = (ctypes.c_int * len(errors))(*errors)
        self._library.rd_kafka_mock_push_request_errors_array(self._handle, request, len(errors), array)

    def set_down(self, broker: int) -> None:
        assert self._library.rd_kafka_mock_broker_set_down(self._handle, broker) == 0

    def set_up(self, broker: int) -> None:
        assert self._library.rd_kafka_mock_broker_set_up(self._handle, broker) == 0


@contextlib.contextmanager
def running(brokers: int = 3) -> Iterator[Cluster]:
    """A cluster, ended at the end."""
    library = _library()
    words = ctypes.create_string_buffer(512)
    owner = library.rd_kafka_new(_PRODUCER, library.rd_kafka_conf_new(), words, len(words))
    assert owner, words.value
    handle = library.rd_kafka_mock_cluster_new(owner, brokers)
    library.rd_kafka_mock_group_initial_rebalance_delay_ms(handle, 0)
    try:
        yield Cluster(library, handle)
    finally:
        library.rd_kafka_mock_cluster_destroy(handle)
        library.rd_kafka_destroy(owner)
