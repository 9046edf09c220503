"""Finishing what a crash left between the stores, and forgetting keys in both."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from feature_assets.offline import OfflineStore, stream_journal
from feature_assets.online.protocol import AppliedPublication, OnlineStore
from feature_assets.settlement.latest import key_frame, no_rows
from feature_assets.settlement.reflecting import journal_entry, pending, pushed_of, reflect, stored_state
from feature_assets.settlement.settling import settle
from feature_assets.spec import PUBLICATION, ViewSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What `reconcile` did: the partitions that had not reached the online store, and the keys that it changed."""

    view: str
    version: int
    pending: tuple[str, ...]
    changed: int


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
    published = {**state.publications, **pushed_of(view, offline, entries)}
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


def finish_stream(
    view: ViewSpec, source: str, shards: Sequence[str], offline: OfflineStore, online: OnlineStore
) -> int:
    """Bring online what commits of these shards have put into Delta and whoever made them did not live to bring there.

    Returns how many keys were changed.
    """
    if not view.online or offline.state(view) is None:
        return 0
    online.prepare(view)
    entries = online.ledger(view).entries
    behind: dict[str, int] = {}
    least: list[int] = []
    for shard, found in offline.streamed(view, source, shards).items():
        name = journal_entry(stream_journal(source, shard))
        entry, number = entries.get(name), found.commit
        if number is not None and (entry is None or entry.publication < number or not entry.settled):
            behind[name] = number
            least.append(0 if entry is None else entry.publication)
    if not behind:
        return 0
    late = offline.scan(view, features=[]).filter(pl.col(PUBLICATION) > min(least)).select(*view.join_keys, PUBLICATION)
    rows = late.collect(engine="streaming")
    keys = rows.unique(list(view.join_keys)) if view.join_keys else rows.head(1)
    changed = 0 if keys.is_empty() else settle(view, key_frame(view, keys), offline, online)
    version = offline.version(view)
    for entry_name, number in behind.items():
        if online.write(view, no_rows(view), AppliedPublication(number, version, {entry_name: 0})).superseded:
            online.settle(view, number, [])
    log.info("finished view=%s source=%s shards=%d changed=%d", view.name, source, len(behind), changed)
    return changed
