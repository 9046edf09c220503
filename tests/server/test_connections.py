"""What comes over a socket: slowly, too much of it, not at all, or just when the server ends. All of it for real."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from feature_assets.server import connections, process
from tests.server.conftest import Platform, fill
from tests.server.wires import PATH, QUESTION, Server, Wire, serving, until


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Iterator[Platform]:
    platform = Platform(tmp_path_factory.mktemp("connections"), body_timeout_seconds=0.4)
    fill(platform)
    yield platform
    platform.store.close()


@pytest.fixture
async def server(filled, monkeypatch) -> AsyncIterator[Server]:
    monkeypatch.setattr(connections, "SECONDS_FOR_HEADERS", 0.4)
    monkeypatch.setattr(connections, "SECONDS_TO_LEAVE", 0.1)
    async with serving(filled) as made:
        yield made


Sent = Callable[[Server], bytes]

STALLED: dict[str, Sent] = {
    "nothing": lambda server: b"",
    "half a request line": lambda server: b"POST /get-onl",
    "half the headers": lambda server: server.head()[:-20],
    "headers without their end": lambda server: server.head()[:-2],
    "no body": lambda server: server.head(length=100),
    "half the body": lambda server: server.question()[:-10],
    "half a chunk": lambda server: server.head("transfer-encoding: chunked") + b"40\r\n{",
    "no last chunk": lambda server: server.head("transfer-encoding: chunked") + b"2\r\n{}\r\n",
    "half a second request": lambda server: server.question()[:-10],
}


@pytest.mark.parametrize("sent", STALLED.values(), ids=STALLED)
async def test_who_stops_sending_is_cut_off(sent, server):
    async with server.connected() as wire:
        await wire.send(sent(server))
        answer = await wire.answer()
        assert answer.status == 408, answer
        assert json.loads(answer.body)["type"] == "urn:feature-assets:problem:slow-request"
        assert answer.headers["connection"] == "close"
        assert await wire.rest() == b""


async def test_who_sends_a_letter_at_a_time_is_cut_off_too(server):
    async with server.connected() as wire:
        sending = asyncio.create_task(letter_by_letter(wire, server.head()))
        answer = await wire.answer()
        sending.cancel()
        assert answer.status == 408
        assert await wire.rest() == b""


async def letter_by_letter(wire: Wire, data: bytes) -> None:
    for letter in data:
        await wire.send(bytes([letter]))
        await asyncio.sleep(0.02)


# Seconds are long here beside the pauses of the senders: a busy machine may hold up both.
SLOW = {"body_timeout_seconds": 1.5, "body_min_bytes_per_second": 2_000}


@pytest.fixture
async def patient(tmp_path) -> AsyncIterator[Server]:
    """A server that gives bodies time if they come at 2,000 bytes a second."""
    platform = Platform(tmp_path, **SLOW)
    fill(platform)
    async with serving(platform) as made:
        yield made
    platform.store.close()


async def in_pieces(wire: Wire, pieces: list[bytes]) -> None:
    for piece in pieces:
        await wire.send(piece)
        await asyncio.sleep(0.1)


async def test_a_large_body_may_take_longer_than_a_small_one_as_long_as_it_comes(patient):
    """Three times the time that a body has: whoever uploads a spine over a slow line does nothing wrong."""
    body = QUESTION + b" " * (45 * 1_000 - len(QUESTION))
    pieces = [body[at : at + 1_000] for at in range(0, len(body), 1_000)]
    async with patient.connected() as wire:
        await wire.send(patient.head(length=len(body)))
        await in_pieces(wire, pieces)
        assert (await wire.answer()).status == 200
        await wire.send(patient.head("transfer-encoding: chunked"))
        await in_pieces(wire, [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces])
        await wire.send(b"0\r\n\r\n")
        assert (await wire.answer()).status == 200


async def test_a_body_that_comes_in_drops_is_cut_off(patient):
    async with patient.connected() as wire:
        await wire.send(patient.head(length=100_000))
        sending = asyncio.create_task(in_pieces(wire, [b" " * 20] * 5_000))
        answer = await wire.answer()
        assert not sending.done()
        sending.cancel()
        assert answer.status == 408
        assert await wire.rest() == b""


async def test_a_body_that_came_fast_and_stops_is_cut_off(patient):
    """What it sent at once buys it no more than any other: it would hold the connection for minutes."""
    async with patient.connected() as wire:
        await wire.send(patient.head(length=1_000_000))
        await in_pieces(wire, [b" " * 100_000] * 9)
        answer = await asyncio.wait_for(wire.answer(), 200)
        assert answer.status == 408
        assert await wire.rest() == b""


async def test_whoever_waits_for_the_server_to_read_is_not_slow(tmp_path):
    """An application may look at the token, or wait for an issuer, before it takes the body."""
    platform = Platform(tmp_path, **SLOW)
    app = platform.app().gate

    async def thoughtful(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(5)
        await app(scope, receive, send)

    fill(platform)
    body = QUESTION + b" " * 900_000
    async with serving(platform, thoughtful) as server, server.connected() as wire:
        sending = asyncio.create_task(
            in_pieces(wire, [server.head(length=len(body)), *[body[:300_000], body[300_000:]]])
        )
        assert (await wire.answer()).status == 200
        await sending
    platform.store.close()


async def test_nobody_goes_on_sending_what_was_refused(patient):
    async with patient.connected() as wire:
        await wire.send(b"POST /get-online-features HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n{")
        assert (await wire.answer()).status == 401
        sending = asyncio.create_task(in_pieces(wire, [b" " * 10_000] * 5_000))
        assert await wire.rest() == b""
        assert not sending.done()
        sending.cancel()


async def test_a_second_request_has_deadlines_as_well(server):
    async with server.connected() as wire:
        await wire.send(server.question())
        assert (await wire.answer()).status == 200
        await wire.send(server.head()[:-20])
        assert (await wire.answer()).status == 408


async def test_many_who_stall_hold_up_nobody(server):
    async with contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(server.connected()) for _ in range(60)]
        for number, wire in enumerate(wires):
            await wire.send([b"", server.head()[:-20], server.head(length=100)][number % 3])
        async with httpx.AsyncClient(base_url=server.url) as http:
            assert (await http.get("/health", timeout=30)).status_code == 200
        async with server.connected() as good:
            await good.send(server.question())
            assert (await good.answer()).status == 200
        assert {(await wire.answer()).status for wire in wires} == {408}


async def test_who_reads_nothing_is_cut_off(server, monkeypatch):
    """A client that asks and asks, and does not take the answers."""
    monkeypatch.setattr(connections, "SECONDS_TO_READ", 0.4)
    async with server.connected() as wire:
        wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
        asked = server.question() * 200
        with pytest.raises(ConnectionError):
            await keep_asking(wire.writer, asked)


async def keep_asking(writer: asyncio.StreamWriter, asked: bytes) -> None:
    for _ in range(2_000):
        writer.write(asked)
        await writer.drain()
        await asyncio.sleep(0.005)


# Too much.


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("size", [70_000, 300_000])
async def test_large_headers_are_refused(size, pieces, server):
    async with server.connected() as wire:
        sent = server.head(f"x-large: {'a' * size}", length=len(QUESTION)) + QUESTION
        for piece in range(pieces):
            await wire.send(sent[piece * len(sent) // pieces : (piece + 1) * len(sent) // pieces])
            await asyncio.sleep(0.01)
        answer = await wire.answer()
        assert answer.status == 431, answer
        assert len(answer.body) < 4_096
        assert await wire.rest() == b""


async def test_many_headers_are_refused(server):
    async with server.connected() as wire:
        await wire.send(server.head(*[f"x-{number}: a" for number in range(10_000)]))
        assert (await wire.answer()).status == 431


async def test_a_long_path_is_refused(server):
    async with server.connected() as wire:
        await wire.send(server.head(method="GET", path=f"/{'a' * 70_000}"))
        assert (await wire.answer()).status == 431


@pytest.mark.parametrize("length", [1 << 20 | 1, 100_000_000, 10**17, 10**30])
async def test_a_body_that_says_it_is_too_large_is_not_waited_for(length, server):
    async with server.connected() as wire:
        await wire.send(server.head(length=length))
        answer = await wire.answer()
        assert answer.status in (400, 413), answer
        assert len(answer.body) < 4_096
        assert await wire.rest() == b""


async def test_a_body_in_chunks_is_counted_while_it_comes(server):
    async with server.connected() as wire:
        await wire.send(server.head("transfer-encoding: chunked"))
        sent = 0
        while sent < 100_000_000 and not wire.reader.at_eof() and not wire.writer.is_closing():
            await wire.send(b"10000\r\n" + b" " * 65_536 + b"\r\n")
            sent += 65_536
            await asyncio.sleep(0)
        assert sent < 30_000_000
        data = await wire.rest()
        assert data.startswith(b"HTTP/1.1 413") or data == b""


LARGE: dict[str, tuple[bytes, set[int]]] = {
    "100,000 deep": (b'{"entities":' + b"[" * 100_000 + b"]" * 100_000 + b"}", {400, 422}),
    "100,000 deep and not closed": (b'{"entities":{"origin":' + b"[" * 100_000, {400}),
    "33 deep": (
        b'{"features":["weather:wind"],"entities":{"origin":[' + b"[" * 40 + b"1" + b"]" * 40 + b"]}}",
        {422},
    ),
    "a string that ends nowhere": (b'{"features": ["' + b"a" * 1_000_000, {400}),
    "a long string that is no reference": (
        b'{"features": ["' + b"a" * 1_000_000 + b'"], "entities": {"origin": ["JFK"]}}',
        {422},
    ),
    "a long string for a number": (
        b'{"features": ["driver_stats:trips"], "entities": {"driver_id": ["' + b"9" * 1_000_000 + b'"]}}',
        {422},
    ),
    "a long key": (
        b'{"features": ["weather:wind"], "entities": {"' + b"k" * 1_000_000 + b'": ["JFK"]}}',
        {422},
    ),
    "letters that are none": (b'{"features": ["' + b"\xff" * 1_000 + b'"], "entities": {"origin": ["JFK"]}}', {400}),
    "100,000 rows": (
        b'{"features": ["weather:wind"], "entities": {"origin": [' + b",".join([b'"JFK"'] * 100_000) + b"]}}",
        {422},
    ),
    "100,000 features": (
        b'{"features": [' + b",".join([b'"a:b"'] * 100_000) + b'], "entities": {"origin": ["JFK"]}}',
        {422},
    ),
}


@pytest.mark.parametrize(("body", "statuses"), LARGE.values(), ids=LARGE)
async def test_shapes_that_cost_much_are_refused_in_few_words(body, statuses, server):
    async with server.connected() as wire:
        await wire.send(server.question(body))
        answer = await wire.answer()
        assert answer.status in statuses, answer
        assert len(answer.body) < 4_096
        await wire.send(server.question())
        assert (await wire.answer()).status == 200


# What is no request, or more than one.


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /get-online-features HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        b"POST /get-online-features HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /get-online-features HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /get-online-features HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nname with space: 1\r\n\r\n",
    ],
    ids=repr,
)
async def test_what_is_no_request_is_refused_and_not_read_on(sent, server):
    async with server.connected() as wire:
        await wire.send(sent)
        data = await wire.rest()
        assert data.startswith(b"HTTP/1.1 400"), data
        assert b"application/problem+json" in data
        assert data.count(b"HTTP/1.1") == 1


async def test_who_is_refused_may_finish_sending_and_reads_why(server):
    """To close the connection on them would take the answer away before they come to read it."""
    async with httpx.AsyncClient(base_url=server.url) as http:
        headers = {"authorization": f"Bearer {server.token}"}
        answer = await http.post(PATH, content=b"{" + b" " * 8_000_000, headers=headers)
        assert answer.status_code == 413
        assert "Ask for fewer rows" in answer.json()["detail"]
        nobody = await http.post(PATH, content=b"{" + b" " * 8_000_000)
        assert nobody.status_code == 401


async def test_a_slow_body_after_its_answer_gets_no_second_one(server):
    async with server.connected() as wire:
        await wire.send(b"POST /get-online-features HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert (await wire.answer()).status == 401
        assert await wire.rest() == b""


async def test_requests_one_after_another_are_answered_in_their_order(server):
    async with server.connected() as wire:
        asked = [{"origin": [origin]} for origin in ("JFK", "LGA", "EWR") * 5]
        bodies = [json.dumps({"features": ["weather:wind"], "entities": one}).encode() for one in asked]
        await wire.send(b"".join(map(server.question, bodies)))
        answers = [json.loads((await wire.answer()).body) for _ in asked]
    assert [answer["results"][0]["values"] for answer in answers] == [one["origin"] for one in asked]


async def test_quick_and_slow_ways_to_an_answer_keep_the_order_as_well(server):
    """What is answered at once, what FastAPI answers, what is refused; in the end what is no request."""
    health = server.head(method="GET", path="/health", length=0)
    unknown = server.question(json.dumps({"features": ["weather:wnd"], "entities": {"origin": ["JFK"]}}).encode())
    async with server.connected() as wire:
        await wire.send(server.question())
        await wire.answer()
        sent = [server.question(), server.question(), health, server.question(), unknown, server.question()]
        await wire.send(b"".join(sent))
        assert [(await wire.answer()).status for _ in sent] == [200, 200, 200, 200, 404, 200]
        await wire.send(server.question() * 3 + b"NO REQUEST\r\n\r\n")
        assert [(await wire.answer()).status for _ in range(4)] == [200, 200, 200, 400]
        assert await wire.rest() == b""


async def test_many_large_answers_at_once_arrive_whole(server):
    body = json.dumps({"features": ["weather:wind"], "entities": {"origin": ["JFK"] * 900}}).encode()
    async with server.connected() as wire:
        await wire.send(server.question(body) * 20)
        answers = [await wire.answer() for _ in range(20)]
    assert {len(json.loads(answer.body)["results"][1]["values"]) for answer in answers} == {900}


async def test_who_asks_nothing_more_is_closed_and_who_goes_on_asking_is_not(filled, monkeypatch):
    monkeypatch.setattr(process, "_SECONDS_IDLE", 0.4)
    async with serving(filled) as server, server.connected() as wire:
        for _ in range(8):
            await wire.send(server.question())
            assert (await wire.answer()).status == 200
            await asyncio.sleep(0.1)
        assert await asyncio.wait_for(wire.rest(), 20) == b""


async def test_a_request_in_pieces_is_answered_as_a_whole_one_is(server):
    whole = server.question()
    async with server.connected() as wire:
        await wire.send(whole)
        expected = await wire.answer()
        for size in (1, 7, 50, len(whole) - 1):
            for start in range(0, len(whole), size):
                await wire.send(whole[start : start + size])
                await asyncio.sleep(0)
            assert (await wire.answer()).body == expected.body


# The end.


def connection_of(server: Server) -> Any:
    (found,) = server.uvicorn.server_state.connections
    return found


async def test_a_request_that_comes_while_the_server_ends_is_answered_as_the_last_one(server, monkeypatch):
    """Uvicorn would have closed the connection, and the client would not know whether it was heard."""
    monkeypatch.setattr(connections, "SECONDS_TO_LEAVE", 60)
    async with server.connected() as wire:
        await wire.send(server.question())
        assert (await wire.answer()).status == 200
        connection_of(server).shutdown()
        await wire.send(server.question())
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await wire.rest() == b""


async def test_a_new_connection_and_half_a_request_are_waited_for_as_well(server, monkeypatch):
    monkeypatch.setattr(connections, "SECONDS_FOR_HEADERS", 60)
    whole = server.question()
    for sent in (b"", whole[:30], whole[:-10]):
        async with server.connected() as wire:
            await wire.send(sent)
            await until(lambda: bool(server.uvicorn.server_state.connections))
            await asyncio.sleep(0.05)
            connection_of(server).shutdown()
            await wire.send(whole[len(sent) :])
            answer = await wire.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await wire.rest() == b""
        await until(lambda: not server.uvicorn.server_state.connections)


async def test_who_says_nothing_more_is_left(server):
    async with server.connected() as wire:
        await wire.send(server.question())
        assert (await wire.answer()).status == 200
        connection_of(server).shutdown()
        assert await wire.rest() == b""
