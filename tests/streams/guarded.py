"""A door in front of a broker, which has none of its own: TLS, and SASL PLAIN as Kafka's protocol has it.

What comes is decrypted, asked for its password, and passed on as it is.
"""

import asyncio
import contextlib
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

_HANDSHAKE, _AUTHENTICATE, _API_VERSIONS = 17, 36, 18
_AUTHENTICATION_FAILED = 58


class Door:
    """Lets in who speaks TLS, trusts the certificate, and knows the password of `user`; counts both."""

    def __init__(self, context: ssl.SSLContext, inner: int, user: str, password: str) -> None:
        self._context, self._inner = context, inner
        self._wanted = f"\0{user}\0{password}".encode()
        self.port = 0
        self.let_in = self.refused = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, ready: threading.Event, done: asyncio.Event) -> None:
        server = await asyncio.start_server(self._guarded, "127.0.0.1", self.port, ssl=self._context)
        ready.set()
        await done.wait()
        server.close()
        for one in self._writers:
            # asyncio forgets what is below a TLS transport that was closed twice, and cannot abort it then.
            if not one.transport.is_closing():
                one.transport.abort()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0.1)

    async def _guarded(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._inner)
            self._writers += (writer, inner_writer)
            with contextlib.closing(writer), contextlib.closing(inner_writer):
                if await self._asked(reader, writer, inner_reader, inner_writer):
                    await asyncio.gather(_passed(reader, inner_writer), _passed(inner_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            return

    async def _asked(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        inner_reader: asyncio.StreamReader,
        inner_writer: asyncio.StreamWriter,
    ) -> bool:
        """Whether the client knows the password. Only what a client may ask before that is answered."""
        while True:
            frame = await _frame(reader)
            kind, version, correlation, name = struct.unpack_from(">hhih", frame)
            body = frame[10 + max(name, 0) :]
            if kind == _API_VERSIONS:
                inner_writer.write(struct.pack(">i", len(frame)) + frame)
                answer = await _frame(inner_reader)
            elif kind == _HANDSHAKE:
                answer = struct.pack(">ihih", correlation, 0, 1, 5) + b"PLAIN"
            else:
                assert kind == _AUTHENTICATE
                right = body[4:] == self._wanted
                self.let_in, self.refused = self.let_in + right, self.refused + (not right)
                answer = struct.pack(">ihhi", correlation, 0 if right else _AUTHENTICATION_FAILED, -1, 0)
                answer += struct.pack(">q", 0) if version else b""
            writer.write(struct.pack(">i", len(answer)) + answer)
            await writer.drain()
            if kind == _AUTHENTICATE:
                return right


async def _frame(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(length)


async def _passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@contextlib.contextmanager
def door(port: int, inner: int, certificate: Path, key: Path, user: str, password: str) -> Iterator[Door]:
    """A door at a port that leads to another one, closed at the end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    made, ready = Door(context, inner, user, password), threading.Event()
    made.port = port
    loop = asyncio.new_event_loop()
    done = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(made.serve(ready, done)))
    thread.start()
    try:
        assert ready.wait(10)
        yield made
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(10)
        loop.close()
