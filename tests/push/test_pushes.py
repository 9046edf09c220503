"""Pushed rows survive from their answer on, reach offline exactly once, and online."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import filelock
import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets import FeatureStore, Settings
from feature_assets.checks import InRange, RowCount
from feature_assets.errors import (
    ChecksFailed,
    ContractBroken,
    RequestError,
    StoreError,
    StoreUnsafe,
    UnknownSource,
    WrongType,
)
from feature_assets.push import Push, Pushes, drain_orphans
from feature_assets.push.journal import Entry, Part, PushJournal, read
from feature_assets.registry import Registry, RegistryStore
from feature_assets.settlement import pending, verify
from feature_assets.spec import (
    EVENT_ID,
    Entity,
    Expressions,
    Field,
    KafkaSource,
    PushSource,
    Stream,
    TimePartitions,
    ViewSpec,
)
from feature_assets.types import Float64, Int64, String, Timestamp

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
DAILY = TimePartitions(cron="0 0 * * *", timezone="UTC", start="2024-01-01T00:00:00+00:00", fmt="%Y-%m-%d")
TRIPS = ViewSpec(
    name="driver_trips",
    entities=(Entity("driver", {"driver_id": Int64}),),
    features=(Field("km", Float64),),
    event_timestamp="ended",
    partitions={"partition": DAILY},
    checks=(InRange("km", minimum=0), RowCount(minimum=1000)),
    stream=Stream("trips"),
)
SOURCE = PushSource(name="trips")


def platform(folder: Path, *objects: Any) -> Settings:
    made = Settings(root=folder, durability="process", push_interval_seconds=0.01)
    registry = Registry.of(objects or [TRIPS, SOURCE])
    RegistryStore(made.place(made.registry)).publish(registry, location="tests", by="tests")
    return made


def row(driver: int = 1, km: float = 2.5, at: datetime = TODAY, **more: Any) -> dict[str, Any]:
    return {"driver_id": driver, "ended": at, "km": km, **more}


def offline(store: FeatureStore, view: ViewSpec = TRIPS) -> list[tuple[Any, ...]]:
    if store.offline.state(view) is None:
        return []
    return sorted(store.offline.scan(view).select(view.columns).collect().rows())


def test_a_push_is_in_both_stores_a_moment_later(tmp_path: Path) -> None:
    with FeatureStore(platform(tmp_path)) as store:
        pushed = store.push("trips", [row(1), row(2, 7.0, TODAY - timedelta(days=40))])
        assert (pushed.rows, pushed.views) == (2, ("driver_trips",))
        assert pushed.wait(20)
        assert store.get_online_features(["driver_trips:km"], {"driver_id": [1, 2]}).to_dict()["km"] == [2.5, 7.0]
        assert offline(store) == [(1, TODAY, 2.5), (2, TODAY - timedelta(days=40), 7.0)]
        state = store.offline.state(TRIPS)
        assert state is not None
        assert list(state.rows_by_partition) == [f"{TODAY - timedelta(days=40):%Y-%m-%d}", f"{TODAY:%Y-%m-%d}"]
        assert verify(TRIPS, store.offline, store.online).total == 0
        assert pending(TRIPS, store.offline, store.online) == ()


@pytest.mark.parametrize("form", ["dicts", "columns", "polars", "arrow", "lazy"])
def test_rows_come_in_many_forms(tmp_path: Path, form: str) -> None:
    frame = pl.DataFrame([row(1), row(2)])
    forms: dict[str, Any] = {
        "dicts": frame.to_dicts(), "columns": frame.to_dict(as_series=False), "polars": frame, "arrow": frame.to_arrow(),
        "lazy": frame.lazy(),
    }  # fmt: skip
    with FeatureStore(platform(tmp_path)) as store:
        store.push("trips", forms[form]).wait(20)
        assert offline(store) == [(1, TODAY, 2.5), (2, TODAY, 2.5)]


def test_what_comes_again_changes_nothing(tmp_path: Path) -> None:
    made = platform(tmp_path)
    for _ in range(2):
        with FeatureStore(made) as store:
            store.push("trips", [row(1), row(1)])
            store.push("trips", row_columns := {"driver_id": [2], "ended": [TODAY], "km": [1.0]}, event_id="a")
            store.push("trips", {**row_columns, "km": [9.0]}, event_id="a")
            store.push("trips", [row(3, 1.0)])
            store.push("trips", [row(3, 2.0)]).wait(20)
            assert offline(store) == [(1, TODAY, 2.5), (2, TODAY, 1.0), (3, TODAY, 1.0), (3, TODAY, 2.0)]
            assert store.get_online_features(["driver_trips:km"], {"driver_id": [2, 3]}).to_dict()["km"] == [1.0, 2.0]


def test_rows_of_a_log_are_not_pushed(tmp_path: Path) -> None:
    source = KafkaSource(name="trips", connection="kafka", topics=("trips",))
    with FeatureStore(platform(tmp_path, TRIPS, source)) as store:
        with pytest.raises(RequestError, match="'trips' come from a log that consumers read"):
            store.push("trips", [row()])
        assert offline(store) == []


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "an unknown field": ([row(speed=3)], RequestError, "have 'speed', which it does not take"),
    "a missing field": ([{"driver_id": 1, "ended": TODAY}], RequestError, "have no 'km'"),
    "another type": ([row(km="far")], WrongType, "'km', row 0"),
    "no key": ([row(None)], ContractBroken, "'driver_id' is null in 1 of 1 rows"),  # type: ignore[arg-type]
    "no time": ([row(at=None)], ContractBroken, "'ended' is null"),  # type: ignore[arg-type]
    "the future": ([row(at=datetime.now(UTC) + timedelta(hours=1))], ContractBroken, "is later than now"),
    "before all partitions": ([row(at=datetime(2023, 12, 31, tzinfo=UTC))], ContractBroken, "'ended' lies outside"),
    "a check of each row": ([row(km=-1.0)], ChecksFailed, "in_range_km"),
    "no rows": ([], RequestError, "have no 'driver_id'|has no rows"),
    "a column that is shorter": ({"driver_id": [1], "ended": [TODAY, TODAY], "km": [1.0]}, RequestError, "differ in length"),
    "a frame that loses something": (pl.DataFrame([row()]).with_columns(driver_id=pl.lit(1.5)), ContractBroken, "losslessly"),
}  # fmt: skip


@pytest.mark.parametrize("rows, error, message", WRONG.values(), ids=WRONG)
def test_what_a_view_does_not_take_is_refused_before_the_answer(
    tmp_path: Path, rows: Any, error: type[Exception], message: str
) -> None:
    made = platform(tmp_path)
    with FeatureStore(made) as store:
        with pytest.raises(error, match=message):
            store.push("trips", rows)
        assert not Path(made.place(made.push)).exists(), "nothing poisons the journal"


def test_other_refusals(tmp_path: Path) -> None:
    with FeatureStore(platform(tmp_path)) as store:
        with pytest.raises(UnknownSource, match=r"There is no push source 'trip'.*Did you mean 'trips'"):
            store.push("trip", [row()])
        with pytest.raises(RequestError, match="to='nowhere' is none of"):
            store.push("trips", [row()], to="nowhere")
        with pytest.raises(RequestError, match="An event id has 1 to 200 characters"):
            store.push("trips", [row()], event_id="")


def test_a_source_feeds_several_views_and_each_makes_its_own_of_it(tmp_path: Path) -> None:
    from feature_assets.expressions import to_data

    source = PushSource(
        name="trips",
        schema=(Field("driver", Int64), Field("ended", Timestamp), Field("meters", Float64), Field("id", String)),
        event_id="id",
        field_mapping={"driver": "driver_id"},
        unknown_fields="drop",
    )
    kilometres = Expressions({"km": to_data(pl.col("meters") / 1000, "km")})
    view = msgspec.structs.replace(TRIPS, stream=Stream("trips", kilometres), checks=())
    doubled = Expressions({"km": to_data(pl.col("meters") / 500, "km")})
    other = msgspec.structs.replace(view, name="twice", stream=Stream("trips", doubled))
    with FeatureStore(platform(tmp_path, source, view, other)) as store:
        rows = [
            {"driver": 1, "ended": TODAY, "meters": meters, "id": f"e{meters}", "more": 1} for meters in (500.0, 500.0)
        ]
        assert store.push("trips", rows).views == ("driver_trips", "twice")
        store.push("trips", [{**rows[0], "meters": 9.0}]).wait(20)
        assert (offline(store, view), offline(store, other)) == ([(1, TODAY, 0.5)], [(1, TODAY, 1.0)])
        assert store.offline.scan(view).collect().columns.count(EVENT_ID) == 0


def test_many_threads_share_a_journal(tmp_path: Path) -> None:
    with FeatureStore(platform(tmp_path)) as store:
        errors: list[BaseException] = []

        def work(which: int) -> None:
            try:
                for turn in range(10):
                    store.push("trips", [row(which * 100 + turn)])
            except BaseException as error:  # noqa: BLE001 (shown below)
                errors.append(error)

        threads = [threading.Thread(target=work, args=(which,)) for which in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.push("trips", [row(9999)]).wait(30)
        assert errors == []
        assert [driver for driver, _, _ in offline(store)] == sorted(
            [*(which * 100 + turn for which in range(6) for turn in range(10)), 9999]
        )
        assert verify(TRIPS, store.offline, store.online).total == 0


_PUSHING = """
import sys
from datetime import datetime, timedelta
from pathlib import Path
sys.path.insert(0, {root!r})
from feature_assets import FeatureStore, Settings
store = FeatureStore(Settings(root=Path({folder!r}), push_interval_seconds=0.01))
at = datetime.fromisoformat({at!r})
number = {first}
while True:
    number += 1
    store.push("trips", [{{"driver_id": number, "ended": at, "km": 1.0}}])
    print(number, flush=True)
