"""POST /materialize and /materialize-incremental: Feast's questions, answered by Dagster runs.

Nothing is computed here. A view is materialised by the run that Dagster starts for its asset, over the partitions that the
window touches, as it is from Dagster's own page: with its checks, its retries and its history.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl

import msgspec
import orjson
from fastapi import FastAPI, Query
from starlette.types import Receive, Scope

from feature_assets.access import MATERIALIZE, Principal
from feature_assets.config import ServerSettings
from feature_assets.errors import WrongType
from feature_assets.server import documentation as pages
from feature_assets.server.dagster import Asset, Dagster, Started
from feature_assets.server.gate import Exchange, Handler
from feature_assets.server.limits import read_body
from feature_assets.server.problems import Problem, dialect_of
from feature_assets.server.routing import Callers
from feature_assets.server.serving import Serving, Snapshot
from feature_assets.server.spans import after, overlap, touched
from feature_assets.server.wire import decoded
from feature_assets.spec import TimePartitions, ViewSpec
from feature_assets.types import Timestamp

log = logging.getLogger(__name__)

PATH: Final = "/materialize"
INCREMENTAL_PATH: Final = "/materialize-incremental"

_SECONDS_BETWEEN_LOOKS: Final = 0.5
_LARGEST_BODY: Final = 1 << 18


class Window(msgspec.Struct):
    """The body of POST /materialize. Fields that Feast sends and that mean nothing here are passed over."""

    start_ts: str | None = None
    end_ts: str | None = None
    feature_views: list[str] | None = None
    disable_event_timestamp: bool = False
    version: str | int | None = None


class Increment(msgspec.Struct):
    """The body of POST /materialize-incremental."""

    end_ts: str
    feature_views: list[str] | None = None
    version: str | int | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    """What is to be materialised of one view: keys of time within each combination of the others, none for all of it."""

    view: str
    asset: Asset
    keys: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, str]:
        """The first and the last partition."""
        return self.keys[0], self.keys[-1]


class Materialize:
    """Serves one of the two routes."""

    def __init__(
        self, serving: Serving, callers: Callers, dagster: Dagster | None, limits: ServerSettings, path: str
    ) -> None:
        self._serving, self._callers, self._dagster = serving, callers, dagster
        self._limits, self._decoder = limits, _DECODERS[path]
        self._starting = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        """Answer one request."""
        principal = await self._callers.checked(scope, MATERIALIZE, exchange=exchange)
        if self._dagster is None:
            raise Problem(
                501,
                "not-configured",
                "This server does not know a Dagster that could materialise. Name its webserver: server.dagster_url, "
                "as http://127.0.0.1:3000.",
            )
        background, force = _options(scope)
        body = await read_body(scope, receive, largest=min(_LARGEST_BODY, self._limits.max_body_bytes))
        exchange.dialect = dialect_of(body)
        asked = decoded(body, self._decoder)
        snapshot = self._serving.current
        views = self._views(snapshot, asked, principal, exchange)
        # Of two that ask for the same at once the second finds what the first has started.
        async with self._starting:
            parts = [part for view in views if (part := await self._part(self._dagster, view, asked)) is not None]
            if not force:
                await self._refuse_if_running(self._dagster, parts)
            started = {part.view: await self._started(self._dagster, part, principal) for part in parts}
        await self._answer(
            exchange, receive, self._dagster, [view.name for view in views], started, background=background
        )

    def _views(
        self, snapshot: Snapshot, asked: Window | Increment, principal: Principal, exchange: Exchange
    ) -> list[ViewSpec]:
        """The views that are meant: all of them that are allowed, if none are named."""
        registry = snapshot.registry
        named = asked.feature_views
        if named is not None and len(named) > self._limits.max_views:
            raise Problem(
                422, "too-many-views", f"{self._limits.max_views} views are the limit.", pointer="/feature_views"
            )
        names = sorted(registry.views) if named is None else list(dict.fromkeys(named))
        exchange.decision = snapshot.access.decide(principal, MATERIALIZE, *names).enforce()
        views = [registry.view(name) for name in names]
        version = str(asked.version).removeprefix("v") if asked.version is not None else None
        for view in views:
            if version not in (None, "latest", str(view.version)):
                raise Problem(
                    422,
                    "other-version",
                    f"View '{view.name}' is made in version {view.version}, and not in '{asked.version}'. Leave the version out.",
                    pointer="/version",
                )
        return views

    async def _part(self, dagster: Dagster, view: ViewSpec, asked: Window | Increment) -> _Part | None:
        asset = await dagster.asset(view.asset_key)
        if asset is None:
            raise Problem(
                424,
                "no-asset",
                f"Dagster has no asset for view '{view.name}'. Load the code location that declares it, or reload it.",
            )
        if not asset.dimensions:
            return _Part(view.name, asset, ())
        time = next((one for one in asset.dimensions if one.is_time), None)
        divides = next((one for one in view.partitions.values() if isinstance(one, TimePartitions)), None)
        if time is None or divides is None:
            keys = list(_combined(asset, None))
        else:
            first, last = _moments(asked)
            within = touched(time.keys, divides, first, last)
            if isinstance(asked, Increment):
                within = [key for key in after(time.keys, asset.done) if key in set(within)]
            keys = list(_combined(asset, within))
        return _Part(view.name, asset, tuple(keys)) if keys else None

    async def _refuse_if_running(self, dagster: Dagster, parts: Sequence[_Part]) -> None:
        for part in parts:
            everything = list(_combined(part.asset, None))
            for run in part.asset.running:
                theirs = await dagster.partitions_of(run)
                if not part.keys or overlap(everything, part.ends, theirs):
                    raise _running(part.view, Started("run", run))
            for backfill, partitions in part.asset.backfills.items():
                if not part.keys or partitions is None or set(partitions) & set(part.keys):
                    raise _running(part.view, Started("backfill", backfill))

    @staticmethod
    async def _started(dagster: Dagster, part: _Part, principal: Principal) -> Started:
        tags = {"feature_assets/view": part.view, "feature_assets/requested_by": principal.client_id}
        asset = part.asset
        if not part.keys:
            return await dagster.launch_run(asset, None, None, tags)
        if len(part.keys) == 1 or asset.per_run is None or len(part.keys) <= asset.per_run:
            return await dagster.launch_run(asset, *part.ends, tags)
        return await dagster.launch_backfill(asset, part.keys, tags)

    async def _answer(
        self,
        exchange: Exchange,
        receive: Receive,
        dagster: Dagster,
        views: Sequence[str],
        started: dict[str, Started],
        *,
        background: bool,
    ) -> None:
        runs = [{"feature_view": view, "kind": one.kind, "id": one.id} for view, one in started.items()]
        ended = False
        if not background and await self._waited(dagster, started, receive):
            ended = True
        status = "succeeded" if ended else "accepted"
        body = orjson.dumps({"status": status, "feature_views": list(views), "runs": runs})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await exchange.send({"type": "http.response.start", "status": 200 if ended else 202, "headers": headers})
        await exchange.send({"type": "http.response.body", "body": body})

    async def _waited(self, dagster: Dagster, started: dict[str, Started], receive: Receive) -> bool:
        """Wait until all of them have ended, for as long as one waits at most: whether they have.

        Raises:
            Problem: one of them failed.
        """
        gone = asyncio.create_task(_disconnected(receive))
        latest = asyncio.get_running_loop().time() + self._limits.materialize_seconds
        waiting = dict(started)
        try:
            while waiting:
                for view, one in list(waiting.items()):
                    well = await dagster.ended(one)
                    if well is False:
                        raise Problem(
                            424,
                            "materialisation-failed",
                            f"Materialising '{view}' failed. Dagster's page of the {one.kind} {one.id} says why.",
                        )
                    if well:
                        del waiting[view]
                if waiting and (gone.done() or asyncio.get_running_loop().time() > latest):
                    # They go on without anybody waiting.
                    return False
                if waiting:
                    await asyncio.wait((gone,), timeout=_SECONDS_BETWEEN_LOOKS)
        finally:
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone
        return True


_DECODERS: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    PATH: msgspec.json.Decoder(Window),
    INCREMENTAL_PATH: msgspec.json.Decoder(Increment),
}


def handlers(
    serving: Serving, callers: Callers, dagster: Dagster | None, limits: ServerSettings
) -> dict[tuple[str, str], Handler]:
    """What serves the two routes, by method and path."""
    return {("POST", path): Materialize(serving, callers, dagster, limits, path) for path in _DECODERS}


def _options(scope: Scope) -> tuple[bool, bool]:
    """`async` and `force` of the query."""
    words = {"true": True, "1": True, "false": False, "0": False, "": False}
    asked = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True))
    for name in ("async", "force"):
        if asked.get(name, "").lower() not in words:
            raise Problem(422, "bad-request", f"'{name}' is true or false.", pointer=f"/{name}")
    return words[asked.get("async", "").lower()], words[asked.get("force", "").lower()]


def _moments(asked: Window | Increment) -> tuple[datetime | None, datetime | None]:
    last = _moment("end_ts", asked.end_ts)
    if isinstance(asked, Increment):
        return None, last
    if asked.disable_event_timestamp:
        return None, None
    first = _moment("start_ts", asked.start_ts)
    if first is None or last is None:
        missing = "start_ts" if first is None else "end_ts"
        raise Problem(422, "bad-request", f"'{missing}' is not given. Give both ends.", pointer=f"/{missing}")
    if first > last:
        raise Problem(422, "bad-request", "'start_ts' lies behind 'end_ts'. Swap them.", pointer="/start_ts")
    return first, last


def _moment(name: str, given: str | None) -> datetime | None:
    try:
        found: datetime | None = Timestamp.parse(given)
    except WrongType as error:
        raise Problem(422, "wrong-type", f"'{name}': {error}.", pointer=f"/{name}") from None
    return found


def _combined(asset: Asset, times: Sequence[str] | None) -> Iterator[str]:
    """The partition keys of these keys of time with all of the other dimensions, in the order of the dimensions' names."""
    dimensions = sorted(asset.dimensions, key=lambda one: one.name)
    combined = [""]
    for number, one in enumerate(dimensions):
        keys = times if one.is_time and times is not None else one.keys
        combined = [f"{before}|{key}" if number else key for before in combined for key in keys]
    yield from combined


