"""The process around the application: its socket, its log, and how uvicorn is set."""

import logging
import socket
import sys
from functools import partial
from typing import Any, Final

import uvicorn

from feature_assets.errors import ConfigurationError
from feature_assets.server.connections import Connection
from feature_assets.server.journal import Journal

_CONNECTIONS: Final = 1_000
_SECONDS_TO_FINISH: Final = 10
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


def own_log() -> Journal | None:
    """Log to stderr, and the requests through a journal; nothing of it where the program has arranged for its log."""
    if logging.getLogger().handlers:
        return None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    return Journal(sys.stderr)
