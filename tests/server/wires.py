"""The real server in the event loop of a test, and connections to it that say just what they are told to."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import uvicorn

from feature_assets.server.process import config_of, listening
from tests.server.conftest import Platform

PATH = "/get-online-features"
QUESTION = json.dumps({"features": ["weather:wind"], "entities": {"origin": ["JFK"]}}).encode()


class Answer(NamedTuple):
    """The head and the body of an answer, and the rest of what came until the connection ended."""

    status: int
    headers: dict[str, str]
    body: bytes


class Server:
    """The real server in this event loop, and connections to it."""

    def __init__(self, server: uvicorn.Server, port: int, token: str) -> None:
        self.uvicorn, self.port, self.token = server, port, token
        self.url = f"http://127.0.0.1:{port}"

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator["Wire"]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        try:
            yield Wire(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def head(self, *lines: str, length: int | None = None, method: str = "POST", path: str = PATH) -> bytes:
        """A request up to its body."""
        given = [f"{method} {path} HTTP/1.1", "host: x", f"authorization: Bearer {self.token}", *lines]
        if length is not None:
            given.append(f"content-length: {length}")
        return "\r\n".join([*given, "", ""]).encode()

    def question(self, body: bytes = QUESTION) -> bytes:
        return self.head(length=len(body)) + body


class Wire:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        # Whoever is refused while still sending is cut off.
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def answer(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return Answer(int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"])))

    async def rest(self) -> bytes:
        """What else comes until the server ends the connection."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""


async def until(true: Callable[[], bool]) -> None:
    for _ in range(6_000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come to that")


@contextlib.asynccontextmanager
async def serving(platform: Platform, app: Any = None) -> AsyncIterator[Server]:
    bound = listening("127.0.0.1", 0)
    port = bound.getsockname()[1]
    server = uvicorn.Server(config_of(app or platform.app().gate, platform.settings))
    task = asyncio.create_task(server.serve(sockets=[bound]))
    await until(lambda: server.started)
    try:
        yield Server(server, port, platform.token())
    finally:
        server.should_exit = True
        await task
