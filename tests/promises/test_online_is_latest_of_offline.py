"""Promise 3: whatever happens, the online row of each key is its latest offline row, by event, created, publication."""

import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from feature_assets.errors import RequestError
from feature_assets.online.protocol import AppliedPublication, WriteCount
from feature_assets.settlement import erase, pending, reconcile, settle, verify
from feature_assets.spec import ViewSpec
from tests.promises.published import CASES, SHARD, Case, Platform, Row
from tests.promises.turns import Actor, run, until


class OnlineIsLatestOfOffline(RuleBasedStateMachine):
    """Publishers, pushers, consumers of a stream, erasers and reconcilers, up to three at once, in every order of their
    calls; any of them may die.
    """

    case: Case

    @staticmethod
    def online_url() -> str:
        """Of the online store; a SQLite file in the example's folder if it is empty."""
        return ""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.here = Platform(self.case, Path(self._folder.name), self.online_url())
        self.unfinished = False

    def _rows(self, data: st.DataObject) -> dict[str, list[Row]]:
        """New, with fewer or changed rows, or backfilled in any order: it is all one."""
        case = self.case
        row = st.tuples(
            st.sampled_from(case.keys),
            st.sampled_from([0, 1, 719, 1439]),
            st.none() | st.integers(0, 2) if case.created else st.none(),
            st.none() | st.integers(0, 9),
        )
        partitions = data.draw(st.lists(st.sampled_from(case.partitions), min_size=1, max_size=3, unique=True))
        return {partition: data.draw(st.lists(row, max_size=4), label=partition) for partition in partitions}

    @rule(data=st.data())
    def materialise(self, data: st.DataObject) -> None:
        self.here.publish(self._rows(data))

    @precondition(lambda self: self.here.stands)
    @rule(data=st.data())
    def several_at_once(self, data: st.DataObject) -> None:
        kinds = [
            "publish",
            "publish",
            "push",
            "push",
            "stream",
            "stream",
            "reconcile",
            "force",
            "compact",
            *(["erase"] if self.case.types else []),
        ]
        works = [self._work(kind, data) for kind in data.draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3))]
        dead = data.draw(st.none() | st.integers(0, len(works) - 1), label="dies")
        at = data.draw(st.integers(0, 12), label="at step") if dead is not None else None
        actors = [Actor(name, work, at if number == dead else None) for number, (name, work) in enumerate(works)]
        run(actors, lambda waiting: data.draw(st.sampled_from(waiting), label="goes"))
        self.unfinished |= any(actor.died for actor in actors)

    def _work(self, kind: str, data: st.DataObject) -> tuple[str, Callable[[Actor], object]]:
        here = self.here
        if kind == "publish":
            rows = self._rows(data)
            return kind, lambda actor: here.publishing(actor, rows)
        if kind == "push":
            rows = self._rows(data)
            return kind, lambda actor: here.pushing(actor, rows)
        if kind == "stream":
            here.log += [(partition, row) for partition, rows in self._rows(data).items() for row in rows]
            most = data.draw(st.integers(1, 4), label="records")
            return kind, lambda actor: here.streaming(actor, most)
        if kind == "erase":
            keys = data.draw(st.lists(st.sampled_from(self.case.keys), min_size=1, max_size=2, unique=True))
            return kind, lambda actor: here.erasing(actor, keys)
        if kind == "compact":
            return kind, lambda actor: actor.store(here.offline).compact(here.view)
        return kind, lambda actor: reconcile(
            here.view, actor.store(here.offline), actor.store(here.online), force=kind == "force"
        )

    @precondition(lambda self: self.here.stands)
    @rule()
    def finish_what_was_left(self) -> None:
        reconcile(self.here.view, self.here.offline, self.here.online)
        self.unfinished = False

    @invariant()
    def each_record_is_consumed_once(self) -> None:
        here = self.here
        at = here.offline.streamed(here.view, "events", [SHARD])[SHARD].position
        assert sorted(here.consumed) == list(range(0 if at is None else at + 1))

    @invariant()
    def holds_for_every_key(self) -> None:
        here = self.here
        if here.stands and not self.unfinished:
            assert here.stored() == here.latest_by_hand()
            assert pending(here.view, here.offline, here.online) == ()
            assert verify(here.view, here.offline, here.online).total == 0

    def teardown(self) -> None:
        try:
            if self.here.stands:
                self.finish_what_was_left()
                self.holds_for_every_key()
        finally:
            self.here.online.close()
            self._folder.cleanup()


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_online_is_latest_of_offline(case: Case) -> None:
    machine = type("Here", (OnlineIsLatestOfOffline,), {"case": case})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max(5, settings().max_examples // 6),
            stateful_step_count=10,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Platform]:
    platform = Platform(CASES["days"], tmp_path)
    yield platform
    platform.online.close()


