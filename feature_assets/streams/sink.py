"""From a batch of records to the stores, each record exactly once.

How far a table has the records of a shard stands in the table, put there by the commits that brought them. A commit that
begins elsewhere is refused (`offline.positions`), so it does not matter who else takes himself for the owner of a shard, and
a consumer goes on from where the tables are. Dead letters go first: what is behind a view's position is in the view, or
among them.

Online rows follow their commit, as those of pushes do. A death in between shows, for the ledger has an entry per shard with
the number of the last commit that it reflects; whoever owns the shard next finishes it first.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import polars as pl

from feature_assets.errors import FeatureAssetsError
from feature_assets.offline import Moved, OfflineStore, no_pushed_rows
from feature_assets.online.protocol import OnlineStore
from feature_assets.publication import append
from feature_assets.push.admission import PUSH
from feature_assets.settlement import finish_stream
from feature_assets.spec import ViewSpec
from feature_assets.streams import dead_letters
from feature_assets.streams.admission import Intake
from feature_assets.streams.dead_letters import DeadLetter
from feature_assets.streams.log import Records, Shard
from feature_assets.streams.progress import Progress

log = logging.getLogger(__name__)

_CROWDED: Final = 32

Positions = Mapping[Shard, int | None]


@dataclass(frozen=True, slots=True)
class Stores:
    """Where records go."""

    offline: OfflineStore
    online: OnlineStore | None
    letters: OfflineStore
    most_bytes: int = 64 << 10


@dataclass(slots=True)
class Part:
    """What a batch brings to one table: a view's rows, or dead letters; and by shard the last position it is done with."""

    after: Mapping[Shard, int]
    rows: pl.DataFrame | None = None
    letters: Sequence[DeadLetter] = ()


@dataclass(slots=True)
class Batch:
    """Records that were read and admitted, on their way. `views` and `channels` lose what has been published."""

    records: Records
    read_at: datetime
    views: dict[str, Part]
    channels: dict[str, Part]
    tombstones: int


