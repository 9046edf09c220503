"""A log that is a list for each shard, and a group whose members have the shards that a test gives them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from feature_assets.streams.log import Bounds, Lag, Listener, OutOfRange, Records, Shard


def shard(number: int, stream: str = "rides") -> Shard:
    return Shard(stream, str(number))


class Shards:
    """The log. Positions of a shard begin at `first` and grow by `by`."""

    def __init__(self, count: int, *, first: int = 0, by: int = 1) -> None:
        self.by = by
        self.records: dict[Shard, list[tuple[int, dict[str, Any]]]] = {shard(one): [] for one in range(count)}
        self.next = dict.fromkeys(self.records, first)
        self.first = dict.fromkeys(self.records, first)
        self.origins: dict[Shard, int] = {}
        self.committed: dict[Shard, int] = {}

    def write(self, number: int, value: Any, *, key: bytes | None = None, time: int | None = None, **more: Any) -> int:
        """Write a record; its position. A value that is no bytes is written as JSON."""
        at = shard(number)
        data = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
        position = self.next[at]
        self.records[at].append((position, {"key": key, "value": data, "time": time, **more}))
        self.next[at] = position + self.by
        return position

    def mark(self, number: int) -> None:
        """Take a position for what is no record, as the end of a transaction does."""
        self.next[shard(number)] += self.by

    def remove_before(self, number: int, position: int) -> None:
        """As retention does."""
        at = shard(number)
        self.first[at] = position
        self.records[at] = [one for one in self.records[at] if one[0] >= position]

    def make_anew(self, number: int) -> None:
        """As who removes a topic and makes it again."""
        at = shard(number)
        if at in self.origins:
            self.origins[at] += 1
        self.first[at] = self.next[at] = 0
        self.records[at] = []


class Member:
    """A member of the group. Which shards are to be its, `wanted` says; it hears of that when it is asked for something."""

    def __init__(self, shards: Shards, listener: Listener, wanted: Sequence[int] = ()) -> None:
        self.shards, self.listener = shards, listener
        self.wanted = {shard(one) for one in wanted}
        self.lost: set[Shard] = set()
        self.at: dict[Shard, int | None] = {}
        self.paused = False
        self.idled = 0
        self.closed = False

    def _rebalance(self) -> None:
        if lost := sorted(self.lost & self.at.keys()):
            self.listener.lost(lost)
        for one in lost:
            del self.at[one]
        self.lost = set()
        if gone := sorted(self.at.keys() - self.wanted):
            self.listener.revoked(gone)
            for one in gone:
                del self.at[one]
        if new := sorted(self.wanted - self.at.keys()):
            begun = self.listener.assigned(new)
            self.at |= {one: begun[one] for one in new if one in begun}

    def poll(self, rows: int, bytes: int, seconds: float) -> Records:
        self._rebalance()
        found = Records()
        for one, after in self.at.items():
            first = self.shards.first[one]
            if after is not None and (after + self.shards.by < first or after >= self.shards.next[one]):
                raise OutOfRange(one)
            for position, record in self.shards.records[one]:
                if len(found) >= rows or found.bytes >= bytes:
                    break
                if after is not None and position <= after:
                    continue
                found.shards.append(one)
                found.positions.append(position)
                found.keys.append(record["key"])
                found.values.append(record["value"])
                found.headers.append(record.get("headers", ()))
                found.times.append(record["time"])
                found.bytes += len(record["value"] or b"")
                self.at[one] = position
        return found

    def idle(self, seconds: float) -> None:
        self.idled += 1
        self._rebalance()

    def seek(self, shard: Shard, after: int | None) -> None:
        assert shard in self.at
        self.at[shard] = after

    def bounds(self, shard: Shard) -> Bounds:
        return Bounds(self.shards.first[shard], self.shards.next[shard])

    def passed(self) -> dict[Shard, int]:
        left = {one: self.shards.records[one][-1:] for one, at in self.at.items() if at is not None}
        return {one: self.shards.next[one] - 1 for one, last in left.items() if not last or last[0][0] == self.at[one]}

    def origin(self, shard: Shard) -> int | None:
        return self.shards.origins.get(shard)

    def lag(self) -> dict[Shard, Lag]:
        ends = self.shards.next
        return {one: Lag(ends[one] - (self.shards.first[one] if at is None else at + 1)) for one, at in self.at.items()}

    def commit(self, done: Mapping[Shard, int]) -> None:
        self.shards.committed.update(done)

    def close(self) -> None:
        self.wanted = set()
        self._rebalance()
        self.closed = True
