"""From a declared source to the log that it names, by what the settings say of its connection."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

from feature_assets.config import Settings
from feature_assets.spec import KinesisSource, LogSource
from feature_assets.streams import kafka_calls
from feature_assets.streams.kafka import KafkaLog
from feature_assets.streams.kinesis import open_kinesis
from feature_assets.streams.kinesis_calls import Calls
from feature_assets.streams.log import Bounds, Listener, Log, Shard


class Survey(NamedTuple):
    """A log as somebody sees it who reads nothing: its shards, and how many consumers share them; None where the log does
    not tell. `origins` are those of the shards of which it does.
    """

    shards: dict[Shard, Bounds | None]
    consumers: int | None
    origins: Mapping[Shard, int]


def group_of(source: LogSource, chosen: Sequence[str], everything: Sequence[str]) -> str:
    """The name of the group of consumers that publish these views: those of all, or of some, have groups of their own.

    Members of one group share the shards, so they have to publish the same views.
    """
    group = source.group or f"feature-assets.{source.name}"
    return group if set(chosen) == set(everything) else f"{group}.{'+'.join(sorted(chosen))}"


def opener(source: LogSource, group: str, settings: Settings) -> Callable[[Listener], Log]:
    """What makes a member of the group, given who listens.

    Raises:
        ConfigurationError: the connection is not set or cannot be right, or a library is not installed.
    """
    if isinstance(source, KinesisSource):
        return lambda listener: open_kinesis(source, group, settings, listener)
    kafka_calls.check_installed()
    properties = kafka_calls.properties(source, settings.stream.connections)
    return lambda listener: KafkaLog(source, group, properties, listener)


def survey(source: LogSource, group: str, settings: Settings) -> Survey:
    """What a log has now.

    Raises:
        ConfigurationError: as `opener`; or a topic or stream is not there.
        StoreUnavailable: no broker answers.
    """
    if isinstance(source, KinesisSource):
        with closing(Calls(source, settings.stream.connections)) as calls:
            return Survey({Shard(source.stream, one["ShardId"]): None for one in calls.shards()}, None, {})
    kafka_calls.check_installed()
    properties = kafka_calls.properties(source, settings.stream.connections)
    return Survey(*kafka_calls.surveyed(source, group, properties))
