"""A store on the other side of HTTP answers, and refuses, as one in this process does."""

import asyncio
import math
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_assets import (
    FeatureStore,
    Forbidden,
    MissingJoinKey,
    NameCollision,
    RequestError,
    TableMissing,
    Unauthenticated,
    UnknownFeature,
    UnknownService,
    UnknownView,
    WrongType,
)
from feature_assets.access import Principal
from feature_assets.errors import ConfigurationError
from feature_assets.lookup import OnlineResponse
from feature_assets.remote import RemoteFeatureStore
from feature_assets.spec import Entity, Field, FileSource, ServiceSpec, ViewProjection
from feature_assets.testing.values import ALL_TYPES, KEY_TYPES, bits, optional, values
from feature_assets.types import Int64, String
from tests.server.conftest import DRIVERS, HOUR, NOW, SECRET, WEATHER, Platform, fill, served, view

TYPED = view(
    "typed",
    *(Field(f"f{number}", of) for number, of in enumerate(ALL_TYPES)),
    entity=Entity("thing", {"id": Int64}),
    ttl=timedelta(hours=6),
)
BY_TYPE = [
    view(f"by{number}", Field("number", Int64), entity=Entity(f"key{number}", {f"k{number}": of}))
    for number, of in enumerate(KEY_TYPES)
]
LATE = view("late", Field("x", String))
MODEL = ServiceSpec(name="model", features=(ViewProjection("typed"),))


@pytest.fixture(scope="module")
def platform(tmp_path_factory) -> Iterator[Platform]:
    made = Platform(tmp_path_factory.mktemp("remote"))
    fill(made)
    for one in (TYPED, *BY_TYPE, MODEL):
        made.add(one)
    made.objects.append(LATE)
    made.past(WEATHER, *[(place, NOW - HOUR, 40.5, 11.0) for place in ("JFK", "LGA")])
    made.past(DRIVERS, (1, NOW - HOUR, 10, "a@b.example"))
    made.past(SECRET, ("JFK", NOW - HOUR, "rule the world"))
    made.publish()
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def url(platform, tmp_path_factory) -> Iterator[str]:
    with served(platform, tmp_path_factory.mktemp("server") / "log") as (host, port):
        yield f"http://{host}:{port}"


SCOPES = ("features:read", "features:history", "pii:read", "registry:read")


@pytest.fixture(scope="module")
def remote(platform, url) -> Iterator[RemoteFeatureStore]:
    with FeatureStore.remote(url, token=lambda: platform.token(*SCOPES), timeout=120, deadline=120) as store:
        yield store


@pytest.fixture(scope="module")
def local(platform) -> Iterator[FeatureStore]:
    with FeatureStore(platform.settings, principal=Principal.of("tester", SCOPES)) as store:
        yield store


def told(answer: OnlineResponse) -> Any:
    """All that an answer says, bit by bit."""
    return (
        answer.names,
        [str(of) for of in answer.types.values()],
        [bits(list(column)) for column in answer.values],
        answer.statuses(),
        [answer.event_micros(name) for name in answer.names],
    )


_ids = count(1)
_ROWS = st.lists(st.tuples(st.integers(0, 9), *map(optional, ALL_TYPES)), min_size=1, max_size=4)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(_ROWS)
def test_online_values_of_every_type_are_the_same_bit_for_bit(platform, remote, local, rows):
    """Present, null, expired and not there; twice in one request."""
    written = [(next(_ids), NOW - hours * HOUR, *row) for hours, *row in rows]
    platform.store.write(TYPED, _frame(written), None)
    keys = {"id": [*(row[0] for row in written), written[0][0], -1]}
    for features in ("model", ["typed:f3", "typed:*"], ViewProjection("typed", features=("f8", "f0"))):
        assert told(remote.get_online_features(features, keys)) == told(local.get_online_features(features, keys))


def _frame(written: list[tuple[Any, ...]]) -> pl.DataFrame:
    from tests.server.conftest import rows

    return rows(TYPED, *written)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_keys_of_every_type_find_the_same_rows(platform, remote, local, data):
    from tests.server.conftest import rows

    for one, of in zip(BY_TYPE, KEY_TYPES, strict=True):
        (name,) = one.join_keys
        key = data.draw(values(of))
        platform.store.write(one, rows(one, (key, NOW, next(_ids))), None)
        question = ([f"{one.name}:number"], [{name: key}])
        assert told(remote.get_online_features(*question)) == told(local.get_online_features(*question))
        assert remote.get_online_features(*question).status("number") == ["PRESENT"]


