"""What one caller may cost: bytes of a body, requests a second."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

from starlette.types import Receive, Scope

from feature_assets.server.problems import Problem

_CLIENTS_KEPT: Final = 10_000


async def read_body(scope: Scope, receive: Receive, *, largest: int) -> bytes:
    """The whole body of a request. How long it may take to come, the connection sees to.

    Raises:
        Problem: it is larger than `largest` bytes (413), or broke off (400).
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and (len(value) > 18 or int(value) > largest):
            raise _too_large(largest)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        # Nearly always the body has come with the headers, and is whole.
        body: bytes = message.get("body", b"")
        if len(body) > largest:
            raise _too_large(largest)
        return body
    return await _gathered(message, receive, largest)


async def _gathered(message: object, receive: Receive, largest: int) -> bytes:
    parts, size = [], 0
    while True:
        if not isinstance(message, dict) or message["type"] != "http.request":
            raise Problem(400, "broken-request", "The connection ended before the body did.", close=True)
        part = message.get("body", b"")
        size += len(part)
        if size > largest:
            raise _too_large(largest)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()


def _too_large(largest: int) -> Problem:
    return Problem(
        413, "body-too-large", f"The body is larger than {largest} bytes. Ask for fewer rows at a time.", close=True
    )


class Allowance:
    """So many acts a second, and a few more at once: a token bucket."""

    def __init__(self, per_second: float, burst: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = per_second, burst, clock
        self._left, self._at = burst, clock()

    def take(self) -> float:
        """Take one: 0 if there was one left, else in how many seconds there will be."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self._rate


class Quota:
    """So many requests a second for each client, and so many for all of them together. Each process counts by itself.

    `burst` is how many a client that asked for nothing may ask at once; what it would be allowed in a second if not given.
    """

    def __init__(
        self,
        *,
        each: float | None,
        burst: float | None = None,
        total: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._each, self._burst, self._clock = each, max(1.0, burst or each or 0.0), clock
        self._total = Allowance(total, max(1.0, total), clock=clock) if total else None
        self._clients: OrderedDict[Hashable, Allowance] = OrderedDict()

    def take(self, client: Hashable) -> float:
        """Take one for this client: 0 if it is within the quota, else in how many seconds it will be."""
        wait = self._allowance(client, self._each).take() if self._each else 0.0
        if not wait and self._total is not None:
            wait = self._total.take()
        return wait

    def _allowance(self, client: Hashable, each: float) -> Allowance:
        found = self._clients.get(client)
        if found is None:
            found = self._clients[client] = Allowance(each, self._burst, clock=self._clock)
            if len(self._clients) > _CLIENTS_KEPT:
                # Who did not ask for the longest time has a full allowance, or nearly.
                self._clients.popitem(last=False)
        else:
            self._clients.move_to_end(client)
        return found
