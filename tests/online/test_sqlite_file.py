"""The file below: who may have it open, what becomes of it, and what a person sees in it."""

import os
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from sqlite_utils.cli import cli as sqlite_utils_cli

from feature_assets.errors import DeclarationError, StoreFull, StoreUnavailable, StoreUnsafe, TableMissing
from feature_assets.online.protocol import AppliedPublication
from feature_assets.online.sqlite import SqliteOnlineStore
from feature_assets.online.sqlite.connections import DatabaseFile
from feature_assets.online.sqlite.lock import FileLock
from feature_assets.online.sqlite.tables import Table
from feature_assets.spec import PUBLICATION, Field, ViewSpec
from feature_assets.testing import minute, online_keys, online_rows
from feature_assets.types import String
from tests.online.views import DRIVER, PAIR


def driver(name: str, event: int, **features: object) -> dict[str, object]:
    return {"driver": name, "at": minute(event), **features}


def put(store: SqliteOnlineStore, *rows: dict[str, object]) -> None:
    store.write(DRIVER, online_rows(DRIVER, rows), None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "online.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteOnlineStore]:
    store = SqliteOnlineStore(path)
    store.prepare(DRIVER)
    yield store
    store.close()


def prepared(path: Path) -> None:
    store = SqliteOnlineStore(path)
    store.prepare(DRIVER)
    store.close()


def python(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


# What a person sees


def test_a_person_reads_it_with_sqlite_utils(store: SqliteOnlineStore, path: Path):
    put(store, driver("d1", 1, trips=3, rating=4.5))
    store.write(DRIVER, online_rows(DRIVER, []), AppliedPublication(7, 2, {"2024-03-01": 1}))
    shown = CliRunner().invoke(sqlite_utils_cli, ["rows", str(path), "driver__v1"]).stdout
    assert shown == '[{"driver": "d1", "at": 1709251260000000, "trips": 3, "rating": 4.5, "__publication": 1}]\n'
    schema = CliRunner().invoke(sqlite_utils_cli, ["schema", str(path)]).stdout
    assert '"driver" TEXT PRIMARY KEY NOT NULL' in schema
    assert '"rating" REAL' in schema
    assert store.doctor() == []


def test_an_orderly_end_leaves_one_plain_file_and_the_lock(store: SqliteOnlineStore, path: Path):
    put(store, driver("d1", 1))
    store.reader(DRIVER, ["trips"])([("d1",)])
    store.close()
    assert sorted(found.name for found in path.parent.iterdir()) == ["online.db", "online.db.lock"]


def test_the_end_of_the_process_is_an_orderly_end(path: Path):
    prepared(path)
    code = (
        "import sys; from feature_assets.online import open_online_store; from tests.online.views import DRIVER; "
        "store = open_online_store(f'sqlite:{sys.argv[1]}'); store.settle(DRIVER, 1, ['a']); "
        "print(store.reader(DRIVER, ['trips'])([('d1',)])[0])"
    )
    done = python(code, path)
    assert (done.stdout, done.stderr) == ("[None]\n", "")
    assert sorted(found.name for found in path.parent.iterdir()) == ["online.db", "online.db.lock"]


def test_settings_are_those_that_keep_it_safe(store: SqliteOnlineStore, path: Path):
    file = DatabaseFile(path)
    with file.writing() as connection:
        found = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "wal_autocheckpoint", "mmap_size")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "wal_autocheckpoint": 0, "mmap_size": 0}
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        file.reading().execute("DELETE FROM driver__v1")
    file.close()


def test_the_log_does_not_grow_for_ever_beside_a_reader(path: Path):
    store = SqliteOnlineStore(path)
    store._file._writer._checkpoint_bytes = 100_000
    store.prepare(DRIVER)
    read = store.reader(DRIVER, ["trips"])
    rows = [driver(f"d{number}", 0, trips=0) for number in range(300)]
    sizes = []
    for event in range(60):
        put(store, *({**row, "at": minute(event), "trips": event} for row in rows))
        assert read([("d7",)])[1] == [(event,)]
        sizes.append(path.with_name("online.db-wal").stat().st_size)
    assert max(sizes) < 300_000
    assert min(sizes) == 0
    store.close()


