"""Pushed rows survive from their answer on, reach offline exactly once, and online."""

import os
import random
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets import FeatureStore, Settings
from feature_assets.checks import InRange, RowCount
from feature_assets.errors import ChecksFailed, ContractBroken, RequestError, StoreUnsafe, UnknownSource, WrongType
from feature_assets.push import drain_orphans
from feature_assets.push.journal import Entry, Part, PushJournal, read
from feature_assets.registry import Registry, RegistryStore
from feature_assets.settlement import pending, verify
from feature_assets.spec import EVENT_ID, Entity, Expressions, Field, PushSource, Stream, TimePartitions, ViewSpec
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
