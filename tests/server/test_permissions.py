"""Who may do what, at the level of HTTP: five principals, eight views, six acts, against tables written by hand."""

import io
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import polars as pl
import pytest

from feature_assets import FeatureStore
from feature_assets.access import PUSH, Principal
from feature_assets.errors import Forbidden, UnknownView
from feature_assets.offline import OfflineStore
from feature_assets.spec import Entity, Field, OnDemandViewSpec, PushSource, Stream, ViewProjection, ViewSpec
from feature_assets.transformations import declared_expressions
from feature_assets.types import Int64, String
from tests.access.counting import READS, install
from tests.server.conftest import HOUR, NOW, Platform, bearer, client_of, columns, view

THING = Entity("thing", {"id": Int64})
TENANT = Entity("tenant", {"tenant_id": String})
VALUE, PHONE = Field("value", Int64), Field("phone", String, pii="phone")
SECRET_VALUE, SECRET_PHONE = 424_242, "+49-30-424242"
RISK = {
    "read": ["role:risk_*", "client:scorer"],
    "push": ["client:pusher"],
    "materialize": ["group:ops"],
    "pii": ["role:dpo"],
}


def on_demand(name: str, source: ViewProjection, **more: Any) -> OnDemandViewSpec:
    seen = pl.col("value") if source.features == ("value",) else pl.col("phone").str.len_chars().cast(pl.Int64)
    return OnDemandViewSpec(
        name=name,
        sources=(source,),
        features=(Field(f"{name}_value", Int64),),
        transformation=declared_expressions(name, {f"{name}_value": seen}),
        **more,
    )


def fed(name: str, *fields: Field, **more: Any) -> ViewSpec:
    """A view that takes the rows of a source of its own."""
    return view(name, *fields, stream=Stream(f"{name}_rows"), **more)


VIEWS = (
    fed("open_stats", VALUE, entity=THING),
    fed("risk_stats", VALUE, PHONE, entity=THING, access=RISK),
    fed("contacts", VALUE, PHONE, entity=THING),
    fed("sealed", VALUE, entity=THING, access={"read": []}),
    fed("tenant_orders", VALUE, PHONE, entity=TENANT, row_filter={"tenant_id": "org.tenant"}),
    fed(
        "tenant_risk",
        VALUE,
        PHONE,
        entity=TENANT,
        row_filter={"tenant_id": "org.tenant"},
        access={"read": ["role:risk_*"], "pii": ["role:risk_*"]},
    ),
    on_demand("risk_score", ViewProjection("risk_stats", ("value",))),
    on_demand("dial", ViewProjection("contacts", ("phone",)), access={"read": ["group:sales"], "pii": ["group:sales"]}),
)

EVERYTHING = "features:read features:history features:push features:materialize registry:read pii:read"
PRINCIPALS: dict[str, dict[str, Any]] = {
    "scorer": {"scopes": "features:read features:history"},
    "analyst": {
        "scopes": "features:read:risk_* features:read:tenant_* features:history:risk_* pii:read registry:read:risk_*",
        "roles": ["risk_eu"],
        "org.tenant": "acme",
    },
    "pusher": {"scopes": "features:push features:materialize registry:read", "groups": ["ops"]},
    "auditor": {"scopes": EVERYTHING},
    "acme": {
        "scopes": EVERYTHING,
        "roles": ["risk_us", "dpo"],
        "groups": ["sales", "ops"],
        "org.tenant": "acme",
    },
}

