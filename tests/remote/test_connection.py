"""Tokens that end, servers that are away or busy, and one deadline over all of it: against real servers."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from feature_assets import ConfigurationError, FeatureStore, NotPublished, StoreUnavailable, Unauthenticated
from feature_assets.remote import refusals
from feature_assets.remote.refusals import error_of, may_pass
from feature_assets.server.problems import _KINDS, problem_of
from tests.server.conftest import Platform, fill, served

ASKED = (["weather:temp"], {"origin": ["JFK"]})


@pytest.fixture(scope="module")
def platform(tmp_path_factory) -> Iterator[Platform]:
    made = Platform(tmp_path_factory.mktemp("platform"), token_lifetime_seconds=1)
    fill(made)
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def url(platform, tmp_path_factory) -> Iterator[str]:
    with served(platform, tmp_path_factory.mktemp("server") / "log") as (host, port):
        yield f"http://{host}:{port}"


def test_a_client_gets_tokens_from_the_issuer_that_the_server_names_and_renews_them(platform, url):
    """They live for a second, and the server allows thirty more: it is the client that does not wait for a refusal."""
    client, secret = platform.issuer.add_client("web", ["features:read", "registry:read"])
    with FeatureStore.remote(url, client_id=client, client_secret=secret, scope="features:read") as store:
        tokens = store._connection._tokens
        seen = set()
        while len(seen) < 3:
            assert store.get_online_features(*ASKED)["temp"] == [40.5]
            seen.add(tokens._token)
        with pytest.raises(PermissionError, match="registry:read"):
            store.refresh()


async def test_coroutines_get_tokens_too(platform, url):
    client, secret = platform.issuer.add_client("web", ["features:read"])
    async with FeatureStore.remote(url, client_id=client, client_secret=secret) as store:
        found = await asyncio.gather(*(store.get_online_features_async(*ASKED) for _ in range(5)))
    assert [one["temp"] for one in found] == [[40.5]] * 5


def test_a_wrong_secret_is_told_without_it(platform, url):
    client, _ = platform.issuer.add_client("web", ["features:read"])
    with FeatureStore.remote(url, client_id=client, client_secret="guessed") as store:
        with pytest.raises(Unauthenticated, match=client) as refused:
            store.get_online_features(*ASKED)
        assert "guessed" not in str(refused.value) + repr(store)


def test_a_token_that_is_taken_no_longer_is_replaced_once(platform, url):
    """By what gives tokens; a fixed one is refused at once."""
    given = iter(["x.y.z", "x.y.z", platform.token("features:read"), platform.token("features:read")])
    with FeatureStore.remote(url, token=lambda: next(given)) as store, pytest.raises(Unauthenticated):
        store.get_online_features(*ASKED)
    stale = iter(["x.y.z", *[platform.token("features:read")] * 2])
    with FeatureStore.remote(url, token=lambda: next(stale)) as store:
        assert store.get_online_features(*ASKED)["temp"] == [40.5]
    with FeatureStore.remote(url, token="x.y.z") as store, pytest.raises(Unauthenticated):
        store.get_online_features(*ASKED)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_a_server_that_is_not_there_is_waited_for_until_the_deadline():
    nowhere = f"http://127.0.0.1:{free_port()}"
    with (
        FeatureStore.remote(nowhere, token="t", deadline=0.3) as store,
        pytest.raises(StoreUnavailable, match="cannot be reached"),
    ):
        store.get_online_features(*ASKED)
    with (
        FeatureStore.remote(nowhere, client_id="a", client_secret="b", deadline=0.3) as store,
        pytest.raises(StoreUnavailable, match="No token is to be had"),
    ):
        store.get_online_features(*ASKED)


class Moody(threading.Thread):
    """Answers its connections one after another by what it is told: nothing at all, half of an answer, or some bytes."""

    def __init__(self, *answers: bytes) -> None:
        super().__init__(daemon=True)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._answers = answers
        self.bodies: list[bytes] = []

    def run(self) -> None:
        with self._socket:
            for answer in self._answers:
                connection, _ = self._socket.accept()
                with connection:
                    received = b""
                    while b"\r\n\r\n" not in received:
                        received += connection.recv(65_536)
                    head, _, body = received.partition(b"\r\n\r\n")
                    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or b"0")
                    while len(body) < length:
                        body += connection.recv(65_536)
                    self.bodies.append(body)
                    connection.sendall(answer)


def answer(status: str, body: Any, *headers: str) -> bytes:
    content = orjson.dumps(body)
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(content)}", "connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + content


def problem(kind: str) -> dict[str, str]:
    return {"type": f"urn:feature-assets:problem:{kind}", "detail": f"it is {kind}"}


GOOD = answer(
    "200 OK",
    {
        "results": [{"values": ["JFK"], "statuses": ["PRESENT"], "event_timestamps": ["1970-01-01T00:00:00Z"]}],
        "metadata": {"columns": [{"name": "origin", "type": "String", "view": None}], "entities": {"origin": "String"}},
    },
)


@pytest.mark.parametrize(
    "first",
    [
        b"",
        GOOD[:-30],
        answer("503 Service Unavailable", problem("store-unavailable"), "retry-after: 0"),
        answer("429 Too Many Requests", problem("too-many-requests"), "retry-after: 0.01"),
        answer("502 Bad Gateway", "<html>"),
    ],
    ids=["nothing", "half", "503", "429", "502"],
)
def test_what_may_pass_is_tried_again_with_the_same_body(first):
    server = Moody(first, first, GOOD)
    server.start()
    with FeatureStore.remote(server.url, token="t") as store:
        assert store.get_online_features(*ASKED)["origin"] == ["JFK"]
    assert len(set(server.bodies)) == 1
    assert len(server.bodies) == 3


def test_who_asks_to_be_left_alone_longer_than_there_is_time_is():
    server = Moody(answer("503 Service Unavailable", problem("busy"), "retry-after: 3600"))
    server.start()
    with FeatureStore.remote(server.url, token="t", deadline=5) as store, pytest.raises(StoreUnavailable, match="busy"):
        store.get_online_features(*ASKED)


@pytest.mark.parametrize(
    "said, of",
    [
        (answer("503 Service Unavailable", problem("no-registry"), "retry-after: 1"), NotPublished),
        (answer("500 Internal Server Error", problem("internal")), StoreUnavailable),
        (answer("302 Found", "", "location: http://127.0.0.1:1/"), StoreUnavailable),
        (answer("200 OK", {"hello": "world"}), StoreUnavailable),
        (answer("200 OK", ["nothing"]), StoreUnavailable),
    ],
)
def test_what_will_not_pass_is_told_at_once(said, of):
    server = Moody(said)
    server.start()
    with FeatureStore.remote(server.url, token="t") as store, pytest.raises(of):
        store.get_online_features(*ASKED)


def test_every_refusal_of_the_server_comes_back_as_the_error_that_it_was():
    for of, status, kind, instead in _KINDS:
        raised = problem_of(of(instead or "as it was"))
        assert raised is not None
        sent = httpx.Response(status, content=raised.document("1"), request=httpx.Request("GET", "http://127.0.0.1"))
        back = error_of(sent)
        assert isinstance(back, of) or kind == "bad-form", kind
        assert may_pass(sent) is (status == 503 and kind not in refusals._LASTING)


@pytest.mark.parametrize(
    "url, options, words",
    [
        ("http://features.example.com", {"token": "t"}, "not HTTPS"),
        ("ftp://127.0.0.1", {"token": "t"}, "not HTTPS"),
        ("features.example.com", {"token": "t"}, "not HTTPS"),
        ("https://features.example.com", {}, "Give either a token"),
        ("https://features.example.com", {"token": "t", "client_id": "a", "client_secret": "b"}, "Give either"),
        ("https://features.example.com", {"client_id": "a"}, "Give either"),
    ],
)
def test_what_cannot_be_right_is_said_when_it_is_made(url, options, words):
    with pytest.raises(ConfigurationError, match=words):
        FeatureStore.remote(url, **options)


def test_a_token_goes_in_clear_to_another_machine_only_where_that_is_said():
    assert FeatureStore.remote("http://features.internal", token="t", allow_http=True).url == "http://features.internal"


def test_a_secret_is_not_sent_to_an_issuer_in_clear(tmp_path: Path):
    """The server names it, and whoever answers for the server might name anything."""
    server = Moody(answer("200 OK", {"authorization_servers": ["http://login.example.com"]}))
    server.start()
    with (
        FeatureStore.remote(server.url, client_id="a", client_secret="b") as store,
        pytest.raises(ConfigurationError, match="not HTTPS"),
    ):
        store.get_online_features(*ASKED)
