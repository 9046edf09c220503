"""Dagster's daemon launches a run as a task of ECS, as `deploy/aws` has both; moto plays ECS, S3, DynamoDB and the secrets.

What ECS would do with a task the test does: it looks its secrets up as the execution role, and runs its command as the
task's role, with nothing but the environment that the task has.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from tests.acceptance.running import tell
from tests.deploy import recording_server
from tests.deploy.policies import DEPLOY, actions, beyond, filled
from tests.docs.reader import tutorial_project

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PARTITION, RUN = "2013-02-11", "00000000-0000-4000-8000-000000000000"
# What a task is told as a secret: one by Secrets Manager, as shipped, and settings by the Parameter Store.
SETTINGS = {
    "FEATURE_ASSETS_OFFLINE": "s3://features/offline",
    "FEATURE_ASSETS_REGISTRY": "s3://features/registry",
    "FEATURE_ASSETS_ONLINE": "dynamodb:flights?region=us-east-1",
}


class Account:
    """An account of AWS."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def client(self, service: str, role: str = "owner") -> Any:
        keys = {"aws_access_key_id": role, "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        return boto3.client(service, endpoint_url=self.endpoint, **keys)

    def environment(self, role: str, **more: str) -> dict[str, str]:
        """Of a container: who it is, and where this account is, which on AWS needs no saying."""
        here = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        there = {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ALLOW_HTTP": "true"}
        keys = {"AWS_ACCESS_KEY_ID": role, "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
        path = f"{BIN}:{os.environ['PATH']}"
        return here | there | keys | {"PATH": path, "PYTHONPATH": str(ROOT), "AWS_DEFAULT_REGION": "us-east-1"} | more

    def calls(self) -> list[tuple[str, str, str]]:
        with urllib.request.urlopen(f"{self.endpoint}/_calls", timeout=20) as answer:  # noqa: S310 (loopback)
            return [tuple(call) for call in json.load(answer)]


@pytest.fixture
def account() -> Iterator[Account]:
    command = [sys.executable, recording_server.__file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        made = Account(f"http://127.0.0.1:{int(server.stdout.readline())}")
        made.client("s3").create_bucket(Bucket="features")
        made.client("ecs").create_cluster(clusterName="default")
        secret = made.client("secretsmanager").create_secret(
            Name="flights/dagster-postgres-url", SecretString="postgresql+psycopg2://nowhere/dagster"
        )
        for name, value in SETTINGS.items():
            made.client("ssm").put_parameter(Name=f"/flights/{name}", Value=value, Type="SecureString")
        task = json.loads(filled((DEPLOY / "task-run.json").read_text()))
        (container,) = task["containerDefinitions"]
        # AWS finds a secret by its name too; moto wants the letters that are added to it.
        container["secrets"] = [{"name": "DAGSTER_POSTGRES_URL", "valueFrom": secret["ARN"]}]
        container["secrets"] += [
            {"name": name, "valueFrom": f"arn:aws:ssm:us-east-1:123456789012:parameter/flights/{name}"}
            for name in SETTINGS
        ]
        # On Fargate a container needs none of its own; moto adds them up.
        container["memory"] = int(task["memory"])
        made.client("ecs").register_task_definition(**task)
        yield made
        server.kill()


@pytest.fixture
def home(tmp_path: Path, account: Account) -> Path:
    """What the images have as /opt/dagster: the shipped settings, but for the PostgreSQL that is not here."""
    subnet = account.client("ec2").describe_subnets()["Subnets"][0]
    group = account.client("ec2").describe_security_groups()["SecurityGroups"][0]["GroupId"]
    text = filled((DEPLOY / "dagster.yaml").read_text(), SUBNET=subnet["SubnetId"], SECURITY_GROUP=group)
    settings = yaml.safe_load(text)
    del settings["storage"]
    made = tmp_path / "home"
    made.mkdir()
    (made / "dagster.yaml").write_text(yaml.safe_dump(settings))
    return made


@contextmanager
def daemon(folder: Path, environment: dict[str, str], log: Path) -> Iterator[None]:
    """Dagster's daemon with all its children, as the second container of `task-dagster.json` starts it."""
    task = json.loads(filled((DEPLOY / "task-dagster.json").read_text()))
    (container,) = [one for one in task["containerDefinitions"] if one["name"] == "daemon"]
    told = {one["name"]: one["value"] for one in container["environment"]}
    with (
        log.open("wb") as file,
        subprocess.Popen(
            container["command"], cwd=folder, env=environment | told, stdout=file, stderr=file, start_new_session=True
        ) as running,
    ):
        try:
            yield
        finally:
            os.killpg(running.pid, signal.SIGKILL)


def launched(account: Account, run: str) -> dict[str, Any]:
    """The task that was started for the run; sensors start others."""
    deadline = time.monotonic() + 480
    while time.monotonic() < deadline:
        arns = account.client("ecs").list_tasks(cluster="default")["taskArns"]
        tasks = account.client("ecs").describe_tasks(cluster="default", tasks=arns)["tasks"] if arns else []
        for task in tasks:
            if run in json.dumps(task["overrides"]):
                return dict(task)
        time.sleep(0.5)
    raise AssertionError("no task was started")


def secrets(account: Account, container: dict[str, Any]) -> dict[str, str]:
    """What ECS puts into the environment of the container."""
    found: dict[str, str] = {}
    for secret in container["secrets"]:
        source = secret["valueFrom"]
        if ":secretsmanager:" in source:
            answer = account.client("secretsmanager", "ecs-execution").get_secret_value(SecretId=source)
            found[secret["name"]] = answer["SecretString"]
        else:
            name = source.partition(":parameter")[2]
            answer = account.client("ssm", "ecs-execution").get_parameters(Names=[name], WithDecryption=True)
            found[secret["name"]] = answer["Parameters"][0]["Value"]
    return found


@pytest.mark.timeout(900)
def test_a_run_is_a_task(account: Account, home: Path, tmp_path: Path) -> None:
    folder = tutorial_project(tmp_path)
    environment = account.environment(
        "launcher", **SETTINGS, DAGSTER_HOME=str(home), FEATURE_ASSETS_RUN_TASK="flights-run"
    )
    environment["FEATURE_ASSETS_LOG_BUCKET"] = "features"
    (folder / "jobs.py").write_text(
        "import dagster as dg\nimport definitions\n"
        "weather = dg.define_asset_job('weather', ['airport_weather'])\n"
        "defs = dg.Definitions.merge(definitions.defs, dg.Definitions(jobs=[weather]))\n"
    )
    workspace = {"load_from": [{"python_file": {"relative_path": "jobs.py", "working_directory": str(folder)}}]}
    (folder / "workspace.yaml").write_text(yaml.safe_dump(workspace))
    tags = json.dumps({"dagster/partition": PARTITION})
    submit = ["dagster", "job", "launch", "-w", "workspace.yaml", "-j", "weather", "--run-id", RUN, "--tags", tags]
    done = subprocess.run(submit, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    begun = time.monotonic()
    with daemon(folder, environment, tmp_path / "daemon.log"):
        task = launched(account, RUN)
        until_launched = time.monotonic() - begun
        definition = account.client("ecs").describe_task_definition(taskDefinition=task["taskDefinitionArn"])
        (container,) = definition["taskDefinition"]["containerDefinitions"]
        (override,) = task["overrides"]["containerOverrides"]
        told = {one["name"]: one["value"] for one in container["environment"]} | secrets(account, container)
        told["DAGSTER_HOME"] = str(home)
        assert override["name"] == container["name"]
        # Then what the page says to run in the same task.
        for command in (override["command"], ["feature-assets", "doctor"]):
            ran = subprocess.run(
                command,
                cwd=folder,
                env=account.environment("materialiser", **told),
                capture_output=True,
                text=True,
                check=False,
            )
            assert ran.returncode == 0, ran.stdout + ran.stderr
        time.sleep(5)
    ask = f"import dagster as dg; print(dg.DagsterInstance.get().get_run_by_id('{RUN}').status.value)"
    asked = [str(BIN / "python"), "-c", ask]
    shown = subprocess.run(asked, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout
    assert shown == "SUCCESS\n"
    items = account.client("dynamodb").scan(TableName="flights.airport_weather.v1")["Items"]
    assert len(items) == 3
    keys = [one["Key"] for one in account.client("s3").list_objects_v2(Bucket="features", Prefix="dagster")["Contents"]]
    assert any(key.startswith("dagster/compute-logs/") for key in keys)
    called = [call for call in account.calls() if call[0] != "owner"]
    assert beyond(called) == []
    assert {role for role, _, _ in called} == {"launcher", "ecs-execution", "materialiser"}
    needed = {"ecs:DescribeTaskDefinition", "ecs:RunTask"}
    assert needed <= {action for role, action, _ in called if role == "launcher"} <= actions("launcher")
    tell("ECS", launched=f"{until_launched:.0f} s", calls=len(called), beyond=0)
