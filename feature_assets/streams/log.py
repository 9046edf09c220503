"""What a consumer needs of a log of records, whoever keeps it: Kafka, Kinesis, a list in memory.

A log is divided into shards. The members of a group share them: each reads some, from where its stores say. Positions are
whole numbers of any size that grow along a shard, not always by one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

Headers: TypeAlias = Sequence[tuple[str, bytes | None]]


class Shard(NamedTuple):
    """A part of a stream that has an order: a partition of a topic, a shard of a Kinesis stream."""

    stream: str
    id: str

    def __str__(self) -> str:
        return f"{self.stream}/{self.id}"


class OutOfRange(Exception):
    """What is to be read next in a shard is not there: it was removed, or the shard never had so much."""

    def __init__(self, shard: Shard) -> None:
        super().__init__(str(shard))
        self.shard = shard


class Lag(NamedTuple):
    """How far a reader is behind the end of a shard: in records, or in time where the log counts none."""

    records: int | None = None
    seconds: float | None = None


class Bounds(NamedTuple):
    """What a shard has now: the position of its first record, and the one that its next record will have."""

    first: int
    end: int


@dataclass(slots=True)
class Records:
    """Records of several shards as columns of one length; those of a shard in the order of their positions.

    `times` are microseconds since 1970 (UTC), None where the log has none. A value of None is a record without one.
    `bytes` is what keys, values and headers take.
    """

    shards: list[Shard] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)
    times: list[int | None] = field(default_factory=list)
    bytes: int = 0

    def __len__(self) -> int:
        return len(self.positions)

    def extend(self, more: "Records") -> None:
        """Have those come after these."""
        self.shards += more.shards
        self.positions += more.positions
        self.keys += more.keys
        self.values += more.values
        self.headers += more.headers
        self.times += more.times
        self.bytes += more.bytes

    def chosen(self, places: Iterable[int]) -> "Records":
        """Those at these places, in this order."""
        at = list(places)
        found = Records(*([column[one] for one in at] for column in self._columns()))  # type: ignore[arg-type]
        found.bytes = sum(map(_size, found.keys)) + sum(map(_size, found.values))
        return found

    def _columns(self) -> Sequence[list[object]]:
        return [self.shards, self.positions, self.keys, self.values, self.headers, self.times]  # type: ignore[list-item]

    def last(self) -> dict[Shard, int]:
        """By shard the last position."""
        return dict(zip(self.shards, self.positions, strict=True))


def _size(data: bytes | None) -> int:
    return len(data or b"")


class Listener(Protocol):
    """Who consumes, as the log calls it: only while it is asked for something, in the thread that asks."""

    def assigned(self, shards: Sequence[Shard]) -> Mapping[Shard, int | None]:
        """These shards are read from now on; after which position each begins, None for as the source declares."""
        ...

    def revoked(self, shards: Sequence[Shard]) -> None:
        """These shards are another member's when this returns; until then they are still this one's."""
        ...

    def lost(self, shards: Sequence[Shard]) -> None:
        """These shards are another member's already."""
        ...


class Log(Protocol):
    """One member of a group that reads a log. One thread uses it; what it waits for it waits for here.

    Every method raises `StoreUnavailable` where the log cannot be reached and that may pass, and `FeatureAssetsError`s for
    what does not pass.
    """

    def poll(self, rows: int, bytes: int, seconds: float) -> Records:
        """The next records of the shards that are read and not paused.

        Returns as soon as there are some, or none after so many seconds. At most so many `rows`; about so many `bytes`, one
        record at least. Calls the listener as shards come and go.

        Raises:
            OutOfRange: what comes next in a shard is not there. Nothing that was read is lost by that.
        """
        ...

    def idle(self, seconds: float) -> None:
        """Wait, reading nothing, so that the group does not take this member for dead. Calls the listener too."""
        ...

    def seek(self, shard: Shard, after: int | None) -> None:
        """Have the next record of a shard that is read be the one after a position, None for as the source declares."""
        ...

    def bounds(self, shard: Shard) -> Bounds | None:
        """What the shard has now; None where the log does not tell. Its end may be told too low, its start not too high."""
        ...

    def passed(self) -> Mapping[Shard, int]:
        """By shard up to which position there is nothing that has not been handed over, as far as the log tells: behind the
        last record may lie what is none, as the ends of transactions, and records that were taken back.
        """
        ...

    def origin(self, shard: Shard) -> int | None:
        """A number of 62 bits that tells the shard from one of the same name in a stream that was removed and made again;
        None where the log does not tell, or tells it by itself. Asked as shards are assigned.
        """
        ...

    def lag(self) -> Mapping[Shard, Lag]:
        """How far this member is behind in each shard that it reads, as far as is known without asking."""
        ...

    def commit(self, done: Mapping[Shard, int]) -> None:
        """Tell the group up to where shards are done, for whoever watches it. Nothing depends on it, and it may fail."""
        ...

    def close(self) -> None:
        """Leave the group. The listener is told of all shards that they are revoked."""
        ...
