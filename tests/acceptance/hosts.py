"""Machines that run Dagster: each a home, a copy of the code and processes of its own, and nothing shared but the stores."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from feature_assets.config import ServerSettings
from feature_assets.server.dagster import Asset, Dagster, Started
from tests.acceptance.clouds import KEYS, storage_options
from tests.acceptance.running import free_port, ran

ROOT = Path(__file__).parents[2]
_SECONDS_TO_END = 400


class Host:
    """One of them. Its `location` owns what it publishes in the registry."""

    def __init__(self, folder: Path, definitions: str, location: str, endpoint: str, **environment: str) -> None:
        self.folder, self.port, self.name = folder, free_port(), folder.name
        self._home = folder / "dagster"
        self._home.mkdir(parents=True)
        (folder / "definitions.py").write_text(definitions)
        # What the project ships is what is tried.
        (self._home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
        (folder / "feature_assets.toml").write_text(settings_for(endpoint, location))
        self.environment = {
            **os.environ,
            **KEYS,
            **environment,
            "DAGSTER_HOME": str(self._home),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "NO_COLOR": "1",
        }
        self._dagster: Dagster | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Host"]:
        """Webserver, daemon and code server, until they answer; killed in the end with all runs that they started."""
        self._process = self._start()
        self._dagster = Dagster(ServerSettings(dagster_url=f"http://127.0.0.1:{self.port}"))
        try:
            await self._answers()
            yield self
        finally:
            self.kill()
            await self._dagster.close()

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "dagster", "dev", "-f", "definitions.py", "-p", str(self.port)]
        with (self.folder / "dagster.log").open("wb") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """All of it at once, as if its power were cut."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=30)

    async def _answers(self) -> None:
        for _ in range(1_200):
            with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
                if (await self._asked("{ assetNodes { id } }"))["assetNodes"]:
                    return
            assert self._process.poll() is None, self.log
            await asyncio.sleep(0.1)
        raise AssertionError(self.log)

    @property
    def log(self) -> str:
        return (self.folder / "dagster.log").read_text()

    async def _asked(self, query: str) -> Any:
        async with httpx.AsyncClient() as http:
            answer = await http.post(f"http://127.0.0.1:{self.port}/graphql", json={"query": query}, timeout=60)
        return answer.json()["data"]

    async def _asset(self, view: str) -> tuple[Dagster, Asset]:
        assert self._dagster is not None
        asset = await self._dagster.asset([view])
        assert asset is not None
        return self._dagster, asset

    async def backfill(self, view: str, partitions: Sequence[str]) -> Started:
        """Have Dagster's daemon backfill these partitions."""
        dagster, asset = await self._asset(view)
        return await dagster.launch_backfill(asset, partitions, {})

    async def materialise(self, view: str, partition: str) -> Started:
        """Have Dagster start a run of this partition."""
        dagster, asset = await self._asset(view)
        return await dagster.launch_run(asset, partition, partition, {})

    async def ended(self, started: Started) -> bool:
        """Whether it ended well, once it has."""
        assert self._dagster is not None
        for _ in range(_SECONDS_TO_END * 2):
            if (well := await self._dagster.ended(started)) is not None:
                return well
            await asyncio.sleep(0.5)
        raise AssertionError(self.log)

    async def runs(self) -> dict[str, dict[str, Any]]:
        """By its id what Dagster says of every run: status, and when its steps began and ended."""
        results = "results { runId status pipelineName stepStats { startTime endTime } }"
        found = await self._asked(f"{{ runsOrError {{ ... on Runs {{ {results} }} }} }}")
        return {one["runId"]: one for one in found["runsOrError"]["results"]}

    async def run(self, *words: str) -> tuple[int, str]:
        """`feature-assets` there: its exit code and what it printed."""
        return await ran(*words, folder=self.folder, environment=self.environment)

    async def done(self, *words: str) -> str:
        """The same, where it has to go well."""
        code, out = await self.run(*words)
        assert code == 0, out
        return out


def settings_for(endpoint: str, location: str) -> str:
    """The file that says where a host keeps things: all on S3 and DynamoDB at that endpoint."""
    options: Mapping[str, str] = storage_options(endpoint)
    return "\n".join(
        [
            f'location = "{location}"',
            *(f'{place} = "s3://features/{place}"' for place in ("offline", "registry", "training")),
            f'online = "dynamodb:hosts?region=us-east-1&endpoint={endpoint}&consistent=true"',
            "[storage_options]",
            *(f"{name} = {json.dumps(value)}" for name, value in options.items()),
            "",
        ]
    )
