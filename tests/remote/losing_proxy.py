"""A proxy on a loopback port that has requests answered and then loses the answer."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR
from typing import Any


class LosingProxy(ThreadingHTTPServer):
    """Passes requests on. Of those whose path is in `losing`, so many answers are lost; `passed` lists all paths."""

    daemon_threads = True

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.losing: dict[str, int] = {}
        self.passed: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LosingProxy

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        connection = HTTPConnection(*self.server.target, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        path = self.path.partition("?")[0]
        self.server.passed.append(path)
        if self.server.losing.get(path, 0) > 0:
            self.server.losing[path] -= 1
            self.connection.shutdown(SHUT_RDWR)
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _pass  # noqa: N815 (the names of the library)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def losing_proxy(target: tuple[str, int]) -> Iterator[LosingProxy]:
    """A proxy before that host and port."""
    proxy = LosingProxy(target)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
