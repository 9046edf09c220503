"""Records that no row could be made of: kept with the reason in a Delta table of their source, each once.

What could not be read at all stands there once, with an empty view; what a view refused, once for that view. The positions
of both are kept apart, so that a view that comes later tells of its own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import polars as pl

from feature_assets.config import Settings
from feature_assets.offline import Moved, OfflineStore
from feature_assets.spec import EVENT_ID, PARTITION, SEQUENCE, Entity, Field, ViewSpec
from feature_assets.streams.log import Headers, Records
from feature_assets.types import Bytes, Int64, String, Timestamp, moment

FOLDER: Final = "__dead_letters"
"""Of the offline store: names of views have no two underscores."""

NO_VIEW: Final = ""
DAY: Final = "%Y-%m-%d"
"""The partition of a dead letter is the day on which it was read, in UTC."""

_VERSIONS_KEPT = timedelta(days=1)
_CROWDED: Final = 32
_MOST_HEADERS: Final = 4096


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record, by its place among those of its batch, and why it is none of `view`'s rows."""

    place: int
    reason: str
    view: str = NO_VIEW


def dead_letter_store(settings: Settings) -> OfflineStore:
    """Where the dead letters of all sources are kept: beside the history of the views."""
    root = f"{settings.place(settings.offline)}/{FOLDER}"
    return OfflineStore(
        root, storage_options=settings.storage(), durability=settings.durability, forgets=_VERSIONS_KEPT
    )


def table_of(source: str) -> ViewSpec:
    """The table of a source's dead letters.

    `position` is text, since some are longer than 64 bits. `value` may be cut off; `value_bytes` is its whole length.
    """
    return ViewSpec(
        name=source,
        entities=(Entity("record", {"stream": String, "shard": String, "position": String, "view": String}),),
        features=(
            Field("written_at", Timestamp, "When the record was written, as the log has it."),
            Field("key", Bytes),
            Field("value", Bytes),
            Field("value_bytes", Int64),
            Field("headers", String, "As JSON: pairs of a name and a text."),
            Field("reason", String),
        ),
        event_timestamp="read_at",
        online=False,
    )


def channel(source: str, view: ViewSpec | None) -> str:
    """Under which name the positions of a view's dead letters are kept, or of those of no view."""
    return source if view is None else f"{source}:{view.name}@v{view.version}"


def keep(
    offline: OfflineStore,
    source: str,
    records: Records,
    letters: Sequence[DeadLetter],
    moved: Moved,
    *,
    now: datetime,
    most_bytes: int,
) -> None:
    """Put dead letters into their table, each once.

    Args:
        records: those that they are of.
        moved: from where to where they lead in their channel.
        now: when they were read (UTC).
        most_bytes: so much of a key and of a value is kept.

    Raises:
        Overtaken: another consumer has put them there, or others.
    """
    table = table_of(source)
    rows = _rows(records, letters, now, most_bytes)
    offline.append(table, rows, numbered=moved, metadata={"kind": "dead letters"}, known_by="number")
    offline.compact_pushes(table, [f"{now:{DAY}}"], more_than=_CROWDED)


def _rows(records: Records, letters: Sequence[DeadLetter], now: datetime, most_bytes: int) -> pl.DataFrame:
    at = [one.place for one in letters]
    times = [records.times[place] for place in at]
    columns: dict[str, list[Any]] = {
        "stream": [records.shards[place].stream for place in at],
        "shard": [records.shards[place].id for place in at],
        "position": [str(records.positions[place]) for place in at],
        "view": [one.view for one in letters],
        "read_at": [now] * len(at),
        "written_at": [None if micros is None else moment(micros) for micros in times],
        "key": [_cut(records.keys[place], most_bytes) for place in at],
        "value": [_cut(records.values[place], most_bytes) for place in at],
        "value_bytes": [len(records.values[place] or b"") for place in at],
        "headers": [_as_json(records.headers[place]) for place in at],
        "reason": [one.reason for one in letters],
    }
    types = table_of("any").types
    made = pl.DataFrame([types[name].to_frame(name, values) for name, values in columns.items()])
    return made.with_columns(
        pl.lit(f"{now.astimezone(UTC):{DAY}}").alias(PARTITION),
        pl.lit(None, pl.String).alias(EVENT_ID),
        pl.int_range(pl.len(), dtype=pl.Int64).alias(SEQUENCE),
    )


def _cut(data: bytes | None, most: int) -> bytes | None:
    return data if data is None else data[:most]


def _as_json(headers: Headers) -> str | None:
    if not headers:
        return None
    pairs = [[name, None if data is None else data.decode(errors="replace")] for name, data in headers]
    return json.dumps(pairs)[:_MOST_HEADERS]


@dataclass(frozen=True, slots=True)
class Counted:
    """Dead letters of one view, or of none: how many, and when the last one was read (UTC)."""

    view: str
    letters: int
    last: datetime


def counted(offline: OfflineStore, source: str, *, since: datetime | None = None) -> list[Counted]:
    """How many dead letters a source has, of each view and of none; those read since a moment only."""
    if offline.state(table_of(source)) is None:
        return []
    rows = offline.scan(table_of(source), features=[], since=since)
    each = rows.group_by("view").agg(pl.len().alias("letters"), pl.col("read_at").max().alias("last"))
    return [Counted(*row) for row in each.sort("view").collect(engine="streaming").iter_rows()]


def last(offline: OfflineStore, source: str, count: int) -> list[dict[str, Any]]:
    """The last dead letters of a source, the latest first, without keys and values."""
    table = table_of(source)
    if offline.state(table) is None:
        return []
    columns = ("read_at", "stream", "shard", "position", "view", "written_at", "value_bytes", "reason")
    found = offline.scan(table, features=["written_at", "value_bytes", "reason"]).select(columns)
    return found.top_k(count, by="read_at").sort("read_at", descending=True).collect(engine="streaming").to_dicts()


def keep_up(
    offline: OfflineStore, source: str, *, now: datetime, kept: timedelta, older_than: timedelta
) -> list[str] | None:
    """Remove the days that lie back longer than dead letters are kept, then old files as of any table.

    Args:
        older_than: as of `OfflineStore.vacuum`.

    Returns the days that went; None where there never was a dead letter.
    """
    table = table_of(source)
    state = offline.state(table)
    if state is None:
        return None
    first = f"{now.astimezone(UTC) - kept:{DAY}}"
    due = [day for day in state.rows_by_partition if day < first]
    if due:
        offline.drop(table, due, metadata={"operation": "retention"})
    offline.compact(table)
    offline.vacuum(table, older_than=older_than, dry_run=False)
    return due
