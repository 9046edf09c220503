"""L3: four hundred clients who stop half way, and one who uploads slowly and does not stop."""

import asyncio
import json
import time
from collections.abc import Iterator

import httpx
import polars as pl
import pytest

from tests.acceptance.running import Running, serving, tell
from tests.server.conftest import HOUR, NOW, WEATHER, Platform, bearer, fill
from tests.server.wires import until

STALLED = 400
QUESTION = {"features": ["weather:wind"], "entities": {"origin": ["JFK"]}}
SECONDS = 20


@pytest.fixture(scope="module")
def platform(tmp_path_factory) -> Iterator[Platform]:
    made = Platform(tmp_path_factory.mktemp("platform"))
    fill(made)
    made.past(WEATHER, ("JFK", NOW - HOUR, 40.5, 11.0))
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def running(platform) -> Iterator[Running]:
    with serving(platform) as found:
        yield found


def half_sent(number: int, token: str) -> bytes:
    """A request that stops within its headers, or within its body."""
    body = json.dumps(QUESTION)
    head = f"POST /get-online-features HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
    if number % 2:
        return head.encode()
    return f"{head}content-length: {len(body)}\r\n\r\n{body[: len(body) // 2]}".encode()


async def stall(port: int, sent: bytes) -> tuple[float, bytes]:
    """Send that, and then nothing; after how many seconds the connection was ended, and what came before."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    begun = time.monotonic()
    answer = await reader.read()
    writer.close()
    return time.monotonic() - begun, answer


async def test_four_hundred_who_stop_half_way_are_cut_off_and_hold_up_nobody(platform, running):
    token = platform.token()
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as http:
        # The store opens its files when it is first asked.
        assert (await http.post("/get-online-features", json=QUESTION, headers=bearer(token))).is_success
        before = running.files()
    stalled = [asyncio.create_task(stall(running.port, half_sent(number, token))) for number in range(STALLED)]
    health: list[float] = []
    lookups: list[float] = []
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as http:
        while not all(one.done() for one in stalled):
            begun = time.monotonic()
            assert (await http.get("/health")).status_code == 200
            health.append(time.monotonic() - begun)
            begun = time.monotonic()
            answer = await http.post("/get-online-features", json=QUESTION, headers=bearer(token))
            lookups.append(time.monotonic() - begun)
            assert answer.json()["results"][1]["values"] == [11.0]
            await asyncio.sleep(0.1)
    ended = await asyncio.gather(*stalled)
    # It has let go of all of them.
    await until(lambda: running.files() <= before)
    tell(
        "L3",
        stalled=STALLED,
        first_closed_after=f"{min(one for one, _ in ended):.1f} s",
        last_closed_after=f"{max(one for one, _ in ended):.1f} s",
        health_asked=len(health),
        slowest_health=f"{max(health) * 1e3:.0f} ms",
        slowest_lookup=f"{max(lookups) * 1e3:.0f} ms",
    )
    assert all(answer.startswith(b"HTTP/1.1 408 ") for _, answer in ended)
    assert max(one for one, _ in ended) < SECONDS


async def test_a_spine_over_a_slow_line_arrives(platform, running):
    """Longer than a body may take that stops, and not much faster than it has to be."""
    times = pl.datetime_range(NOW - HOUR, NOW, "10ms", eager=True).head(30_000)
    spine = pl.DataFrame({"origin": ["JFK"] * 30_000, "at": times, "noise": range(30_000)})
    path = platform.settings.root / "spine.parquet"
    spine.write_parquet(path, compression="uncompressed")
    content = path.read_bytes()
    question = json.dumps({"features": ["weather:wind"], "timestamp_column": "at"}).encode()
    boundary = "0f1e2d3c"
    parts = [
        f'--{boundary}\r\ncontent-disposition: form-data; name="question"\r\n\r\n'.encode() + question,
        f'\r\n--{boundary}\r\ncontent-disposition: form-data; name="spine"; filename="spine"\r\n'
        "content-type: application/vnd.apache.parquet\r\n\r\n".encode()
        + content,
        f"\r\n--{boundary}--\r\n".encode(),
    ]
    body = b"".join(parts)
    seconds, pieces = 1.5 * platform.settings.server.body_timeout_seconds, 150
    size = -(-len(body) // pieces)

    async def slowly():
        for at in range(0, len(body), size):
            yield body[at : at + size]
            await asyncio.sleep(seconds / pieces)

    headers = bearer(platform.token("features:history")) | {"content-type": f"multipart/form-data; boundary={boundary}"}
    begun = time.monotonic()
    async with httpx.AsyncClient(base_url=running.url, timeout=120) as http:
        answer = await http.post("/v1/historical-features", content=slowly(), headers=headers)
    took = time.monotonic() - begun
    assert answer.status_code == 200, answer.text
    assert pl.read_parquet(answer.content).height == 30_000
    tell("L3, honest", sent=f"{len(body) / 1e6:.1f} MB", in_seconds=f"{took:.0f}")
    assert took > platform.settings.server.body_timeout_seconds
