"""A DynamoDB over HTTP on a free loopback port (moto), which may misbehave. The port is the first line on stdout.

`PUT /_faults` takes a list of {"operation", "how", "share", "only"} as JSON: from then on that share of the calls of an
operation ("*" for all of them) goes wrong, of those that have "only" in what they send. `how` is "drop", which cuts the
connection, or a status, 500 or 503: with these the call is done and only its answer is lost; "unprocessed" leaves half of
a batch undone; "damage" changes a digit of every number in the answer, and "garble" all of the answer, whose checksum stays;
the name of one of DynamoDB's errors refuses the call with it. A share of 1 means every call once: the next
of the same content goes well, as a repeated one does; 2 means every call.
"""

import json
import random
import re
from collections.abc import Callable, Iterable
from io import BytesIO
from socket import SHUT_RDWR
from typing import Any
from zlib import crc32

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from tests.one_at_a_time import OneAtATime

BATCHES = {"BatchWriteItem": "UnprocessedItems", "BatchGetItem": "UnprocessedKeys"}


class Faults:
    """The WSGI application behind the faults."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._faults: list[dict[str, Any]] = []
        self._seen: set[tuple[str, bytes]] = set()
        self._random = random.Random(7)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if environ["PATH_INFO"] == "/_faults":
            self._faults, self._seen = json.loads(body), set()
            start_response("204 No Content", [])
            return []
        environ["wsgi.input"] = BytesIO(body)
        operation = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
        for fault in self._faults:
            meant = fault["operation"] in (operation, "*") and fault["only"].encode() in body
            if meant and self._goes_wrong(fault["share"], operation, body):
                return self._wrong(fault["how"], operation, body, environ, start_response)
        return self._application(environ, start_response)  # type: ignore[no-any-return]

    def _goes_wrong(self, share: float, operation: str, body: bytes) -> bool:
        if share != 1:
            return self._random.random() < share
        known = (operation, body) in self._seen
        self._seen.add((operation, body))
        return not known

    def _wrong(
        self, how: str, operation: str, body: bytes, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        if how.endswith("Exception"):
            return self._told(start_response, "400 Bad Request", how)
        if how == "unprocessed":
            return self._half(operation, body, environ, start_response)
        if how in ("damage", "garble"):
            return [_damaged(part, how) for part in self._application(environ, start_response)]
        list(self._application(environ, lambda *_: None))
        if how == "drop":
            environ["werkzeug.socket"].shutdown(SHUT_RDWR)
            raise ConnectionAbortedError
        return self._told(start_response, f"{how} Lost", "InternalServerError")

    def _half(
        self, operation: str, body: bytes, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        asked = json.loads(body)
        ((table, given),) = asked["RequestItems"].items()
        items = given if operation == "BatchWriteItem" else given["Keys"]
        done, left = items[: len(items) // 2], items[len(items) // 2 :]
        answer: dict[str, Any] = {"Responses": {table: []}} if operation == "BatchGetItem" else {}
        if done:
            part = done if operation == "BatchWriteItem" else {**given, "Keys": done}
            sent = json.dumps({**asked, "RequestItems": {table: part}}).encode()
            environ |= {"wsgi.input": BytesIO(sent), "CONTENT_LENGTH": str(len(sent))}
            answer = json.loads(b"".join(self._application(environ, lambda *_: None)))
        answer[BATCHES[operation]] = {table: left if operation == "BatchWriteItem" else {**given, "Keys": left}}
        sent_back = json.dumps(answer).encode()
        headers = [("Content-Type", "application/x-amz-json-1.0"), ("x-amz-crc32", str(crc32(sent_back)))]
        start_response("200 OK", headers)
        return [sent_back]

    def _told(self, start_response: Callable[..., Any], status: str, kind: str) -> Iterable[bytes]:
        start_response(status, [("Content-Type", "application/x-amz-json-1.0")])
        return [json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{kind}", "message": "it is so"}).encode()]


def _damaged(body: bytes, how: str) -> bytes:
    """As long as it was."""
    return re.sub(rb'("N": ?")(\d)', rb"\g<1>7", body) if how == "damage" else b"?" * len(body)


if __name__ == "__main__":
    application = Faults(OneAtATime(DomainDispatcherApplication(create_backend_app)))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    print(server.port, flush=True)
    server.serve_forever()
