"""A question with all that decides its answer: plan, spine, Delta versions. Computed piece by piece when asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property
from typing import Final, Protocol, TypeVar

import polars as pl

from feature_assets.casting import NotCastable, lossless
from feature_assets.errors import (
    FeatureAssetsError,
    NameCollision,
    RequestError,
    StoreUnavailable,
    WrongType,
)
from feature_assets.historical.budget import Budget, bytes_of_a_row, sampled
from feature_assets.historical.parts import Parts, Progress
from feature_assets.historical.spine import Spine, moment_column, moments
from feature_assets.joins import FOUND, ROWS_HELD, TIME, History, Lookup, Open
from feature_assets.offline import OfflineStore, Pinned
from feature_assets.references import ReadPlan, ViewRead
from feature_assets.spec import Field, ViewSpec
from feature_assets.training import Writing, rebatched, table_label, usual_rows
from feature_assets.transformations import OnDemand

_SAMPLE_ROWS: Final = 5_000
_OPENED_AT_ONCE: Final = 16
T = TypeVar("T")


def pin(views: Iterable[ViewSpec], offline: OfflineStore, at: Mapping[str, int] | None = None) -> dict[str, Pinned]:
    """The history of each view, by `table_label`; at the latest Delta version, or at those given.

    Raises:
        TableMissing: a view was never materialised.
        NotReproducible: a version is gone.
    """
    found = {table_label(view): view for view in views}
    # To open a table is to wait for its log, in a bucket for several answers one after the other.
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        opened = pool.map(lambda label: offline.pinned(found[label], at=at[label] if at else None), found)
        return dict(zip(found, opened, strict=True))


class Elsewhere(Protocol):
    """Answers the parts of a spine in other processes."""

    def answers(self, parts: Parts) -> Iterator[pl.DataFrame]:
        """The answer to all rows, in the spine's order."""

    def written(self, parts: Parts, writing: Writing[T], rows: int) -> list[T]:
        """What writing the answer gave, so many rows to a stretch, in the spine's order."""


class Answer:
    """The rows of a training set: the spine's columns, then the features in the order asked for."""

    def __init__(
        self,
        plan: ReadPlan,
        spine: Spine,
        pinned: Mapping[str, Pinned],
        *,
        created_cutoff: bool,
        open_engine: Open,
        allowed_modules: Sequence[str],
        memory_limit: int | None = None,
        progress: Callable[[Progress], None] = lambda _: None,
        spread: Elsewhere | None = None,
    ) -> None:
        """Checks what can be checked before anything is read.

        Args:
            memory_limit: about so many bytes are held; without one the spine's keys and times and the values of a piece.
            progress: is told how far it is, whenever rows are made.
            spread: has the parts of the spine answered elsewhere; there is a limit then.

        Raises:
            NameCollision: a feature would have the name of a spine column.
            RequestError: the spine lacks a request field.
            WrongType: a request field's column is of another type.
            TransformationRefused: an on-demand function is not the registered one.
        """
        self._plan, self._spine, self._pinned = plan, spine, pinned
        self._cutoff, self._open_engine = created_cutoff, open_engine
        self._limit, self._progress, self._spread = memory_limit, progress, spread
        self._on_demand = OnDemand(plan, allowed_modules)
        self._requested = [_Requested(field, spine.schema) for field in plan.request.values()]
        for output in plan.outputs:
            if output.name in spine.schema:
                raise NameCollision.of(output.name, f"{output.view}:{output.field.name}", "a column of the spine")

    @property
    def spine_columns(self) -> tuple[str, ...]:
        return tuple(self._spine.schema)

    @property
    def schema(self) -> pl.Schema:
        return pl.Schema({**self._spine.schema, **{each.name: each.field.type.polars for each in self._plan.outputs}})

    @property
    def usual_rows(self) -> int:
        if self._limit is None:
            return usual_rows(self.schema)
        return self._budget.rows

    def pieces(self, rows: int | None) -> Iterator[pl.DataFrame]:
        """All rows in the spine's order, about so many at a time; None gives them in one frame.

        Raises:
            RequestError: the spine cannot be read.
            ContractBroken: an on-demand transformation failed.
            StoreUnavailable: a history cannot be read.
        """
        if self._limit is not None:
            parts = self._parts()
            spread = self._spread if parts.height else None
            answers = parts.answers() if spread is None else spread.answers(parts)
            yield from (pl.concat(answers),) if rows is None else rebatched(answers, rows)
            return
        self._spine.read(into_memory=rows is None)
        offset = 0
        for piece in self._spine.pieces(rows, self._moments.height):
            yield self._piece(piece, self._lookups, offset)
            offset += piece.height
            self._progress(Progress("joining", offset, self._moments.height))

    def written(self, writing: Writing[T], rows: int) -> list[T] | None:
        """What workers gave who wrote the rows, so many to a stretch; None if they are not spread. Raises as `pieces`."""
        if self._spread is None:
            return None
        parts = self._parts()
        return self._spread.written(parts, writing, rows) if parts.height else None

    @cached_property
    def _moments(self) -> pl.DataFrame:
        return self._spine.moments(self._plan.join_keys)

    @cached_property
    def _lookups(self) -> list[Lookup]:
        return self._looked_up(self._moments, ROWS_HELD)

    @cached_property
    def _budget(self) -> Budget:
        """The limit, and what a row takes by the first rows of spine and histories."""
        if self._limit is None:
            raise AssertionError("there is no limit to keep to")
        self._spine.read(into_memory=False)
        size = bytes_of_a_row(self._spine.slice(0, _SAMPLE_ROWS))
        for read in self._plan.reads:
            pinned = self._pinned[table_label(read.view)]
            with _reading(pinned):
                size += sampled(pinned.rows.select(field.name for field in read.features))
        computed = len(self._plan.outputs) * 8
        return Budget(self._limit, size + computed)

    def _parts(self) -> Parts:
        keys, spine = self._plan.join_keys, self._spine

        def times(offset: int, length: int) -> pl.Series:
            return spine.moments(keys, offset, length).get_column(TIME)

        def join(rows: pl.DataFrame) -> pl.DataFrame:
            return self.join(rows, self._budget.held)

        history_rows = sum(pinned.count for pinned in self._pinned.values())
        return Parts(spine, times, join, budget=self._budget, history_rows=history_rows, progress=self._progress)

    def join(self, rows: pl.DataFrame, held: int) -> pl.DataFrame:
        """The answer to these rows of the spine alone, with so many rows of a history in memory. Raises as `pieces`."""
        asked = moments(rows, self._spine.timestamp, self._plan.join_keys)
        return self._piece(rows, self._looked_up(asked, held), 0)

    def _looked_up(self, asked: pl.DataFrame, held: int) -> list[Lookup]:
        opened = self._open_engine(asked, held)
        first, last = asked.select(first=pl.col(TIME).min(), last=pl.col(TIME).max()).row(0)
        lookups = []
        for read in self._plan.reads:
            pinned = self._pinned[table_label(read.view)]
            with _reading(pinned):
                lookups.append(opened.lookup(self._history(read, pinned, first, last, held)))
        return lookups

    def _history(
        self, read: ViewRead, pinned: Pinned, first: datetime | None, last: datetime | None, held: int
    ) -> History:
        view = read.view
        since = _since(view, first)
        count = 0 if last is None else pinned.count
        if last is not None and count > held:
            count = pinned.rows_between(since, last)
        return History(
            rows=_within(pinned.rows, view, since, last),
            keys=tuple((key, moment_column(column)) for key, column in read.keys),
            event=view.event_timestamp,
            created=view.created_timestamp,
            cutoff=self._cutoff,
            ttl=view.ttl,
            features=tuple(field.name for field in read.features),
            count=count,
        )

    def _piece(self, rows: pl.DataFrame, lookups: Sequence[Lookup], offset: int) -> pl.DataFrame:
        columns = [each.column(rows) for each in self._requested]
        for read, lookup in zip(self._plan.reads, lookups, strict=True):
            columns += self._values(read, lookup, offset, rows.height)
        computed = self._on_demand.evaluate(pl.DataFrame(columns))
        return rows.hstack([computed.get_column(each.column).alias(each.name) for each in self._plan.outputs])

    def _values(self, read: ViewRead, lookup: Lookup, offset: int, length: int) -> list[pl.Series]:
        with _reading(self._pinned[table_label(read.view)]):
            values = lookup.values(offset, length)
        named = [_or_default(field).alias(read.column(field.name)) for field in read.features]
        return values.select(named).get_columns()


