"""A spine made of histories: every row of some views in a range of time."""

from collections.abc import Iterable, Mapping
from datetime import datetime

import polars as pl

from feature_assets.errors import RequestError, WrongType
from feature_assets.historical.answer import Pinned, table_label
from feature_assets.historical.spine import EVENT_TIMESTAMP, Spine
from feature_assets.references import ReadPlan
from feature_assets.types import Timestamp


def every_row(
    plan: ReadPlan,
    pinned: Mapping[str, Pinned],
    *,
    since: datetime | str | None,
    until: datetime | str | None,
    only: Iterable[pl.Expr] = (),
) -> Spine:
    """Every key and time at which one of the views has a row, from `since` on and before `until`, by time and key.

    `only` are conditions on the key columns that every row has to keep.

    Raises:
        RequestError: the views are looked up by different keys, or no range is given.
    """
    first, last = _moment("since", since), _moment("until", until)
    if first is None and last is None:
        raise RequestError("There is no spine. Give one, or the range of time to take every row of: since= and until=.")
    if first is not None and last is not None and first > last:
        raise RequestError(
            f"The range of time is empty: it begins with {first:%Y-%m-%d %H:%M:%S}Z and ends before "
            f"{last:%Y-%m-%d %H:%M:%S}Z. Swap them."
        )
    if not plan.reads:
        raise RequestError(
            "Without a spine there must be a view whose rows are taken; give the request data as a spine."
        )
    keys = list(plan.join_keys)
    for read in plan.reads:
        if {column for _, column in read.keys} != set(keys):
            raise RequestError(
                f"Without a spine all views have to be looked up by the same keys, and '{read.name}' is by "
                f"{_listed(dict(read.keys).values())}, all together by {_listed(keys)}. Give a spine that has them all."
            )
    frames = []
    for read in plan.reads:
        event = pl.col(read.view.event_timestamp)
        rows = pinned[table_label(read.view)].rows
        rows = rows if first is None else rows.filter(event >= first)
        rows = rows if last is None else rows.filter(event < last)
        key_of = {column: key for key, column in read.keys}
        frames.append(
            rows.select(*(pl.col(key_of[column]).alias(column) for column in keys), event.alias(EVENT_TIMESTAMP))
        )
    held = pl.concat(frames).filter(*only).unique().sort(EVENT_TIMESTAMP, *keys).collect(engine="streaming")
    return Spine(held, EVENT_TIMESTAMP)


def _moment(name: str, given: datetime | str | None) -> datetime | None:
    try:
        moment: datetime | None = Timestamp.parse(given)
    except WrongType as error:
        raise WrongType(f"{name}= {error}.") from None
    return moment


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
