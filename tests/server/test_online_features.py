"""The answers: Feast's shape, the order asked, every type, statuses and times."""

import base64
import json
import math
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_assets.spec import Entity, Field
from feature_assets.types import Int64
from tests.server.conftest import NOW, Platform, bearer, client_of, columns, fill, view
from tests.values import ALL_TYPES, KEY_TYPES, bits, values

PATH = "/get-online-features"


@pytest.fixture(scope="module")
def token(platform) -> dict[str, str]:
    return bearer(platform.token("features:read", "pii:read"))


async def ask(http: httpx.AsyncClient, token: dict[str, str], features: Any, **entities: list[Any]) -> dict[str, Any]:
    question = {"feature_service": features} if isinstance(features, str) else {"features": features}
    answer = await http.post(PATH, json={**question, "entities": entities}, headers=token)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_answer_is_feasts_in_the_order_asked(http, token, platform):
    answer = await http.post(
        PATH,
        json={
            "features": ["weather:wind", "weather:temp"],
            "entities": {"origin": ["JFK", "LGA", "EWR", "XXX"]},
            "full_feature_names": False,
            "include_feature_view_version_metadata": False,
        },
        headers=token,
    )
    none = "1970-01-01T00:00:00Z"
    times = ["2013-02-08T11:00:00Z", "2013-02-08T12:00:00Z", "2013-02-08T03:00:00Z", none]
    assert answer.json() == {
        "results": [
            {
                "values": ["JFK", "LGA", "EWR", "XXX"],
                "statuses": ["PRESENT"] * 4,
                "event_timestamps": [none] * 4,
            },
            {
                "values": [11.0, 3.5, None, None],
                "statuses": ["PRESENT", "PRESENT", "OUTSIDE_MAX_AGE", "NOT_FOUND"],
                "event_timestamps": times,
            },
            {
                "values": [40.5, None, None, None],
                "statuses": ["PRESENT", "NULL_VALUE", "OUTSIDE_MAX_AGE", "NOT_FOUND"],
                "event_timestamps": times,
            },
        ],
        "metadata": {
            "feature_names": ["origin", "wind", "temp"],
            "feature_view_metadata": [{"name": "weather", "version": 1}],
        },
    }
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-feature-registry"] == platform.registry.read().digest
    assert answer.headers["x-request-id"]


async def test_a_service_with_request_fields_and_computed_features(http, token):
    found = await ask(http, token, "flying", origin=["JFK", "XXX"], layers=[2, 1])
    assert columns(found) == {"origin": ["JFK", "XXX"], "wind": [11.0, None], "felt": [50.5, None]}
    assert columns(found, "statuses")["felt"] == ["PRESENT", "NULL_VALUE"]


async def test_full_feature_names(http, token):
    body = {"features": ["weather:temp"], "entities": {"origin": ["JFK"]}, "full_feature_names": True}
    answer = await http.post(PATH, json=body, headers=token)
    assert answer.json()["metadata"]["feature_names"] == ["origin", "weather__temp"]


async def test_features_of_views_with_different_keys(http, token):
    found = await ask(http, token, ["driver_stats:trips", "weather:wind"], driver_id=[2, 9], origin=["LGA", "JFK"])
    assert columns(found) == {"driver_id": [2, 9], "origin": ["LGA", "JFK"], "trips": [20, None], "wind": [3.5, 11.0]}
    assert [one["name"] for one in found["metadata"]["feature_view_metadata"]] == ["driver_stats", "weather"]


async def test_personal_data_is_masked_without_the_scope_and_what_is_made_from_it_too(http, platform):
    """A token with pii:read for another view sees as little."""
    asked = {"features": ["driver_stats:*", "contact:domain"], "entities": {"driver_id": [1, 2]}}
    for scopes in (["features:read"], ["features:read", "pii:read:weather"]):
        answer = (await http.post(PATH, json=asked, headers=bearer(platform.token(*scopes)))).json()
        assert columns(answer)["trips"] == [10, 20]
        assert columns(answer)["email"] == columns(answer)["domain"] == [None, None]
        assert columns(answer, "statuses")["email"] == columns(answer, "statuses")["domain"] == ["MASKED", "MASKED"]
    seen = (
        await http.post(PATH, json=asked, headers=bearer(platform.token("features:read", "pii:read:driver_*")))
    ).json()
    assert columns(seen)["email"] == ["a@b.example", None]
    assert columns(seen)["domain"] == [".example", None]


@pytest.mark.parametrize("of", ALL_TYPES, ids=str)
async def test_every_type_comes_as_the_type_table_has_it(of, tmp_path):
    """And is what it was, bit for bit, when it is read back."""
    platform = Platform(tmp_path)
    one, given_values = (
        view("one", Field("x", of), entity=Entity("thing", {"id": Int64})),
        _examples(st.none() | values(of)),
    )
    platform.add(one, *[(at, NOW, value) for at, value in enumerate(given_values)])
    platform.publish()
    async with client_of(platform.app()) as http:
        found = columns(await ask(http, bearer(platform.token()), ["one:x"], id=list(range(len(given_values)))))["x"]
    assert [bits(of.parse(value)) for value in found] == [bits(value) for value in given_values]
    assert json.dumps(found) == json.dumps(orjson.loads(orjson.dumps(of.to_json(given_values))))
    platform.store.close()


