"""Which tokens count: a table, at the level of HTTP. No wrong one is accepted, and none makes the server fail."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_assets.config import ServerSettings
from feature_assets.errors import StoreUnavailable, Unauthenticated
from feature_assets.server.auth import TokenValidator
from feature_assets.server.foreign import ForeignIssuer as Asked
from feature_assets.server.keys import KeyCache
from tests.server.conftest import Platform, bearer, client_of, fill
from tests.server.issuers import AUDIENCE, BAD, GOOD, ForeignIssuer
from tests.server.wires import serving

PATH = "/get-online-features"
QUESTION = {"features": ["weather:wind"], "entities": {"origin": ["JFK"]}}


@pytest.fixture(scope="module")
def issuer() -> Iterator[ForeignIssuer]:
    with ForeignIssuer() as made:
        yield made


@pytest.fixture(scope="module")
def trusting(issuer, tmp_path_factory) -> Iterator[Platform]:
    """A platform whose server takes the foreign issuer's tokens."""
    made = Platform(tmp_path_factory.mktemp("trusting"), issuer=issuer.url, audience=AUDIENCE)
    fill(made)
    yield made
    made.store.close()


@pytest.fixture(scope="module")
async def guarded(trusting) -> AsyncIterator[httpx.AsyncClient]:
    """A client of that server."""
    async with client_of(trusting.app()) as client:
        yield client


async def ask(client: httpx.AsyncClient, token: str | bytes) -> httpx.Response:
    return await client.post(PATH, json=QUESTION, headers=bearer(token))


@pytest.mark.parametrize("made", GOOD.values(), ids=GOOD)
async def test_accepted(made, guarded, issuer):
    answer = await ask(guarded, made(issuer))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("made", BAD.values(), ids=BAD)
async def test_refused(made, guarded, issuer):
    answer = await ask(guarded, made(issuer))
    assert answer.status_code == 401, answer.text
    challenge = answer.headers["www-authenticate"]
    assert challenge.startswith('Bearer realm="feature-assets", error="invalid_token", error_description="')
    assert 'resource_metadata="http://127.0.0.1:6566/.well-known/oauth-protected-resource"' in challenge
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 1_000
    assert "wind" not in answer.text


async def test_over_a_socket_it_is_the_same(trusting, issuer):
    """Each is sent after a good one that is known, on the same connection: the way that takes the fewest steps."""
    known = issuer.token()
    async with serving(trusting) as server, httpx.AsyncClient(base_url=server.url) as client:
        for name, made in (GOOD | BAD).items():
            assert (await ask(client, known)).status_code == 200
            token = made(issuer)
            for answer in (await ask(client, token), await ask(client, token)):
                # What is larger than headers may be is not looked at at all.
                expected = 200 if name in GOOD else 431 if len(token) > 65_536 else 401
                assert answer.status_code == expected, f"{name}: {answer.text}"
                assert "wind" in answer.text or name in BAD
                assert ("www-authenticate" in answer.headers) == (expected == 401)


async def test_the_embedded_issuer_goes_the_same_way(platform, http):
    """Its own token is good; one that another instance made is not."""
    assert (await ask(http, platform.token())).status_code == 200
    other = Platform(platform.settings.root / "other")
    assert (await ask(http, other.token())).status_code == 401
    other.store.close()


@pytest.mark.parametrize(
    ("header", "status", "code"),
    [
        (None, 401, None),
        ("", 401, None),
        ("Basic dXNlcjpwYXNz", 401, None),
        ("Token abc", 401, None),
        ("Bearer", 401, None),
        ("Bearer ", 401, "invalid_token"),
        ("Bearer a b", 401, "invalid_token"),
    ],
)
async def test_without_a_token_no_error_code_is_given(header, status, code, http):
    answer = await http.post(PATH, json=QUESTION, headers={} if header is None else {"authorization": header})
    assert answer.status_code == status
    assert ("error=" in answer.headers["www-authenticate"]) == (code is not None)
    assert code is None or f'error="{code}"' in answer.headers["www-authenticate"]


async def test_two_headers_are_one_too_many(platform, http):
    token = platform.token()
    headers = [("authorization", f"Bearer {token}"), ("authorization", f"Bearer {token}")]
    answer = await http.post(PATH, json=QUESTION, headers=headers)
    assert answer.status_code == 400
    assert 'error="invalid_request"' in answer.headers["www-authenticate"]
    lower = await http.post(PATH, json=QUESTION, headers={"authorization": f"bearer {token}"})
    assert lower.status_code == 200


async def test_a_token_elsewhere_is_not_looked_for(platform, http):
    token = platform.token()
    assert (await http.post(f"{PATH}?access_token={token}", json=QUESTION)).status_code == 401
    assert (await http.post(PATH, json={**QUESTION, "access_token": token})).status_code == 401
    assert (await http.post(PATH, json=QUESTION, headers={"cookie": f"access_token={token}"})).status_code == 401


async def test_a_token_is_looked_at_again_once_it_has_expired(issuer):
    now = [0.0]
    validator = TokenValidator(
        issuer.url, AUDIENCE, KeyCache(Asked(issuer.url).keys), clock=lambda: now[0] + 1_000_000_000
    )
    token = issuer.token(iat=1_000_000_000, exp=1_000_000_060).encode()
    assert (await validator.validated(token)).subject == "user-1"
    assert validator.remembered(token) is not None
    now[0] = 89
    assert validator.remembered(token) is not None
    now[0] = 91
    assert validator.remembered(token) is None
    with pytest.raises(Unauthenticated, match="expired"):
        await validator.validated(token)


