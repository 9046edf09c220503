"""Each way in which a question can be wrong is a 4xx that names the field and the mend, for us and for Feast's SDK."""

import json
from typing import Any

import pytest

from feature_assets.spec import Entity, Field
from feature_assets.types import Bool, Float64, Int32, Int64, String
from tests.server.conftest import NOW, Platform, bearer, client_of, columns, fill, view

PATH = "/get-online-features"
TYPED = [
    view(f"by_{name}", Field("found", Int64), entity=Entity(name, {name: of}))
    for name, of in {"text": String, "whole": Int64, "small": Int32, "flag": Bool}.items()
]
KEYS: dict[str, Any] = {"text": "1", "whole": 1, "small": 1, "flag": True}


@pytest.fixture(scope="module")
def typed(tmp_path_factory) -> Any:
    made = Platform(tmp_path_factory.mktemp("typed"))
    fill(made)
    for one in TYPED:
        (key,) = one.join_keys
        made.add(one, (KEYS[key], NOW, 7))
    made.add(view("numbers", Field("ratio", Float64)), ("JFK", NOW, 0.5))
    made.publish()
    yield made
    made.store.close()


@pytest.fixture(scope="module")
async def http(typed) -> Any:
    async with client_of(typed.app()) as client:
        yield client


@pytest.fixture(scope="module")
def token(typed) -> dict[str, Any]:
    return bearer(typed.token("features:read", "registry:read"))


@pytest.mark.parametrize(
    "key, value, found",
    [
        ("whole", 1, 7),
        ("whole", "1", 7),
        ("whole", 1.0, 7),
        ("whole", "1.0", None),
        ("whole", 1.5, None),
        ("whole", "1e0", None),
        ("whole", True, None),
        ("whole", "one", None),
        ("whole", 2**63, None),
        ("whole", str(2**63), None),
        ("whole", 10**30, None),
        ("small", 2**31, None),
        ("text", 1, None),
        ("text", "1", 7),
        ("text", True, None),
        ("text", ["1"], None),
        ("flag", True, 7),
        ("flag", 1, None),
        ("flag", "true", None),
    ],
)
async def test_a_value_is_of_its_type_or_exactly_one_or_refused(http, token, key, value, found):
    body = {"features": [f"by_{key}:found"], "entities": {key: [value]}}
    answer = await http.post(PATH, json=body, headers=token)
    if found is None:
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:feature-assets:problem:wrong-type"), (
            answer.text
        )
        assert f"Join key '{key}', row 0" in answer.json()["detail"]
    else:
        assert columns(answer.json())["found"] == [found]


WRONG = [
    ({"features": ["wether:temp"], "entities": {"origin": ["JFK"]}}, 404, "unknown-view", "Did you mean 'weather'?"),
    ({"features": ["weather:tmp"], "entities": {"origin": ["JFK"]}}, 404, "unknown-feature", "Did you mean 'temp'?"),
    ({"feature_service": "flyin", "entities": {"origin": ["JFK"]}}, 404, "unknown-service", "Did you mean 'flying'?"),
    ({"features": ["weather:temp"], "entities": {}}, 422, "missing-join-key", "'origin'"),
    ({"features": ["weather:temp"], "entities": {"dest": ["JFK"]}}, 422, "missing-join-key", ".with_join_key_map"),
    ({"features": ["weather:temp"], "entities": {"origin": [None]}}, 422, "bad-question", "null in row 0"),
    ({"features": ["weather:temp"], "entities": {"origin": []}}, 422, "bad-question", "no entity rows"),
    ({"features": ["weather:temp"], "entities": {"origin": ["JFK"], "x": [1]}}, 422, "bad-question", "Leave it out"),
    (
        {"features": ["weather:temp", "driver_stats:trips"], "entities": {"origin": ["JFK"], "driver_id": [1, 2]}},
        422,
        "bad-question",
        "differ in length: 'origin' 1, 'driver_id' 2",
    ),
    ({"features": ["weather:temp"], "entities": {"origin": ["JFK"] * 1_001}}, 422, "bad-question", "1000 is the limit"),
    ({"features": ["weather:temp"] * 501, "entities": {"origin": ["JFK"]}}, 422, "bad-question", "500 is the limit"),
    ({"features": [], "entities": {"origin": ["JFK"]}}, 422, "bad-question", "Name some"),
    ({"entities": {"origin": ["JFK"]}}, 422, "bad-question", "either 'features' or a 'feature_service'"),
    ({"features": ["weather"], "entities": {"origin": ["JFK"]}}, 404, "unknown-service", "weather"),
    ({"features": ["weather:temp:x"], "entities": {"origin": ["JFK"]}}, 422, "bad-reference", "view:feature"),
    ({"features": ["weather:temp"]}, 422, "bad-question", "entities"),
    ({"features": ["weather:temp"], "entities": {"origin": "JFK"}}, 422, "bad-question", "Expected `array`"),
    ({"features": ["weather:temp"], "entities": {"origin": [{}]}}, 422, "wrong-type", "'origin', row 0"),
    ({"feature_service": "flying", "entities": {"origin": ["JFK"]}}, 422, "bad-question", "'layers'"),
]


