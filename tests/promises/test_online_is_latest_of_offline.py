"""Promise 3: whatever happens, the online row of each key is its latest offline row, by event, created, publication."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from feature_assets.conform import PartitionSlice
from feature_assets.errors import PublicationConflict
from feature_assets.offline import OfflineStore
from feature_assets.online import open_online_store
from feature_assets.online.protocol import OnlineStore
from feature_assets.publication import publish
from feature_assets.settlement import erase, pending, reconcile, verify
from feature_assets.spec import Entity, Field, ViewSpec
from feature_assets.types import Int64, String

DAY = timedelta(days=1)
START = datetime(2024, 3, 1, tzinfo=UTC)
DAYS = [f"2024-03-0{day}" for day in (1, 2, 3)]
KEYS = ["a", "b", "ab", ""]

VIEW = ViewSpec(
    name="weather",
    entities=(Entity("airport", join_keys={"origin": String}),),
    features=(Field("temp", Int64),),
    event_timestamp="observed_at",
    created_timestamp="reported_at",
)

Row = tuple[str, int, int | None, int | None]
"""key, minute of the day, minutes until it was reported, value"""

rows_of_a_day = st.lists(
    st.tuples(
        st.sampled_from(KEYS),
        st.sampled_from([0, 1, 719, 1439]),
        st.one_of(st.none(), st.integers(0, 2)),
        st.one_of(st.none(), st.integers(0, 9)),
    ),
    max_size=5,
)
some_days = st.lists(st.sampled_from(DAYS), min_size=1, max_size=3, unique=True)


def _slice(day: str) -> PartitionSlice:
    start = datetime.fromisoformat(day).replace(tzinfo=UTC)
    return PartitionSlice(day, start, start + DAY)


def _frame(rows: dict[str, list[Row]]) -> pl.DataFrame:
    flat = []
    for day, of_day in rows.items():
        for key, minute, reported, value in of_day:
            at = datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(minutes=minute)
            flat.append((key, at, None if reported is None else at + timedelta(minutes=reported), value))
    times = pl.Datetime("us", "UTC")
    schema = {"origin": pl.String, "observed_at": times, "reported_at": times, "temp": pl.Int64}
    return pl.DataFrame(flat, schema=schema, orient="row")


def latest_by_hand(published: dict[str, tuple[int, list[Row]]]) -> dict[str, tuple[datetime, Any, int | None]]:
    """What every key has to have online, by reading every row that stands offline."""
    best: dict[str, tuple[Any, ...]] = {}
    for day, (number, rows) in published.items():
        for position, (key, minute, reported, value) in enumerate(rows):
            at = datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(minutes=minute)
            created = None if reported is None else at + timedelta(minutes=reported)
            rank = (at, created is not None, created or at, number, position)
            if key not in best or rank > best[key][0]:
                best[key] = (rank, at, created, value)
    return {key: (at, created, value) for key, (_, at, created, value) in best.items()}


def stored(online: OnlineStore) -> dict[str, tuple[datetime, Any, int | None]]:
    return {
        row["origin"]: (row["observed_at"], row["reported_at"], row["temp"])
        for frame in online.scan(VIEW)
        for row in frame.iter_rows(named=True)
    }


class Died(Exception):
    """Stands for the end of the process."""


class Dying:
    """The real store, in a process that ends when it calls `method`."""

    def __init__(self, store: OnlineStore, method: str) -> None:
        self._store, self._method = store, method

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            raise Died(name)
        return getattr(self._store, name)


class OnlineIsLatestOfOffline(RuleBasedStateMachine):
    """The model is a dict: day → (publication, rows)."""

    root: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = self.root / f"{time.monotonic_ns()}"
        self.offline = OfflineStore(str(self.folder / "offline"), durability="process")
        self.online = open_online_store(f"sqlite:{self.folder / 'online.db'}")
        self.published: dict[str, tuple[int, list[Row]]] = {}
        self.unfinished = False

    def _publish(self, rows: dict[str, list[Row]], online: Any = None) -> int:
        days = [_slice(day) for day in rows]
        return publish(VIEW, _frame(rows), days, offline=self.offline, online=online or self.online).number

    @rule(days=some_days, data=st.data())
    def materialise(self, days: list[str], data: st.DataObject) -> None:
        """New, re-materialised with fewer or changed rows, or backfilled in any order: it is all one."""
        rows = {day: data.draw(rows_of_a_day, label=day) for day in days}
        number = self._publish(rows)
        self.published |= {day: (number, of_day) for day, of_day in rows.items()}

    @rule(days=some_days, method=st.sampled_from(["prepare", "write", "retract", "settle"]), data=st.data())
    def materialise_and_die(self, days: list[str], method: str, data: st.DataObject) -> None:
        if self.unfinished:
            return
        rows = {day: data.draw(rows_of_a_day, label=day) for day in days}
        try:
            self._publish(rows, Dying(self.online, method))
        except Died:
            self.unfinished = True
        state = self.offline.state(VIEW)
        assert state is not None, "Delta is written before anything that died here"
        self.published |= {day: (state.publications.get(day, 0), rows[day]) for day in days}

    @rule(first=some_days, second=some_days, data=st.data())
    def two_writers_at_once(self, first: list[str], second: list[str], data: st.DataObject) -> None:
        both = [{day: data.draw(rows_of_a_day) for day in days} for days in (first, second)]
        numbers: list[int | None] = [None, None]

        def write(which: int) -> None:
            try:
                numbers[which] = self._publish(both[which])
            except PublicationConflict:
                numbers[which] = None

        threads = [threading.Thread(target=write, args=(which,)) for which in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for which in sorted((0, 1), key=lambda one: numbers[one] or 0):
            if (number := numbers[which]) is not None:
                self.published |= {day: (number, of_day) for day, of_day in both[which].items()}

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=2, unique=True))
    def forget(self, keys: list[str]) -> None:
        if not self.published:
            return
        erase(VIEW, pl.DataFrame({"origin": keys}), self.offline, self.online)
        self.published = {
            day: (number, [row for row in rows if row[0] not in keys]) for day, (number, rows) in self.published.items()
        }

    @rule()
    def finish_what_was_left(self) -> None:
        if self.published:
            reconcile(VIEW, self.offline, self.online)
            self.unfinished = False

    @invariant()
    def holds_for_every_key(self) -> None:
        if self.published and not self.unfinished:
            assert stored(self.online) == latest_by_hand(self.published)
            assert pending(VIEW, self.offline, self.online) == ()

    def teardown(self) -> None:
        if self.published:
            reconcile(VIEW, self.offline, self.online)
            assert stored(self.online) == latest_by_hand(self.published)
            assert verify(VIEW, self.offline, self.online).total == 0
        self.online.close()


def test_online_is_latest_of_offline(tmp_path: Path) -> None:
    class Here(OnlineIsLatestOfOffline):
        root = tmp_path

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


_MATERIALISING = """
import random, sys
from pathlib import Path
from feature_assets.offline import OfflineStore
from feature_assets.online import open_online_store
from feature_assets.publication import publish
sys.path.insert(0, {tests!r})
import test_online_is_latest_of_offline as here