# ok: all of it; mask: without personal data; none: allowed, and there are no rows to do it with; else the status of the
# refusal.
#   read      POST /get-online-features for one plain feature
#   all       the same for every feature of the view
#   history   POST /v1/historical-features for every feature of the view
#   push      a row of the view: POST /write-to-online-store, POST /push, and both by a FeatureStore with that principal
#   materialize  POST /materialize for the view
#   describe  GET /api/v1/feature_views/…
EXPECTED = """
scorer          read   all    history  push  materialize  describe
open_stats      ok     ok     ok       403   403          403
risk_stats      ok     mask   mask     403   403          403
contacts        ok     mask   mask     403   403          403
sealed          404    404    404      403   403          403
tenant_orders   403    403    403      403   403          403
tenant_risk     404    404    404      403   403          403
risk_score      ok     ok     ok       403   403          403
dial            404    404    404      403   403          403

analyst         read   all    history  push  materialize  describe
open_stats      404    404    404      403   403          404
risk_stats      ok     mask   mask     403   403          ok
contacts        404    404    404      403   403          404
sealed          404    404    404      403   403          404
tenant_orders   ok     ok     404      403   403          404
tenant_risk     ok     ok     404      403   403          404
risk_score      ok     ok     ok       403   403          ok
dial            404    404    404      403   403          404

pusher          read   all    history  push  materialize  describe
open_stats      403    403    403      ok    ok           ok
risk_stats      403    403    403      ok    ok           ok
contacts        403    403    403      ok    ok           ok
sealed          403    403    403      403   403          ok
tenant_orders   403    403    403      403   ok           ok
tenant_risk     403    403    403      403   403          ok
risk_score      403    403    403      none  none         ok
dial            403    403    403      403   403          ok

auditor         read   all    history  push  materialize  describe
open_stats      ok     ok     ok       ok    ok           ok
risk_stats      403    403    403      403   403          ok
contacts        ok     ok     ok       ok    ok           ok
sealed          403    403    403      403   403          ok
tenant_orders   403    403    403      403   ok           ok
tenant_risk     403    403    403      403   403          ok
risk_score      403    403    403      none  none         ok
dial            403    403    403      403   403          ok

acme            read   all    history  push  materialize  describe
open_stats      ok     ok     ok       ok    ok           ok
risk_stats      ok     ok     ok       403   ok           ok
contacts        ok     ok     ok       ok    ok           ok
sealed          403    403    403      403   403          ok
tenant_orders   ok     ok     ok       ok    ok           ok
tenant_risk     ok     ok     ok       403   403          ok
risk_score      ok     ok     ok       none  none         ok
dial            ok     ok     ok       403   403          ok
"""


def table() -> Iterator[tuple[str, str, str, str]]:
    """Principal, view, act and outcome of each of the 240 cells."""
    for block in EXPECTED.strip().split("\n\n"):
        head, *lines = (line.split() for line in block.splitlines())
        for name, *outcomes in lines:
            yield from ((head[0], name, act, outcome) for act, outcome in zip(head[1:], outcomes, strict=True))


def filled(folder: Any, **settings: Any) -> Platform:
    made = Platform(folder, dagster_url="http://127.0.0.1:9")
    for one in VIEWS:
        keys = ["acme", "globex"] if isinstance(one, ViewSpec) and one.row_filter else [1, 2]
        phones = [SECRET_PHONE] if one.field("phone") else []
        made.add(one, *[(key, NOW - HOUR, SECRET_VALUE, *phones) for key in keys])
        if isinstance(one, ViewSpec):
            made.past(one, *[(key, NOW - HOUR, SECRET_VALUE, *phones) for key in keys])
            made.objects.append(PushSource(name=f"{one.name}_rows"))
    made.publish()
    made.settings = made.settings.model_copy(update={"durability": "process", **settings})
    return made


def token_of(platform: Platform, name: str) -> dict[str, Any]:
    who = dict(PRINCIPALS[name])
    return bearer(platform.issuer.token(name, who.pop("scopes").split(), 600, who))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    made = filled(tmp_path_factory.mktemp("guarded"))
    yield made
    made.store.close()


@pytest.fixture(scope="module")
async def http(guarded: Platform) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(guarded.app(), timeout=120) as client:
        yield client


def keys_of(name: str) -> dict[str, list[Any]]:
    return {"tenant_id": ["acme"]} if name.startswith("tenant_") else {"id": [1]}


def plain(name: str) -> str:
    return f"{name}:{name}_value" if name in ("risk_score", "dial") else f"{name}:value"


