"""POST /v1/historical-features: a spine up, the same rows with features down.

The rows are computed in a process of their own (see `history_worker`), by the same path as
`FeatureStore.get_historical_features`, into a file that is then sent: an answer is whole or a refusal. A spine comes as
rows and never as a path, a query or a source, which would read what this server can read.
"""

import asyncio
import logging
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from fastapi import FastAPI
from starlette.responses import Response
from starlette.types import Receive, Scope

import feature_assets.errors
from feature_assets.access import HISTORY, Decision, Principal
from feature_assets.config import Settings
from feature_assets.errors import FeatureAssetsError, Forbidden
from feature_assets.server import documentation as pages
from feature_assets.server.gate import Exchange, Headers
from feature_assets.server.history_worker import ARROW, PARQUET, Asker, HistoricalQuestion, Job, Outcome
from feature_assets.server.limits import read_body
from feature_assets.server.problems import Problem
from feature_assets.server.routing import Callers
from feature_assets.server.serving import Serving
from feature_assets.server.uploads import FORM, Upload, read_upload
from feature_assets.server.wire import Asked, asked_for, check_depth, decoded
from feature_assets.spec import ViewProjection

log = logging.getLogger(__name__)

PATH: Final = "/v1/historical-features"

_JSON: Final = "application/json"
_FILES: Final[dict[str, Literal["parquet", "arrow"]]] = {PARQUET: "parquet", ARROW: "arrow"}
_CHUNK: Final = 1 << 18
_SECONDS_BETWEEN_LOOKS: Final = 0.25

_question = msgspec.json.Decoder(HistoricalQuestion)
_outcome = msgspec.json.Decoder(Outcome)


class _Asked(NamedTuple):
    """What came: the question, what it asks for, and of what kind the file is that came with it."""

    question: HistoricalQuestion
    features: Asked
    file: Literal["", "parquet", "arrow"]


