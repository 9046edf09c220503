"""One HTTP connection: what uvicorn leaves open is closed, and what can be answered at once is.

uvicorn lets a client hold a connection for ever by sending no request, or half of one; here each part has a deadline and
the headers a size.

A request for which an answer is at hand, as soon as its body is there, is answered then and there. From request to answer
by way of ASGI takes a task, an event and four coroutines, which together take longer than reading ten features. Whatever
is not plain (an unknown token, a first question, a long one, any mistake) goes that way as if nothing had been tried.

Answers at hand are sent when all that came in together has been read: a client that is woken once finds several, and to
wake it costs more than to answer.
"""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from feature_assets.server.gate import AtOnce
from feature_assets.server.problems import MEDIA_TYPE, Problem

SECONDS_FOR_HEADERS: Final = 10.0
SECONDS_TO_READ: Final = 30.0
"""How long a client may read nothing of an answer that does not fit in between."""
SECONDS_TO_LEAVE: Final = 1.0
"""How long a connection on which nothing happens stays open while the server ends: its client may just be sending."""
SECONDS_TO_LINGER: Final = 2.0
"""How long a client that was refused while it was sending may go on, so that it gets to reading why."""

LARGEST_HEADERS: Final = 65_536
_LARGEST_REST: Final = 16 << 20
_LARGEST_OUTBOX: Final = 65_536


def _refusal(status: int, kind: str, detail: str) -> bytes:
    body = Problem(status, kind, detail).document("")
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {MEDIA_TYPE}\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


_TOO_LARGE: Final = _refusal(431, "headers-too-large", f"The headers are larger than {LARGEST_HEADERS} bytes.")
_MALFORMED: Final = _refusal(400, "bad-request", "This is no HTTP request.")
_TOO_SLOW: Final = _refusal(408, "slow-request", "The request did not come in time. Send it again, faster.")


class _TooLarge(Exception):
    pass


