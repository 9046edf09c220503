"""A Kinesis stream in memory that keeps what is documented of resharding, which emulators do not.

A record stays in the shard that it was written to; a shard that was split or merged gives its records, and then no further
iterator. Sequence numbers are longer than 64 bits and have gaps. Retention removes records, and closed shards that have none
left. Each call may be made to fail once.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from feature_assets.errors import RecordsLost
from feature_assets.streams.kinesis_calls import Expired, Gone, Throttled

FIRST = 49_590_338_271_490_256_608_559_692_538_361_571_095_921_575_989_136_588_898
GAP = 12_345


@dataclass
class OneShard:
    parents: tuple[str, ...] = ()
    records: list[dict[str, Any]] = field(default_factory=list)
    closed: bool = False


class Stream:
    """What `Calls` is to a consumer."""

    def __init__(self, shards: int = 1, *, first: int = FIRST) -> None:
        self.shards_: dict[str, OneShard] = {f"shardId-{number:012}": OneShard() for number in range(shards)}
        self.first = self.next = first
        self.failing: list[Exception] = []
        self.iterators: dict[str, tuple[str, int]] = {}
        self.clients = 0

    def put(self, shard: str, value: Any, key: str = "k") -> int:
        assert not self.shards_[shard].closed
        self.next += GAP
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.shards_[shard].records.append(
            {
                "SequenceNumber": str(self.next),
                "PartitionKey": key,
                "Data": data,
                "ApproximateArrivalTimestamp": datetime.now(UTC),
            }
        )
        return self.next

    def open(self) -> list[str]:
        return [name for name, one in self.shards_.items() if not one.closed]

    def reshard(self, *parents: str, into: int) -> list[str]:
        for parent in parents:
            self.shards_[parent].closed = True
        made = [f"shardId-{len(self.shards_) + number:012}" for number in range(into)]
        self.shards_ |= {name: OneShard(parents) for name in made}
        return made

    def forget(self, shard: str, records: int) -> None:
        """As retention does."""
        found = self.shards_[shard]
        del found.records[:records]
        if found.closed and not found.records:
            del self.shards_[shard]

    def shards(self) -> list[dict[str, Any]]:
        self._fail()
        listed = []
        for name, one in self.shards_.items():
            said: dict[str, Any] = {"ShardId": name, "SequenceNumberRange": {"StartingSequenceNumber": str(self.first)}}
            if one.closed:
                said["SequenceNumberRange"]["EndingSequenceNumber"] = str(self.next)
            for parent, called in zip(one.parents, ("ParentShardId", "AdjacentParentShardId"), strict=False):
                said[called] = parent
            listed.append(said)
        return listed

    def iterator(self, shard: str, begin: Mapping[str, Any]) -> str:
        self._fail()
        if shard not in self.shards_:
            raise Gone
        match begin["ShardIteratorType"]:
            case "AFTER_SEQUENCE_NUMBER":
                after = int(begin["StartingSequenceNumber"])
                if after < self.first:
                    raise RecordsLost("StartingSequenceNumber is not of this stream: made anew")
            case "TRIM_HORIZON":
                after = 0
            case _:
                times = self.shards_[shard].records
                older = [one for one in times if one["ApproximateArrivalTimestamp"] < begin["Timestamp"]]
                after = int(older[-1]["SequenceNumber"]) if older else 0
        return self._iterator(shard, after)

    def _iterator(self, shard: str, after: int) -> str:
        name = str(len(self.iterators))
        self.iterators[name] = shard, after
        return name

    def records(self, iterator: str, most: int) -> dict[str, Any]:
        self._fail(reading=True)
        shard, after = self.iterators[iterator]
        if shard not in self.shards_:
            raise Gone
        one = self.shards_[shard]
        left = [record for record in one.records if int(record["SequenceNumber"]) > after]
        found = left[:most]
        after = int(found[-1]["SequenceNumber"]) if found else after
        ended = one.closed and len(found) == len(left)
        return {
            "Records": found,
            "NextShardIterator": None if ended else self._iterator(shard, after),
            "MillisBehindLatest": 0 if len(found) == len(left) else 1000,
        }

    def _fail(self, *, reading: bool = False) -> None:
        if self.failing and (reading or not isinstance(self.failing[0], Expired)):
            raise self.failing.pop(0)

    def close(self) -> None:
        self.clients -= 1


FAILURES = (Throttled("ProvisionedThroughputExceededException: slow down"), Expired())
