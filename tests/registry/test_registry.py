"""The registry as a value: lookups, listing, consistency, and its one JSON."""

import json
import re
import subprocess
import sys
from datetime import timedelta
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_assets.checks import InRange, NotNull, Unique
from feature_assets.errors import DeclarationError, RegistryUnreadable, UnknownService, UnknownView
from feature_assets.expressions import to_data
from feature_assets.registry import Registry, check_registry, read_registry
from feature_assets.spec import (
    LONGEST,
    DeltaSource,
    DynamicPartitions,
    Entity,
    Expressions,
    Field,
    Function,
    RequestSource,
    StaticPartitions,
    ViewProjection,
    canonical_json,
    digest,
    from_json,
)
from feature_assets.types import Float64, Int64, String
from tests.registry.declared import DAILY, on_demand, service, source, view, whole
from tests.values import ALL_TYPES, KEY_TYPES, values


class TestLookup:
    def test_views_are_found_by_name_and_version(self) -> None:
        first, second = view(), view(version=2)
        registry = Registry(views={"weather": second}, superseded={"weather@v1": first})
        assert registry.view("weather") is second
        assert registry.view("weather", 2) is second
        assert registry.view("weather", 1) is first
        assert registry.versions("weather") == (1, 2)

    @pytest.mark.parametrize(
        "name, version, mend",
        [
            ("wether", None, "Did you mean 'weather'?"),
            ("weather", 7, "has no version 7 in the published registry. It has: 1."),
            ("chill", None, "'chill' is an on-demand view"),
            ("zzz", None, "Known views: chill, weather."),
        ],
    )
    def test_an_unknown_view_names_what_there_is(self, name: str, version: int | None, mend: str) -> None:
        with pytest.raises(UnknownView, match=re.escape(mend)):
            whole().view(name, version)

    def test_an_unknown_service_names_the_nearest(self) -> None:
        with pytest.raises(UnknownService, match="Did you mean 'delay'"):
            whole().service("delays")

    def test_features_are_listed_with_the_entities_they_are_found_by(self) -> None:
        listed = list(whole().features())
        assert [one.reference for one in listed] == ["chill:felt", "weather:temp", "weather:wind"]
        assert [one.entities for one in listed] == [("airport",)] * 3
        assert [one.version for one in listed] == [None, 1, 1]
        assert listed[0].join_keys == {"origin": String}

    def test_one_name_for_two_different_things_is_refused(self) -> None:
        assert Registry.of([view(), view()]).views == {"weather": view()}
        with pytest.raises(DeclarationError, match="View 'weather' is declared twice, differently"):
            Registry.of([view(), view(description="other")])


CAR = Entity("car", {"origin": Int64})
MIXED = (ViewProjection("weather"), ViewProjection("cars"))