class _Transport:
    """What uvicorn answers by. It closes when the client had a chance to hear the answer."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self.write = connection.transport.write

    def is_closing(self) -> bool:
        return self._connection.is_ending()

    def close(self) -> None:
        self._connection.close()


class Connection(HttpToolsProtocol):
    """A request that comes in one piece, as nearly all do, starts no timer."""

    def __init__(
        self, *arguments: Any, seconds_for_body: float = 15.0, least_for_body: float = 16_384.0, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._seconds_for_body, self._least_for_body = seconds_for_body, least_for_body
        self._body_since, self._body_last, self._body_bytes = 0.0, 0.0, 0
        self._in_headers, self._in_body, self._header_bytes, self._heard = False, False, 0, False
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._leaving, self._lingering, self._rest = False, False, 0
        self._handlers: Mapping[tuple[bytes, bytes], AtOnce] = getattr(self.app, "at_once", {})
        self._handler: AtOnce | None = None
        self._body = b""
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self._idle_since = 0.0
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._answering = _Transport(self)
        self._is_closing = transport.is_closing
        self._start_deadline(SECONDS_FOR_HEADERS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        self._stop_waiting()
        if self._idle is not None:
            self._idle.cancel()
        self._outbox.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            self._rest += len(data)
            if self._rest > _LARGEST_REST:
                self.transport.close()
            return
        self._heard, before = False, self._header_bytes
        super().data_received(data)
        if self._in_headers:
            if not self._heard and self._header_bytes == before:
                # All of it belongs to a header that has not ended.
                self._header_bytes += len(data)
            if self._header_bytes > LARGEST_HEADERS:
                self._end(_TOO_LARGE)
            elif self._deadline is None:
                self._start_deadline(SECONDS_FOR_HEADERS)
        elif self._in_body:
            if self._handler is not None:
                self._by_asgi()
            if self._deadline is None:
                self._wait_for_body()
            else:
                self._body_last = self.loop.time()
                self._body_bytes += len(data)

    def on_message_begin(self) -> None:
        self._in_headers, self._header_bytes, self._heard = True, 0, True
        # What an application is told of a request, `_begin` makes when there is one to tell.
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_url(self, url: bytes) -> None:
        self.url += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))
        self._count(len(name) + len(value) + 4)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > LARGEST_HEADERS:
            # However much comes at once: the parser stops here, and `send_400_response` is called.
            raise _TooLarge

    def send_400_response(self, msg: str) -> None:
        self._end(_TOO_LARGE if self._header_bytes > LARGEST_HEADERS else _MALFORMED)

    def on_headers_complete(self) -> None:
        self._in_headers, self._in_body = False, True
        if self._deadline is not None:
            self._stop_deadline()
        self._handler = self._handlers.get((self.parser.get_method(), self.url))
        if self._handler is None or not self._is_plain():
            self._handler = None
            self._begin()

    def _begin(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers = self.scope["headers"] = headers
        super().on_headers_complete()
        self.cycle.transport = self._answering  # type: ignore[assignment]
        if self._leaving:
            self.cycle.keep_alive = False

    def _is_plain(self) -> bool:
        """Whether nothing stands between this request and its answer."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and not self.expect_100_continue
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade()
            and not (self.limit_concurrency and len(self.connections) >= self.limit_concurrency)
            and not self._leaving
            and not self._lingering
            and not self._is_closing()
        )

    def on_body(self, body: bytes) -> None:
        if self._handler is None:
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        self._in_body = False
        if self._deadline is not None:
            self._stop_deadline()
        if self._handler is not None and not self._leaving:
            answer = self._handler(self.headers, self._body, self.server_state.default_headers)
            if answer is not None:
                self._handler, self._body = None, b""
                self._answer(answer)
                return
        if self._handler is not None:
            self._by_asgi()
        super().on_message_complete()

    def _answer(self, answer: bytes) -> None:
        """What uvicorn does for a response of an application that is complete, at less cost."""
        self.server_state.total_requests += 1
        if not self._outbox:
            self.loop.call_soon(self._send)
        self._outbox.append(answer)
        self._outbox_bytes += len(answer)
        if self._outbox_bytes > _LARGEST_OUTBOX:
            self._send()
        self._idle_since = self.loop.time()
        if self._idle is None:
            self._idle = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)

    def _send(self) -> None:
        """Send what has been answered."""
        if self._outbox:
            self.transport.write(b"".join(self._outbox))
            self._outbox.clear()
            self._outbox_bytes = 0

    def _close_if_idle(self) -> None:
        """One timer for many requests: to start and stop one for each costs as much as to check a token."""
        self._idle = None
        if self.timeout_keep_alive_task is not None or not self._is_idle():
            # uvicorn's own timer runs, or begins when an application has answered; or the next answer begins this one.
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._idle = self.loop.call_later(left, self._close_if_idle)
        elif not self.is_ending():
            self.transport.close()

    def _by_asgi(self) -> None:
        """Go on as uvicorn does, with what has come of the body."""
        body, self._handler, self._body = self._body, None, b""
        self._begin()
        if body:
            super().on_body(body)

    def _start_deadline(self, seconds: float) -> None:
        if not self.is_ending():
            self._deadline = self.loop.call_later(seconds, self._end, _TOO_SLOW)

    def _wait_for_body(self) -> None:
        if not self.is_ending():
            self._body_since = self._body_last = self.loop.time()
            self._body_bytes = 0
            self._deadline = self.loop.call_later(self._seconds_for_body, self._look_at_body)

    def _look_at_body(self) -> None:
        """End what has paused for that long or is too slow on the whole; a large body takes its time as long as it comes."""
        if self.flow.read_paused:
            # It is not the client that is slow.
            self._wait_for_body()
            return
        paid_for = self._body_since + self._body_bytes / self._least_for_body
        left = min(self._body_last, paid_for) + self._seconds_for_body - self.loop.time()
        # Of a body that nobody reads, because the answer is out, no more is waited for.
        if left > 0 and not self.cycle.response_complete:
            self._deadline = self.loop.call_later(left, self._look_at_body)
        else:
            self._end(_TOO_SLOW)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end(self, answer: bytes) -> None:
        self._stop_deadline()
        self._send()
        if not self.is_ending():
            if self._is_unanswered():
                self.transport.write(answer)
            self.close()

    def _is_unanswered(self) -> bool:
        """Whether what comes, if anything, has no answer yet, not even the beginning of one."""
        if self._in_body and self._handler is None:
            return not self.cycle.response_started
        return self.cycle is None or self.cycle.response_complete or not self.cycle.response_started

    def is_ending(self) -> bool:
        """Whether nothing more is answered."""
        return self._lingering or self.transport.is_closing()

    def close(self) -> None:
        """End the connection. To close it on a client that is still sending would take away the answer it did not read."""
        if self._lingering:
            return
        self._send()
        if not self._in_headers and not self._in_body:
            self.transport.close()
            return
        self._lingering = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(SECONDS_TO_LINGER, self.transport.close)

    def on_response_complete(self) -> None:
        if not self._lingering:
            super().on_response_complete()

    def shutdown(self) -> None:
        """Begin to end. What is under way is answered, and so is a request that comes now, as the last one.

        uvicorn closes what is idle at once: whoever is just sending would find the connection reset.
        """
        self._leaving = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        self.loop.call_later(SECONDS_TO_LEAVE, self._leave)

    def _leave(self) -> None:
        if self._is_idle() and not self.is_ending():
            self.transport.close()

    def _is_idle(self) -> bool:
        under_way = self.cycle is not None and not self.cycle.response_complete
        return not under_way and not self._in_headers and not self._in_body

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(SECONDS_TO_READ, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_waiting()
        super().resume_writing()

    def _stop_waiting(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
