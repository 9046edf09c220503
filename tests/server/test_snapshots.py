"""The published registry over HTTP: features found, snapshots with their ETags, history, differences, the way back."""

import json
from typing import Any

import httpx
import pytest

from feature_assets.spec import Field, canonical_json
from feature_assets.types import Float64
from tests.server.conftest import DRIVERS, SECRET, WEATHER, Platform, bearer, client_of, fill, view


@pytest.fixture
def own(tmp_path) -> Platform:
    """A platform with two snapshots: a view came with the second."""
    made = Platform(tmp_path)
    fill(made)
    made.add(view("late", Field("x", Float64, description="Came later.", tags={"team": "risk"}), owners=("ann",)))
    made.publish()
    return made


@pytest.fixture
async def http(own) -> Any:
    async with client_of(own.app()) as client:
        yield client
    own.store.close()


def knowing(platform: Platform, *scopes: str) -> dict[str, Any]:
    return bearer(platform.token(*(scopes or ("registry:read",))))


async def test_features_are_found_by_text_tag_owner_type_and_place(http, own):
    async def found(**asked: Any) -> list[str]:
        answer = await http.get("/v1/features", params=asked, headers=knowing(own))
        assert answer.status_code == 200, answer.text
        return [one["feature"] for one in answer.json()["features"]]

    assert await found(text="CAME") == await found(tags="team:risk") == await found(owner="ann") == ["late:x"]
    assert await found(type="Int64") == ["driver_stats:trips", "hint:letters"]
    assert await found(view="weather") == ["weather:temp", "weather:wind"]
    assert await found(entity="driver", text="mail") == ["driver_stats:email"]
    assert await found(tags=["team:risk", "tier:1"]) == []
    everything = await found()
    assert [one for page in range(1, 6) for one in await found(page=page, limit=2)] == everything
    (one,) = (await http.get("/v1/features", params={"text": "wind"}, headers=knowing(own))).json()["features"]
    assert (one["services"], one["join_keys"], one["ttl_seconds"]) == (
        ["flying", "plotting"],
        {"origin": "String"},
        21_600,
    )


async def test_the_snapshot_is_the_stored_one_and_its_etag_its_digest(http, own):
    published = own.registry.read()
    answer = await http.get("/v1/registry", headers=knowing(own))
    assert answer.content == canonical_json(published.registry)
    assert answer.headers["etag"] == f'"{published.digest}"'
    assert answer.headers["x-feature-registry"] == published.digest
    for tag in (answer.headers["etag"], f'"x", W/{answer.headers["etag"]}'):
        unchanged = await http.get("/v1/registry", headers={**knowing(own), "if-none-match": tag})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
    former = await http.get("/v1/registry", params={"digest": published.entry.previous[:12]}, headers=knowing(own))
    assert "late" not in former.json()["views"]
    assert former.headers["etag"] == f'"{published.entry.previous}"'


async def test_who_knows_some_views_gets_a_registry_of_those(http, own):
    token = knowing(own, "registry:read:weather", "registry:read:comfort")
    answer = await http.get("/v1/registry", headers=token)
    found = answer.json()
    assert (list(found["views"]), list(found["on_demand"]), list(found["services"])) == (
        ["weather"],
        ["comfort"],
        ["flying"],
    )
    assert found["owners"] == {"view/weather": "tests", "view/comfort": "tests", "service/flying": "tests"}
    assert answer.headers["etag"] != f'"{own.registry.read().digest}"'
    assert (
        await http.get("/v1/registry", headers={**token, "if-none-match": answer.headers["etag"]})
    ).status_code == 304
    listed = (await http.get("/v1/features", headers=token)).json()["features"]
    assert {one["view"] for one in listed} == {"weather", "comfort"}


async def test_history_and_differences(http, own):
    entries = (await http.get("/v1/registry/history", headers=knowing(own))).json()["entries"]
    assert [entry["sequence"] for entry in entries] == [2, 1]
    last = await http.get("/v1/registry/diff", headers=knowing(own))
    assert [(one["action"], one["name"]) for one in last.json()["changes"]] == [("added", "late")]
    back = await http.get(
        "/v1/registry/diff",
        params={"from": entries[0]["digest"], "to": entries[1]["digest"][:10]},
        headers=knowing(own),
    )
    assert [(one["action"], one["name"], one["breaking"]) for one in back.json()["changes"]] == [
        ("removed", "late", True)
    ]
    narrow = await http.get("/v1/registry/diff", headers=knowing(own, "registry:read:weather"))
    assert narrow.json()["changes"] == []


