"""Online features over HTTP, the token checked: ours, a raw ASGI application, and Feast's server where it is installed.

    python -m benchmarks.http [seconds] [rounds]

The raw application does the same read by hand and asks for no token. Ours and Feast's check an RS256 token of the same
issuer. One process each, in turn, at 1, 8 and 32 connections, for 1 and 100 rows of 1 and 3 views with 10 features each;
the answers are compared first. The marks are for one view at 8 connections: of 1 row at least 0.6 of the limit's rate and at
most twice its p99, of 100 rows at least 0.85.

Needs wrk (`apt install wrk`). Feast is that of `FEAST_PYTHON`, or of `.venv-feast`, which `make acceptance` makes; it is
served as fast as it goes: without an access log, without restarts, its registry cached.
"""

import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from joserfc import jwt
from joserfc.jwk import RSAKey

from benchmarks.load import Load, is_installed, load
from benchmarks.peer import feast_python, quietly, run_by

ROOT = Path(__file__).parents[1]
ENTITIES = 20_000
VIEWS = ("driver_stats", "driver_trips", "driver_ratings")
FEATURES = {view: [f"{view}_{number}" for number in range(10)] for view in VIEWS}
CONNECTIONS = (1, 8, 32)
AUDIENCE = "benchmark"
MARKS = {(1, 1, 8): 0.6, (100, 1, 8): 0.85}
"""By rows, views and connections."""


class Server(NamedTuple):
    """A server in a process of its own."""

    url: str
    process: int


def rows(view: str) -> pl.DataFrame:
    random = np.random.default_rng(len(view))
    return pl.DataFrame(
        {
            "driver_id": np.arange(ENTITIES),
            "observed_at": pl.Series(np.arange(ENTITIES) * 1_000_003 + 1_760_000_000_000_000).cast(
                pl.Datetime("us", "UTC")
            ),
            **{name: random.random(ENTITIES) for name in FEATURES[view]},
        }
    )


def prepare(folder: Path, issuer: str | None = None) -> Path:
    """Published views with rows online; the settings file. Without an issuer its own serves."""
    from feature_assets.config import Settings
    from feature_assets.online import open_online_store
    from feature_assets.registry import Registry, RegistryStore
    from feature_assets.spec import PUBLICATION, Entity, Field, ViewSpec
    from feature_assets.types import Float64, Int64

    file = folder / "feature_assets.toml"
    text = 'online = "sqlite:online.db"\nregistry = "registry"\n'
    if issuer is not None:
        text += f'[server]\nissuer = "{issuer}"\naudience = "{AUDIENCE}"\n'
    file.write_text(text)
    settings = Settings.load(file)
    views = [
        ViewSpec(
            name=name,
            entities=(Entity("driver", {"driver_id": Int64}),),
            features=tuple(Field(feature, Float64) for feature in features),
            event_timestamp="observed_at",
            ttl=timedelta(days=36_500),
        )
        for name, features in FEATURES.items()
    ]
    store = open_online_store(settings.online_url)
    for view in views:
        store.prepare(view)
        store.write(view, rows(view.name).with_columns(pl.lit(1, pl.Int64).alias(PUBLICATION)), None)
    store.close()
    RegistryStore(settings.place(settings.registry)).publish(Registry.of(views), location="benchmark", by="benchmark")
    return file


def prepare_feast(python: Path, folder: Path, discovery: str) -> None:
    folder.mkdir()
    for view in VIEWS:
        rows(view).write_parquet(folder / f"{view}.parquet")
    run_by(python, "feast_repo.py", folder, discovery)


def feast_server(python: Path, folder: Path, port: int) -> list[str]:
    """The command that serves a repository of Feast as fast as it goes."""
    options = ["--no-access-log", "--max-requests", "0", "--registry_ttl_sec", "3600"]
    return [str(python.with_name("feast")), "-c", str(folder), "serve", "--port", str(port), *options]


