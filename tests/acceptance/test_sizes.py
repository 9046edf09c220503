"""B2: what is far too large or too deep is refused at once, in few words, and takes no memory."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from feature_assets.access import ACTS
from tests.acceptance.running import MEGABYTE, Running, serving, tell
from tests.server.conftest import Platform, bearer, fill

pytestmark = [
    pytest.mark.quick,
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(), reason="the system does not tell what memory peaked at"
    ),
]

HUGE = 100_000_000
PIECE = b" " * 65_536
DEEP = b"[" * 100_000
LETTERS = b"a" * 1_000_000
ROUTES = ["/get-online-features", "/push", "/write-to-online-store", "/v1/historical-features"]


@pytest.fixture(scope="module")
def platform(tmp_path_factory) -> Iterator[Platform]:
    made = Platform(tmp_path_factory.mktemp("platform"), audit="audit.jsonl")
    fill(made)
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def running(platform) -> Iterator[Running]:
    with serving(platform) as found:
        # What it loads and opens when it is first asked is no growth.
        question = {"features": ["weather:wind"], "entities": {"origin": ["JFK"]}}
        for path in ROUTES:
            httpx.post(f"{found.url}{path}", json=question, headers=bearer(platform.token(*ACTS)), timeout=60)
        yield found


class Reply(NamedTuple):
    status: int
    head: bytes
    body: bytes
    sent: int
    seconds: float


def ask(port: int, head: list[str], body: Iterator[bytes]) -> Reply:
    """Send all of it, or until there is an answer; the answer, and how long it took from the first byte sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as wire:
        begun, sent = time.monotonic(), 0
        wire.sendall("\r\n".join([*head, "", ""]).encode())
        wire.setblocking(False)
        received = b""
        for piece in body:
            left = memoryview(piece)
            while left and not received:
                try:
                    count = wire.send(left)
                    left, sent = left[count:], sent + count
                except BlockingIOError:
                    time.sleep(0.0005)
                received += heard(wire)
            if received:
                break
        wire.settimeout(60)
        while b"\r\n\r\n" not in received:
            received += wire.recv(1 << 16)
        seconds = time.monotonic() - begun
        top, _, rest = received.partition(b"\r\n\r\n")
        length = int(next(line for line in top.lower().split(b"\r\n") if line.startswith(b"content-length:"))[15:])
        while len(rest) < length:
            rest += wire.recv(1 << 16)
        return Reply(int(top.split()[1]), top, rest, sent, seconds)


def heard(wire: socket.socket) -> bytes:
    try:
        return wire.recv(1 << 16)
    except BlockingIOError:
        return b""


def chunked(size: int) -> Iterator[bytes]:
    for _ in range(size // len(PIECE)):
        yield b"%x\r\n%b\r\n" % (len(PIECE), PIECE)


def plain(size: int) -> Iterator[bytes]:
    for _ in range(size // len(PIECE)):
        yield PIECE


def whole(body: bytes) -> Iterator[bytes]:
    for at in range(0, len(body), 1 << 16):
        yield body[at : at + (1 << 16)]


def bodies(path: str) -> dict[str, tuple[list[str], Iterator[bytes], set[int]]]:
    question = {
        "/push": b'{"push_source_name": %b, "df": {"a": [1]}}',
        "/write-to-online-store": b'{"feature_view_name": %b, "df": {"a": [1]}}',
    }.get(path, b'{"features": [%b], "entities": {"origin": ["JFK"]}}')
    deep, text = question % (DEEP + b"]" * len(DEEP)), question % (b'"' + LETTERS + b'"')
    return {
        "100 MB, with its length": ([f"content-length: {HUGE}"], plain(HUGE), {413}),
        "100 MB, in chunks": (["transfer-encoding: chunked"], chunked(HUGE), {413}),
        "100,000 deep": ([f"content-length: {len(deep)}"], whole(deep), {400, 422}),
        "a text of 1 MB": ([f"content-length: {len(text)}"], whole(text), {400, 404, 422}),
        "headers of 70 KB": ([f"x-large: {'a' * 70_000}", "content-length: 2"], whole(b"{}"), {431}),
    }


@pytest.mark.parametrize("path", ROUTES)
def test_too_much_is_refused_at_once_in_few_words_and_takes_no_memory(path, platform, running):
    token = platform.token(*ACTS)
    head = [f"POST {path} HTTP/1.1", "host: x", f"authorization: Bearer {token}", "content-type: application/json"]
    running.forget_peak()
    anonymous, peak = running.memory("RssAnon"), running.memory("VmHWM")
    for turn in range(2):
        for name, (lines, body, expected) in bodies(path).items():
            reply = ask(running.port, [*head, *lines], body)
            assert reply.status in expected, (name, reply)
            assert len(reply.body) < 4_096, name
            assert json.loads(reply.body)["status"] == reply.status
            if turn:
                tell(
                    f"B2 {path}, {name}",
                    answer=reply.status,
                    after=f"{reply.seconds * 1e3:.0f} ms",
                    sent=f"{reply.sent / 1e6:.1f} MB",
                    bytes_of_answer=len(reply.body),
                )
    grown = running.memory("RssAnon") - anonymous, running.memory("VmHWM") - peak
    tell(f"B2 {path}", grown=f"{grown[0] / MEGABYTE:.1f} MB", peak=f"{grown[1] / MEGABYTE:.1f} MB")
    assert max(grown) < 10 * MEGABYTE
    assert httpx.get(f"{running.url}/health").status_code == 200


@pytest.mark.parametrize("scopes", [ACTS, ["features:push:other_*"], ["features:read:other_*"]], ids=str)
def test_what_is_told_of_it_in_the_logs_is_short(scopes, platform, running):
    """A megabyte that is repeated in each of them would fill a disk as fast as anybody can send."""
    audit = platform.settings.root / "audit.jsonl"
    token = platform.token(*scopes)
    for path in ROUTES:
        head = [f"POST {path} HTTP/1.1", "host: x", f"authorization: Bearer {token}", "content-type: application/json"]
        for lines, body, _ in bodies(path).values():
            assert 400 <= ask(running.port, [*head, *lines], body).status < 500
    time.sleep(0.5)
    for log in (running.log, audit):
        assert max(map(len, log.read_bytes().splitlines())) < 4_096, log.name


def test_without_a_token_no_body_is_taken(platform, running):
    running.forget_peak()
    peak = running.memory("VmHWM")
    for path in ROUTES:
        head = [f"POST {path} HTTP/1.1", "host: x"]
        for lines, body in (
            ([f"content-length: {HUGE}"], plain(HUGE)),
            (["transfer-encoding: chunked"], chunked(HUGE)),
        ):
            reply = ask(running.port, [*head, *lines], body)
            assert reply.status == 401
            assert reply.sent < 20_000_000
    assert running.memory("VmHWM") - peak < 10 * MEGABYTE
