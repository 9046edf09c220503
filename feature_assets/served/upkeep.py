"""What keeps a log in order: days that are too old go, small files become one, and who is to be forgotten is."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import msgspec
import polars as pl

from feature_assets.offline import OfflineStore
from feature_assets.served.shape import DAY, REQUEST_ID, REQUEST_ROW, LogShape, log_table, tables_of
from feature_assets.spec import LoggingConfig, ViewSpec
from feature_assets.types import FeatureType


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What was removed of a log: whole days, and files that nothing needs; and how many files are `left` in use."""

    days: Sequence[str]
    files: int
    left: int


def keep_up(
    service: str,
    config: LoggingConfig,
    offline: OfflineStore,
    *,
    now: datetime,
    older_than: timedelta,
    compact: bool = True,
    dry_run: bool = False,
) -> Upkeep | None:
    """Remove the days whose last moment lies back longer than the service's retention, then old files as of any table.

    Args:
        now: the moment that retention counts from.
        older_than: as of `OfflineStore.vacuum`.
        compact: make one file of the small ones of a day first.
        dry_run: only say what would go.

    Returns:
        None where nothing was ever logged.
    """
    removed: set[str] = set()
    files = left = 0
    tables = list(tables_of(log_table(service), offline))
    for table in tables:
        state = offline.state(table)
        due = [] if state is None else _due(config.retention, state.rows_by_partition, now)
        removed.update(due)
        if due and not dry_run:
            offline.drop(table, due, metadata={"operation": "retention"})
        if compact and not dry_run:
            offline.compact(table)
        files += len(offline.vacuum(table, older_than=older_than, dry_run=dry_run))
        state = offline.state(table)
        left += state.files if state else 0
    return Upkeep(sorted(removed), files, left) if tables else None


def _due(retention: timedelta | None, days: Mapping[str, int], now: datetime) -> list[str]:
    if retention is None:
        return []
    first = (now.astimezone(UTC) - retention).strftime(DAY)
    return [day for day in days if day < first]


Way: TypeAlias = Mapping[str, str]
"""By join key of a view the column of a log that asks for it."""


def ways_of(shape: LogShape, keys: Set[str]) -> Iterator[Way]:
    """The ways in which a service asks for these join keys; a view that has not all of them is passed over."""
    for read in shape.plan.reads:
        columns = dict(read.keys)
        if keys <= columns.keys():
            yield {key: columns[key] for key in keys}


def requests_of(
    service: str,
    ways: Sequence[Way],
    offline: OfflineStore,
    given: Callable[[Mapping[str, FeatureType]], pl.DataFrame],
) -> Iterator[tuple[ViewSpec, pl.DataFrame]]:
    """Each table of a log with the requests of it that asked for one of some entities, as keys to erase them by.

    Args:
        ways: in which the service asked for them, now or formerly.
        given: makes their join keys of the types that a table has them in.
    """
    for first in tables_of(log_table(service), offline):
        stored = offline.types(first)
        here = [way for way in ways if set(way.values()) <= stored.keys()]
        if not here:
            continue
        columns = {name: stored[name] for way in here for name in way.values()}
        table = msgspec.structs.replace(log_table(service, columns), version=first.version)
        rows = offline.scan(table)
        found = [
            rows.join(
                given({key: stored[name] for key, name in way.items()}).lazy().rename(way),
                on=list(way.values()),
                how="semi",
            )
            for way in here
        ]
        requests = pl.concat(found).select(REQUEST_ID, REQUEST_ROW).unique().collect(engine="streaming")
        if not requests.is_empty():
            yield table, requests