@contextmanager
def issuing(folder: Path, scope: str = "features:read") -> Iterator[tuple[str, str]]:
    """An issuer on this machine, and a token of its."""
    key = RSAKey.generate_key(2048, {"kid": "benchmark", "use": "sig", "alg": "RS256"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    url = f"http://127.0.0.1:{server.server_port}"
    documents = {
        ".well-known/openid-configuration": {
            "issuer": url,
            "jwks_uri": f"{url}/keys.json",
            "token_endpoint": f"{url}/token",
            "authorization_endpoint": f"{url}/authorize",
        },
        "keys.json": {"keys": [key.as_dict(private=False)]},
    }
    for place, document in documents.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(json.dumps(document))
    now = int(time.time())
    claims = {
        "iss": url, "aud": AUDIENCE, "sub": "scorer", "client_id": "scorer", "jti": "1", "iat": now, "exp": now + 36_000,
        "scope": scope,
    }  # fmt: skip
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield url, jwt.encode({"alg": "RS256", "typ": "at+jwt", "kid": "benchmark"}, claims, key)
    finally:
        server.shutdown()
        server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(name: str, command: Sequence[str], port: int, folder: Path) -> Iterator[Server]:
    """A server in a process of its own; its log goes to a file, as it does in earnest."""
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, cwd=ROOT, env=quietly() if name == "feast" else None
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1_200):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()  # noqa: S310
                break
            except OSError:
                assert process.poll() is None, f"{name} did not start: {log.read_text()}"
                time.sleep(0.05)
        yield Server(url, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def question(rows: int, views: int) -> bytes:
    keys = [int(key) for key in np.random.default_rng(rows).integers(0, ENTITIES, rows)]
    features = [f"{view}:{name}" for view in VIEWS[:views] for name in FEATURES[view]]
    asked = {"features": features, "entities": {"driver_id": keys}, "full_feature_names": False}
    return json.dumps(asked).encode()


def asked(url: str, body: bytes, headers: Mapping[str, str]) -> Any:
    request = urllib.request.Request(f"{url}/get-online-features", body, dict(headers))  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        return json.load(response)


def answer(url: str, body: bytes, headers: Mapping[str, str]) -> dict[str, list[Any]]:
    """Values, statuses and event timestamps by column, as they mean the same in whatever order and form they come."""
    found = asked(url, body, headers)
    return {
        name: [one["values"], one["statuses"], [datetime.fromisoformat(at) for at in one["event_timestamps"]]]
        for name, one in zip(found["metadata"]["feature_names"], found["results"], strict=True)
    }


def in_seconds(found: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {
        name: [values, statuses, [at.replace(microsecond=0) for at in events]]
        for name, (values, statuses, events) in found.items()
    }


def measured(
    body: bytes, servers: Mapping[str, Server], headers: Mapping[str, str], *,
    connections: int, seconds: int, rounds: int, folder: Path,
) -> dict[str, list[Load]]:  # fmt: skip
    samples: dict[str, list[Load]] = {name: [] for name in servers}
    for turn in range(rounds):
        for name in list(servers) if turn % 2 == 0 else list(servers)[::-1]:
            server = servers[name]
            url = f"{server.url}/get-online-features"
            found = load(url, server.process, body, headers, connections=connections, seconds=seconds, folder=folder)
            samples[name].append(found)
    return samples


def show(case: tuple[int, int, int], samples: Mapping[str, Sequence[Load]]) -> None:
    rows, views, connections = case
    rates = {name: median(one.rate for one in loads) for name, loads in samples.items()}
    work = {name: median(one.cpu for one in loads) for name, loads in samples.items()}
    ratio, mark = rates["ours"] / rates["limit"], MARKS.get(case)
    verdict = "" if mark is None else f"{'within' if ratio >= mark else 'BELOW'} the mark of {mark:g}: "
    said = f"{verdict}{ratio:.2f} of the limit; by processor time {work['limit'] / work['ours']:.2f}"
    if "feast" in rates:
        said += f"; {rates['ours'] / rates['feast']:.0f} times Feast"
    print(f"\n{_of(rows, 'row')} × {_of(views, 'view')}, {_of(connections, 'connection')}  [{said}]")
    print(f"  {'':6}  {'rate /s':>9}  {'min':>9}  {'max':>9}  {'p50 ms':>8}  {'p99 ms':>8}  {'cpu µs':>8}")
    for name, loads in samples.items():
        each = [one.rate for one in loads]
        p50, p99 = median(one.p50 for one in loads), median(one.p99 for one in loads)
        print(
            f"  {name:6}  {rates[name]:9.0f}  {min(each):9.0f}  {max(each):9.0f}  {p50:8.2f}  {p99:8.2f}  {work[name]:8.1f}",
            flush=True,
        )


def _of(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def run(seconds: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "issuer").mkdir()
        issuer, token = stack.enter_context(issuing(folder / "issuer"))
        file = prepare(folder, issuer)
        ports = {one: free_port() for one in ("ours", "limit", "feast")}
        commands = {
            "ours": [sys.executable, "-m", "feature_assets.cli", "--config", str(file), "serve"],
            "limit": [sys.executable, "-m", "benchmarks.http_limit", str(folder / "online.db")],
        }
        commands["ours"] += ["--port", str(ports["ours"])]
        commands["limit"] += [str(ports["limit"])]
        python = feast_python()
        if python is None:
            print("Feast, with the cryptography that it checks tokens with, is not installed here, and is left out.")
        else:
            prepare_feast(python, folder / "feast", f"{issuer}/.well-known/openid-configuration")
            commands["feast"] = feast_server(python, folder / "feast", ports["feast"])
        servers = {
            one: stack.enter_context(serving(one, command, ports[one], folder)) for one, command in commands.items()
        }
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        for count in (1, 100):
            for views in (1, 3):
                body = question(count, views)
                answers = {one: answer(server.url, body, headers) for one, server in servers.items()}
                for one, found in answers.items():
                    # Feast's server gives times in whole seconds.
                    expected = in_seconds(answers["limit"]) if one == "feast" else answers["limit"]
                    assert found == expected, f"{count} rows, {views} views: the answer of {one} differs"
                for connections in CONNECTIONS:
                    found_by = measured(
                        body, servers, headers, connections=connections, seconds=seconds, rounds=rounds, folder=folder
                    )
                    show((count, views, connections), found_by)


def main() -> None:
    if not is_installed():
        print("This benchmark needs wrk, which makes load without taking the servers' processors: apt install wrk")
        return
    given = [int(word) for word in sys.argv[1:]]
    seconds, rounds = (*given, *(3, 3)[len(given) :])
    run(seconds, rounds)


if __name__ == "__main__":
    main()