def test_a_long_read_neither_stops_writers_nor_sees_them(store: SqliteOnlineStore):
    put(store, *(driver(f"d{number}", 1, trips=1) for number in range(50)))
    store._file._writer._checkpoint_bytes = 1
    batches = store.scan(DRIVER, batch_size=10)
    seen = [next(batches)]
    put(store, *(driver(f"d{number}", 2, trips=2) for number in range(50)))
    assert store.reader(DRIVER, ["trips"])([("d1",)])[1] == [(2,)]
    seen += batches
    assert pl.concat(seen)["trips"].to_list() == [1] * 50


# Statements


def test_rows_older_than_what_is_there_write_no_page(store: SqliteOnlineStore, path: Path) -> None:
    """A backfill of the past costs a look at each key, and what one publication costs of the log."""
    many = [driver(f"d{number}", 60) for number in range(5_000)]
    put(store, *many)
    log = path.with_name(f"{path.name}-wal")
    past = online_rows(DRIVER, [row | {"at": minute(5)} for row in many])

    before = log.stat().st_size
    assert store.write(DRIVER, past, AppliedPublication(2, 1, {"past": 5_000}))[:2] == (0, 5_000)
    assert log.stat().st_size - before <= 8 * 4_120


def test_several_keys_are_searched_for_not_scanned(store: SqliteOnlineStore, path: Path):
    store.prepare(PAIR)
    connection = sqlite3.connect(path)
    for view in (DRIVER, PAIR):
        statement = Table(view).select_many(["t.[at]"], 5)
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", [None] * statement.count("?")).fetchall()
        assert sum("SEARCH t USING" in step[3] for step in plan) == 1, plan
        assert not any(step[3].startswith("SCAN t") for step in plan), plan
    connection.close()


def test_answers_keep_the_order_of_the_keys_whatever_order_sqlite_takes(
    store: SqliteOnlineStore, monkeypatch: pytest.MonkeyPatch
):
    put(store, *(driver(f"d{number}", 1, trips=number) for number in range(40)))
    as_it_is = Table.select_many
    monkeypatch.setattr(Table, "select_many", lambda *given: f"{as_it_is(*given)} ORDER BY position DESC")
    numbers = [5, 3, 39, 5, *range(40)]
    assert list(store.reader(DRIVER, ["trips"])([(f"d{number}",) for number in numbers])[1][0]) == numbers


def test_views_that_differ_in_case_only_are_refused(store: SqliteOnlineStore):
    with pytest.raises(DeclarationError, match=r"View 'Driver': .*table 'driver__v1'.*another name"):
        store.prepare(
            ViewSpec(**{name: getattr(DRIVER, name) for name in DRIVER.__struct_fields__} | {"name": "Driver"})
        )


# The file goes, comes, is another, is damaged


def test_a_deleted_file_is_noticed_and_made_again(store: SqliteOnlineStore, path: Path):
    put(store, driver("d1", 1, trips=1))
    read = store.reader(DRIVER, ["trips"])
    assert read([("d1",)])[1] == [(1,)]
    for found in path.parent.glob("online.db*"):
        found.unlink()
    with pytest.raises(TableMissing, match="feature-assets materialize driver"):
        put(store, driver("d1", 2))
    time.sleep(1.1)
    with pytest.raises(TableMissing, match="feature-assets materialize driver"):
        read([("d1",)])
    assert store.tables() == []
    store.prepare(DRIVER)
    put(store, driver("d1", 0, trips=5))
    assert read([("d1",)])[1] == [(5,)]


