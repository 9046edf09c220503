"""What `deploy/aws` says is what the platform does: each role calls nothing that its policy does not allow."""

import json
import os
import re
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.deploy.policies import DEPLOY, VALUES, actions, beyond, policy
from tests.docs.reader import tutorial_project

ROOT = Path(__file__).parents[2]
ROLES = ("materialiser", "server", "trainer", "publisher")
# AWS allows these for all or none.
OF_ANYTHING = (["dynamodb:ListTables"], ["ecs:DescribeTaskDefinition"], ["ecr:GetAuthorizationToken"])
PROGRAM = [sys.executable, "-m", "feature_assets.cli"]

_SETTINGS = """\
location = "flights"
present = 2013-02-12T00:00:00Z
offline = "s3://features/offline"
registry = "s3://features/registry"
training = "s3://features/training"
online = "dynamodb:flights?region=us-east-1&endpoint={endpoint}&{options}"

[storage_options]
aws_endpoint_url = "{endpoint}"
aws_region = "us-east-1"
allow_http = "true"
"""


# A first load goes by batches if it is large enough.
_SEATS = """

@feature_view(
    entities=[Entity("seat", {"seat": String})],
    event_timestamp="at",
    ttl=timedelta(days=30),
    schema=[Field("taken", Float64)],
)
def seats() -> pl.DataFrame:
    numbers = pl.int_range(2_000, eager=True)
    rows = pl.DataFrame({"seat": numbers.cast(pl.String), "taken": numbers.cast(pl.Float64)})
    return rows.with_columns(at=pl.datetime(2013, 2, 11))


defs = feature_definitions([airport_weather, departures, seats])
"""


