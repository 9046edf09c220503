"""Comparing both stores, value by value."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import polars as pl

from feature_assets.offline import OfflineStore
from feature_assets.online.protocol import ForgetsExpired, OnlineStore
from feature_assets.settlement.latest import OTHER, keyed, keys_of
from feature_assets.settlement.reflecting import pending
from feature_assets.settlement.settling import stored_rows
from feature_assets.spec import PUBLICATION, ViewSpec

_ATTEMPTS: Final = 100


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
    stored = keyed(view, stored_rows(view, online))
    latest = keyed(view, offline.latest(view, at=version).select(columns).collect(engine="streaming"))
    keys = keys_of(view)
    values = [name for name in columns if name not in keys]
    missing = latest.join(stored, on=keys, how="anti")
    if view.ttl is not None and isinstance(online, ForgetsExpired) and online.forgets_expired:
        missing = missing.filter(pl.col(view.event_timestamp) >= datetime.now(UTC) - view.ttl)
    extra = stored.join(latest, on=keys, how="anti")
    both = latest.join(stored, on=keys, how="inner", suffix=OTHER)
    # NaN equals NaN here and null equals null; what differs is named per row.
    wrong = pl.concat_str(
        [pl.when(pl.col(name).ne_missing(pl.col(name + OTHER))).then(pl.lit(f"{name} ")) for name in values],
        ignore_nulls=True,
    )
    different = both.with_columns(wrong.alias(OTHER)).filter(pl.col(OTHER) != "")
    examples = [
        *((row, "is missing online") for row in missing.head(5).select(list(view.join_keys)).iter_rows(named=True)),
        *((row, "is online only") for row in extra.head(5).select(list(view.join_keys)).iter_rows(named=True)),
        *(
            ({key: row[key] for key in view.join_keys}, f"differs in {', '.join(row[OTHER].split())}")
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
