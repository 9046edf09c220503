"""Making online equal to what offline says is latest: reflect a commit, settle keys, reconcile, verify, erase.

A guarded write is enough while rows only get later. It is not when a commit takes rows back or lowers them, when a
process died between the stores, or when a later publication was online first. Then keys are *settled*: read what is
stored, load Delta, find what is latest there, and set each key that differs by compare-and-set.

Why that is right beside other writers: every writer commits to Delta before it writes online. So a token that was read
from the store *before* a Delta version was loaded belongs to a commit that this version contains; if it is not the
latest there, it was taken back. A row stored later fails the comparison and is looked at again; a commit made later is
seen by the second look at the Delta version.

Why a death anywhere shows: every commit that takes rows back gives its partitions a new publication, and the ledger has a
publication as settled only when nothing that it took back is online. Whoever commits on top of one that the ledger does
not have so settles every key; so does `reconcile`. A journal of pushes has an entry of its own, with the sequence number
that it has reached: appended rows take nothing back, and their partitions keep their publications. Rows that settling
itself puts online may be taken back meanwhile: a note goes into the ledger with them, and out again after the second look.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import uuid4

import polars as pl

from feature_assets.errors import PublicationConflict, TableMissing
from feature_assets.offline import Commit, OfflineState, OfflineStore
from feature_assets.online.protocol import AppliedPublication, ForgetsExpired, LedgerEntry, OnlineStore
from feature_assets.spec import PUBLICATION, ViewSpec
from feature_assets.types import Timestamp

log = logging.getLogger(__name__)

SETTLING = "__settling/"
"""How the ledger's notes of a settlement under way begin; no partition has such a name."""

_PUSHES = "__push/"