"""


def test_what_was_answered_survives_the_death_of_its_process(tmp_path: Path) -> None:
    """Five processes, each killed under way; whoever comes next takes up what they left."""
    made, chance = platform(tmp_path), random.Random(3)
    answered: list[int] = []
    for turn in range(5):
        script = _PUSHING.format(
            root=str(Path(__file__).parents[2]), folder=str(tmp_path), at=TODAY.isoformat(), first=turn * 100_000
        )
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        killer = threading.Timer(chance.uniform(0.05, 0.5), os.kill, (child.pid, signal.SIGKILL))
        killer.start()
        lines += child.stdout.readlines()
        child.wait()
        child.stdout.close()
        answered += [int(line) for line in lines if line.endswith("\n")]
    with FeatureStore(made) as store:
        drain_orphans(made, store.offline, store.online)
        found = [driver for driver, _, _ in offline(store)]
        assert len(answered) >= 5
        assert set(answered) <= set(found), "every answered row is there"
        assert len(found) == len(set(found)), "and once"
        assert verify(TRIPS, store.offline, store.online).total == 0
        assert pending(TRIPS, store.offline, store.online) == ()
        assert drain_orphans(made, store.offline, store.online) == 0


def test_many_callers_all_get_their_turn(tmp_path: Path) -> None:
    """Whoever answers the others hands on: nobody does it for as long as others push."""
    with FeatureStore(platform(tmp_path)) as store:
        stop, counts = threading.Event(), [0] * 4

        def work(which: int) -> None:
            while not stop.is_set():
                store.push("trips", [row(which, float(counts[which]))])
                counts[which] += 1

        threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
        for thread in threads:
            thread.start()
        while min(counts) < 20 and any(thread.is_alive() for thread in threads):
            stop.wait(0.01)
        stop.set()
        for thread in threads:
            thread.join()
        assert min(counts) >= 20


def test_each_caller_is_told_of_its_own_rows(tmp_path: Path) -> None:
    """Pushes that are answered together: what is wrong with one is no other's."""
    with FeatureStore(platform(tmp_path)) as store:
        outcomes: dict[int, Any] = {}

        def work(which: int) -> None:
            try:
                outcomes[which] = store.push("trips", [row(which, -1.0 if which % 3 == 0 else 1.0)])
            except ChecksFailed as error:
                outcomes[which] = error

        threads = [threading.Thread(target=work, args=(which,)) for which in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {which for which, one in outcomes.items() if isinstance(one, ChecksFailed)} == set(range(0, 30, 3))
        assert all(one.wait(30) for one in outcomes.values() if not isinstance(one, ChecksFailed))
        assert [driver for driver, _, _ in offline(store)] == [which for which in range(30) if which % 3]


OTHER_TRIPS = msgspec.structs.replace(TRIPS, name="other_trips")


def test_a_view_that_cannot_be_published_holds_up_no_other(tmp_path: Path) -> None:
    """Its rows wait, and nothing is lost or doubled when its table can be written again."""
    made = platform(tmp_path, TRIPS, OTHER_TRIPS, SOURCE)
    with FeatureStore(made) as store:
        place = Path(store.offline.uri(TRIPS))
        place.parent.mkdir(parents=True)
        place.write_text("in the way")
        stuck = [store.push("trips", [row(number)]) for number in range(3)]
        for _ in range(200):
            if len(offline(store, OTHER_TRIPS)) == 3:
                break
            time.sleep(0.05)
        assert [driver for driver, _, _ in offline(store, OTHER_TRIPS)] == [0, 1, 2]
        assert not any(pushed.wait(0) for pushed in stuck)
        store.push("trips", [row(3)])
        place.unlink()
        assert all(pushed.wait(30) for pushed in stuck)
        assert store.push("trips", [row(4)]).wait(30)
        for view in (TRIPS, OTHER_TRIPS):
            assert [driver for driver, _, _ in offline(store, view)] == [0, 1, 2, 3, 4]
            assert verify(view, store.offline, store.online).total == 0


def test_what_a_view_could_not_take_is_taken_up_by_the_next_process(tmp_path: Path) -> None:
    made = platform(tmp_path, TRIPS, OTHER_TRIPS, SOURCE)
    with FeatureStore(made) as store:
        place = Path(store.offline.uri(TRIPS))
        place.parent.mkdir(parents=True)
        place.write_text("in the way")
        store.push("trips", [row(1)])
    with FeatureStore(made) as store:
        with pytest.raises(StoreError):
            drain_orphans(made, store.offline, store.online)
        assert [driver for driver, _, _ in offline(store, OTHER_TRIPS)] == [1]
        place.unlink()
        assert drain_orphans(made, store.offline, store.online) == 1
        assert offline(store) == offline(store, OTHER_TRIPS) == [(1, TODAY, 2.5)]


def test_rows_keep_their_order_when_the_declaration_changes_and_back(tmp_path: Path) -> None:
    """In one commit's time a view may be published, changed and rolled back; what was pushed later is later all the same."""
    made = platform(tmp_path)
    changed = msgspec.structs.replace(TRIPS, description="Changed.")
    registries = [Registry.of([each, SOURCE]) for each in (TRIPS, changed, TRIPS)]
    with FeatureStore(made) as store:
        pushes = Pushes(made.model_copy(update={"push_interval_seconds": 0.5}), store.offline, store.online)
        first = [pushes.push(Push("trips", [row(0)]), registries[0])]
        pushed = [
            pushes.push(Push("trips", [row(number, float(number))]), registries[number % 3]) for number in range(9)
        ]
        assert all(one.wait(30) for one in (*first, *pushed))
        pushes.close()
        assert [driver for driver, _, _ in offline(store)] == [0, *range(9)]


def test_a_journal_is_empty_when_all_is_published(tmp_path: Path) -> None:
    made = platform(tmp_path)
    with FeatureStore(made) as store:
        for number in range(3):
            store.push("trips", [row(number)]).wait(20)
        sizes: list[int] = []
        for _ in range(200):
            # A file that was there a moment ago may have given way to the next one.
            with suppress(FileNotFoundError):
                sizes = [each.stat().st_size for each in Path(made.place(made.push)).glob("*/*.rows")]
            if sizes == [len(b"feature-assets push 1\n")]:
                break
            time.sleep(0.05)
        assert sizes == [len(b"feature-assets push 1\n")]
        assert store.push("trips", [row(9)]).wait(20)
        assert len(offline(store)) == 4


def test_a_full_disk_refuses_pushes_and_loses_none(tmp_path: Path) -> None:
    """The limit on the size of files stands in for a full disk: the kernel refuses the write half way."""
    made = platform(tmp_path)
    script = f"""
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from datetime import datetime
from feature_assets import FeatureStore, Settings
from feature_assets.errors import StoreFull
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
at = datetime.fromisoformat({TODAY.isoformat()!r})
rows = lambda number: [{{"driver_id": number * 100 + n, "ended": at, "km": 1.0}} for n in range(50)]
with FeatureStore(Settings(root=Path({str(tmp_path)!r}), push_interval_seconds=0.01)) as store:
    store.push("trips", rows(0)).wait(30)
    (was, most) = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
    for number in (1, 2):
        try:
            store.push("trips", rows(number))
        except StoreFull as error:
            print(number, "refused", error, flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (was, most))
    print(store.push("trips", rows(3)).wait(30), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["1", "refused"], ["2", "refused"], ["True"]], done.stderr
    assert "No room is left for pushed rows" in lines[0]
    with FeatureStore(made) as store:
        assert drain_orphans(made, store.offline, store.online) == 0
        found = [driver for driver, _, _ in offline(store)]
        assert found == [*range(50), *range(300, 350)], "what was refused is not there in part"


def journal(folder: Path) -> PushJournal:
    return next(iter(PushJournal.taken(folder, sync=False)))


entries = st.lists(st.lists(st.binary(max_size=50), max_size=3), max_size=5)


@settings(max_examples=40)
@given(written=entries, cut=st.integers(0, 400), garbage=st.binary(max_size=20))
def test_a_torn_end_is_cut_at_the_last_whole_entry(
    written: list[list[bytes]], cut: int, garbage: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    mine = journal(folder)
    expected = []
    for parts in written:
        (number,) = mine.numbers(1)
        entry = Entry(number, [Part("s", b"{}", data) for data in parts])
        mine.write(entry)
        expected.append(entry)
    ends = []
    for segment in mine.segments():
        data = segment.read_bytes()
        ends = [len(data) - cut]
        segment.write_bytes(data[: max(0, len(data) - cut)] + garbage)
    mine.close(published=0)
    again = journal(folder)
    found = [entry for segment in again.segments() for entry in read(segment)]
    assert found == expected[: len(found)]
    if not cut and ends:
        assert found == expected
    (following,) = again.numbers(1)
    again.write(Entry(following, []))
    assert [entry.last for segment in again.segments() for entry in read(segment)] == [
        *(one.last for one in found),
        following,
    ]
    again.close(published=following)
    kept = journal(folder)
    assert ([entry for segment in kept.segments() for entry in read(segment)], kept.last) == ([], following)
    assert kept.id == mine.id, "whoever comes next takes it up"
    kept.close(published=following)


def test_damage_before_acknowledged_rows_is_no_torn_end(tmp_path: Path) -> None:
    mine = journal(tmp_path)
    for _ in range(2):
        (number,) = mine.numbers(1)
        mine.write(Entry(number, [Part("s", b"{}", b"x" * 50)]))
    mine.close(published=0)
    (segment,) = tmp_path.glob("*/*.rows")
    data = bytearray(segment.read_bytes())
    data[60] ^= 1
    segment.write_bytes(data)
    with pytest.raises(StoreUnsafe, match="is damaged at byte 22, and acknowledged rows follow"):
        journal(tmp_path)


def test_a_new_journal_that_another_process_takes_first_is_left_to_it(tmp_path, monkeypatch):
    real, others = Path.mkdir, []

    def made(folder, *args, **options):
        real(folder, *args, **options)
        if folder.parent == tmp_path / "journals" and not others:
            others.append(filelock.FileLock(folder / "lock"))
            others[0].acquire(blocking=False)

    monkeypatch.setattr(Path, "mkdir", made)
    own = next(iter(PushJournal.taken(tmp_path / "journals", sync=False)))
    assert str(own.folder / "lock") != others[0].lock_file
    assert own.folder.is_dir()
    others[0].release()
