"""Durable pushes of one row by 8 clients, over HTTP and in process, against group commit by hand, which keeps JSON lines.

    python -m benchmarks.push [seconds] [rounds]

Both force their file to disk before they answer, and share that between those who wait. By hand that is all: nothing looks
at the rows, nobody is asked for a token, and nothing is published. Ours checks rows and token, and publishes to Delta and
the online store meanwhile. Afterwards every answered row is looked for in both stores: there, and once. The mark is 3,000 a
second over HTTP. Needs wrk (`apt install wrk`).
"""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import orjson
import polars as pl

CLIENTS = 8
MARK = 3_000
AT = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
SOURCE = "rides"

# wrk asks on one connection after the other, so that the turn of a thread tells its requests apart.
_LUA = """
local turn = 0
local headers = {["Content-Type"] = "application/json", ["Authorization"] = "Bearer %(token)s"}
request = function()
  turn = turn + 1
  return wrk.format("POST", "/push", headers,
    '{"push_source_name":"%(source)s","to":"online_and_offline","df":{"driver_id":[' .. (%(first)d + turn) ..
    '],"at":["%(at)s"],"km":[12.5],"city":["Ulm"]}}')
end
"""


class Pushes(NamedTuple):
    """What a round gave: how many were answered, how many a second, milliseconds at the 99th percentile."""

    answered: int
    rate: float
    p99: float


def view() -> Any:
    from feature_assets.spec import Entity, Field, Stream, TimePartitions, ViewSpec
    from feature_assets.types import Float64, Int64, String

    daily = TimePartitions(cron="0 0 * * *", timezone="UTC", start="2024-01-01T00:00:00+00:00", fmt="%Y-%m-%d")
    return ViewSpec(
        name="trips",
        entities=(Entity("driver", {"driver_id": Int64}),),
        features=(Field("km", Float64), Field("city", String)),
        event_timestamp="at",
        partitions={"partition": daily},
        stream=Stream(SOURCE),
    )


def prepare(folder: Path) -> tuple[Path, str]:
    """A published view with a push source, and a token; the settings file."""
    from feature_assets.config import Settings
    from feature_assets.registry import Registry, RegistryStore
    from feature_assets.server.issuer import Issuer
    from feature_assets.spec import PushSource

    file = folder / "feature_assets.toml"
    file.write_text('registry = "registry"\n')
    settings = Settings.load(file)
    registry = Registry.of([view(), PushSource(name=SOURCE)])
    RegistryStore(settings.place(settings.registry)).publish(registry, location="benchmark", by="benchmark")
    return file, Issuer.open(settings.place(settings.secrets)).token("benchmark", ["features:push"], 3_600)


