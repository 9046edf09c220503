"""What every online store has to keep, as a pytest class to subclass."""

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from feature_assets.errors import ContractBroken, DeclarationError, TableMissing, UnknownFeature
from feature_assets.online import open_online_store
from feature_assets.online.protocol import (
    AppliedPublication,
    Ledger,
    OnlineStore,
    Token,
    WriteCount,
    replaces,
    token_schema,
)
from feature_assets.spec import PUBLICATION, Entity, Field, ViewSpec
from feature_assets.testing.online_model import (
    Row,
    minute,
    model_view,
    online_keys,
    online_machine,
    online_rows,
    online_tokens,
    stored_rows,
)
from feature_assets.testing.values import ALL_TYPES, KEY_TYPES, bits, optional, values
from feature_assets.types import FeatureType, Float64, Int64, List, String, Struct, Timestamp, microseconds

WEATHER = ViewSpec(
    name="weather",
    entities=(Entity("airport", {"origin": String}),),
    features=(Field("temp", Float64), Field("wind", Int64)),
    event_timestamp="observed_at",
    created_timestamp="reported_at",
)
COUNTER = ViewSpec(
    name="counter",
    entities=(Entity("user", {"user": String}),),
    features=(Field("clicks", Int64), Field("views", Int64)),
    event_timestamp="at",
)
EVERYTHING = ViewSpec(
    name="everything",
    entities=(Entity("everything", {f"key_{number}": of for number, of in enumerate(KEY_TYPES)}),),
    features=tuple(Field(f"feature_{number}", of) for number, of in enumerate(ALL_TYPES)),
    event_timestamp="at",
    created_timestamp="created",
)


def _for_each(examples: int, check: Callable[[st.DataObject], None]) -> None:
    """Run a check with so many drawings; the store is the same for all of them."""
    drawn = given(data=st.data())(check)
    settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])(drawn)()


def keyed_by(*types: FeatureType, name: str = "keyed") -> ViewSpec:
    """A view with join keys of these types, in their order for up to ten of them."""
    return ViewSpec(
        name=name,
        entities=(Entity("thing", {f"key_{number}": of for number, of in enumerate(types)}),),
        features=(Field("value", Int64),),
        event_timestamp="at",
    )


def weather(origin: str, event: int, created: int | None = None, publication: int = 1, **features: Any) -> Row:
    """A row of WEATHER; times in minutes."""
    times = {"observed_at": minute(event), "reported_at": None if created is None else minute(created)}
    return {"origin": origin, **times, PUBLICATION: publication, **features}


def count_up(url: str, first: int, step: int, last: int) -> None:
    """What a process does in the race: set the counter to each number of its own, whatever others set."""
    store = open_online_store(url)
    for number in range(first, last, step):
        row = {"user": "u", "at": minute(number), "clicks": number, "views": number}
        store.write(COUNTER, online_rows(COUNTER, [row]), None)
    store.close()


