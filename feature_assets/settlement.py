"""Making online equal to what offline says is latest: settle some keys, reconcile a view, verify it, erase keys.

A guarded write is enough while rows only get later. It is not when a re-materialisation takes rows back or lowers
them, when a process died between the stores, or when keys are erased. Then keys are *settled*: read what is stored,
load Delta, find what is latest there, and set each key that differs by compare-and-set.

Why that is right beside other writers: every writer commits to Delta before it writes online. So a token that was read
from the store *before* a Delta version was loaded belongs to a commit that this version contains; if it is not the
latest there, it was taken back. A row stored later fails the comparison and is looked at again; a commit made later is
seen by the second look at the Delta version.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from feature_assets.errors import PublicationConflict, TableMissing
from feature_assets.offline import OfflineState, OfflineStore, next_publication
from feature_assets.online.protocol import AppliedPublication, ForgetsExpired, LedgerEntry, OnlineStore
from feature_assets.spec import PUBLICATION, ViewSpec
from feature_assets.types import Timestamp

log = logging.getLogger(__name__)

ERASURE = "__erasure"
"""The ledger's entry for an erasure; no partition has such a name."""

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
        return self.missing + self.extra + self.different


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What `reconcile` did: the partitions that had not reached the online store, and the keys that it changed."""

    view: str
    version: int
    pending: tuple[str, ...]
    changed: int


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
    tokens = rows.select(*view.join_keys, *_times(view)).sort(order(view))
    newest = tokens.unique(subset=list(view.join_keys), keep="last") if view.join_keys else tokens.tail(1)
    return newest.collect(engine="streaming")


def taken_back(view: ViewSpec, before: pl.DataFrame, latest: pl.DataFrame) -> pl.DataFrame:
    """The keys whose row is gone, or earlier than before; both frames have each key once."""
    both = _beside(view, before, latest)
    gone = pl.col(view.event_timestamp + _OTHER).is_null()
    return key_frame(view, both.filter(gone | _later(view, publication=False)))


def settle(view: ViewSpec, keys: pl.DataFrame | None, offline: OfflineStore, online: OnlineStore) -> int:
    """Make the online rows of these keys (a `key_frame`; None: of all) what Delta says is latest.

    Returns how many rows were changed.

    Raises:
        PublicationConflict: other publishers changed the same keys at every attempt.
    """
    keys = keys if view.join_keys else None
    changed = 0
    for _ in range(_ATTEMPTS):
        stored = online.stored(view, keys)
        version = offline.version(view)
        rows = (
            offline.latest(view, at=version, keys=keys).select(*view.columns, PUBLICATION).collect(engine="streaming")
        )
        ahead, behind = _apart(view, stored, rows)
        if not ahead.is_empty():
            changed += online.write(view, ahead, None).written
        missed = 0
        if not behind.is_empty():
            missed = online.retract(view, behind, _matching(view, rows, behind))
            changed += behind.height - missed
        if not missed and offline.version(view) == version:
            return changed
    raise PublicationConflict(
        f"{view.name}: online rows kept changing while they were corrected. "
        f"Offline is right; when it is quieter, run: feature-assets reconcile {view.name}"
    )


def _apart(view: ViewSpec, stored: pl.DataFrame, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows that are later than what is stored, and stored tokens that are later than the rows or have none."""
    differs = pl.col(view.event_timestamp + _OTHER).is_null() | _later(view, publication=True)
    ahead = _beside(view, rows, stored).filter(differs).select(rows.columns)
    behind = _beside(view, stored, rows).filter(differs).select(stored.columns)
    return ahead, behind


def _matching(view: ViewSpec, rows: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    return rows.join(keys, on=list(view.join_keys), how="semi") if view.join_keys else rows


def _beside(view: ViewSpec, left: pl.DataFrame, right: pl.DataFrame) -> pl.DataFrame:
    """Left rows with the times of the right row of the same key, null where there is none."""
    times = [name for name in (*_times(view), PUBLICATION) if name in right.columns]
    narrow = _keyed(view, right).select(*_keys(view), *(pl.col(name).alias(name + _OTHER) for name in times))
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
    return tuple(sorted(unsettled.union(unreflected(state.publications if state else {}, entries))))


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
    changed = settle(view, None, offline, online)
    for name in behind:
        published = name in state.publications
        applied = AppliedPublication(
            publication=state.publications[name] if published else entries[name].publication,
            delta_version=state.version,
            partitions={name: state.rows_by_partition[name] if published else 0},
            settled=False,
        )
        online.write(view, _no_rows(view), applied)
        online.settle(view, applied.publication, [name], whole_since=begun)
    log.info("reconciled view=%s version=%d pending=%d changed=%d", view.name, view.version, len(behind), changed)
    return Reconciliation(view.name, view.version, behind, changed)


def _no_rows(view: ViewSpec) -> pl.DataFrame:
    columns = {
        **view.join_keys,
        **dict.fromkeys(_times(view), Timestamp),
        **{one.name: one.type for one in view.features},
    }
    return pl.DataFrame(schema={**{name: columns[name].polars for name in view.columns}, PUBLICATION: pl.Int64()})


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
    stored = _keyed(view, pl.concat([_no_rows(view), *online.scan(view)]))
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
        keys: the join keys, each once, of the exact dtypes.

    Raises:
        TableMissing: the view was never materialised.
    """
    number = next_publication(0)
    if online is not None and view.online:
        online.prepare(view)
        former = online.ledger(view).entries.get(ERASURE)
        number = next_publication(former.publication if former else 0)
        intent = AppliedPublication(
            publication=number, delta_version=offline.version(view), partitions={ERASURE: 0}, settled=False
        )
        online.write(view, _no_rows(view), intent)
    commit = offline.erase(view, keys, metadata={"operation": "erase"})
    if online is not None and view.online:
        settle(view, keys, offline, online)
        online.settle(view, number, [ERASURE])
    return commit.rows if commit else 0
