"""What a client of Kafka's brokers is made with, and what they are asked. With `kafka`, the one place that knows librdkafka."""

import hashlib
import logging
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any, Final

from pydantic import SecretStr

from feature_assets.errors import ConfigurationError, StoreUnavailable
from feature_assets.spec import KafkaSource
from feature_assets.streams.log import Bounds, Shard

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


def client(source: KafkaSource, given: Mapping[str, Any], **callbacks: Any) -> Any:
    """A consumer with these properties and callbacks, and those that no connection decides.

    Raises:
        ConfigurationError: librdkafka knows no such property or value.
    """
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
            f"[stream.connections.{source.connection}]: {words(error)}. Mend that property."
        ) from error


def bounds_of(consumer: Any, source: KafkaSource, shard: Shard) -> Bounds:
    """What a partition has now.

    Raises:
        StoreUnavailable: no broker says so.
    """
    try:
        found = consumer.get_watermark_offsets(
            kafka.TopicPartition(shard.stream, int(shard.id)), timeout=_ASKED_SECONDS
        )
    except kafka.KafkaException as error:
        raise StoreUnavailable(f"KafkaSource '{source.name}', {shard}: {words(error)}.") from error
    if found is None:
        raise StoreUnavailable(f"KafkaSource '{source.name}': no broker says what {shard} has.")
    return Bounds(*found)


def topics_of(consumer: Any, source: KafkaSource) -> Mapping[str, Any]:
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
            f"No broker of KafkaSource '{source.name}' answers ({words(error)}). They are set in [stream.connections."
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
    told = partial(refuse, source, opening=True)
    consumer = client(source, {**given, "group.id": group}, error_cb=told)
    try:
        topics = topics_of(consumer, source)
        shards = [Shard(topic, str(number)) for topic, told in topics.items() for number in sorted(told.partitions)]
        known = origins_of(source, given)
        origins = {shard: known[shard.stream] for shard in shards if shard.stream in known}
        return {shard: bounds_of(consumer, source, shard) for shard in shards}, _members(group, given), origins
    finally:
        consumer.close()


def origins_of(source: KafkaSource, given: Mapping[str, str]) -> dict[str, int]:
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
        raise StoreUnavailable(f"KafkaSource '{source.name}': {words(error)}.") from error
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
        log.info("consumers are not told group=%s error=%s", group, words(error))
        return None
    # Some brokers keep to themselves who is in a group.
    return None if told.state.name == "STABLE" and not told.members else len(told.members)


def refuse(source: KafkaSource, error: Any, *, opening: bool) -> None:
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


def words(error: BaseException) -> str:
    """What librdkafka says of it."""
    told = error.args[0] if error.args else error
    return str(told.str() if hasattr(told, "str") else told).rstrip(".")
