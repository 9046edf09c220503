"""Replacing partitions: what a reader then sees, now and at every earlier version, and what is refused."""

import json
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from feature_assets.errors import ContractBroken, TableMissing
from feature_assets.offline import OfflineStore
from feature_assets.offline.commits import Swap, application, committed, next_publication
from feature_assets.offline.files import files_of, written
from feature_assets.offline.table import needed
from feature_assets.spec import PARTITION, PUBLICATION, ViewSpec
from tests.offline.tables import (
    WEATHER,
    Row,
    data_files,
    frame,
    held,
    log_entries,
    publications,
    replace,
    sorted_rows,
)

PARTITIONS = ["2024-03-01", "2024-03-02", "2026-10-25-02:00+0100", "ü/%"]
KEYS = ["a", "b", "a|b", ""]
rows_of_a_partition = st.lists(
    st.tuples(
        st.sampled_from(KEYS),
        st.integers(-3, 3),
        st.none() | st.integers(0, 2),
        st.none() | st.integers(-(2**63), 2**63 - 1),
    ),
    max_size=4,
)
some_partitions = st.dictionaries(st.sampled_from(PARTITIONS), rows_of_a_partition, min_size=1, max_size=3)


class History(RuleBasedStateMachine):
    """The model is a dict, partition → rows, and a copy of it for every version."""

    root: Path

    def __init__(self) -> None:
        super().__init__()
        self.store = OfflineStore(str(self.root / f"{time.monotonic_ns()}"), durability="process")
        self.rows: dict[str, list[Row]] = {}
        self.publications: dict[str, int] = {}
        self.carried: dict[str, int] = {}
        self.versions: dict[int, dict[str, list[Row]]] = {}

    @rule(rows=some_partitions, lazily=st.booleans())
    def replace(self, rows: dict[str, list[Row]], lazily: bool) -> None:
        given = frame(rows).lazy() if lazily else frame(rows)
        commit = self.store.replace(WEATHER, given, list(rows), metadata={})
        existed = any(partition in self.publications for partition in rows)
        assert commit.rows == sum(map(len, rows.values()))
        assert (commit.base in self.versions) if existed else commit.base is None
        assert commit.publication > max(self.publications.values(), default=0)
        self.rows |= rows
        assert commit.partitions == {partition: len(of_partition) for partition, of_partition in rows.items()}
        self.publications |= dict.fromkeys(rows, commit.publication)
        self.carried |= dict.fromkeys(rows, commit.publication)
        self._remember(commit.version)

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=2, unique=True))
    def erase(self, keys: list[str]) -> None:
        if not self.publications:
            return
        doomed = sum(row[0] in keys for rows in self.rows.values() for row in rows)
        touched = [partition for partition, rows in self.rows.items() if any(row[0] in keys for row in rows)]
        commit = self.store.erase(WEATHER, pl.DataFrame({"origin": keys}), metadata={})
        assert (commit.rows if commit else 0) == doomed
        self.rows = {partition: [row for row in rows if row[0] not in keys] for partition, rows in self.rows.items()}
        if commit is not None:
            # The partitions change and say so; the rows that stay are ordered as they were.
            assert commit.publication > max(self.publications.values())
            assert commit.partitions == {partition: len(self.rows[partition]) for partition in touched}
            self.publications |= dict.fromkeys(touched, commit.publication)
            self._remember(commit.version)

    @rule()
    def compact(self) -> None:
        if self.publications:
            assert self.store.compact(WEATHER) is None, "a replaced partition is one small file already"

    def _remember(self, version: int) -> None:
        self.versions[version] = sorted_rows(self.rows)

    @rule(data=st.data())
    def look_back(self, data: st.DataObject) -> None:
        if self.versions:
            version = data.draw(st.sampled_from(sorted(self.versions)))
            assert held(self.store, version) == self.versions[version]

    @invariant()
    def is_what_was_put_in(self) -> None:
        state = self.store.state(WEATHER)
        if not self.publications:
            assert state is None
            return
        assert held(self.store) == sorted_rows(self.rows)
        assert state is not None
        assert state.publications == self.publications
        assert state.rows_by_partition == {partition: len(self.rows[partition]) for partition in self.publications}
        assert state.rows == sum(map(len, self.rows.values()))
        assert self.store.check(WEATHER) == []
        assert publications(self.store) == {
            partition: {self.carried[partition]} for partition, rows in self.rows.items() if rows
        }