async def outcome(http: httpx.AsyncClient, platform: Platform, principal: str, name: str, act: str) -> str:
    token = token_of(platform, principal)
    if act == "describe":
        return told(await http.get(f"/api/v1/feature_views/{name}", headers=token))
    if act == "push":
        return await pushed(http, platform, principal, name)
    if act == "materialize":
        body = {"feature_views": [name], "start_ts": NOW.isoformat(), "end_ts": NOW.isoformat()}
        return started(await http.post("/materialize", json=body, headers=token), name)
    features = [plain(name) if act == "read" else f"{name}:*"]
    if act == "history":
        spine = {**keys_of(name), "event_timestamp": [NOW.isoformat()]}
        answer = await http.post("/v1/historical-features", json={"features": features, "spine": spine}, headers=token)
        return told(answer, complete=answer.is_success and not missing(answer, name))
    question = {"features": features, "entities": keys_of(name)}
    answer = await http.post("/get-online-features", json=question, headers=token)
    return told(answer, complete=b"MASKED" not in answer.content)


def told(answer: httpx.Response, *, complete: bool = True) -> str:
    """What became of a request. A refusal has nothing of what was stored."""
    if answer.is_success:
        return "ok" if complete else "mask"
    assert str(SECRET_VALUE) not in answer.text
    assert SECRET_PHONE not in answer.text
    return str(answer.status_code)


def missing(answer: httpx.Response, name: str) -> set[str]:
    """The features that were left out of a history."""
    declared = {field.name for one in VIEWS if one.name == name for field in one.features}
    return declared - set(pl.read_parquet(io.BytesIO(answer.content)).columns)


def started(answer: httpx.Response, name: str) -> str:
    """What became of a request for a run. There is no Dagster to start it, which whoever is allowed gets to know."""
    if answer.json()["type"] == "urn:feature-assets:problem:dagster-unreachable":
        return "ok"
    if f"'{name}' is an on-demand view" in answer.text:
        return "none"
    return told(answer)


def principal_of(name: str) -> Principal:
    """Who the token of `token_of` is about."""
    who = dict(PRINCIPALS[name])
    scopes, roles, groups = who.pop("scopes"), who.pop("roles", ()), who.pop("groups", ())
    return Principal.of(name, scopes, roles=roles, groups=groups, claims=who)


def row_of(name: str, **keys: list[Any]) -> dict[str, list[Any]]:
    """A row to push, earlier than what is there."""
    declared = next(one for one in VIEWS if one.name == name)
    phone = {"phone": ["0"]} if isinstance(declared, ViewSpec) and declared.field("phone") else {}
    keys = keys or keys_of(name)
    height = len(next(iter(keys.values())))
    return {**keys, "at": [(NOW - 2 * HOUR).isoformat()] * height, "value": [0] * height} | {
        name: each * height for name, each in phone.items()
    }


async def pushed(http: httpx.AsyncClient, platform: Platform, principal: str, name: str) -> str:
    """What becomes of a push of a row: by both routes, and by both methods of a store in this process."""
    rows, token = row_of(name), token_of(platform, principal)
    body = {"feature_view_name": name, "df": rows}
    found = {taken(await http.post("/write-to-online-store", json=body, headers=token))}
    with FeatureStore(platform.settings, principal=principal_of(principal)) as store:
        found.add(by_python(store, name, lambda: store.write_to_online_store(name, rows)))
        if not isinstance(next(one for one in VIEWS if one.name == name), OnDemandViewSpec):
            body = {"push_source_name": f"{name}_rows", "df": rows}
            found.add(taken(await http.post("/push", json=body, headers=token)))
            found.add(by_python(store, name, lambda: store.push(f"{name}_rows", rows)))
    assert len(found) == 1, found
    return found.pop()


def taken(answer: httpx.Response) -> str:
    """What became of a push over HTTP."""
    if answer.status_code == 404 and "is an on-demand view" in answer.text:
        return "none"
    return told(answer)


def by_python(store: FeatureStore, name: str, push: Callable[[], Any]) -> str:
    """What became of a push in this process, as the route says it."""
    try:
        assert push().views == (name,)
    except Forbidden as error:
        assert store.principal is not None
        return "404" if error.decision.hidden and store.principal.grant.anywhere(PUSH) else "403"
    except UnknownView as error:
        return "none" if "is an on-demand view" in str(error) else "404"
    return "ok"


