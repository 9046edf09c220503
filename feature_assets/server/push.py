"""POST /push and /write-to-online-store: Feast's questions; the answer is given when the rows survive."""

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Final, Literal

import msgspec
import orjson
from fastapi import FastAPI, Query
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope

from feature_assets.access import PUSH, Principal
from feature_assets.config import Settings
from feature_assets.errors import ChecksFailed, ContractBroken, StoreError, StoreFull
from feature_assets.offline import OfflineStore
from feature_assets.push import Push, Pushed, Pushes, source_of
from feature_assets.registry import Registry
from feature_assets.server import documentation as pages
from feature_assets.server import metrics
from feature_assets.server.gate import Exchange, Handler
from feature_assets.server.limits import read_body
from feature_assets.server.meters import Watched
from feature_assets.server.problems import Problem, dialect_of
from feature_assets.server.routing import Callers, as_json
from feature_assets.server.serving import Serving
from feature_assets.server.wire import decoded
from feature_assets.spec import StreamSource, ViewSpec
from feature_assets.types import FeatureType, ListType, MapType, StructType, Timestamp, VectorType

log = logging.getLogger(__name__)

PATH: Final = "/push"
WRITE_PATH: Final = "/write-to-online-store"
PUSHED_PATH: Final = "/v1/pushes"

_WRITERS: Final = 32
_FULL: Final = (
    "No room is left for pushed rows, and none of these was taken. Free space on the server's disk and push again."
)
_AWAY: Final = "Pushed rows cannot be kept now, and none of these was taken. Push again."
_NESTED: Final = (ListType, VectorType, StructType, MapType)


class PushQuestion(msgspec.Struct):
    """The body of POST /push. Fields that Feast sends and that mean nothing here are passed over."""

    push_source_name: str
    df: dict[str, list[Any]]
    to: Literal["online", "offline", "online_and_offline"] = "online"
    event_id: str | None = None
    receipt: bool = False


class WriteQuestion(msgspec.Struct):
    """The body of POST /write-to-online-store."""

    feature_view_name: str
    df: dict[str, list[Any]]
    event_id: str | None = None
    receipt: bool = False


_push = msgspec.json.Decoder(PushQuestion)
_write = msgspec.json.Decoder(WriteQuestion)


