"""Tokens that only their issuer can read: it is asked, its answer is kept for a while, and without it nobody is let in."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from pydantic import SecretStr

from feature_assets.config import ServerSettings, Settings
from feature_assets.errors import ConfigurationError, StoreUnavailable, Unauthenticated
from feature_assets.server.auth import TokenValidator
from feature_assets.server.foreign import ForeignIssuer as Asked
from feature_assets.server.introspection import Introspection
from feature_assets.server.keys import KeyCache
from tests.server.conftest import Platform, bearer, client_of, fill
from tests.server.issuers import AUDIENCE, INTROSPECTOR, OPAQUE_BAD, OPAQUE_GOOD, ForeignIssuer

PATH = "/get-online-features"
QUESTION = {"features": ["weather:wind"], "entities": {"origin": ["JFK"]}}
CLIENT, SECRET = INTROSPECTOR
SECONDS = 30.0


@pytest.fixture(scope="module")
def issuer() -> Iterator[ForeignIssuer]:
    with ForeignIssuer() as made:
        yield made


@pytest.fixture(scope="module")
def asking(issuer, tmp_path_factory) -> Iterator[Platform]:
    """A platform whose server asks the foreign issuer about tokens."""
    made = Platform(
        tmp_path_factory.mktemp("asking"),
        issuer=issuer.url,
        audience=AUDIENCE,
        introspection_client=CLIENT,
        introspection_secret=SECRET,
    )
    fill(made)
    yield made
    made.store.close()


@pytest.fixture(scope="module")
async def http(asking) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(asking.app()) as client:
        yield client


async def ask(client: httpx.AsyncClient, token: str | bytes) -> httpx.Response:
    return await client.post(PATH, json=QUESTION, headers=bearer(token))


@pytest.mark.parametrize("said", OPAQUE_GOOD.values(), ids=OPAQUE_GOOD)
async def test_accepted(said, http, issuer):
    answer = await ask(http, issuer.opaque_token(**said))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("said", OPAQUE_BAD.values(), ids=OPAQUE_BAD)
async def test_refused(said, http, issuer):
    answer = await ask(http, issuer.opaque_token(**said))
    assert answer.status_code == 401, answer.text
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("token", ["unknown", "a b", "a=b", "ключ".encode(), b"\xff", "x" * 20_000, "a.b", "==", "..."])
async def test_what_the_issuer_does_not_know(token, http):
    assert (await ask(http, token)).status_code == 401


@pytest.mark.parametrize("said", ["[]", '"active"', None, [True], 5], ids=repr)
async def test_an_answer_that_is_none(said, http, issuer):
    issuer.opaque["odd"] = said
    answer = await ask(http, "odd")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:feature-assets:problem:issuer-unreachable")


async def test_a_jwt_is_read_here_and_not_asked_about(http, issuer):
    before = issuer.requests.count("/introspect")
    assert (await ask(http, issuer.token())).status_code == 200
    assert (await ask(http, issuer.token(aud="other"))).status_code == 401
    assert (await ask(http, issuer.token(header={"typ": "JWT"}))).status_code == 401
    assert issuer.requests.count("/introspect") == before


async def test_without_a_client_for_it_nobody_is_asked(issuer, tmp_path):
    platform = Platform(tmp_path, issuer=issuer.url, audience=AUDIENCE)
    fill(platform)
    before = issuer.requests.count("/introspect")
    async with client_of(platform.app()) as http:
        assert (await ask(http, issuer.opaque_token())).status_code == 401
    assert issuer.requests.count("/introspect") == before
    platform.store.close()


# What is kept, and for how long.


class World:
    """A validator with a clock that stands until it is moved."""

    def __init__(self, issuer: ForeignIssuer, **options: str) -> None:
        self.now = 1_000.0
        self.issuer = issuer
        self.foreign = asked = Asked(issuer.url, **({"client_id": CLIENT, "secret": SECRET} | options))
        introspection = Introspection(asked.introspected, seconds=SECONDS, clock=lambda: self.now)
        keys = KeyCache(asked.keys, clock=lambda: self.now)
        self.validator = TokenValidator(
            issuer.url, AUDIENCE, keys, introspection=introspection, clock=lambda: 1_000_000_000 + self.now
        )

    def token(self, **said: object) -> str:
        return self.issuer.opaque_token(iat=None, exp=1_000_000_000 + self.now + 600, **said)

    async def check(self, token: str) -> str:
        return (await self.validator.validated(token.encode())).subject

    @property
    def asked(self) -> int:
        return self.issuer.requests.count("/introspect")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    with ForeignIssuer() as issuer:
        made = World(issuer)
        yield made
        await made.foreign.close()


async def test_an_answer_is_kept_for_its_time(world):
    token = world.token()
    for _ in range(5):
        assert await world.check(token) == "scorer"
    assert world.asked == 1
    world.now += SECONDS + 1
    await world.check(token)
    assert world.asked == 2


async def test_a_revoked_token_goes_on_for_that_time_at_most(world):
    token = world.token()
    await world.check(token)
    world.issuer.opaque[token] = {"active": False}
    world.now += SECONDS - 1
    await world.check(token)
    world.now += 2
    with pytest.raises(Unauthenticated, match="not active"):
        await world.check(token)


async def test_nothing_is_kept_beyond_the_end_of_the_token(world):
    token = world.issuer.opaque_token(iat=None, exp=1_000_000_000 + world.now + 5)
    await world.check(token)
    world.now += 6
    with pytest.raises(Unauthenticated, match="expired"):
        await world.check(token)


async def test_a_refused_token_is_not_asked_about_again_at_once(world):
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            await world.check("unknown")
    assert world.asked == 1
    world.now += SECONDS + 1
    with pytest.raises(Unauthenticated):
        await world.check("unknown")
    assert world.asked == 2


async def test_many_at_once_ask_once(world):
    world.issuer.lasting = 0.1
    token = world.token()
    assert set(await asyncio.gather(*[world.check(token) for _ in range(20)])) == {"scorer"}
    assert world.asked == 1


async def test_who_goes_away_takes_nobody_else_along(world):
    world.issuer.lasting = 0.2
    token = world.token()
    first, second = asyncio.create_task(world.check(token)), asyncio.create_task(world.check(token))
    await asyncio.sleep(0.05)
    first.cancel()
    assert await second == "scorer"
    assert world.asked == 1


async def test_without_the_issuer_nobody_new_is_let_in(world):
    known, other = world.token(), world.token()
    await world.check(known)
    world.issuer.down = True
    await world.check(known)
    with pytest.raises(StoreUnavailable):
        await world.check(other)
    world.now += SECONDS + 1
    with pytest.raises(StoreUnavailable):
        await world.check(known)
    world.issuer.down = False
    assert await world.check(known) == "scorer"


async def test_a_client_that_the_issuer_does_not_know_lets_nobody_in_and_tells_no_secret(world, caplog):
    wrong = World(world.issuer, secret="planted-secret")
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreUnavailable) as caught:
        await wrong.check(world.token())
    assert "answers with status 401" in caplog.text
    assert "planted-secret" not in caplog.text + str(caught.value)


async def test_an_issuer_that_wants_the_secret_in_the_form(world):
    world.issuer.metadata = {"introspection_endpoint_auth_methods_supported": ["client_secret_post"]}
    assert await world.check(world.token()) == "scorer"


@pytest.mark.parametrize("place", ["http://example.com/introspect", "file:///etc/passwd", None, 5], ids=str)
async def test_an_endpoint_that_is_not_protected_gets_no_token(place, world, caplog):
    world.issuer.metadata = {"introspection_endpoint": place}
    with pytest.raises(StoreUnavailable):
        await world.check(world.token())
    assert "the introspection_endpoint of" in caplog.text
    assert world.asked == 0


def test_the_secret_is_never_printed():
    server = ServerSettings(
        issuer="https://login.example.com", introspection_client="server", introspection_secret=SecretStr("planted")
    )
    settings = Settings(server=server)
    assert "planted" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"introspection_client": "server"}, "introspection_client and introspection_secret go together"),
        ({"introspection_secret": "planted"}, "introspection_client and introspection_secret go together"),
        ({"introspection_client": "server", "introspection_secret": "planted"}, "set issuer too"),
    ],
)
def test_settings_that_do_not_go_together(given, said, tmp_path, monkeypatch):
    (tmp_path / "feature_assets.toml").write_text(
        "[server]\n" + "".join(f'{name} = "{value}"\n' for name, value in given.items())
    )
    with pytest.raises(ConfigurationError, match=said) as caught:
        Settings.load(tmp_path / "feature_assets.toml")
    assert "planted" not in str(caught.value)