@pytest.mark.parametrize("principal", PRINCIPALS)
@pytest.mark.parametrize("name", [one.name for one in VIEWS])
async def test_everybody_is_allowed_what_the_table_says(
    principal: str, name: str, http: httpx.AsyncClient, guarded: Platform
) -> None:
    expected = {act: allowed for who, of, act, allowed in table() if (who, of) == (principal, name)}
    found = {act: await outcome(http, guarded, principal, name, act) for act in expected}
    assert found == expected


def test_the_table_is_whole() -> None:
    cells = {cell[:3] for cell in table()}
    assert len(cells) == len(list(table())) == 5 * 8 * 6


# Requests for several views.


@pytest.mark.parametrize(
    ("principal", "features", "status"),
    [
        ("acme", ["open_stats:value", "sealed:value"], 403),
        ("acme", ["sealed:value", "open_stats:value"], 403),
        ("acme", ["open_stats:value", "nothing:value"], 404),
        ("analyst", ["risk_stats:value", "contacts:value"], 404),
        ("analyst", ["risk_stats:value", "nothing:value"], 404),
        ("scorer", ["open_stats:value", "dial:dial_value"], 404),
        ("auditor", ["open_stats:value", "risk_score:risk_score_value"], 403),
    ],
)
async def test_one_refusal_refuses_all_of_it(
    principal: str, features: list[str], status: int, http: httpx.AsyncClient, guarded: Platform
) -> None:
    token = token_of(guarded, principal)
    question = {"features": features, "entities": {"id": [1]}}
    spine = {"id": [1], "event_timestamp": [NOW.isoformat()]}
    for path, body in (
        ("/get-online-features", {**question, "full_feature_names": True}),
        ("/v1/historical-features", {"features": features, "spine": spine, "full_feature_names": True}),
    ):
        if principal == "analyst" and path.startswith("/v1"):
            continue
        answer = await http.post(path, json=body, headers=token)
        assert answer.status_code == status
        told(answer)


async def test_unknown_and_forbidden_look_alike(http: httpx.AsyncClient, guarded: Platform) -> None:
    token = token_of(guarded, "scorer")
    answers = []
    for name in ("sealed", "nothing"):
        question = {"features": [f"{name}:value"], "entities": {"id": [1]}}
        answer = await http.post("/get-online-features", json=question, headers=token)
        document = answer.json()
        document.pop("request_id")
        document["detail"] = document["detail"].replace(name, "…")
        answers.append((answer.status_code, document, answer.headers.get("www-authenticate")))
    assert answers[0] == answers[1]


async def test_a_refusal_says_what_would_help(http: httpx.AsyncClient, guarded: Platform) -> None:
    """A scope, where one would; whom the policy names, where the caller may know that; RFC 6750 has no word for a policy."""
    question = {"features": ["risk_stats:value"], "entities": {"id": [1]}}
    answer = await http.post("/get-online-features", json=question, headers=token_of(guarded, "auditor"))
    assert answer.json()["type"] == "urn:feature-assets:problem:forbidden"
    assert "the policy of 'risk_stats' names client:scorer, role:risk_*" in answer.json()["detail"]
    assert "www-authenticate" not in answer.headers
    scopes = ["features:read:open_stats", "registry:read"]
    narrow = bearer(guarded.issuer.token("auditor", scopes, 600))
    question = {"features": ["contacts:value"], "entities": {"id": [1]}}
    answer = await http.post("/get-online-features", json=question, headers=narrow)
    assert 'error="insufficient_scope", scope="features:read:contacts"' in answer.headers["www-authenticate"]


# Rows.

PATHS = ("/get-online-features", "/v1/historical-features")


