"""What one caller may cost: bytes of a body, requests for tokens."""

import time
from collections.abc import Callable

from starlette.types import Receive, Scope

from feature_assets.server.problems import Problem


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