def _examples(strategy: st.SearchStrategy[Any]) -> list[Any]:
    """Values of a strategy, at once: as a property each of them would start the application anew."""
    found: list[Any] = []

    @settings(max_examples=60, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def take(one: Any) -> None:
        found.append(one)

    take()
    return found


@pytest.mark.parametrize("of", KEY_TYPES, ids=str)
async def test_keys_of_every_type_are_found_by_their_json(of, tmp_path):
    platform = Platform(tmp_path)
    one = view("one", Field("x", Int64), entity=Entity("thing", {"id": of}))
    by_bits = {str(bits(key)): key for key in _examples(values(of))}
    keys = list(by_bits.values())
    platform.add(one, *[(key, NOW, at) for at, key in enumerate(keys)])
    platform.publish()
    async with client_of(platform.app()) as http:
        found = await ask(http, bearer(platform.token()), ["one:x"], id=list(of.to_json(keys)))
    assert columns(found)["x"] == list(range(len(keys)))
    platform.store.close()


async def test_numbers_that_json_has_no_word_for(tmp_path):
    platform = Platform(tmp_path)
    of = next(one for one in ALL_TYPES if str(one) == "Float64")
    one = view("one", Field("x", of), Field("null", of), entity=Entity("thing", {"id": Int64}))
    given = [math.nan, math.inf, -math.inf, -0.0, None, 5e-324]
    platform.add(one, *[(at, NOW, value, value) for at, value in enumerate(given)])
    platform.publish()
    async with client_of(platform.app()) as http:
        token = bearer(platform.token())
        found = await ask(http, token, ["one:*"], id=list(range(6)))
        single = await ask(http, token, ["one:x"], id=[0])
    assert columns(found)["x"] == columns(found)["null"] == ["NaN", "Infinity", "-Infinity", -0.0, None, 5e-324]
    assert columns(found, "statuses")["x"] == ["PRESENT"] * 4 + ["NULL_VALUE", "PRESENT"]
    assert columns(single)["x"] == ["NaN"]
    assert columns(single, "statuses")["x"] == ["PRESENT"]
    platform.store.close()


async def test_whole_integers_of_64_bits_and_bytes(tmp_path):
    platform = Platform(tmp_path)
    by_name = {str(one): one for one in ALL_TYPES}
    one = view("one", Field("n", by_name["Int64"]), Field("raw", by_name["Bytes"]), Field("s", by_name["String"]))
    platform.add(one, ("a", NOW, 2**63 - 1, b"\x00\xff", "null \x00 😀"), ("b", NOW, -(2**63), b"", ""))
    platform.publish()
    async with client_of(platform.app()) as http:
        found = await ask(http, bearer(platform.token()), ["one:*"], origin=["a", "b"])
    assert columns(found)["n"] == [2**63 - 1, -(2**63)]
    assert [base64.b64decode(one) for one in columns(found)["raw"]] == [b"\x00\xff", b""]
    assert columns(found)["s"] == ["null \x00 😀", ""]
    platform.store.close()


async def test_a_view_without_entities_answers_one_row(tmp_path):
    from feature_assets.spec import ViewSpec

    platform = Platform(tmp_path)
    one = ViewSpec(name="rates", event_timestamp="at", features=(Field("rate", Int64),))
    platform.add(one, (NOW, 7))
    platform.publish()
    async with client_of(platform.app()) as http:
        found = await ask(http, bearer(platform.token()), ["rates:rate"])
    assert columns(found) == {"rate": [7]}
    platform.store.close()


async def test_what_was_never_materialised_says_so(tmp_path):
    platform = Platform(tmp_path)
    fill(platform)
    platform.objects.append(view("late", Field("x", Int64)))
    platform.publish()
    async with client_of(platform.app()) as http:
        answer = await http.post(
            PATH, json={"features": ["late:x"], "entities": {"origin": ["JFK"]}}, headers=bearer(platform.token())
        )
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:feature-assets:problem:not-materialised"
    assert "feature-assets materialize late" in answer.json()["detail"]
    platform.store.close()


async def test_before_anything_is_published_it_says_so_and_then_serves(tmp_path):
    platform = Platform(tmp_path)
    async with client_of(platform.app()) as http:
        asked = {"features": ["weather:wind"], "entities": {"origin": ["JFK"]}}
        token = bearer(platform.token())
        assert (await http.get("/health")).status_code == 503
        refused = await http.post(PATH, json=asked, headers=token)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:feature-assets:problem:no-registry")
        assert str(tmp_path) not in refused.text
        fill(platform)
        for _ in range(200):
            if (await http.get("/health")).status_code == 200:
                break
            await _pause()
        assert (await http.post(PATH, json=asked, headers=token)).status_code == 200
    platform.store.close()


async def _pause() -> None:
    import asyncio

    await asyncio.sleep(0.02)
