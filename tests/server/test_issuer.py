"""The embedded issuer: its folder, its clients, the token endpoint and what it says about itself."""

import base64
import json
import stat
import subprocess
import sys
import urllib.parse
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import KeySet

from feature_assets.errors import ConfigurationError, UnknownName
from feature_assets.server import oauth
from feature_assets.server.issuer import Issuer
from tests.server.conftest import basic, bearer, client_of

TOKEN = "/oauth/token"
GRANT = {"grant_type": "client_credentials"}


@pytest.fixture(scope="module")
def client(platform) -> tuple[str, str]:
    return platform.issuer.add_client("scorer", ["features:read:driver_*", "features:read:weather", "pii:read"])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_fresh_folder_is_for_its_owner_alone(tmp_path):
    issuer = Issuer.open(tmp_path / "deep" / "auth")
    issuer.add_client("scorer", ["features:read"])
    assert mode(issuer.folder) == 0o700
    assert {mode(path) for path in issuer.folder.iterdir()} == {0o600}


def test_the_key_stays(tmp_path):
    assert Issuer.open(tmp_path).public_keys() == Issuer.open(tmp_path).public_keys()
    [key] = Issuer.open(tmp_path).public_keys()["keys"]
    assert "d" not in key
    assert (key["kty"], key["crv"], key["alg"], key["use"]) == ("EC", "P-256", "ES256", "sig")


def test_many_processes_at_first_start_make_one_key(tmp_path):
    program = (
        "import sys; from feature_assets.server.issuer import Issuer; print(Issuer.open(sys.argv[1]).public_keys())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "auth")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    assert len({process.communicate(timeout=60)[0] for process in running}) == 1


@pytest.mark.parametrize("name", ["key.json", "clients.json"])
def test_files_that_others_may_read_are_refused(name, tmp_path):
    issuer = Issuer.open(tmp_path)
    issuer.add_client("scorer", ["features:read"])
    (tmp_path / name).chmod(0o640)
    with pytest.raises(ConfigurationError, match=f"chmod 600 .*{name}"):
        Issuer.open(tmp_path).clients()


def test_a_folder_that_others_may_write_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigurationError, match="chmod 700"):
        Issuer.open(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"kty": "oct", "k": "AAAA"}', '{"kty": "EC", "crv": "P-256"}'])
