"""Making online equal to what offline says is latest, key by key.

A guarded write is enough while rows only get later. It is not when a commit takes rows back or lowers them, when a
process died between the stores, or when a later publication was online first. Then keys are *settled*: read what is
stored, load Delta, find what is latest there, and set each key that differs by compare-and-set.

Why that is right beside other writers: every writer commits to Delta before it writes online. So a token that was read
from the store *before* a Delta version was loaded belongs to a commit that this version contains; if it is not the
latest there, it was taken back. A row stored later fails the comparison and is looked at again; a commit made later is
seen by the second look at the Delta version.
"""

from contextlib import suppress
from typing import Final
from uuid import uuid4

import polars as pl

from feature_assets.errors import PublicationConflict, TableMissing
from feature_assets.offline import OfflineStore
from feature_assets.online.protocol import AppliedPublication, OnlineStore
from feature_assets.settlement.latest import OTHER, beside, is_later, matching, no_rows, times
from feature_assets.spec import PUBLICATION, ViewSpec

SETTLING: Final = "__settling/"
"""How the ledger's notes of a settlement under way begin; no partition has such a name."""

_ATTEMPTS: Final = 100


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
        stored = stored_rows(view, online) if values else online.stored(view, keys)
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
            missed = online.retract(view, behind, matching(view, rows, behind))
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
    tokens = stored.select(*view.join_keys, *times(view), PUBLICATION)
    later = pl.col(view.event_timestamp + OTHER).is_null() | is_later(view, publication=True)
    ahead = beside(view, rows, stored).filter(later | _other_values(view, stored)).select(rows.columns)
    behind = beside(view, tokens, rows).filter(later).select(tokens.columns)
    return ahead, behind


def _other_values(view: ViewSpec, stored: pl.DataFrame) -> pl.Expr:
    """Whether a row has the times and publication of the one beside it, and other values."""
    same = [pl.col(name).eq_missing(pl.col(name + OTHER)) for name in (*times(view), PUBLICATION)]
    values = [one.name for one in view.features if one.name in stored.columns]
    other = [pl.col(name).ne_missing(pl.col(name + OTHER)) for name in values]
    return pl.all_horizontal(*same) & pl.any_horizontal(pl.lit(False), *other)


def stored_rows(view: ViewSpec, online: OnlineStore) -> pl.DataFrame:
    """Every online row; none where a publisher died before it made the table."""
    with suppress(TableMissing):
        return pl.concat([no_rows(view), *online.scan(view)])
    return no_rows(view)