@pytest.mark.parametrize(
    "objects, message",
    [
        pytest.param([service()], "service 'delay': .*no feature view 'weather'", id="unknown view"),
        pytest.param(
            [view(), service("delay", ViewProjection("weather", ("tmp",)))],
            "service 'delay': .*no feature 'tmp'. Did you mean 'temp'",
            id="unknown feature",
        ),
        pytest.param(
            [view(), service("delay", ViewProjection("weather", version=2))],
            "service 'delay': .*no version 2",
            id="unknown version",
        ),
        pytest.param(
            [view(), service("delay", ViewProjection("weather").with_join_key_map({"orgin": "dest"}))],
            "service 'delay': .*no join key 'orgin'",
            id="unknown join key",
        ),
        pytest.param(
            [
                view(),
                on_demand("a", sources=(ViewProjection("b"),)),
                on_demand("b", sources=(ViewProjection("a"),)),
            ],
            "On-demand view 'a': .*circle: a → b → a",
            id="cycle",
        ),
        pytest.param(
            [view(), on_demand(request=(RequestSource("r", (Field("temp", Float64),)),))],
            "On-demand view 'chill' would see two inputs named 'temp'.*full_feature_names=True",
            id="input names",
        ),
        pytest.param(
            [view(), view("cars", entities=(CAR,)), service("delay", *MIXED)],
            "service 'delay': .*'origin' would be looked up as a String and, in view 'cars', as a Int64.*with_join_key_map",
            id="types of a join key",
        ),
        pytest.param([view(), on_demand("weather")], "both a view and an on-demand view", id="shared name"),
        pytest.param([view(), view("Weather")], "differ in nothing but case", id="case"),
        pytest.param(
            [view(), view("cars", entities=(Entity("airport", {"code": String}),))],
            "Entity 'airport' is found by origin: String in view 'weather' and by code: String",
            id="entity declared twice",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_mend(objects: list[Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        check_registry(Registry.of(objects))


def test_what_goes_together_passes() -> None:
    check_registry(whole())
    mapped = ViewProjection("cars").with_join_key_map({"origin": "garage"})
    twice = (ViewProjection("weather"), ViewProjection("weather", alias="there", join_key_map={"origin": "dest"}))
    check_registry(Registry.of([view(), view("cars", entities=(CAR,)), service("delay", *twice, mapped)]))
    warmer = Expressions({"felt": to_data(pl.col("there__temp") - pl.col("weather__temp"), "chill")})
    check_registry(Registry.of([view(), on_demand(sources=twice, full_feature_names=True, transformation=warmer)]))


def test_the_owner_is_named_where_a_foreign_service_breaks() -> None:
    registry = Registry(services={"delay": service()}, owners={"service/delay": "risk"})
    with pytest.raises(DeclarationError, match="code location 'risk'"):
        check_registry(registry)


class TestUnreadable:
    def newer(self, **changed: Any) -> bytes:
        return json.dumps(json.loads(canonical_json(whole())) | changed).encode()

    @pytest.mark.parametrize(
        "data",
        [b"", b"\x00\xff", b"null", b"[]", canonical_json(whole())[:-9], b"[" * 100_000],
        ids=["empty", "binary", "null", "list", "truncated", "deep"],
    )
    def test_damage_is_told_with_the_way_back(self, data: bytes) -> None:
        with pytest.raises(RegistryUnreadable, match=r"^here is damaged .*feature-assets registry rollback"):
            read_registry(data, "here")

    def test_a_newer_format_asks_for_an_upgrade(self) -> None:
        for data in (self.newer(format=2), self.newer(format=2, streams={})):
            with pytest.raises(RegistryUnreadable, match=r"format 2, and this release .* reads format 1. Upgrade"):
                read_registry(data, "here")

    def test_an_unknown_field_asks_for_an_upgrade(self) -> None:
        with pytest.raises(RegistryUnreadable, match=r"unknown field `streams`. Upgrade"):
            read_registry(self.newer(streams={}), "here")
        weather = json.loads(canonical_json(view())) | {"policy": 1}
        with pytest.raises(RegistryUnreadable, match=r"unknown field `policy` .*Upgrade"):
            read_registry(self.newer(views={"weather": weather}), "here")

    def test_a_type_of_a_newer_release_asks_for_an_upgrade(self) -> None:
        data = canonical_json(whole()).replace(b"Float64", b"Float16")
        with pytest.raises(RegistryUnreadable, match="'Float16' is not a feature type"):
            read_registry(data, "here")


_names = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
_texts = st.text(max_size=8)
_tags = st.dictionaries(_texts, _texts, max_size=2)


@st.composite
def _fields(draw: st.DrawFn, name: str) -> Field:
    of = draw(st.sampled_from(ALL_TYPES))
    return Field(name, of, draw(_texts), draw(_tags), draw(st.none() | values(of)), draw(st.none() | _texts))


@st.composite
def _entities(draw: st.DrawFn) -> Entity:
    keys = draw(st.dictionaries(_names.map("key_{}".format), st.sampled_from(KEY_TYPES), min_size=1, max_size=3))
    return Entity(draw(_names), keys, draw(_texts), draw(_tags))


@st.composite
def _views(draw: st.DrawFn, name: str, version: int) -> Any:
    features = [draw(_fields(feature)) for feature in draw(st.lists(_names, min_size=1, max_size=3, unique=True))]
    first = features[0].name
    return view(
        name,
        version=version,
        entities=tuple(draw(st.lists(_entities(), max_size=1))),
        features=tuple(features),
        event_timestamp="event_at",
        created_timestamp=draw(st.sampled_from([None, "created_at"])),
        ttl=draw(st.none() | st.timedeltas(timedelta(microseconds=1), LONGEST)),
        partitions=draw(
            st.sampled_from([{}, {"partition": DAILY}, {"day": DAILY, "region": StaticPartitions(("eu", "us"))}])
            | _names.map(lambda name: {"partition": DynamicPartitions(name)})
        ),
        checks=draw(st.sampled_from([(), (NotNull(first), Unique((first,))), (InRange(first, minimum=1, name="n"),)])),
        tags=draw(_tags),
        upstream=tuple(draw(st.lists(_texts, max_size=2))),
        online=draw(st.booleans()),
        deprecated=draw(st.none() | _texts),
    )


@st.composite
def registries(draw: st.DrawFn) -> Registry:
    """Anything that can be declared; not all of it goes together."""
    versions = draw(st.dictionaries(_names, st.integers(1, 3), max_size=3))
    views = {name: draw(_views(name, version)) for name, version in versions.items()}
    former = {f"{name}@v9": draw(_views(name, 9)) for name in list(versions)[:1]}
    projections = tuple(
        ViewProjection(name, draw(st.none() | st.just(("a", "b"))), alias=draw(st.none() | _names)) for name in views
    )
    transformation = draw(
        st.sampled_from([Expressions({"felt": "é"}), Function("pkg.mod:f", "ab" * 32), Function("m:f", "", "row")])
    )
    return Registry(
        views=views,
        superseded=former,
        on_demand={"computed": on_demand("computed", transformation=transformation, sources=projections)},
        services={"served": service("served", ViewProjection("weather"), tags=draw(_tags))},
        sources={
            "files": source(field_mapping={"a": "b"}),
            "table": DeltaSource(name="table", path=f"lake/{draw(_texts)}"),
        },
        owners={f"view/{name}": draw(_texts) for name in views},
    )


@given(registries())
def test_a_registry_reads_back_as_it_was_with_the_same_bytes(registry: Registry) -> None:
    data = canonical_json(registry)
    back = read_registry(data, "here")
    assert back == registry
    assert canonical_json(back) == data
    assert back.digest == registry.digest == digest(registry)
    # Equality of dicts says nothing about order, which the columns of a view have.
    assert [one.columns for one in back.views.values()] == [registry.views[name].columns for name in back.views]


def test_join_keys_keep_their_order_through_the_registry() -> None:
    entity = Entity("leg", {"z": String, "a": Int64})
    assert list(from_json(canonical_json(entity), Entity).join_keys) == list(entity.join_keys)
    assert entity == Entity("leg", {"a": Int64, "z": String})


def test_digest_is_of_the_stored_bytes_and_not_carried_into_another_value() -> None:
    spaced = json.dumps(json.loads(canonical_json(whole()))).encode()
    stored = read_registry(spaced, "here")
    assert stored == whole()
    assert stored.digest != whole().digest
    assert msgspec.structs.replace(stored).digest == whole().digest


def test_eight_threads_may_read_their_first_registry_at_once() -> None:
    script = """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from feature_assets.registry import read_registry
barrier = Barrier(8)
def read(_):
    barrier.wait()
    return read_registry(b'{"format":1}', "here").digest
with ThreadPoolExecutor(8) as pool:
    assert len(set(pool.map(read, range(8)))) == 1
"""
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], check=True)
