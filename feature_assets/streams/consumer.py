"""The loop of one consumer: gather a batch, publish it, go on. It knows no Kafka and no Kinesis.

One thread does it all. While a batch is published nothing is read, and what the log's client reads ahead is bounded, so a
store that is slow slows down the reading and not more than a batch is held. While a store is away the batch is tried again,
and the group is told meanwhile that this member lives. A shard is given up when the records of it that have been gathered
are published, or dropped: whoever has it next reads them again.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from feature_assets.errors import FeatureAssetsError, PublicationConflict, RecordsLost, StoreError
from feature_assets.offline import Overtaken
from feature_assets.streams.log import Log, OutOfRange, Records, Shard
from feature_assets.streams.sink import Batch, Sink

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_LONGEST_POLL: Final = 0.5
_LAG_EVERY: Final = 1.0
_REST: Final = 60.0
"""Seconds without a record after which what lies behind the last one is looked at."""


def made_anew(source: str, shard: Shard) -> str:
    """What a person is told of a stream that has another one's positions."""
    return (
        f"Shard {shard} of '{source}' was made anew since records of it were published, and numbers them from the start again. "
        f"To read what it has now, run: feature-assets stream seek {source} --to earliest"
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """What a batch has at most, and how long lies at least between two."""

    rows: int = 20_000
    bytes: int = 16 << 20
    seconds: float = 0.5


class Consumer:
    """Reads the shards that its group gives it, and publishes what it reads.

    Args:
        opened: makes the log; given the listener, which is this.
        start: of shards of which a view has nothing.
        on_lost: whether to go on where records are lost.
    """

    def __init__(
        self,
        source: str,
        sink: Sink,
        opened: Callable[["Consumer"], Log],
        *,
        limits: Limits | None = None,
        start: Literal["earliest", "latest"] = "earliest",
        on_lost: Literal["stop", "skip"] = "stop",
    ) -> None:
        self._source, self._sink, self._limits = source, sink, limits or Limits()
        self._start, self._on_lost = start, on_lost
        self._gathered, self._due = Records(), 0.0
        self._batch: Batch | None = None
        self._failed: FeatureAssetsError | None = None
        self._ends: Callable[[], bool] = lambda: False
        self._publishing, self._looked, self._flushed = False, 0.0, time.monotonic()
        self._rested = self._flushed
        self.progress = sink.progress
        self.progress.shards, self.progress.started = set(), datetime.now(UTC)
        self._log = opened(self)

    def run(self, ends: Callable[[], bool], renewed: Callable[[], Sink | None] = lambda: None) -> None:
        """Consume until it is to end, which is asked all the time; what has been gathered by then is published.

        Args:
            renewed: asked all the time too: another sink of the same source, where its views have changed.

        Raises:
            RecordsLost: a shard no longer has what comes next.
            FeatureAssetsError: what does not pass by itself: a declaration, a setting, a function.
        """
        self._ends = ends
        try:
            while not ends():
                if (sink := renewed()) is not None:
                    self.renew(sink)
                self.step()
            self._flush(patient=False)
        finally:
            self._log.close()

    def renew(self, sink: Sink) -> None:
        """Publish what has been gathered, and go on with another sink, from where its tables are."""
        self._flush(patient=True)
        self._raise_failed()
        self._sink = sink
        for shard, after in self._begun(sorted(self.progress.shards)).items():
            self._log.seek(shard, after)

    def step(self) -> None:
        """Read what there is, and publish the batch if it is full or its time has come."""
        limits, gathered = self._limits, self._gathered
        wait = _LONGEST_POLL if not len(gathered) else max(0.0, min(_LONGEST_POLL, self._due - time.monotonic()))
        try:
            read = self._log.poll(limits.rows - len(gathered), max(1, limits.bytes - gathered.bytes), wait)
        except OutOfRange as error:
            self._raise_failed()
            self._flush(patient=True)
            self._find_again(error.shard)
            return
        self._raise_failed()
        if time.monotonic() >= self._looked + _LAG_EVERY:
            self.progress.lag, self._looked = self._log.lag(), time.monotonic()
        if len(read):
            if not len(self._gathered):
                # Of what comes now and then each is published at once, and what comes all the time gathers.
                self._due = self._flushed + limits.seconds
            self._gathered.extend(read)
        if self._is_due():
            self._flushed = self._rested = time.monotonic()
            self._flush(patient=True)
            self._raise_failed()
        elif not len(self._gathered) and time.monotonic() >= self._rested + _REST:
            self._rested = time.monotonic()
            self._pass_over()

    def _is_due(self) -> bool:
        gathered, limits = self._gathered, self._limits
        if not len(gathered):
            return False
        return len(gathered) >= limits.rows or gathered.bytes >= limits.bytes or time.monotonic() >= self._due

    def _pass_over(self) -> None:
        """Have the tables behind what is no record at the end of a shard: it would count as unread, and as lost when it goes."""
        try:
            self._sink.pass_over(self._log.passed())
        except (StoreError, PublicationConflict) as error:
            # Whoever was first is met again with the next batch.
            log.info("not passed over source=%s error=%s: %s", self._source, type(error).__name__, error)

    def _raise_failed(self) -> None:
        # Raised in the callbacks of a client it might be swallowed there.
        if self._failed is not None:
            raise self._failed

    def _flush(self, *, patient: bool) -> None:
        """Publish what has been gathered; a patient one tries until it is, another member has the shards, or this is to end.

        One that is not drops what a store does not take now: it is read again.
        """
        pause = _FIRST_PAUSE
        self._publishing = True
        try:
            while len(self._gathered):
                try:
                    self._publish()
                except Overtaken as error:
                    self._look_again(error, seek=patient)
                except (StoreError, PublicationConflict) as error:
                    self.progress.failures += 1
                    self.progress.error = str(error)
                    log.warning("a batch waits source=%s error=%s: %s", self._source, type(error).__name__, error)
                    if not patient or self._ends():
                        self._drop(set(self._gathered.shards))
                        return
                    self._log.idle(pause)
                    self._raise_failed()
                    pause = min(_LONGEST_PAUSE, pause * 2)
                else:
                    self.progress.error = ""
        finally:
            self._publishing = False

    def _publish(self) -> None:
        if self._batch is None:
            self._batch = self._sink.batch(self._gathered)
        self._sink.publish(self._batch)
        done = {shard: at for shard in set(self._gathered.shards) if (at := self._sink.reached(shard)) is not None}
        self.progress.batches += 1
        self.progress.records += len(self._gathered)
        self._gathered, self._batch = Records(), None
        self._log.commit(done)

    def _look_again(self, error: Overtaken, *, seek: bool) -> None:
        """Somebody else has published from these shards. If they are still ours, go on from where he got to."""
        self.progress.overtaken += 1
        log.warning("overtaken source=%s: %s", self._source, error)
        shards = set(self._gathered.shards)
        self._drop(shards)
        if not seek:
            return
        for shard, after in self._begun(sorted(shards & self.progress.shards)).items():
            self._log.seek(shard, after)

    def _drop(self, shards: set[Shard]) -> None:
        """Forget what has been gathered of these shards."""
        if not shards.isdisjoint(self._gathered.shards):
            kept = [place for place, shard in enumerate(self._gathered.shards) if shard not in shards]
            self._gathered, self._batch = self._gathered.chosen(kept), None

    def _begun(self, shards: Sequence[Shard]) -> Mapping[Shard, int | None]:
        """After which position to read each shard: where the tables are, if it still has what comes then."""
        found = dict(self._sink.assigned(shards, {shard: self._log.origin(shard) for shard in shards}))
        for shard in shards:
            if shard in self._sink.made_anew:
                raise RecordsLost(made_anew(self._source, shard))
            bounds = self._log.bounds(shard)
            if bounds is None:
                continue
            known = self._sink.known(shard)
            if known and min(known) + 1 < bounds.first:
                self._skip(shard, min(known), bounds.first)
            if found[shard] is None and self._start == "latest":
                # What comes from now on is read, whenever that is: so where it begins is kept.
                self._sink.place(shard, bounds.end - 1)
                found[shard] = self._sink.reached(shard)
            after = found[shard]
            if after is not None and after + 1 < bounds.first:
                found[shard] = bounds.first - 1
        return found

    def _find_again(self, shard: Shard) -> None:
        """Go on in a shard that does not have what comes after what is published, or end."""
        if shard not in self.progress.shards:
            return
        after, bounds = self._sink.reached(shard), self._log.bounds(shard)
        if after is not None and bounds is not None and after + 1 < bounds.first:
            self._skip(shard, after, bounds.first)
            after = bounds.first - 1
        elif after is not None:
            raise RecordsLost(
                f"Shard {shard} of '{self._source}' has nothing after position {after}, up to which it is published: the stream "
                "was made anew, or cut off. To read what it has now, run: "
                f"feature-assets stream seek {self._source} --to earliest"
            )
        self._log.seek(shard, after)

    def _skip(self, shard: Shard, after: int, first: int) -> None:
        told = (
            f"Shard {shard} of '{self._source}' begins at position {first}, and what is published is up to {after}: what lay "
            "between was removed before it was read."
        )
        if self._on_lost == "stop":
            raise RecordsLost(
                f"{told} To go on without it, run: feature-assets stream seek {self._source} --to earliest; or set "
                'on_lost = "skip" in [stream].'
            )
        self.progress.lost += first - after - 1
        log.error("records lost source=%s shard=%s after=%d first=%d: %s", self._source, shard, after, first, told)

    # What the log calls.

    def assigned(self, shards: Sequence[Shard]) -> Mapping[Shard, int | None]:
        """See `Listener`."""
        if not shards:
            return {}  # of a group that shares out one by one
        log.info("assigned source=%s shards=%s", self._source, ",".join(map(str, shards)))
        self.progress.shards.update(shards)
        try:
            return self._begun(shards)
        except FeatureAssetsError as error:
            self._failed = error
            return {}

    def revoked(self, shards: Sequence[Shard]) -> None:
        """See `Listener`."""
        if self._publishing:
            self._drop(set(shards))
        else:
            try:
                self._flush(patient=False)
            except FeatureAssetsError as error:
                self._failed = error
        self.lost(shards)

    def lost(self, shards: Sequence[Shard]) -> None:
        """See `Listener`."""
        log.info("given up source=%s shards=%s", self._source, ",".join(map(str, shards)))
        self._drop(set(shards))
        self._sink.given_up(shards)
        self.progress.shards.difference_update(shards)