class Cloud:
    """A recording S3 and DynamoDB, and a project on them."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        self.endpoint, self.folder = endpoint, folder

    def set_options(self, options: str) -> None:
        """Of the URL of the online store."""
        (self.folder / "feature_assets.toml").write_text(_SETTINGS.format(endpoint=self.endpoint, options=options))

    def environment(self, role: str) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "AWS_ACCESS_KEY_ID": role,
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    def run(self, role: str, *words: str) -> str:
        done = subprocess.run(
            [*PROGRAM, *words], cwd=self.folder, env=self.environment(role), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def calls(self) -> list[tuple[str, str, str]]:
        """Who called what for which key or table."""
        with urllib.request.urlopen(f"{self.endpoint}/_calls", timeout=20) as answer:  # noqa: S310 (loopback)
            return [tuple(call) for call in json.load(answer)]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    command = [sys.executable, str(Path(__file__).with_name("recording_server.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        httpx.put(f"{endpoint}/features", timeout=20)
        folder = tutorial_project(tmp_path_factory.mktemp("aws"))
        with (folder / "definitions.py").open("a") as definitions:
            definitions.write(_SEATS)
        made = Cloud(endpoint, folder)
        made.set_options(_options())
        yield made
        server.kill()


def test_each_role_needs_no_more_than_its_policy_allows(cloud: Cloud) -> None:
    cloud.run("publisher", "apply")
    shown = cloud.run("materialiser", "materialize", "airport_weather", "--partition", "2013-02-11")
    assert re.search(r"read units +write units", shown), "what it cost"
    cloud.run("materialiser", "materialize", "airport_weather", "--partition", "2013-02-10")
    cloud.run("materialiser", "materialize", "seats")
    cloud.run("materialiser", "verify")
    cloud.run("materialiser", "reconcile", "--force")
    cloud.run("materialiser", "vacuum", "--dry-run")
    cloud.run("materialiser", "erase", "--entity", "origin=EWR", "--yes")
    cloud.set_options(f"{_options()},cost:ours&read_units=9&write_units=9")
    cloud.run("materialiser", "reconcile", "--tables")
    cloud.run("materialiser", "doctor")
    (cloud.folder / "spine.csv").write_text("origin,event_timestamp\nJFK,2013-02-11T20:00:00\n")
    cloud.run("trainer", "training", "save", "february", "departures", "--spine", "spine.csv")
    cloud.run("trainer", "training", "rebuild", "february")
    _look_up(cloud)
    called = cloud.calls()
    assert {role for role, _, _ in called} == set(ROLES)
    assert beyond(called) == []
    unused = {action for action in actions("materialiser") if action.startswith("dynamodb:")}
    assert unused - {action for role, action, _ in called if role == "materialiser"} == set(), "what nobody needs"


def _options() -> str:
    """What the settings that we ship say of tables."""
    settings = tomllib.loads((DEPLOY / "feature_assets.toml").read_text().replace("${PREFIX}", "flights"))
    options = str(settings["online"]).partition("?")[2].partition("&")[2]
    assert options == "recovery=true&tags=project:flights"
    return options


def _look_up(cloud: Cloud) -> None:
    token = cloud.run("server", "auth", "token", "--scope", "features:read").strip()
    with subprocess.Popen(
        [*PROGRAM, "serve", "--port", "0"],
        cwd=cloud.folder,
        env=cloud.environment("server"),
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr is not None
        place = next(found[0] for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        try:
            asked = {"feature_service": "departures", "entities": {"origin": ["JFK", "LGA"]}}
            headers = {"authorization": f"Bearer {token}"}
            deadline = time.monotonic() + 30
            while not _is_ready(place) and time.monotonic() < deadline:
                time.sleep(0.1)
            answer = httpx.post(f"{place}/get-online-features", json=asked, headers=headers, timeout=20)
            assert answer.status_code == 200, answer.text
            assert answer.json()["results"][1]["statuses"] == ["PRESENT", "PRESENT"]
        finally:
            server.terminate()


def _is_ready(place: str) -> bool:
    try:
        return httpx.get(f"{place}/health", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("role", sorted(path.stem for path in DEPLOY.glob("iam/*.json")))
def test_policies_name_no_action_by_a_wildcard(role: str) -> None:
    for statement in policy(role)["Statement"]:
        assert not any("*" in action for action in statement["Action"])
        assert statement["Resource"] != ["*"] or statement["Action"] in OF_ANYTHING


def test_the_server_may_change_nothing() -> None:
    assert actions("server") == {
        "s3:GetObject",
        "s3:ListBucket",
        "dynamodb:BatchGetItem",
        "dynamodb:GetItem",
        "dynamodb:Query",
    }


def test_dagster_takes_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dagster._config import process_config
    from dagster._core.instance.config import dagster_instance_config
    from dagster_aws.ecs import EcsRunLauncher
    from dagster_aws.s3 import S3ComputeLogManager

    (tmp_path / "dagster.yaml").write_text((DEPLOY / "dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql+psycopg2://localhost/dagster")
    read, _ = dagster_instance_config(str(tmp_path))
    assert read["run_monitoring"]["max_runtime_seconds"] == 14400
    for key, of in (("run_launcher", EcsRunLauncher), ("compute_logs", S3ComputeLogManager)):
        outcome = process_config(of.config_type(), read[key]["config"])
        # Values from the environment are there on ECS; their names are what can be wrong here.
        wrong = [error.message for error in outcome.errors or () if "environment variable" not in error.message]
        assert wrong == []


@pytest.mark.parametrize("name", sorted(path.name for path in DEPLOY.glob("task-*.json")))
def test_tasks_run_what_the_images_are_called_and_hold_no_secret(name: str) -> None:
    task = json.loads((DEPLOY / name).read_text())
    for container in task["containerDefinitions"]:
        image = re.search(r"\$\{PREFIX\}-(\w+):", container["image"])
        assert image is not None
        assert (DEPLOY / "images" / f"{image[1]}.Dockerfile").is_file()
        assert not [one["name"] for one in container["environment"] if re.search("SECRET|PASSWORD|URL", one["name"])]


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.*")), ids=lambda path: path.name)
def test_placeholders_are_those_that_the_page_names(path: Path) -> None:
    assert set(re.findall(r"\$\{(\w+)\}", path.read_text())) <= set(VALUES)
    if path.suffix == ".yaml":
        assert yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("images/*.Dockerfile")), ids=lambda path: path.stem)
def test_images_run_as_nobody_special_from_files_that_are_there(path: Path) -> None:
    text = path.read_text()
    assert re.search(r"^USER 1000$", text, re.MULTILINE)
    assert not re.search(r"^ADD |:latest|curl .*\| *sh", text, re.MULTILINE)
    for copied in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        *sources, _ = copied.split()
        assert [source for source in sources if not (ROOT / source).exists()] == []
    assert re.search(r'^CMD \[".*"\]$', text, re.MULTILINE)
