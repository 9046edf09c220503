"""What keeps a log in order: days that are too old go, small files become one, and who is to be forgotten is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from feature_assets.offline import OfflineStore
from feature_assets.served.shape import DAY, REQUEST_ID, REQUEST_ROW, LogShape, log_table, tables_of
from feature_assets.spec import LoggingConfig, ViewSpec


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What was removed of a log: whole days, and files that nothing needs."""

    days: Sequence[str]
    files: int


def keep_up(
    service: str,
    config: LoggingConfig,
    offline: OfflineStore,
    *,
    now: datetime,
    older_than: timedelta,
) -> Upkeep | None:
    """Remove the days whose last moment lies back longer than the service's retention, then old files as of any table.

    Args:
        now: the moment that retention counts from.
        older_than: as of `OfflineStore.vacuum`.

    Returns:
        None where nothing was ever logged.
    """
    removed: set[str] = set()
    files = 0
    tables = list(tables_of(log_table(service), offline))
    for table in tables:
        state = offline.state(table)
        due = [] if state is None else _due(config.retention, state.rows_by_partition, now)
        removed.update(due)
        if due:
            offline.drop(table, due, metadata={"operation": "retention"})
        offline.compact(table)
        files += len(offline.vacuum(table, older_than=older_than, dry_run=False))
    return Upkeep(sorted(removed), files) if tables else None


def _due(retention: timedelta | None, days: Mapping[str, int], now: datetime) -> list[str]:
    if retention is None:
        return []
    first = (now.astimezone(UTC) - retention).strftime(DAY)
    return [day for day in days if day < first]


def requests_of(shape: LogShape, offline: OfflineStore, given: pl.DataFrame) -> Iterator[tuple[ViewSpec, pl.DataFrame]]:
    """Each table of a log with the requests of it that asked for one of these entities, as keys to erase them by.

    Args:
        given: join keys as the views have them; a service may ask for them by other names, and in several ways.
    """
    ways = [way for read in shape.plan.reads if (way := _way(dict(read.keys), given.columns)) is not None]
    if not ways:
        return
    keys = log_table(shape.table.name, {name: shape.keys[name] for way in ways for name in way.values()})
    for table in tables_of(keys, offline):
        rows = offline.scan(table)
        found = [rows.join(given.lazy().rename(way), on=list(way.values()), how="semi") for way in ways]
        requests = pl.concat(found).select(REQUEST_ID, REQUEST_ROW).unique().collect(engine="streaming")
        if not requests.is_empty():
            yield table, requests


def _way(columns: Mapping[str, str], keys: Sequence[str]) -> dict[str, Any] | None:
    """By which columns of the log a view is looked up with these of its join keys; None if it has not all of them."""
    return {key: columns[key] for key in keys} if set(keys) <= columns.keys() else None
