"""Pushes that are looked at together come out as if each had come alone: the same rows, the same errors."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets.access import Access, Principal
from feature_assets.checks import Expression, InRange, NotNull
from feature_assets.expressions import to_data
from feature_assets.push.admission import PUSH, Admission, Admitted, Push, Taken
from feature_assets.registry import Registry
from feature_assets.spec import (
    EVENT_ID,
    PARTITION,
    Entity,
    Expressions,
    Field,
    PushSource,
    StaticPartitions,
    Stream,
    TimePartitions,
    ViewSpec,
)
from feature_assets.testing.values import ALL_TYPES, optional, values
from feature_assets.types import UUID, Bool, Date, Float64, Int64, Json, String, Timestamp, Vector

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
DAILY = TimePartitions(cron="0 0 * * *", timezone="Europe/Berlin", start="2024-01-01T00:00:00+01:00", fmt="%Y-%m-%d")
TRIPS = ViewSpec(
    name="trips",
    entities=(Entity("driver", {"driver_id": Int64}),),
    features=(Field("km", Float64), Field("city", String)),
    event_timestamp="ended",
    partitions={"partition": DAILY},
    checks=(InRange("km", minimum=0), NotNull("city", severity="warn")),
    stream=Stream("rides"),
)
LONG = msgspec.structs.replace(
    TRIPS,
    name="long_trips",
    partitions={},
    checks=(),
    stream=Stream("rides", Expressions({"km": to_data(pl.col("km") * 1000, "km")})),
)
CREATED = ViewSpec(
    name="told",
    entities=(Entity("place", {"place": String}),),
    features=(Field("number", Int64),),
    event_timestamp="at",
    created_timestamp="told_at",
    partitions={"partition": StaticPartitions(keys=("eu", "us"))},
    stream=Stream("tellings"),
)
BESIDE_OTHERS = ViewSpec(
    name="beside",
    entities=(Entity("driver", {"driver_id": Int64}),),
    features=(Field("km", Float64),),
    event_timestamp="ended",
    checks=(Expression(name="few", condition=pl.col("km").max() < 100),),
    stream=Stream("counted"),
)
TENANTS = ViewSpec(
    name="orders",
    entities=(Entity("tenant", {"tenant": String}),),
    features=(Field("amount", Int64),),
    event_timestamp="at",
    row_filter={"tenant": "tenant"},
    stream=Stream("bought"),
)
SOURCES = (
    PushSource(
        name="rides",
        schema=(
            Field("driver_id", Int64),
            Field("ended", Timestamp),
            Field("km", Float64),
            Field("city", String),
            Field("id", String),
        ),
        event_id="id",
    ),
    PushSource(name="tellings", unknown_fields="drop"),
    PushSource(name="counted"),
    PushSource(name="bought"),
)
REGISTRY = Registry.of([TRIPS, LONG, CREATED, BESIDE_OTHERS, TENANTS, *SOURCES])

TIMES = st.sampled_from(
    [NOW, NOW - timedelta(days=3), NOW + timedelta(hours=1), datetime(2023, 1, 1, tzinfo=UTC), None, "yesterday"]
) | st.datetimes(datetime(2024, 3, 30), datetime(2024, 4, 2)).map(lambda at: at.replace(tzinfo=UTC))
# Mostly what is right: else no group would ever be taken together.
GOOD_TIMES = st.sampled_from([NOW, NOW - timedelta(hours=2), NOW - timedelta(days=30)])


def rows(names: dict[str, tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]]) -> st.SearchStrategy[Any]:
    good = st.fixed_dictionaries({name: one for name, (one, _) in names.items()})
    any_ = st.fixed_dictionaries({name: one | other for name, (one, other) in names.items()})
    right = st.lists(good, min_size=1, max_size=3)
    return right | right | right | st.lists(any_, max_size=3)


NUMBERS = st.floats(0, 50) | st.just(2.0)
RIDES = rows(
    {
        "driver_id": (st.integers(1, 3), st.sampled_from([None, "x", 2**70])),
        "ended": (GOOD_TIMES, TIMES),
        "km": (NUMBERS, st.sampled_from([-1.0, None, "far"])),
        "city": (st.sampled_from(["Ulm", "Köln"]), st.sampled_from([None, 7])),
        "id": (st.sampled_from(["a", "b", "c"]), st.none()),
    }
)
TELLINGS = rows(
    {
        "place": (st.sampled_from(["JFK", "LGA"]), st.none()),
        "at": (GOOD_TIMES, TIMES),
        "number": (st.integers(0, 3), st.none()),
        "partition": (st.sampled_from(["eu", "us"]), st.sampled_from(["asia", None])),
    }
)
COUNTED = rows(
    {"driver_id": (st.integers(1, 3), st.none()), "ended": (GOOD_TIMES, TIMES), "km": (NUMBERS, st.just(200.0))}
)
BOUGHT = rows(
    {
        "tenant": (st.just("acme"), st.just("globex")),
        "at": (GOOD_TIMES, TIMES),
        "amount": (st.integers(0, 3), st.none()),
    }
)
ACME = Access(REGISTRY).pushing(Principal.of("shop", "features:push", claims={"tenant": "acme"}), "bought").enforce()


def as_frame(given: list[dict[str, Any]]) -> Any:
    try:
        return pl.DataFrame(given) if given else given
    except (pl.exceptions.PolarsError, TypeError, OverflowError):
        return given


def pushes_of(source: str, given: st.SearchStrategy[Any], **more: Any) -> st.SearchStrategy[Push]:
    forms = given | given | given.map(as_frame)
    return st.builds(Push, st.just(source), forms, st.none() | st.sampled_from(["e1", "e2"]), **more)


KINDS = (
    pushes_of("rides", RIDES),
    pushes_of(
        "rides",
        RIDES.map(lambda given: [{k: v for k, v in row.items() if k != "id"} for row in given]),
        only=st.just("trips"),
    ),
    pushes_of("tellings", TELLINGS),
    pushes_of("counted", COUNTED),
    pushes_of("bought", BOUGHT, decision=st.sampled_from([ACME, None])),
    st.just(Push("nothing", [])),
)
# Mostly pushes of one kind, which can be looked at together.
PUSHES = st.sampled_from(KINDS).flatmap(lambda kind: st.lists(kind, min_size=2, max_size=6)) | st.lists(
    st.one_of(*KINDS), min_size=1, max_size=6
)


def told(outcome: Any) -> Any:
    return outcome if isinstance(outcome, Taken) else (type(outcome), str(outcome))


def rows_by_view(admitted: Admitted, places: list[int]) -> dict[str, list[Any]]:
    """The rows by view, each with the place that its push has among all."""
    return {
        each.view.name: [
            (places[row.pop(PUSH)], *row.values())
            for row in frame.select(*each.view.columns, PARTITION, EVENT_ID, PUSH).iter_rows(named=True)
        ]
        for each, frame in admitted.rows
    }


@settings(max_examples=150, deadline=None)
@given(PUSHES)
def test_together_as_alone(pushes: list[Push]) -> None:
    together = Admission(REGISTRY, ()).of(pushes, NOW)
    alone = [Admission(REGISTRY, ()).of([push], NOW) for push in pushes]
    assert [told(one) for one in together.outcomes] == [told(one.outcomes[0]) for one in alone]
    expected: dict[str, list[Any]] = {}
    for at, one in enumerate(alone):
        for name, found in rows_by_view(one, [at]).items():
            expected.setdefault(name, []).extend(found)
    assert rows_by_view(together, list(range(len(pushes)))) == expected


def by_contract(push: Push) -> Any:
    """What is made of a push where nothing is taken for plain: by the path that materialised rows take."""
    admission = Admission(REGISTRY, ())
    try:
        inlet = admission._inlet(push.source, push.only)
        frame = inlet.frame([inlet.read(0, push)])
        found = {}
        for each in inlet.recipients:
            made = each._transform(frame)
            created = each.view.created_timestamp
            if created is not None and created not in made.columns:
                made = made.with_columns(pl.lit(NOW).alias(created))
            found[each.view.name] = each._by_contract(made, NOW).select(*each.view.columns, PARTITION).rows()
    except Exception as error:  # noqa: BLE001 (compared below)
        return type(error), str(error)
    return found


@settings(max_examples=150, deadline=None)
@given(
    pushes_of("rides", RIDES)
    | pushes_of("tellings", TELLINGS)
    | pushes_of("counted", COUNTED)
    | pushes_of("bought", BOUGHT)
)
def test_what_is_plainly_right_is_what_the_contract_gives(push: Push) -> None:
    expected, found = by_contract(push), Admission(REGISTRY, ()).of([push], NOW)
    if isinstance(expected, tuple):
        assert told(found.outcomes[0]) == expected
    else:
        assert isinstance(found.outcomes[0], Taken)
        assert {
            each.view.name: frame.select(*each.view.columns, PARTITION).rows() for each, frame in found.rows
        } == expected


TYPED = ViewSpec(
    name="typed",
    entities=(Entity("thing", {"id": Int64}),),
    features=tuple(Field(f"f{number}", of) for number, of in enumerate(ALL_TYPES)),
    event_timestamp="at",
    stream=Stream("things"),
)
THINGS = Registry.of([TYPED, PushSource(name="things")])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(*map(optional, ALL_TYPES)), min_size=1, max_size=2), min_size=2, max_size=4))
def test_values_of_every_type_are_pushed_together_bit_for_bit(pieces: list[list[tuple[Any, ...]]]) -> None:
    pushes = [
        Push("things", [{"id": 1, "at": NOW, **{f"f{n}": value for n, value in enumerate(row)}} for row in piece])
        for piece in pieces
    ]
    together, alone = Admission(THINGS, ()), Admission(THINGS, ())
    found = together.of(pushes, NOW)
    assert all(isinstance(one, Taken) for one in found.outcomes)
    ((_, frame),) = found.rows
    parts = [alone.of([push], NOW).rows[0][1] for push in pushes]
    assert frame.drop(PUSH).equals(pl.concat(parts).drop(PUSH))


WRONG = {
    UUID: ["0", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"],
    Json: ["{"],
    Date: [datetime(2024, 1, 1)],
    Bool: [1],
    Vector[2]: [[1.0], [1.0, None]],
}


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(list(WRONG)))
def test_one_wrong_value_refuses_its_own_push_alone(data: st.DataObject, of: Any) -> None:
    view = ViewSpec(
        name="v", entities=(Entity("e", {"id": Int64}),), features=(Field("x", of),), event_timestamp="at", stream=Stream("s")
    )  # fmt: skip
    good = [Push("s", [{"id": n, "at": NOW, "x": data.draw(values(of))}]) for n in range(3)]
    bad = Push("s", pl.DataFrame({"id": [9], "at": [NOW], "x": [data.draw(st.sampled_from(WRONG[of]))]}, strict=False))
    found = Admission(Registry.of([view, PushSource(name="s")]), ()).of([good[0], bad, *good[1:]], NOW)
    assert [isinstance(one, Taken) for one in found.outcomes] == [True, False, True, True]
    assert found.rows[0][1]["id"].to_list() == [0, 1, 2]


def test_an_event_id_belongs_to_whoever_the_rows_belong_to() -> None:
    """Else a tenant could take the ids of another's events, whose rows would be known already when they come."""
    pushes = [Push("bought", [{"tenant": name, "at": NOW, "amount": 1}], "e1") for name in ("acme", "globex", "acme")]
    ((_, frame),) = Admission(REGISTRY, ()).of(pushes, NOW).rows
    first, second, third = frame[EVENT_ID]
    assert first == third != second


def test_what_is_wrong_is_mended_where_the_rows_come_from() -> None:
    row = {"driver_id": None, "ended": NOW, "km": 1.0, "city": "Ulm", "id": "a"}
    (error,) = Admission(REGISTRY, ()).of([Push("rides", [row])], NOW).outcomes
    assert "Drop those rows" in str(error)
    assert "before pushing to 'rides'" in str(error)
    assert "long_trips()" not in str(error)
    assert "trips()" not in str(error)