def test_what_was_written_to_a_new_file_is_read_at_once(store: SqliteOnlineStore, path: Path):
    read = store.reader(DRIVER, ["trips"])
    put(store, driver("d1", 9, trips=1))
    assert read([("d1",)])[1] == [(1,)]
    path.unlink()
    store.prepare(DRIVER)
    put(store, driver("d1", 1, trips=2))
    assert read([("d1",)])[1] == [(2,)]


def test_a_file_put_in_place_of_another_is_read(store: SqliteOnlineStore, path: Path, tmp_path: Path):
    other = SqliteOnlineStore(tmp_path / "other.db")
    other.prepare(DRIVER)
    put(other, driver("d1", 1, trips=7))
    other.close()
    read = store.reader(DRIVER, ["trips"])
    put(store, driver("d1", 5, trips=1))
    assert read([("d1",)])[1] == [(1,)]
    for name in ("online.db-wal", "online.db-shm"):
        path.with_name(name).unlink(missing_ok=True)
    (tmp_path / "other.db").replace(path)
    time.sleep(1.1)
    assert read([("d1",)])[1] == [(7,)]
    put(store, driver("d1", 2, trips=8))
    assert read([("d1",)])[1] == [(8,)]


def test_a_table_removed_by_hand_is_found_and_made_again_with_an_empty_ledger(store: SqliteOnlineStore, path: Path):
    store.write(DRIVER, online_rows(DRIVER, [driver("d1", 1)]), AppliedPublication(7, 2, {"a": 1}))
    by_hand = sqlite3.connect(path)
    by_hand.execute("DROP TABLE driver__v1")
    by_hand.execute("CREATE TABLE mine (x)")
    by_hand.close()
    lost, foreign = store.doctor()
    assert "lost the table of view 'driver' (version 1). Run: feature-assets reconcile driver" in lost
    assert "table 'mine' that is no view's" in foreign
    store.prepare(DRIVER)
    assert store.ledger(DRIVER).entries == {}


def test_a_damaged_file_is_named_with_the_mend(store: SqliteOnlineStore, path: Path):
    put(store, *(driver(f"d{number:04}", 1, trips=number) for number in range(3000)))
    store.close()
    with path.open("r+b") as file:
        for page in range(4, 12):
            file.seek(page * 4096)
            file.write(b"\xde\xad\xbe\xef" * 256)
    damaged = SqliteOnlineStore(path)
    assert "is damaged" in damaged.doctor()[0]
    with pytest.raises(StoreUnsafe, match=r"online\.db is damaged .*feature-assets reconcile"):
        list(damaged.scan(DRIVER))
    damaged.close()


def test_what_is_no_database_is_refused(path: Path):
    path.write_text("This is the shopping list, and it is long enough to be taken for a page of a database file." * 9)
    store = SqliteOnlineStore(path)
    with pytest.raises(StoreUnsafe, match="not a database"):
        store.reader(DRIVER, ["trips"])([("d1",)])
    with pytest.raises(StoreUnsafe, match="not a database"):
        store.prepare(DRIVER)
    assert "not a database" in store.doctor()[0]
    store.close()
    assert path.read_text().startswith("This is the shopping list")


def test_a_place_below_a_file_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    store = SqliteOnlineStore(tmp_path / "file" / "online.db")
    with pytest.raises(StoreUnavailable, match=r"/file/online\.db cannot be opened \(Not a directory\)"):
        store.prepare(DRIVER)


def test_a_path_that_is_a_folder_is_named(tmp_path: Path):
    (tmp_path / "online.db").mkdir()
    store = SqliteOnlineStore(tmp_path / "online.db")
    with pytest.raises(StoreUnavailable, match=r"online\.db is not a file\. Name one, as in sqlite:"):
        store.prepare(DRIVER)
    store.close()