async def test_what_is_remembered_is_bounded(issuer, monkeypatch):
    from feature_assets.server import auth

    monkeypatch.setattr(auth, "_REMEMBERED", 3)
    validator = TokenValidator(issuer.url, AUDIENCE, KeyCache(Asked(issuer.url).keys))
    tokens = [issuer.token(jti=str(number)).encode() for number in range(5)]
    for token in tokens:
        await validator.validated(token)
    assert [validator.remembered(token) is not None for token in tokens] == [False, False, True, True, True]


async def no_keys() -> object:
    return {"keys": []}


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_bytes_do_more_than_be_refused(token):
    validator = TokenValidator("http://127.0.0.1:1", AUDIENCE, KeyCache(no_keys))
    with pytest.raises(Unauthenticated):
        asyncio.run(validator.validated(token))


# Rotation, removal, outage.


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def rotating() -> Iterator[ForeignIssuer]:
    with ForeignIssuer() as made:
        yield made


def validator_of(issuer: ForeignIssuer, clock: Clock) -> tuple[TokenValidator, KeyCache]:
    keys = KeyCache(Asked(issuer.url).keys, clock=clock)
    return TokenValidator(issuer.url, AUDIENCE, keys), keys


def fetches(issuer: ForeignIssuer) -> int:
    return issuer.requests.count("/keys")


async def test_a_new_key_is_fetched_once_and_made_up_ids_fetch_nothing(rotating):
    clock = Clock()
    validator, _ = validator_of(rotating, clock)
    await validator.validated(rotating.token().encode())
    assert fetches(rotating) == 1
    rotating.keys["fresh"] = type(rotating.keys["ec"]).generate_key("P-256")
    token = rotating.token(key="fresh").encode()
    with pytest.raises(Unauthenticated):
        await validator.validated(token)
    clock.now += 31
    assert await validator.validated(token)
    assert fetches(rotating) == 2
    clock.now += 31
    made_up = [rotating.token(header={"kid": f"made-up-{number}"}).encode() for number in range(200)]
    refused = await asyncio.gather(*map(validator.validated, made_up), return_exceptions=True)
    assert {type(one) for one in refused} == {Unauthenticated}
    assert fetches(rotating) == 3


async def test_a_removed_key_is_refused_with_the_next_fetch_remembered_or_not(rotating):
    clock = Clock()
    validator, keys = validator_of(rotating, clock)
    token = rotating.token(key="rsa", alg="RS256").encode()
    await validator.validated(token)
    del rotating.keys["rsa"]
    clock.now += 31
    await keys.refresh()
    assert validator.remembered(token) is None
    with pytest.raises(Unauthenticated):
        await validator.validated(token)


async def test_known_keys_outlive_the_issuer_for_a_while(rotating):
    clock = Clock()
    validator, keys = validator_of(rotating, clock)
    await validator.validated(rotating.token().encode())
    rotating.down = True
    clock.now += 3_600
    await keys.refresh()
    assert await validator.validated(rotating.token(jti="2").encode())
    clock.now += 6 * 3_600
    with pytest.raises(StoreUnavailable):
        await validator.validated(rotating.token(jti="3").encode())
    rotating.down = False
    clock.now += 31
    assert await validator.validated(rotating.token(jti="4").encode())


async def test_an_issuer_that_was_never_reached_is_no_reason_to_let_anybody_in(rotating, tmp_path):
    rotating.down = True
    platform = Platform(tmp_path, issuer=rotating.url, audience=AUDIENCE)
    fill(platform)
    async with client_of(platform.app()) as http:
        answer = await ask(http, rotating.token())
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:feature-assets:problem:issuer-unreachable")
    assert answer.headers["retry-after"]
    platform.store.close()


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "http://127.0.0.1:1/other"},
        {"jwks_uri": "http://example.com/keys"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": None},
        {"jwks_uri": 5},
    ],
    ids=str,
)
async def test_metadata_that_leads_elsewhere_is_not_followed(metadata, rotating):
    rotating.metadata = metadata
    validator, _ = validator_of(rotating, Clock())
    with pytest.raises(StoreUnavailable):
        await validator.validated(rotating.token().encode())
    assert fetches(rotating) == 0


async def test_roles_groups_and_claims_are_taken_from_where_the_settings_say(rotating):
    keys = KeyCache(Asked(rotating.url).keys)
    paths = ["roles", "resource_access.features.roles", "realm.access.roles"]
    validator = TokenValidator(
        rotating.url, AUDIENCE, keys, role_claims=paths, group_claims=["https://acme.example/groups"]
    )
    claims = rotating.claims(
        roles="auditor",
        resource_access={"features": {"roles": ["risk", "fraud"]}, "other": {"roles": ["admin"]}},
        realm={"access": {"tenant": 7}, "access.tenant": 8, "name": "acme"},
        groups=["not asked for"],
        level=3,
        staff=True,
        ratio=0.5,
        huge=2**64,
        nothing=None,
        long="x" * 600,
    )
    claims["https://acme.example/groups"] = ["/risk/analysts"]
    found = await validator.validated(rotating.token(claims).encode())
    assert found.roles == {"auditor", "risk", "fraud"}
    assert found.groups == {"/risk/analysts"}
    assert found.names == {
        "role:auditor",
        "role:risk",
        "role:fraud",
        "group:/risk/analysts",
        "client:scorer",
        "subject:user-1",
    }
    # Of two claims at one path neither counts; lists, fractions and long texts are nothing to compare a key with.
    values = {name: found.claims.get(name) for name in ("realm.name", "level", "staff", "sub")}
    assert values == {"realm.name": "acme", "level": 3, "staff": True, "sub": "user-1"}
    assert not {"realm.access.tenant", "ratio", "huge", "nothing", "long", "groups"} & found.claims.keys()


def test_the_table_is_as_long_as_it_should_be():
    assert len(GOOD) + len(BAD) >= 62
    assert isinstance(ServerSettings().audience, str)
