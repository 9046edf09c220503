"""Promise 4: a partition is replaced in one commit or not at all; a failed check publishes nothing, and readers go on."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets.checks import InRange
from feature_assets.conform import PartitionSlice
from feature_assets.errors import ChecksFailed, ContractBroken
from feature_assets.offline import OfflineStore
from feature_assets.online import open_online_store
from feature_assets.online.protocol import OnlineStore
from feature_assets.publication import publish
from feature_assets.spec import Entity, Field, ViewSpec
from feature_assets.types import Int64

DAY = datetime(2024, 3, 1, tzinfo=UTC)
SLICE = PartitionSlice("2024-03-01", DAY, DAY + timedelta(days=1))
VIEW = ViewSpec(
    name="trips",
    entities=(Entity("driver", join_keys={"driver_id": Int64}),),
    features=(Field("mark", Int64), Field("again", Int64)),
    event_timestamp="at",
    checks=(InRange("mark", maximum=99),),
)
KEYS = 200


def rows(marks: dict[int, int], at: datetime = DAY) -> pl.DataFrame:
    schema = {"driver_id": pl.Int64, "at": pl.Datetime("us", "UTC"), "mark": pl.Int64, "again": pl.Int64}
    return pl.DataFrame([(key, at, mark, mark) for key, mark in marks.items()], schema=schema, orient="row")


def offline_marks(offline: OfflineStore) -> dict[int, int]:
    if offline.state(VIEW) is None:
        return {}
    return dict(offline.scan(VIEW).select("driver_id", "mark").collect().iter_rows())


def online_marks(online: OnlineStore) -> dict[int, int]:
    if not online.tables():
        return {}
    return dict(pl.concat(list(online.scan(VIEW)) or [rows({})]).select("driver_id", "mark").iter_rows())


marks = st.dictionaries(st.integers(0, 5), st.integers(0, 120), max_size=5)
breaches = st.sampled_from(["none", "outside", "null key", "wrong type"])


@settings(max_examples=25)
@given(attempts=st.lists(st.tuples(marks, breaches), max_size=4))
def test_what_may_not_be_published_leaves_everything_as_it_was(
    attempts: list[tuple[dict[int, int], str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("all")
    offline, online = (
        OfflineStore(str(folder / "offline"), durability="process"),
        open_online_store(f"sqlite:{folder / 'o.db'}"),
    )
    stands: dict[int, int] = {}
    for given_marks, breach in attempts:
        frame = rows(given_marks, DAY - timedelta(seconds=1) if breach == "outside" else DAY)
        if breach == "null key":
            frame = frame.with_columns(driver_id=pl.lit(None, dtype=pl.Int64))
        if breach == "wrong type":
            frame = frame.with_columns(mark=pl.col("mark").cast(pl.String))
        fine = max(given_marks.values(), default=0) <= 99 and (
            breach == "none" or (not given_marks and breach != "wrong type")
        )
        try:
            publish(VIEW, frame, [SLICE], offline=offline, online=online)
        except (ChecksFailed, ContractBroken):
            assert not fine
        else:
            assert fine
            stands = given_marks
        assert offline_marks(offline) == online_marks(online) == stands
    online.close()


def test_the_same_rows_again_leave_everything_as_it_was(tmp_path: Path) -> None:
    offline = OfflineStore(str(tmp_path / "offline"), durability="process")
    online = open_online_store(f"sqlite:{tmp_path / 'online.db'}")
    frame, seen = rows({key: key for key in range(50)}), []
    for turn in range(5):
        shuffled = frame.sample(fraction=1, shuffle=True, seed=turn)
        done = publish(VIEW, shuffled, [SLICE], offline=offline, online=online)
        stored = [offline.scan(VIEW).collect(), pl.concat(online.scan(VIEW))]
        seen.append([done.data_versions, *(one.select(VIEW.columns).sort("driver_id") for one in stored)])
        assert all(set(one["__publication"]) == {done.number} for one in stored)
        assert done.retracted == 0
    online.close()
    first = seen[0]
    assert first[1].equals(frame)
    assert first[2].equals(frame)
    for again in seen[1:]:
        assert again[0] == first[0], "nothing downstream becomes stale"
        assert again[1].equals(first[1])
        assert again[2].equals(first[2])


def test_readers_see_the_whole_old_or_the_whole_new_partition(tmp_path: Path) -> None:
    offline = OfflineStore(str(tmp_path / "offline"), durability="process")
    url = f"sqlite:{tmp_path / 'online.db'}"
    writer = open_online_store(url)
    publish(VIEW, rows(dict.fromkeys(range(KEYS), 0)), [SLICE], offline=offline, online=writer)
    seen: dict[str, set[int]] = {"offline": set(), "online": set()}
    torn: list[Any] = []
    done = threading.Event()

    def read_offline() -> None:
        while not done.is_set():
            found = offline.scan(VIEW).select("mark", "again").collect()
            values = set(found["mark"]) | set(found["again"])
            if found.height != KEYS or len(values) != 1:
                torn.append(("offline", found.height, values))
            seen["offline"] |= values

    def read_online() -> None:
        store = open_online_store(url)
        reader = store.reader(VIEW, ["mark", "again"])
        while not done.is_set():
            events, (first, second) = reader([(key,) for key in range(0, KEYS, 7)])
            values = set(first) | set(second)
            if None in events or len(values) != 1:
                torn.append(("online", values))
            seen["online"] |= values
        store.close()

    threads = [threading.Thread(target=work) for work in (read_offline, read_online)]
    for thread in threads:
        thread.start()
    for mark in range(1, 15):
        publish(VIEW, rows(dict.fromkeys(range(KEYS), mark)), [SLICE], offline=offline, online=writer)
    done.set()
    for thread in threads:
        thread.join()
    writer.close()
    assert torn == []
    assert len(seen["offline"]) > 1
    assert len(seen["online"]) > 1
