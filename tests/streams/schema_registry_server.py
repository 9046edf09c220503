"""A schema registry of a few paths: enough of Confluent's REST interface for its own client to register and to ask."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

NOT_FOUND = {"error_code": 40403, "message": "Schema not found"}


@dataclass
class SchemaRegistryServer:
    """`url` is where it is. While `status` is set, every answer is that and nothing else; `asked` are the paths."""

    url: str = ""
    status: int | None = None
    authorization: str | None = None
    asked: list[str] = field(default_factory=list)
    schemas: list[dict[str, Any]] = field(default_factory=list)
    subjects: dict[str, list[int]] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def register(self, subject: str, schema: dict[str, Any]) -> int:
        with self.lock:
            if schema not in self.schemas:
                self.schemas.append(schema)
            number = self.schemas.index(schema) + 1
            versions = self.subjects.setdefault(subject, [])
            if number not in versions:
                versions.append(number)
            return number

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        match [unquote(part) for part in path.strip("/").split("/")]:
            case ["schemas", "ids", number]:
                at = int(number) - 1
                return (200, self.schemas[at]) if 0 <= at < len(self.schemas) else (404, NOT_FOUND)
            case ["subjects", subject, "versions"] if method == "POST":
                return 200, {"id": self.register(subject, body)}
            case ["subjects", subject] if method == "POST":
                number = self.register(subject, body)
                version = self.subjects[subject].index(number) + 1
                return 200, {"subject": subject, "id": number, "version": version, **self.schemas[number - 1]}
            case ["subjects", subject, "versions", version]:
                versions = self.subjects.get(subject, [])
                at = len(versions) if version == "latest" else int(version)
                if not 0 < at <= len(versions):
                    return 404, {"error_code": 40402, "message": "Version not found"}
                number = versions[at - 1]
                return 200, {"subject": subject, "id": number, "version": at, **self.schemas[number - 1]}
        return 404, {"error_code": 404, "message": f"no {method} {path}"}


@contextmanager
def schema_registry() -> Iterator[SchemaRegistryServer]:
    registry = SchemaRegistryServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            registry.asked.append(self.path)
            length = int(self.headers.get("content-length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            if registry.status is not None:
                status, answer = registry.status, {"error_code": registry.status * 100, "message": "away"}
            elif registry.authorization not in (None, self.headers.get("authorization")):
                status, answer = 401, {"error_code": 401, "message": "Unauthorized"}
            else:
                status, answer = registry.answer(self.command, urlsplit(self.path).path, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/vnd.schemaregistry.v1+json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Tells nobody."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    registry.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
