"""The vectors that were served in a time, as a frame."""

from datetime import datetime

import msgspec
import polars as pl

from feature_assets.errors import TableMissing, WrongType
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
    comparable: bool = False,
) -> pl.LazyFrame:
    """What was served of a service from `since` on and before `until`, by time and request.

    A column that a former shape of the service did not have, or had of another type, is null in the rows of that time;
    with a feature its status is, too.

    Args:
        comparable: only rows that were asked for by keys and request fields of the types that these have now.

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
    for table in tables_of(shape.table, offline):
        others = _of_other_types(table, offline)
        rows = _scanned(shape, table, offline, others, first, last).select(names)
        frames.append(rows.limit(0) if comparable and others & {*shape.keys, *shape.request} else rows)
    if not frames:
        raise TableMissing(
            f"Nothing that service '{shape.table.name}' served is logged. Declare it with logging=LoggingConfig(), publish "
            "the registry, and ask the server for the service by its name."
        )
    return pl.concat(frames).sort(SERVED_AT, REQUEST_ID, REQUEST_ROW)


def _of_other_types(table: ViewSpec, offline: OfflineStore) -> set[str]:
    """The columns that a table of the log has, of a former shape of the service and of other types."""
    stored = offline.types(table)
    return {name for name, of in table.types.items() if stored.get(name, of) != of}


def _scanned(
    shape: LogShape,
    table: ViewSpec,
    offline: OfflineStore,
    others: set[str],
    first: datetime | None,
    last: datetime | None,
) -> pl.LazyFrame:
    """The rows of one table in the columns of the shape; those of other types are as if they were not there."""
    known = tuple(field for field in table.features if field.name not in others)
    rows = offline.scan(msgspec.structs.replace(table, features=known), since=first, until=last)
    if last is not None:
        rows = rows.filter(pl.col(SERVED_AT) < last)
    without = {name: shape.table.types[name].polars for name in others}
    without |= {f"{name}__status": pl.String() for name in others if name in shape.outputs}
    return rows.with_columns(pl.lit(None, dtype).alias(name) for name, dtype in without.items())


def _moment(name: str, given: datetime | str | None) -> datetime | None:
    try:
        moment: datetime | None = Timestamp.parse(given)
    except WrongType as error:
        raise WrongType(f"{name}= {error}.") from None
    return moment
