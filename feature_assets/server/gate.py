"""Around every request: its id, its one line in the log, and an answer whatever happens.

The routes that are asked thousands of times a second hang directly here; FastAPI serves all others.
"""

import logging
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any, Final, Protocol, runtime_checkable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feature_assets.access import Decision
from feature_assets.errors import Forbidden
from feature_assets.server.problems import Dialect, Problem, problem_of, unforeseen

log = logging.getLogger(__name__)

_PREFIX: Final = secrets.token_hex(4).encode()
_numbers = count(1)

_WORD: Final = re.compile(r"[A-Za-z0-9_./:@-]{1,100}")


class Exchange:
    """One request and what the log says of it: names and counts, no values and no tokens.

    `dialect` is the form in which whoever asks reads a refusal; `decision` whether it was allowed, and by which rule.
    """

    __slots__ = ("_begun", "_send", "client", "decision", "dialect", "features", "id", "registry", "rows", "status")

    def __init__(self, send: Send | None = None) -> None:
        self._send = send
        self._begun = perf_counter()
        self.id = b"%b-%x" % (_PREFIX, next(_numbers))
        self.status = 0
        self.dialect: Dialect = "problem"
        self.decision: Decision | None = None
        self.client = self.registry = "-"
        self.features = self.rows = 0

    async def send(self, message: Message) -> None:
        """Passes on a message of the answer, the first with the request's id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id)]
        assert self._send is not None  # noqa: S101 (who answers at once does not call this)
        await self._send(message)

    def note(self, registry: str, features: int, rows: int) -> None:
        """What was read."""
        self.registry, self.features, self.rows = registry, features, rows

    def line(self, method: str, path: str) -> str:
        """The line of the log."""
        milliseconds = (perf_counter() - self._begun) * 1e3
        return (
            f"request id={self.id.decode()} method={method} path={_word(path)} status={self.status} "
            f"ms={milliseconds:.2f} client={_word(self.client)} features={self.features} rows={self.rows} "
            f"registry={self.registry:.12}"
        )


def _word(text: str) -> str:
    """What cannot be taken for two words of a line, or for two lines."""
    return text if text.isidentifier() or _WORD.fullmatch(text) else repr(text[:100])


Headers = Sequence[tuple[bytes, bytes]]


class Handler(Protocol):
    """Serves one route."""

    async def __call__(self, scope: Scope, receive: Receive, exchange: Exchange, /) -> None:
        """Answer one request."""


@runtime_checkable
class Ready(Protocol):
    """Serves one route, and some requests without waiting for anything."""

    def ready(self, headers: Headers, body: bytes, exchange: Exchange, /) -> tuple[bytes, bytes] | None:
        """The body and the header lines of a successful answer, or None: then it is left to `__call__`, as if not asked."""


AtOnce = Callable[[Headers, bytes, Headers], bytes | None]
"""From the headers and the body of a request, and the headers that every answer has, to the whole answer."""


class Gate:
    """The outermost application. `handlers` by method and path; `journal`, if there is one, takes the lines of the log.

    `at_once` is for a connection that can make use of it, by method and path.
    """

    def __init__(self, app: ASGIApp, handlers: Mapping[tuple[str, str], Handler]) -> None:
        self._app, self._handlers = app, handlers
        self.journal: Callable[[str], None] | None = None
        self.at_once: dict[tuple[bytes, bytes], AtOnce] = {
            (method.encode(), path.encode()): partial(self._answered, method, path, handler)
            for (method, path), handler in handlers.items()
            if isinstance(handler, Ready)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(send)
        try:
            handler = self._handlers.get((scope["method"], scope["path"]))
            if handler is not None:
                await handler(scope, receive, exchange)
            else:
                scope.setdefault("state", {})["exchange"] = exchange
                await self._app(scope, receive, exchange.send)
        except Exception as error:  # noqa: BLE001 (no request may end without an answer)
            await self._refuse(error, scope, exchange)
        finally:
            self._log(exchange, scope["method"], scope["path"])

    def _answered(
        self, method: str, path: str, handler: Ready, asked: Headers, body: bytes, always: Headers
    ) -> bytes | None:
        exchange = Exchange()
        try:
            ready = handler.ready(asked, body, exchange)
        except Exception:  # noqa: BLE001 (asked again the long way, it says what is wrong)
            return None
        if ready is None:
            return None
        answer, lines = ready
        exchange.status = 200
        self._log(exchange, method, path)
        more = b"".join([b"%b: %b\r\n" % header for header in always])
        own = b"content-length: %d\r\nx-request-id: %b\r\n\r\n" % (len(answer), exchange.id)
        return b"".join((b"HTTP/1.1 200 OK\r\n", more, lines, own, answer))

    def _log(self, exchange: Exchange, method: str, path: str) -> None:
        if self.journal is not None:
            self.journal(exchange.line(method, path))
        elif log.isEnabledFor(logging.INFO):
            log.info("%s", exchange.line(method, path))

    async def _refuse(self, error: Exception, scope: Scope, exchange: Exchange) -> None:
        if isinstance(error, Forbidden):
            exchange.decision = error.decision
        request_id = exchange.id.decode()
        problem = error if isinstance(error, Problem) else problem_of(error) or unforeseen(error, request_id)
        if exchange.status:
            # The head of an answer is out: no second one can follow it, and the connection ends.
            raise error
        await problem.answer(scope, exchange.send, request_id, exchange.dialect)


def exchange_of(scope: Mapping[str, Any]) -> Exchange:
    """The exchange of a request that FastAPI serves."""
    found: Exchange = scope["state"]["exchange"]
    return found
