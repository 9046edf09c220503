"""The process around the application: its socket, its log, its workers, and how uvicorn is set."""

import gc
import logging
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import uvicorn
from uvicorn.supervisors import Multiprocess

from feature_assets.config import Settings
from feature_assets.errors import ConfigurationError
from feature_assets.server.app import FeatureServer, create_app
from feature_assets.server.connections import Connection
from feature_assets.server.gate import Gate
from feature_assets.server.journal import Journal, Stream
from feature_assets.server.request_log import Form, json_line
from feature_assets.server.trust import check_binding

log = logging.getLogger(__name__)

_CONNECTIONS: Final = 1_000
_OBJECTS_BETWEEN_COLLECTIONS: Final = 50_000
_SECONDS_TO_FINISH: Final = 10
# On a busy machine a new process takes its time to load before it can say that it is there.
_SECONDS_TO_ANSWER_SUPERVISOR: Final = 30
_SECONDS_IDLE: Final = 75


def config_of(app: Any, *, seconds_for_body: float, **options: Any) -> uvicorn.Config:
    """How uvicorn serves an application: what it leaves open is closed, and nothing tells which server it is."""
    return uvicorn.Config(
        app,
        http=partial(Connection, seconds_for_body=seconds_for_body),  # type: ignore[arg-type]
        loop="asyncio" if sys.platform == "win32" else "uvloop",
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
        **options,
    )


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


def own_log(form: Form) -> Journal | None:
    """Log to stderr, and the requests through a journal; nothing of it where the program has arranged for its log."""
    if logging.getLogger().handlers:
        return None
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_AsJson() if form == "json" else _AsText("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    return Journal(Stream(sys.stderr.fileno()))


class _AsText(logging.Formatter):
    """With the time as the lines of requests have it."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class _AsJson(_AsText):
    """One line of JSON for each record, a traceback within it."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging."""
        document = {
            "time": self.formatTime(record),
            "event": "log",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json_line(document).decode()


def run(settings: Settings, *, host: str | None = None, port: int | None = None, workers: int = 1) -> None:
    """Serve until told to stop.

    Args:
        settings: where things are kept; `server` has what is not given here.
        host: the address to listen on.
        port: the port; 0 takes a free one.
        workers: processes that answer.

    Raises:
        ConfigurationError: the address would open it to others without an issuer and an audience, or is taken.
    """
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = settings.model_copy(update={"server": settings.server.model_copy(update=given)})
    check_binding(settings, settings.server.host)
    journal = own_log(settings.server.log)
    with listening(settings.server.host, settings.server.port) as bound, suppress(KeyboardInterrupt):
        place = f"http://{settings.server.host}:{bound.getsockname()[1]}"
        log.info("serving at=%s workers=%d issuer=%s", place, workers, settings.server.issuer or "embedded")
        app = _made(settings, journal)
        seconds = settings.server.body_timeout_seconds
        if workers == 1:
            uvicorn.Server(config_of(app.gate, seconds_for_body=seconds)).run(sockets=[bound])
        else:
            # What is wrong has shown by now, and does not in each worker again and again.
            worker = _Worker(settings.model_dump())
            config = config_of(worker, seconds_for_body=seconds, factory=True, workers=workers)
            Multiprocess(config, sockets=[bound]).run()


def _made(settings: Settings, journal: Journal | None) -> FeatureServer:
    app = create_app(settings, journal)
    # All that was loaded stays: looking through it for garbage again and again makes some answers wait.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    return app


@dataclass(frozen=True)
class _Worker:
    """Makes the application in another process, which starts from nothing."""

    settings: Mapping[str, Any]

    def __call__(self) -> Gate:
        settings = Settings(**self.settings)
        return _made(settings, own_log(settings.server.log)).gate
