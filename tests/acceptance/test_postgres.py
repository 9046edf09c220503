"""Dagster keeps its own history in PostgreSQL as `deploy/aws` has it, and two hosts backfill one view at once."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from tests.acceptance.running import tell

DEPLOY = Path(__file__).parents[2] / "deploy" / "aws"
PROGRAM = Path(sys.executable).with_name("feature-assets")
DAYS = 366

DEFINITIONS = """
import dagster as dg
import polars as pl

from feature_assets import Entity, Field, Int64, feature_definitions, feature_view


@feature_view(
    entities=[Entity("driver", join_keys={"driver_id": Int64})],
    partitions_def=dg.DailyPartitionsDefinition("2024-01-01", end_date="2025-01-01"),
    event_timestamp="at",
    schema=[Field("km", Int64)],
)
def trips(context: dg.AssetExecutionContext) -> pl.DataFrame:
    window = context.partition_time_window
    days = pl.datetime_range(window.start, window.end, "1d", closed="left", eager=True).alias("at")
    rows = days.to_frame().join(pl.DataFrame({"driver_id": range(20)}), how="cross")
    return rows.with_columns(km=pl.col("at").dt.ordinal_day().cast(pl.Int64) * 100 + pl.col("driver_id"))


defs = feature_definitions([trips])
"""


def program(name: str) -> str:
    """Where a program of PostgreSQL is."""
    known = [os.defpath, os.environ.get("PATH", ""), *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    found = shutil.which(name, path=os.pathsep.join(known))
    return found or pytest.skip(f"{name} is not there: install PostgreSQL")


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of its own; what `DAGSTER_POSTGRES_URL` is to be for it."""
    initdb, server = program("initdb"), program("postgres")
    folder = tmp_path_factory.mktemp("postgres")
    # It refuses to be run by root.
    user: dict[str, str | int] = {}
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        user = {"user": owner.pw_uid, "group": owner.pw_gid}
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        for each in (folder.parent, folder.parent.parent):
            each.chmod(each.stat().st_mode | 0o011)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [initdb, "-D", str(folder / "data"), "-A", "trust", "-U", "dagster"]
    subprocess.run(command, check=True, cwd=folder, **quiet, **user)  # type: ignore[call-overload]
    command = [server, "-D", str(folder / "data"), "-p", str(port), "-k", str(folder)]
    with subprocess.Popen(command, cwd=folder, **quiet, **user) as running:  # type: ignore[call-overload]
        for _ in range(200):
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"postgresql+psycopg2://dagster@127.0.0.1:{port}/postgres"
        running.terminate()


@pytest.mark.timeout(300)
def test_two_hosts_backfill_one_view_at_once(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", postgres)
    (tmp_path / "feature_assets.toml").write_text("")
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    homes = [tmp_path / name for name in ("one", "other")]
    for home in homes:
        home.mkdir()
        (home / "dagster.yaml").write_text(yaml.safe_dump({name: shipped[name] for name in ("telemetry", "storage")}))
    with dg.DagsterInstance.from_config(str(homes[0])) as instance:
        assert type(instance.event_log_storage).__module__.startswith("dagster_postgres")

    subprocess.run([str(PROGRAM), "apply", "--yes"], cwd=tmp_path, check=True, capture_output=True)
    began = time.monotonic()
    halves = [("2024-01-01", "2024-06-30"), ("2024-07-01", "2024-12-31")]
    commands = [
        subprocess.Popen(
            [str(PROGRAM), "backfill", "trips", *half, "--per-run", "61"],
            cwd=tmp_path,
            env={**os.environ, "DAGSTER_HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for home, half in zip(homes, halves, strict=True)
    ]
    for command in commands:
        told, _ = command.communicate(timeout=200)
        assert command.returncode == 0, told
    seconds = time.monotonic() - began

    with dg.DagsterInstance.from_config(str(homes[0])) as instance:
        key = dg.AssetKey("trips")
        assert len(instance.get_materialized_partitions(key)) == DAYS
        records = instance.fetch_materializations(key, limit=1_000).records
        assert len(records) == DAYS
        versions = {(one.asset_materialization.tags or {})["dagster/data_version"] for one in records}  # type: ignore[union-attr]
        assert len(versions) == DAYS
        runs = instance.get_runs()
        assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
    verified = subprocess.run([str(PROGRAM), "verify"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    tell("PG", runs=len(runs), events=len(records), seconds=round(seconds))