@pytest.mark.parametrize("body, status, kind, words", WRONG, ids=[f"{one[2]}-{at}" for at, one in enumerate(WRONG)])
async def test_a_wrong_question_is_told_what_and_how_to_mend_it(http, token, body, status, kind, words):
    """In our form; and in Feast's, with the same status and the same words, for who sends what Feast's SDK sends."""
    ours = await http.post(PATH, json=body, headers=token)
    assert (ours.status_code, ours.json()["type"]) == (status, f"urn:feature-assets:problem:{kind}"), ours.text
    assert words in ours.json()["detail"]
    assert ours.headers["content-type"] == "application/problem+json"
    feasts = await http.post(PATH, json=body | {"include_feature_view_version_metadata": False}, headers=token)
    assert (feasts.status_code, feasts.headers["content-type"]) == (status, "application/json")
    told = json.loads(feasts.json())
    assert told["module"] == "feast.errors"
    assert told["message"] == ours.json()["detail"]
    classes = {"unknown-view": "FeatureViewNotFoundException", "unknown-service": "FeatureServiceNotFoundException"}
    assert told["class"] == classes.get(
        kind, "SpecifiedFeaturesNotPresentError" if kind == "unknown-feature" else "FeastError"
    )


async def test_who_may_not_read_it_is_told_so_in_feasts_form_too(http, typed):
    body = {
        "features": ["weather:temp"],
        "entities": {"origin": ["JFK"]},
        "include_feature_view_version_metadata": False,
    }
    token = bearer(typed.token("features:read:driver_*", "registry:read"))
    answer = await http.post(PATH, json=body, headers=token)
    assert (answer.status_code, json.loads(answer.json())["class"]) == (403, "FeastPermissionError")
    assert "www-authenticate" in answer.headers


async def test_types_are_told_when_they_are_asked_for(http, token):
    body = {"feature_service": "flying", "entities": {"origin": ["JFK"], "layers": [1]}}
    plain = (await http.post(PATH, json=body, headers=token)).json()
    typed = (await http.post(PATH, json={**body, "include_types": True}, headers=token)).json()
    assert typed["results"] == plain["results"]
    assert typed["metadata"].pop("columns") == [
        {"name": "origin", "type": "String", "view": None},
        {"name": "wind", "type": "Float64", "view": "weather"},
        {"name": "felt", "type": "Float64", "view": None},
    ]
    assert typed["metadata"].pop("entities") == {"layers": "Int64", "origin": "String"}
    assert typed["metadata"] == plain["metadata"]


async def test_a_projection_is_asked_for_as_data(http, token):
    there = {"view": "weather", "features": ["wind"], "alias": "there", "join_key_map": {"origin": "dest"}}
    body = {
        "features": ["weather:wind", there],
        "entities": {"origin": ["JFK"], "dest": ["LGA"]},
        "full_feature_names": True,
    }
    answer = await http.post(PATH, json=body, headers=token)
    assert columns(answer.json()) == {"origin": ["JFK"], "dest": ["LGA"], "weather__wind": [11.0], "there__wind": [3.5]}
    for wrong in ({**there, "alias": "a__b"}, {**there, "path": "x"}, {"features": ["wind"]}):
        assert (await http.post(PATH, json={**body, "features": [wrong]}, headers=token)).status_code == 422
