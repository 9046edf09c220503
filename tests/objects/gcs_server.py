"""Google Cloud Storage's XML interface on a free loopback port: moto's S3, with generations before it. The port is printed.

An object's generation is another after each write. A write with `x-goog-if-generation-match` is done if that is its
generation, 0 for no object, and else refused with 412; so Google describes it, and no emulator that can be had does it.
`GET /_conditions` answers the conditions that were asked, by path.
"""

import json
from collections.abc import Callable, Iterable
from itertools import count
from threading import RLock
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

# What moto knows by it that S3 is meant.
_SIGNED = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=s"


class Generations:
    """The WSGI application behind them."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._generations: dict[str, int] = {}
        self._next = count(100)
        self._conditions: list[tuple[str, str]] = []
        self._lock = RLock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path == "/_conditions":
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self._conditions).encode()]
        environ["HTTP_AUTHORIZATION"] = _SIGNED
        expected = environ.get("HTTP_X_GOOG_IF_GENERATION_MATCH")

        def started(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            if status.startswith("2") and method == "PUT":
                self._generations[path] = next(self._next)
            if method == "DELETE":
                self._generations.pop(path, None)
            if path in self._generations:
                headers = [*headers, ("x-goog-generation", str(self._generations[path]))]
            return start_response(status, headers, *more)

        with self._lock:
            if expected is not None:
                self._conditions.append((path, expected))
                if int(expected) != self._generations.get(path, 0):
                    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                    start_response("412 Precondition Failed", [("Content-Length", "0")])
                    return []
            return list(self._application(environ, started))


if __name__ == "__main__":
    server = make_server("127.0.0.1", 0, Generations(DomainDispatcherApplication(create_backend_app)), threaded=True)
    print(server.port, flush=True)
    server.serve_forever()
