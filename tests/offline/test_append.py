"""Pushed rows are added to their partitions, each exactly once, beside whatever others do."""

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets.offline import InJournal, OfflineStore
from feature_assets.offline import store as store_module
from feature_assets.spec import EVENT_ID, PARTITION, PUBLICATION, SEQUENCE, Entity, Field, ViewSpec
from feature_assets.types import UUID, Bytes, Date, Float32, Float64, Int64, Json, List, Map, String, Struct, Vector
from tests.offline.tables import START, WEATHER, Row, data_files, frame, held, replace, sorted_rows

MARCH, APRIL = "2024-03", "2024-04"


def pushed(
    rows: dict[str, list[Row]], first: int = 1, ids: list[str | None] | None = None, view: ViewSpec = WEATHER
) -> pl.DataFrame:
    """Rows as a journal gives them, each a push of its own."""
    conformed = frame(rows, view)
    return conformed.with_columns(
        pl.Series(EVENT_ID, ids or [None] * conformed.height, pl.String),
        pl.int_range(first, first + conformed.height, dtype=pl.Int64).alias(SEQUENCE),
    )


def push(store: OfflineStore, rows: pl.DataFrame, journal: str = "j1", view: ViewSpec = WEATHER) -> Any:
    return store.append(view, rows, numbered=InJournal(journal), metadata={})


def events(store: OfflineStore) -> list[str | None]:
    files = [str(file) for file in data_files(store)]
    return sorted(
        value
        for file in files
        for value in pl.read_parquet(file, hive_partitioning=False).to_dict(as_series=False).get(EVENT_ID, [])
        if value
    )


def test_rows_stand_beside_what_their_partitions_hold(store: OfflineStore) -> None:
    replace(store, {MARCH: [("JFK", 0, None, 1)]})
    commit, found = push(store, pushed({MARCH: [("JFK", 5, None, 2)], APRIL: [("LGA", 7, 1, 3)]}))
    assert held(store) == {MARCH: [("JFK", 0, None, 1), ("JFK", 5, None, 2)], APRIL: [("LGA", 7, 1, 3)]}
    assert (commit.rows, found.fresh.height, found.recovered.height) == (2, 2, 0)
    assert found.fresh[PUBLICATION].unique().len() == 1
    state = store.state(WEATHER)
    assert state is not None
    assert list(state.publications) == [MARCH], "nobody has materialised April"
    assert state.rows_by_partition == {MARCH: 2, APRIL: 1}
    assert store.pushed(WEATHER, "j1") == 2
    told = store.commits(WEATHER, limit=1)[0]
    assert (told.kind, told.partitions) == ("append", (MARCH, APRIL))
    assert told.metadata["pushed"] == (
        '{"2024-03": [1, "2024-03-01T00:05:00+00:00"], "2024-04": [1, "2024-03-01T00:07:00+00:00"]}'
    )


def test_a_push_may_be_the_first_thing_that_happens(store: OfflineStore) -> None:
    push(store, pushed({MARCH: [("JFK", 5, None, 2)]}))
    assert held(store) == {MARCH: [("JFK", 5, None, 2)]}
    assert store.pushed(WEATHER, "j2") is None


def test_a_materialisation_replaces_what_was_pushed(store: OfflineStore) -> None:
    push(store, pushed({MARCH: [("JFK", 5, None, 2)], APRIL: [("LGA", 7, 1, 3)]}))
    replace(store, {MARCH: [("EWR", 1, None, 9)]})
    assert held(store) == {MARCH: [("EWR", 1, None, 9)], APRIL: [("LGA", 7, 1, 3)]}
    replace(store, {MARCH: []})
    assert held(store) == {APRIL: [("LGA", 7, 1, 3)]}


def test_a_sequence_number_that_the_log_has_is_not_put_in_again(store: OfflineStore) -> None:
    rows = pushed({MARCH: [("JFK", 5, None, 2), ("JFK", 6, None, 3)]})
    push(store, rows.head(1))
    commit, found = push(store, rows)
    assert (found.fresh.height, found.recovered.height) == (1, 1)
    again, found = push(store, rows)
    assert (again, found.fresh.height, found.recovered.height) == (None, 0, 2)
    assert held(store) == {MARCH: [("JFK", 5, None, 2), ("JFK", 6, None, 3)]}
    # Not even if what it had put in was replaced in the meantime, or when an earlier number comes after a later one.
    replace(store, {MARCH: []})
    assert push(store, rows)[0] is None
    assert push(store, rows.head(1))[0] is None
    assert (held(store), store.pushed(WEATHER, "j1")) == ({}, 2)
    assert commit.version < store.version(WEATHER)


