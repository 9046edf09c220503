"""The point-in-time join in this process, on Polars.

Two passes over a history. The first reads keys, times and publications alone and finds for each spine row the number of
its history row. The second streams the features and keeps the rows that were found. So features are never sorted, and
memory grows with the spine and with narrow columns, not with the history's width.

Of a history with too many narrow rows the first pass is made for one span of the spine's time after the other: held are
the rows that became known within it and, of each key, what stood when it began.
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta

import polars as pl

from feature_assets.errors import StoreError
from feature_assets.joins import FOUND, TIME, Engine, History
from feature_assets.spec import PUBLICATION

_ONE_CORE = 4_000_000

# No name of a view has two underscores in a row.
_MOMENT, _ROW, _KEY, _EVENT, _CREATED = "__moment", "__row", "__key", "__event", "__created"
_KNOWN, _RANK = "__known", "__rank"

# Timestamps have the years 1 to 9999; no difference of two is longer, and no sum with it leaves 64 bits.
_LONGEST = timedelta(days=366 * 9999)


def open_engine(moments: pl.DataFrame, held: int) -> Engine:
    return _Polars(moments, held)


class _Polars:
    def __init__(self, moments: pl.DataFrame, held: int) -> None:
        self._height, self._held = moments.height, held
        self._moments = _in_order(moments)
        self._coded: dict[tuple[str, ...], tuple[pl.DataFrame, pl.DataFrame]] = {}

    def lookup(self, history: History) -> "_Found":
        columns = tuple(column for _, column in history.keys)
        if columns not in self._coded:
            self._coded[columns] = _coded(self._moments, columns)
        asked, codes = self._coded[columns]
        numbered = history.rows.with_row_index(_ROW)
        rows = pl.repeat(None, self._height, dtype=pl.get_index_type(), eager=True)
        for some, narrow in _spans(asked, _narrow(history, numbered, codes), history, self._held):
            found = _latest(some, narrow, history)
            rows = rows.scatter(found[_MOMENT], found[_ROW])
        return _Found(numbered, history.features, rows, whole=history.count <= self._height)


def _in_order(moments: pl.DataFrame) -> pl.DataFrame:
    """The numbered moments that have a time, in order of it."""
    numbered = moments.with_row_index(_MOMENT).drop_nulls(TIME).with_columns(pl.col(TIME).to_physical())
    return numbered if numbered[TIME].is_sorted() else numbered.sort(TIME)


def _coded(moments: pl.DataFrame, columns: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The moments that have all keys, and the distinct keys; in both a number stands for a key.

    Keys get their numbers by joins on the typed columns: one number means that all parts are equal, and null has none.
    """
    asked = moments.select(_MOMENT, TIME, *columns).drop_nulls()
    if not columns:
        return asked.with_columns(pl.lit(0, pl.get_index_type()).alias(_KEY)), pl.DataFrame({_KEY: [0]})
    codes = asked.select(columns).unique().with_row_index(_KEY)
    return asked.join(codes, on=columns, maintain_order="left").select(_MOMENT, _KEY, TIME), codes


def _narrow(history: History, numbered: pl.LazyFrame, codes: pl.DataFrame) -> pl.LazyFrame:
    """Of the history rows whose keys are asked for, what orders them and from when on they are known."""
    event = pl.col(history.event).to_physical()
    order = [event.alias(_EVENT)]
    if history.created is not None:
        created = pl.col(history.created).to_physical()
        order.append(created.alias(_CREATED))
        if history.cutoff:
            order.append(pl.max_horizontal(event, created).alias(_KNOWN))
    keys = (pl.col(key).alias(asked) for key, asked in history.keys)
    narrow = numbered.select(_ROW, *keys, *order, PUBLICATION)
    if history.keys:
        columns = [asked for _, asked in history.keys]
        return narrow.join(codes.lazy(), on=columns).drop(columns)
    return narrow.with_columns(pl.lit(0, pl.get_index_type()).alias(_KEY))