def test_a_damaged_key_says_so(content, tmp_path):
    Issuer.open(tmp_path)
    (tmp_path / "key.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"key.json is damaged: .* Remove it"):
        Issuer.open(tmp_path)


def test_damaged_clients_say_so(tmp_path):
    issuer = Issuer.open(tmp_path)
    issuer.add_client("scorer", ["features:read"])
    (tmp_path / "clients.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"clients.json is damaged"):
        issuer.clients()


def test_clients_are_added_listed_and_removed(tmp_path):
    issuer = Issuer.open(tmp_path)
    first, secret = issuer.add_client("scorer", ["features:read", "features:read"])
    second, _ = issuer.add_client("scorer", ["pii:read:driver_*"])
    assert first.startswith("scorer-")
    assert first != second
    assert {client.client_id: client.scopes for client in issuer.clients()} == {
        first: ("features:read",),
        second: ("pii:read:driver_*",),
    }
    assert secret not in (tmp_path / "clients.json").read_text()
    assert len(base64.urlsafe_b64decode(secret + "=")) == 32
    assert issuer.authenticated(first, secret)
    assert issuer.authenticated(second, secret) is None
    assert issuer.authenticated("", "") is None
    issuer.remove_client(first)
    assert issuer.authenticated(first, secret) is None
    with pytest.raises(UnknownName, match=f"no client '{first}'. Clients: {second}"):
        issuer.remove_client(first)


def test_mistakes_are_named(tmp_path):
    issuer = Issuer.open(tmp_path)
    with pytest.raises(ConfigurationError, match="cannot name a client"):
        issuer.add_client("two words", ["features:read"])
    with pytest.raises(ConfigurationError, match="is not a scope"):
        issuer.add_client("scorer", ["everything"])
    for claims, message in (
        ({"sub": "admin"}, "'sub' cannot be a claim of a client. .* none of the issuer's own: aud, client_id"),
        ({"two words": 1}, "'two words' cannot be a claim"),
        ({"tenant": ["a", "b"]}, r"Claim 'tenant' has \['a', 'b'\]. Give printable text"),
        ({"roles": ["risk", ""]}, "Claim 'roles' has ''"),
        ({"roles": [f"role-{number}" for number in range(1_000)]}, "longer than 8192 bytes"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            issuer.add_client("scorer", ["features:read"], claims)
    with pytest.raises(ConfigurationError, match="lives up to 1 day"):
        issuer.token("scorer", ["features:read"], timedelta(days=2))
    with pytest.raises(ConfigurationError, match="lives up to 1 day"):
        issuer.token("scorer", ["features:read"], 0)


def test_a_token_is_what_rfc_9068_asks_for(tmp_path):
    issuer = Issuer.open(tmp_path, audience="features")
    token = jwt.decode(
        issuer.token("scorer", ["features:read", "pii:read"], timedelta(minutes=5)),
        KeySet.import_key_set(issuer.public_keys()),  # type: ignore[arg-type]
    )
    assert token.header["typ"] == "at+jwt"
    claims = token.claims
    assert claims["exp"] - claims["iat"] == 300
    assert {name: claims[name] for name in ("iss", "aud", "sub", "client_id", "scope")} == {
        "iss": issuer.identifier,
        "aud": "features",
        "sub": "scorer",
        "client_id": "scorer",
        "scope": "features:read pii:read",
    }
    assert claims["jti"]


# The token endpoint.


async def test_credentials_in_the_header_or_in_the_form(http, client):
    client_id, secret = client
    by_header = await http.post(TOKEN, data=GRANT, headers=basic(client_id, secret))
    by_form = await http.post(TOKEN, data={**GRANT, "client_id": client_id, "client_secret": secret})
    for answer in (by_header, by_form):
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        found = answer.json()
        assert found["token_type"] == "Bearer"
        assert found["expires_in"] == 3_600
        assert found["scope"] == "features:read:driver_* features:read:weather pii:read"
    question = {"features": ["weather:wind"], "entities": {"origin": ["JFK"]}}
    answer = await http.post("/get-online-features", json=question, headers=bearer(by_form.json()["access_token"]))
    assert answer.status_code == 200


async def test_a_token_says_what_the_client_was_given(http, platform):
    claims = {"roles": ["risk"], "groups": ["analysts"], "tenant": "acme", "level": 3}
    client = platform.issuer.add_client("acme", ["features:read"], claims)
    answer = await http.post(TOKEN, data=GRANT, headers=basic(*client))
    token = jwt.decode(
        answer.json()["access_token"],
        KeySet.import_key_set(platform.issuer.public_keys()),  # type: ignore[arg-type]
    )
    assert {name: token.claims[name] for name in claims} == claims


async def test_fewer_scopes_than_allowed(http, client):
    asked = {**GRANT, "scope": "features:read:driver_stats pii:read:driver_stats"}
    answer = await http.post(TOKEN, data=asked, headers=basic(*client))
    assert answer.json()["scope"] == asked["scope"]


@pytest.mark.parametrize("scope", ["features:read", "features:read:dri*", "admin", "openid", "features:read:weather x"])
async def test_more_scopes_than_allowed(scope, http, client):
    answer = await http.post(TOKEN, data={**GRANT, "scope": scope}, headers=basic(*client))
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_scope")


@pytest.mark.parametrize(
    ("form", "header", "status", "error"),
    [
        (GRANT, "wrong secret", 401, "invalid_client"),
        (GRANT, "wrong client", 401, "invalid_client"),
        (GRANT, None, 401, "invalid_client"),
        (GRANT, "Basic !!!", 401, "invalid_client"),
        (GRANT, "Basic /w==", 401, "invalid_client"),
        (GRANT, "Basic bm9jb2xvbg==", 401, "invalid_client"),
        (GRANT, "Bearer abc", 401, "invalid_client"),
        ({}, "right", 400, "invalid_request"),
        ({"grant_type": "password"}, "right", 400, "unsupported_grant_type"),
        ({"grant_type": "authorization_code", "code": "x"}, "right", 400, "unsupported_grant_type"),
        ({**GRANT, "client_secret": "x"}, "right", 400, "invalid_request"),
        ({**GRANT, "client_id": "another"}, "right", 400, "invalid_request"),
        ("grant_type=client_credentials&grant_type=client_credentials", "right", 400, "invalid_request"),
        ("grant_type=%ff", "right", 400, "invalid_request"),
        ("&=&", "right", 400, "invalid_request"),
        (b"\xff\xfe", "right", 400, "invalid_request"),
        ("a=1&" * 100, "right", 400, "invalid_request"),
    ],
)
async def test_refusals_are_those_of_rfc_6749(form, header, status, error, http, client):
    client_id, secret = client
    special = {
        "right": basic(client_id, secret),
        "wrong secret": basic(client_id, "x"),
        "wrong client": basic("x", secret),
    }
    headers: dict[str, Any] = special.get(header, {"authorization": header} if header else {})
    if isinstance(form, dict):
        answer = await http.post(TOKEN, data=form, headers={**headers, "content-type": FORM}, follow_redirects=False)
    else:
        answer = await http.post(TOKEN, content=form, headers={**headers, "content-type": FORM})
    assert (answer.status_code, answer.json().get("error")) == (status, error), answer.text
    if status == 401 and header:
        assert answer.headers["www-authenticate"] == 'Basic realm="feature-assets"'
    assert secret not in answer.text


FORM = "application/x-www-form-urlencoded"


async def test_only_a_form_is_read(http, client):
    answer = await http.post(TOKEN, json=GRANT, headers=basic(*client))
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    large = await http.post(TOKEN, data={**GRANT, "x": "a" * 20_000}, headers=basic(*client))
    assert large.status_code == 413


async def test_a_removed_client_gets_no_more_tokens(http, platform):
    gone = platform.issuer.add_client("gone", ["features:read"])
    assert (await http.post(TOKEN, data=GRANT, headers=basic(*gone))).status_code == 200
    platform.issuer.remove_client(gone[0])
    assert (await http.post(TOKEN, data=GRANT, headers=basic(*gone))).status_code == 401


async def test_tokens_are_not_given_faster_than_anybody_needs(platform, monkeypatch):
    # On a busy machine the allowance would be there again before it is used up.
    monkeypatch.setattr(oauth, "_TOKENS_A_SECOND", 0.5)
    async with client_of(platform.app()) as http:
        answers = [await http.post(TOKEN, data=GRANT) for _ in range(110)]
    statuses = {answer.status_code for answer in answers}
    assert statuses == {401, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] in ("1", "2")
    assert refused.headers["content-type"] == "application/problem+json"


async def test_secrets_with_letters_that_urls_escape(http, platform):
    """RFC 6749 has both halves of the header form-encoded first."""
    client_id, secret = platform.issuer.add_client("a.b_c", ["features:read"])
    quoted = basic(urllib.parse.quote(client_id, safe=""), urllib.parse.quote(secret, safe=""))
    assert (await http.post(TOKEN, data=GRANT, headers=quoted)).status_code == 200


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(body=st.binary(max_size=300), authorization=st.binary(max_size=100).filter(lambda one: b"\n" not in one))
async def test_no_form_makes_it_fail(body, authorization, platform):
    async with client_of(platform.app()) as http:
        answer = await http.post(
            TOKEN,
            content=body,
            headers={"content-type": FORM, "authorization": b"Basic " + base64.b64encode(authorization)},
        )
    assert 400 <= answer.status_code < 500


async def test_it_says_what_it_is(http, platform):
    server = (await http.get("/.well-known/oauth-authorization-server")).json()
    assert server["issuer"] == platform.issuer.identifier
    assert server["token_endpoint"] == "http://127.0.0.1:6566/oauth/token"
    assert server["grant_types_supported"] == ["client_credentials"]
    openid = (await http.get("/.well-known/openid-configuration")).json()
    assert server.items() <= openid.items()
    keys = await http.get(server["jwks_uri"])
    assert keys.json() == platform.issuer.public_keys()
    assert keys.headers["content-type"] == "application/jwk-set+json"
    resource = (await http.get("/.well-known/oauth-protected-resource")).json()
    assert resource["resource"] == "http://127.0.0.1:6566"
    assert resource["authorization_servers"] == ["http://127.0.0.1:6566"]
    assert "features:read" in resource["scopes_supported"]


async def test_a_host_that_is_none_is_not_repeated(http):
    for host in ('evil"><script>', "a b", "a" * 300, "evil.example/path"):
        answer = await http.get("/.well-known/oauth-protected-resource", headers={"host": host})
        assert json.loads(answer.text)["resource"].startswith("http://127.0.0.1")
