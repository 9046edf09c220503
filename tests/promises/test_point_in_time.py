"""Promise 2: a training set has exactly the spine's rows, in its order, and no row knows what was not known at its time.

Views of different entities are published to a real Delta store in several commits; every cell of the answer is compared
with the nested loop of `oracle.py`, and the loop with SQLite.
"""

import math
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets.historical import Progress, budget
from feature_assets.spec import Field, ViewProjection
from feature_assets.types import Float64, Int64, String, moment
from tests.historical.engines import SPREADING, spreading
from tests.historical.world import CLOCK, NOON, World, view
from tests.promises.oracle import Moment, Row, by_loop, by_sql

TTL = timedelta(seconds=1)
START = 1_360_324_800_000_000

# One key, a ttl, and rows that become known late.
AIRPORT = view(
    "airport",
    {"origin": String},
    [Field("temp", Float64), Field("gate", Int64, default=-1)],
    created_timestamp="known_at",
    ttl=TTL,
)
# Two keys that are ambiguous when glued together, and values that never expire.
ROUTE = view("route", {"origin": String, "dest": String}, [Field("delay", Float64)])
# No entity: one history for all.
CALENDAR = view("calendar", {}, [Field("holiday", Int64)], ttl=2 * TTL)
VIEWS = (AIRPORT, ROUTE, CALENDAR)

REFERENCES: list[Any] = [
    "airport:temp",
    "route:delay",
    ViewProjection("airport", alias="dest_airport", join_key_map={"origin": "dest"}),
    "calendar:holiday",
    "airport:gate",
]
ANSWERS = {
    "airport__temp": (AIRPORT, ("origin",), "temp", None),
    "route__delay": (ROUTE, tuple(ROUTE.join_keys), "delay", None),
    "dest_airport__temp": (AIRPORT, ("dest",), "temp", None),
    "dest_airport__gate": (AIRPORT, ("dest",), "gate", -1),
    "calendar__holiday": (CALENDAR, (), "holiday", None),
    "airport__gate": (AIRPORT, ("origin",), "gate", -1),
}

Published = dict[str, list[list[tuple[Any, ...]]]]
SpineRow = tuple[str | None, str | None, int | None]

NAMES = ["a", "ab", "b"]
FLOATS = [0.0, -0.0, 1.5, math.nan, math.inf, None]
WHOLE = [0, 1, 2, None]
VALUES = {"airport": (FLOATS, WHOLE), "route": (FLOATS,), "calendar": (WHOLE,)}


def time(second: int, off: int) -> int:
    return START + second * 1_000_000 + off


