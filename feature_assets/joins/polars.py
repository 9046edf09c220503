"""The point-in-time join in this process, on Polars.

Two passes over a history. The first reads keys, times and publications alone and finds for each spine row the number of
its history row. The second streams the features and keeps the rows that were found. So features are never sorted, and
memory grows with the spine and with narrow columns, not with the history's width.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import polars as pl

from feature_assets.errors import StoreError
from feature_assets.joins import FOUND, TIME, Engine, History
from feature_assets.spec import PUBLICATION

ROWS_PER_PASS: Final = 20_000_000
"""Narrow history rows that are sorted at a time (about 1 GB); a longer history is joined a share of its keys at a time."""

_ONE_CORE = 4_000_000

# No name of a view has two underscores in a row.
_MOMENT, _ROW, _KEY, _EVENT, _CREATED = "__moment", "__row", "__key", "__event", "__created"
_KNOWN, _RANK = "__known", "__rank"

# Timestamps have the years 1 to 9999; no difference of two is longer, and no sum with it leaves 64 bits.
_LONGEST = timedelta(days=366 * 9999)


def open_engine(moments: pl.DataFrame) -> Engine:
    return _Polars(moments)


class _Polars:
    def __init__(self, moments: pl.DataFrame) -> None:
        self._moments = moments
        self._coded: dict[tuple[str, ...], tuple[pl.DataFrame, pl.DataFrame]] = {}

    def lookup(self, history: History) -> "_Found":
        columns = tuple(column for _, column in history.keys)
        if columns not in self._coded:
            self._coded[columns] = _coded(self._moments, columns)
        asked, codes = self._coded[columns]
        numbered = history.rows.with_row_index(_ROW)
        rows = pl.repeat(None, self._moments.height, dtype=pl.get_index_type(), eager=True)
        passes = min(codes.height, -(-history.count // ROWS_PER_PASS)) or 1
        for one in range(passes):
            share = pl.lit(True) if passes == 1 else pl.col(_KEY) % passes == one
            narrow = _narrow(history, numbered, codes.filter(share))
            found = _latest(asked.filter(share), narrow, history)
            rows = rows.scatter(found[_MOMENT], found[_ROW])
        return _Found(numbered, history.features, rows)


def _coded(moments: pl.DataFrame, columns: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The moments that can have an answer, in order of time, and the distinct keys; in both a number stands for a key.

    Keys get their numbers by joins on the typed columns: one number means that all parts are equal, and null has none.
    """
    asked = moments.select(TIME, *columns).with_row_index(_MOMENT).drop_nulls().sort(TIME)
    asked = asked.with_columns(pl.col(TIME).to_physical())
    if not columns:
        return asked.with_columns(pl.lit(0, pl.get_index_type()).alias(_KEY)), pl.DataFrame({_KEY: [0]})
    codes = asked.select(columns).unique().with_row_index(_KEY)
    return asked.join(codes, on=columns, maintain_order="left").select(_MOMENT, _KEY, TIME), codes


def _narrow(history: History, numbered: pl.LazyFrame, codes: pl.DataFrame) -> pl.DataFrame:
    """What orders the history rows of the keys that are asked for, latest last."""
    order = [pl.col(history.event).to_physical().alias(_EVENT)]
    if history.created is not None:
        order.append(pl.col(history.created).to_physical().alias(_CREATED))
    narrow = numbered.select(_ROW, *(pl.col(key).alias(asked) for key, asked in history.keys), *order, PUBLICATION)
    if history.keys:
        columns = [asked for _, asked in history.keys]
        narrow = narrow.join(codes.lazy(), on=columns).drop(columns)
    else:
        narrow = narrow.with_columns(pl.lit(0, pl.get_index_type()).alias(_KEY))
    by = [_EVENT, PUBLICATION] if history.created is None else [_EVENT, _CREATED, PUBLICATION]
    return _sorted(narrow.collect(engine="streaming"), by)


def _sorted(rows: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """The rows by these columns, nulls first.

    Sorting by the first alone takes half the time, and mostly will do: rows of one time rarely come out of turn.
    """
    first, second, *more = by
    # All cores together do twice the work of one, for little gain where it is soon done anyway.
    ordered = rows.sort(first, multithreaded=rows.height > _ONE_CORE)
    out_of_turn = (pl.col(first) == pl.col(first).shift()) & (pl.col(second) < pl.col(second).shift())
    if more or ordered.select(out_of_turn.any()).item():
        return ordered.sort(by, nulls_last=False)
    return ordered


def _latest(asked: pl.DataFrame, narrow: pl.DataFrame, history: History) -> pl.DataFrame:
    """Pairs of a moment and the history row that is its answer."""
    on = _EVENT
    if history.created is not None and history.cutoff:
        narrow, on = _as_known(narrow), _KNOWN
    right = narrow.select(_KEY, _ROW, _EVENT, pl.col(on).alias(TIME))
    # Both sides were sorted here; Polars cannot check it within groups and would say so in a warning.
    pairs = asked.join_asof(right, on=TIME, by=_KEY, strategy="backward", check_sortedness=False)
    answered = pl.col(_ROW).is_not_null()
    if history.ttl is not None:
        answered &= pl.col(_EVENT) >= pl.col(TIME) - min(history.ttl, _LONGEST) // timedelta(microseconds=1)
    return pairs.filter(answered)


def _as_known(narrow: pl.DataFrame) -> pl.DataFrame:
    """The rows that are ever the latest known of their key, in the order in which they became known.

    A row counts from the later of its event and its creation on. It is the latest then unless one that ranks higher was
    known by that time, and stays so until one that ranks higher becomes known: so the rows that matter are those at
    which the running maximum of the rank, per key, is their own. An as-of join on the event alone cannot see this: it
    stops at the last event, and finds nothing if that row was created too late.
    """
    known = narrow.with_columns(pl.max_horizontal(_EVENT, _CREATED).alias(_KNOWN))
    if known[_KNOWN].is_sorted():
        return known
    in_order = known.with_row_index(_RANK).sort(_KNOWN, maintain_order=True)
    return in_order.filter(pl.col(_RANK) == pl.col(_RANK).cum_max().over(_KEY))


class _Found:
    """The number of each moment's history row, null where there is none; features are read when they are asked for."""

    def __init__(self, numbered: pl.LazyFrame, features: Sequence[str], rows: pl.Series) -> None:
        self._numbered = numbered
        self._features = features
        self._rows = rows.alias(_ROW)

    def values(self, offset: int, length: int) -> pl.DataFrame:
        asked = self._rows.slice(offset, length).to_frame()
        wanted = asked.drop_nulls().unique()
        stored = self._numbered.select(_ROW, *self._features)
        read = stored.join(wanted.lazy(), on=_ROW, how="semi").collect(engine="streaming")
        if read.height != wanted.height:
            raise StoreError("The history changed between two readings of one version. Repeat the request.")
        values = asked.join(read, on=_ROW, how="left", maintain_order="left")
        return values.select(*self._features, pl.col(_ROW).is_not_null().alias(FOUND))
