"""An S3 and a DynamoDB over HTTP on a free loopback port (moto) that remember who called what.

`GET /_calls` answers, by access key id, the actions that the key's calls need, as IAM names them, with the key or table
that each was for. The port is the first line on stdout.
"""

import json
import re
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

_KEY = re.compile(r"Credential=([^/]+)/")
_SERVICES = {
    "DynamoDB_20120810": "dynamodb",
    "AmazonEC2ContainerServiceV20141113": "ecs",
    "AmazonSSM": "ssm",
    "secretsmanager": "secretsmanager",
}
_NAMED_BY = ("TableName", "ResourceArn", "taskDefinition", "tasks", "task", "SecretId", "Names")
_OBJECT_ACTIONS = {
    "GET": "s3:GetObject",
    "HEAD": "s3:GetObject",
    "PUT": "s3:PutObject",
    "POST": "s3:PutObject",
    "DELETE": "s3:DeleteObject",
}


class Recording:
    """The WSGI application behind a notebook."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._calls: set[tuple[str, str, str]] = set()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/_calls":
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(sorted(self._calls)).encode()]
        found = _KEY.search(environ.get("HTTP_AUTHORIZATION", ""))
        if found:
            self._calls.update((found[1], action, of) for action, of in _actions(environ))
        return self._application(environ, start_response)  # type: ignore[no-any-return]


def _actions(environ: dict[str, Any]) -> Iterable[tuple[str, str]]:
    service, _, operation = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")
    if service:
        yield f"{_SERVICES[service]}:{operation}", _named(environ)
        return
    _, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
    query = parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
    if key:
        yield _OBJECT_ACTIONS[environ["REQUEST_METHOD"]], key
    elif "delete" in query:
        for deleted in re.findall(rb"<Key>([^<]+)</Key>", _body(environ)):
            yield "s3:DeleteObject", deleted.decode()
    elif environ["REQUEST_METHOD"] == "GET":
        yield "s3:ListBucket", query.get("prefix", [""])[0]


def _named(environ: dict[str, Any]) -> str:
    """What the call is for: a table, or what else has a name."""
    asked = json.loads(_body(environ) or b"{}")
    named = next((asked[name] for name in _NAMED_BY if asked.get(name)), None) or list(asked.get("RequestItems", {}))
    return str(named[0] if isinstance(named, list) and named else named or "")


def _body(environ: dict[str, Any]) -> bytes:
    """The body, which the application reads after us."""
    body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = BytesIO(body)
    return body


if __name__ == "__main__":
    server = make_server("127.0.0.1", 0, Recording(DomainDispatcherApplication(create_backend_app)), threaded=True)
    print(server.port, flush=True)
    server.serve_forever()