def test_history_is_a_dict_of_partitions(tmp_path: Path) -> None:
    class Here(History):
        root = tmp_path

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=12, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_a_replacement_is_one_log_entry_with_what_it_was(store: OfflineStore) -> None:
    replace(store, {"a": [("k", 0, None, 1)]})
    commit = replace(store, {"a": [("k", 0, None, 2)], "b": []}, run_id="run 7", code_version="x")
    latest, *_ = store.commits(WEATHER)
    assert (latest.version, latest.kind, latest.partitions) == (commit.version, "replace", ("a", "b"))
    assert latest.metadata == {"run_id": "run 7", "code_version": "x", "publication": str(commit.publication)}
    assert latest.at.tzinfo is UTC
    assert [one.kind for one in store.commits(WEATHER)] == ["replace", "replace", "create"]
    assert [one.version for one in store.commits(WEATHER, limit=2)] == [2, 1]
    assert len(log_entries(store)) == 3
    table = DeltaTable(store.uri(WEATHER))
    assert {table.transaction_version(application(name)) for name in ("a", "b")} == {commit.publication}


def test_before_the_first_publication_there_is_no_table(store: OfflineStore) -> None:
    assert store.state(WEATHER) is None
    assert store.check(WEATHER) == []
    for read in (store.version, store.scan, store.latest, store.commits, store.compact):
        with pytest.raises(
            TableMissing, match=r"'weather' \(version 1\) has no table .* feature-assets materialize weather"
        ):
            read(WEATHER)
    assert not Path(store.root).exists()


def test_versions_of_a_view_have_tables_of_their_own(store: OfflineStore) -> None:
    second = ViewSpec(
        name="weather",
        version=2,
        entities=WEATHER.entities,
        features=WEATHER.features[1:],
        event_timestamp="observed_at",
        created_timestamp="reported_at",
    )
    replace(store, {"p": [("k", 0, None, 1)]})
    store.replace(second, frame({"p": [("k", 0, None, 2)]}, second), ["p"], metadata={})
    assert held(store) == {"p": [("k", 0, None, 1)]}
    assert held(store, view=second) == {"p": [("k", 0, None, 2)]}


NAMES = [
    *("2026-10-25-02:00+0100", "2026-10-25-02:00+0200", "a|b", "ü/%", " spaces ", "%20", "x=y", "o'q", 'quo"te'),
    *("tab\t", "new\nline", "back\\slash", "*?[z]", "é", "e\u0301", ".", "..", "~", "null", "😀", "#f?q=1", "{}", "01"),
    *("1", "true", "x" * 240, "<>:&;"),
]


def test_partition_names_of_any_kind_come_back_and_can_be_asked_for(store: OfflineStore) -> None:
    """Among them the two keys of the hour that a DST change repeats."""
    rows: dict[str, list[Row]] = {name: [("k", number, None, number)] for number, name in enumerate(NAMES)}
    replace(store, rows)
    replace(store, {name: [("k", number, None, -number)] for number, name in enumerate(NAMES[:-1])})
    assert held(store) == {name: [("k", number, None, -number)] for number, name in enumerate(NAMES[:-1])} | {
        NAMES[-1]: rows[NAMES[-1]]
    }
    assert set(store.state(WEATHER).publications) == set(NAMES)  # type: ignore[union-attr]
    for name in NAMES:
        assert store.scan(WEATHER, partitions=[name]).collect()[PARTITION].to_list() == [name]
    assert store.check(WEATHER) == []


