"""Online lookup against real SQLite, and against a dict that a child could check."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_assets.errors import (
    ContractBroken,
    MissingJoinKey,
    NameCollision,
    RequestError,
    TableMissing,
    UnknownFeature,
    WrongType,
)
from feature_assets.lookup import OnlineLookup, OnlineResponse
from feature_assets.online import open_online_store
from feature_assets.references import resolve
from feature_assets.registry import Registry
from feature_assets.spec import (
    PUBLICATION,
    Entity,
    Field,
    OnDemandViewSpec,
    RequestSource,
    ServiceSpec,
    ViewProjection,
    ViewSpec,
)
from feature_assets.transformations import declared_expressions, declared_function
from feature_assets.types import Bool, Float32, Float64, Int64, List, String, Timestamp, microseconds, moment
from tests.values import ALL_TYPES, KEY_TYPES, bits, values

NOW = datetime(2013, 2, 8, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
AIRPORT = Entity("airport", {"origin": String})


def view(name: str = "weather", *, entities: tuple[Entity, ...] = (AIRPORT,), **more: Any) -> ViewSpec:
    fields = {"features": (Field("temp", Float64), Field("wind", Float64))} | more
    return ViewSpec(name=name, entities=entities, event_timestamp="at", **fields)


def rows(of: ViewSpec, *given: tuple[Any, ...]) -> pl.DataFrame:
    """Rows of canonical values: join keys, event timestamp, features."""
    types = {**of.join_keys, "at": Timestamp, **{field.name: field.type for field in of.features}}
    columns = list(zip(*given, strict=True)) or [()] * len(types)
    frame = pl.DataFrame(
        [one.to_frame(name, list(column)) for (name, one), column in zip(types.items(), columns, strict=True)]
    )
    return frame.with_columns(pl.lit(1, pl.Int64).alias(PUBLICATION))


class Platform:
    """An online store with some views, and lookups on it at noon."""

    def __init__(self, folder: Path) -> None:
        self.store = open_online_store(f"sqlite:{folder / uuid4().hex}.db")
        self.objects: list[Any] = []

    def publish(self, of: ViewSpec, *given: tuple[Any, ...]) -> None:
        self.objects.append(of)
        self.store.prepare(of)
        if given:
            self.store.write(of, rows(of, *given), None)

    def lookup(self, *features: Any, at: datetime = NOW, **options: Any) -> OnlineLookup:
        plan = resolve(Registry.of(self.objects), list(features), **options)
        return OnlineLookup(plan, self.store, [__name__], clock=lambda: microseconds(at))

    def read(self, features: list[Any], entity_rows: Any, at: datetime = NOW, **options: Any) -> OnlineResponse:
        return self.lookup(*features, at=at, **options).read(entity_rows)


@pytest.fixture
def platform(tmp_path):
    made = Platform(tmp_path)
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("online")


@pytest.fixture
def weather(platform):
    platform.publish(view(), ("JFK", NOW - HOUR, 40.5, 11.0), ("LGA", NOW, None, 3.5))
    return platform


def test_the_answer_has_values_statuses_and_times_in_the_order_asked(weather):
    found = weather.read(["weather:wind", "weather:temp"], [{"origin": "LGA"}, {"origin": "EWR"}, {"origin": "JFK"}])
    assert found.names == ("origin", "wind", "temp")
    assert found.to_dict() == {"origin": ["LGA", "EWR", "JFK"], "wind": [3.5, None, 11.0], "temp": [None, None, 40.5]}
    assert found.rows()[2] == {"origin": "JFK", "wind": 11.0, "temp": 40.5}
    assert found.status("temp") == ["NULL_VALUE", "NOT_FOUND", "PRESENT"]
    assert found.statuses() == [["PRESENT"] * 3, ["PRESENT", "NOT_FOUND", "PRESENT"], found.status("temp")]
    assert found.event_timestamps("temp") == [NOW, None, NOW - HOUR]
    assert found.event_timestamps("origin") == [None, None, None]
    assert found["wind"] == [3.5, None, 11.0]
    assert len(found) == 3
    assert found.to_polars().schema == {"origin": pl.String, "wind": pl.Float64, "temp": pl.Float64}
    with pytest.raises(UnknownFeature, match=r"no column 'rain'. It has: origin, wind, temp"):
        found.status("rain")


def test_its_text_shows_the_table_and_what_is_not_there(weather):
    text = repr(weather.read(["weather:*"], [{"origin": "LGA"}, {"origin": "EWR"}]))
    assert text.startswith("OnlineResponse, 2 rows\n┌")
    assert text.endswith("temp: 1 NULL_VALUE, 1 NOT_FOUND\nwind: 1 PRESENT, 1 NOT_FOUND")


@pytest.mark.parametrize(
    "entity_rows",
    [
        [{"origin": "JFK"}, {"origin": "EWR"}],
        ({"origin": "JFK"}, {"origin": "EWR"}),
        {"origin": ["JFK", "EWR"]},
        {"origin": ("JFK", "EWR")},
        {"origin": pl.Series(["JFK", "EWR"])},
        {"origin": np.array(["JFK", "EWR"])},
        pl.DataFrame({"origin": ["JFK", "EWR"]}),
        pl.DataFrame({"origin": ["JFK", "EWR"]}).to_arrow(),
    ],
    ids=["dicts", "tuple of dicts", "columns", "tuples", "series", "numpy", "frame", "arrow"],
)
def test_entity_rows_come_in_many_forms(weather, entity_rows):
    assert weather.read(["weather:temp"], entity_rows).to_dict() == {"origin": ["JFK", "EWR"], "temp": [40.5, None]}


def test_the_answer_does_not_change_with_what_was_handed_in(weather):
    airports = ["JFK"]
    found = weather.read(["weather:temp"], {"origin": airports})
    airports[0] = "LGA"
    assert found["origin"] == ["JFK"]


@pytest.mark.parametrize(
    "entity_rows, error, why",
    [
        ([], RequestError, "There are no entity rows"),
        ({"origin": []}, RequestError, "There are no entity rows"),
        (None, MissingJoinKey, "looked up by 'origin', which the request lacks"),
        ([{"origin": "JFK"}, {}], MissingJoinKey, r"which entity row 1 lacks \(it has: nothing\)"),
        ({"dest": ["JFK"]}, MissingJoinKey, r"which the request lacks \(it has: dest\)"),
        ({"origin": ["JFK"], "dest": ["LGA"]}, RequestError, r"The request has 'dest', .* \(they need: origin\)"),
        ([{"origin": "JFK"}, {"origin": "JFK", "dest": 1}], RequestError, "Entity row 1 has 'dest'"),
        ([{"origin": "JFK"}, "LGA"], RequestError, "Entity row 1 is 'LGA'. Give each as a dict"),
        ([{"origin": "JFK"}, {"origin": None}], RequestError, "Join key 'origin' is null in row 1"),
        ([{"origin": 3}], WrongType, "Join key 'origin', row 0: int 3 is not a String"),
        ([{"origin": "JFK"}, {"origin": "\ud800"}], WrongType, "Join key 'origin', row 1: .* surrogate"),
        ([{"origin": "\ud83d"}, {"origin": "\ude00"}], WrongType, "Join key 'origin', row 0: .* surrogate"),
        ({"origin": "JFK"}, RequestError, "Column 'origin' of the request is 'JFK'. Give a list"),
        ({"origin": 3}, RequestError, "Column 'origin' of the request is 3. Give a list"),
        (3, RequestError, "Entity rows came as int"),
    ],
)
def test_a_request_that_cannot_be_answered_says_what_to_mend(weather, entity_rows, error, why):
    with pytest.raises(error, match=why):
        weather.read(["weather:temp"], entity_rows)


def test_columns_of_different_lengths_are_refused(platform):
    platform.publish(view(entities=(Entity("route", {"origin": String, "dest": String}),)))
    with pytest.raises(RequestError, match="differ in length: 'dest' 1, 'origin' 2"):
        platform.read(["weather:temp"], {"origin": ["a", "b"], "dest": ["c"]})


@pytest.mark.parametrize(
    "of, given_value, expected",
    [
        (Int64, "17", 17),
        (Int64, 17.0, 17),
        (Int64, np.int32(17), 17),
        (Timestamp, "2013-02-08T07:00:00+01:00", datetime(2013, 2, 8, 6, tzinfo=UTC)),
        (Timestamp, datetime(2013, 2, 8, 6), datetime(2013, 2, 8, 6, tzinfo=UTC)),
        (KEY_TYPES[KEY_TYPES.index(Bool)], True, True),
    ],
)
def test_a_key_may_come_in_any_form_that_its_type_reads(platform, of, given_value, expected):
    platform.publish(view(entities=(Entity("thing", {"thing": of}),)), (expected, NOW, 1.0, 2.0))
    found = platform.read(["weather:temp"], [{"thing": given_value}, {"thing": expected}])
    assert found.to_dict() == {"thing": [expected, expected], "temp": [1.0, 1.0]}


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 1.5, True, "x"])
def test_a_key_that_is_not_of_its_type_is_refused(platform, value):
    platform.publish(view(entities=(Entity("thing", {"thing": Int64}),)))
    with pytest.raises(WrongType, match="Join key 'thing', row 1: "):
        platform.read(["weather:temp"], {"thing": [1, value]})


class TestMaxAge:
    """What is older than the ttl is withheld; both ends are included."""

    OLDEST = NOW - HOUR
    TICK = timedelta(microseconds=1)

    def test_a_row_at_the_very_end_is_served_and_one_beyond_is_not(self, platform):
        of = view(ttl=HOUR)
        platform.publish(
            of, ("a", self.OLDEST, 1.0, 1.0), ("b", self.OLDEST - self.TICK, 2.0, 2.0), ("c", NOW, 3.0, None)
        )
        found = platform.read(["weather:*"], {"origin": ["a", "b", "c", "d"]})
        assert found["temp"] == [1.0, None, 3.0, None]
        assert found.status("temp") == ["PRESENT", "OUTSIDE_MAX_AGE", "PRESENT", "NOT_FOUND"]
        assert found.status("wind") == ["PRESENT", "OUTSIDE_MAX_AGE", "NULL_VALUE", "NOT_FOUND"]
        assert found.event_timestamps("temp") == [self.OLDEST, self.OLDEST - self.TICK, NOW, None]

    def test_a_row_from_ahead_of_the_clock_is_served(self, platform):
        platform.publish(view(ttl=HOUR), ("a", NOW + HOUR, 1.0, 1.0))
        assert platform.read(["weather:temp"], {"origin": ["a"]}).status("temp") == ["PRESENT"]

    def test_one_view_may_be_too_old_while_another_is_not(self, platform):
        platform.publish(view(ttl=HOUR), ("a", NOW - 2 * HOUR, 1.0, 1.0))
        platform.publish(view("traffic", features=(Field("cars", Int64),)), ("a", NOW - 2 * HOUR, 7))
        found = platform.read(["weather:temp", "traffic:cars"], {"origin": ["a"]})
        assert found.rows() == [{"origin": "a", "temp": None, "cars": 7}]
        assert found.statuses() == [["PRESENT"], ["OUTSIDE_MAX_AGE"], ["PRESENT"]]


def test_a_default_stands_in_where_there_is_no_row_and_only_there(platform):
    fields = (
        Field("temp", Float64, default=-1.0),
        Field("tags", List[String], default=["none"]),
        Field("wind", Float64),
    )
    of = view(features=fields, ttl=HOUR)
    platform.publish(of, ("null", NOW, None, None, None), ("old", NOW - 2 * HOUR, 5.0, ["x"], 5.0))
    found = platform.read(["weather:*"], {"origin": ["null", "old", "absent"]})
    assert found["temp"] == [None, -1.0, -1.0]
    assert found["tags"] == [None, ["none"], ["none"]]
    assert found["wind"] == [None, None, None]
    assert found.status("temp") == ["NULL_VALUE", "OUTSIDE_MAX_AGE", "NOT_FOUND"]


def test_one_view_twice_by_different_keys(weather):
    dest = ViewProjection("weather", ("temp",)).with_name("dest_weather").with_join_key_map({"origin": "dest"})
    found = weather.read(["weather:temp", dest], [{"origin": "JFK", "dest": "EWR"}], full_feature_names=True)
    assert found.rows() == [{"origin": "JFK", "dest": "EWR", "weather__temp": 40.5, "dest_weather__temp": None}]


def test_a_view_without_entities_has_one_answer_for_all(platform):
    platform.publish(view("rates", entities=(), features=(Field("usd", Float64),)), (NOW, 1.25))
    assert platform.read(["rates:usd"], None).to_dict() == {"usd": [1.25]}
    assert platform.read(["rates:usd"], {}).to_dict() == {"usd": [1.25]}
    assert platform.read(["rates:usd"], [{}, {}]).to_dict() == {"usd": [1.25, 1.25]}
    platform.publish(view(), ("JFK", NOW, 1.0, 2.0))
    found = platform.read(["rates:usd", "weather:temp"], {"origin": ["JFK", "EWR"]})
    assert found.rows() == [{"origin": "JFK", "usd": 1.25, "temp": 1.0}, {"origin": "EWR", "usd": 1.25, "temp": None}]


def test_a_view_that_was_never_materialised_says_so(platform):
    platform.objects.append(view())
    lookup = platform.lookup("weather:temp")
    with pytest.raises(TableMissing, match="feature-assets materialize weather"):
        lookup.read([{"origin": "JFK"}])
    platform.store.prepare(view())
    platform.store.write(view(), rows(view(), ("JFK", NOW, 1.0, 2.0)), None)
    assert lookup.read([{"origin": "JFK"}])["temp"] == [1.0]


def test_a_view_with_a_history_only_is_refused(platform):
    platform.objects.append(view(online=False))
    with pytest.raises(RequestError, match=r"online=False.*get_historical_features"):
        platform.lookup("weather:temp")


def test_a_feature_may_not_have_the_name_of_a_join_key(platform):
    platform.publish(view())
    platform.publish(
        view("flights", entities=(Entity("flight", {"flight": String}),), features=(Field("origin", String),))
    )
    with pytest.raises(NameCollision, match="'origin' would be the name of both a join key and flights:origin"):
        platform.lookup("weather:temp", "flights:origin")
    found = platform.lookup("weather:temp", "flights:origin", full_feature_names=True)
    assert found.read([{"origin": "a", "flight": "b"}]).names == (
        "origin",
        "flight",
        "weather__temp",
        "flights__origin",
    )


def test_masked_values_are_withheld_and_say_so(weather):
    found = weather.read(["weather:*"], {"origin": ["JFK", "EWR"]}).masked({"temp"}).masked(["unknown"])
    assert found.to_dict() == {"origin": ["JFK", "EWR"], "temp": [None, None], "wind": [11.0, None]}
    assert found.status("temp") == ["MASKED", "MASKED"]
    assert found.status("wind") == ["PRESENT", "NOT_FOUND"]


def feels_like(row: dict[str, Any]) -> dict[str, Any]:
    return {"feels": None if row["temp"] is None else row["temp"] - (row["wind"] or 0.0) / 2}


class TestOnDemand:
    @pytest.fixture
    def views(self, weather):
        warmer = OnDemandViewSpec(
            name="warmer",
            sources=(ViewProjection("weather", ("temp",)),),
            request=(RequestSource("asked", (Field("than", Float32), Field("note", String))),),
            features=(Field("by", Float64), Field("note_length", Int64)),
            transformation=declared_expressions(
                "warmer",
                {"by": pl.col("temp") - pl.col("than"), "note_length": pl.col("note").str.len_chars().cast(pl.Int64)},
            ),
        )
        felt = OnDemandViewSpec(
            name="felt",
            sources=(ViewProjection("weather"),),
            features=(Field("feels", Float64),),
            transformation=declared_function(feels_like, mode="row"),
        )
        double = OnDemandViewSpec(
            name="double",
            sources=(ViewProjection("felt"), ViewProjection("warmer", ("by",))),
            features=(Field("sum", Float64),),
            transformation=declared_expressions("double", {"sum": pl.col("feels") + pl.col("by")}),
        )
        weather.objects += [warmer, felt, double]
        weather.objects.append(
            ServiceSpec(name="model", features=(ViewProjection("double"), ViewProjection("weather")))
        )
        return weather

    def test_it_is_computed_from_features_and_the_request(self, views):
        asked = {"origin": ["JFK", "LGA", "EWR"], "than": [40.0, 0.5, 1], "note": ["ab", None, ""]}
        found = views.read(["warmer:by", "warmer:note_length"], asked)
        assert found.to_dict() == {
            "origin": ["JFK", "LGA", "EWR"],
            "by": [0.5, None, None],
            "note_length": [2, None, 0],
        }
        assert found.status("by") == ["PRESENT", "NULL_VALUE", "NULL_VALUE"]
        assert found.event_timestamps("by") == [None, None, None]

    def test_on_top_of_another_one_and_beside_its_sources(self, views):
        found = views.read(["model"], [{"origin": "JFK", "than": 40.0, "note": None}])
        assert found.rows() == [{"origin": "JFK", "sum": 35.5, "temp": 40.5, "wind": 11.0}]

    def test_request_data_is_needed_and_checked(self, views):
        with pytest.raises(
            RequestError, match="On-demand features need 'than' from the request, which entity row 0 lacks"
        ):
            views.read(["warmer:by"], [{"origin": "JFK", "note": "x"}])
        with pytest.raises(WrongType, match="'than', row 0: str 'x' is not a Float32"):
            views.read(["warmer:by"], [{"origin": "JFK", "than": "x", "note": "x"}])
        with pytest.raises(RequestError, match="'than', which none of the features needs"):
            views.read(["felt:feels"], [{"origin": "JFK", "than": 1.0}])

    def test_only_what_is_needed_is_read_and_returned(self, views):
        lookup = views.lookup("felt:feels")
        assert lookup.plan.join_keys == {"origin": String}
        assert lookup.read([{"origin": "JFK"}]).names == ("origin", "feels")

    def test_a_failure_names_the_view(self, views):
        def plan_with(expression):
            broken = OnDemandViewSpec(
                name="broken",
                sources=(ViewProjection("weather", ("temp",)),),
                features=(Field("parsed", Int64),),
                transformation=declared_expressions("broken", {"parsed": expression}),
            )
            return OnlineLookup(resolve(Registry.of([view(), broken]), ["broken:parsed"]), views.store)

        with pytest.raises(ContractBroken, match="On-demand view 'broken' cannot be computed"):
            plan_with(pl.col("temp").cast(pl.String).str.to_integer()).read([{"origin": "JFK"}])


TYPED = view(
    "typed",
    entities=(Entity("thing", {"code": String, "number": Int64}),),
    features=tuple(Field(f"f{position}", of) for position, of in enumerate(ALL_TYPES)),
    ttl=HOUR,
)
TYPED_KEYS = st.tuples(st.sampled_from(["", "a", "a\x00", "é", "1"]), st.integers(-1, 1))
EVENTS = st.integers(-2, 1).map(lambda hours: NOW + hours * HOUR) | st.sampled_from([NOW - HOUR, moment(0)])
TYPED_ROWS = st.dictionaries(
    TYPED_KEYS, st.tuples(EVENTS, st.tuples(*(st.none() | values(of) for of in ALL_TYPES))), max_size=4
)


@given(stored=TYPED_ROWS, asked=st.lists(TYPED_KEYS, min_size=1, max_size=6))
def test_every_type_comes_back_bit_for_bit_with_its_status(folder, stored, asked):
    platform = Platform(folder)
    platform.publish(TYPED, *((*key, event, *features) for key, (event, features) in stored.items()))
    found = platform.read(["typed:*"], [{"code": code, "number": number} for code, number in asked])
    platform.store.close()
    for position in range(len(ALL_TYPES)):
        expected = [_by_hand(stored.get(key), position) for key in asked]
        name = f"f{position}"
        assert found.status(name) == [status for status, _, _ in expected]
        assert bits(found[name]) == bits([value for _, value, _ in expected])
        assert found.event_timestamps(name) == [event for _, _, event in expected]
        again = ALL_TYPES[position].from_frame(found.to_polars()[name])
        assert bits(again) == bits(found[name])


def _by_hand(row: Any, position: int) -> tuple[str, Any, datetime | None]:
    if row is None:
        return "NOT_FOUND", None, None
    event, features = row
    if event < NOW - HOUR:
        return "OUTSIDE_MAX_AGE", None, event
    return ("NULL_VALUE" if features[position] is None else "PRESENT"), features[position], event


@pytest.mark.parametrize("of", KEY_TYPES, ids=str)
def test_keys_of_every_type_find_their_row_and_no_other(folder, of):
    @given(st.lists(values(of), min_size=1, max_size=6, unique_by=repr), st.lists(values(of), min_size=1, max_size=3))
    def check(stored, others):
        platform = Platform(folder)
        keyed = view("keyed", entities=(Entity("thing", {"thing": of}),), features=(Field("position", Int64),))
        known = {key: position for position, key in enumerate(stored)}
        platform.publish(keyed, *((key, NOW, position) for key, position in known.items()))
        asked = [*stored, *others]
        found = platform.read(["keyed:position"], {"thing": asked})
        platform.store.close()
        assert found["position"] == [known.get(key) for key in asked]
        assert bits(found["thing"]) == bits(asked)

    check()


def test_dates_are_not_taken_for_timestamps(platform):
    platform.publish(view(entities=(Entity("thing", {"day": ALL_TYPES[9]}),)))
    with pytest.raises(WrongType, match="is not a Date"):
        platform.read(["weather:temp"], {"day": [date(2020, 1, 1), datetime(2020, 1, 1)]})
