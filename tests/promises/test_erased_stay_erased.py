"""Who is erased does not come back from a journal, of whatever host, and nobody else is lost by it."""

import shutil
import tempfile
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets.errors import TableMissing
from feature_assets.offline import InJournal, OfflineStore
from feature_assets.offline import store as store_module
from feature_assets.online import open_online_store
from feature_assets.online.protocol import OnlineStore
from feature_assets.publication import append
from feature_assets.settlement import erase, verify
from feature_assets.spec import EVENT_ID, PARTITION, SEQUENCE, UNPARTITIONED, Entity, Field, Stream, ViewSpec
from feature_assets.types import Int64, String

NOW = datetime.now(UTC).replace(microsecond=0)
VISITS = ViewSpec(
    name="visits",
    entities=(Entity("visit", {"person": String, "place": Int64}),),
    features=(Field("number", Int64),),
    event_timestamp="at",
    stream=Stream("doors"),
)
PEOPLE, PLACES = ("a", "b"), (1, 2)


def rows_of(entries: list[tuple[int, str, int]]) -> pl.DataFrame:
    """Rows as a journal has them: each its number, person and place."""
    numbers, people, places = zip(*entries, strict=True)
    return pl.DataFrame(
        {
            "person": people,
            "place": places,
            "at": [NOW + timedelta(seconds=number) for number in numbers],
            "number": numbers,
        },
        schema={name: of.polars for name, of in VISITS.types.items()},
    ).with_columns(
        pl.lit(UNPARTITIONED).alias(PARTITION),
        pl.lit(None, pl.String).alias(EVENT_ID),
        pl.Series(SEQUENCE, numbers, dtype=pl.Int64),
    )


def forget(offline: OfflineStore, online: OnlineStore, keys: dict[str, Any], until: int) -> None:
    """As the command does."""
    given = pl.DataFrame(keys, schema={name: VISITS.types[name].polars for name in keys})
    offline.leave_out(VISITS, given, until=until)
    known = offline.scan(VISITS, features=[]).join(given.lazy(), on=given.columns, how="semi").collect()
    erase(VISITS, known.select(list(VISITS.join_keys)).unique(), offline, online)


STEPS = st.one_of(
    st.tuples(st.just("push"), st.sampled_from("xy"), st.sampled_from(PEOPLE), st.sampled_from(PLACES)),
    st.tuples(st.just("publish"), st.sampled_from("xy"), st.integers(1, 3)),
    st.tuples(st.just("erase"), st.sampled_from(PEOPLE), st.one_of(st.none(), st.sampled_from(PLACES))),
)


@settings(max_examples=6)
@given(steps=st.lists(STEPS, min_size=6, max_size=14))
def test_a_row_that_was_acknowledged_before_an_erasure_is_gone_whenever_it_is_published(steps: list[Any]) -> None:
    """Two journals of different hosts; the model is which rows were acknowledged, and not erased since."""
    with tempfile.TemporaryDirectory() as folder:
        online = open_online_store(f"sqlite:{folder}/online.db")
        hosts = {name: OfflineStore(f"{folder}/offline", durability="process") for name in "xy"}
        waiting: dict[str, list[tuple[int, str, int]]] = defaultdict(list)
        expected: dict[int, tuple[str, int]] = {}

        def publish(host: str, count: int) -> None:
            some, waiting[host] = waiting[host][:count], waiting[host][count:]
            if some:
                append(VISITS, rows_of(some), numbered=InJournal(host), offline=hosts[host], online=online)

        for now, step in enumerate(steps, start=1):
            match step:
                case "push", host, person, place:
                    waiting[host].append((now, person, place))
                    expected[now] = person, place
                case "publish", host, count:
                    publish(host, count)
                case "erase", person, place:
                    forget(hosts["x"], online, {"person": [person]} | ({"place": [place]} if place else {}), now)
                    gone = {(person, one) for one in ((place,) if place else PLACES)}
                    expected = {number: key for number, key in expected.items() if key not in gone}
        for host in "xy":
            publish(host, len(steps))
        found = {}
        try:
            found = {
                row[-1]: row[:2] for row in hosts["x"].scan(VISITS).select("person", "place", "number").collect().rows()
            }
        except TableMissing:
            assert not expected
        assert found == expected
        assert (
            {one["number"] for frame in online.scan(VISITS) for one in frame.to_dicts()} <= found.keys()
            if found
            else True
        )
        if found:
            assert verify(VISITS, hosts["x"], online).total == 0
        online.close()


def test_who_is_no_longer_known_to_be_erased_keeps_nobody_waiting(tmp_path: Path) -> None:
    """The digests may be removed when no journal is older; keys of another type than the view's are none."""
    offline = OfflineStore(f"{tmp_path}/offline", durability="process")
    nobody = pl.DataFrame({"person": []}, schema={"person": pl.String()})
    offline.leave_out(VISITS, nobody, until=10)
    append(VISITS, rows_of([(1, "a", 1)]), numbered=InJournal("x"), offline=offline, online=None)
    offline.leave_out(VISITS, pl.DataFrame({"person": ["b"]}), until=10)
    shutil.rmtree(f"{tmp_path}/offline/__erased")
    append(VISITS, rows_of([(2, "b", 1)]), numbered=InJournal("y"), offline=offline, online=None)
    assert sorted(offline.scan(VISITS).collect()["number"]) == [1, 2]


def test_rows_that_are_on_their_way_while_somebody_is_erased_are_left_out_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host has read the table and written its file, and commits when the erasure is done."""
    online = open_online_store(f"sqlite:{tmp_path}/online.db")
    here, there = (OfflineStore(f"{tmp_path}/offline", durability="process") for _ in range(2))
    append(VISITS, rows_of([(1, "c", 1), (2, "b", 1)]), numbered=InJournal("x"), offline=here, online=online)
    ours: Any = store_module.Appending
    erasures: list[int] = []

    class Late(ours):  # type: ignore[misc]
        def __call__(self, table: Any, former: Any) -> Any:
            made = super().__call__(table, former)
            if self._rows.height and not erasures:
                erasures.append(5)
                monkeypatch.setattr(store_module, "Appending", ours)
                forget(here, online, {"person": ["a"]}, 5)
            return made

    monkeypatch.setattr(store_module, "Appending", Late)
    append(
        VISITS, rows_of([(3, "a", 1), (4, "b", 2), (6, "a", 2)]), numbered=InJournal("y"), offline=there, online=online
    )
    assert erasures == [5]
    assert sorted(here.scan(VISITS).collect()["number"]) == [1, 2, 4, 6], "what came after the erasure stays"
    assert verify(VISITS, here, online).total == 0
    online.close()