def test_a_closed_store_says_so(store: SqliteOnlineStore):
    read = store.reader(DRIVER, ["trips"])
    read([("d1",)])
    store.close()
    for attempt in (lambda: read([("d1",)]), lambda: put(store, driver("d1", 1)), store.tables):
        with pytest.raises(StoreUnavailable, match="was closed; open it again"):
            attempt()
    store.close()


# Turns


def test_one_writer_at_a_time_over_threads_and_store_objects(tmp_path: Path):
    locks = [FileLock(tmp_path / "lock", 10) for _ in range(2)]
    inside: list[int] = []
    most: list[int] = []

    def enter(number: int) -> None:
        for _ in range(50):
            with locks[number % 2].held():
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (200, 1)
    for lock in locks:
        lock.close()


def test_who_waits_too_long_is_told_for_whom(tmp_path: Path):
    holder, waiter = FileLock(tmp_path / "lock", 1), FileLock(tmp_path / "lock", 0.05)
    with (
        holder.held(),
        pytest.raises(StoreUnavailable, match=r"0\.05 s and keeps .*/lock locked.*fuser"),
        waiter.held(),
    ):
        pass
    with waiter.held():
        pass
    for lock in (holder, waiter):
        lock.close()


def test_a_deleted_lock_file_does_not_let_two_in(tmp_path: Path):
    first, second = FileLock(tmp_path / "lock", 1), FileLock(tmp_path / "lock", 0.05)
    with first.held():
        pass
    (tmp_path / "lock").unlink()
    with first.held(), pytest.raises(StoreUnavailable), second.held():
        pass
    for lock in (first, second):
        lock.close()


def test_a_foreign_writer_is_waited_for(store: SqliteOnlineStore, path: Path):
    foreign = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    foreign.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, lambda: foreign.execute("ROLLBACK"))
    timer.start()
    put(store, driver("d1", 1, trips=4))
    timer.join()
    foreign.close()
    assert store.reader(DRIVER, ["trips"])([("d1",)])[1] == [(4,)]


def test_an_exception_inside_writes_nothing(store: SqliteOnlineStore):
    def interrupted() -> None:
        with store._file.writing() as connection:
            connection.execute("INSERT INTO driver__v1 (driver, at, __publication) VALUES ('d1', 1, 1)")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert store.stored(DRIVER).is_empty()
    put(store, driver("d1", 1))
    assert store.stored(DRIVER).height == 1


