"""The online store on DynamoDB keeps the contract of all online stores."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from feature_assets.testing import OnlineStoreContract


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A DynamoDB over HTTP: that of the environment, or moto's."""
    if given := os.environ.get("FEATURE_ASSETS_TEST_DYNAMODB"):
        yield given
        return
    command = [sys.executable, str(Path(__file__).with_name("dynamodb_server.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.kill()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


class TestDynamoDB(OnlineStoreContract):
    # Each call takes milliseconds there; with a server of one's own all of it is tried.
    races, many, examples, runs, steps, orders = (
        (8, 230, 3, 3, 10, 12) if "FEATURE_ASSETS_TEST_DYNAMODB" not in os.environ else (48, 2600, 25, 20, 20, 120)
    )

    @pytest.fixture(autouse=True)
    def _places(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._prefixes: dict[Path, str] = {}

    def url(self, tmp_path: Path) -> str:
        prefix = self._prefixes.setdefault(tmp_path, f"t{uuid4().hex[:10]}")
        return f"dynamodb:{prefix}?region=us-east-1&endpoint={self._endpoint}&consistent=true"