offline = OfflineStore({offline!r}, durability="process")
online = open_online_store({online!r})
chance = random.Random({seed})
while True:
    days = chance.sample(here.DAYS, chance.randint(1, 3))
    rows = {{
        day: [
            (chance.choice(here.KEYS), chance.choice([0, 719, 1439]), None, chance.randint(0, 9))
            for _ in range(chance.randint(0, 4))
        ]
        for day in days
    }}
    done = publish(here.VIEW, here._frame(rows), [here._slice(day) for day in rows], offline=offline, online=online)
    print(done.number, flush=True)
"""


def test_a_killed_process_loses_nothing_and_one_reconcile_closes_the_gap(tmp_path: Path) -> None:
    offline_root, online_url = str(tmp_path / "offline"), f"sqlite:{tmp_path / 'online.db'}"
    offline = OfflineStore(offline_root, durability="process")
    chance = random.Random(7)
    acknowledged = 0
    for seed in range(8):
        script = _MATERIALISING.format(
            tests=str(Path(__file__).parent), offline=offline_root, online=online_url, seed=seed
        )
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        killer = threading.Timer(chance.uniform(0.05, 0.6), os.kill, (child.pid, signal.SIGKILL))
        killer.start()
        lines += child.stdout.readlines()
        child.wait()
        child.stdout.close()
        numbers = [int(line) for line in lines if line.endswith("\n")]
        assert numbers, "the child died before it published anything"
        acknowledged += len(numbers)
        state = offline.state(VIEW)
        assert state is not None
        online = open_online_store(online_url)
        reconcile(VIEW, offline, online)
        assert verify(VIEW, offline, online).total == 0
        assert pending(VIEW, offline, online) == ()
        landed = {
            int(commit.metadata["publication"]) for commit in offline.commits(VIEW) if "publication" in commit.metadata
        }
        assert set(numbers) <= landed
        online.close()
    assert acknowledged >= 8
