"""With a certified OpenID provider: what its clients get, new and removed keys, revoked tokens, and its absence."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from feature_assets.errors import StoreUnavailable, Unauthenticated
from feature_assets.server.auth import TokenValidator
from feature_assets.server.foreign import ForeignIssuer
from feature_assets.server.introspection import Introspection
from feature_assets.server.keys import KeyCache
from tests.server.conftest import Platform, bearer, client_of, fill
from tests.server.issuers import b64
from tests.server.provider import AUDIENCE, CLIENTS, OidcProvider, installed

pytestmark = pytest.mark.xdist_group("oidc-provider")

PATH = "/get-online-features"
QUESTION = {"features": ["weather:wind"], "entities": {"origin": ["JFK"]}}
PUSHED = {"push_source_name": "none", "df": {"origin": ["JFK"]}}
SERVER, SECRET = "server", CLIENTS["server"][0]


@pytest.fixture(scope="module")
def provider(pytestconfig: pytest.Config) -> Iterator[OidcProvider]:
    with OidcProvider(installed(pytestconfig.cache.mkdir("oidc-provider"))) as made:
        made.start()
        yield made


@pytest.fixture(scope="module")
async def http(provider, tmp_path_factory) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that trusts the provider."""
    platform = Platform(
        tmp_path_factory.mktemp("trusting"),
        issuer=provider.url,
        audience=AUDIENCE,
        introspection_client=SERVER,
        introspection_secret=SECRET,
    )
    fill(platform)
    async with client_of(platform.app()) as client:
        yield client
    platform.store.close()


async def read(http: httpx.AsyncClient, token: str) -> httpx.Response:
    return await http.post(PATH, json=QUESTION, headers=bearer(token))


@pytest.mark.parametrize("resource", ["urn:features", "urn:features:opaque"])
async def test_each_client_does_what_its_scopes_allow(resource, http, provider):
    reader = provider.token("reader", "features:read", resource)
    writer = provider.token("writer", "features:read features:push", resource)
    assert (await read(http, reader)).status_code == 200
    assert (await read(http, writer)).status_code == 200
    refused = await http.post("/push", json=PUSHED, headers=bearer(reader))
    assert refused.status_code == 403, refused.text
    challenge = refused.headers["www-authenticate"]
    assert 'error="insufficient_scope"' in challenge
    assert 'scope="features:push"' in challenge
    # Who may write gets further: to what is wrong with what was sent.
    assert (await http.post("/push", json=PUSHED, headers=bearer(writer))).status_code in (404, 422)


async def test_a_token_for_another_audience_is_refused(http, provider):
    refused = await read(http, provider.token("reader", "features:read", "urn:other"))
    assert refused.status_code == 401
    assert 'error="invalid_token"' in refused.headers["www-authenticate"]


async def test_the_provider_gives_no_scope_that_a_client_lacks(provider):
    assert provider.asked("reader", "features:push").json()["error"] == "invalid_scope"


async def test_its_documents_lead_from_the_server_to_a_token(http, provider):
    """As a client finds its way that knows the server alone (RFC 9728, RFC 8414)."""
    refused = await http.post(PATH, json=QUESTION)
    place = refused.headers["www-authenticate"].partition('resource_metadata="')[2].partition('"')[0]
    resource = (await http.get(place)).json()
    (issuer,) = resource["authorization_servers"]
    assert issuer == provider.url
    form = {"grant_type": "client_credentials", "scope": "features:read", "resource": "urn:features"}
    async with httpx.AsyncClient() as elsewhere:
        server = (await elsewhere.get(f"{issuer}/.well-known/oauth-authorization-server")).json()
        auth = ("reader", CLIENTS["reader"][0])
        answer = await elsewhere.post(server["token_endpoint"], data=form, auth=auth)
    assert (await read(http, answer.json()["access_token"])).status_code == 200


# What changes in time.


