"""An S3 over HTTP on a free loopback port (moto) that loses answers: `PUT /_lose/<how>/<count>`.

The next `count` puts of Delta log entries are done and then answered with `how`: 500, 503, or `drop`, which cuts the
connection. `PUT /_refuse/409/1` answers without doing it. The port is the first line on stdout.
"""

from collections.abc import Callable, Iterable
from socket import SHUT_RDWR
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from tests.one_at_a_time import OneAtATime


class LosingAnswers:
    """The WSGI application behind the faults."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._fault, self._left, self._do = "", 0, True

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        _, _, *fault = environ["PATH_INFO"].split("/") if environ["PATH_INFO"].startswith("/_") else ("", "")
        if fault:
            self._do = environ["PATH_INFO"].startswith("/_lose/")
            self._fault, self._left = fault[0], int(fault[1])
            start_response("204 No Content", [])
            return []
        entry = environ["REQUEST_METHOD"] == "PUT" and "/_delta_log/0" in environ["PATH_INFO"]
        if entry and self._left > 0:
            self._left -= 1
            if self._do:
                list(self._application(environ, lambda *_: None))
            if self._fault == "drop":
                environ["werkzeug.socket"].shutdown(SHUT_RDWR)
                raise ConnectionAbortedError
            body = b"<Error><Code>Lost</Code><Message>lost</Message></Error>"
            start_response(f"{self._fault} Lost", [("Content-Length", str(len(body)))])
            return [body]
        return self._application(environ, start_response)  # type: ignore[no-any-return]


if __name__ == "__main__":
    application = LosingAnswers(OneAtATime(DomainDispatcherApplication(create_backend_app)))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    print(server.port, flush=True)
    server.serve_forever()
