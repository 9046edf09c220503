"""The process around the application: its socket, its log, its workers, and how uvicorn is set."""

import asyncio
import gc
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from feature_assets.config import Settings, checked
from feature_assets.errors import ConfigurationError
from feature_assets.server.app import FeatureServer, create_app
from feature_assets.server.connections import SECONDS_FOR_HEADERS, Connection
from feature_assets.server.gate import Gate
from feature_assets.server.journal import Journal
from feature_assets.server.logs import own_log
from feature_assets.server.tls import Files, files_of
from feature_assets.server.trust import cautions, check_binding

if sys.platform == "win32":
    from asyncio import ProactorEventLoop as _FastLoop
else:
    from uvloop import Loop as _FastLoop

log = logging.getLogger(__name__)

_CONNECTIONS: Final = 1_000
_OBJECTS_BETWEEN_COLLECTIONS: Final = 50_000
_SECONDS_TO_FINISH: Final = 10
# On a busy machine a new process takes its time to load before it can say that it is there.
_SECONDS_TO_ANSWER_SUPERVISOR: Final = 30
_SECONDS_IDLE: Final = 75
_SECONDS_TO_TAKE_LEAVE: Final = 5.0

_T = TypeVar("_T")


class Loop(_FastLoop):
    """A client may take no longer over a handshake than over headers: it could hold the connection for a minute else."""

    async def create_server(  # type: ignore[override]
        self, *arguments: Any, ssl: ssl.SSLContext | None = None, **options: Any
    ) -> Any:
        """See asyncio."""
        if ssl is not None:
            options |= {"ssl_handshake_timeout": SECONDS_FOR_HEADERS, "ssl_shutdown_timeout": _SECONDS_TO_TAKE_LEAVE}
        return await super().create_server(*arguments, ssl=ssl, **options)


def config_of(app: Any, settings: Settings, **options: Any) -> uvicorn.Config:
    """How uvicorn serves an application: what it leaves open is closed, and nothing tells which server it is."""
    tls = files_of(settings)
    return uvicorn.Config(
        app,
        http=partial(  # type: ignore[arg-type]
            Connection,
            seconds_for_body=settings.server.body_timeout_seconds,
            least_for_body=settings.server.body_min_bytes_per_second,
        ),
        loop=f"{Loop.__module__}:{Loop.__qualname__}",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_SECONDS_IDLE,
        timeout_graceful_shutdown=_SECONDS_TO_FINISH,
        timeout_worker_healthcheck=_SECONDS_TO_ANSWER_SUPERVISOR,
        ssl_context_factory=None if tls is None else partial(_context, tls),
        **options,
    )


def _context(tls: Files, *_: object) -> ssl.SSLContext:
    return _or_end(tls.context)


def listening(host: str, port: int) -> socket.socket:
    """A socket at that address.

    Raises:
        ConfigurationError: it is taken, or no address of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"The server cannot listen on {host}, port {port}: {error.strerror}. Take another one with --port."
        ) from error
    bound.set_inheritable(True)
    return bound


def run(
    settings: Settings,
    *,
    host: str | None = None,
    port: int | None = None,
    workers: int = 1,
    tls_certificate: str | None = None,
    tls_key: str | None = None,
) -> None:
    """Serve until told to stop.

    Args:
        settings: where things are kept; `server` has what is not given here.
        host: the address to listen on.
        port: the port; 0 takes a free one.
        workers: processes that answer. More than one are replaced one by one on SIGHUP, without a request lost.
        tls_certificate: the file of the certificate, PEM.
        tls_key: the file of its key.

    Raises:
        ConfigurationError: the address would open it to others without an issuer and an audience, or is taken, or
            certificate and key do not do.
    """
    named = {"host": host, "port": port, "tls_certificate": tls_certificate, "tls_key": tls_key}
    given = {name: value for name, value in named.items() if value is not None}
    settings = settings.model_copy(update={"server": checked(settings.server, given)})
    check_binding(settings, settings.server.host)
    tls = files_of(settings)
    if tls is not None:
        tls.context()
    journal = own_log(settings.server.log)
    with listening(settings.server.host, settings.server.port) as bound, suppress(KeyboardInterrupt):
        scheme = "http" if tls is None else "https"
        place = f"{scheme}://{settings.server.host}:{bound.getsockname()[1]}"
        log.info("serving at=%s workers=%d issuer=%s", place, workers, settings.server.issuer or "embedded")
        for caution in cautions(settings.server):
            log.warning("%s", caution)
        app = _made(settings, journal)
        if workers == 1:
            _Server(config_of(app.gate, settings), tls).run(sockets=[bound])
        else:
            # What is wrong has shown by now, and does not in each worker again and again.
            with TemporaryDirectory(prefix="feature-assets-") as shared:
                worker = _Worker(settings.model_dump(), Path(shared))
                _Workers(config_of(worker, settings, factory=True, workers=workers), sockets=[bound]).run()


class _Server(uvicorn.Server):
    """The one process. It reads its certificate again when it is told to (SIGHUP)."""

    def __init__(self, config: uvicorn.Config, tls: Files | None) -> None:
        super().__init__(config)
        self._tls = tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)

    def _reload(self) -> None:
        if self._tls is None or self.config.ssl is None:
            log.warning("nothing to read again: without TLS only --workers 2 or more are replaced")
            return
        try:
            self._tls.load_into(self.config.ssl)
        except ConfigurationError as error:
            log.error("the former certificate is kept error=%s", error)  # noqa: TRY400
        else:
            log.info("certificate read again file=%s", self._tls.certificate)


class _Workers(Multiprocess):
    """Several processes. Ctrl-C goes to all of them, and is the parent's to hear: it ends its workers in order.

    A worker takes seconds to load, and would be torn out of it with a traceback.
    """

    def init_processes(self) -> None:
        """See uvicorn."""
        if not hasattr(signal, "pthread_sigmask"):
            super().init_processes()
            return
        # Where multiprocessing has to start this, it lets through again what is blocked.
        resource_tracker.ensure_running()
        # Workers inherit what is blocked. What comes meanwhile waits for the parent.
        former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().init_processes()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _made(settings: Settings, journal: Journal | None, shared: Path | None = None) -> FeatureServer:
    app = create_app(settings, journal, shared)
    # All that was loaded stays: looking through it for garbage again and again makes some answers wait.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    return app


@dataclass(frozen=True)
class _Worker:
    """Makes the application in another process, which starts from nothing."""

    settings: Mapping[str, Any]
    shared: Path

    def __call__(self) -> Gate:
        settings = Settings(**self.settings)
        journal = own_log(settings.server.log)
        return _or_end(lambda: _made(settings, journal, self.shared)).gate


def _or_end(make: Callable[[], _T]) -> _T:
    """What is made, or the end of this process: its supervisor keeps the others."""
    try:
        return make()
    except ConfigurationError as error:
        log.error("%s", error)  # noqa: TRY400
        sys.exit(STARTUP_FAILURE)
