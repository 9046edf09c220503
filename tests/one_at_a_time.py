"""moto as atomic as what it plays."""

from collections.abc import Callable, Iterable
from io import BytesIO
from threading import Lock
from typing import Any


class OneAtATime:
    """A WSGI application that does one request after the other.

    moto looks whether a condition holds and then does what depends on it; of two conditional puts at once both could win,
    which S3 and DynamoDB never let happen.
    """

    def __init__(self, application: Any) -> None:
        self._application, self._turn = application, Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # A slow sender holds up nobody else.
        environ["wsgi.input"] = BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        with self._turn:
            return list(self._application(environ, start_response))
