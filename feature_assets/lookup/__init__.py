"""Online retrieval: the latest values of some entities, read by a plan that is compiled once.

A value that is older than its view's ttl is withheld, by the rule that the point-in-time join keeps: both ends
included. A row is served as long as it is the latest, even if its event lies ahead of this machine's clock, which may
be behind the clock of whoever wrote it.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from datetime import timedelta
from typing import Any

import polars as pl

from feature_assets.access import Decision
from feature_assets.errors import NameCollision, RequestError
from feature_assets.lookup.entities import EntityReader, EntityRows
from feature_assets.lookup.response import (
    MASKED,
    NOT_FOUND,
    NULL_VALUE,
    OUTSIDE_MAX_AGE,
    PRESENT,
    Clock,
    OnlineResponse,
    Rows,
    Status,
)
from feature_assets.online.protocol import Answer, Readers, ReadsTogether, within_ttl
from feature_assets.references import ReadPlan, ViewRead
from feature_assets.transformations import OnDemand
from feature_assets.types import FeatureType

__all__ = [
    "MASKED",
    "NOT_FOUND",
    "NULL_VALUE",
    "OUTSIDE_MAX_AGE",
    "PRESENT",
    "EntityRows",
    "OnlineLookup",
    "OnlineResponse",
    "Status",
]


def _now() -> int:
    return time.time_ns() // 1_000


class OnlineLookup:
    """Answers one question, again and again: the features of one plan. Safe to share between threads."""

    __slots__ = (
        "_clock",
        "_computed",
        "_decision",
        "_entities",
        "_on_demand",
        "_on_seconds",
        "_outputs",
        "_reads",
        "_together",
        "_types",
        "plan",
    )

    def __init__(
        self,
        plan: ReadPlan,
        store: Readers,
        allowed_modules: Sequence[str] = (),
        *,
        clock: Clock = _now,
        on_seconds: Callable[[float], None] | None = None,
    ) -> None:
        """Compile the plan.

        Args:
            plan: what to read and compute.
            store: where the latest rows are.
            allowed_modules: modules that on-demand functions may be loaded from.
            clock: the present in microseconds since 1970.
            on_seconds: is told how long the on-demand features of each answer took.

        Raises:
            RequestError: a view is not online, or a feature would have the name of a join key.
            TransformationRefused: an on-demand view cannot be computed here.
        """
        self.plan, self._clock, self._on_seconds = plan, clock, on_seconds
        self._decision: Decision | None = None
        self._types: dict[str, FeatureType] = dict(plan.join_keys)
        for output in plan.outputs:
            if output.name in self._types:
                raise NameCollision.of(output.name, "a join key", f"{output.view}:{output.field.name}")
            self._types[output.name] = output.field.type
        self._entities = EntityReader(plan)
        columns = {name: position for position, name in enumerate(self._entities.names)}
        self._reads = [_ViewReader(read, store, columns) for read in plan.reads]
        # The columns of an answer stand in one list: the entity rows', then each view's, then what is computed.
        for read in plan.reads:
            _number(columns, [read.column(field.name) for field in read.features])
        several = len(self._reads) > 1
        self._together = store.read_together if several and isinstance(store, ReadsTogether) else None
        self._on_demand = OnDemand(plan, allowed_modules) if plan.on_demand else None
        if self._on_demand is not None:
            self._computed = [(columns[name], name, of) for name, of in self._on_demand.inputs.items()]
            _number(columns, self._on_demand.outputs)
        self._outputs = [*range(len(plan.join_keys)), *(columns[output.column] for output in plan.outputs)]

    def within(self, decision: Decision) -> "OnlineLookup":
        """The same lookup, for whom this was decided: every read keeps to it."""
        own = copy(self)
        own._decision = decision.enforce()
        return own

    def read(self, entity_rows: EntityRows = None, decision: Decision | None = None) -> OnlineResponse:
        """The latest values for each entity row, in their order.

        Args:
            entity_rows: the join keys, and the request fields of on-demand views: a list of dicts, a dict of columns,
                or a frame. An entity may come twice.
            decision: what whoever asks may see; without one, everything.

        Raises:
            Forbidden: a row is not open to whoever asks; nothing was read.
            RequestError: the rows are not what the features need; the message names column and row.
            StoreError: the store cannot be read, or a view was never materialised.
            ContractBroken: an on-demand view failed.
        """
        count, columns = self._entities.read(entity_rows)
        decision = decision or self._decision
        if decision is not None and decision.rows:
            decision.admit(dict(zip(self._entities.names, columns, strict=True)).__getitem__)
        now = self._clock()
        rows: list[Rows | None] = [None] * len(columns)
        keys: dict[tuple[int, ...], list[tuple[Any, ...]]] = {}
        for read in self._reads:
            if read.keys not in keys:
                keys[read.keys] = list(zip(*[columns[key] for key in read.keys], strict=True)) or [()] * count
        answers: Iterable[Answer] = (
            [read.reader(keys[read.keys]) for read in self._reads]
            if self._together is None
            else self._together([(read.reader, keys[read.keys]) for read in self._reads])
        )
        for read, answer in zip(self._reads, answers, strict=True):
            found, values = read.withheld(answer, now)
            columns.extend(values)  # type: ignore[arg-type]
            rows.extend([found] * len(values))
        if self._on_demand is not None:
            computed = self._compute(self._on_demand, columns)
            columns.extend(computed)
            rows.extend([None] * len(computed))
        response = OnlineResponse(
            self._types,
            [columns[position] for position in self._outputs],
            [rows[position] for position in self._outputs],
        )
        return response if decision is None or not decision.masked else response.masked(decision.masked)

    def _compute(self, on_demand: OnDemand, columns: list[list[Any]]) -> list[list[Any]]:
        begun = time.perf_counter()
        frame = pl.DataFrame([of.to_frame(name, columns[position]) for position, name, of in self._computed])
        frame = on_demand.evaluate(frame)
        values = [of.from_frame(frame.get_column(name)) for name, of in on_demand.outputs.items()]
        if self._on_seconds is not None:
            self._on_seconds(time.perf_counter() - begun)
        return values


def _number(columns: dict[str, int], names: Iterable[str]) -> None:
    for name in names:
        columns[name] = len(columns)


class _ViewReader:
    """Reads the features of one view; `keys` are the positions of its join keys among the entity columns."""

    __slots__ = ("_defaults", "_ttl", "keys", "reader")

    def __init__(self, read: ViewRead, store: Readers, columns: dict[str, int]) -> None:
        view = read.view
        if not view.online:
            raise RequestError(
                f"View '{view.name}' is declared online=False: it has a history and no latest values. "
                "Ask for it with get_historical_features."
            )
        self.keys = tuple(columns[column] for _, column in read.keys)
        self.reader = store.reader(view, [field.name for field in read.features])
        self._ttl = None if view.ttl is None else view.ttl // timedelta(microseconds=1)
        self._defaults = [
            (position, field.default_value) for position, field in enumerate(read.features) if field.default is not None
        ]

    def withheld(self, answer: Answer, now: int) -> tuple[Rows, list[Sequence[Any]]]:
        """What the store answered, without what is too old, and with defaults."""
        events, values = answer
        expired = self._expired(events, now)
        if expired:
            values = [[None if at in expired else value for at, value in enumerate(column)] for column in values]
        if self._defaults and (expired or None in events):
            absent = [at for at, event in enumerate(events) if event is None or at in expired]
            for position, default in self._defaults:
                column = values[position] = list(values[position])
                for at in absent:
                    column[at] = default
        return Rows(events, expired), values

    def _expired(self, events: Sequence[int | None], now: int) -> frozenset[int]:
        ttl = self._ttl
        if ttl is None:
            return _NONE
        there = [event for event in events if event is not None]
        # The oldest answers for all of them, nearly always.
        if not there or within_ttl(min(now, *there), now, ttl):
            return _NONE
        return frozenset(
            at for at, event in enumerate(events) if event is not None and not within_ttl(min(event, now), now, ttl)
        )


_NONE: frozenset[int] = frozenset()