times = st.builds(time, st.integers(0, 4), st.sampled_from([0, -1, 1]))


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Published, list[SpineRow]]:
    """Cases that shrink to the smallest ones."""
    published = {}
    for each in VIEWS:
        keys = st.tuples(*(st.sampled_from(NAMES) for _ in each.join_keys))
        made = (st.none() | times) if each.created_timestamp else st.none()
        values = st.tuples(*map(st.sampled_from, VALUES[each.name]))
        # In one publication no key has the same times twice: `conform` sees to it.
        batch = st.lists(st.tuples(keys, times, made, values), unique_by=lambda row: row[:3], max_size=8)
        published[each.name] = draw(st.lists(batch, min_size=1, max_size=3))
    name = st.none() | st.sampled_from(NAMES)
    rows = draw(st.lists(st.tuples(name, name, st.none() | times), max_size=12))
    return published, draw(st.permutations(rows + rows[: len(rows) // 3]))


def rolled(seed: int) -> tuple[Published, list[SpineRow]]:
    """Cases in which rows of few keys crowd together, which are hardly ever drawn."""
    dice = Random(seed)

    def any_time() -> int:
        return time(dice.randrange(5), dice.choice([0, 0, -1, 1]))

    published: Published = {}
    for each in VIEWS:
        published[each.name] = []
        for _ in range(3):
            batch = {}
            for _ in range(10):
                made = dice.choice([None, any_time(), any_time()]) if each.created_timestamp else None
                identity = (tuple(dice.choice(NAMES) for _ in each.join_keys), any_time(), made)
                batch[identity] = tuple(dice.choice(values) for values in VALUES[each.name])
            published[each.name].append([(*identity, values) for identity, values in batch.items()])
    names = [*NAMES, *NAMES, *NAMES, None]
    rows = [(dice.choice(names), dice.choice(names), any_time()) for _ in range(15)]
    return published, rows + rows[:5]


def history(world: World, each: Any, batches: Sequence[Sequence[tuple[Any, ...]]]) -> list[Row]:
    """Publishes the batches; all that is stored then, as the oracle reads it."""
    rows = []
    for number, batch in enumerate(batches):
        columns = [
            (
                *keys,
                moment(event),
                *([None if made is None else moment(made)] if each.created_timestamp else []),
                *values,
            )
            for keys, event, made, values in batch
        ]
        frame = pl.DataFrame(
            columns,
            schema={
                **{key: of.polars for key, of in each.join_keys.items()},
                "at": CLOCK,
                **({"known_at": CLOCK} if each.created_timestamp else {}),
                **{field.name: field.type.polars for field in each.features},
            },
            orient="row",
        )
        publication = world.publish(each, frame, partition=f"p{number}")
        rows += [Row(keys, event, made, publication, values) for keys, event, made, values in batch]
    return rows


def bits(value: Any) -> Any:
    return struct.pack("<d", value) if isinstance(value, float) else value


def expected(spine: Sequence[tuple[Any, ...]], stored: dict[str, list[Row]], answer: str, *, cutoff: bool) -> list[Any]:
    each, keys, feature, default = ANSWERS[answer]
    position = [field.name for field in each.features].index(feature)
    place = {"origin": 0, "dest": 1}
    moments = [Moment(tuple(row[place[key]] for key in keys), row[2]) for row in spine]
    ttl = None if each.ttl is None else each.ttl // timedelta(microseconds=1)
    looped = [by_loop(one, stored[each.name], ttl=ttl, cutoff=cutoff) for one in moments]
    assert looped == by_sql(moments, stored[each.name], ttl=ttl, cutoff=cutoff)
    return [default if row is None else row.value[position] for row in looped]


@contextmanager
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        yield World(Path(folder), *VIEWS)


def spine_of(rows: Sequence[SpineRow]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "label": range(len(rows)),
            "origin": [row[0] for row in rows],
            "dest": [row[1] for row in rows],
            "event_timestamp": [row[2] for row in rows],
        },
        schema={"label": pl.Int64, "origin": pl.String, "dest": pl.String, "event_timestamp": pl.Int64},
    ).with_columns(pl.col("event_timestamp").cast(CLOCK))


def check(answer: pl.DataFrame, rows: Sequence[SpineRow], stored: dict[str, list[Row]], *, cutoff: bool) -> None:
    spine = spine_of(rows)
    assert answer.columns == [*spine.columns, *ANSWERS]
    assert answer.select(spine.columns).equals(spine)
    for name in ANSWERS:
        found = [bits(value) for value in answer[name]]
        assert found == [bits(value) for value in expected(rows, stored, name, cutoff=cutoff)], name


cases = drawn() | st.integers(0, 2**32).map(rolled)


@given(cases, st.booleans(), st.sampled_from([None, 1, 4]), st.booleans())
@settings(max_examples=max(10, settings().max_examples // 2))
def test_every_row_has_what_was_known_at_its_time(
    case: tuple[Published, list[SpineRow]], cutoff: bool, batch: int | None, lazy: bool
) -> None:
    published, rows = case
    frame = spine_of(rows)
    with world() as here:
        stored = {each.name: history(here, each, published[each.name]) for each in VIEWS}
        asked = here.ask(frame.lazy() if lazy else frame, REFERENCES, full_feature_names=True, created_cutoff=cutoff)
        answer = pl.concat(asked.batches(batch)) if batch else asked.collect()
    assert answer.schema == asked.schema
    check(answer, rows, stored, cutoff=cutoff)


@given(cases, st.booleans(), st.sampled_from([None, 1, 4]), st.sampled_from([1, 3_000, 6_000, 12_000]), st.booleans())
@settings(max_examples=max(10, settings().max_examples // 4))
def test_the_same_rows_come_out_of_little_memory(
    case: tuple[Published, list[SpineRow]], cutoff: bool, batch: int | None, limit: int, lazy: bool
) -> None:
    """From one row and one row of history at a time up to about 20 of them."""
    published, rows = case
    frame = spine_of(rows)
    told: list[Progress] = []
    with world() as here, pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "LEAST", 0)
        stored = {each.name: history(here, each, published[each.name]) for each in VIEWS}
        asked = here.ask(
            frame.lazy() if lazy else frame,
            REFERENCES,
            full_feature_names=True,
            created_cutoff=cutoff,
            memory_limit=limit,
            progress=told.append,
        )
        batches = list(asked.batches(batch))
    assert all(each.height == (batch or each.height) for each in batches[:-1])
    check(pl.concat(batches), rows, stored, cutoff=cutoff)
    assert told[-1].done == told[-1].rows == len(rows)


@given(cases, st.booleans(), st.sampled_from([1, 6_000, 12_000, 10**9]), st.booleans())
@settings(max_examples=max(5, settings().max_examples // 12) if SPREADING == "daft" else 25)
def test_the_same_rows_come_out_of_many_processes(
    case: tuple[Published, list[SpineRow]], cutoff: bool, limit: int, lazy: bool
) -> None:
    """Each part is a task of its own, which finds its histories itself, and so is each stretch that is written."""
    pytest.importorskip("daft")
    published, rows = case
    frame = spine_of(rows)
    with world() as here, pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "LEAST", 0)
        stored = {each.name: history(here, each, published[each.name]) for each in VIEWS}
        asked = here.ask(
            frame.lazy() if lazy else frame,
            REFERENCES,
            full_feature_names=True,
            created_cutoff=cutoff,
            memory_limit=limit,
            **spreading(),
        )
        asked.write_parquet(f"{here.folder}/written/")
        written = pl.read_parquet(here.folder / "written")
        answer = asked.collect()
    check(answer, rows, stored, cutoff=cutoff)
    assert written.equals(answer)


@pytest.mark.parametrize("off, found", [(-1, False), (0, True), (TTL // timedelta(microseconds=1), True)])
def test_nothing_from_the_future_and_nothing_expired(tmp_path: Path, off: int, found: bool) -> None:
    here = World(tmp_path, AIRPORT)
    here.publish(AIRPORT, [{"origin": "JFK", "at": NOON, "temp": 39.0, "gate": 7}])
    asked = pl.DataFrame({"origin": ["JFK"], "event_timestamp": [NOON + timedelta(microseconds=off)]})
    assert here.ask(asked, ["airport:temp"]).collect()["temp"].to_list() == [39.0 if found else None]
    one_more = asked.with_columns(pl.col("event_timestamp") + timedelta(microseconds=1))
    expired = off + 1 > TTL // timedelta(microseconds=1)
    assert (here.ask(one_more, ["airport:temp"]).collect()["temp"].to_list() == [None]) is (expired or off + 1 < 0)