def test_a_checkpoint_that_fails_does_not_undo_the_commit(
    store: SqliteOnlineStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    writer = store._file._writer
    monkeypatch.setattr(writer, "_wal", writer._wal.with_name("nowhere"))
    put(store, driver("d1", 1, trips=4))
    assert "checkpoint postponed" in caplog.text
    assert store.reader(DRIVER, ["trips"])([("d1",)])[1] == [(4,)]


# Threads and forks


def test_connections_of_threads_that_ended_are_closed(store: SqliteOnlineStore):
    read = store.reader(DRIVER, ["trips"])
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("counts descriptors in /proc")
    read([("d1",)])
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        thread = threading.Thread(target=read, args=([("d1",)],))
        thread.start()
        thread.join()
    # One may wait: a file is not closed for good while another connection has locks on it, and its place is used again.
    assert len(list(descriptors.iterdir())) <= before + 1


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Polars has threads; from 3.12 on Python warns of a fork beside them.
from feature_assets.online.sqlite import SqliteOnlineStore
from tests.online.views import DRIVER
def put(name, trips):  # Polars must not be used after a fork.
    with store._file.writing() as connection:
        connection.execute("REPLACE INTO driver__v1 (driver, at, trips, __publication) VALUES (?, 1, ?, 1)", (name, trips))
store = SqliteOnlineStore(sys.argv[1])
put("parent", 1)
read = store.reader(DRIVER, ["trips"])
assert read([("parent",)])[1] == [(1,)]
children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        for trips in range(30):
            put(f"child {number}", trips)
            assert read([(f"child {number}",)])[1] == [(trips,)]
        sys.exit(0)
    children.append(child)
for trips in range(30):
    put("parent", trips)
    assert read([("parent",)])[1] == [(trips,)]
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
put("parent", 50)
names = ["parent", "child 0", "child 1", "child 2"]
print(list(read([(name,) for name in names])[1][0]), store.doctor())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_store_is_used_on_both_sides_of_a_fork(path: Path):
    prepared(path)
    done = python(FORK, path)
    assert (done.stdout, done.stderr) == ("[50, 29, 29, 29] []\n", "")


# No room


def _full(store: SqliteOnlineStore) -> tuple[int, str]:
    """Write until there is no room; how many batches were acknowledged, and what was said then."""
    text = "x" * 4000
    view = ViewSpec(**{name: getattr(DRIVER, name) for name in DRIVER.__struct_fields__} | {"name": "big"})
    view = ViewSpec(**{n: getattr(view, n) for n in view.__struct_fields__} | {"features": (Field("text", String),)})
    store.prepare(view)
    for batch in range(10_000):
        rows = [{"driver": f"{batch}-{number}", "at": minute(1), "text": text} for number in range(10)]
        try:
            store.write(view, online_rows(view, rows), AppliedPublication(batch + 1, batch, {"all": batch}))
        except StoreFull as error:
            _nothing_lost(store, view, batch)
            return batch, str(error)
    raise AssertionError("it was never full")


def _nothing_lost(store: SqliteOnlineStore, view: ViewSpec, batches: int) -> None:
    assert store.stored(view).height == batches * 10
    assert store.ledger(view).entries["all"].publication == batches
    keys = [(f"{batch}-{number}",) for batch in range(batches) for number in range(10)]
    assert None not in store.reader(view, ["text"])(keys)[0]
    assert store.doctor() == []
    assert store.delete(view, online_keys(view, keys[:0])) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode()}")
    try:
        filler = small / "filler"
        filler.write_bytes(b"\0" * 500_000)
        store = SqliteOnlineStore(small / "online.db")
        batches, message = _full(store)
        assert batches > 3
        assert "has no room left" in message
        assert "Free some space" in message
        filler.unlink()  # Space returns, and it goes on.
        store.prepare(DRIVER)
        put(store, driver("d1", 1, trips=1))
        assert store.reader(DRIVER, ["trips"])([("d1",)])[1] == [(1,)]
        store.close()
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_limit_of_the_file_size_loses_nothing_that_was_acknowledged(store: SqliteOnlineStore):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        batches, message = _full(store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert batches > 3
    assert "has no room left" in message
    put(store, driver("d1", 1, trips=1))
    assert store.reader(DRIVER, ["trips"])([("d1",)])[1] == [(1,)]


def test_publications_are_written_with_their_rows_or_not_at_all(
    store: SqliteOnlineStore, monkeypatch: pytest.MonkeyPatch
):
    """A value that cannot be bound half way through: neither rows nor the ledger have anything of it."""
    rows = online_rows(DRIVER, [driver(f"d{number}", 1, trips=1) for number in range(5)])
    bad = online_rows(DRIVER, [driver(f"d{number}", 2, trips=2) for number in range(5)])

    def fails_at_the_end(view: object, frame: pl.DataFrame, schema: object) -> pl.DataFrame:
        return frame.with_columns(pl.Series(PUBLICATION, [1, 2, 3, 4, None], pl.Int64()))

    store.write(DRIVER, rows, AppliedPublication(7, 2, {"a": 5}))
    before = store.ledger(DRIVER)
    monkeypatch.setattr("feature_assets.online.sqlite.store.checked", fails_at_the_end)
    with pytest.raises(OSError, match="NOT NULL constraint failed"):
        store.write(DRIVER, bad, AppliedPublication(8, 3, {"a": 5}))
    assert store.ledger(DRIVER) == before
    assert set(store.stored(DRIVER)["at"]) == {minute(1)}