def is_right(here: Platform) -> bool:
    return (
        here.stored() == here.latest_by_hand()
        and pending(here.view, here.offline, here.online) == ()
        and verify(here.view, here.offline, here.online).total == 0
    )


FIRST, SECOND, THIRD = CASES["days"].partitions


def test_who_is_erased_stays_so_though_a_publication_was_under_way(here: Platform) -> None:
    """It had committed the person's rows, and had not been online yet."""
    actors = [
        Actor("publish", lambda actor: here.publishing(actor, {FIRST: [(("a",), 0, None, 1), (("b",), 0, None, 2)]})),
        Actor("erase", lambda actor: here.erasing(actor, [("a",)])),
    ]
    run(actors, until(("publish", "prepare"), ("erase", "over"), ("publish", "over")))
    assert here.stored().keys() == {("b",)}
    assert is_right(here)


def test_an_erasure_that_died_shows_and_is_finished(here: Platform) -> None:
    here.publish({FIRST: [(("a",), 0, None, 1), (("b",), 0, None, 2)]})
    run([Actor("erase", lambda actor: here.erasing(actor, [("a",)]), dies_at=1)], until())
    assert here.stored().keys() == {("a",), ("b",)}
    assert pending(here.view, here.offline, here.online) == (FIRST,)
    assert here.offline.compact(here.view) is None, "nothing is made small that would hide it"
    reconcile(here.view, here.offline, here.online)
    assert is_right(here)


def test_of_two_erasures_one_that_finishes_does_not_hide_one_that_died(here: Platform) -> None:
    here.publish({FIRST: [(("a",), 0, None, 1), (("b",), 0, None, 2)]})
    actors = [
        Actor("dies", lambda actor: here.erasing(actor, [("a",)]), dies_at=2),
        Actor("ends", lambda actor: here.erasing(actor, [("b",)])),
    ]
    run(actors, until(("dies", "ledger"), ("ends", "over")))
    reconcile(here.view, here.offline, here.online)
    assert here.stored() == {}
    assert is_right(here)


def test_a_publication_of_which_one_partition_was_overtaken_leaves_nothing_pending(here: Platform) -> None:
    here.publish({FIRST: [(("a",), 5, None, 0)], SECOND: [(("b",), 5, None, 0)]})
    both = {FIRST: [(("a",), 0, None, 1)], SECOND: [(("a",), 0, None, 2)]}
    actors = [
        Actor("both", lambda actor: here.publishing(actor, both)),
        Actor("one", lambda actor: here.publishing(actor, {FIRST: []})),
    ]
    run(actors, until(("both", "write"), ("one", "over"), ("both", "over")))
    assert is_right(here)


