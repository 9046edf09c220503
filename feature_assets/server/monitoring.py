"""GET /metrics: what Prometheus reads, and who may."""

import asyncio
from ipaddress import ip_address
from typing import Annotated, Any, Final

from fastapi import FastAPI
from starlette.responses import Response
from starlette.types import Receive, Scope

from feature_assets.access import ADMIN
from feature_assets.config import ServerSettings
from feature_assets.server import documentation as pages
from feature_assets.server import metrics
from feature_assets.server.gate import Exchange, Gate
from feature_assets.server.meters import Histogram, Meters
from feature_assets.server.routing import Callers
from feature_assets.server.workers import Workers

PATH: Final = "/metrics"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_FORWARDED: Final = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via"})


class RequestMeter:
    """Counts each request when it is over: how long it took, and what was decided."""

    def __init__(self, meters: Meters, gate: Gate) -> None:
        self._meters = meters
        self._seconds: dict[tuple[str, str, int], Histogram] = {}
        meters.watch(lambda: [(metrics.REQUESTS_OPEN, (), gate.open)])

    def __call__(self, exchange: Exchange) -> None:
        """Count one. In the event loop."""
        key = (exchange.method, exchange.route, exchange.status)
        (self._seconds.get(key) or self._of(key)).add(exchange.milliseconds / 1e3)
        if exchange.decision is not None:
            self._meters.decided(exchange.decision)
        elif exchange.status == 401:
            self._meters.count(metrics.DECISIONS, "", "unauthenticated", "token")
        elif exchange.status == 429:
            self._meters.count(metrics.DECISIONS, "", "refused", "quota")

    def _of(self, key: tuple[str, str, int]) -> Histogram:
        method, route, status = key
        # What a client makes up must not become a series of its own for ever.
        labels = (method if method in _METHODS else "other", route or "other", str(status))
        found = self._meters.histogram(metrics.REQUEST_SECONDS, *labels)
        if method in _METHODS:
            self._seconds[key] = found
        return found


class MetricsPage:
    """GET /metrics: for a token with the scope `admin`, or for whoever asks from this machine where the settings say so."""

    def __init__(self, workers: Workers, callers: Callers, settings: ServerSettings) -> None:
        self._workers, self._callers = workers, callers
        self._local = settings.metrics == "loopback"

    async def __call__(self, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        """Answer one request."""
        if not (self._local and _is_local(scope)):
            await self._callers.checked(scope, ADMIN, exchange=exchange)
        body = await asyncio.to_thread(lambda: metrics.page(self._workers.collect()))
        headers = [(b"content-type", metrics.MEDIA_TYPE.encode()), (b"content-length", b"%d" % len(body))]
        await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
        await exchange.send({"type": "http.response.body", "body": body})


def _is_local(scope: Scope) -> bool:
    """Whether it was asked from this machine, and not by a proxy on it for somebody else."""
    host, _ = scope.get("client") or ("", 0)
    try:
        here = ip_address(host).is_loopback
    except ValueError:
        return False
    return here and _FORWARDED.isdisjoint(name for name, _ in scope["headers"])


def describe(app: FastAPI, callers: Callers) -> None:
    """Add the route to the OpenAPI document: the gate answers it before FastAPI would."""

    @app.get(
        PATH,
        tags=["operations"],
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={
            200: {"description": "All metrics, in Prometheus' text format.", "content": {"text/plain": {}}},
            **pages.refusals(400, 401, 403, 429, 500, 503),
        },
    )
    async def get_metrics(principal: Annotated[Any, callers.who_may(ADMIN)]) -> None:
        """Of all processes of this server together. With `server.metrics = "loopback"` the machine itself needs no token."""
