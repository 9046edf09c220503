"""Kinesis as a log. The one place of streams that knows boto3.

Positions are sequence numbers. A shard that was split or merged away is read to its end before what it became: when all of
a shard is published, an object says so. Where a shard is read from, the listener says; where a source begins that says
`start="latest"`, an object keeps too, so that nothing is left out between that moment and the first publication.
"""

import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from feature_assets.config import Settings
from feature_assets.errors import RecordsLost, StoreError
from feature_assets.objects import Objects, PutConflict, open_objects
from feature_assets.spec import KinesisSource
from feature_assets.streams.kinesis_calls import Calls, Expired, Gone, Throttled
from feature_assets.streams.log import Bounds, Lag, Listener, Records, Shard
from feature_assets.streams.members import Members
from feature_assets.types import microseconds

log = logging.getLogger(__name__)

FOLDER: Final = "__streams"
"""Of the offline store: names of views have no two underscores."""

_BETWEEN: Final = 0.25
"""Five reads a second are what a shard allows, for all that read it."""
_LONGEST_WAIT: Final = 5.0
_SHARDS_EVERY: Final = 10.0
_AT_ONCE: Final = 10_000


@dataclass(slots=True)
class _Reading:
    """How far a shard is read. `due` is when it may be asked again; `last` the last position handed over."""

    after: int | None
    iterator: str | None = None
    due: float = 0.0
    failures: int = 0
    last: int | None = None
    ended: bool = False
    behind: float | None = None


