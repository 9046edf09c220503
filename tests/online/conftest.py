"""A DynamoDB for the tests of this folder."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.fixture(scope="module")
def spoiled_endpoint() -> Iterator[str]:
    """A DynamoDB over HTTP that misbehaves when told to, see `dynamodb_server`."""
    command = [sys.executable, str(Path(__file__).with_name("dynamodb_server.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.kill()


@pytest.fixture(scope="module")
def endpoint(request: pytest.FixtureRequest) -> str:
    """A DynamoDB over HTTP: that of the environment, or moto's."""
    given = os.environ.get("FEATURE_ASSETS_TEST_DYNAMODB")
    return given or str(request.getfixturevalue("spoiled_endpoint"))
