"""Requests to a feature server: pooled connections, tokens, retries with jitter, one deadline over all of it.

What is decided, a walk decides that yields what to do next; `Connection` does it with or without `await`.
"""

import asyncio
import random
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final, TypeAlias

import httpx

from feature_assets.errors import StoreUnavailable
from feature_assets.remote.refusals import error_of, may_pass
from feature_assets.remote.tokens import Tokens

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


Walk: TypeAlias = Generator["httpx.Request | Pause", "httpx.Response | httpx.TransportError | None", httpx.Response]
"""Yields requests and pauses; is sent answers, and the errors of those that got none; returns the answer that counts."""

Build: TypeAlias = Callable[[], httpx.Request]
"""Makes the request anew for each attempt: a file that is sent has to be read from its start again."""


class Connection:
    """One server, asked by any number of threads and coroutines."""

    def __init__(
        self, url: str, tokens: Tokens, *, timeout: float, deadline: float, connections: int, verify: Any
    ) -> None:
        self.url, self._tokens, self._deadline = url, tokens, deadline
        self._options: dict[str, Any] = {
            "timeout": httpx.Timeout(timeout),
            "limits": httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            "verify": verify,
            "follow_redirects": False,
            "headers": {"user-agent": "feature-assets"},
        }
        self._opening = Lock()
        self._client: httpx.Client | None = None
        # A pool belongs to the loop that it was made on.
        self._asynchronous: tuple[asyncio.AbstractEventLoop, httpx.AsyncClient] | None = None

    def ask(
        self, build: Build, take: Callable[[httpx.Response], None] | None = None, *, repeatable: bool = True
    ) -> httpx.Response:
        """The answer to a request.

        Args:
            build: makes the request.
            take: reads the body of a successful answer as it comes, instead of all of it at once.
            repeatable: whether it may be sent again where nobody knows if it was received.

        Raises:
            FeatureAssetsError: the server refused it, or did not answer before the deadline.
        """
        client, walk = self.client, self._walk(build, repeatable=repeatable)
        step = next(walk)
        while True:
            try:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = next(walk)
                else:
                    step = walk.send(_sent(client, step, take))
            except StopIteration as ended:
                answer: httpx.Response = ended.value
                return answer

    async def ask_async(
        self, build: Build, take: Callable[[httpx.Response, bytes], None] | None = None, *, repeatable: bool = True
    ) -> httpx.Response:
        """The same beside other coroutines; `take` is given the pieces of the body."""
        client, walk = self.asynchronous, self._walk(build, repeatable=repeatable)
        step = next(walk)
        while True:
            try:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = next(walk)
                else:
                    step = walk.send(await _sent_async(client, step, take))
            except StopIteration as ended:
                answer: httpx.Response = ended.value
                return answer

    def _walk(self, build: Build, *, repeatable: bool) -> Walk:
        latest, pause, renewed = time.monotonic() + self._deadline, _FIRST_PAUSE, False
        while True:
            token = self._tokens.current
            if token is None:
                token = yield from self._fetched(latest)
            request = build()
            request.headers["authorization"] = f"Bearer {token}"
            answer = yield request
            if isinstance(answer, httpx.Response):
                if answer.is_success or answer.status_code == 304:
                    return answer
                if answer.status_code == 401 and not renewed and self._tokens.refused(token):
                    renewed = True
                    continue
                if not may_pass(answer):
                    raise error_of(answer)
                problem: Exception = error_of(answer)
            else:
                assert answer is not None  # noqa: S101 (only a pause is answered by nothing)
                problem = StoreUnavailable(f"{self.url} cannot be reached: {_words(answer)}.")
                if not (
                    repeatable or isinstance(answer, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
                ):
                    raise problem from answer
            wait = max(_asked_pause(answer), random.uniform(pause / 2, pause))
            if time.monotonic() + wait > latest:
                raise problem
            yield Pause(wait)
            pause = min(_LONGEST_PAUSE, pause * 2)

    def _fetched(self, latest: float) -> Generator[httpx.Request | Pause, Any, str]:
        """A new token; what stands in the way of it is tried again like anything else."""
        pause = _FIRST_PAUSE
        while True:
            walk = self._tokens.fetch()
            step = next(walk)
            while True:
                answer = yield step
                if not isinstance(answer, httpx.Response) or may_pass(answer):
                    break
                try:
                    step = walk.send(answer)
                except StopIteration as ended:
                    token: str = ended.value
                    return token
            if time.monotonic() + pause > latest:
                raise StoreUnavailable(f"No token is to be had: {step.url.host} does not answer.")
            yield Pause(random.uniform(pause / 2, pause))
            pause = min(_LONGEST_PAUSE, pause * 2)

    @property
    def client(self) -> httpx.Client:
        """The pool of those who wait."""
        if self._client is None:
            with self._opening:
                self._client = self._client or httpx.Client(**self._options)
        return self._client

    @property
    def asynchronous(self) -> httpx.AsyncClient:
        """The pool of the running loop."""
        loop = asyncio.get_running_loop()
        if self._asynchronous is None or self._asynchronous[0] is not loop:
            self._asynchronous = (loop, httpx.AsyncClient(**self._options))
        return self._asynchronous[1]

    def close(self) -> None:
        """Let go of the connections of those who wait."""
        if self._client is not None:
            self._client.close()

    async def close_async(self) -> None:
        """Let go of all connections."""
        self.close()
        if self._asynchronous is not None:
            await self._asynchronous[1].aclose()


def _sent(
    client: httpx.Client, request: httpx.Request, take: Callable[[httpx.Response], None] | None
) -> httpx.Response | httpx.TransportError:
    try:
        answer = client.send(request, stream=True)
        try:
            if take is not None and answer.is_success:
                take(answer)
            else:
                answer.read()
        finally:
            answer.close()
    except httpx.TransportError as error:
        return error
    return answer


async def _sent_async(
    client: httpx.AsyncClient, request: httpx.Request, take: Callable[[httpx.Response, bytes], None] | None
) -> httpx.Response | httpx.TransportError:
    try:
        answer = await client.send(request, stream=True)
        try:
            if take is not None and answer.is_success:
                take(answer, b"")
                async for piece in answer.aiter_bytes():
                    await asyncio.to_thread(take, answer, piece)
            else:
                await answer.aread()
        finally:
            await answer.aclose()
    except httpx.TransportError as error:
        return error
    return answer


def _asked_pause(answer: "httpx.Response | httpx.TransportError") -> float:
    """What the server asks to wait, in seconds."""
    if isinstance(answer, httpx.Response):
        with suppress(ValueError):
            return max(0.0, float(answer.headers.get("retry-after", "0")))
    return 0.0


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