@pytest.mark.parametrize("name", ["", "x" * 241, "é" * 41, "__HIVE_DEFAULT_PARTITION__"])
def test_names_that_no_folder_can_have_are_refused(store: OfflineStore, name: str) -> None:
    with pytest.raises(ContractBroken, match=r"cannot be a partition of a Delta table.*shorter name"):
        store.replace(WEATHER, frame({}), [name], metadata={})
    assert store.state(WEATHER) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.col("temp").cast(pl.Float64) + 0.7, "column 'temp' is Float64, not Int64"),
        (pl.col("temp").cast(pl.String), "column 'temp' is String, not Int64"),
        (pl.col("temp").cast(pl.Int32), "column 'temp' is Int32, not Int64"),
        (pl.col("observed_at").cast(pl.Datetime("ns", "UTC")), "column 'observed_at' is Datetime.*'ns'"),
        (pl.col("observed_at").dt.replace_time_zone(None), "column 'observed_at' is Datetime"),
        (pl.lit(1).alias("more"), "column 'more', which the view does not declare"),
        (pl.lit(None, pl.String).alias("origin"), "'origin' is null in 1 of 1 rows"),
        (pl.lit(None).cast(pl.Datetime("us", "UTC")).alias("observed_at"), "'observed_at' is null in 1 of 1 rows"),
        (pl.lit("q").alias(PARTITION), "rows of partition 'q', which is not among those that are replaced"),
        (pl.lit(None, pl.String).alias(PARTITION), "rows of partition '', which is not among"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rows_that_are_not_as_declared_are_refused_and_nothing_stays(
    store: OfflineStore, change: pl.Expr, message: str
) -> None:
    """delta-rs itself casts 0.7 to 0 and cuts nanoseconds without a word."""
    before = {"p": [("k", 0, None, 1)]}
    replace(store, before)
    files = data_files(store)
    with pytest.raises(ContractBroken, match=message):
        store.replace(WEATHER, frame({"p": [("k", 0, None, 2)]}).with_columns(change), ["p"], metadata={})
    assert held(store) == before
    assert data_files(store) == files


def test_a_missing_column_is_named(store: OfflineStore) -> None:
    with pytest.raises(ContractBroken, match=re.escape("weather: the rows have no column 'temp' (Int64)")):
        store.replace(WEATHER, frame({}).drop("temp"), ["p"], metadata={})


def test_rows_that_cannot_be_computed_leave_the_partition_as_it_was(store: OfflineStore) -> None:
    before: dict[str, list[Row]] = {"p": [("k", 0, None, 1)], "q": [("k", 1, None, 1)]}
    replace(store, before)
    files = data_files(store)

    def fail(series: pl.Series) -> pl.Series:
        raise ArithmeticError("the function failed")

    rows = (
        frame({"p": [("k", 0, None, 2)]}).lazy().with_columns(pl.col("temp").map_batches(fail, return_dtype=pl.Int64))
    )
    with pytest.raises((pl.exceptions.ComputeError, ArithmeticError), match="the function failed"):
        store.replace(WEATHER, rows, ["p"], metadata={})
    assert held(store) == before
    assert data_files(store) == files


def test_publications_grow_though_clocks_jump_back(store: OfflineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = replace(store, {"p": [("k", 0, None, 1)]})
    monkeypatch.setattr("feature_assets.offline.commits.time.time_ns", lambda: 10**18)
    second = replace(store, {"p": []})
    third = replace(store, {"q": [("k", 0, None, 1)]})
    fourth = replace(store, {"p": [("k", 0, None, 1)]})
    assert first.publication < second.publication < third.publication < fourth.publication


def test_a_publication_number_holds_the_time() -> None:
    before = datetime.now(UTC)
    number = next_publication(0)
    moment = datetime.fromtimestamp((number >> 10) / 1_000_000, UTC)
    assert abs((moment - before).total_seconds()) < 5
    assert next_publication(2**62) > 2**62


def test_many_partitions_are_replaced_in_one_commit(store: OfflineStore) -> None:
    names = [f"p{number}" for number in range(365)]
    replace(store, {name: [("k", number, None, number)] for number, name in enumerate(names)})
    commit = replace(store, {name: [("k", number, None, -number)] for number, name in enumerate(names)})
    assert commit.version == 2
    state = store.state(WEATHER)
    assert state is not None
    assert (state.rows, state.files) == (365, 365)


def test_small_files_of_a_partition_become_one(store: OfflineStore) -> None:
    """As a stream leaves them, which adds a file at a time."""
    replace(store, {"p": [("k", 0, None, 0)], "q": [("k", 0, None, 0)]})
    place = store._place(WEATHER)

    def added(table: DeltaTable, minute: int) -> Swap:
        number = next_publication(0)
        rows = (
            frame({"p": [("k", minute, None, minute)]}).lazy().with_columns(pl.lit(number, pl.Int64).alias(PUBLICATION))
        )
        return Swap("replace", {"p": number}, number, written(place, WEATHER, rows, ["p"]), files_of(table).clear(), 1)

    for minute in range(1, 4):
        committed(place, lambda table, _, minute=minute: added(table, minute), needed(place), {})  # type: ignore[misc]
    rows: dict[str, list[Row]] = {"p": [("k", minute, None, minute) for minute in range(4)], "q": [("k", 0, None, 0)]}
    before, publications_before = store.state(WEATHER), publications(store)
    assert before is not None
    assert before.files == 5
    assert store.compact(WEATHER) is not None
    after = store.state(WEATHER)
    assert after is not None
    assert (after.files, after.rows, after.publications) == (2, before.rows, before.publications)
    assert publications(store) == publications_before
    assert held(store) == held(store, before.version) == sorted_rows(rows)
    assert store.commits(WEATHER, limit=1)[0].kind == "compact"
    assert store.compact(WEATHER) is None
    assert len(store.vacuum(WEATHER, older_than=timedelta(0), dry_run=False)) == 4
    assert held(store) == sorted_rows(rows)


def test_compaction_does_not_hide_that_keys_were_erased(store: OfflineStore) -> None:
    replace(store, {"p": [("k", 0, None, 0), ("gone", 0, None, 0)]})
    erased = store.erase(WEATHER, pl.DataFrame({"origin": ["gone"]}), metadata={})
    assert erased is not None
    place = store._place(WEATHER)

    def split(table: DeltaTable, former: Swap | None) -> Swap:
        rows = pl.scan_delta(table).with_columns(pl.col("temp") + 1)
        more = written(place, WEATHER, rows, ["p"])
        return Swap("replace", {"p": erased.publication}, None, more, files_of(table).clear(), 1)

    committed(place, split, needed(place), {})
    assert store.compact(WEATHER) is not None
    state = store.state(WEATHER)
    assert state is not None
    assert state.publications == {"p": erased.publication}
    assert state.rows == 2


def test_no_file_has_a_deletion_vector(store: OfflineStore) -> None:
    """Readers that do not know them would see rows again that were erased. Files are written anew instead."""
    replace(store, {"p": [("a", minute, None, minute) for minute in range(50)] + [("b", 0, None, 1)]})
    assert store.erase(WEATHER, pl.DataFrame({"origin": ["b"]}), metadata={}) is not None
    store.compact(WEATHER)
    actions = [json.loads(line) for entry in log_entries(store) for line in entry.read_text().splitlines()]
    files = [action[kind] for action in actions for kind in ("add", "remove") if kind in action]
    assert len(files) >= 3
    assert [file for file in files if file.get("deletionVector")] == []
    table = DeltaTable(store.uri(WEATHER))
    assert table.metadata().configuration["delta.enableDeletionVectors"] == "false"
    assert "deletionVectors" not in (table.protocol().writer_features or [])
    last = [action["add"]["path"] for action in actions if "add" in action][-1]
    assert pl.read_parquet(Path(store.uri(WEATHER)) / last)["origin"].unique().to_list() == ["a"]