def asking(path: str, tenants: list[Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {"tenant_id": tenants}
    features = {"features": ["tenant_orders:value"]}
    if path == PATHS[0]:
        return {**features, "entities": rows}
    return {**features, "spine": {**rows, "event_timestamp": [NOW.isoformat()] * len(tenants)}}


@pytest.mark.parametrize("path", PATHS)
async def test_a_row_of_somebody_else_refuses_the_whole_request(
    path: str, http: httpx.AsyncClient, guarded: Platform
) -> None:
    """The key column is named, and nobody's value of it."""
    token = token_of(guarded, "acme")
    for tenants in (["globex"], ["acme", "globex"], ["globex", "acme", "acme"], ["acme", "ACME"], ["initech"]):
        answer = await http.post(path, json=asking(path, tenants), headers=token)
        assert answer.status_code == 403, answer.text
        assert answer.json()["type"] == "urn:feature-assets:problem:forbidden"
        assert "'tenant_id'" in answer.json()["detail"]
        assert not any(tenant in answer.text for tenant in ("acme", "globex", "initech", str(SECRET_VALUE)))
    answer = await http.post(path, json=asking(path, ["acme", "acme"]), headers=token)
    assert answer.is_success


async def test_whoever_has_rows_of_their_own_pushes_those_alone(http: httpx.AsyncClient, guarded: Platform) -> None:
    """All of a push is refused for one row of somebody else: over HTTP and from Python, by source and by view."""
    token = token_of(guarded, "acme")
    offline = OfflineStore(guarded.settings.place(guarded.settings.offline), durability="process")
    (orders,) = (one for one in VIEWS if one.name == "tenant_orders")
    assert isinstance(orders, ViewSpec)
    with FeatureStore(guarded.settings, principal=principal_of("acme")) as store:
        for tenants in (["globex"], ["acme", "globex"], ["ACME"], ["acme", "acme", ""]):
            rows = row_of("tenant_orders", tenant_id=tenants)
            for path, body in (
                ("/push", {"push_source_name": "tenant_orders_rows", "df": rows}),
                ("/write-to-online-store", {"feature_view_name": "tenant_orders", "df": rows}),
            ):
                answer = await http.post(path, json=body, headers=token)
                assert answer.status_code == 403
                assert "'tenant_id'" in answer.json()["detail"]
                assert "globex" not in answer.text
            for push in (store.push, store.write_to_online_store):
                name = "tenant_orders_rows" if push == store.push else "tenant_orders"
                with pytest.raises(Forbidden, match="another 'tenant_id' than yours"):
                    push(name, rows)
        assert store.push("tenant_orders_rows", row_of("tenant_orders", tenant_id=["acme"])).wait(30)
    kept = offline.scan(orders).filter(pl.col("at") == NOW - 2 * HOUR).collect()
    assert set(kept["tenant_id"]) == {"acme"}


async def test_who_may_not_know_of_a_source_does_not_find_out_by_pushing(
    http: httpx.AsyncClient, guarded: Platform
) -> None:
    """One that is not there, one that is closed, and what lies behind it: the answer is the same."""
    token = bearer(guarded.issuer.token("blind", ["features:push:nothing"], 600))
    asking = Principal.of("blind", "features:push:nothing")
    answers = set()
    for name in ("risk_stats_rows", "no_such_rows"):
        answer = await http.post("/push", json={"push_source_name": name, "df": row_of("risk_stats")}, headers=token)
        assert answer.status_code == 404
        answers.add(answer.json()["detail"].replace(name, "…"))
        with FeatureStore(guarded.settings, principal=asking) as store, pytest.raises(Forbidden) as refused:
            store.push(name, row_of("risk_stats"))
        answers.add(str(refused.value).replace(name, "…"))
    assert len(answers) == 1
    assert "risk_stats'" not in answers.pop()


async def test_without_a_spine_the_rows_are_ones_own(http: httpx.AsyncClient, guarded: Platform) -> None:
    since = (NOW - HOUR).isoformat()  # What other tests push is earlier.
    body = {"features": ["tenant_orders:value", "tenant_risk:phone"], "since": since, "until": "2014-01-01"}
    answer = await http.post("/v1/historical-features", json=body, headers=token_of(guarded, "acme"))
    assert answer.is_success, answer.text
    rows = pl.read_parquet(io.BytesIO(answer.content))
    assert rows.select("tenant_id", "value", "phone").rows() == [("acme", SECRET_VALUE, SECRET_PHONE)]


async def test_what_is_refused_was_not_read(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the view that is open, asked for with one that is not, nor the rows that are one's own beside others."""
    site = install(tmp_path_factory.mktemp("site"))
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    folder = tmp_path_factory.mktemp("counted")
    platform = filled(folder, online=f"counting:{folder / 'online.db'}")
    token = token_of(platform, "acme")
    mixed = {"features": ["open_stats:value", "sealed:value"], "entities": {"id": [1]}, "full_feature_names": True}
    READS.clear()
    async with client_of(platform.app()) as http:
        for body in (mixed, asking(PATHS[0], ["acme", "globex"])):
            for _ in range(2):
                answer = await http.post(PATHS[0], json=body, headers=token)
                assert answer.status_code == 403
        assert READS.total() == 0
        answer = await http.post(PATHS[0], json=asking(PATHS[0], ["acme"]), headers=token)
        assert columns(answer.json())["value"] == [SECRET_VALUE]
        assert READS == {"tenant_orders": 1}
        # A question that is compiled already is decided anew for everybody.
        answer = await http.post(PATHS[0], json=asking(PATHS[0], ["acme"]), headers=token_of(platform, "auditor"))
        assert answer.status_code == 403
        assert READS.total() == 1
    platform.store.close()


async def test_each_decision_is_one_line_of_the_audit_log(tmp_path_factory: pytest.TempPathFactory) -> None:
    """With the rule that decided, also where the caller is told nothing of it; without values, keys or tokens."""
    folder = tmp_path_factory.mktemp("audited")
    platform = filled(folder)
    server = platform.settings.server.model_copy(update={"audit": str(folder / "audit.jsonl")})
    platform.settings = platform.settings.model_copy(update={"server": server})
    asked = [(principal, one.name) for principal in PRINCIPALS for one in VIEWS]
    async with client_of(platform.app()) as http:
        for principal, name in asked:
            await outcome(http, platform, principal, name, "all")
        await http.post(PATHS[0], json=asking(PATHS[0], ["globex"]), headers=token_of(platform, "acme"))
    text = (folder / "audit.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["client_id"] for line in lines] == [principal for principal, _ in asked] + ["acme"]
    refused = {(principal, name): found[0] == "4" for principal, name, act, found in table() if act == "all"}
    assert [line["decision"] == "refused" for line in lines] == [refused[one] for one in asked] + [True]
    rules = {one: line["rule"] for one, line in zip(asked, lines, strict=False)}
    assert rules["scorer", "sealed"] == "read policy of sealed names nobody"
    assert rules["analyst", "contacts"] == "no scope features:read"
    assert rules["pusher", "open_stats"] == "no scope features:read"
    assert rules["auditor", "tenant_orders"] == "row filter of tenant_orders on tenant_id"
    assert rules["acme", "risk_stats"] == "scope features:read; read policy of risk_stats: role:risk_*"
    assert lines[-1]["rule"] == "row filter of tenant_orders on tenant_id"
    assert not any(secret in text for secret in ("globex", str(SECRET_VALUE), SECRET_PHONE, "Bearer", "eyJ"))
    platform.store.close()


async def test_a_policy_counts_from_the_next_snapshot_on(tmp_path_factory: pytest.TempPathFactory) -> None:
    platform = filled(tmp_path_factory.mktemp("changing"))
    token = token_of(platform, "scorer")
    question = {"features": ["open_stats:value"], "entities": {"id": [1]}}
    app = platform.app()
    async with client_of(app) as http:
        assert (await http.post(PATHS[0], json=question, headers=token)).status_code == 200
        platform.objects[0] = view("open_stats", VALUE, entity=THING, access={"read": ["role:nobody_yet"]})
        platform.publish()
        app.state.serving.refresh()
        assert (await http.post(PATHS[0], json=question, headers=token)).status_code == 404
    platform.store.close()
