"""An S3 over HTTP on a free loopback port (moto), whose manners can be spoiled: `PUT /_faults/<name>`, several by comma.

    ignore-if-match, ignore-if-none-match   as stores do that do not know the header
    conflict-once                           answers one conditional put with 409, undone
    lose-answer-once                        does one put of latest.json and answers 500

The port is the first line on stdout.
"""

from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from tests.one_at_a_time import OneAtATime

_CONFLICT = b"<Error><Code>ConditionalRequestConflict</Code><Message>Try again</Message></Error>"


class Spoiled:
    """The WSGI application behind faults."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._faults: set[str] = set()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith("/_faults/"):
            self._faults = set(path.removeprefix("/_faults/").split(","))
            start_response("204 No Content", [])
            return []
        if "ignore-if-match" in self._faults:
            environ.pop("HTTP_IF_MATCH", None)
        if "ignore-if-none-match" in self._faults:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        put = environ["REQUEST_METHOD"] == "PUT"
        if put and {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"} & environ.keys() and self._once("conflict-once"):
            start_response("409 Conflict", [("Content-Length", str(len(_CONFLICT)))])
            return [_CONFLICT]
        if put and path.endswith("/latest.json") and self._once("lose-answer-once"):
            list(self._application(environ, lambda *_: None))
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return []
        return self._application(environ, start_response)  # type: ignore[no-any-return]

    def _once(self, fault: str) -> bool:
        if fault not in self._faults:
            return False
        self._faults.discard(fault)
        return True


if __name__ == "__main__":
    server = make_server(
        "127.0.0.1", 0, Spoiled(OneAtATime(DomainDispatcherApplication(create_backend_app))), threaded=True
    )
    print(server.port, flush=True)
    server.serve_forever()
