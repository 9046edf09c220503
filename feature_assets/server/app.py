"""The feature server as a whole: what hangs where, and what runs beside."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import FastAPI, Security
from fastapi.security.base import SecurityBase
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from feature_assets.access import READ
from feature_assets.config import Settings
from feature_assets.errors import FeatureAssetsError
from feature_assets.server import catalogue, history, materialize, metrics, monitoring, push, snapshots
from feature_assets.server import documentation as pages
from feature_assets.server.audit import Audit
from feature_assets.server.dagster import Dagster
from feature_assets.server.feature_log import FeatureLog
from feature_assets.server.gate import Gate, Handler
from feature_assets.server.journal import Journal
from feature_assets.server.keys import is_loopback
from feature_assets.server.logs import RequestLog
from feature_assets.server.meters import Meters
from feature_assets.server.problems import Problem
from feature_assets.server.routes import OnlineFeatures
from feature_assets.server.routing import Callers, ProblemRoute, Refusal
from feature_assets.server.serving import Serving
from feature_assets.server.trust import Trust, check_binding
from feature_assets.server.workers import Workers

log = logging.getLogger(__name__)

ONLINE_PATH: Final = "/get-online-features"


class FeatureServer(FastAPI):
    """FastAPI behind the gate: what the gate answers itself passes none of FastAPI's layers."""

    gate: Gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        await self.gate(scope, receive, send)

    async def behind_gate(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What FastAPI would be without the gate."""
        await super().__call__(scope, receive, send)


def create_app(settings: Settings, journal: Journal | None = None, shared: Path | None = None) -> FeatureServer:
    """The application, for any ASGI server. It is meant for the address that the settings name.

    Args:
        settings: where things are kept, and how to serve them.
        journal: what takes the log of requests, instead of the program's log.
        shared: a folder for what several processes that serve together count in common.

    Raises:
        ConfigurationError: the settings would open it to others without an issuer and an audience, the issuer's keys
            cannot be had, or the audit log cannot be written.
    """
    check_binding(settings, settings.server.host)
    trust = Trust(settings)
    meters = Meters(clock=_clock(settings))
    workers = Workers(meters, shared)
    serving = Serving(settings, meters)
    feature_log = FeatureLog(settings, meters)
    requests = RequestLog(settings.server.log, journal)
    audit = _audit(settings)
    logs: list[RequestLog | Audit] = [requests] if audit is None else [requests, audit]
    if audit is not None:
        meters.watch(lambda: [(metrics.AUDIT_LOST, (), audit.lost)])
    callers = Callers(trust.bearer, trust.security(), audit)
    online = OnlineFeatures(serving, trust.bearer, settings.server, meters, feature_log)
    dagster = Dagster(settings.server) if settings.server.dagster_url else None
    documented = settings.server.openapi
    if documented is None:
        documented = is_loopback(settings.server.host)
    app = FeatureServer(
        title="Feature Assets",
        version="1",
        description=pages.DESCRIPTION,
        openapi_url="/openapi.json" if documented else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(serving, trust, online, dagster, feature_log, workers, logs),
        exception_handlers={HTTPException: _http_problem},
        generate_unique_id_function=lambda route: route.name,
    )
    app.router.route_class = ProblemRoute
    _describe_online(app, trust.security())
    _add_health(app, serving)
    history.describe(app, callers)
    pushing = push.PushRoutes(serving, callers, settings)
    meters.watch(pushing.watched)
    push.add_to(app, callers, pushing)
    if dagster is not None:
        materialize.describe(app, callers)
    catalogue.add_to(app, serving, callers, settings)
    snapshots.add_to(app, serving, callers, settings.server)
    monitoring.describe(app, callers)
    trust.add_to(app)
    if documented:
        pages.describe_problems(app)
        pages.serve_page(app)
    handlers: dict[tuple[str, str], Handler] = {
        ("POST", ONLINE_PATH): online,
        ("POST", history.PATH): history.HistoricalFeatures(serving, callers, settings),
        **materialize.handlers(serving, callers, dagster, settings.server),
        **push.handlers(pushing),
        ("GET", monitoring.PATH): monitoring.MetricsPage(workers, callers, settings.server),
        **trust.handlers(),
    }
    app.gate = Gate(app.behind_gate, handlers)
    app.gate.watchers += [*logs, monitoring.RequestMeter(meters, app.gate)]
    app.state.serving = serving
    app.state.pushing = pushing
    return app


def _audit(settings: Settings) -> Audit | None:
    place = settings.server.audit
    if place is None:
        return None
    return Audit(place if place == "stderr" else settings.place(place))


def _clock(settings: Settings) -> Callable[[], float]:
    if settings.present is None:
        return time.time
    present = settings.present.timestamp()
    return lambda: present


def _lifespan(
    serving: Serving,
    trust: Trust,
    online: OnlineFeatures,
    dagster: Dagster | None,
    feature_log: FeatureLog,
    workers: Workers,
    logs: Sequence[RequestLog | Audit],
) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await asyncio.to_thread(serving.refresh)
        except (FeatureAssetsError, OSError) as error:
            log.warning("nothing to serve yet error=%s: %s", type(error).__name__, error)
        always = (
            serving.keep_fresh(),
            trust.keep_fresh(),
            workers.keep_written(),
            app.state.pushing.recover(),
        )
        running = [asyncio.create_task(each) for each in always]
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            online.close()
            await asyncio.to_thread(app.state.pushing.close)
            await asyncio.to_thread(feature_log.close)
            if dagster is not None:
                await dagster.close()
            serving.close()
            workers.close()
            await trust.close()
            for one in logs:
                one.close()

    return lifespan


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 (it is registered for this class alone)
    kinds = {404: ("no-such-route", "There is nothing at this path."), 405: ("wrong-method", "Not by this method.")}
    kind, detail = kinds.get(error.status_code, ("refused", str(error.detail)))
    in_catalogue = request.url.path.startswith(f"{catalogue.PREFIX}/")
    if in_catalogue and error.status_code == 405:
        detail = catalogue.NOT_WRITTEN
    problem = Problem(error.status_code, kind, detail, headers=error.headers)
    return Refusal(problem, "feast registry" if in_catalogue else None)


def _describe_online(app: FastAPI, security: SecurityBase) -> None:
    """For OpenAPI alone: the gate answers this route before FastAPI would."""

    @app.post(
        ONLINE_PATH,
        tags=["features"],
        summary="The latest values of features",
        response_model=pages.OnlineAnswer,
        response_description="Values, statuses and event timestamps by column.",
        responses={
            200: {"headers": {"X-Feature-Registry": {"description": "The registry snapshot.", "schema": _TEXT}}},
            **pages.refusals(400, 401, 403, 404, 408, 413, 422, 429, 500, 503),
        },
    )
    async def get_online_features(
        question: pages.OnlineQuestion,
        token: Annotated[str | None, Security(security, scopes=[READ])],
    ) -> None:
        """Answers are in the order asked: join keys first, then the features. Either all of it is answered or nothing:
        a view that the token may not read refuses the request.
        """


_TEXT: Final = {"type": "string"}


def _add_health(app: FastAPI, serving: Serving) -> None:
    @app.get(
        "/health",
        tags=["operations"],
        summary="Whether there is something to serve",
        response_class=Response,
        responses={
            200: {"description": "A registry snapshot is in force.", "content": {}},
            503: {"description": "No registry has been read yet."},
        },
    )
    async def health() -> Response:
        """Needs no token and tells no more than its status."""
        return Response(status_code=503 if serving.snapshot is None else 200)
