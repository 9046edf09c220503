"""Durable pushes of one row by 8 clients, over HTTP and in process, against group commit by hand, which keeps JSON lines;
over HTTP against Feast's server too, where it is installed.

    python -m benchmarks.push [seconds] [rounds]

Both force their file to disk before they answer, and share that between those who wait. By hand that is all: nothing looks
at the rows, nobody is asked for a token, and nothing is published. Ours checks rows and token, and publishes to Delta and
the online store meanwhile. Afterwards every answered row is looked for in both stores: there, and once. The mark is 3,000 a
second over HTTP.

Feast checks a token of the same issuer, and pushes to its online store alone, SQLite as ours: its history is a file that
each push would write anew as a whole. Afterwards the rows of both are looked up over HTTP, and compared.

Needs wrk (`apt install wrk`). Feast is that of `FEAST_PYTHON`, or of `.venv-feast`, which `make acceptance` makes.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import orjson
import polars as pl

from benchmarks.http import AUDIENCE, answer, feast_server, free_port, issuing, serving
from benchmarks.peer import feast_python, run_by

CLIENTS = 8
MARK = 3_000
AT = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
SOURCE = "rides"
_ROUND = 10**8
"""So far apart lie the keys of two rounds."""

# wrk asks on one connection after the other, so that the turn of a thread tells its requests apart.
_LUA = """
local turn = 0
local headers = {["Content-Type"] = "application/json", ["Authorization"] = "Bearer %(token)s"}
request = function()
  turn = turn + 1
  return wrk.format("POST", "/push", headers,
    '{"push_source_name":"%(source)s","to":"%(to)s","df":{"driver_id":[' .. (%(first)d + turn) ..
    '],"at":["%(at)s"],"km":[12.5],"city":["Ulm"]}}')
