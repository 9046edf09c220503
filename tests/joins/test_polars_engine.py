"""The engine on plain frames, compared with both oracles."""

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets.errors import RequestError
from feature_assets.joins import FOUND, ROWS_HELD, TIME, History, engine_named
from feature_assets.spec import PUBLICATION
from tests.promises.oracle import Moment, Row, by_loop, by_sql

TTL = 1_000
NOW = 1_700_000_000_000_000
CLOCK = pl.Datetime("us", "UTC")

Case = tuple[list[Row], list[Moment], int | None, bool]

# Glued together, ("a", "bc") and ("ab", "c") would be one key.
PARTS: tuple[tuple[Any, ...], ...] = (("a", "ab", ""), ("bc", "c"), (0, 1))


def tick(step: int, off: int) -> int:
    """Times meet, miss by a microsecond, and lie on both sides of the edge of the ttl."""
    return NOW + step * TTL + off


ticks = st.builds(tick, st.integers(0, 4), st.sampled_from([0, -1, 1]))


@st.composite
def drawn(draw: st.DrawFn) -> Case:
    """Cases that shrink to the smallest ones."""
    parts = [st.sampled_from(part) for part in PARTS[: draw(st.integers(0, 3))]]
    asked = st.tuples(*(part | st.none() for part in parts))
    rows = draw(st.lists(st.tuples(st.tuples(*parts), ticks, st.none() | ticks), max_size=12))
    publications = draw(st.permutations(range(len(rows))))
    history = [Row(*row, publication, n) for n, (row, publication) in enumerate(zip(rows, publications, strict=True))]
    moments = draw(st.lists(st.builds(Moment, asked, st.none() | ticks), max_size=12))
    return history, moments, draw(st.sampled_from([None, TTL, TTL * 2])), draw(st.booleans())


def rolled(seed: int) -> Case:
    """Cases in which rows of few keys crowd together, which are hardly ever drawn."""
    dice = Random(seed)
    width = dice.randrange(4)
    keys = [tuple(dice.choice(part) for part in PARTS[:width]) for _ in range(3)]

    def time() -> int:
        return tick(dice.randrange(5), dice.choice([0, 0, -1, 1]))

    count = dice.choice([5, 15, 30])
    history = [
        Row(dice.choice(keys), time(), dice.choice([None, time(), time()]), publication, n)
        for n, publication in enumerate(dice.sample(range(count), count))
    ]
    odd = [tuple(dice.choice([*part, None]) for part in PARTS[:width])]
    moments = [
        Moment(dice.choice(keys * 3 + odd), dice.choice([*(time() for _ in range(9)), None])) for _ in range(count)
    ]
    return history, moments, dice.choice([None, TTL, TTL * 2]), dice.random() < 0.7


def cases() -> st.SearchStrategy[Case]:
    return drawn() | st.integers(0, 2**32).map(rolled)