class HistoricalFeatures:
    """POST /v1/historical-features."""

    def __init__(self, serving: Serving, callers: Callers, settings: Settings) -> None:
        self._serving, self._callers, self._settings = serving, callers, settings
        self._limits = settings.server
        self._free = settings.server.history_workers

    async def __call__(self, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        """Answer one request."""
        principal = await self._callers.checked(scope, HISTORY, exchange=exchange)
        media_type, answer = _accepted(scope["headers"])
        snapshot = self._serving.current
        with tempfile.TemporaryDirectory(prefix="feature-assets-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            asked = await self._asked(scope, receive, folder)
            full_names = asked.question.full_feature_names
            reading = snapshot.reading(asked.features, principal, HISTORY, full_feature_names=full_names)
            # Refused here before a process is started; it decides again, by the snapshot that it will answer from, and
            # of the rows as well.
            decision = exchange.decision = reading.decide(principal).enforce()
            exchange.note(snapshot.digest, len(reading.plan.outputs), 0)
            async with self._worker():
                job = _job(self._settings, principal, asked, folder, answer)
                registry = await self._computed(job, decision, receive)
            await _send(folder / "rows", media_type, registry, exchange)

    async def _asked(self, scope: Scope, receive: Receive, folder: Path) -> _Asked:
        content_type = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
        kind = content_type.partition(b";")[0].strip().lower().decode("latin-1")
        if kind not in (_JSON, FORM):
            raise Problem(
                415,
                "unsupported-media-type",
                f"Send the question as {_JSON}, or as {FORM} with the parts 'question' and 'spine'.",
                headers={"accept": f"{_JSON}, {FORM}"},
            )
        most = self._limits.max_body_bytes
        if kind == _JSON:
            upload = Upload()
            upload.question = await read_body(scope, receive, largest=most)
        else:
            path, file = folder / "spine", self._limits.max_spine_bytes
            upload = await read_upload(receive, content_type, path, largest_question=most, largest_file=file)
        return self._read(upload)

    def _read(self, upload: Upload) -> _Asked:
        if upload.question is None:
            raise Problem(422, "bad-form", "The form has no part 'question'.")
        question = decoded(upload.question, _question)
        features = asked_for(question.features, question.feature_service, self._limits.max_features)
        file: Literal["", "parquet", "arrow"] = ""
        if upload.media_type is not None:
            if upload.media_type not in _FILES:
                known = " or ".join(_FILES)
                raise Problem(415, "unsupported-media-type", f"The part 'spine' has to have the Content-Type {known}.")
            file = _FILES[upload.media_type]
        given = (question.spine is not None) + bool(file)
        if given > 1:
            raise Problem(422, "bad-question", "There are two spines: 'spine' in the question, and the part 'spine'.")
        if question.spine is not None:
            columns = question.spine if isinstance(question.spine, dict) else {"spine": question.spine}
            check_depth(columns, "/spine")
        return _Asked(question, features, file)

    @asynccontextmanager
    async def _worker(self) -> AsyncIterator[None]:
        """One of the processes that may compute at once. Nobody waits for one: who asks again finds out soon enough."""
        if self._free < 1:
            raise Problem(
                503,
                "busy",
                f"{self._limits.history_workers} training sets are being computed, and no more at once. Try again soon.",
                headers={"retry-after": "5"},
            )
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def _computed(self, job: Job, decision: Decision, receive: Receive) -> str:
        """Have the worker compute the rows; the digest of the registry that it answered by.

        Raises:
            Problem: it took more than it may, or who asked is gone.
            FeatureAssetsError: the question cannot be answered.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "feature_assets.server.history_worker", stdin=asyncio.subprocess.PIPE
        )
        gone = asyncio.create_task(_disconnected(receive))
        ended = asyncio.create_task(process.wait())
        try:
            assert process.stdin is not None  # noqa: S101 (it was asked for)
            process.stdin.write(msgspec.json.encode(job) + b"\n")
            await self._watched(process.pid, job, gone, ended)
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
            gone.cancel()
            await asyncio.gather(ended, gone, return_exceptions=True)
        return _outcome_of(job, decision, process.returncode)

    async def _watched(self, pid: int, job: Job, gone: "asyncio.Task[None]", ended: "asyncio.Task[int]") -> None:
        limits = self._limits
        clock = asyncio.get_running_loop().time
        latest = clock() + limits.history_seconds
        while not ended.done():
            await asyncio.wait((gone, ended), timeout=_SECONDS_BETWEEN_LOOKS, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not ended.done():
                raise Problem(400, "broken-request", "Who asked is gone.", close=True)
            if clock() > latest:
                raise _too_much(f"That takes more than {limits.history_seconds:g} seconds")
            if _size(job.rows) > limits.history_max_bytes:
                raise _too_much(f"The answer has more than {limits.history_max_bytes} bytes")
            if _memory(pid) > limits.history_max_memory_bytes:
                raise _too_much(f"That takes more than {limits.history_max_memory_bytes} bytes of memory")


def describe(app: FastAPI, callers: Callers) -> None:
    """Add the route to the OpenAPI document: the gate answers it before FastAPI would."""
    rows = {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in (PARQUET, ARROW)}

    @app.post(
        PATH,
        tags=["features"],
        summary="Features as they were known at the times of a spine",
        response_class=Response,
        responses={
            200: {
                "description": "The spine's rows in their order: its columns, then the features.",
                "content": rows,
                "headers": {"X-Feature-Registry": {"description": "The registry snapshot.", "schema": pages.TEXT}},
            },
            **pages.refusals(400, 401, 403, 404, 406, 408, 413, 415, 422, 429, 500, 503),
        },
        openapi_extra={"requestBody": pages.HISTORICAL_REQUEST},
    )
    async def get_historical_features(principal: Annotated[Any, callers.who_may(HISTORY)]) -> None:
        """The spine is part of the question, as columns or rows of JSON, or a part of its own, as Parquet or an Arrow
        stream; without one every key and time at which one of the views has a row from `since` on and before `until`.
        It has the join keys, the request fields of on-demand views, and a time; naive times are UTC. `Accept` chooses
        between Parquet and Arrow. All is computed before the first byte is sent.
        """


def _job(
    settings: Settings, principal: Principal, asked: _Asked, folder: Path, answer: Literal["parquet", "arrow"]
) -> Job:
    # In clear, through a pipe: no other process sees it.
    kept = settings.model_dump(mode="json", exclude={"server", "storage_options"})
    features: str | list[str | ViewProjection] = (
        asked.features if isinstance(asked.features, str) else list(asked.features)
    )
    return Job(
        asker=Asker.of(principal),
        settings=kept | {"storage_options": settings.storage()},
        question=asked.question,
        features=features,
        folder=str(folder),
        file=asked.file,
        answer=answer,
    )


def _too_much(why: str) -> Problem:
    return Problem(422, "too-much-work", f"{why}, which is the limit. Ask for fewer rows or features, in parts.")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _memory(pid: int) -> int:
    """Bytes that a process has in memory, where the system tells."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * 4_096


def _outcome_of(job: Job, decision: Decision, code: int | None) -> str:
    try:
        outcome = _outcome.decode(job.outcome.read_bytes())
    except FileNotFoundError:
        raise RuntimeError(f"the process that computes histories ended with {code}") from None
    if not outcome.error:
        return outcome.registry
    if outcome.error == Forbidden.__name__:
        decision.refuse(outcome.message, rule=outcome.rule)
    found = getattr(feature_assets.errors, outcome.error, FeatureAssetsError)
    raise found(outcome.message)


async def _send(path: Path, media_type: str, registry: str, exchange: Exchange) -> None:
    headers = [
        (b"content-type", media_type.encode()),
        (b"content-length", str(_size(path)).encode()),
        (b"x-feature-registry", registry.encode()),
        (b"cache-control", b"no-store"),
    ]
    await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            await exchange.send({"type": "http.response.body", "body": chunk, "more_body": True})
    await exchange.send({"type": "http.response.body", "body": b""})


def _accepted(headers: Headers) -> tuple[str, Literal["parquet", "arrow"]]:
    """The form of the answer that is wanted most, and can be had."""
    given = b",".join(value for name, value in headers if name == b"accept").decode("latin-1") or "*/*"
    wanted = sorted(filter(None, map(_weighed, given.split(","))), key=lambda one: -one[1])
    for media_type, _ in wanted:
        if media_type in _FILES:
            return media_type, _FILES[media_type]
        if media_type in ("*/*", "application/*"):
            return PARQUET, "parquet"
    raise Problem(406, "not-acceptable", f"The answer is to be had as {PARQUET} or {ARROW}.")


def _weighed(text: str) -> tuple[str, float] | None:
    """A media range with its weight, unless that is 0 (RFC 9110, 12.5.1)."""
    media_type, *parameters = (part.strip().lower() for part in text.split(";"))
    weight = next((one[2:] for one in parameters if one.startswith("q=")), "1")
    try:
        quality = float(weight)
    except ValueError:
        quality = 0.0
    return (media_type, quality) if quality > 0 else None
