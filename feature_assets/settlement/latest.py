"""Which row of a key is the latest, and how two rows of one key stand to one another, by operations on whole columns."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import polars as pl

from feature_assets.spec import PUBLICATION, ViewSpec
from feature_assets.types import Timestamp

OTHER: Final = "__other"
"""How the columns of the row beside end."""

_NO_KEY = "__key"
_BEFORE_ALL = datetime(1, 1, 1, tzinfo=UTC)


def order(view: ViewSpec) -> list[pl.Expr]:
    """What conformed rows are ordered by, earliest first; no created time comes before any."""
    event = pl.col(view.event_timestamp)
    return [event] if view.created_timestamp is None else [event, pl.col(view.created_timestamp).fill_null(_BEFORE_ALL)]


def key_frame(view: ViewSpec, rows: pl.DataFrame) -> pl.DataFrame:
    """The join keys of rows that have each key once. The one key of a view without entities is a constant."""
    return keyed(view, rows).select(keys_of(view))


def keys_of(view: ViewSpec) -> list[str]:
    """What rows are matched by: the join keys, or the constant of a view without entities."""
    return list(view.join_keys) or [_NO_KEY]


def keyed(view: ViewSpec, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows that have every column of `keys_of`."""
    return rows if view.join_keys or _NO_KEY in rows.columns else rows.with_columns(pl.lit(0).alias(_NO_KEY))


def latest_tokens(view: ViewSpec, rows: pl.LazyFrame) -> pl.DataFrame:
    """Join keys, event and created time of the latest row of each key."""
    return latest_rows(view, rows.select(*view.join_keys, *times(view)))


def latest_rows(view: ViewSpec, rows: pl.LazyFrame, *, more: Sequence[str] = ()) -> pl.DataFrame:
    """The latest row of each key, in memory that grows with the keys and not with the rows.

    Args:
        rows: join keys, times and whatever else.
        more: columns that decide where rows have one key and the same times.
    """
    keys, event = list(view.join_keys), view.event_timestamp
    # Two passes that stream. To sort first and keep the last of each key would hold all rows at once.
    newest = rows.group_by(keys).agg(pl.col(event).max()) if keys else rows.select(pl.col(event).max())
    candidates = rows.join(newest.collect(engine="streaming").lazy(), on=[*keys, event], how="semi")
    ordered = candidates.collect(engine="streaming").sort([*order(view), *more])
    return ordered.unique(subset=keys, keep="last", maintain_order=False) if keys else ordered.tail(1)


def taken_back(view: ViewSpec, before: pl.DataFrame, latest: pl.DataFrame) -> pl.DataFrame:
    """The keys whose row is gone, or earlier than before; both frames have each key once."""
    both = beside(view, before, latest)
    gone = pl.col(view.event_timestamp + OTHER).is_null()
    return key_frame(view, both.filter(gone | is_later(view, publication=False)))


def beside(view: ViewSpec, left: pl.DataFrame, right: pl.DataFrame) -> pl.DataFrame:
    """Left rows with what the right row of the same key has beside its key, null where there is none."""
    others = [pl.col(name).alias(name + OTHER) for name in right.columns if name not in keys_of(view)]
    narrow = keyed(view, right).select(*keys_of(view), *others)
    return keyed(view, left).join(narrow, on=keys_of(view), how="left")


def times(view: ViewSpec) -> list[str]:
    """The columns of event and created time."""
    return [name for name in (view.event_timestamp, view.created_timestamp) if name is not None]


def is_later(view: ViewSpec, *, publication: bool) -> pl.Expr:
    """Whether a row is later than the one beside it; null where there is none beside it."""
    later = pl.lit(False)
    for name in reversed([*times(view), PUBLICATION] if publication else times(view)):
        mine, other = pl.col(name), pl.col(name + OTHER)
        if name == view.created_timestamp:
            mine, other = mine.fill_null(_BEFORE_ALL), other.fill_null(_BEFORE_ALL)
        later = (mine > other) | ((mine == other) & later)
    return later


def matching(view: ViewSpec, rows: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    """Those of the rows that have one of the keys; all, where a view has no entities."""
    return rows.join(keys, on=list(view.join_keys), how="semi") if view.join_keys else rows


def no_rows(view: ViewSpec) -> pl.DataFrame:
    """No rows, as the online store takes them."""
    columns = {
        **view.join_keys,
        **dict.fromkeys(times(view), Timestamp),
        **{one.name: one.type for one in view.features},
    }
    return pl.DataFrame(schema={**{name: columns[name].polars for name in view.columns}, PUBLICATION: pl.Int64()})
