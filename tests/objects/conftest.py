"""An S3 for the tests of this folder."""

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest


@dataclass(frozen=True)
class S3:
    """A running S3; `bucket` makes a new one."""

    endpoint: str

    @property
    def options(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    def put(self, path: str) -> None:
        request = urllib.request.Request(f"{self.endpoint}/{path}", method="PUT")  # noqa: S310 (loopback)
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310

    def bucket(self) -> str:
        name = f"b{uuid4().hex[:12]}"
        self.put(name)
        return f"s3://{name}"

    def spoil(self, *faults: str) -> None:
        self.put(f"_faults/{','.join(faults) or 'none'}")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    command = [sys.executable, "-m", "tests.objects.s3_server"]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        yield S3(f"http://127.0.0.1:{int(server.stdout.readline())}")
        server.kill()


@pytest.fixture
def s3(s3_server: S3) -> Iterator[S3]:
    yield s3_server
    s3_server.spoil()
