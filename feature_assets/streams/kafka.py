"""Kafka as a log: topics and partitions, read by a member of a consumer group. The one place that knows librdkafka.

What is committed to the group is for whoever watches its lag. Where a partition is read from, the listener says.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any, Final, TypeAlias

from pydantic import SecretStr

from feature_assets.errors import ConfigurationError, StoreUnavailable
from feature_assets.spec import KafkaSource
from feature_assets.streams.log import Bounds, Lag, Listener, OutOfRange, Records, Shard

kafka: Any = None
with suppress(ImportError):
    kafka = import_module("confluent_kafka")

log = logging.getLogger(__name__)

_OURS: Final = {
    "enable.auto.commit": "offsets are kept where the rows are",
    "enable.auto.offset.store": "offsets are kept where the rows are",
    "auto.offset.reset": "a source says it, with start=",
    "group.id": "a source says it, with group=",
    "plugin.library.paths": "it loads code",
}
_ASKED_SECONDS: Final = 10.0
_AHEAD_KILOBYTES: Final = 16_384
_NOT_ALLOWED: Final = (
    "TOPIC_AUTHORIZATION_FAILED",
    "GROUP_AUTHORIZATION_FAILED",
    "CLUSTER_AUTHORIZATION_FAILED",
    "_AUTHENTICATION",
)

Message: TypeAlias = Any


def properties(source: KafkaSource, connections: Mapping[str, Mapping[str, SecretStr]]) -> dict[str, str]:
    """What librdkafka is told about where the source lies, in clear, for its client only.

    Raises:
        ConfigurationError: no such connection is set, it has no address, or a property that would lose or double records.
    """
    found = connections.get(source.connection)
    place = f"[stream.connections.{source.connection}]"
    if found is None:
        known = ", ".join(sorted(connections)) or "none"
        raise ConfigurationError(
            f"KafkaSource '{source.name}' is reached by the connection '{source.connection}', which is not set (set: {known}). "
            f'Set it in feature_assets.toml: {place} "bootstrap.servers" = "host:9092"'
        )
    for name, why in _OURS.items():
        if name in found:
            raise ConfigurationError(f"{place} sets {name}, which is not for a connection to say: {why}. Leave it out.")
    if "bootstrap.servers" not in found:
        raise ConfigurationError(
            f'{place} says not where the brokers are. Set "bootstrap.servers" = "host:9092" there.'
        )
    return {name: value.get_secret_value() for name, value in found.items()}


def check_installed() -> None:
    """See that the client of Kafka is there.

    Raises:
        ConfigurationError: it is not.
    """
    if kafka is None:
        raise ConfigurationError("Kafka's client is not installed. Install it: pip install 'feature-assets[kafka]'")


class KafkaLog:
    """One member of a consumer group.

    Args:
        group: of the consumers that share the partitions.
        given: properties of librdkafka.

    Raises:
        ConfigurationError: librdkafka knows no such property or value, or a topic is not there.
        StoreUnavailable: no broker answers.
    """

    def __init__(self, source: KafkaSource, group: str, given: Mapping[str, str], listener: Listener) -> None:
        check_installed()
        self._source, self._listener = source, listener
        self._cooperative = "cooperative" in given.get("partition.assignment.strategy", "")
        self._shards: dict[tuple[str, int], Shard] = {}
        self._at: dict[Shard, int | None] = {}
        self._changes = 0
        self._out_of_range: Shard | None = None
        self._paused = False
        self._average = 1024.0
        self._given = given
        self._origins: Mapping[str, int] | None = None
        self._opening = True
        self._consumer = _client(source, {**given, "group.id": group}, error_cb=self._told, on_commit=_committed)
        try:
            _topics(self._consumer, source)
            self._opening = False
            self._consumer.subscribe(
                list(source.topics), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
            )
        except BaseException:
            self._consumer.close()
            raise

    def poll(self, rows: int, bytes: int, seconds: float) -> Records:
        """See `Log`."""
        if (shard := self._out_of_range) is not None:
            self._out_of_range = None
            raise OutOfRange(shard)
        self._pause(wanted=False)
        before = self._changes
        messages = self._consume(1, seconds)
        if messages and self._changes == before:
            wanted = min(rows, int(bytes / self._average)) - 1
            if wanted > 0:
                messages += self._consume(wanted, 0)
        whole = [one for one in messages if self._is_record(one)]
        if self._changes != before:
            # Whether these were fetched before partitions changed hands or after, cannot be told: they are fetched again.
            if whole:
                self._restart()
            return Records()
        return self._records(whole)

    def _consume(self, count: int, seconds: float) -> list[Message]:
        try:
            found: list[Message] = self._consumer.consume(count, seconds)
        except kafka.KafkaException as error:
            raise StoreUnavailable(f"KafkaSource '{self._source.name}': {_words(error)}.") from error
        return found

    def _is_record(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return True
        if error.code() == kafka.KafkaError._AUTO_OFFSET_RESET:
            self._out_of_range = Shard(message.topic(), str(message.partition()))
            return False
        self._told(error)
        return False

    def _told(self, error: Any) -> None:
        _refuse(self._source, error, opening=self._opening)
        log.warning("kafka source=%s error=%s: %s", self._source.name, error.name(), error.str())

    def _records(self, messages: Sequence[Message]) -> Records:
        if not messages:
            return Records()
        known = self._shards
        places = [(one.topic(), one.partition()) for one in messages]
        for topic, partition in set(places) - known.keys():
            known[topic, partition] = Shard(topic, str(partition))
        keys, values = [one.key() for one in messages], [one.value() for one in messages]
        headers = [one.headers() or () for one in messages]
        size = sum(map(len, filter(None, keys))) + sum(map(len, filter(None, values)))
        size += sum(len(data or b"") + len(name) for each in headers for name, data in each)
        self._average = max(1.0, 0.8 * self._average + 0.2 * size / len(messages), size / len(messages))
        found = Records(
            [known[place] for place in places],
            [one.offset() for one in messages],
            keys,
            values,
            headers,
            [millis * 1_000 if kind else None for kind, millis in (one.timestamp() for one in messages)],
            size,
        )
        self._at.update(found.last())
        return found

    def idle(self, seconds: float) -> None:
        """See `Log`."""
        self._pause(wanted=True)
        # Nothing comes of partitions that are paused; what does is of some that were just given.
        if self._consume(1, seconds):
            self._restart()

    def _pause(self, *, wanted: bool) -> None:
        if wanted == self._paused:
            return
        partitions = self._consumer.assignment()
        if wanted:
            self._consumer.pause(partitions)
        else:
            self._consumer.resume(partitions)
        self._paused = wanted

    def seek(self, shard: Shard, after: int | None) -> None:
        """See `Log`."""
        self._at[shard] = after
        self._restart()

    def _restart(self) -> None:
        """Read on in every partition after what was last handed over, and nothing that was fetched before."""
        if not self._at:
            return  # while the group shares out anew, librdkafka waits for the assignment of its own
        partitions = [self._partition(shard, after) for shard, after in self._at.items()]
        if self._cooperative:
            self._consumer.incremental_unassign(partitions)
            self._consumer.incremental_assign(partitions)
        else:
            self._consumer.assign(partitions)
        self._paused = False

    def _partition(self, shard: Shard, after: int | None) -> Any:
        if after is None:
            begin = kafka.OFFSET_BEGINNING if self._source.start == "earliest" else kafka.OFFSET_END
        else:
            begin = after + 1
        return kafka.TopicPartition(shard.stream, int(shard.id), begin)

    def bounds(self, shard: Shard) -> Bounds:
        """See `Log`."""
        return _bounds(self._consumer, self._source, shard)

    def passed(self) -> dict[Shard, int]:
        """See `Log`: librdkafka steps over the markers of transactions."""
        read = self._consumer.position([self._partition(shard, None) for shard in self._at])
        return {Shard(one.topic, str(one.partition)): one.offset - 1 for one in read if one.offset >= 0}

    def origin(self, shard: Shard) -> int | None:
        """See `Log`: that of its topic."""
        if self._origins is None:
            self._origins = _origins(self._source, self._given)
        return self._origins.get(shard.stream)

    def lag(self) -> dict[Shard, Lag]:
        """See `Log`."""
        found = {}
        read = {shard: after for shard, after in self._at.items() if after is not None} | self.passed()
        for shard, after in read.items():
            known = self._consumer.get_watermark_offsets(self._partition(shard, None), cached=True)
            if known is not None and known[1] >= 0:
                found[shard] = Lag(records=max(0, known[1] - 1 - after))
        return found

    def commit(self, done: Mapping[Shard, int]) -> None:
        """See `Log`."""
        try:
            self._consumer.commit(offsets=[self._partition(shard, at) for shard, at in done.items()], asynchronous=True)
        except kafka.KafkaException as error:
            _committed(error.args[0], [])

    def close(self) -> None:
        """See `Log`."""
        self._consumer.close()

    # What librdkafka calls, while it is asked for something.

    def _assigned(self, _: Any, partitions: Sequence[Any]) -> None:
        shards = _shards(partitions)
        self._origins = None  # what was removed and made again is assigned again
        begun = self._listener.assigned(shards)
        new = {shard: begun[shard] for shard in shards if shard in begun}
        self._at |= new
        self._changes += 1
        begins = [self._partition(shard, after) for shard, after in new.items()]
        if self._cooperative:
            self._consumer.incremental_assign(begins)
        else:
            self._consumer.assign(begins)
        self._paused = False

    def _revoked(self, _: Any, partitions: Sequence[Any]) -> None:
        self._give_up(partitions, self._listener.revoked)

    def _lost(self, _: Any, partitions: Sequence[Any]) -> None:
        self._give_up(partitions, self._listener.lost)

    def _give_up(self, partitions: Sequence[Any], tell: Any) -> None:
        shards = _shards(partitions)
        tell(shards)
        for shard in shards:
            self._at.pop(shard, None)
        self._changes += 1


def _client(source: KafkaSource, given: Mapping[str, Any], **callbacks: Any) -> Any:
    told = {
        "client.id": "feature-assets",
        # What is read ahead is memory too.
        "queued.max.messages.kbytes": _AHEAD_KILOBYTES,
        "fetch.max.bytes": _AHEAD_KILOBYTES << 10,
        "isolation.level": "read_committed",
        **given,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        **callbacks,
    }
    try:
        return kafka.Consumer(told, logger=log)
    except (kafka.KafkaException, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"[stream.connections.{source.connection}]: {_words(error)}. Mend that property."
        ) from error


def _bounds(consumer: Any, source: KafkaSource, shard: Shard) -> Bounds:
    try:
        found = consumer.get_watermark_offsets(
            kafka.TopicPartition(shard.stream, int(shard.id)), timeout=_ASKED_SECONDS
        )
    except kafka.KafkaException as error:
        raise StoreUnavailable(f"KafkaSource '{source.name}', {shard}: {_words(error)}.") from error
    if found is None:
        raise StoreUnavailable(f"KafkaSource '{source.name}': no broker says what {shard} has.")
    return Bounds(*found)


def _topics(consumer: Any, source: KafkaSource) -> Mapping[str, Any]:
    """What the brokers say of the topics of a source.

    Raises:
        ConfigurationError: one is not there, or no broker lets this client in.
        StoreUnavailable: no broker answers.
    """
    try:
        known = consumer.list_topics(timeout=_ASKED_SECONDS).topics
    except kafka.KafkaException as error:
        # It knows no more than that nobody answered. Why, was told to who listens, and he hears it when the client is polled.
        consumer.poll(0)
        raise StoreUnavailable(
            f"No broker of KafkaSource '{source.name}' answers ({_words(error)}). They are set in [stream.connections."
            f"{source.connection}]."
        ) from error
    for topic in source.topics:
        if topic not in known:
            near = get_close_matches(topic, [name for name in known if not name.startswith("__")], n=1)
            mend = f"Did you mean '{near[0]}'?" if near else "Make it, or name another."
            raise ConfigurationError(f"There is no topic '{topic}' of KafkaSource '{source.name}'. {mend}")
    return {topic: known[topic] for topic in source.topics}


def surveyed(
    source: KafkaSource, group: str, given: Mapping[str, str]
) -> tuple[dict[Shard, Bounds | None], int | None, dict[Shard, int]]:
    """The partitions of a source with what each has; how many consumers share them, and the origins of partitions, as far as
    the brokers say so.

    Raises: as `KafkaLog`.
    """
    told = partial(_refuse, source, opening=True)
    consumer = _client(source, {**given, "group.id": group}, error_cb=told)
    try:
        topics = _topics(consumer, source)
        shards = [Shard(topic, str(number)) for topic, told in topics.items() for number in sorted(told.partitions)]
        known = _origins(source, given)
        origins = {shard: known[shard.stream] for shard in shards if shard.stream in known}
        return {shard: _bounds(consumer, source, shard) for shard in shards}, _members(group, given), origins
    finally:
        consumer.close()


def _origins(source: KafkaSource, given: Mapping[str, str]) -> dict[str, int]:
    """By topic a number made of its id (KIP-516), which another topic of this name does not have; brokers before Kafka 2.8
    have no ids.

    Raises:
        StoreUnavailable: no broker answers.
    """
    admin = _admin(given)
    try:
        cluster = admin.list_topics(timeout=_ASKED_SECONDS)
        if cluster.controller_id not in cluster.brokers:
            return {}  # who describes topics is nobody there, and librdkafka would wait for him
        asked = admin.describe_topics(kafka.TopicCollection(list(source.topics)), request_timeout=_ASKED_SECONDS)
        ids = {topic: told.result(_ASKED_SECONDS).topic_id for topic, told in asked.items()}
    except kafka.KafkaException as error:
        if error.args[0].code() == kafka.KafkaError._UNSUPPORTED_FEATURE:
            return {}
        raise StoreUnavailable(f"KafkaSource '{source.name}': {_words(error)}.") from error
    both = {
        topic: (one.get_most_significant_bits(), one.get_least_significant_bits()) for topic, one in ids.items() if one
    }
    return {topic: _digest(f"{high} {low}") for topic, (high, low) in both.items() if high or low}


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 2


def _admin(given: Mapping[str, str]) -> Any:
    return import_module("confluent_kafka.admin").AdminClient(dict(given), logger=log)


def _members(group: str, given: Mapping[str, str]) -> int | None:
    admin = _admin(given)
    try:
        told = admin.describe_consumer_groups([group], request_timeout=_ASKED_SECONDS)[group].result(_ASKED_SECONDS)
    except kafka.KafkaException as error:
        log.info("consumers are not told group=%s error=%s", group, _words(error))
        return None
    # Some brokers keep to themselves who is in a group.
    return None if told.state.name == "STABLE" and not told.members else len(told.members)


def _shards(partitions: Sequence[Any]) -> list[Shard]:
    return sorted(Shard(one.topic, str(one.partition)) for one in partitions)


def _committed(error: Any, partitions: Sequence[Any]) -> None:
    if error is not None:
        log.info("offsets not told to the group error=%s", error)


def _refuse(source: KafkaSource, error: Any, *, opening: bool) -> None:
    """Say what librdkafka has met and goes on trying, where that has no use; a certificate may be replaced while it runs.

    Raises:
        ConfigurationError: this client is not let in, or may not read.
        StoreUnavailable: librdkafka has given up.
    """
    place = f"[stream.connections.{source.connection}]"
    if error.name() in _NOT_ALLOWED:
        raise ConfigurationError(
            f"KafkaSource '{source.name}': {error.str()}. Give this consumer the right, or other credentials in {place}."
        )
    if opening and error.name() == "_SSL":
        raise ConfigurationError(
            f"KafkaSource '{source.name}': {error.str()}. Say in {place} whom to trust (ssl.ca.location), or who this is."
        )
    if error.fatal():
        raise StoreUnavailable(f"KafkaSource '{source.name}': {error.str()}.")


def _words(error: BaseException) -> str:
    told = error.args[0] if error.args else error
    return str(told.str() if hasattr(told, "str") else told).rstrip(".")