_ATTEMPTS = 100
_OTHER = "__other"
_NO_KEY = "__key"
_BEFORE_ALL = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Differences:
    """How an online view differs from the latest rows of its offline history, in keys.

    `examples` has at most ten of them: the join keys, and what is wrong in words.
    """

    view: str
    version: int
    delta_version: int
    keys: int
    missing: int = 0
    extra: int = 0
    different: int = 0
    examples: tuple[tuple[dict[str, object], str], ...] = ()

    @property
    def total(self) -> int:
        """How many keys differ, in whatever way."""
        return self.missing + self.extra + self.different


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What `reconcile` did: the partitions that had not reached the online store, and the keys that it changed."""

    view: str
    version: int
    pending: tuple[str, ...]
    changed: int


@dataclass(frozen=True, slots=True)
class Reflected:
    """What bringing a commit online did: rows written, rows kept out by later ones, keys settled that differed."""

    written: int
    kept: int
    retracted: int


def order(view: ViewSpec) -> list[pl.Expr]:
    """What conformed rows are ordered by, earliest first; no created time comes before any."""
    event = pl.col(view.event_timestamp)
    return [event] if view.created_timestamp is None else [event, pl.col(view.created_timestamp).fill_null(_BEFORE_ALL)]


def key_frame(view: ViewSpec, rows: pl.DataFrame) -> pl.DataFrame:
    """The join keys of rows that have each key once. The one key of a view without entities is a constant."""
    return _keyed(view, rows).select(_keys(view))


def _keys(view: ViewSpec) -> list[str]:
    return list(view.join_keys) or [_NO_KEY]


def _keyed(view: ViewSpec, rows: pl.DataFrame) -> pl.DataFrame:
    return rows if view.join_keys or _NO_KEY in rows.columns else rows.with_columns(pl.lit(0).alias(_NO_KEY))


def latest_tokens(view: ViewSpec, rows: pl.LazyFrame) -> pl.DataFrame:
    """Join keys, event and created time of the latest row of each key."""
    return latest_rows(view, rows.select(*view.join_keys, *_times(view)))


def latest_rows(view: ViewSpec, rows: pl.LazyFrame, *, more: Sequence[str] = ()) -> pl.DataFrame:
    """The latest row of each key, in memory that grows with the keys and not with the rows.

    Args:
        rows: join keys, times and whatever else.
        more: columns that decide where rows have one key and the same times.
    """
    keys, event = list(view.join_keys), view.event_timestamp
    # Two passes that stream. To sort first and keep the last of each key would hold all rows at once.
    newest = rows.group_by(keys).agg(pl.col(event).max()) if keys else rows.select(pl.col(event).max())
    candidates = rows.join(newest.collect(engine="streaming").lazy(), on=[*keys, event], how="semi")
    ordered = candidates.collect(engine="streaming").sort([*order(view), *more])
    return ordered.unique(subset=keys, keep="last", maintain_order=False) if keys else ordered.tail(1)


def taken_back(view: ViewSpec, before: pl.DataFrame, latest: pl.DataFrame) -> pl.DataFrame:
    """The keys whose row is gone, or earlier than before; both frames have each key once."""
    both = _beside(view, before, latest)
    gone = pl.col(view.event_timestamp + _OTHER).is_null()
    return key_frame(view, both.filter(gone | _later(view, publication=False)))


def reflect(
    view: ViewSpec,
    commit: Commit,
    latest: pl.DataFrame,
    lost: pl.DataFrame,
    offline: OfflineStore,
    online: OnlineStore,
) -> Reflected:
    """Bring a commit online.

    Args:
        commit: what was committed; the online table has been prepared.
        latest: the rows that it brought, of each key the latest, with their publication.
        lost: the keys (a `key_frame`) whose latest row it took back or lowered.

    Raises:
        PublicationConflict: others changed the same keys at every attempt. `reconcile` goes on from there.
    """
    # Whoever published these partitions last may have died before it was done; then no one knows what is online.
    everything = commit.base is not None and _is_unfinished(view, commit, commit.base, offline, online)
    settled = lost.is_empty() and not everything
    count = online.write(view, latest, _applied(commit, commit.partitions, settled=settled))
    partitions = list(commit.partitions)
    if count.superseded:
        # A later publication of one of these partitions was here first. It settles that one, the others are still ours.
        lost = pl.concat([lost, key_frame(view, latest)]).unique()
        partitions = _not_superseded(view, commit, online)
    retracted = 0
    if count.superseded or not settled:
        retracted = settle(view, None if everything else lost, offline, online)
        online.settle(view, commit.publication, partitions)
    return Reflected(count.written, count.kept, retracted)


def reflect_pushes(
    view: ViewSpec, applied: AppliedPublication, latest: pl.DataFrame, offline: OfflineStore, online: OnlineStore
) -> Reflected:
    """Bring appended rows online.

    Args:
        applied: what the ledger's entry of their journal gets, and what the ledger had of their partitions before they
            were committed: whoever takes rows back enters that there before it looks what is online.
        latest: the latest of them of each key, with their publications.
    """
    count = online.write(view, latest, applied)
    if not count.superseded:
        return Reflected(count.written, count.kept, 0)
    retracted = settle(view, key_frame(view, latest), offline, online)
    online.write(view, no_rows(view), replace(applied, seen={}))
    online.settle(view, applied.publication, list(applied.partitions))
    return Reflected(0, 0, retracted)


def journal_entry(journal: str) -> str:
    """The ledger's entry of a journal of pushes, whose publications are sequence numbers."""
    return f"{_PUSHES}{journal}"


def reached(view: ViewSpec, journal: str, offline: OfflineStore, online: OnlineStore) -> int:
    """The sequence number up to which both stores have the view's rows of a journal; 0 if they have none."""
    if view.online:
        entry = online.ledger(view).entries.get(journal_entry(journal))
        return entry.publication if entry is not None and entry.settled else 0
    return offline.pushed(view, journal) or 0


def _pushed(view: ViewSpec, offline: OfflineStore, entries: Iterable[str]) -> dict[str, int]:
    """The sequence number up to which Delta has the rows of each journal that the ledger knows."""
    journals = [name.removeprefix(_PUSHES) for name in entries if name.startswith(_PUSHES)]
    found = {journal_entry(journal): offline.pushed(view, journal) for journal in journals}
    return {name: number for name, number in found.items() if number is not None}


