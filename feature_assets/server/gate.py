"""Around every request: its id, an answer whatever happens, and those who take note of it in the end.

The routes that are asked thousands of times a second hang directly here; FastAPI serves all others.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any, Final, Protocol, runtime_checkable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feature_assets.access import Decision, Principal
from feature_assets.errors import Forbidden
from feature_assets.server.problems import Dialect, Problem, problem_of, unforeseen

_PREFIX: Final = secrets.token_hex(4).encode()
_numbers = count(1)


class Exchange:
    """One request and what is told of it afterwards: names and counts, no values and no tokens.

    `dialect` is the form in which whoever asks reads a refusal; `decision` whether it was allowed, and by which rule;
    `route` is the path as the route has it, `denied` why nothing was decided, if there is nobody who may ask.
    `recorded`: the audit log has it already.
    """

    __slots__ = (
        "_begun",
        "_send",
        "client",
        "decision",
        "denied",
        "dialect",
        "features",
        "id",
        "method",
        "milliseconds",
        "path",
        "principal",
        "recorded",
        "registry",
        "route",
        "rows",
        "status",
    )

    def __init__(self, method: str, path: str, send: Send | None = None) -> None:
        self._send = send
        self._begun = perf_counter()
        self.method, self.path, self.route = method, path, path
        self.id = b"%b-%x" % (_PREFIX, next(_numbers))
        self.status = 0
        self.milliseconds = 0.0
        self.dialect: Dialect = "problem"
        self.principal: Principal | None = None
        self.decision: Decision | None = None
        self.denied, self.recorded = "", False
        self.client, self.registry = "-", ""
        self.features = self.rows = 0

    async def send(self, message: Message) -> None:
        """Passes on a message of the answer, the first with the request's id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id)]
        assert self._send is not None  # noqa: S101 (who answers at once does not call this)
        await self._send(message)

    def asked_by(self, principal: Principal) -> None:
        """Who it is."""
        self.principal, self.client = principal, principal.client_id

    def note(self, registry: str, features: int, rows: int) -> None:
        """What was read."""
        self.registry, self.features, self.rows = registry, features, rows

    def elapsed(self) -> float:
        """Milliseconds since it came."""
        return round((perf_counter() - self._begun) * 1e3, 3)


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


Watcher = Callable[[Exchange], None]


class Gate:
    """The outermost application. `handlers` by method and path; `watchers` take each exchange when it is over.
    `open` counts the requests that wait for their answer.

    `at_once` is for a connection that can make use of it, by method and path.
    """

    def __init__(self, app: ASGIApp, handlers: Mapping[tuple[str, str], Handler]) -> None:
        self._app, self._handlers = app, handlers
        self.watchers: list[Watcher] = []
        self.open = 0
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
        exchange = Exchange(scope["method"], scope["path"], send)
        self.open += 1
        handler = self._handlers.get((scope["method"], scope["path"]))
        try:
            if handler is not None:
                await handler(scope, receive, exchange)
            else:
                scope.setdefault("state", {})["exchange"] = exchange
                await self._app(scope, receive, exchange.send)
        except Exception as error:  # noqa: BLE001 (no request may end without an answer)
            await self._refuse(error, scope, exchange)
        finally:
            self.open -= 1
            if handler is None:
                # What clients make up has none.
                exchange.route = getattr(scope.get("route"), "path", "")
            self._over(exchange)

    def _answered(
        self, method: str, path: str, handler: Ready, asked: Headers, body: bytes, always: Headers
    ) -> bytes | None:
        exchange = Exchange(method, path)
        try:
            ready = handler.ready(asked, body, exchange)
        except Exception:  # noqa: BLE001 (asked again the long way, it says what is wrong)
            return None
        if ready is None:
            return None
        answer, lines = ready
        exchange.status = 200
        self._over(exchange)
        more = b"".join([b"%b: %b\r\n" % header for header in always])
        own = b"content-length: %d\r\nx-request-id: %b\r\n\r\n" % (len(answer), exchange.id)
        return b"".join((b"HTTP/1.1 200 OK\r\n", more, lines, own, answer))

    def _over(self, exchange: Exchange) -> None:
        exchange.milliseconds = exchange.elapsed()
        for watcher in self.watchers:
            watcher(exchange)

    async def _refuse(self, error: Exception, scope: Scope, exchange: Exchange) -> None:
        if isinstance(error, Forbidden) and error.decision is not None:
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