async def test_messages_of_the_history_are_for_those_who_know_all(http, own):
    own.registry.rollback(1, by="ann", message="driver_stats leaks")
    for scope, seen in (("registry:read", "driver_stats leaks"), ("registry:read:weather", "")):
        entries = (await http.get("/v1/registry/history?limit=1", headers=knowing(own, scope))).json()["entries"]
        assert [(one["by"], one["message"]) for one in entries] == [("ann", seen)]


@pytest.mark.parametrize(
    "path", ["/v1/registry?digest=ffff", f"/v1/registry/diff?from={'0' * 64}", "/v1/registry?digest="]
)
async def test_a_snapshot_that_is_not_there_is_not_found(http, own, path):
    answer = await http.get(path, headers=knowing(own))
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:feature-assets:problem:unknown-name")


async def roll_back(http: httpx.AsyncClient, token: dict[str, Any], body: Any = None, **headers: str) -> httpx.Response:
    content = b"" if body is None else json.dumps(body).encode()
    return await http.post("/v1/registry/rollback", content=content, headers={**token, **headers})


async def test_a_rollback_is_in_force_at_once_and_says_who(http, own):
    token = bearer(own.token("registry:read", "registry:write", client="ops"))
    tag = (await http.get("/v1/registry", headers=token)).headers["etag"]
    answer = await roll_back(http, token, {"to": 1, "message": "late is wrong"}, **{"if-match": tag})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["sequence"], answer.json()["by"], answer.json()["changed"]) == (3, "ops", True)
    now = await http.get("/v1/registry", headers=token)
    assert "late" not in now.json()["views"]
    assert own.registry.read().entry.message == "late is wrong"
    assert own.registry.read().entry.withdrawn == tag.strip('"')


async def test_a_rollback_that_others_were_before_does_nothing(http, own):
    token = bearer(own.token("registry:read", "registry:write"))
    tag = (await http.get("/v1/registry", headers=token)).headers["etag"]
    own.add(view("later", Field("y", Float64)))
    digest = own.publish()
    answer = await roll_back(http, token, **{"if-match": tag})
    assert (answer.status_code, answer.json()["type"]) == (412, "urn:feature-assets:problem:other-in-force")
    assert own.registry.read().digest == digest
    assert (await roll_back(http, token)).status_code == 428
    assert (await roll_back(http, token, **{"if-match": "*"})).status_code == 200
    assert own.registry.read().digest == tag.strip('"')


@pytest.mark.parametrize(
    "body, status",
    [
        (b"{", 400),
        (b'{"to": 0}', 404),
        (b'{"to": -3}', 404),
        (b'{"to": 99999999999999999999}', 404),
        (b'{"to": true}', 422),
        (b'{"to": "zz"}', 404),
        (b'{"until": 1}', 422),
        (b"[]", 422),
        (b'{"message": "%s"}' % (b"x" * 1_001), 422),
        (b" " * (1 << 20) + b"{}", 413),
    ],
)
async def test_a_rollback_of_nonsense_is_refused(http, own, body, status):
    token = bearer(own.token("registry:write"))
    answer = await http.post("/v1/registry/rollback", content=body, headers={**token, "if-match": "*"})
    assert answer.status_code == status, answer.text
    assert own.registry.read().sequence == 2


@pytest.mark.parametrize("scope", ["registry:read", "registry:write:weather", "admin"])
async def test_only_who_may_write_the_whole_registry_rolls_it_back(http, own, scope):
    answer = await roll_back(http, bearer(own.token(scope)), **{"if-match": "*"})
    assert answer.status_code == 403
    assert 'scope="registry:write"' in answer.headers["www-authenticate"]


async def test_nobody_without_a_token_learns_anything(http):
    for path in ("/v1/features", "/v1/registry", "/v1/registry/history", "/v1/registry/diff"):
        assert (await http.get(path)).status_code == 401
    for name in (WEATHER.name, DRIVERS.name, SECRET.name):
        assert name not in (await http.get("/v1/features?page=0")).text