def _is_unfinished(view: ViewSpec, commit: Commit, base: int, offline: OfflineStore, online: OnlineStore) -> bool:
    before = stored_state(view, offline, at=base).publications
    replaced = {name: number for name, number in before.items() if name in commit.partitions}
    return bool(unreflected(replaced, online.ledger(view).entries))


def _not_superseded(view: ViewSpec, commit: Commit, online: OnlineStore) -> list[str]:
    """Enter those partitions of a commit into the ledger, not settled, that no later publication has there."""
    return [
        name
        for name, rows in commit.partitions.items()
        if not online.write(view, no_rows(view), _applied(commit, {name: rows}, settled=False)).superseded
    ]


def _applied(commit: Commit, partitions: Mapping[str, int], *, settled: bool) -> AppliedPublication:
    return AppliedPublication(commit.publication, commit.version, partitions, settled)


def settle(
    view: ViewSpec,
    keys: pl.DataFrame | None,
    offline: OfflineStore,
    online: OnlineStore,
    *,
    values: bool = False,
) -> int:
    """Make the online rows of these keys (a `key_frame`; None: of all) what Delta says is latest.

    With `values` every stored row is compared as a whole, with keys None only; else times and publications are.

    Returns how many rows were changed.

    Raises:
        PublicationConflict: other publishers changed the same keys at every attempt.
    """
    keys = keys if view.join_keys else None
    note = f"{SETTLING}{uuid4().hex}"
    changed, noted = 0, False
    for _ in range(_ATTEMPTS):
        stored = _stored_rows(view, online) if values else online.stored(view, keys)
        version = offline.version(view)
        rows = (
            offline.latest(view, at=version, keys=keys).select(*view.columns, PUBLICATION).collect(engine="streaming")
        )
        ahead, behind = _apart(view, stored, rows)
        if not ahead.is_empty():
            changed += online.write(view, ahead, AppliedPublication(0, version, {note: 0}, settled=False)).written
            noted = True
        missed = 0
        if not behind.is_empty():
            missed = online.retract(view, behind, _matching(view, rows, behind))
            changed += behind.height - missed
        if not missed and offline.version(view) == version:
            if noted:
                online.forget(view, [note])
            return changed
    raise PublicationConflict(
        f"{view.name}: online rows kept changing while they were corrected. "
        f"Offline is right; when it is quieter, run: feature-assets reconcile {view.name}"
    )