class KinesisLog:
    """One of the consumers that share a stream.

    Args:
        group: of the consumers that share the shards.
        calls: the client.
        objects: where members meet, and where is kept what is read to its end.
        listener: who consumes.

    Raises:
        ConfigurationError: there is no such stream, or it may not be read.
        StoreUnavailable: Kinesis does not answer.
    """

    def __init__(
        self,
        source: KinesisSource,
        group: str,
        calls: Calls,
        objects: Objects,
        listener: Listener,
        *,
        members: Members | None = None,
    ) -> None:
        self._source, self._calls, self._objects, self._listener = source, calls, objects, listener
        self._folder = f"kinesis/{group}"
        self._members = members or Members(objects, f"{self._folder}/members")
        self._readings: dict[Shard, _Reading] = {}
        self._listed: dict[str, Mapping[str, Any]] = {}
        self._done: set[str] = set()
        self._look_at = 0.0
        self._turn = 0
        self._list()
        self._began = self._beginning()

    def _beginning(self) -> Mapping[str, Any]:
        """Which shards there were when the source was first read, and when that was (UTC)."""
        path = f"{self._folder}/began"
        open_ = [_key(one) for one in self._listed.values() if _is_open(one)]
        shards = sorted(map(_key, self._listed.values()))
        found = {"at": datetime.now(UTC).isoformat(), "shards": shards, "open": sorted(open_)}
        with suppress(PutConflict):
            self._objects.put(path, json.dumps(found).encode(), if_absent=True)
        stored = self._objects.get(path)
        return found if stored is None else json.loads(stored.data)

    # What is read, and by whom.

    def _list(self) -> None:
        """Look which shards there are, and which are read to their end."""
        self._listed = {one["ShardId"]: one for one in self._calls.shards()}
        folder = f"{self._folder}/done"
        done = {path.rpartition("/")[2] for path in self._objects.list(folder)}
        known = {_key(one): name for name, one in self._listed.items()}
        for gone in done - known.keys():
            self._objects.delete(f"{folder}/{gone}")
        self._done = {name for key, name in known.items() if key in done}
        self._look_at = time.monotonic() + _SHARDS_EVERY

    def _readable(self) -> list[str]:
        """The shards that may be read now: not those read to their end, nor what they are to become before."""
        left = {name for name in self._listed if name not in self._done and not self._is_passed_over(name)}
        parents = ("ParentShardId", "AdjacentParentShardId")
        return [name for name in sorted(left) if left.isdisjoint(self._listed[name].get(one) for one in parents)]

    def _is_passed_over(self, name: str) -> bool:
        """Whether a shard was closed before the source was first read, which begins with what comes from then on."""
        began, key = self._began, _key(self._listed[name])
        return self._source.start == "latest" and key in began["shards"] and key not in began["open"]

    def _keep_group(self) -> None:
        """Show that this member lives, and have the shards that are its."""
        now = time.monotonic()
        if now < min(self._members.due, self._look_at):
            return
        self._members.meet()
        if now >= self._look_at:
            try:
                self._list()
            except (Throttled, StoreError) as error:
                log.warning("shards not seen stream=%s error=%s: %s", self._source.stream, type(error).__name__, error)
                self._look_at = now + 1.0
        wanted = {Shard(self._source.stream, name) for name in self._members.mine(self._readable())}
        if gone := sorted(self._readings.keys() - wanted):
            self._give_up(gone)
        if new := sorted(wanted - self._readings.keys()):
            begun = self._listener.assigned(new)
            for shard in new:
                if shard in begun:
                    self._readings[shard] = _Reading(begun[shard])
                    self._see_what_is_left(shard, begun[shard])

    def _give_up(self, shards: Sequence[Shard]) -> None:
        vanished = [one for one in shards if one.id not in self._listed]
        self._listener.revoked([one for one in shards if one.id in self._listed])
        self._listener.lost(vanished)
        unread = [one for one in vanished if one.id not in self._done]
        for shard in shards:
            self._readings.pop(shard, None)
        if unread:
            raise RecordsLost(
                f"'{self._source.name}': shard {unread[0]} is no longer there, and was not read to its end: its records were "
                "older than the stream keeps them. Run the consumer again to go on with what there is."
            )

    def _see_what_is_left(self, shard: Shard, after: int | None) -> None:
        """Say it if a shard no longer has what comes after a position, as far as that can be told."""
        if after is None or after < 0:
            return
        try:
            answer = self._calls.records(self._calls.iterator(shard.id, {"ShardIteratorType": "TRIM_HORIZON"}), 1)
        except (Throttled, Gone, Expired):
            return
        first = next((int(one["SequenceNumber"]) for one in answer["Records"]), None)
        if first is not None and first > after:
            log.warning(
                "stream=%s shard=%s begins at position %d, and what is published is up to %d: what lay between, if anything, "
                "was removed before it was read",
                *(self._source.stream, shard.id, first, after),
            )

    # What the consumer asks for.

    def poll(self, rows: int, bytes: int, seconds: float) -> Records:
        """See `Log`."""
        deadline = time.monotonic() + seconds
        found = Records()
        while True:
            self._keep_group()
            for shard in self._in_turn():
                self._read(shard, rows - len(found), found)
                if len(found) >= rows or found.bytes >= bytes:
                    break
            now = time.monotonic()
            if len(found) or now >= deadline:
                return found
            soon = [one.due for one in self._readings.values() if not one.ended]
            time.sleep(max(0.0, min(deadline, self._members.due, self._look_at, *soon) - now))

    def _in_turn(self) -> list[Shard]:
        """The shards that may be asked now; each time another one is first, so that none waits for the others."""
        now = time.monotonic()
        due = [shard for shard, one in sorted(self._readings.items()) if not one.ended and one.due <= now]
        self._turn += 1
        at = self._turn % len(due) if due else 0
        return due[at:] + due[:at]

    def _read(self, shard: Shard, rows: int, found: Records) -> None:
        reading = self._readings[shard]
        try:
            if reading.iterator is None:
                reading.iterator = self._calls.iterator(shard.id, self._from(shard, reading.after))
            answer = self._calls.records(reading.iterator, min(rows, _AT_ONCE))
        except Expired:
            reading.iterator = None
            return
        except Throttled as error:
            wait = min(_LONGEST_WAIT, _BETWEEN * 2**reading.failures)
            reading.failures = min(reading.failures + 1, 10)
            reading.due = time.monotonic() + random.uniform(wait / 2, wait)
            log.info("kinesis waits stream=%s shard=%s error=%s", self._source.stream, shard.id, error)
            return
        except Gone:
            self._look_at = 0.0
            reading.due = time.monotonic() + _BETWEEN
            return
        reading.failures, reading.due = 0, time.monotonic() + _BETWEEN
        reading.behind = answer.get("MillisBehindLatest", 0) / 1000
        reading.iterator = answer.get("NextShardIterator")
        _take(shard, answer["Records"], found)
        if answer["Records"]:
            reading.after = reading.last = found.positions[-1]
        closed = shard.id in self._listed and not _is_open(self._listed[shard.id])
        if reading.iterator is None or (closed and not answer["Records"] and reading.behind == 0):
            reading.ended = True
            if reading.last is None:
                self._finish(shard)

    def _from(self, shard: Shard, after: int | None) -> dict[str, Any]:
        if after is not None and after >= 0:
            return {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": str(after)}
        began = shard.id in self._listed and _key(self._listed[shard.id]) in self._began["shards"]
        if after is None and self._source.start == "latest" and began:
            return {"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": datetime.fromisoformat(self._began["at"])}
        return {"ShardIteratorType": "TRIM_HORIZON"}

    def _finish(self, shard: Shard) -> None:
        """Keep that a shard is read to its end, so that what it became is read."""
        listed = self._listed.get(shard.id)
        if listed is None:
            return
        try:
            self._objects.put(f"{self._folder}/done/{_key(listed)}", b"{}")
        except StoreError as error:
            # Who reads the shard next finds its end again.
            log.warning("end of shard not kept shard=%s error=%s: %s", shard, type(error).__name__, error)
            return
        self._done.add(shard.id)
        self._look_at = 0.0

    def idle(self, seconds: float) -> None:
        """See `Log`."""
        deadline = time.monotonic() + seconds
        while True:
            self._keep_group()
            now = time.monotonic()
            if now >= deadline:
                return
            time.sleep(max(0.0, min(deadline, self._members.due, self._look_at) - now))

    def seek(self, shard: Shard, after: int | None) -> None:
        """See `Log`."""
        if shard in self._readings:
            self._readings[shard] = _Reading(after)

    def bounds(self, shard: Shard) -> Bounds | None:
        """See `Log`: Kinesis does not tell."""
        return None

    def passed(self) -> dict[Shard, int]:
        """See `Log`: all that has a position is a record."""
        return {}

    def origin(self, shard: Shard) -> int | None:
        """See `Log`: Kinesis refuses the positions of another stream's shard."""
        return None

    def lag(self) -> dict[Shard, Lag]:
        """See `Log`."""
        known = {shard: one.behind for shard, one in self._readings.items() if one.behind is not None}
        return {shard: Lag(seconds=behind) for shard, behind in known.items()}

    def commit(self, done: Mapping[Shard, int]) -> None:
        """See `Log`."""
        for shard, at in done.items():
            reading = self._readings.get(shard)
            if reading is not None and reading.ended and reading.last is not None and at >= reading.last:
                self._finish(shard)

    def close(self) -> None:
        """See `Log`."""
        try:
            self._listener.revoked(sorted(self._readings))
        finally:
            self._readings.clear()
            self._members.leave()
            self._calls.close()


def open_kinesis(source: KinesisSource, group: str, settings: Settings, listener: Listener) -> KinesisLog:
    """One of the consumers that share the source's stream. They meet beside the offline store.

    Raises: as `KinesisLog`.
    """
    objects = open_objects(f"{settings.place(settings.offline)}/{FOLDER}", settings.storage())
    calls = Calls(source, settings.stream.connections)
    try:
        return KinesisLog(source, group, calls, objects, listener)
    except BaseException:
        calls.close()
        raise


def _key(listed: Mapping[str, Any]) -> str:
    """What tells a shard from one of the same name in a stream that was made anew."""
    return f"{listed['ShardId']}.{listed['SequenceNumberRange']['StartingSequenceNumber']}"


def _is_open(listed: Mapping[str, Any]) -> bool:
    return "EndingSequenceNumber" not in listed["SequenceNumberRange"]


def _take(shard: Shard, records: Sequence[Mapping[str, Any]], found: Records) -> None:
    found.shards += [shard] * len(records)
    found.positions += [int(one["SequenceNumber"]) for one in records]
    found.keys += [one["PartitionKey"].encode() for one in records]
    found.values += [one["Data"] for one in records]
    found.headers += [()] * len(records)
    found.times += [microseconds(one["ApproximateArrivalTimestamp"].astimezone(UTC)) for one in records]
    found.bytes += sum(len(one["Data"]) + len(one["PartitionKey"]) for one in records)