class PushRoutes:
    """Serves the two routes."""

    def __init__(self, serving: Serving, callers: Callers, settings: Settings) -> None:
        self._serving, self._callers, self._limits = serving, callers, settings.server
        self._threads = ThreadPoolExecutor(_WRITERS, thread_name_prefix="push")
        offline = OfflineStore(
            settings.place(settings.offline), storage_options=settings.storage(), durability=settings.durability
        )
        self._pushes = Pushes(settings, offline, serving.store)
        self._mark, self._since = 0, 0.0

    def watched(self) -> Watched:
        """What waits in the journal, and for how long it has been seen waiting."""
        written, published = self._pushes.waiting()
        now = time.monotonic()
        if published >= self._mark:
            self._mark, self._since = written, now
        yield metrics.JOURNAL_BYTES, (), self._pushes.waiting_bytes()
        yield metrics.JOURNAL_SECONDS, (), now - self._since if published < self._mark else 0.0

    async def push(self, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        """Answer POST /push."""
        principal = await self._callers.checked(scope, PUSH, exchange=exchange)
        body = await read_body(scope, receive, largest=self._limits.max_body_bytes)
        exchange.dialect = dialect_of(body)
        asked, snapshot = decoded(body, _push), self._serving.current
        decision = exchange.decision = snapshot.access.pushing(principal, asked.push_source_name).enforce()
        rows = self._as_source(snapshot.registry, asked)
        push = Push(asked.push_source_name, rows, asked.event_id, decision=decision)
        pushed = await self._taken(push, snapshot.registry, to=asked.to)
        await _answer(exchange, _receipt(pushed) if asked.receipt else b"")

    async def write(self, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        """Answer POST /write-to-online-store: the rows of one view, online when this is answered."""
        principal = await self._callers.checked(scope, PUSH, exchange=exchange)
        body = await read_body(scope, receive, largest=self._limits.max_body_bytes)
        exchange.dialect = dialect_of(body)
        asked, snapshot = decoded(body, _write), self._serving.current
        decision = exchange.decision = snapshot.access.decide(principal, PUSH, asked.feature_view_name).enforce()
        view = snapshot.registry.view(asked.feature_view_name)
        source = source_of(view)
        rows = _as_view(view, asked.df)
        pushed = await self._taken(
            Push(source, rows, asked.event_id, only=view.name, decision=decision), snapshot.registry
        )
        await asyncio.get_running_loop().run_in_executor(self._threads, pushed.wait, self._limits.body_timeout_seconds)
        await _answer(exchange, _receipt(pushed) if asked.receipt else b"null")

    async def published(self, principal: Principal, asked: "PushedQuestion") -> bool:
        """Whether pushed rows are in both stores."""
        snapshot = self._serving.current
        snapshot.access.decide(principal, PUSH, *asked.view).enforce()
        views = [snapshot.registry.view(name) for name in asked.view]
        found = partial(self._pushes.published, asked.journal, asked.sequence, views)
        return await asyncio.get_running_loop().run_in_executor(self._threads, found)

    @staticmethod
    def _as_source(registry: Registry, asked: PushQuestion) -> dict[str, list[Any]]:
        types: dict[str, FeatureType] = {}
        for view in registry.fed_by(asked.push_source_name):
            types |= view.types
        source = registry.sources.get(asked.push_source_name)
        if isinstance(source, StreamSource):
            types |= {field.name: field.type for field in source.schema}
        return {name: _from_feast(types.get(name), values) for name, values in asked.df.items()}

    async def _taken(self, push: Push, registry: Registry, **options: Any) -> Pushed:
        try:
            return await asyncio.wrap_future(self._pushes.submit(push, registry, self._threads, **options))
        except (ContractBroken, ChecksFailed) as error:
            kind = "bad-rows" if isinstance(error, ContractBroken) else "checks-failed"
            raise Problem(422, kind, str(error), pointer="/df") from error
        except StoreFull as error:
            # Where that is, and how much was allowed, is for whoever runs the server; its log has it.
            log.warning("push refused error=StoreFull: %s", error)
            raise Problem(507, "store-full", _FULL) from error
        except StoreError as error:
            log.warning("push refused error=%s: %s", type(error).__name__, error)
            raise Problem(503, "store-unavailable", _AWAY, headers={"retry-after": "1"}) from error

    async def recover(self) -> None:
        """Publish what a process that is gone has left, beside whatever comes."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._pushes.recover)
        except Exception as error:  # noqa: BLE001 (what waits goes on waiting, and pushes are taken all the same)
            log.warning("pushed rows of a former process wait error=%s: %s", type(error).__name__, error)

    def close(self) -> None:
        """Publish what waits, and let the writers end."""
        self._pushes.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


class PushedQuestion(BaseModel):
    """What the receipt of a push says."""

    journal: str = Query(pattern=r"^[0-9a-f]{32}$", description="From the receipt.")
    sequence: int = Query(ge=0, lt=2**63, description="From the receipt.")
    view: list[str] = Query(min_length=1, max_length=64, description="The views of the receipt; may be repeated.")


def add_to(app: FastAPI, callers: Callers, routes: PushRoutes) -> None:
    """Add the route that tells whether pushed rows are published, and describe those that take them."""

    @app.get(
        PUSHED_PATH,
        tags=["features"],
        summary="Whether pushed rows are in both stores",
        responses={200: {"model": pages.Published}, **pages.refusals(400, 401, 403, 404, 422, 429, 500, 503)},
    )
    async def get_pushed(
        asked: Annotated[PushedQuestion, Query()], principal: Annotated[Any, callers.who_may(PUSH)]
    ) -> Response:
        """A push with `receipt` is answered with what is asked for here."""
        return as_json({"published": await routes.published(principal, asked)})

    _describe(app, callers)


def _describe(app: FastAPI, callers: Callers) -> None:
    """Add the routes to the OpenAPI document that the gate answers before FastAPI would."""
    # Without a receipt the one answer is empty, which no schema describes, and the other null.
    receipt = {"application/json": {"schema": pages.receipt_schema()}}
    for path, name, summary, body, content in (
        (PATH, "push", "Push rows to the views of a source", pages.PushRequest, {}),
        (WRITE_PATH, "write_to_online_store", "Push rows to one view", pages.WriteRequest, receipt),
    ):
        app.post(
            path,
            name=name,
            tags=["features"],
            summary=summary,
            response_model=None,
            response_class=Response,
            responses={
                200: {"description": "The rows are on disk and will reach both stores.", "content": content},
                **pages.refusals(400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 507),
            },
            openapi_extra={"requestBody": pages.json_request(body)},
        )(_described(callers))


def _described(callers: Callers) -> Any:
    async def route(principal: Annotated[Any, callers.who_may(PUSH)]) -> None:
        """Feast's request. A push is taken as a whole or not at all; one that comes again changes nothing."""

    return route


def handlers(routes: PushRoutes) -> Mapping[tuple[str, str], Handler]:
    """By method and path."""
    return {("POST", PATH): routes.push, ("POST", WRITE_PATH): routes.write}


def _as_view(view: ViewSpec, df: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The columns of Feast's client by the names that the view has for them."""
    names = {"event_timestamp": view.event_timestamp}
    if view.created_timestamp is not None:
        names["created"] = view.created_timestamp
    rows: dict[str, list[Any]] = {}
    for name, values in df.items():
        own = name if name in view.types else names.get(name, name)
        if own == "created" and own not in view.types:
            continue
        rows[own] = _from_feast(view.types.get(own), values)
    created = view.created_timestamp
    if created in rows and None in rows[created]:
        now = datetime.now(UTC)
        rows[created] = [now if value is None else value for value in rows[created]]
    return rows


def _from_feast(of: FeatureType | None, values: list[Any]) -> list[Any]:
    """Times as Feast's client writes them, in UNIX seconds, and nested values as the text of their JSON."""
    if of == Timestamp and any(value.__class__ is int for value in values):
        return [_moment(value) if value.__class__ is int else value for value in values]
    if isinstance(of, _NESTED) and any(value.__class__ is str for value in values):
        return [_nested(value) if value.__class__ is str else value for value in values]
    return values


def _moment(seconds: int) -> Any:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return seconds  # What is wrong with it, its type says.


def _nested(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _receipt(pushed: Pushed) -> bytes:
    told = {"rows": pushed.rows, "views": pushed.views, "journal": pushed.journal, "sequence": pushed.sequence}
    return orjson.dumps(told)


async def _answer(exchange: Exchange, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    if body:
        # Nothing is no JSON, and a client that is told that it is fails to read it.
        headers.append((b"content-type", b"application/json"))
    await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
    await exchange.send({"type": "http.response.body", "body": body})
