"""Online features over HTTP, with the token checked, against a raw ASGI application that does the same read and no more.

    python -m benchmarks.http [seconds] [rounds]

One process each, 8 connections, both under uvicorn on uvloop and httptools. The marks: for one row of 10 features at least
0.6 of the limit's rate and at most twice its p99, for 100 rows at least 0.85. Needs wrk (`apt install wrk`).
"""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import orjson
import polars as pl

ENTITIES = 100_000
FEATURES = [f"feature_{number}" for number in range(10)]
CONNECTIONS = 8
MARKS = {1: 0.6, 100: 0.85}


class Load(NamedTuple):
    """What a round gave: answers a second, milliseconds, and microseconds of the server's processor for each answer."""

    rate: float
    p50: float
    p99: float
    cpu: float


class Server(NamedTuple):
    """A server in a process of its own."""

    url: str
    process: int


def prepare(folder: Path) -> tuple[Path, str]:
    """A published view with rows online, and a token; the settings file."""
    from feature_assets.config import Settings
    from feature_assets.online import open_online_store
    from feature_assets.registry import Registry, RegistryStore
    from feature_assets.server.issuer import Issuer
    from feature_assets.spec import PUBLICATION, Entity, Field, ViewSpec
    from feature_assets.types import Float64, Int64

    file = folder / "feature_assets.toml"
    file.write_text('online = "sqlite:online.db"\nregistry = "registry"\n')
    settings = Settings.load(file)
    view = ViewSpec(
        name="driver_stats",
        entities=(Entity("driver", {"driver_id": Int64}),),
        features=tuple(Field(name, Float64) for name in FEATURES),
        event_timestamp="observed_at",
        ttl=timedelta(days=36_500),
    )
    random = np.random.default_rng(7)
    rows = pl.DataFrame(
        {
            "driver_id": np.arange(ENTITIES),
            "observed_at": pl.Series(np.arange(ENTITIES) * 1_000_003 + 1_760_000_000_000_000).cast(
                pl.Datetime("us", "UTC")
            ),
            **{name: random.random(ENTITIES) for name in FEATURES},
            PUBLICATION: np.ones(ENTITIES, dtype=np.int64),
        }
    )
    store = open_online_store(settings.online_url)
    store.prepare(view)
    store.write(view, rows, None)
    store.close()
    RegistryStore(settings.place(settings.registry)).publish(Registry.of([view]), location="benchmark", by="benchmark")
    return file, Issuer.open(settings.place(settings.secrets)).token("benchmark", ["features:read"], 3_600)


def limit_app(path: str) -> Any:
    """The shortest application that gives the same answer: no token, no limits, one view known by heart."""
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    table = next(
        name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'driver_stats%'")
    )
    names = ", ".join(f't."{name}"' for name in FEATURES)
    one = f'SELECT t.observed_at, {names} FROM "{table}" t WHERE driver_id = ?'
    many = (
        f'SELECT j.key, t.observed_at, {names} FROM json_each(?) j LEFT JOIN "{table}" t ON t.driver_id = j.value '
        "ORDER BY j.key"
    )
    # Without a time zone: orjson writes those many times faster.
    epoch, options = datetime(1970, 1, 1), orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z  # noqa: DTZ001
    metadata = {
        "feature_names": ["driver_id", *FEATURES],
        "feature_view_metadata": [{"name": "driver_stats", "version": 1}],
    }

    def answer(body: bytes) -> bytes:
        keys = orjson.loads(body)["entities"]["driver_id"]
        if len(keys) == 1:
            columns = [(value,) for value in connection.execute(one, keys).fetchone()]
        else:
            columns = list(zip(*connection.execute(many, (orjson.dumps(keys),)), strict=True))[1:]
        present = ["PRESENT"] * len(keys)
        events = [epoch + timedelta(0, 0, event) for event in columns[0]]
        results = [
            {
                "values": keys,
                "statuses": present,
                "event_timestamps": ["1970-01-01T00:00:00Z"] * len(keys),
            }
        ]
        results += [{"values": values, "statuses": present, "event_timestamps": events} for values in columns[1:]]
        return orjson.dumps({"results": results, "metadata": metadata}, option=options)

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


def serve_limit(path: str, port: int) -> None:
    import uvicorn

    uvicorn.run(
        limit_app(path), port=port, loop="uvloop", http="httptools", ws="none", lifespan="off", log_level="warning",
        access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=75,
    )  # fmt: skip


def serve_ours(file: str, port: int) -> None:
    from feature_assets.config import Settings
    from feature_assets.server.process import run

    run(Settings.load(file), port=port)