def _since(view: ViewSpec, first: datetime | None) -> datetime | None:
    """The earliest event that can matter from a moment on, None if any can."""
    if first is None or view.ttl is None:
        return None
    farthest = first - datetime.min.replace(tzinfo=first.tzinfo) - timedelta(days=2)
    return first - view.ttl if view.ttl < farthest else None


def _within(rows: pl.LazyFrame, view: ViewSpec, since: datetime | None, last: datetime | None) -> pl.LazyFrame:
    """The rows that can matter to moments up to `last`; files outside are not read."""
    if last is None:
        return rows.limit(0)
    event = pl.col(view.event_timestamp)
    within = rows.filter(event <= last)
    return within if since is None else within.filter(event >= since)


def _or_default(field: Field) -> pl.Expr:
    column = pl.col(field.name)
    if field.default is None:
        return column
    default = pl.lit(field.type.to_frame(field.name, [field.default_value]))
    return pl.when(FOUND).then(column).otherwise(default)


class _Requested:
    """A request field: a column of the spine, in its declared type."""

    def __init__(self, field: Field, schema: pl.Schema) -> None:
        self._field = field
        if field.name not in schema:
            raise RequestError(
                f"The spine lacks '{field.name}', which on-demand features need as request data ({field.type}; the spine "
                f"has: {', '.join(schema)}). Add the column."
            )
        try:
            self._cast = lossless(pl.col(field.name), schema[field.name], field.type)
        except NotCastable as error:
            raise WrongType(
                f"Spine column '{field.name}' is {schema[field.name]} and is request data of type {field.type}. {error}"
            ) from None

    def column(self, rows: pl.DataFrame) -> pl.Series:
        name, broken = self._field.name, self._cast.broken
        column = rows.select(self._cast.value.alias(name)).to_series()
        if broken is not None and (wrong := rows.select(broken).to_series().arg_true()).len():
            raise WrongType(
                f"Spine column '{name}' is request data of type {self._field.type}, and {rows[name][wrong[0]]!r} "
                f"({wrong.len()} such rows) is not {self._cast.needs}. Round, clip or convert it on purpose."
            )
        return column


@contextmanager
def _reading(pinned: Pinned) -> Iterator[None]:
    try:
        yield
    except FeatureAssetsError:
        raise
    except (pl.exceptions.PolarsError, OSError) as error:
        raise StoreUnavailable(
            f"The history of view '{pinned.view.name}' (version {pinned.view.version}, Delta version "
            f"{pinned.delta_version}) cannot be read: {error}"
        ) from error
