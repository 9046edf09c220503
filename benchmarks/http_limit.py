"""The shortest application that gives the same answers as a feature server: no token, no limits, its views known by heart.

python -m benchmarks.http_limit <SQLite file> <port>
"""

import sqlite3
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import orjson
import uvicorn

# Without a time zone: orjson writes those many times faster.
EPOCH, OPTIONS = datetime(1970, 1, 1), orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z  # noqa: DTZ001


class View(NamedTuple):
    """One view by heart: its statements for one row and for many."""

    name: str
    one: str
    many: str


def views_of(connection: sqlite3.Connection) -> Sequence[View]:
    found = []
    for name in ("driver_stats", "driver_trips", "driver_ratings"):
        (table,) = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE ?", [f"{name}%"]).fetchone()
        names = ", ".join(f't."{name}_{number}"' for number in range(10))
        found.append(
            View(
                name,
                f'SELECT t.observed_at, {names} FROM "{table}" t WHERE driver_id = ?',
                f'SELECT j.key, t.observed_at, {names} FROM json_each(?) j LEFT JOIN "{table}" t '
                "ON t.driver_id = j.value ORDER BY j.key",
            )
        )
    return found


def limit_app(path: str) -> Any:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    views = views_of(connection)
    heads = {
        count: {
            "feature_names": ["driver_id", *(f"{one.name}_{number}" for one in views[:count] for number in range(10))],
            "feature_view_metadata": [{"name": one.name, "version": 1} for one in views[:count]],
        }
        for count in (1, 3)
    }

    def answer(body: bytes) -> bytes:
        asked = orjson.loads(body)
        keys = asked["entities"]["driver_id"]
        count = len(asked["features"]) // 10
        present = ["PRESENT"] * len(keys)
        never = ["1970-01-01T00:00:00Z"] * len(keys)
        results = [{"values": keys, "statuses": present, "event_timestamps": never}]
        for view in views[:count]:
            if len(keys) == 1:
                columns = [(value,) for value in connection.execute(view.one, keys).fetchone()]
            else:
                columns = list(zip(*connection.execute(view.many, (orjson.dumps(keys),)), strict=True))[1:]
            events = [EPOCH + timedelta(0, 0, event) for event in columns[0]]
            results += [{"values": one, "statuses": present, "event_timestamps": events} for one in columns[1:]]
        return orjson.dumps({"results": results, "metadata": heads[count]}, option=OPTIONS)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await receive()
            return
        if scope["method"] == "GET":
            written = b""
        else:
            body, more = b"", True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
            written = answer(body)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(written))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": written})

    return app


if __name__ == "__main__":
    uvicorn.run(
        limit_app(sys.argv[1]), port=int(sys.argv[2]), loop="uvloop", http="httptools", ws="none", lifespan="off",
        log_level="warning", access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=75,
    )  # fmt: skip