def test_rows_that_are_equal_are_one_row(store: OfflineStore) -> None:
    same: Row = ("JFK", 5, None, 2)
    replace(store, {MARCH: [("JFK", 1, None, 7)]})
    _, found = push(store, pushed({MARCH: [same, same, ("JFK", 5, None, 3), same, ("JFK", 1, None, 7)]}))
    assert found.fresh.height == 2, "once each; what was materialised counts too"
    assert push(store, pushed({MARCH: [same, ("JFK", 5, 0, 2)]}), "j2")[1].fresh.height == 1, "created differs"
    assert held(store)[MARCH] == sorted(
        [("JFK", 1, None, 7), ("JFK", 5, None, 2), ("JFK", 5, None, 3), ("JFK", 5, 0, 2)], key=repr
    )


def test_of_rows_with_one_key_and_time_the_later_push_is_later(store: OfflineStore) -> None:
    values = [3, 1, 2, 1]
    _, found = push(store, pushed({MARCH: [("JFK", 5, None, value) for value in values]}))
    assert found.fresh["temp"].to_list() == [3, 1, 2]
    assert found.fresh[PUBLICATION].is_sorted()
    assert found.fresh[PUBLICATION].n_unique() == 3
    assert store.latest(WEATHER).collect()["temp"].to_list() == [2]
    push(store, pushed({MARCH: [("JFK", 5, None, 0)]}, first=9))
    assert store.latest(WEATHER).collect()["temp"].to_list() == [0]


def test_an_event_id_is_known_again_whatever_comes_with_it(store: OfflineStore) -> None:
    push(store, pushed({MARCH: [("JFK", 5, None, 2)]}, ids=["a"]))
    _, found = push(store, pushed({APRIL: [("LGA", 9, None, 3), ("LGA", 9, None, 3)]}, ids=["a", "b"]), "j2")
    assert found.fresh[EVENT_ID].to_list() == ["b"]
    # Another event, though it says the same.
    push(store, pushed({MARCH: [("JFK", 5, None, 2)]}, first=5, ids=["c"]))
    # In one batch the first wins, and all rows of one push with it.
    rows = pushed(
        {MARCH: [("EWR", 1, None, 1), ("EWR", 2, None, 2), ("EWR", 3, None, 3)]}, first=6, ids=["d", "d", "d"]
    )
    push(store, rows.with_columns(pl.Series(SEQUENCE, [6, 6, 7], pl.Int64)))
    assert events(store) == ["a", "b", "c", "d", "d"]
    # Another store, which remembers nothing.
    assert push(OfflineStore(store.root), pushed({MARCH: [("JFK", 8, None, 2)]}, ids=["b"]), "j3")[0] is None
    store.compact(WEATHER)
    assert push(store, pushed({MARCH: [("JFK", 8, None, 2)]}, ids=["b"]), "j3")[0] is None


def test_what_was_materialised_since_is_the_same_event(store: OfflineStore) -> None:
    push(store, pushed({MARCH: [("JFK", 5, None, 2)]}, ids=["a"]))
    replace(store, {MARCH: [("JFK", 5, None, 2)]})
    assert push(store, pushed({MARCH: [("JFK", 5, None, 2)]}, ids=["a"]), "j2")[0] is None


def test_small_files_become_one_and_keep_what_tells_their_rows_apart(store: OfflineStore) -> None:
    replace(store, {MARCH: [("JFK", 0, None, 1)]})
    for minute in range(1, 6):
        push(store, pushed({MARCH: [("JFK", minute, None, minute)]}, first=minute, ids=[f"e{minute}"]))
    before, state = held(store), store.state(WEATHER)
    assert store.compact_pushes(WEATHER, [MARCH], more_than=5) is None
    assert store.compact_pushes(WEATHER, [APRIL], more_than=1) is None
    assert store.compact_pushes(WEATHER, [MARCH], more_than=4) is not None
    after = store.state(WEATHER)
    assert state is not None
    assert after is not None
    assert (held(store), after.publications, after.files) == (before, state.publications, 2)
    assert store.compact(WEATHER) is None, "what was pushed and what was materialised stay apart"
    assert store.pushed(WEATHER, "j1") == 5