class GroupCommit:
    """The limit: lines of a file, forced to disk once for all who wait."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._mutex, self._done = threading.Lock(), threading.Condition()
        self._lines: list[bytes] = []
        self._given = self._kept = 0

    def write(self, lines: list[bytes]) -> None:
        os.write(self._file, b"".join(lines))
        os.fdatasync(self._file)

    def push(self, line: bytes) -> None:
        with self._done:
            self._lines.append(line)
            self._given += 1
            mine = self._given
        with self._mutex:
            if self._kept >= mine:
                return
            with self._done:
                lines, self._lines, last = self._lines, [], self._given
            self.write(lines)
            self._kept = last


def limit_app(path: Path) -> Any:
    commit = GroupCommit(path)
    waiting: list[tuple[bytes, asyncio.Future[None]]] = []
    writing = False

    async def keep() -> None:
        nonlocal writing
        while waiting:
            batch = waiting.copy()
            waiting.clear()
            await asyncio.get_running_loop().run_in_executor(None, commit.write, [line for line, _ in batch])
            for _, answer in batch:
                answer.set_result(None)
        writing = False

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        nonlocal writing
        body = (await receive()).get("body", b"")
        if body:
            asked = orjson.loads(body)
            answer = asyncio.get_running_loop().create_future()
            waiting.append((orjson.dumps(asked["df"]) + b"\n", answer))
            if not writing:
                writing = True
                keeping.append(asyncio.ensure_future(keep()))
            await answer
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    keeping: list[asyncio.Future[None]] = []
    return app


def serve(which: str, place: Path, port: int) -> None:
    if which == "ours":
        from feature_assets.config import Settings
        from feature_assets.server.process import run

        run(Settings.load(place), port=port)
        return
    import uvicorn

    uvicorn.run(
        limit_app(place), port=port, loop="uvloop", http="httptools", ws="none", lifespan="off", log_level="warning",
        access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=75,
    )  # fmt: skip


@contextmanager
def serving(which: str, place: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.push", which, str(place), str(port)]
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
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def load(url: str, token: str, first: int, seconds: int, folder: Path) -> Pushes:
    script = folder / "push.lua"
    script.write_text(_LUA % {"token": token, "source": SOURCE, "first": first, "at": AT.isoformat()})
    command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "--latency", "-s", str(script), url]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in found, found
    assert "Socket errors" not in found, found
    count, rate = re.search(r"(\d+) requests in", found), re.search(r"Requests/sec:\s+([\d.]+)", found)
    slow = re.search(r"99%\s+([\d.]+)(us|ms|s)", found)
    assert count, found
    assert rate, found
    assert slow, found
    return Pushes(int(count[1]), float(rate[1]), float(slow[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[slow[2]])


def threads(push: Callable[[int], object], first: int, seconds: float) -> Pushes:
    """The same in this process: each client is a thread."""
    taken: list[list[float]] = [[] for _ in range(CLIENTS)]
    end = time.perf_counter() + seconds

    def work(which: int) -> None:
        driver = first + which
        while (start := time.perf_counter()) < end:
            push(driver)
            taken[which].append(time.perf_counter() - start)
            driver += CLIENTS

    clients = [threading.Thread(target=work, args=(which,)) for which in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    each = sorted(one for times in taken for one in times)
    return Pushes(len(each), len(each) / seconds, each[int(len(each) * 0.99)] * 1e3)


def told(name: str, ways: dict[str, list[Pushes]], mark: float | None) -> None:
    rate = {way: median(one.rate for one in rounds) for way, rounds in ways.items()}
    verdict = "" if mark is None else f"  [{'within' if rate['ours'] >= mark else 'BELOW'} the mark of {mark:,.0f} /s]"
    print(f"\n{name}, {CLIENTS} clients, one row each: {rate['ours'] / rate['limit']:.2f} of the limit{verdict}")
    print(f"  {'':6}  {'rate /s':>9}  {'min':>9}  {'max':>9}  {'p99 ms':>8}")
    for way, rounds in ways.items():
        rates = [one.rate for one in rounds]
        p99 = median(one.p99 for one in rounds)
        print(f"  {way:6}  {rate[way]:9,.0f}  {min(rates):9,.0f}  {max(rates):9,.0f}  {p99:8.2f}")


def compared(file: Path, answered: int, lines: list[Path], by_hand: int) -> None:
    """Every answered push is there once, offline and online; and by hand a line for each."""
    from feature_assets import FeatureStore
    from feature_assets.config import Settings
    from feature_assets.settlement import verify

    with FeatureStore(Settings.load(file)) as store:
        rows = store.offline.scan(view()).select("driver_id", "at", "km", "city").collect()
        assert rows.height >= answered, f"{answered - rows.height} answered rows are lost"
        assert rows["driver_id"].n_unique() == rows.height, "rows are there twice"
        assert rows.drop("driver_id").unique().rows() == [(AT, 12.5, "Ulm")]
        assert verify(view(), store.offline, store.online).total == 0
    kept = pl.concat([pl.read_ndjson(path) for path in lines])
    assert kept.height >= by_hand
    assert kept.drop("driver_id").unique().height == 1
    print(f"\n{answered:,} answered pushes: each is offline once, and online")


def main() -> None:
    if sys.argv[1:2] in (["ours"], ["limit"]):
        serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
        return
    if shutil.which("wrk") is None:
        print("This benchmark needs wrk, which makes load without taking the servers' processors: apt install wrk")
        return
    seconds, rounds = (int(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 2 else (5, 5)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        file, token = prepare(folder)
        http: dict[str, list[Pushes]] = {"ours": [], "limit": []}
        with serving("ours", file) as ours, serving("limit", folder / "http.jsonl") as limit:
            for turn in range(rounds):
                for way, url in [("ours", ours), ("limit", limit)][:: 1 if turn % 2 == 0 else -1]:
                    http[way].append(load(url, token, turn * 10**8, seconds, folder))
        told("HTTP", http, MARK)
        inside = in_process(file, folder, seconds, rounds)
        told("In process", inside, None)
        answered, by_hand = (
            sum(one.answered for ways in (http, inside) for one in ways[way]) for way in ("ours", "limit")
        )
        compared(file, answered, [folder / "http.jsonl", folder / "threads.jsonl"], by_hand)


def in_process(file: Path, folder: Path, seconds: int, rounds: int) -> dict[str, list[Pushes]]:
    from feature_assets import FeatureStore
    from feature_assets.config import Settings

    found: dict[str, list[Pushes]] = {"ours": [], "limit": []}
    commit = GroupCommit(folder / "threads.jsonl")

    def by_hand(driver: int) -> None:
        commit.push(orjson.dumps({"driver_id": [driver], "at": [AT], "km": [12.5], "city": ["Ulm"]}) + b"\n")

    with FeatureStore(Settings.load(file)) as store:

        def ours(driver: int) -> None:
            store.push(SOURCE, {"driver_id": [driver], "at": [AT], "km": [12.5], "city": ["Ulm"]})

        for turn in range(rounds):
            for way, push in [("ours", ours), ("limit", by_hand)][:: 1 if turn % 2 == 0 else -1]:
                found[way].append(threads(push, 10**10 + turn * 10**8, seconds))
    return found


if __name__ == "__main__":
    main()
