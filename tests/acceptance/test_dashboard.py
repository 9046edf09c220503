"""A real Prometheus scrapes a server under load, as the docs say, and evaluates every panel, variable and alert rule."""

import contextlib
import json
import math
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

import httpx
import pytest
import yaml

from feature_assets.online.sqlite.tables import Table
from feature_assets.served.shape import FOLDER
from feature_assets.spec import Field, LoggingConfig, PushSource, ServiceSpec, Stream, ViewProjection, ViewSpec
from feature_assets.types import Float64
from tests.acceptance.running import Running, answers, free_port, serving, tell
from tests.server.conftest import COMFORT, DRIVER, DRIVERS, HOUR, NOW, WEATHER, Platform, bearer, view

PROMETHEUS = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="needs Prometheus: apt install prometheus")

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "feature-assets.json").read_text())
RULES = ROOT / "deploy" / "prometheus" / "feature-assets.yml"
JOB = "feature-assets"

BROKEN = view("broken", Field("temp", Float64))
TRIPS = ViewSpec(
    name="trips", entities=(DRIVER,), event_timestamp="at", features=(Field("km", Float64),), stream=Stream("rides")
)
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
    for one in (COMFORT, TRIPS, PushSource(name="rides"), *LOGGED.values()):
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


@contextlib.contextmanager
def prometheus(folder: Path, platform: Platform, running: Running) -> Iterator[httpx.Client]:
    """Prometheus with the settings that `docs/how-to/watch.md` has, scraping every second."""
    page = (ROOT / "docs" / "how-to" / "watch.md").read_text()
    (text,) = re.findall(r"```yaml\n(scrape_configs:.*?)```", page, re.DOTALL)
    client, secret = platform.issuer.add_client("prometheus", ["admin"])
    (folder / "secret").write_text(secret)
    settings = yaml.safe_load(text)
    (job,) = settings["scrape_configs"]
    assert job["job_name"] == JOB
    job["static_configs"] = [{"targets": [f"127.0.0.1:{running.port}"]}]
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
    for name, value in {"$job": JOB, "$view": ".*", "$__rate_interval": "10s"}.items():
        expression = expression.replace(name, value)
    lines = asked(http, "query", query=expression)["result"]
    found = [number for one in lines if not math.isnan(number := float(one["value"][1]))]
    if found:
        named = set(re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]))
        assert named <= {label for one in lines for label in one["metric"]}, target
    return found


TARGETS = [
    (f"{panel['title']} ({target['refId']})", target)
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
]


def test_every_panel_draws_something_of_a_server_under_load(platform: Platform, tmp_path: Path) -> None:
    with (
        serving(platform) as running,
        under_load(platform, running) as statuses,
        prometheus(tmp_path, platform, running) as http,
    ):
        empty = dict(TARGETS)
        ends = time.monotonic() + 120
        while empty and time.monotonic() < ends:
            time.sleep(1)
            empty = {title: target for title, target in empty.items() if not drawn(http, target)}
        assert empty == {}, (tmp_path / "prometheus.log").read_text()[-2_000:]
        assert {200, 401, 403, 404, 503} <= statuses
        (target,) = asked(http, "targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        groups = asked(http, "rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert {(rule["health"], rule.get("lastError", "")) for rule in rules} == {("ok", "")}
        assert sorted(rule["name"] for rule in rules) == sorted(
            rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
        )
        # Of what goes wrong here on purpose the alerts are on their way.
        raised = {rule["name"] for rule in rules if rule["state"] != "inactive"}
        assert {"FeatureServerFails", "OnlineStoreFails", "FeatureDataIsPastItsTtl"} <= raised
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