def _spans(
    asked: pl.DataFrame, narrow: pl.LazyFrame, history: History, held: int
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Moments of a span of time, with the narrow rows that decide about them, latest last: about `held` at most.

    A span that has more is halved. One single time needs no more than a row for each key.
    """
    if asked.is_empty():
        return
    if history.count <= held or _length(narrow) <= held:
        yield asked, _ordered(narrow, history)
        return
    waiting = [asked]
    while waiting:
        some = waiting.pop()
        first, last = some[TIME][0], some[TIME][-1]
        known = pl.col(_known(history))
        within = narrow.filter(known > first, known <= last)
        if first < last and _length(within) > held:
            waiting += reversed(_halves(some))
            continue
        standing = _standing(narrow, first, history)
        yield some, _ordered(pl.concat([standing, within.filter(pl.col(_EVENT) >= first - _ttl(history))]), history)


def _length(rows: pl.LazyFrame) -> int:
    return int(rows.select(pl.len()).collect(engine="streaming").item())


def _halves(moments: pl.DataFrame) -> list[pl.DataFrame]:
    """Earlier and later moments, about as many of each; those of one time stay together."""
    times = moments[TIME]
    middle = times[moments.height // 2]
    cut = times.search_sorted(middle, "left") or times.search_sorted(middle, "right")
    return [moments[:cut], moments[cut:]]


def _standing(narrow: pl.LazyFrame, first: int, history: History) -> pl.LazyFrame:
    """Of each key the rows with the latest event that was known at that time, unless it is too old for any moment."""
    known = narrow.filter(pl.col(_known(history)) <= first, pl.col(_EVENT) >= first - _ttl(history))
    # Several only where one event was published or created more than once.
    latest = known.group_by(_KEY).agg(pl.col(_EVENT).max()).collect(engine="streaming")
    return known.join(latest.lazy(), on=[_KEY, _EVENT], how="semi")


def _known(history: History) -> str:
    """The column of times from which on rows are known."""
    return _EVENT if history.created is None or not history.cutoff else _KNOWN


def _ttl(history: History) -> int:
    return min(history.ttl or _LONGEST, _LONGEST) // timedelta(microseconds=1)


def _ordered(narrow: pl.LazyFrame, history: History) -> pl.DataFrame:
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
    if history.created is not None and history.cutoff:
        narrow = _as_known(narrow)
    right = narrow.select(_KEY, _ROW, _EVENT, pl.col(_known(history)).alias(TIME))
    # Both sides were sorted here; Polars cannot check it within groups and would say so in a warning.
    pairs = asked.join_asof(right, on=TIME, by=_KEY, strategy="backward", check_sortedness=False)
    answered = pl.col(_ROW).is_not_null()
    if history.ttl is not None:
        answered &= pl.col(_EVENT) >= pl.col(TIME) - _ttl(history)
    return pairs.filter(answered)


def _as_known(narrow: pl.DataFrame) -> pl.DataFrame:
    """The rows that are ever the latest known of their key, in the order in which they became known.

    A row counts from the later of its event and its creation on. It is the latest then unless one that ranks higher was
    known by that time, and stays so until one that ranks higher becomes known: so the rows that matter are those at
    which the running maximum of the rank, per key, is their own. An as-of join on the event alone cannot see this: it
    stops at the last event, and finds nothing if that row was created too late.
    """
    if narrow[_KNOWN].is_sorted():
        return narrow
    in_order = narrow.with_row_index(_RANK).sort(_KNOWN, maintain_order=True)
    return in_order.filter(pl.col(_RANK) == pl.col(_RANK).cum_max().over(_KEY))


class _Found:
    """The number of each moment's history row, null where there is none; features are read when they are asked for."""

    def __init__(self, numbered: pl.LazyFrame, features: Sequence[str], rows: pl.Series, *, whole: bool) -> None:
        self._numbered = numbered
        self._features = features
        self._rows = rows.alias(_ROW)
        self._whole = whole

    def values(self, offset: int, length: int) -> pl.DataFrame:
        rows = self._rows.slice(offset, length)
        return self._taken(rows) if self._whole else self._picked(rows.to_frame())

    def _taken(self, rows: pl.Series) -> pl.DataFrame:
        """Of a history that has no more rows than are asked for: to read it all costs less than to pick them."""
        read = self._numbered.select(*self._features).collect(engine="streaming")
        return read.select(pl.all().gather(rows)).with_columns(rows.is_not_null().alias(FOUND))

    def _picked(self, asked: pl.DataFrame) -> pl.DataFrame:
        wanted = asked.drop_nulls().unique()
        stored = self._numbered.select(_ROW, *self._features)
        read = stored.join(wanted.lazy(), on=_ROW, how="semi").collect(engine="streaming")
        if read.height != wanted.height:
            raise StoreError("The history changed between two readings of one version. Repeat the request.")
        values = asked.join(read, on=_ROW, how="left", maintain_order="left")
        return values.select(*self._features, pl.col(_ROW).is_not_null().alias(FOUND))