@contextmanager
def serving(which: str, place: Path) -> Iterator[Server]:
    """One of the servers in a process of its own; its log goes to a file, as it does in earnest."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.http", which, str(place), str(port)]
    with (place.parent / f"{which}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(400):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1).close()  # noqa: S310
                break
            except OSError:
                assert process.poll() is None, f"{which} did not start"
                time.sleep(0.05)
        yield Server(url, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)


def question(rows: int) -> bytes:
    keys = [int(key) for key in np.random.default_rng(rows).integers(0, ENTITIES, rows)]
    return json.dumps(
        {
            "features": [f"driver_stats:{name}" for name in FEATURES],
            "entities": {"driver_id": keys},
            "full_feature_names": False,
        }
    ).encode()


def asked(url: str, body: bytes, headers: Mapping[str, str]) -> Any:
    request = urllib.request.Request(f"{url}/get-online-features", body, dict(headers))  # noqa: S310
    with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
        return json.load(answer)


def load(server: Server, body: bytes, headers: Mapping[str, str], seconds: int, folder: Path) -> Load:
    script = folder / "post.lua"
    lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    script.write_text("\n".join(['wrk.method = "POST"', f"wrk.body = [[{body.decode()}]]", *lines]))
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", str(script)]
    before = processor_seconds(server.process)
    found = subprocess.run(
        [*command, f"{server.url}/get-online-features"], capture_output=True, text=True, check=True
    ).stdout
    taken = processor_seconds(server.process) - before
    assert "Non-2xx" not in found, found
    assert "Socket errors" not in found, found
    rate = re.search(r"Requests/sec:\s+([\d.]+)", found)
    count = re.search(r"(\d+) requests in", found)
    assert rate, found
    assert count, found
    cpu = taken / int(count[1]) * 1e6
    return Load(float(rate[1]), _milliseconds(found, "50%"), _milliseconds(found, "99%"), cpu)


def processor_seconds(process: int) -> float:
    """What the process has used so far: a busy machine spoils rates, and this much less."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _milliseconds(text: str, label: str) -> float:
    found = re.search(rf"{label}\s+([\d.]+)(us|ms|s)", text)
    assert found, text
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]


def compare(rows: int, servers: Mapping[str, Server], token: str, seconds: int, rounds: int, folder: Path) -> None:
    body = question(rows)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    answers = {name: asked(server.url, body, headers) for name, server in servers.items()}
    assert answers["ours"] == answers["limit"], f"{rows} rows: the answers differ"
    samples: dict[str, list[Load]] = {name: [] for name in servers}
    for turn in range(rounds):
        for name in list(servers) if turn % 2 == 0 else list(servers)[::-1]:
            samples[name].append(load(servers[name], body, headers, seconds, folder))
    ratio = median(one.rate for one in samples["ours"]) / median(one.rate for one in samples["limit"])
    work = median(one.cpu for one in samples["limit"]) / median(one.cpu for one in samples["ours"])
    verdict = "within" if ratio >= MARKS[rows] else "BELOW"
    print(
        f"\n{rows} row{'s' if rows > 1 else ''} × {len(FEATURES)} features, {CONNECTIONS} connections"
        f"  [{verdict} the mark: {ratio:.2f} of {MARKS[rows]:g}; by processor time {work:.2f}]"
    )
    print(f"  {'':6}  {'rate /s':>9}  {'min':>9}  {'max':>9}  {'p50 ms':>8}  {'p99 ms':>8}  {'cpu µs':>7}")
    for name, loads in samples.items():
        rates = [one.rate for one in loads]
        p50, p99 = median(one.p50 for one in loads), median(one.p99 for one in loads)
        cpu = median(one.cpu for one in loads)
        print(
            f"  {name:6}  {median(rates):9.0f}  {min(rates):9.0f}  {max(rates):9.0f}  {p50:8.2f}  {p99:8.2f}  {cpu:7.1f}"
        )


def main() -> None:
    if sys.argv[1:2] == ["ours"]:
        serve_ours(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["limit"]:
        serve_limit(sys.argv[2], int(sys.argv[3]))
    elif shutil.which("wrk") is None:
        print("This benchmark needs wrk, which makes load without taking the servers' processors: apt install wrk")
    else:
        seconds, rounds = (*map(int, sys.argv[1:]), 5, 5)[:2] if len(sys.argv) < 3 else map(int, sys.argv[1:3])
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
            folder = Path(name)
            file, token = prepare(folder)
            with serving("ours", file) as ours, serving("limit", folder / "online.db") as limit:
                for rows in MARKS:
                    compare(rows, {"ours": ours, "limit": limit}, token, seconds, rounds, folder)


if __name__ == "__main__":
    main()