class Sink:
    """The tables that the records of one source go to, and how far each of them is. For one thread at a time."""

    def __init__(self, intake: Intake, stores: Stores, progress: Progress | None = None) -> None:
        self._intake, self._stores = intake, stores
        self._source = intake.source.name
        self._views = {view.name: view for view in intake.views}
        self._channels: dict[str, ViewSpec | None] = {dead_letters.channel(self._source, None): None}
        self._channels |= {dead_letters.channel(self._source, view): view for view in intake.views}
        self._at: dict[str, dict[Shard, int | None]] = {name: {} for name in (*self._views, *self._channels)}
        self._origins: dict[Shard, int] = {}
        self._unsaid: set[tuple[str, Shard]] = set()
        self.made_anew: set[Shard] = set()
        self.progress = progress or Progress()

    def assigned(
        self, shards: Sequence[Shard], origins: Mapping[Shard, int | None] | None = None
    ) -> dict[Shard, int | None]:
        """Look how far the tables are in these shards, and finish what a death has left between the stores.

        Args:
            origins: of the shards, as the log tells them; they are kept with the positions.

        Returns by shard how far all views are: None where one has nothing of it. `made_anew` has those of these shards of
        which a view has the records of another stream of that name.
        """
        names = [str(shard) for shard in shards]
        self._origins |= {shard: origin for shard, origin in (origins or {}).items() if origin is not None}
        self.made_anew.difference_update(shards)
        for name, view in self._views.items():
            found = self._stores.offline.streamed(view, self._source, names)
            self._at[name] |= {shard: found[str(shard)].position for shard in shards}
            self.made_anew |= {one for one in shards if is_another(found[str(one)].origin, self._origins.get(one))}
            self._unsaid |= {(name, one) for one in shards if found[str(one)].origin != self._origins.get(one)}
            if self._stores.online is not None:
                finish_stream(view, self._source, names, self._stores.offline, self._stores.online)
        letters = dead_letters.table_of(self._source)
        for name in self._channels:
            found = self._stores.letters.streamed(letters, name, names)
            self._at[name] |= {shard: found[str(shard)].position for shard in shards}
        return {shard: self.reached(shard) for shard in shards}

    def reached(self, shard: Shard) -> int | None:
        """How far all views are in a shard that is this one's."""
        known = self.known(shard)
        return min(known) if len(known) == len(self._views) else None

    def known(self, shard: Shard) -> list[int]:
        """How far each view is that has something of a shard."""
        return [at for name in self._views if (at := self._at[name].get(shard)) is not None]

    def given_up(self, shards: Iterable[Shard]) -> None:
        """These shards are no longer this one's."""
        for shard in shards:
            for at in self._at.values():
                at.pop(shard, None)
            self._origins.pop(shard, None)

    def place(self, shard: Shard, after: int) -> None:
        """Have every view that has nothing of a shard begin after this position.

        Raises:
            Overtaken: somebody else has begun.
        """
        for name, view in self._views.items():
            if self._at[name].get(shard) is None:
                self._move(view, no_pushed_rows(view), {shard: after})

    def pass_over(self, passed: Mapping[Shard, int]) -> None:
        """Have every view go on after these positions, up to which there are no more records.

        Raises:
            Overtaken, PublicationConflict, StoreError: as `publish`.
        """
        for name, view in self._views.items():
            at = self._at[name]
            if after := {
                shard: to for shard, to in passed.items() if (found := at.get(shard)) is not None and found < to
            }:
                self._move(view, no_pushed_rows(view), after)

    def move(self, shard: Shard, after: int) -> None:
        """Have every view go on after this position, wherever it is; dead letters too."""
        for view in self._views.values():
            self._move(view, no_pushed_rows(view), {shard: after})
        for name in self._channels:
            if self._at[name].get(shard) is not None:
                moved = self._moved(name, {shard: after})
                dead_letters.keep(
                    self._stores.letters, self._source, Records(), [], moved, now=datetime.now(UTC), most_bytes=0
                )
                self._at[name][shard] = after

    def batch(self, records: Records, now: datetime | None = None) -> Batch:
        """What these records bring to each table; what a table has already is left out.

        Raises:
            StoreUnavailable: a schema registry cannot be asked now.
            TransformationRefused: a function is not the one that was registered.
        """
        now = now or datetime.now(UTC)
        read = self._intake.read(records, now)
        last = records.last()
        views, letters = dict[str, Part](), list(read.letters)
        for name in self._views:
            late = self._late(name, records)
            after = {shard: at for shard, at in last.items() if _is_behind(self._at[name].get(shard), at)}
            if not after:
                continue
            fields = read.fields if late is None else read.fields.filter(pl.col(PUSH).is_in(late))
            rows, refused = self._intake.rows(name, fields, now)
            views[name] = Part(after, rows)
            letters += refused
        return Batch(records, now, views, self._by_channel(records, letters), read.tombstones)

    def _by_channel(self, records: Records, letters: Sequence[DeadLetter]) -> dict[str, Part]:
        parts: dict[str, Part] = {}
        for channel, view in self._channels.items():
            wanted = dead_letters.NO_VIEW if view is None else view.name
            at = self._at[channel]
            mine = [
                one
                for one in letters
                if one.view == wanted and _is_behind(at.get(records.shards[one.place]), records.positions[one.place])
            ]
            if mine:
                after: dict[Shard, int] = {}
                for one in mine:
                    shard = records.shards[one.place]
                    after[shard] = max(records.positions[one.place], after.get(shard, -1))
                parts[channel] = Part(after, letters=mine)
        return parts

    def _late(self, name: str, records: Records) -> list[int] | None:
        """The places of the records that a table does not have; None if that is all."""
        at = self._at[name]
        known = {shard: found for shard in set(records.shards) if (found := at.get(shard)) is not None}
        if not known:
            return None
        least = dict(zip(reversed(records.shards), reversed(records.positions), strict=True))
        if all(least[shard] > found for shard, found in known.items()):
            return None
        return [
            place
            for place, (shard, position) in enumerate(zip(records.shards, records.positions, strict=True))
            if _is_behind(known.get(shard), position)
        ]

    def publish(self, batch: Batch) -> None:
        """Publish a batch. Safe to repeat after any failure, with the same batch.

        Raises:
            Overtaken: another consumer has published from one of these shards. Look again how far the tables are
                (`assigned`), and give up the batch.
            PublicationConflict, StoreError: nothing is lost, repeat it.
        """
        for name, part in list(batch.channels.items()):
            moved = self._moved(name, part.after)
            dead_letters.keep(
                self._stores.letters,
                self._source,
                batch.records,
                part.letters,
                moved,
                now=batch.read_at,
                most_bytes=self._stores.most_bytes,
            )
            self._at[name] |= part.after
            self.progress.letters += len(part.letters)
            del batch.channels[name]
        for name, part in list(batch.views.items()):
            view = self._views[name]
            rows = part.rows if part.rows is not None else no_pushed_rows(view)
            self._move(view, rows, part.after)
            self._count(view, rows)
            del batch.views[name]
        self.progress.tombstones += batch.tombstones
        batch.tombstones = 0

    def _count(self, view: ViewSpec, rows: pl.DataFrame) -> None:
        counted = self.progress.rows
        counted[view.name] = counted.get(view.name, 0) + rows.height
        latest = rows[view.event_timestamp].max()
        if isinstance(latest, datetime):
            self.progress.watermarks[view.name] = max(latest, self.progress.watermarks.get(view.name, latest))

    def _move(self, view: ViewSpec, rows: pl.DataFrame, after: Mapping[Shard, int]) -> None:
        moved = self._moved(view.name, after)
        done = append(view, rows, numbered=moved, offline=self._stores.offline, online=self._stores.online)
        self._at[view.name] |= after
        self._unsaid.difference_update((view.name, shard) for shard in after)
        if done.partitions:
            try:
                self._stores.offline.compact_pushes(view, done.partitions, more_than=_CROWDED)
            except FeatureAssetsError as error:
                log.info("compaction postponed view=%s error=%s", view.name, type(error).__name__)

    def _moved(self, name: str, after: Mapping[Shard, int]) -> Moved:
        before = {str(shard): self._at[name].get(shard) for shard in after}
        unsaid = [shard for shard in after if (name, shard) in self._unsaid and shard in self._origins]
        origins = {str(shard): self._origins[shard] for shard in unsaid}
        return Moved(
            self._source if name in self._views else name,
            before,
            {str(shard): at for shard, at in after.items()},
            origins,
        )


def is_another(found: int | None, told: int | None) -> bool:
    """Whether a table has the records of another stream than the one that tells its origin."""
    return found is not None and told is not None and found != told


def _is_behind(found: int | None, position: int) -> bool:
    return found is None or found < position
