"""`OfflineStore`: the Delta tables of all views, one per view and version."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal
from uuid import uuid4

import polars as pl
from deltalake import DeltaTable

from feature_assets.objects import open_objects
from feature_assets.offline import damage
from feature_assets.offline.changes import check_keys, check_rows, compacting, dropping, erasing, replaced, replacing
from feature_assets.offline.commits import CommitInfo, Landed, committed, history
from feature_assets.offline.erasures import FOLDER, Fence, marks, marks_of
from feature_assets.offline.files import check_partitions, files_of
from feature_assets.offline.pinned import Pinned
from feature_assets.offline.place import LOG, Place
from feature_assets.offline.positions import InJournal, Moved, Reached, journal_application, reached
from feature_assets.offline.pushes import Appending, KnownBy, SeenEvents, Sorted, no_pushed_rows
from feature_assets.offline.reading import latest, refuse_vacuumed, scanned
from feature_assets.offline.table import needed, opened, stored_types, widened
from feature_assets.offline.upkeep import vacuumed
from feature_assets.spec import EVENT_ID, PARTITION, SEQUENCE, ViewSpec
from feature_assets.types import FeatureType, moment, parse_type

PUSHED_BYTES = 16 << 20
"""What was pushed is gathered into files of this size."""


@dataclass(frozen=True, slots=True)
class OfflineState:
    """What a table holds at a version: per partition its rows and its publication.

    Partitions that were materialised without rows are there too; those that only pushes put rows into have no
    publication.
    """

    version: int
    publications: Mapping[str, int]
    rows_by_partition: Mapping[str, int]
    rows: int
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Commit:
    """A change that is in the log as `version`.

    `publication` is what its partitions have from then on (of a compaction: the greatest of theirs), `base` the
    version whose content it took the place of, None where there was none. `rows` counts the rows put in, or erased,
    `partitions` the rows that each partition that it touched has now, `total` those of the whole table.
    """

    version: int
    publication: int
    base: int | None
    rows: int
    partitions: Mapping[str, int]
    total: int


class OfflineStore:
    """History in Delta: `{root}/{view}/v{version}`, partitioned by the Dagster partition.

    Any number of processes may read and write at once: a reader sees whole commits only, and what it has opened stays as
    it was. Methods that read raise `TableMissing` for a view that was never materialised, all raise `StoreError`s.

    Args:
        root: a folder, or an object-store URL.
        storage_options: of the object store: keys, region, endpoint.
        durability: what a write that returned survives on a local disk; "process" saves the fsyncs.
        forgets: tables that this store makes may forget removed files, and so former versions, after so long; never by default.
    """

    def __init__(
        self,
        root: str,
        *,
        storage_options: Mapping[str, str] | None = None,
        durability: Literal["power-loss", "process"] = "power-loss",
        forgets: timedelta | None = None,
    ) -> None:
        self.root = _root(root)
        self.storage_options: Mapping[str, str] = dict(storage_options or {})
        self.durability = durability
        self.forgets = forgets
        self._forced: dict[str, int] = {}
        self._seen = SeenEvents()

    def uri(self, view: ViewSpec) -> str:
        """Where the view version's table lies."""
        return f"{self.root}/{view.name}/v{view.version}"

    def version(self, view: ViewSpec) -> int:
        """The Delta version that a reader would get now."""
        return needed(self._place(view)).version()

    def is_at(self, view: ViewSpec, version: int) -> bool:
        """Whether a Delta version is the latest one still, by one look for the next; the table is not read."""
        log = open_objects(f"{self.uri(view)}/{LOG}", self.storage_options)
        return log.get(f"{version + 1:020d}.json") is None

    def state(self, view: ViewSpec, *, at: int | None = None) -> OfflineState | None:
        """What the log says of the table, now or at a version, None if there is none; no data is read."""
        table = opened(self._place(view), at)
        if table is None:
            return None
        files = files_of(table)
        each = files.group_by("partition").agg(pl.col("rows").sum()).sort("partition")
        return OfflineState(
            version=table.version(),
            publications=dict(sorted(replaced(files).items())),
            rows_by_partition=dict(zip(each["partition"], each["rows"], strict=True)),
            rows=int(files["rows"].sum()),
            files=files.height,
            bytes=int(files["bytes"].sum()),
        )

    def types(self, view: ViewSpec) -> Mapping[str, FeatureType]:
        """The type of each stored column, whatever the view declares now."""
        return {name: parse_type(of) for name, of in stored_types(needed(self._place(view))).items() if of}

    def scan(
        self,
        view: ViewSpec,
        *,
        at: int | None = None,
        features: Sequence[str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        partitions: Sequence[str] | None = None,
    ) -> pl.LazyFrame:
        """The history, in no particular order; only files that can matter are read.

        Args:
            at: a Delta version; the latest by default. Either way the frame stays at that version.
            features: which ones; all by default. One that the table does not have yet is null.
            since, until: bounds of the event timestamp, both included; naive ones are UTC.
            partitions: only these.

        Returns:
            Join keys, event timestamp, created timestamp, features, `__publication`, `__partition`; canonical dtypes.

        Raises:
            DeclarationError: the declaration gives a stored column another type.
            NotReproducible: version `at` is not there any more, or (on a local disk) not whole.
        """
        table = self._at(view, at, partitions)
        return scanned(view, table, features=features, since=since, until=until, partitions=partitions)

    def pinned(self, view: ViewSpec, *, at: int | None = None) -> Pinned:
        """The whole history at a version, the latest by default, read from the log once.

        Raises:
            DeclarationError: the declaration gives a stored column another type.
            NotReproducible: version `at` is not there any more, or (on a local disk) not whole.
        """
        return Pinned(view, self._at(view, at))

    def latest(self, view: ViewSpec, *, at: int | None = None, keys: pl.DataFrame | None = None) -> pl.LazyFrame:
        """The latest row of each key (of these join keys only), with the columns of `scan`.

        Collect it with `engine="streaming"`: memory then grows with the keys, not with the history.
        """
        wanted = check_keys(view, keys) if keys is not None and view.join_keys else None
        return latest(view, self.scan(view, at=at), wanted)

    def replace(
        self,
        view: ViewSpec,
        rows: pl.LazyFrame | pl.DataFrame,
        partitions: Sequence[str],
        *,
        metadata: Mapping[str, str],
    ) -> Commit:
        """Make these rows all that the partitions hold, in one commit.

        Makes the table first if there is none, and adds columns for new features. Of two writers to one partition the
        later replaces the other's rows; writers to different partitions do not notice one another.

        Args:
            rows: conformed, with `__partition`; none for partitions that become empty. A lazy frame is streamed, and read
                again if another writer was first, so it has to give the same rows each time.
            metadata: kept in the commit.

        Raises:
            ContractBroken: the rows are not of the declared dtypes, or not of these partitions.
            DeclarationError: the declaration changes the type of a stored feature or drops one; it names the mend.
            PublicationConflict: other writers of these partitions were first at every attempt.
        """
        place, frame, keys = self._place(view), rows.lazy(), list(dict.fromkeys(partitions))
        check_rows(view, frame)
        check_partitions(view, keys)
        table = widened(place, view)
        landed = committed(place, replacing(place, view, frame, keys), table, metadata)
        if landed is None:
            raise AssertionError("a replacement always has something to commit")
        return _told(landed)

    def append(
        self,
        view: ViewSpec,
        rows: pl.DataFrame,
        *,
        numbered: InJournal | Moved | Fence,
        metadata: Mapping[str, str],
        known_by: KnownBy = "content",
    ) -> tuple[Commit | None, Sorted]:
        """Add pushed rows to their partitions in one commit, each exactly once; beside any other writer.

        Makes the table first if there is none. What the commit that carried a number has put in is known by it, whatever
        became of its answer; what was pushed before, by another process too, is known by its event id, or by being equal in
        every column.

        Args:
            rows: conformed, with `__partition`, `__event` and `__sequence`, in the order in which they came.
            numbered: the journal of pushes that numbers them, or how far in a stream they lead; of a stream there may be
                none, and the commit says how far it has been read.
            metadata: kept in the commit.
            known_by: see `KnownBy`.

        Returns:
            The commit, None if there was nothing to commit; and which rows are `fresh`, with their publications, and which
            were `recovered`: put in by an earlier attempt.

        Raises: as `replace`, and
            Overtaken: another consumer of the stream was first.
        """
        place = self._place(view)
        check_rows(view, rows.lazy(), {EVENT_ID: pl.String(), SEQUENCE: pl.Int64()})
        check_partitions(view, rows[PARTITION].unique())
        appending = Appending(place, view, rows, numbered, known_by, self._seen, partial(self._erased, view))
        landed = committed(place, appending, widened(place, view, for_pushes=True), metadata)
        return _told(landed) if landed else None, appending.sorted_rows

    def leave_out(self, view: ViewSpec, keys: pl.DataFrame, *, until: int) -> None:
        """From when this returns, rows of these keys that were pushed up to a sequence number are not put in any more,
        whatever journal they wait in; what was put in before is for `erase`. Makes the table if there is none.

        Args:
            keys: some of the join keys, or all; rows in which these match.
            until: sequence numbers are microseconds since 1970, by the clock of the host that gave them.
        """
        if keys.is_empty():
            return
        marked = marks(view, keys, until)
        journal = InJournal(uuid4().hex)
        self._of_erased().append(marks_of(view), marked, numbered=journal, metadata={}, known_by="number")
        self.append(view, no_pushed_rows(view), numbered=Fence(until), metadata={"kind": "erased keys"})

    def _erased(self, view: ViewSpec, since: int) -> pl.DataFrame:
        erased, marked = self._of_erased(), marks_of(view)
        if erased.state(marked) is None:
            return no_pushed_rows(marked)
        return erased.scan(marked, since=moment(since)).collect()

    def _of_erased(self) -> "OfflineStore":
        root = f"{self.root}/{FOLDER}"
        return OfflineStore(root, storage_options=self.storage_options, durability=self.durability)

    def streamed(self, view: ViewSpec, source: str, shards: Sequence[str]) -> dict[str, Reached]:
        """How far the table has the records of each of these shards of a stream."""
        table = opened(self._place(view))
        return {shard: reached(table, source, shard) if table else Reached() for shard in shards}

    def pushed(self, view: ViewSpec, journal: str) -> int | None:
        """The last sequence number of a journal whose rows are in the table; None if there are none."""
        table = opened(self._place(view))
        return table.transaction_version(journal_application(journal)) if table else None

    def erase(self, view: ViewSpec, keys: pl.DataFrame, *, metadata: Mapping[str, str]) -> Commit | None:
        """Delete every row of these join keys in one commit; None if there was none.

        Earlier versions still hold the rows, until `vacuum` removes their files. What was pushed while this was under way
        is not among them: if the commit's version is not the one after its base, erase again.

        Raises:
            RequestError: the frame lacks a join key, or has one of another dtype.
        """
        place = self._place(view)
        landed = committed(place, erasing(place, view, check_keys(view, keys)), needed(place), metadata)
        return _told(landed) if landed else None

    def compact(self, view: ViewSpec) -> Commit | None:
        """Make one file of the small files of each partition; None if there was nothing to do. Rows do not change."""
        place = self._place(view)
        landed = committed(place, compacting(place, view), needed(place), {})
        return _told(landed) if landed else None

    def drop(self, view: ViewSpec, partitions: Sequence[str], *, metadata: Mapping[str, str]) -> Commit | None:
        """Take whole partitions out in one commit; None if the table has none of them.

        Unlike a replacement without rows it leaves nothing that says that they were published, so it is for tables that
        nothing is served from.
        """
        place = self._place(view)
        landed = committed(place, dropping(partitions), needed(place), metadata)
        return _told(landed) if landed else None

    def compact_pushes(self, view: ViewSpec, partitions: Sequence[str], *, more_than: int) -> Commit | None:
        """The same for what was pushed into these partitions, of those that have more than so many files of it."""
        place = self._place(view)
        table = needed(place)
        files = files_of(table).filter("pushed", pl.col("partition").is_in(partitions), pl.col("bytes") < PUSHED_BYTES)
        crowded = files.group_by("partition").len().filter(pl.col("len") > more_than)["partition"].to_list()
        if not crowded:
            return None
        landed = committed(place, compacting(place, view, crowded, largest=PUSHED_BYTES), table, {})
        return _told(landed) if landed else None

    def vacuum(
        self, view: ViewSpec, *, older_than: timedelta, keep_versions: Sequence[int] = (), dry_run: bool = True
    ) -> list[str]:
        """Remove data files that no version younger than `older_than` needs; returns their paths.

        Versions before that cannot be read any more, nor by a reader that is still at one: give the longest training run
        time. What crashed writers left goes after a day at the earliest, since it may be a commit under way.

        Args:
            keep_versions: these stay whole whatever their age.
        """
        place = self._place(view)
        return vacuumed(place, needed(place), older_than, keep_versions, dry_run=dry_run)

    def needing(self, view: ViewSpec, versions: Sequence[int], files: Collection[str]) -> list[int]:
        """Those of the versions that need one of these data files, whose paths are as `vacuum` has them."""
        place, gone = self._place(view), set(files)
        tables = {version: opened(place, version) for version in versions if version <= needed(place).version()}
        return [version for version, table in tables.items() if table and gone & set(files_of(table)["path"])]

    def commits(self, view: ViewSpec, *, limit: int | None = None, after: int | None = None) -> list[CommitInfo]:
        """What happened to the table, the latest first: the last so many, or since a version."""
        place = self._place(view)
        table = needed(place)
        return history(place, table, table.version() - after if after is not None else limit)

    def check(self, view: ViewSpec, *, reached: int | None = None) -> list[str]:
        """What is damaged, in words with the mend; empty for a table that is whole or not there.

        Args:
            reached: a Delta version that is known to have been there, as the online store's ledger has it; a log that
                lost its end looks whole otherwise.
        """
        return damage.found(self._place(view), reached)

    def _at(self, view: ViewSpec, at: int | None, partitions: Sequence[str] | None = None) -> DeltaTable:
        place = self._place(view)
        table = needed(place, at)
        if at is not None:
            refuse_vacuumed(place, table, partitions)
        return table

    def _place(self, view: ViewSpec) -> Place:
        durable = self.durability == "power-loss"
        return Place(view.name, view.version, self.uri(view), self.storage_options, durable, self._forced, self.forgets)


def _told(landed: Landed) -> Commit:
    swap = landed.swap
    publication = swap.publication or max(swap.partitions.values(), default=0)
    partitions = dict.fromkeys(swap.partitions, 0)
    for file in swap.added:
        partitions[file.partition] += file.rows
    base = None if swap.removed.is_empty() else landed.base
    return Commit(landed.version, publication, base, swap.rows, partitions, swap.total)


def _root(root: str) -> str:
    if root.startswith("file://"):
        root = root.removeprefix("file://")
    return root.rstrip("/") if "://" in root else str(Path(root).expanduser().absolute())