def _apart(view: ViewSpec, stored: pl.DataFrame, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows that are later than what is stored or of other values, and stored tokens that are later or have no row."""
    tokens = stored.select(*view.join_keys, *_times(view), PUBLICATION)
    later = pl.col(view.event_timestamp + _OTHER).is_null() | _later(view, publication=True)
    ahead = _beside(view, rows, stored).filter(later | _other_values(view, stored)).select(rows.columns)
    behind = _beside(view, tokens, rows).filter(later).select(tokens.columns)
    return ahead, behind


def _other_values(view: ViewSpec, stored: pl.DataFrame) -> pl.Expr:
    """Whether a row has the times and publication of the one beside it, and other values."""
    same = [pl.col(name).eq_missing(pl.col(name + _OTHER)) for name in (*_times(view), PUBLICATION)]
    values = [one.name for one in view.features if one.name in stored.columns]
    other = [pl.col(name).ne_missing(pl.col(name + _OTHER)) for name in values]
    return pl.all_horizontal(*same) & pl.any_horizontal(pl.lit(False), *other)


def _matching(view: ViewSpec, rows: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    return rows.join(keys, on=list(view.join_keys), how="semi") if view.join_keys else rows


def _beside(view: ViewSpec, left: pl.DataFrame, right: pl.DataFrame) -> pl.DataFrame:
    """Left rows with what the right row of the same key has beside its key, null where there is none."""
    beside = [name for name in right.columns if name not in _keys(view)]
    narrow = _keyed(view, right).select(*_keys(view), *(pl.col(name).alias(name + _OTHER) for name in beside))
    return _keyed(view, left).join(narrow, on=_keys(view), how="left")


def _times(view: ViewSpec) -> list[str]:
    return [name for name in (view.event_timestamp, view.created_timestamp) if name is not None]


def _later(view: ViewSpec, *, publication: bool) -> pl.Expr:
    """Whether a row is later than the one beside it; null where there is none beside it."""
    later = pl.lit(False)
    for name in reversed([*_times(view), PUBLICATION] if publication else _times(view)):
        mine, other = pl.col(name), pl.col(name + _OTHER)
        if name == view.created_timestamp:
            mine, other = mine.fill_null(_BEFORE_ALL), other.fill_null(_BEFORE_ALL)
        later = (mine > other) | ((mine == other) & later)
    return later


def pending(view: ViewSpec, offline: OfflineStore, online: OnlineStore) -> tuple[str, ...]:
    """The partitions whose last publication the online store does not fully reflect, by the ledger; reads no rows."""
    if not view.online:
        return ()
    state = offline.state(view)
    entries = online.ledger(view).entries
    unsettled = {name for name, entry in entries.items() if not entry.settled}
    published = {**(state.publications if state else {}), **_pushed(view, offline, entries)}
    return tuple(sorted(unsettled.union(unreflected(published, entries))))


def stored_state(view: ViewSpec, offline: OfflineStore, *, at: int | None = None) -> OfflineState:
    """What the offline table holds.

    Raises:
        TableMissing: the view was never materialised.
    """
    state = offline.state(view, at=at)
    if state is None:
        raise TableMissing.of(view.name, view.version, "offline")
    return state


def unreflected(published: Mapping[str, int], entries: Mapping[str, LedgerEntry]) -> set[str]:
    """Of these partitions, those whose publication is not, or not wholly, in the ledger.

    A ledger that is ahead is fine: whoever wrote it has committed something later.
    """
    return {
        name
        for name, publication in published.items()
        if (entry := entries.get(name)) is None
        or entry.publication < publication
        or (entry.publication == publication and not entry.settled)
    }


def reconcile(view: ViewSpec, offline: OfflineStore, online: OnlineStore, *, force: bool = False) -> Reconciliation:
    """Finish what a crash left between the stores. Does nothing where the ledger is complete, unless `force`.

    With `force` values are compared too, so that a row that was changed by hand is mended.

    Raises:
        TableMissing: the view was never materialised.
        PublicationConflict: publishers were busier than this could follow.
    """
    behind = pending(view, offline, online)
    if not view.online or not (behind or force):
        return Reconciliation(view.name, view.version, (), 0)
    online.prepare(view)
    begun = datetime.now(UTC)
    # Read before settling: what is published afterwards has its own writer, or is pending again.
    state, entries = stored_state(view, offline), online.ledger(view).entries
    published = {**state.publications, **_pushed(view, offline, entries)}
    changed = settle(view, None, offline, online, values=force)
    for name, number in published.items():
        if name in behind:
            applied = AppliedPublication(number, state.version, {name: state.rows_by_partition.get(name, 0)})
            if online.write(view, no_rows(view), applied).superseded:
                online.settle(view, number, [])
    # Notes of settlements that never ended, and partitions that the table does not have any more.
    online.forget(view, [name for name in behind if name in entries and name not in published])
    online.settle(view, 0, [], whole_since=begun)
    log.info("reconciled view=%s version=%d pending=%d changed=%d", view.name, view.version, len(behind), changed)
    return Reconciliation(view.name, view.version, behind, changed)


def no_rows(view: ViewSpec) -> pl.DataFrame:
    """No rows, as the online store takes them."""
    columns = {
        **view.join_keys,
        **dict.fromkeys(_times(view), Timestamp),
        **{one.name: one.type for one in view.features},
    }
    return pl.DataFrame(schema={**{name: columns[name].polars for name in view.columns}, PUBLICATION: pl.Int64()})


def _stored_rows(view: ViewSpec, online: OnlineStore) -> pl.DataFrame:
    """Every online row; none where a publisher died before it made the table."""
    with suppress(TableMissing):
        return pl.concat([no_rows(view), *online.scan(view)])
    return no_rows(view)


def verify(view: ViewSpec, offline: OfflineStore, online: OnlineStore) -> Differences:
    """Compare every online row with the latest offline row of its key, values included.

    Raises:
        TableMissing: the view was never materialised.
    """
    found = _compare(view, offline, online)
    for _ in range(_ATTEMPTS):
        # A publication between the two reads looks like a difference; only one that stays is one.
        if not found.total or (found.delta_version == offline.version(view) and not pending(view, offline, online)):
            break
        again = _compare(view, offline, online)
        if (again.total, again.delta_version) == (found.total, found.delta_version):
            return again
        found = again
    return found


def _compare(view: ViewSpec, offline: OfflineStore, online: OnlineStore) -> Differences:
    version = offline.version(view)
    columns = [*view.columns, PUBLICATION]
    stored = _keyed(view, _stored_rows(view, online))
    latest = _keyed(view, offline.latest(view, at=version).select(columns).collect(engine="streaming"))
    keys = _keys(view)
    values = [name for name in columns if name not in keys]
    missing = latest.join(stored, on=keys, how="anti")
    if view.ttl is not None and isinstance(online, ForgetsExpired) and online.forgets_expired:
        missing = missing.filter(pl.col(view.event_timestamp) >= datetime.now(UTC) - view.ttl)
    extra = stored.join(latest, on=keys, how="anti")
    both = latest.join(stored, on=keys, how="inner", suffix=_OTHER)
    # NaN equals NaN here and null equals null; what differs is named per row.
    wrong = pl.concat_str(
        [pl.when(pl.col(name).ne_missing(pl.col(name + _OTHER))).then(pl.lit(f"{name} ")) for name in values],
        ignore_nulls=True,
    )
    different = both.with_columns(wrong.alias(_OTHER)).filter(pl.col(_OTHER) != "")
    examples = [
        *((row, "is missing online") for row in missing.head(5).select(list(view.join_keys)).iter_rows(named=True)),
        *((row, "is online only") for row in extra.head(5).select(list(view.join_keys)).iter_rows(named=True)),
        *(
            ({key: row[key] for key in view.join_keys}, f"differs in {', '.join(row[_OTHER].split())}")
            for row in different.head(5).iter_rows(named=True)
        ),
    ]
    return Differences(
        view.name,
        view.version,
        version,
        latest.height,
        missing.height,
        extra.height,
        different.height,
        tuple(examples[:10]),
    )


def erase(view: ViewSpec, keys: pl.DataFrame, offline: OfflineStore, online: OnlineStore | None) -> int:
    """Forget keys in both stores: every offline row and the online row. Returns how many offline rows went.

    The Delta versions from before still hold the rows until they are vacuumed. A crash in between is finished by
    `reconcile`, or by erasing again.

    Args:
        keys: the join keys, of the exact dtypes.

    Raises:
        RequestError: the frame lacks a join key, or has one of another dtype; nothing was erased.
        TableMissing: the view was never materialised.
    """
    erased, again = 0, True
    while again:
        commit = offline.erase(view, keys, metadata={"operation": "erase"})
        erased += commit.rows if commit else 0
        # Rows that were pushed between what the commit was made from and the commit are still there.
        again = commit is not None and commit.base is not None and commit.version > commit.base + 1
        if online is not None and view.online:
            online.prepare(view)
            keys = keys.select(list(view.join_keys)).unique()
            if commit is not None:
                reflect(view, commit, no_rows(view), keys, offline, online)
            else:
                settle(view, keys, offline, online)
    return erased