def looked_up(
    history: list[Row],
    moments: list[Moment],
    ttl: int | None,
    *,
    cutoff: bool,
    created: bool = True,
    pieces: int = 1,
    held: int = ROWS_HELD,
) -> list[int | None]:
    width = len(moments[0].keys) if moments else len(history[0].keys) if history else 0
    kinds = [pl.String, pl.String, pl.Int64][:width]
    asked = pl.DataFrame(
        {TIME: [one.time for one in moments], **{f"key:{n}": [one.keys[n] for one in moments] for n in range(width)}},
        schema={TIME: pl.Int64, **{f"key:{n}": kind for n, kind in enumerate(kinds)}},
    ).with_columns(pl.col(TIME).cast(CLOCK))
    rows = pl.DataFrame(
        {
            **{f"k{n}": [row.keys[n] for row in history] for n in range(width)},
            "at": [row.event for row in history],
            "made": [row.created for row in history],
            PUBLICATION: [row.publication for row in history],
            "value": [row.value for row in history],
        },
        schema={
            **{f"k{n}": kind for n, kind in enumerate(kinds)},
            "at": pl.Int64,
            "made": pl.Int64,
            PUBLICATION: pl.Int64,
            "value": pl.Int64,
        },
    ).with_columns(pl.col("at", "made").cast(CLOCK))
    keys = tuple((f"k{n}", f"key:{n}") for n in range(width))
    asked_of = History(
        rows.lazy(),
        keys,
        "at",
        "made" if created else None,
        cutoff,
        None if ttl is None else timedelta(microseconds=ttl),
        ("value",),
        len(history),
    )
    lookup = engine_named("polars")(asked, held).lookup(asked_of)
    step = -(-len(moments) // pieces) or 1
    frames = [lookup.values(at, min(step, len(moments) - at)) for at in range(0, len(moments), step)]
    answers = pl.concat(frames or [lookup.values(0, 0)])
    assert answers.columns == ["value", FOUND]
    assert answers[FOUND].to_list() == answers["value"].is_not_null().to_list()
    return answers["value"].to_list()


@given(cases(), st.integers(1, 3))
@settings(max_examples=300)
def test_each_moment_gets_what_both_oracles_say(case: Case, pieces: int) -> None:
    history, moments, ttl, cutoff = case
    looped = [by_loop(moment, history, ttl=ttl, cutoff=cutoff) for moment in moments]
    assert looped == by_sql(moments, history, ttl=ttl, cutoff=cutoff)
    answers = looked_up(history, moments, ttl, cutoff=cutoff, pieces=pieces)
    assert answers == [None if row is None else row.value for row in looped]


@given(cases())
def test_without_a_created_timestamp_the_publication_decides(
    case: Case,
) -> None:
    history, moments, ttl, cutoff = case
    plain = [row._replace(created=None) for row in history]
    expected = [by_loop(moment, plain, ttl=ttl, cutoff=cutoff) for moment in moments]
    answers = looked_up(plain, moments, ttl, cutoff=cutoff, created=False)
    assert answers == [None if row is None else row.value for row in expected]


@given(cases(), st.integers(0, 4))
@settings(max_examples=200)
def test_a_span_of_time_after_the_other_gives_the_same(case: Case, held: int) -> None:
    history, moments, ttl, cutoff = case
    expected = [by_loop(moment, history, ttl=ttl, cutoff=cutoff) for moment in moments]
    answers = looked_up(history, moments, ttl, cutoff=cutoff, held=held)
    assert answers == [None if row is None else row.value for row in expected]


def test_a_key_with_a_long_history_is_joined_span_by_span() -> None:
    """A share of the keys at a time would be all of it at once."""
    history = [Row((), n * 10, None, n, n) for n in range(200)]
    moments = [Moment((), n * 10 + 5) for n in range(200)]
    assert looked_up(history, moments, None, cutoff=True, held=7) == list(range(200))


def test_a_row_that_was_created_late_hides_nothing_before_it_was() -> None:
    """An as-of join on the event alone stops at the third row and finds nothing at 25."""
    history = [
        Row(("a",), 10, 10, 1, 0),
        Row(("a",), 15, 40, 2, 1),
        Row(("a",), 20, 30, 3, 2),
        Row(("a",), 12, 35, 4, 3),
    ]
    moments = [Moment(("a",), time) for time in (9, 10, 25, 30, 36, 45)]
    assert looked_up(history, moments, None, cutoff=True) == [None, 0, 0, 2, 2, 2]
    assert looked_up(history, moments, None, cutoff=False) == [None, 0, 2, 2, 2, 2]


def test_a_row_that_was_created_late_is_not_measured_by_other_keys() -> None:
    history = [Row(("a",), 10, 30, 1, 0), Row(("b",), 20, 20, 2, 1)]
    assert looked_up(history, [Moment((key,), 40) for key in "abc"], None, cutoff=True) == [0, 1, None]


@pytest.mark.parametrize("off, found", [(TTL - 1, True), (TTL, True), (TTL + 1, False), (0, True), (-1, False)])
def test_both_ends_count_to_the_microsecond(off: int, found: bool) -> None:
    assert looked_up([Row(("a",), NOW, None, 1, 7)], [Moment(("a",), NOW + off)], TTL, cutoff=True) == [
        7 if found else None
    ]


def test_a_ttl_longer_than_time_itself_cuts_nothing() -> None:
    first = int(datetime(1, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
    last = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp()) * 1_000_000
    everlasting = timedelta.max // timedelta(microseconds=1)
    assert looked_up([Row(("a",), first, None, 1, 7)], [Moment(("a",), last)], everlasting, cutoff=True) == [7]


def test_an_engine_is_chosen_by_name() -> None:
    with pytest.raises(RequestError, match=r"no join engine 'spark'\. Known: .*polars"):
        engine_named("spark")