end
"""


class Pushes(NamedTuple):
    """What a round gave: how many were answered, how many a second, milliseconds at the 99th percentile; and how many were
    refused besides.
    """

    answered: int
    rate: float
    p99: float
    refused: int = 0


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


def prepare(folder: Path, issuer: str) -> Path:
    """A published view with a push source; the settings file."""
    from feature_assets.config import Settings
    from feature_assets.registry import Registry, RegistryStore
    from feature_assets.spec import PushSource

    file = folder / "feature_assets.toml"
    file.write_text(f'registry = "registry"\n[server]\nissuer = "{issuer}"\naudience = "{AUDIENCE}"\n')
    settings = Settings.load(file)
    registry = Registry.of([view(), PushSource(name=SOURCE)])
    RegistryStore(settings.place(settings.registry)).publish(registry, location="benchmark", by="benchmark")
    return file


def prepare_feast(python: Path, folder: Path, issuer: str) -> None:
    folder.mkdir()
    row = {"driver_id": [0], "at": [AT], "km": [0.0], "city": [""]}
    pl.DataFrame(row).write_parquet(folder / "trips.parquet")
    run_by(python, "feast_push_repo.py", folder, f"{issuer}/.well-known/openid-configuration")


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
            for _, told in batch:
                told.set_result(None)
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


def load(way: str, url: str, token: str, first: int, seconds: int, folder: Path) -> Pushes:
    script = folder / "push.lua"
    to = "online" if way == "feast" else "online_and_offline"
    given = {"token": token, "source": SOURCE, "first": first, "at": AT.isoformat(), "to": to}
    script.write_text(_LUA % given)
    command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "--latency", "-s", str(script), url]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", found)
    refused = int(wrong[1]) if wrong else 0
    # Feast's threads share one connection to SQLite: of pushes that come at once it fails some, and hangs up.
    if way != "feast":
        assert refused == 0, found
        assert "Socket errors" not in found, found
    count, rate = re.search(r"(\d+) requests in", found), re.search(r"Requests/sec:\s+([\d.]+)", found)
    slow = re.search(r"99%\s+([\d.]+)(us|ms|s)", found)
    assert count, found
    assert rate, found
    assert slow, found
    milliseconds = float(slow[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[slow[2]]
    good = int(count[1]) - refused
    return Pushes(good, float(rate[1]) * good / int(count[1]), milliseconds, refused)


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
    peer = f"; {rate['ours'] / rate['feast']:.0f} times Feast" if "feast" in rate else ""
    print(f"\n{name}, {CLIENTS} clients, one row each: {rate['ours'] / rate['limit']:.2f} of the limit{peer}{verdict}")
    print(f"  {'':6}  {'rate /s':>9}  {'min':>9}  {'max':>9}  {'p99 ms':>8}")
    for way, rounds in ways.items():
        rates = [one.rate for one in rounds]
        p99 = median(one.p99 for one in rounds)
        refused = sum(one.refused for one in rounds)
        line = f"  {way:6}  {rate[way]:9,.0f}  {min(rates):9,.0f}  {max(rates):9,.0f}  {p99:8.2f}"
        print(f"{line}  ({refused:,} of {refused + sum(one.answered for one in rounds):,} failed)" if refused else line)


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
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "issuer").mkdir()
        issuer, token = stack.enter_context(issuing(folder / "issuer", "features:push features:read"))
        file = prepare(folder, issuer)
        http = over_http(file, issuer, token, folder, seconds, rounds)
        told("HTTP", http, MARK)
        inside = in_process(file, folder, seconds, rounds)
        told("In process", inside, None)
        answered, by_hand = (
            sum(one.answered for ways in (http, inside) for one in ways[way]) for way in ("ours", "limit")
        )
        compared(file, answered, [folder / "http.jsonl", folder / "threads.jsonl"], by_hand)


def over_http(file: Path, issuer: str, token: str, folder: Path, seconds: int, rounds: int) -> dict[str, list[Pushes]]:
    ports = {one: free_port() for one in ("ours", "limit", "feast")}
    commands = {
        which: [sys.executable, "-m", "benchmarks.push", which, str(place), str(ports[which])]
        for which, place in (("ours", file), ("limit", folder / "http.jsonl"))
    }
    if (python := feast_python()) is None:
        print("Feast, with the cryptography that it checks tokens with, is not installed here, and is left out.")
    else:
        prepare_feast(python, folder / "feast", issuer)
        commands["feast"] = feast_server(python, folder / "feast", ports["feast"])
    found: dict[str, list[Pushes]] = {way: [] for way in commands}
    with ExitStack() as stack:
        urls = {
            way: stack.enter_context(serving(way, command, ports[way], folder)).url for way, command in commands.items()
        }
        for turn in range(rounds):
            for way in list(urls)[:: 1 if turn % 2 == 0 else -1]:
                found[way].append(load(way, urls[way], token, turn * _ROUND, seconds, folder))
        if "feast" in urls:
            looked_up(urls, token, found["feast"])
    return found


def looked_up(urls: Mapping[str, str], token: str, pushed: Sequence[Pushes]) -> None:
    """Ours has what was pushed of each driver; of Feast it says how much it has."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    there = alike = 0
    for turn, one in enumerate(pushed):
        # Of the last ones the answer may not have come; their rows may be there all the same.
        drivers = range(turn * _ROUND + 1, turn * _ROUND + 1 + one.answered + one.refused + CLIENTS)
        for start in range(0, len(drivers), 500):
            keys = list(drivers[start : start + 500])
            asked = {"features": ["trips:km", "trips:city"], "entities": {"driver_id": keys}}
            rows = {way: _rows(answer(urls[way], orjson.dumps(asked), headers)) for way in ("ours", "feast")}
            assert set(rows["ours"].values()) <= {(12.5, "Ulm", AT)}
            there += len(rows["feast"])
            alike += sum(row == rows["ours"].get(key, row) == (12.5, "Ulm", AT) for key, row in rows["feast"].items())
    answered = sum(one.answered for one in pushed)
    assert alike > 0.9 * there, f"of Feast's {there} rows only {alike} are what was pushed"
    print(
        f"\nFeast answered {answered:,} pushes and has {there:,} rows of these and of those that failed: {alike:,} as they "
        f"were pushed, as ours has them, and {there - alike:,} in part"
    )


def _rows(found: dict[str, list[Any]]) -> dict[int, tuple[Any, ...]]:
    """Those that are there, by key, with times in whole seconds, as Feast has them."""
    keys, km, city = found["driver_id"][0], found["km"], found["city"]
    return {
        key: (km[0][at], city[0][at], km[2][at].replace(microsecond=0))
        for at, key in enumerate(keys)
        if km[1][at] == "PRESENT"
    }


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
                found[way].append(threads(push, 10**10 + turn * _ROUND, seconds))
    return found


if __name__ == "__main__":
    main()
