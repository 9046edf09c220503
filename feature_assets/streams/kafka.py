"""Kafka as a log: topics and partitions, read by a member of a consumer group. With `kafka_calls` the one place that knows librdkafka.

What is committed to the group is for whoever watches its lag. Where a partition is read from, the listener says.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from feature_assets.errors import StoreUnavailable
from feature_assets.spec import KafkaSource
from feature_assets.streams.kafka_calls import (
    bounds_of,
    check_installed,
    client,
    kafka,
    origins_of,
    refuse,
    topics_of,
    words,
)
from feature_assets.streams.log import Bounds, Lag, Listener, OutOfRange, Records, Shard

log = logging.getLogger(__name__)


Message: TypeAlias = Any


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
        self._consumer = client(source, {**given, "group.id": group}, error_cb=self._told, on_commit=_committed)
        try:
            topics_of(self._consumer, source)
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
            raise StoreUnavailable(f"KafkaSource '{self._source.name}': {words(error)}.") from error
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
        refuse(self._source, error, opening=self._opening)
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
        return bounds_of(self._consumer, self._source, shard)

    def passed(self) -> dict[Shard, int]:
        """See `Log`: librdkafka steps over the markers of transactions."""
        read = self._consumer.position([self._partition(shard, None) for shard in self._at])
        return {Shard(one.topic, str(one.partition)): one.offset - 1 for one in read if one.offset >= 0}

    def origin(self, shard: Shard) -> int | None:
        """See `Log`: that of its topic."""
        if self._origins is None:
            self._origins = origins_of(self._source, self._given)
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


def _shards(partitions: Sequence[Any]) -> list[Shard]:
    return sorted(Shard(one.topic, str(one.partition)) for one in partitions)


def _committed(error: Any, partitions: Sequence[Any]) -> None:
    if error is not None:
        log.info("offsets not told to the group error=%s", error)
