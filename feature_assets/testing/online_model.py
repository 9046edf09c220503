"""An online store that a child could check: one dict of rows, one of ledger entries. And a machine that compares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from feature_assets.online.protocol import (
    AppliedPublication,
    OnlineStore,
    Token,
    column_types,
    replaces,
    row_schema,
    token_schema,
)
from feature_assets.spec import PUBLICATION, Entity, Field, ViewSpec
from feature_assets.testing.values import bits
from feature_assets.types import Float64, Int64, String, microseconds

START = datetime(2024, 3, 1, tzinfo=UTC)

Key = tuple[Any, ...]
Row = Mapping[str, Any]


def minute(number: int) -> datetime:
    """So many minutes after the start of the test's time."""
    return START + timedelta(minutes=number)


def online_rows(view: ViewSpec, rows: Sequence[Row]) -> pl.DataFrame:
    """Rows for `OnlineStore.write` from canonical values by column; null where not given, publication 1."""
    types = column_types(view)
    columns = [of.to_frame(name, [row.get(name) for row in rows]) for name, of in types.items()]
    return pl.DataFrame([*columns, pl.Series(PUBLICATION, [row.get(PUBLICATION, 1) for row in rows], pl.Int64())])


def online_tokens(view: ViewSpec, rows: Sequence[Row]) -> pl.DataFrame:
    """The tokens of such rows, as `OnlineStore.retract` expects them."""
    return online_rows(view, rows).select(token_schema(view).keys())


def online_keys(view: ViewSpec, keys: Sequence[Key]) -> pl.DataFrame:
    """A frame of join keys from tuples of canonical values."""
    columns = list(zip(*keys, strict=True)) or [()] * len(view.join_keys)
    return pl.DataFrame(
        [of.to_frame(name, values) for (name, of), values in zip(view.join_keys.items(), columns, strict=True)]
    )