def test_erasing_takes_pushed_rows_too_and_leaves_the_rest_as_it_is(store: OfflineStore) -> None:
    replace(store, {MARCH: [("JFK", 0, None, 1)]})
    push(store, pushed({MARCH: [("JFK", 5, None, 2), ("LGA", 5, None, 3)], APRIL: [("JFK", 6, None, 4)]}))
    state = store.state(WEATHER)
    commit = store.erase(WEATHER, pl.DataFrame({"origin": ["JFK"]}), metadata={})
    assert commit is not None
    assert commit.rows == 3
    assert held(store) == {MARCH: [("LGA", 5, None, 3)]}
    after = store.state(WEATHER)
    assert state is not None
    assert after is not None
    # So that whoever is late with them online finds out.
    assert list(after.publications) == [MARCH, APRIL]
    assert min(after.publications.values()) > state.publications[MARCH]
    assert push(store, pushed({APRIL: [("JFK", 6, None, 4)]}))[0] is None, "and what was put in is not put in again"


def test_rows_that_waited_go_into_a_table_that_has_more_features_by_now(store: OfflineStore) -> None:
    wider = ViewSpec(**{**{name: getattr(WEATHER, name) for name in WEATHER.__struct_fields__},
                        "features": (*WEATHER.features, Field("rain", Int64))})  # fmt: skip
    store.replace(wider, frame({MARCH: [("JFK", 0, None, 1)]}, wider), [MARCH], metadata={})
    push(store, pushed({MARCH: [("JFK", 5, None, 2)]}))
    assert store.scan(wider).sort("observed_at").collect()["rain"].to_list() == [None, None]


VALUES = ViewSpec(
    name="values",
    entities=(Entity("thing", {"id": Int64}),),
    features=(
        Field("f64", Float64), Field("f32", Float32), Field("text", String), Field("raw", Bytes), Field("day", Date),
        Field("uuid", UUID), Field("json", Json), Field("list", List[Float64]), Field("vector", Vector[2]),
        Field("struct", Struct({"x": Float64})), Field("map", Map[String, Int64]),
    ),
    event_timestamp="at",
)  # fmt: skip
_ONE = {"f64": 0.0, "f32": 1.0, "text": "a", "raw": b"\0", "list": [0.0], "vector": [0.0, 1.0], "struct": {"x": 0.0},
        "map": {"a": 1}}  # fmt: skip
_OTHER = {"f64": -0.0, "f32": -0.0, "text": "", "raw": b"", "list": [-0.0], "vector": [-0.0, 1.0], "struct": {"x": -0.0},
          "map": {}}  # fmt: skip


def _valued(values: dict[str, Any]) -> pl.DataFrame:
    columns = [field.type.to_frame(field.name, [values.get(field.name)]) for field in VALUES.features]
    times = pl.Series("at", [START], pl.Datetime("us", "UTC"))
    more = pl.DataFrame({PARTITION: ["all"], EVENT_ID: [None], SEQUENCE: [1]}, schema_overrides={EVENT_ID: pl.String})
    return pl.DataFrame([pl.Series("id", [1], pl.Int64), times, *columns]).hstack(more)


@pytest.mark.parametrize("name", list(_OTHER))
def test_equal_is_equal_bit_for_bit(store: OfflineStore, name: str) -> None:
    nan = {"f64": float("nan"), "f32": float("nan")}
    for number, values in enumerate([_ONE, {**_ONE, name: _OTHER[name]}, {**_ONE, name: None}, {**_ONE, **nan}]):
        for turn in (0, 1):
            commit, _ = store.append(VALUES, _valued(values), numbered=InJournal(f"{number}-{turn}"), metadata={})
            assert (commit is None) == bool(turn), (values, turn)