class World:
    """A validator with a clock, and how often it fetched keys."""

    def __init__(self, provider: OidcProvider) -> None:
        self.now = 1_000.0
        self.fetched = 0
        self.foreign = ForeignIssuer(provider.url, client_id=SERVER, secret=SECRET)
        self.keys = KeyCache(self._fetch, clock=lambda: self.now)
        introspection = Introspection(self.foreign.introspected, seconds=30, clock=lambda: self.now)
        # What the tokens say of time is true of the wall clock. The validator's goes on from there as this one does.
        begun = time.time() - self.now
        self.validator = TokenValidator(
            provider.url, AUDIENCE, self.keys, introspection=introspection, clock=lambda: begun + self.now
        )

    async def _fetch(self) -> object:
        self.fetched += 1
        return await self.foreign.keys()

    async def check(self, token: str) -> str:
        return (await self.validator.validated(token.encode())).client_id

    async def refused(self, token: str) -> None:
        with pytest.raises(Unauthenticated):
            await self.check(token)


@pytest.fixture
async def world(provider) -> AsyncIterator[World]:
    made = World(provider)
    yield made
    await made.foreign.close()
    await asyncio.to_thread(provider.start)


async def test_a_new_key_costs_one_fetch_and_a_removed_one_is_refused(world, provider):
    old = provider.token("reader", "features:read")
    assert await world.check(old) == "reader"
    provider.start(["second", "first"])
    new = provider.token("reader", "features:read")
    world.now += 31
    assert await world.check(new) == "reader"
    assert await world.check(old) == "reader"
    assert world.fetched == 2
    provider.start(["second"])
    world.now += 31
    await world.keys.refresh()
    await world.refused(old)
    assert await world.check(new) == "reader"
    assert world.fetched == 3


async def test_made_up_keys_cost_no_more_than_a_fetch_in_half_a_minute(world, provider):
    token = provider.token("reader", "features:read")
    await world.check(token)
    world.now += 31
    tokens = [with_key(token, secrets.token_hex(8)) for _ in range(1_000)]
    found = await asyncio.gather(*[world.check(one) for one in tokens], return_exceptions=True)
    assert {type(one) for one in found} == {Unauthenticated}
    assert world.fetched == 2


def with_key(token: str, kid: str) -> str:
    head = {"alg": "RS256", "typ": "at+jwt", "kid": kid}
    return ".".join([b64(json.dumps(head)), *token.split(".")[1:]])


async def test_its_absence_is_borne_for_six_hours_and_made_up_keys_are_refused(world, provider):
    token, other = (provider.token(client, "features:read") for client in ("reader", "writer"))
    await world.check(token)
    provider.stop()
    world.now += 500
    await world.keys.refresh()
    assert await world.check(token) == "reader"
    assert await world.check(other) == "writer"
    for _ in range(50):
        await world.refused(with_key(token, secrets.token_hex(8)))
    assert world.fetched == 2
    # The token has not ended, but nobody can say any more whether its key still counts.
    world.now += 6 * 3_600
    for one in (token, other):
        with pytest.raises(StoreUnavailable):
            await world.check(one)


async def test_a_revoked_token_is_refused_within_half_a_minute(world, provider):
    token = provider.token("reader", "features:read", "urn:features:opaque")
    assert await world.check(token) == "reader"
    provider.revoke("reader", token)
    world.now += 31
    await world.refused(token)


async def test_when_it_cannot_be_asked_nobody_is_let_in(world, provider):
    known = provider.token("reader", "features:read", "urn:features:opaque")
    other = provider.token("writer", "features:read", "urn:features:opaque")
    await world.check(known)
    provider.stop()
    assert await world.check(known) == "reader"
    with pytest.raises(StoreUnavailable):
        await world.check(other)
    world.now += 31
    with pytest.raises(StoreUnavailable):
        await world.check(known)


def test_its_secret_is_never_shown(provider, tmp_path):
    settings: Any = Platform(
        tmp_path, issuer=provider.url, audience=AUDIENCE, introspection_client=SERVER, introspection_secret=SECRET
    ).settings
    assert SECRET not in f"{settings!r}{settings.model_dump_json()}"