def stored_rows(store: OnlineStore, view: ViewSpec) -> list[Row]:
    """Everything that a store holds of a view, as canonical values."""
    types = column_types(view)
    rows: list[Row] = []
    for batch in store.scan(view, batch_size=3):
        assert dict(batch.schema) == row_schema(view)
        columns = {name: of.from_frame(batch[name]) for name, of in types.items()}
        columns[PUBLICATION] = batch[PUBLICATION].to_list()
        rows += [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return rows


@dataclass
class OnlineModel:
    """What an online store of one view has to hold."""

    view: ViewSpec
    rows: dict[Key, Row] = field(default_factory=dict)
    ledger: dict[str, tuple[int, int, int, bool]] = field(default_factory=dict)
    watermark: datetime | None = None

    def key(self, row: Row) -> Key:
        return tuple(row[name] for name in self.view.join_keys)

    def token(self, row: Row | None) -> Token | None:
        if row is None:
            return None
        created = row.get(self.view.created_timestamp) if self.view.created_timestamp else None
        return Token(
            microseconds(row[self.view.event_timestamp]),
            None if created is None else microseconds(created),
            row[PUBLICATION],
        )

    def write(self, rows: Sequence[Row], publication: AppliedPublication | None) -> bool:
        """Whether the rows were looked at: they are not if a later publication of a partition is in the ledger, or of an
        entry that the writer has seen before it committed.
        """
        if publication is not None:
            limits = {**publication.seen, **dict.fromkeys(publication.partitions, publication.publication)}
            if any(self.ledger[name][0] > limit for name, limit in limits.items() if name in self.ledger):
                return False
            for name, count in publication.partitions.items():
                self.ledger[name] = (publication.publication, count, publication.delta_version, publication.settled)
        for row in rows:
            token = self.token(row)
            if token is not None and replaces(token, self.token(self.rows.get(self.key(row)))):
                self.rows[self.key(row)] = row
            self._seen(row)
        return True

    def retract(self, expected: Sequence[Row], replacement: Sequence[Row]) -> int:
        instead = {self.key(row): row for row in replacement}
        missed = 0
        for row in expected:
            key = self.key(row)
            if self.token(self.rows.get(key)) != self.token(row):
                missed += 1
            elif key in instead:
                self.rows[key] = instead[key]
            else:
                del self.rows[key]
        return missed

    def _seen(self, row: Row) -> None:
        event = row[self.view.event_timestamp]
        self.watermark = event if self.watermark is None else max(event, self.watermark)

    def settle(self, publication: int, partitions: Sequence[str]) -> None:
        for name in partitions:
            if name in self.ledger and self.ledger[name][0] == publication:
                self.ledger[name] = (*self.ledger[name][:3], True)


def model_view(*, keyed: bool = True, created: bool = True) -> ViewSpec:
    """A small view for the machine: two join keys or none, with or without a created timestamp."""
    return ViewSpec(
        name="weather",
        entities=(Entity("runway", {"origin": String, "runway": Int64}),) if keyed else (),
        features=(Field("temp", Float64), Field("note", String)),
        event_timestamp="observed_at",
        created_timestamp="reported_at" if created else None,
    )


_KEYS: Sequence[Key] = [("", 1), ("a", 1), ("a", -1), ("a\x00", 1), ("A", 1)]
_PARTITIONS = ["2024-03-01", "2024-03-02", ""]


def _some_rows(view: ViewSpec) -> st.SearchStrategy[list[dict[str, Any]]]:
    columns: dict[str, st.SearchStrategy[Any]] = {
        view.event_timestamp: st.integers(0, 2).map(minute),
        "temp": st.sampled_from([None, 1.5, -0.0, float("nan")]),
        "note": st.sampled_from([None, "", "a\x00b"]),
        PUBLICATION: st.integers(1, 4),
    }
    if view.created_timestamp:
        columns[view.created_timestamp] = st.none() | st.integers(0, 1).map(minute)
    keys = st.sampled_from(_KEYS if view.join_keys else [()])
    row = st.tuples(keys, st.fixed_dictionaries(columns))
    whole = row.map(lambda found: {**dict(zip(view.join_keys, found[0], strict=True)), **found[1]})
    # Of one key, no two rows of one write have equal tokens; which of them would stay is not said.
    apart = [*view.join_keys, *(name for name in columns if name not in ("temp", "note"))]
    return st.lists(whole, max_size=6, unique_by=lambda found: tuple(found[name] for name in apart))


def online_machine(view: ViewSpec, open_store: Callable[[], OnlineStore]) -> type[RuleBasedStateMachine]:
    """A state machine that does the same to a store and to the model, and finds them equal after each step.

    Args:
        view: of `model_view`.
        open_store: an empty store, for each run.
    """
    rows = _some_rows(view)
    some_partitions = st.lists(st.sampled_from(_PARTITIONS), unique=True, max_size=3)
    numbers = st.integers(1, 6)
    some_seen = st.dictionaries(st.sampled_from(_PARTITIONS), st.integers(0, 6), max_size=2)

    class OnlineMachine(RuleBasedStateMachine):
        @initialize()
        def opens(self) -> None:
            self.store, self.model = open_store(), OnlineModel(view)
            self.store.prepare(view)
            self.reader = self.store.reader(view, ["note", "temp"])

        def teardown(self) -> None:
            if hasattr(self, "store"):
                self.store.close()

        @rule(rows=rows)
        def writes(self, rows: list[Row]) -> None:
            before = dict(self.model.rows)
            count = self.store.write(view, online_rows(view, rows), None)
            self.model.write(rows, None)
            assert count.written + count.kept == len(rows)
            assert not count.superseded
            assert count.written or before == self.model.rows

        @rule(rows=rows, number=numbers, partitions=some_partitions, settled=st.booleans(), seen=some_seen)
        def publishes(
            self, rows: list[Row], number: int, partitions: list[str], seen: dict[str, int], *, settled: bool
        ) -> None:
            counts = {name: len(rows) + place for place, name in enumerate(partitions)}
            publication = AppliedPublication(number, number + 10, counts, settled, seen)
            count = self.store.write(view, online_rows(view, rows), publication)
            assert count.superseded is not self.model.write(rows, publication)

        @rule(rows=rows, others=rows, stale=st.booleans())
        def retracts(self, rows: list[Row], others: list[Row], *, stale: bool) -> None:
            """Of keys that are stored, mostly, and with their tokens, mostly."""
            asked = {self.model.key(row): row for row in rows}
            expected = [row if stale else self.model.rows.get(key, row) for key, row in asked.items()]
            replacement = list({self.model.key(row): row for row in others}.values())
            missed = self.store.retract(view, online_tokens(view, expected), online_rows(view, replacement))
            assert missed == self.model.retract(expected, replacement)

        @rule(number=numbers, partitions=some_partitions)
        def settles(self, number: int, partitions: list[str]) -> None:
            self.store.settle(view, number, partitions)
            self.model.settle(number, partitions)

        @rule(partitions=some_partitions)
        def forgets(self, partitions: list[str]) -> None:
            self.store.forget(view, partitions)
            for name in partitions:
                self.model.ledger.pop(name, None)

        @rule(keys=st.lists(st.sampled_from(_KEYS), unique=True, max_size=3))
        def deletes(self, keys: list[Key]) -> None:
            if not view.join_keys:
                keys = [()]
            deleted = self.store.delete(view, online_keys(view, keys))
            assert deleted == sum(self.model.rows.pop(key, None) is not None for key in keys)

        @rule()
        def prepares_again(self) -> None:
            self.store.prepare(view)

        @invariant()
        def holds_the_same_rows(self) -> None:
            stored = {self.model.key(row): bits(row) for row in stored_rows(self.store, view)}
            assert stored == {key: bits(self._whole(row)) for key, row in self.model.rows.items()}

        def _whole(self, row: Row) -> Row:
            return {name: row.get(name) for name in row_schema(view)}

        @invariant()
        def answers_the_same(self) -> None:
            keys = [*_KEYS, _KEYS[1], ("not there", 1)] if view.join_keys else [(), ()]
            found = [self.model.rows.get(key) for key in keys]
            events, (notes, temps) = self.reader(keys)
            tokens = [self.model.token(row) for row in found]
            assert events == [token and token.event for token in tokens]
            assert list(notes) == [row and row["note"] for row in found]
            assert bits(list(temps)) == bits([row and row["temp"] for row in found])

        @invariant()
        def has_the_same_ledger(self) -> None:
            ledger = self.store.ledger(view)
            entries = {
                name: (entry.publication, entry.rows, entry.delta_version, entry.settled)
                for name, entry in ledger.entries.items()
            }
            assert entries == self.model.ledger
            if self.model.watermark is not None:
                assert ledger.watermark is not None
                assert ledger.watermark >= self.model.watermark

    return OnlineMachine
