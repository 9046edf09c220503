"""Bringing a commit online, and what the ledger has of it.

Why a death anywhere shows: every commit that takes rows back gives its partitions a new publication, and the ledger has a
publication as settled only when nothing that it took back is online. Whoever commits on top of one that the ledger does
not have so settles every key; so does `reconcile`. A journal of pushes has an entry of its own, with the sequence number
that it has reached: appended rows take nothing back, and their partitions keep their publications. Rows that settling
itself puts online may be taken back meanwhile: a note goes into the ledger with them, and out again after the second look.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import polars as pl

from feature_assets.errors import TableMissing
from feature_assets.offline import Commit, OfflineState, OfflineStore
from feature_assets.online.protocol import AppliedPublication, LedgerEntry, OnlineStore
from feature_assets.settlement.latest import key_frame, no_rows
from feature_assets.settlement.settling import settle
from feature_assets.spec import ViewSpec

_PUSHES: Final = "__push/"


@dataclass(frozen=True, slots=True)
class Reflected:
    """What bringing a commit online did: rows written, rows kept out by later ones, keys settled that differed."""

    written: int
    kept: int
    retracted: int


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


def pushed_of(view: ViewSpec, offline: OfflineStore, entries: Iterable[str]) -> dict[str, int]:
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


def pending(
    view: ViewSpec, offline: OfflineStore, online: OnlineStore, *, state: OfflineState | None = None
) -> tuple[str, ...]:
    """The partitions whose last publication the online store does not fully reflect, by the ledger; reads no rows.

    `state` is what the offline table holds, for whoever has just asked for it.
    """
    if not view.online:
        return ()
    state = state or offline.state(view)
    entries = online.ledger(view).entries
    unsettled = {name for name, entry in entries.items() if not entry.settled}
    published = {**(state.publications if state else {}), **pushed_of(view, offline, entries)}
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
