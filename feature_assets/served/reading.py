"""The vectors that were served in a time, as a frame."""

from collections.abc import Iterator
from datetime import datetime

import polars as pl

from feature_assets.errors import DeclarationError, TableMissing, WrongType
from feature_assets.offline import OfflineStore
from feature_assets.served.shape import REGISTRY, REQUEST_ID, REQUEST_ROW, SERVED_AT, LogShape, tables_of
from feature_assets.spec import ViewSpec
from feature_assets.types import Timestamp


def served_rows(
    shape: LogShape,
    offline: OfflineStore,
    *,
    since: datetime | str | None,
    until: datetime | str | None,
    statuses: bool,
) -> pl.LazyFrame:
    """What was served of a service from `since` on and before `until`, by time and request.

    A column that a former shape of the service did not have is null in the rows of that time.

    Raises:
        TableMissing: nothing was logged yet.
        WrongType: a bound is no time.
    """
    first, last = _moment("since", since), _moment("until", until)
    names = [REQUEST_ID, REQUEST_ROW, SERVED_AT, REGISTRY, *shape.keys, *shape.request, *shape.outputs]
    if statuses:
        names += [f"{name}__status" for name in shape.outputs]
        names += [f"event_timestamp__{read}" for read in shape.events]
    frames = []
    for table in _tables(shape, offline):
        rows = offline.scan(table, since=first, until=last).select(names)
        frames.append(rows if last is None else rows.filter(pl.col(SERVED_AT) < last))
    if not frames:
        raise TableMissing(
            f"Nothing that service '{shape.table.name}' served is logged. Declare it with logging=LoggingConfig(), publish "
            "the registry, and ask the server for the service by its name."
        )
    return pl.concat(frames).sort(SERVED_AT, REQUEST_ID, REQUEST_ROW)


def _tables(shape: LogShape, offline: OfflineStore) -> Iterator[ViewSpec]:
    """The tables of the log, of all shapes that the service had, as far as they go together with this one."""
    for table in tables_of(shape.table, offline):
        try:
            offline.scan(table)
        except DeclarationError:
            continue
        yield table


def _moment(name: str, given: datetime | str | None) -> datetime | None:
    try:
        moment: datetime | None = Timestamp.parse(given)
    except WrongType as error:
        raise WrongType(f"{name}= {error}.") from None
    return moment