def test_a_row_that_settling_put_online_too_late_shows_if_it_dies_then(here: Platform) -> None:
    """Between its look at Delta and its write the row was taken back by one who settled that long ago."""
    here.publish({FIRST: [(("a",), 0, None, 1)]})
    here.online.delete(here.view, pl.DataFrame({"origin": ["a"]}))

    def forced(actor: Actor) -> None:
        settle(here.view, None, actor.store(here.offline), actor.store(here.online))

    actors = [
        Actor("settle", forced, dies_at=4),
        Actor("publish", lambda actor: here.publishing(actor, {FIRST: []})),
    ]
    happened = run(actors, until(("settle", "write"), ("publish", "over"), ("settle", "over")))
    assert happened[-2:] == ["settle: write", "settle: version †"]
    assert here.stored().keys() == {("a",)}
    assert pending(here.view, here.offline, here.online) != ()
    reconcile(here.view, here.offline, here.online)
    assert is_right(here)


def test_a_first_publisher_that_died_left_nothing_that_is_wrong_or_everything_missing(here: Platform) -> None:
    rows: dict[str, list[Row]] = {FIRST: [(("a",), 0, None, 1)]}
    run([Actor("publish", lambda actor: here.publishing(actor, rows), dies_at=1)], until())
    assert verify(here.view, here.offline, here.online).missing == 1
    reconcile(here.view, here.offline, here.online)
    assert is_right(here)


@pytest.mark.parametrize("dies_at", range(1, 6))
def test_what_a_crash_left_is_finished_by_the_next_run(here: Platform, dies_at: int) -> None:
    """It had lowered one key, taken one back and left one as it was, and died somewhere between the stores."""
    here.publish({FIRST: [(("a",), 5, None, 0), (("b",), 5, None, 0), (("ab",), 5, None, 0)]})
    again: dict[str, list[Row]] = {FIRST: [(("a",), 1, None, 1), (("ab",), 5, None, 0)]}
    run([Actor("publish", lambda actor: here.publishing(actor, again), dies_at=dies_at)], until())
    assert pending(here.view, here.offline, here.online) == (FIRST,)
    here.publish(again)
    assert is_right(here)


def test_only_the_latest_row_of_each_key_is_sent(here: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[pl.DataFrame] = []
    write = here.online.write

    def recorded(view: ViewSpec, rows: pl.DataFrame, publication: AppliedPublication | None) -> WriteCount:
        sent.append(rows)
        return write(view, rows, publication)

    monkeypatch.setattr(here.online, "write", recorded)
    minutes: dict[str, list[Row]] = {FIRST: [((key,), minute, None, minute) for key in "ab" for minute in range(500)]}
    here.publish(minutes)
    assert sorted(pl.concat(sent).select("origin", "temp").rows()) == [("a", 499), ("b", 499)]
    assert is_right(here)


def test_keys_that_are_none_are_refused_before_anything_is_touched(here: Platform) -> None:
    here.publish({FIRST: [(("a",), 0, None, 1)]})
    version = here.offline.version(here.view)
    with pytest.raises(RequestError, match="key column 'origin' is Int64, not String"):
        erase(here.view, pl.DataFrame({"origin": [1]}), here.offline, here.online)
    assert here.offline.version(here.view) == version
    assert is_right(here)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE weather__v1 SET temp = temp + 1",
        "UPDATE weather__v1 SET temp = NULL",
        "DELETE FROM weather__v1",
        "INSERT INTO weather__v1 SELECT 'ghost', observed_at, reported_at, temp, __publication FROM weather__v1 LIMIT 1",
        "UPDATE weather__v1 SET observed_at = observed_at + 1",
        "UPDATE weather__v1 SET observed_at = observed_at - 1",
    ],
)
def test_what_a_hand_did_to_online_rows_is_found_and_mended(here: Platform, statement: str) -> None:
    here.publish({FIRST: [(("a",), 0, None, 1), (("b",), 0, 1, 2)]})
    with sqlite3.connect(here.folder / "online.db") as connection:
        connection.execute(statement)
    connection.close()
    assert verify(here.view, here.offline, here.online).total > 0
    assert reconcile(here.view, here.offline, here.online, force=True).changed > 0
    assert is_right(here)
