"""The route that is asked thousands of times a second, and who may ask it.

`OnlineFeatures` does a request's work and nothing else: token, question, read, bytes. It stands beside FastAPI's own path
from request to answer, which alone takes longer than all of that.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from starlette.types import Receive, Scope

from feature_assets.access import READ, Decision, in_general
from feature_assets.config import ServerSettings
from feature_assets.online.protocol import ReadsOverNetwork
from feature_assets.server import metrics
from feature_assets.server.bearer import Bearer
from feature_assets.server.feature_log import FeatureLog
from feature_assets.server.gate import Exchange, Headers
from feature_assets.server.limits import read_body
from feature_assets.server.meters import Meters, Watched
from feature_assets.server.problems import dialect_of
from feature_assets.server.serving import Question, Serving
from feature_assets.server.wire import OnlineQuestion, read_question

_CELLS_IN_PLACE: Final = 4_096
"""So many values take about a millisecond; more are read in a thread, so that other requests go on meanwhile."""

_READERS: Final = 4
_READERS_OVER_NETWORK: Final = 32
"""They wait most of the time; so many requests of one process may wait at once for a store that does not say how many."""

_POOL: Final = "online-read"

_T = TypeVar("_T")


class OnlineFeatures:
    """POST /get-online-features."""

    def __init__(
        self,
        serving: Serving,
        bearer: Bearer,
        limits: ServerSettings,
        meters: Meters,
        log: FeatureLog | None = None,
    ) -> None:
        self._log = log
        self._serving, self._bearer = serving, bearer
        self._max_bytes, self._max_keys = limits.max_body_bytes, limits.max_keys
        self._readers = _READERS if serving.is_local else _READERS_OVER_NETWORK
        if isinstance(serving.store, ReadsOverNetwork):
            self._readers = serving.store.lookups_at_once
        self._threads, self._in_threads = ThreadPoolExecutor(self._readers, thread_name_prefix=_POOL), 0
        meters.watch(self._watched)

    async def __call__(self, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        """Answer one request."""
        principal = await self._bearer.principal(scope["headers"], exchange)
        exchange.decision = in_general(principal, READ).enforce()
        body = await read_body(scope, receive, largest=self._max_bytes)
        exchange.dialect = dialect_of(body)
        asked = read_question(body, max_keys=self._max_keys)
        snapshot = self._serving.current
        question = snapshot.compiled.get(asked.key)
        if question is None:
            question = await self._in_thread(snapshot.question, asked, principal)
        decision = exchange.decision = question.reading.decide(principal).enforce()
        exchange.note(snapshot.digest, question.width, asked.rows)
        if _is_short(question, asked.rows):
            answer = self._answered(question, asked, decision, exchange)
        else:
            answer = await self._in_thread(self._answered, question, asked, decision, exchange)
        headers = [*snapshot.headers, (b"content-length", b"%d" % len(answer))]
        await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
        await exchange.send({"type": "http.response.body", "body": answer})

    def ready(self, headers: Headers, body: bytes, exchange: Exchange) -> tuple[bytes, bytes] | None:
        """The answer to a question that was asked before, by somebody who was here before, if it is a short one."""
        principal, snapshot = self._bearer.known(headers), self._serving.snapshot
        if principal is None or snapshot is None or len(body) > self._max_bytes:
            return None
        asked = read_question(body, max_keys=self._max_keys)
        question = snapshot.compiled.get(asked.key)
        rows = asked.rows
        if question is None or not _is_short(question, rows):
            return None
        decision = exchange.decision = question.reading.decide(principal).enforce()
        if not self._bearer.admits(principal):
            return None
        exchange.asked_by(principal)
        exchange.note(snapshot.digest, question.width, rows)
        return self._answered(question, asked, decision, exchange), snapshot.lines

    async def _in_thread(self, function: Callable[..., _T], *arguments: Any) -> _T:
        self._in_threads += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
        finally:
            self._in_threads -= 1

    def _watched(self) -> Watched:
        busy = min(self._in_threads, self._readers)
        yield metrics.THREADS, (_POOL,), self._readers
        yield metrics.THREADS_BUSY, (_POOL,), busy
        yield metrics.THREADS_WAITING, (_POOL,), self._in_threads - busy

    def _answered(self, question: Question, asked: OnlineQuestion, decision: Decision, exchange: Exchange) -> bytes:
        found = question.lookup.read(asked.entities, decision)
        answer = question.answer.encode(found)
        if question.logging is not None and self._log is not None:
            self._log.take(question.logging, exchange.id, asked, found, len(answer))
        return answer

    def close(self) -> None:
        """Let the readers end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _is_short(question: Question, rows: int) -> bool:
    """Whether to answer it holds up nobody else."""
    return not question.in_thread and rows * question.width <= _CELLS_IN_PLACE