def _running(view: str, one: Started) -> Problem:
    return Problem(
        409,
        "already-running",
        f"View '{view}' is being materialised, in the {one.kind} {one.id}. Wait for it, or say force=true.",
        # What Feast's SDK shows its users.
        more={"error": f"'{view}' is being materialised", "feature_views": [view]},
    )


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def describe(app: FastAPI, callers: Callers) -> None:
    """Add the routes to the OpenAPI document: the gate answers them before FastAPI would."""
    for path, name, body in (
        (PATH, "materialize", pages.MaterializeRequest),
        (INCREMENTAL_PATH, "materialize_incremental", pages.IncrementRequest),
    ):
        app.post(
            path,
            name=name,
            tags=["operations"],
            summary=f"Have Dagster materialise {'what a window touches' if path == PATH else 'what is missing'}",
            response_model=pages.Materialized,
            responses={
                202: {"model": pages.Materialized, "description": "The runs have started, and go on."},
                **pages.refusals(400, 401, 403, 404, 408, 409, 413, 422, 424, 429, 500, 503),
            },
            openapi_extra={"requestBody": pages.json_request(body)},
        )(_described(callers))


def _described(callers: Callers) -> Any:
    async def route(
        principal: Annotated[Any, callers.who_may(MATERIALIZE)],
        background: Annotated[bool, Query(alias="async", description="Answer 202 at once.")] = False,  # noqa: FBT002
        force: Annotated[bool, Query(description="Even if it is being materialised already.")] = False,  # noqa: FBT002
    ) -> None:
        """Feast's request. Without `async` it is answered when the runs have ended, or after `materialize_seconds`."""

    return route