def test_two_who_push_the_same_at_once_put_it_in_once(tmp_path: Path) -> None:
    roots = [OfflineStore(str(tmp_path), durability="process") for _ in range(3)]
    rows = {MARCH: [("JFK", minute, None, minute) for minute in range(20)]}
    failed: list[BaseException] = []

    def work(which: int) -> None:
        try:
            for start in range(0, 20, 4):
                batch = pushed(rows, ids=[f"e{n}" for n in range(20)])[start : start + 4]
                push(roots[which], batch, journal=f"j{which}")
        except BaseException as error:  # noqa: BLE001 (shown below)
            failed.append(error)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert held(roots[0]) == sorted_rows(rows)


def test_pushes_hold_up_no_materialisation(store: OfflineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is pushed while a partition is being written stays, and the files are written once."""
    written: list[int] = []
    real = store_module.replacing

    def slow(*arguments: Any) -> Any:
        prepare = real(*arguments)

        def prepared(table: Any, former: Any) -> Any:
            swap = prepare(table, former)
            written.append(len(data_files(store)))
            if len(written) < 3:
                push(store, pushed({MARCH: [("LGA", len(written), None, 5)]}, first=10 * len(written)))
            return swap

        return prepared

    push(store, pushed({MARCH: [("EWR", 0, None, 5)]}))
    monkeypatch.setattr(store_module, "replacing", slow)
    replace(store, {MARCH: [("JFK", 0, None, 1)]})
    assert written == [2], "prepared once"
    assert held(store) == {MARCH: [("JFK", 0, None, 1), ("LGA", 1, None, 5)]}


rows_of = st.lists(
    st.tuples(st.sampled_from(["JFK", "LGA"]), st.integers(0, 2), st.none(), st.integers(0, 2)), min_size=1, max_size=4
)
ids_of = st.lists(st.one_of(st.none(), st.sampled_from("abc")), min_size=4, max_size=4)


@settings(max_examples=25)
@given(
    batches=st.lists(st.tuples(rows_of, ids_of, st.sampled_from(["j1", "j2"])), min_size=1, max_size=4), data=st.data()
)
def test_each_push_is_there_once(
    batches: list[tuple[list[Row], list[str | None], str]],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Batches, each sent again from any point as after a crash, against a list and two sets."""
    store = OfflineStore(str(tmp_path_factory.mktemp("offline")), durability="process")
    expected: list[Row] = []
    known: set[str] = set()
    sequences = {"j1": 0, "j2": 0}
    for rows, ids, journal in batches:
        batch = pushed({MARCH: rows}, first=sequences[journal] + 1, ids=ids[: len(rows)])
        cut = data.draw(st.integers(0, len(rows)), label="committed before the crash")
        for part in (batch.head(cut), batch):
            if part.height:
                push(store, part, journal)
        sequences[journal] += len(rows)
        for row, event in zip(rows, ids, strict=False):
            if event is None and row not in expected:
                expected.append(row)
            if event is not None and event not in known:
                known.add(event)
                expected.append(row)
    assert held(store) == sorted_rows({MARCH: expected})
    latest = {row["origin"]: row["observed_at"] for row in store.latest(WEATHER).collect().iter_rows(named=True)}
    assert latest == {
        origin: START + timedelta(minutes=max(row[1] for row in expected if row[0] == origin))
        for origin in {row[0] for row in expected}
    }


def test_checkpoints_do_not_pile_up_and_every_version_can_be_read(tmp_path: Path) -> None:
    """Each holds every file that was ever removed: of many small commits they would be most of the table."""
    store = OfflineStore(str(tmp_path), durability="process")
    for number in range(150):
        push(store, pushed({MARCH: [("JFK", number, None, number)]}, first=number + 1))
        if number % 40 == 0:
            store.compact_pushes(WEATHER, [MARCH], more_than=8)
    checkpoints = sorted(int(one.name[:20]) for one in tmp_path.glob("weather/v1/_delta_log/*.checkpoint.parquet"))
    assert len(checkpoints) == 3
    assert store.version(WEATHER) - checkpoints[-1] < 20
    newest = store.version(WEATHER)
    commits = {one.version: one for one in store.commits(WEATHER)}
    assert sorted(commits) == list(range(newest + 1))
    rows = 0
    for version in range(newest + 1):
        rows += 1 if commits[version].kind == "append" else 0
        if version % 20 in (0, 1, 10, 19) or version == newest:
            assert sum(map(len, held(store, version).values())) == rows
    assert store.check(WEATHER) == []