@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@given(st.lists(_ROWS, min_size=3, max_size=3))
def test_histories_of_every_type_are_the_same_bit_for_bit(platform, remote, local, pieces):
    written = [(next(_ids), NOW - hours * HOUR, *row) for rows in pieces for hours, *row in rows]
    platform.past(TYPED, *written)
    spine = pl.DataFrame({"id": [row[0] for row in written], "note": ["é", None, ""][:1] * len(written)}).with_columns(
        event_timestamp=pl.lit(NOW), nothing=None, fraction=pl.lit(math.nan)
    )
    found, expected = (store.get_historical_features(spine, "model") for store in (remote, local))
    assert found.schema == expected.schema
    assert found.spine_columns == expected.spine_columns
    for name in expected.columns:
        assert bits(found.collect()[name].to_list()) == bits(expected.collect()[name].to_list())
    assert found.manifest.result == expected.manifest.result
    assert found.question == expected.question


def test_entity_rows_come_in_every_form(remote, local):
    forms: list[Any] = [
        {"origin": ["JFK", "LGA"]},
        [{"origin": "JFK"}, {"origin": "LGA"}],
        pl.DataFrame({"origin": ["JFK", "LGA"]}),
        pl.DataFrame({"origin": ["JFK", "LGA"]}).to_arrow(),
    ]
    for form in forms:
        asked = (["weather:temp", "weather:wind"], form)
        assert told(remote.get_online_features(*asked)) == told(local.get_online_features(*asked))


def test_services_request_fields_and_two_views_under_other_names(remote, local):
    for asked, rows, full in (
        ("flying", {"origin": ["JFK", "XXX"], "layers": [2, 1]}, False),
        ([remote.view("weather")[["temp"]].with_name("there").with_join_key_map({"origin": "dest"}), "weather:temp"],
         {"origin": ["JFK"], "dest": ["LGA"]}, True),
        (list(remote.service("flying")), {"origin": ["JFK"], "layers": [0]}, True),
    ):  # fmt: skip
        found, expected = (one.get_online_features(asked, rows, full_feature_names=full) for one in (remote, local))
        assert told(found) == told(expected)


def test_what_may_not_be_seen_is_masked(platform, url):
    with (
        FeatureStore.remote(url, token=platform.token("features:read")) as remote,
        FeatureStore(platform.settings, principal=Principal.of("tester", "features:read")) as local,
    ):
        asked = (["driver_stats:*", "contact:domain"], {"driver_id": [1, 2, 3]})
        found = remote.get_online_features(*asked)
        assert told(found) == told(local.get_online_features(*asked))
        assert found.status("email") == ["MASKED"] * 3


@pytest.mark.parametrize(
    "features, rows, of",
    [
        (["wether:temp"], {"origin": ["JFK"]}, UnknownView),
        (["weather:tmp"], {"origin": ["JFK"]}, UnknownFeature),
        ("flyin", {"origin": ["JFK"]}, UnknownService),
        (["weather:temp"], {"dest": ["JFK"]}, MissingJoinKey),
        (["weather:temp"], {"origin": [1]}, WrongType),
        (["typed:f0"], {"id": ["1x"]}, WrongType),
        (["typed:f0"], {"id": [2**70]}, WrongType),
        (["weather:temp"], {"origin": [NOW]}, WrongType),
        (["weather:temp"], {"origin": [b"JFK"]}, WrongType),
        (["weather:temp"], {"origin": [None]}, RequestError),
        (["weather:temp"], {"origin": []}, RequestError),
        (["weather:temp"], [], RequestError),
        (["weather:temp"], [{"origin": "JFK"}, {"dest": "JFK"}], RequestError),
        (["weather:temp"], ["JFK"], RequestError),
        (["weather:temp"], {"origin": "JFK"}, RequestError),
        ([], {"origin": ["JFK"]}, RequestError),
        ([7], {"origin": ["JFK"]}, RequestError),
        (["weather:temp:x"], {"origin": ["JFK"]}, RequestError),
        (
            ["weather:temp", ViewProjection("weather", features=("temp",), alias="w")],
            {"origin": ["JFK"]},
            NameCollision,
        ),
        (["late:x"], {"origin": ["JFK"]}, TableMissing),
    ],
)
def test_online_refusals_are_of_the_same_class(remote, local, features, rows, of):
    for store in (local, remote):
        with pytest.raises(of) as refused:
            store.get_online_features(features, rows)
        assert type(refused.value) is of or of is RequestError


