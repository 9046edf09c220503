"""What one caller may cost: requests a second, by client and by all together."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_assets.server.limits import Quota
from tests.server.conftest import Platform, bearer, client_of, fill
from tests.server.issuers import AUDIENCE, ForeignIssuer

PATH = "/get-online-features"
QUESTION = {"features": ["weather:wind"], "entities": {"origin": ["JFK"]}}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    each=st.floats(0.5, 50),
    burst=st.integers(1, 20),
    pauses=st.lists(st.floats(0, 2), max_size=60),
)
def test_no_client_gets_more_than_its_rate_and_a_burst(each, burst, pauses):
    """In any stretch of time, wherever it begins."""
    clock = Clock()
    quota = Quota(each=each, burst=burst, clock=clock)
    admitted = []
    for pause in pauses:
        clock.now += pause
        if not quota.take("a"):
            admitted.append(clock.now)
    for first, start in enumerate(admitted):
        for last in range(first, len(admitted)):
            assert last - first + 1 <= burst + each * (admitted[last] - start) + 1e-6


@given(each=st.floats(0.5, 50), burst=st.integers(1, 20))
def test_whoever_waits_as_long_as_told_is_admitted(each, burst):
    clock = Clock()
    quota = Quota(each=each, burst=burst, clock=clock)
    for _ in range(3 * burst):
        wait = quota.take("a")
        if wait:
            clock.now += wait + 1e-6
            assert not quota.take("a")
    assert not quota.take("b")


def test_the_total_is_shared():
    quota = Quota(each=None, total=2, clock=Clock())
    assert [bool(quota.take(client)) for client in "abcd"] == [False, False, True, True]


def test_what_is_kept_of_clients_is_bounded(monkeypatch):
    from feature_assets.server import limits

    monkeypatch.setattr(limits, "_CLIENTS_KEPT", 2)
    quota = Quota(each=1, burst=1, clock=Clock())
    assert [bool(quota.take(client)) for client in "abbaca"] == [False, False, True, True, False, True]


async def test_who_asks_too_often_is_told_to_wait(tmp_path):
    platform = Platform(tmp_path, requests_per_second=0.01, burst=3)
    fill(platform)
    busy, other = bearer(platform.token(client="busy")), bearer(platform.token(client="other"))
    async with client_of(platform.app()) as http:
        answers = [await http.post(PATH, json=QUESTION, headers=busy) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        refused = answers[-1]
        assert refused.json()["type"] == "urn:feature-assets:problem:too-many-requests"
        assert 90 <= int(refused.headers["retry-after"]) <= 100
        # Another token of the same client is no way out; neither is another route.
        again = bearer(platform.token(client="busy"))
        assert (await http.post(PATH, json=QUESTION, headers=again)).status_code == 429
        assert (await http.get("/v1/features", headers=again)).status_code == 429
        assert (await http.post(PATH, json=QUESTION, headers=other)).status_code == 200
        assert (await http.get("/health")).status_code == 200
        wrong = await http.post(PATH, json=QUESTION, headers=bearer("no.such.token"))
        assert wrong.status_code == 401
    platform.store.close()


async def test_what_is_answered_at_once_counts_once(tmp_path):
    platform = Platform(tmp_path, requests_per_second=0.01, burst=4)
    fill(platform)
    headers = [(b"authorization", f"Bearer {platform.token()}".encode())]
    body = json.dumps(QUESTION).encode()
    app = platform.app()
    async with client_of(app) as http:
        assert (await http.post(PATH, content=body, headers=headers)).status_code == 200
        at_once = app.gate.at_once[b"POST", PATH.encode()]
        assert [at_once(headers, body, []) is not None for _ in range(5)] == [True, True, True, False, False]
        assert (await http.post(PATH, content=body, headers=headers)).status_code == 429
    platform.store.close()


@pytest.mark.parametrize(
    ("host", "asked", "there"),
    [
        ("127.0.0.1", None, True),
        ("127.0.0.1", False, False),
        ("0.0.0.0", None, False),
        ("0.0.0.0", True, True),
    ],
)
async def test_what_the_routes_are_is_shown_on_loopback_or_if_asked_for(host, asked, there, tmp_path):
    with ForeignIssuer() as issuer:
        platform = Platform(tmp_path, host=host, issuer=issuer.url, audience=AUDIENCE, openapi=asked)
        async with client_of(platform.app()) as http:
            assert (await http.get("/openapi.json")).status_code == (200 if there else 404)
            assert (await http.get("/docs")).status_code == (200 if there else 404)
    platform.store.close()