class OnlineStoreContract:
    """Subclass it beside your store, give the URL of an empty store, and every test here has to pass."""

    races = 200
    """Writes by each of eight threads; fewer for a store that takes long over each. So for those below."""

    many = 2600
    """Keys that are read at once."""

    examples = 25
    """Values and sets of keys that are tried."""

    runs, steps = 20, 20
    """Of the state machine."""

    orders = 120
    """In which the rows of one key come."""

    def url(self, tmp_path: Path) -> str:
        raise NotImplementedError

    def open(self, tmp_path: Path) -> OnlineStore:
        return open_online_store(self.url(tmp_path))

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[OnlineStore]:
        store = self.open(tmp_path)
        yield store
        store.close()

    @pytest.fixture
    def weather_store(self, store: OnlineStore) -> OnlineStore:
        store.prepare(WEATHER)
        return store

    # Values

    def test_every_value_of_every_type_comes_back_bit_for_bit(self, store: OnlineStore) -> None:
        store.prepare(EVERYTHING)
        _for_each(self.examples, lambda data: self._comes_back(store, data))

    def _comes_back(self, store: OnlineStore, data: st.DataObject) -> None:
        row = {
            **{name: data.draw(values(of), name) for name, of in EVERYTHING.join_keys.items()},
            "at": data.draw(values(Timestamp), "at"),
            "created": data.draw(optional(Timestamp), "created"),
            **{field.name: data.draw(optional(field.type), field.name) for field in EVERYTHING.features},
            PUBLICATION: data.draw(st.integers(0, 2**63 - 1), PUBLICATION),
        }
        key = tuple(row[name] for name in EVERYTHING.join_keys)
        features = [field.name for field in EVERYTHING.features]
        store.write(EVERYTHING, online_rows(EVERYTHING, [row]), None)
        for keys in ([key], [key, key]):
            events, columns = store.reader(EVERYTHING, features)(keys)
            assert events == [microseconds(row["at"])] * len(keys)
            for column, name in zip(columns, features, strict=True):
                assert [bits(value) for value in column] == [bits(row[name])] * len(keys), name
        assert [bits(stored) for stored in stored_rows(store, EVERYTHING)] == [bits(row)]
        assert store.stored(EVERYTHING).equals(online_tokens(EVERYTHING, [row]))
        assert store.stored(EVERYTHING, online_keys(EVERYTHING, [key])).equals(online_tokens(EVERYTHING, [row]))
        assert store.delete(EVERYTHING, online_keys(EVERYTHING, [key])) == 1
        assert store.stored(EVERYTHING).is_empty()

    @pytest.mark.parametrize("of", KEY_TYPES, ids=str)
    def test_different_keys_are_different_rows(self, store: OnlineStore, of: FeatureType) -> None:
        view = keyed_by(of, of)
        store.prepare(view)
        some_keys = st.lists(st.tuples(values(of), values(of)), min_size=2, max_size=6, unique_by=bits_text)
        _for_each(self.examples, lambda data: self._stores_each_key(store, view, data.draw(some_keys)))

    @pytest.mark.parametrize(
        "keys",
        [
            [("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", "")],
            [("a|b", "c"), ("a", "b|c"), ("a,b", "c"), ("a", "b,c")],
            [("\u00e9", "x"), ("e\u0301", "x")],
            [("a\x00", "b"), ("a", "\x00b"), ("a\x00b", ""), ("a", "b")],
            [("1", "x"), ("1.0", "x"), ("01", "x"), (" 1", "x"), ("1 ", "x")],
            [("a", "x"), ("A", "x")],
        ],
        ids=["concatenation", "separators", "composed or not", "NUL", "numbers as text", "case"],
    )
    def test_keys_of_texts_are_kept_apart(self, store: OnlineStore, keys: list[tuple[Any, ...]]) -> None:
        view = keyed_by(String, String)
        store.prepare(view)
        self._stores_each_key(store, view, keys)

    def _stores_each_key(self, store: OnlineStore, view: ViewSpec, keys: list[tuple[Any, ...]]) -> None:
        rows = [
            {**dict(zip(view.join_keys, key, strict=True)), "at": minute(0), "value": number}
            for number, key in enumerate(keys)
        ]
        assert store.write(view, online_rows(view, rows), None) == WriteCount(written=len(keys))
        read = store.reader(view, ["value"])
        assert list(read(keys)[1][0]) == list(range(len(keys)))
        assert [read([key])[1][0][0] for key in keys] == list(range(len(keys)))
        assert store.delete(view, online_keys(view, keys)) == len(keys)

    # Reading

    def test_reads_in_the_order_asked_each_time_it_is_asked(self, weather_store: OnlineStore) -> None:
        rows = [weather("JFK", 2, temp=1.5, wind=7), weather("LGA", 1, temp=None, wind=0)]
        weather_store.write(WEATHER, online_rows(WEATHER, rows), None)
        events, (wind, temp) = weather_store.reader(WEATHER, ["wind", "temp"])(
            [("LGA",), ("nowhere",), ("JFK",), ("LGA",), (None,)]
        )
        assert events == [microseconds(minute(1)), None, microseconds(minute(2)), microseconds(minute(1)), None]
        assert list(wind) == [0, None, 7, 0, None]
        assert list(temp) == [None, None, 1.5, None, None]

    @pytest.mark.parametrize("keys", [[], [("nowhere",)], [(None,)], [("nowhere",), ("nor here",)]], ids=len)
    def test_what_is_not_there_is_none(self, weather_store: OnlineStore, keys: list[tuple[Any, ...]]) -> None:
        events, columns = weather_store.reader(WEATHER, ["temp", "wind"])(keys)
        assert events == [None] * len(keys)
        assert [list(column) for column in columns] == [[None] * len(keys)] * 2

    def test_reads_no_features_too(self, weather_store: OnlineStore) -> None:
        weather_store.write(WEATHER, online_rows(WEATHER, [weather("JFK", 2)]), None)
        read = weather_store.reader(WEATHER, [])
        assert read([("JFK",)]) == ([microseconds(minute(2))], [])
        assert read([("JFK",), ("LGA",)]) == ([microseconds(minute(2)), None], [])

    @pytest.mark.parametrize("types", [(Int64,), (String, Int64)], ids=str)
    def test_reads_many_keys_at_once(self, store: OnlineStore, types: tuple[FeatureType, ...]) -> None:
        view = keyed_by(*types)
        store.prepare(view)
        keys = [tuple(number if of == Int64 else str(number) for of in types) for number in range(self.many)]
        rows = [
            {**dict(zip(view.join_keys, key, strict=True)), "at": minute(0), "value": number}
            for number, key in enumerate(keys)
            if number % 7
        ]
        store.write(view, online_rows(view, rows), None)
        read = store.reader(view, ["value"])
        for count in {min(count, self.many) for count in (2, 3, 33, 100, 129, 1000, 1001, 2600)}:
            assert list(read(keys[:count])[1][0]) == [number if number % 7 else None for number in range(count)]
        some = self.many // 2
        found = store.stored(view, online_keys(view, keys[:some]))
        assert found.height == sum(bool(number % 7) for number in range(some))

    def test_a_view_without_entities_has_one_row(self, store: OnlineStore) -> None:
        view = model_view(keyed=False)
        store.prepare(view)
        read = store.reader(view, ["temp"])
        assert read([()]) == ([None], [(None,)])
        first = {"observed_at": minute(1), "temp": 1.0}
        later = {"observed_at": minute(2), "temp": 2.0}
        store.write(view, online_rows(view, [later]), None)
        assert store.write(view, online_rows(view, [first]), None) == WriteCount(kept=1)
        for count in (1, 3):
            events, columns = read([()] * count)
            assert events == [microseconds(minute(2))] * count
            assert list(columns[0]) == [2.0] * count
        assert store.stored(view).height == 1
        assert store.retract(view, online_tokens(view, [later]), online_rows(view, [first])) == 0
        assert list(read([()])[1][0]) == [1.0]
        assert store.retract(view, online_tokens(view, [first]), online_rows(view, [])) == 0
        assert read([()])[0] == [None]

    def test_an_unknown_feature_is_named(self, weather_store: OnlineStore) -> None:
        with pytest.raises(UnknownFeature, match=r"has no feature 'tmp'\. Did you mean 'temp'\?"):
            weather_store.reader(WEATHER, ["tmp"])

    # Order

    @pytest.mark.parametrize("created", [True, False], ids=["created", "no created"])
    def test_the_latest_token_stays_in_whatever_order_rows_come(self, store: OnlineStore, *, created: bool) -> None:
        view = WEATHER if created else COUNTER
        store.prepare(view)
        tokens = [Token(1, None, 2), Token(1, None, 3), Token(2, None, 1)]
        if created:
            tokens += [Token(1, 0, 1), Token(2, 0, 1)]
        orders = list(itertools.permutations(tokens))
        for number, order in enumerate(orders[:: max(1, len(orders) // self.orders)]):
            stored: Token | None = None
            for token in order:
                row = self._row_of(view, f"key {number}", token)
                expected = WriteCount(written=1) if replaces(token, stored) else WriteCount(kept=1)
                assert store.write(view, online_rows(view, [row]), None) == expected, order
                stored = token if expected.written else stored
        assert store.stored(view)[PUBLICATION].to_list() == [1] * (number + 1)
        newest = minute(2)
        assert set(store.stored(view)[view.event_timestamp]) == {newest}

    def _row_of(self, view: ViewSpec, key: str, token: Token) -> Row:
        if view is COUNTER:
            return {"user": key, "at": minute(token.event), PUBLICATION: token.publication}
        return weather(key, token.event, token.created, token.publication)

    def test_the_latest_of_several_rows_of_a_key_stays(self, weather_store: OnlineStore) -> None:
        rows = [weather("JFK", event, temp=float(event)) for event in (1, 3, 2)]
        weather_store.write(WEATHER, online_rows(WEATHER, rows), None)
        assert weather_store.reader(WEATHER, ["temp"])([("JFK",)])[1] == [(3.0,)]

    def test_the_same_token_again_sets_its_values(self, weather_store: OnlineStore) -> None:
        for temp in (1.0, 2.0):
            weather_store.write(WEATHER, online_rows(WEATHER, [weather("JFK", 1, temp=temp)]), None)
        assert weather_store.reader(WEATHER, ["temp"])([("JFK",)])[1] == [(2.0,)]

    def test_null_replaces_a_value(self, weather_store: OnlineStore) -> None:
        rows = [weather("JFK", 1, temp=1.0, wind=5), weather("JFK", 2, wind=6)]
        for row in rows:
            weather_store.write(WEATHER, online_rows(WEATHER, [row]), None)
        assert weather_store.reader(WEATHER, ["temp", "wind"])([("JFK",)])[1] == [(None,), (6,)]

    def test_many_rows_from_before_the_watermark_win_where_they_should(self, store: OnlineStore) -> None:
        """A backfill: some keys are new, some have a later row, some an earlier one; features that are dear to convert."""
        view = ViewSpec(
            name="nested",
            entities=(Entity("driver", {"driver": Int64}),),
            features=(Field("trips", List[Int64]), Field("last", Struct({"x": Float64}))),
            event_timestamp="at",
            created_timestamp="created",
        )

        def rows(event: int, numbers: range, created: int | None = None) -> pl.DataFrame:
            of_all = {"at": minute(event), "created": None if created is None else minute(created), PUBLICATION: 1}
            return online_rows(
                view, [{"driver": number, "trips": [event], "last": {"x": 1.0}, **of_all} for number in numbers]
            )

        store.prepare(view)
        store.write(view, rows(9, range(100)), None)
        store.write(view, rows(3, range(100, 200)), None)
        store.write(view, rows(5, range(200, 300), created=None), None)
        # Older than the first hundred, later than the second, known later than the third, and of another hundred the first.
        assert store.write(view, rows(5, range(400), created=1), None) == WriteCount(written=300, kept=100)
        columns = store.reader(view, ["trips"])([(number,) for number in range(400)])[1]
        assert list(columns[0]) == [[9]] * 100 + [[5]] * 300
        assert store.write(view, rows(4, range(400)), None) == WriteCount(kept=400)

    # Compare and set

    def test_retract_sets_or_deletes_what_is_still_as_expected(self, weather_store: OnlineStore) -> None:
        rows = [weather(name, 5, 1, publication=7, temp=5.0) for name in ("set", "gone", "changed", "known later")]
        weather_store.write(WEATHER, online_rows(WEATHER, rows), None)
        expected = weather_store.stored(WEATHER)
        meanwhile = [weather("changed", 6, 1, publication=8, temp=6.0), weather("known later", 5, 2, publication=7)]
        weather_store.write(WEATHER, online_rows(WEATHER, meanwhile), None)
        lower = [weather(name, 1, publication=3, temp=1.0) for name in ("set", "changed", "not asked for")]
        assert weather_store.retract(WEATHER, expected, online_rows(WEATHER, lower)) == 2
        assert sorted(weather_store.stored(WEATHER).rows()) == [
            ("changed", minute(6), minute(1), 8),
            ("known later", minute(5), minute(2), 7),
            ("set", minute(1), None, 3),
        ]
        assert weather_store.reader(WEATHER, ["temp"])([("set",)])[1] == [(1.0,)]

    def test_retract_of_what_is_not_there_misses(self, weather_store: OnlineStore) -> None:
        nobody = online_tokens(WEATHER, [weather("nobody", 1)])
        replacement = online_rows(WEATHER, [weather("nobody", 1)])
        assert weather_store.retract(WEATHER, nobody, replacement) == 1
        assert weather_store.retract(WEATHER, nobody, replacement.clear()) == 1
        assert weather_store.stored(WEATHER).is_empty()

    @pytest.mark.parametrize("stored, asked", [(None, 0), (0, None), (0, 1)])
    def test_retract_tells_no_created_time_from_any(
        self, weather_store: OnlineStore, stored: int | None, asked: int | None
    ) -> None:
        weather_store.write(WEATHER, online_rows(WEATHER, [weather("JFK", 1, stored)]), None)
        other = online_tokens(WEATHER, [weather("JFK", 1, asked)])
        same = online_tokens(WEATHER, [weather("JFK", 1, stored)])
        assert weather_store.retract(WEATHER, other, online_rows(WEATHER, [])) == 1
        assert weather_store.retract(WEATHER, same, online_rows(WEATHER, [])) == 0

    def test_after_a_retraction_an_earlier_row_wins(self, weather_store: OnlineStore) -> None:
        late, early = [online_rows(WEATHER, [weather("JFK", event)]) for event in (9, 1)]
        weather_store.write(WEATHER, late, None)
        weather_store.retract(WEATHER, late.select(token_schema(WEATHER).keys()), late.clear())
        assert weather_store.write(WEATHER, early, None) == WriteCount(written=1)

    # Ledger

    def test_a_publication_is_in_the_ledger_with_its_rows(self, weather_store: OnlineStore) -> None:
        assert weather_store.ledger(WEATHER) == Ledger({})
        rows = online_rows(WEATHER, [weather("JFK", 3, publication=7)])
        weather_store.write(WEATHER, rows, AppliedPublication(7, 2, {"a": 1, "b": 0}, settled=False))
        ledger = weather_store.ledger(WEATHER)
        assert ledger.watermark == minute(3)
        assert {name: (entry.publication, entry.rows) for name, entry in ledger.entries.items()} == {
            "a": (7, 1),
            "b": (7, 0),
        }
        assert {(entry.delta_version, entry.settled) for entry in ledger.entries.values()} == {(2, False)}
        assert all(entry.applied_at.utcoffset() is not None for entry in ledger.entries.values())

    def test_a_superseded_publication_writes_nothing(self, weather_store: OnlineStore) -> None:
        weather_store.write(WEATHER, online_rows(WEATHER, []), AppliedPublication(7, 2, {"a": 0}))
        before = weather_store.ledger(WEATHER)
        rows = online_rows(WEATHER, [weather("JFK", 3, publication=6)])
        count = weather_store.write(WEATHER, rows, AppliedPublication(6, 3, {"a": 1, "b": 0}))
        assert count == WriteCount(superseded=True)
        assert weather_store.ledger(WEATHER) == before
        assert weather_store.stored(WEATHER).is_empty()

    @pytest.mark.parametrize("entered", [6, 7])
    def test_what_was_entered_since_supersedes(self, weather_store: OnlineStore, entered: int) -> None:
        superseded = entered > 6
        weather_store.write(WEATHER, online_rows(WEATHER, []), AppliedPublication(6, 2, {"a": 0}))
        weather_store.write(WEATHER, online_rows(WEATHER, []), AppliedPublication(entered, 3, {"a": 0}))
        rows = online_rows(WEATHER, [weather("JFK", 3, publication=9)])
        # It is of no partition that others publish, and may be behind whatever takes the rows of "a" back.
        count = weather_store.write(WEATHER, rows, AppliedPublication(1, 4, {"other": 1}, seen={"a": 6, "b": 0}))
        assert count == (WriteCount(superseded=True) if superseded else WriteCount(written=1))
        assert ("other" in weather_store.ledger(WEATHER).entries) is not superseded
        assert weather_store.stored(WEATHER).is_empty() is superseded

    def test_what_is_entered_itself_does_not_supersede(self, weather_store: OnlineStore) -> None:
        """Whoever has seen a partition may publish that same one."""
        weather_store.write(WEATHER, online_rows(WEATHER, []), AppliedPublication(6, 2, {"a": 0}))
        rows = online_rows(WEATHER, [weather("JFK", 3, publication=7)])
        count = weather_store.write(WEATHER, rows, AppliedPublication(7, 3, {"a": 1}, seen={"a": 6}))
        assert count == WriteCount(written=1)

    def test_the_same_publication_may_be_repeated(self, weather_store: OnlineStore) -> None:
        rows = online_rows(WEATHER, [weather("JFK", 3, publication=7)])
        for _ in range(2):
            count = weather_store.write(WEATHER, rows, AppliedPublication(7, 2, {"a": 1}))
            assert count == WriteCount(written=1)

    def test_settling_marks_entries_of_that_publication_only(self, weather_store: OnlineStore) -> None:
        nothing = online_rows(WEATHER, [])
        weather_store.write(WEATHER, nothing, AppliedPublication(7, 2, {"a": 0, "b": 0, "c": 0}, settled=False))
        weather_store.write(WEATHER, nothing, AppliedPublication(8, 3, {"b": 0}, settled=False))
        weather_store.settle(WEATHER, 7, ["a", "b", "not there"])
        entries = weather_store.ledger(WEATHER).entries
        assert {name: entry.settled for name, entry in entries.items()} == {"a": True, "b": False, "c": False}

    def test_forgotten_entries_are_gone(self, weather_store: OnlineStore) -> None:
        weather_store.write(WEATHER, online_rows(WEATHER, []), AppliedPublication(7, 2, {"a": 0, "b": 0}))
        weather_store.forget(WEATHER, ["b", "not there"])
        assert list(weather_store.ledger(WEATHER).entries) == ["a"]

    # Tables

    def test_a_view_that_was_never_prepared_has_no_table(self, store: OnlineStore) -> None:
        rows = online_rows(WEATHER, [weather("JFK", 1)])
        read = store.reader(WEATHER, ["temp"])
        for _ in range(2):
            assert store.ledger(WEATHER) == Ledger({})
            assert (WEATHER.name, 1) not in store.tables()
            store.drop(WEATHER)
            store.forget(WEATHER, ["a"])
            for attempt in (
                lambda: read([("JFK",)]),
                lambda: read([("JFK",), ("LGA",)]),
                lambda: store.write(WEATHER, rows, None),
                lambda: store.retract(WEATHER, rows.select(token_schema(WEATHER).keys()), rows),
                lambda: store.settle(WEATHER, 1, ["a"]),
                lambda: store.stored(WEATHER),
                lambda: list(store.scan(WEATHER)),
                lambda: store.delete(WEATHER, rows.select("origin")),
            ):
                with pytest.raises(TableMissing, match=r"'weather' \(version 1\).*feature-assets materialize weather"):
                    attempt()
            store.prepare(COUNTER)  # And again beside another view.
        store.prepare(WEATHER)
        assert read([("JFK",)])[0] == [None]

    def test_a_dropped_view_is_gone_and_may_come_back(self, weather_store: OnlineStore) -> None:
        store = weather_store
        read = store.reader(WEATHER, ["temp"])
        store.write(WEATHER, online_rows(WEATHER, [weather("JFK", 1, temp=1.0)]), AppliedPublication(7, 2, {"a": 1}))
        assert read([("JFK",)])[1] == [(1.0,)]
        store.drop(WEATHER)
        assert store.tables() == []
        assert store.ledger(WEATHER) == Ledger({})
        with pytest.raises(TableMissing):
            read([("JFK",)])
        store.prepare(WEATHER)
        assert read([("JFK",)])[0] == [None]

    def test_a_feature_is_added_under_readers_and_writers(self, weather_store: OnlineStore) -> None:
        store = weather_store
        wider = ViewSpec(**_parts(WEATHER, features=(Field("gust", Float64), *WEATHER.features)))
        store.write(WEATHER, online_rows(WEATHER, [weather("JFK", 1, temp=1.0), weather("LGA", 1, temp=2.0)]), None)
        old, new = store.reader(WEATHER, ["temp"]), store.reader(wider, ["gust", "temp"])
        assert new([("JFK",)])[1] == [(None,), (1.0,)]
        assert old([("JFK",)])[1] == [(1.0,)]
        store.prepare(wider)
        store.prepare(WEATHER)
        store.write(wider, online_rows(wider, [weather("JFK", 2, temp=3.0, gust=9.0)]), None)
        assert new([("JFK",)])[1] == [(9.0,), (3.0,)]
        assert [list(column) for column in new([("JFK",), ("LGA",)])[1]] == [[9.0, None], [3.0, 2.0]]
        assert old([("JFK",)])[1] == [(3.0,)]
        # A publisher that does not know the feature yet: its row has no value for it, not that of an earlier row.
        store.write(WEATHER, online_rows(WEATHER, [weather("JFK", 3, temp=4.0)]), None)
        assert new([("JFK",)])[1] == [(None,), (4.0,)]
        store.write(wider, online_rows(wider, [weather("JFK", 4, temp=5.0, gust=8.0)]), None)
        tokens = online_tokens(WEATHER, [weather("JFK", 4)])
        assert store.retract(WEATHER, tokens, online_rows(WEATHER, [weather("JFK", 3, temp=4.0)])) == 0
        assert new([("JFK",)])[1] == [(None,), (4.0,)]

    def test_writing_adds_features_that_prepare_was_not_asked_for(self, weather_store: OnlineStore) -> None:
        wider = ViewSpec(**_parts(WEATHER, features=(*WEATHER.features, Field("gust", Float64))))
        weather_store.write(wider, online_rows(wider, [weather("JFK", 2, gust=9.0)]), None)
        assert weather_store.reader(wider, ["gust"])([("JFK",)])[1] == [(9.0,)]

    def test_another_type_needs_another_version(self, weather_store: OnlineStore) -> None:
        other = ViewSpec(**_parts(WEATHER, features=(Field("temp", String), Field("wind", Int64))))
        with pytest.raises(DeclarationError, match=r"'temp' is stored online as Float64 .* String.*version=2"):
            weather_store.prepare(other)
        weather_store.prepare(ViewSpec(**_parts(other, version=2)))
        assert weather_store.tables() == [("weather", 1), ("weather", 2)]

    def test_other_join_keys_need_another_version(self, weather_store: OnlineStore) -> None:
        other = ViewSpec(**_parts(WEATHER, entities=(Entity("airport", {"dest": String}),)))
        with pytest.raises(DeclarationError, match=r"keyed by origin and the declaration says dest.*version=2"):
            weather_store.prepare(other)

    def test_versions_stand_side_by_side(self, weather_store: OnlineStore) -> None:
        second = ViewSpec(**_parts(WEATHER, version=2))
        weather_store.prepare(second)
        for view, temp in ((WEATHER, 1.0), (second, 2.0)):
            publication = AppliedPublication(7, view.version, {"a": 1})
            weather_store.write(view, online_rows(view, [weather("JFK", 1, temp=temp)]), publication)
        for view, temp in ((WEATHER, 1.0), (second, 2.0)):
            assert weather_store.reader(view, ["temp"])([("JFK",)])[1] == [(temp,)]
            assert weather_store.ledger(view).entries["a"].delta_version == view.version
        weather_store.drop(WEATHER)
        assert weather_store.reader(second, ["temp"])([("JFK",)])[1] == [(2.0,)]
        assert weather_store.ledger(second).entries.keys() == {"a"}

    @pytest.mark.parametrize("word", ["select", "group", "Order", "sqlite_master", "values", "index", "t", "v"])
    def test_reserved_words_are_names_like_any_other(self, store: OnlineStore, word: str) -> None:
        view = ViewSpec(
            name=word,
            entities=(Entity("table", {"rowid": Int64, "where": String}),),
            features=(Field("from", Float64), Field("excluded", Int64), Field("position", Int64), Field("k0", Int64)),
            event_timestamp="timestamp",
            created_timestamp="null",
        )
        store.prepare(view)
        row = {"where": "x", "rowid": 1, "timestamp": minute(1), "from": 1.5, "excluded": 2, "position": 3, "k0": 4}
        assert store.write(view, online_rows(view, [row]), None) == WriteCount(written=1)
        read = store.reader(view, ["k0", "position", "excluded", "from"])
        assert read([(1, "x")])[1] == [(4,), (3,), (2,), (1.5,)]
        assert list(read([(1, "x"), (2, "x")])[1][3]) == [1.5, None]
        assert store.retract(view, online_tokens(view, [row]), online_rows(view, [row])) == 0
        assert store.delete(view, online_keys(view, [(1, "x")])) == 1

    @pytest.mark.parametrize(
        "spoil, message",
        [
            (lambda rows: rows.drop("temp"), r"lack 'temp'"),
            (lambda rows: rows.cast({"wind": pl.Int32}), r"'wind' is Int32 and not Int64"),
            (lambda rows: rows.with_columns(origin=pl.lit(None, pl.String)), r"'origin' is null in 1 of 1 rows"),
            (lambda rows: rows.drop(PUBLICATION), r"lack '__publication'"),
        ],
        ids=["missing", "dtype", "null", "no publication"],
    )
    def test_rows_that_were_not_conformed_are_refused(
        self, weather_store: OnlineStore, spoil: Any, message: str
    ) -> None:
        with pytest.raises(ContractBroken, match=message):
            weather_store.write(WEATHER, spoil(online_rows(WEATHER, [weather("JFK", 1)])), None)

    # At the same time

    def test_many_threads_write_one_key_and_readers_see_whole_rows(self, store: OnlineStore) -> None:
        store.prepare(COUNTER)
        read = store.reader(COUNTER, ["clicks", "views"])
        done = threading.Event()
        torn: list[Any] = []

        def write(thread: int) -> None:
            for number in range(thread % 2, self.races, 1 + thread % 3):
                row = {"user": "u", "at": minute(number), "clicks": number, "views": number}
                store.write(COUNTER, online_rows(COUNTER, [row]), None)

        def watch(keys: list[tuple[Any, ...]]) -> None:
            last = -1
            while not done.is_set():
                events, (clicks, views) = read(keys)
                if events[0] is None:
                    continue
                number = clicks[0]
                if views[0] != number or events[0] != microseconds(minute(number)) or number < last:
                    torn.append((events, clicks, views, last))
                last = number

        with ThreadPoolExecutor(10) as pool:
            watching = [pool.submit(watch, [("u",)] * count) for count in (1, 2)]
            writing = [pool.submit(write, thread) for thread in range(8)]
            for future in writing:
                future.result()
            done.set()
            for future in watching:
                future.result()
        assert torn == []
        assert read([("u",)])[1] == [(self.races - 1,), (self.races - 1,)]

    def test_several_processes_write_one_key(self, store: OnlineStore, tmp_path: Path) -> None:
        store.prepare(COUNTER)
        code = "import sys; from feature_assets.testing.online import count_up; count_up(sys.argv[1], *map(int, sys.argv[2:]))"
        last = self.races // 2
        arguments = [[self.url(tmp_path), str(first), "2", str(last)] for first in range(2)]
        processes = [subprocess.Popen([sys.executable, "-c", code, *given]) for given in arguments]  # noqa: S603
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
        assert store.reader(COUNTER, ["clicks"])([("u",)])[1] == [(last - 1,)]

    def test_many_prepare_the_same_view(self, store: OnlineStore) -> None:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda _: store.prepare(WEATHER), range(12)))
        assert store.tables() == [("weather", 1)]

    # All of it

    @pytest.mark.parametrize("keyed, created", [(True, True), (False, False)], ids=["keys", "no keys"])
    def test_does_what_a_dict_does(self, tmp_path_factory: Any, *, keyed: bool, created: bool) -> None:
        machine = online_machine(
            model_view(keyed=keyed, created=created), lambda: self.open(tmp_path_factory.mktemp("online"))
        )
        run_state_machine_as_test(machine, settings=settings(max_examples=self.runs, stateful_step_count=self.steps))


def bits_text(value: Any) -> str:
    return repr(bits(value))


def _parts(view: ViewSpec, **changed: Any) -> dict[str, Any]:
    return {**{name: getattr(view, name) for name in view.__struct_fields__}, **changed}