@pytest.mark.parametrize(
    "spine, features, of",
    [
        (pl.DataFrame({"origin": ["JFK"]}), ["weather:temp"], RequestError),
        (pl.DataFrame({"dest": ["JFK"], "event_timestamp": [NOW]}), ["weather:temp"], MissingJoinKey),
        (pl.DataFrame({"origin": [1], "event_timestamp": [NOW]}), ["weather:temp"], WrongType),
        (pl.DataFrame({"origin": ["JFK"], "event_timestamp": [NOW]}), ["weather:tmp"], UnknownFeature),
        (pl.DataFrame({"temp": [1], "origin": ["JFK"], "event_timestamp": [NOW]}), ["weather:temp"], NameCollision),
        (pl.DataFrame({"origin": ["JFK"], "event_timestamp": [NOW]}), ["late:x"], TableMissing),
        (None, ["weather:temp"], RequestError),
    ],
)  # fmt: skip
def test_historical_refusals_are_of_the_same_class(remote, local, spine, features, of):
    for store in (local, remote):
        with pytest.raises(of):
            store.get_historical_features(spine, features).collect()


def test_a_spine_is_read_where_the_question_is_asked(remote, local, tmp_path):
    spine = pl.DataFrame({"origin": ["JFK", "LGA"], "event_timestamp": [NOW, NOW]})
    spine.write_parquet(tmp_path / "spine.parquet")
    expected = local.get_historical_features(spine, ["weather:temp"]).collect()
    for form in (
        spine.lazy(),
        spine.to_arrow(),
        tmp_path / "spine.parquet",
        FileSource(name="s", path=str(tmp_path / "spine.parquet")),
    ):
        found = remote.get_historical_features(form, ["weather:temp"])
        assert found.collect().equals(expected)
    found = remote.get_historical_features("SELECT * FROM s ORDER BY origin", ["weather:temp"], tables={"s": spine})
    assert found.collect().equals(expected)
    with pytest.raises(RequestError, match="cannot be run"):
        remote.get_historical_features("SELECT * FROM weather", ["weather:temp"])


def test_a_training_set_that_came_is_one(remote, tmp_path):
    found = remote.get_historical_features(None, ["weather:temp"], since=NOW - 2 * HOUR, until=NOW)
    assert found.spine_columns == ("origin", "event_timestamp")
    assert [piece.height for piece in found.batches(1)] == [1, 1]
    found.write_parquet(tmp_path / "rows.parquet")
    assert pl.read_parquet(tmp_path / "rows.parquet").equals(found.collect())
    assert found.lazy().filter(pl.col("origin") == "LGA").collect().height == 1
    assert found.manifest.question.tables == {"weather@v1": 1}
    with pytest.raises(ConfigurationError, match="no place to save"):
        found.save("mine")


async def test_coroutines_ask_beside_one_another(platform, url, local):
    """Two hundred at once, over a few connections."""
    async with FeatureStore.remote(
        url, token=platform.token(*SCOPES), connections=4, timeout=120, deadline=120
    ) as remote:
        asked = (["weather:temp"], {"origin": ["JFK"]})
        found = await asyncio.gather(*(remote.get_online_features_async(*asked) for _ in range(200)))
        spine = pl.DataFrame({"origin": ["JFK"], "event_timestamp": [NOW]})
        rows = await remote.get_historical_features_async(spine, ["weather:temp"])
        with pytest.raises(UnknownView):
            await remote.get_online_features_async(["wether:temp"], {"origin": ["JFK"]})
    assert {str(told(one)) for one in found} == {str(told(local.get_online_features(*asked)))}
    assert rows.collect().equals(local.get_historical_features(spine, ["weather:temp"]).collect())


def test_a_registry_is_taken_up_when_it_changed(platform, url):
    with FeatureStore.remote(url, token=platform.token("registry:read")) as remote:
        assert remote.registry.digest == platform.registry.read().digest
        assert remote.refresh() is False


def test_who_is_not_let_in_is_told_so(platform, url):
    for token, of in (("x.y.z", Unauthenticated), (platform.token("registry:read"), Forbidden)):
        with FeatureStore.remote(url, token=token) as remote, pytest.raises(of):
            remote.get_online_features(["weather:temp"], {"origin": ["JFK"]})
    with FeatureStore.remote(url, token=platform.token("features:read:weather")) as remote, pytest.raises(Forbidden):
        remote.get_online_features(["secret_plans:plan"], {"origin": ["JFK"]})


def test_it_is_light_to_import():
    probe = (
        "import sys, feature_assets as fa; fa.FeatureStore.remote('http://127.0.0.1:1', token='t'); "
        "print(sorted({'dagster', 'fastapi', 'deltalake', 'pyarrow', 'pandas', 'authlib'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", probe], text=True) == "[]\n"
