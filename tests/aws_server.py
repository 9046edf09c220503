"""S3, DynamoDB and Kinesis over HTTP, played by a process on this machine: see `tests/online/dynamodb_server.py`."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def aws_server() -> Iterator[str]:
    """Its endpoint, on a free port; it ends with the block."""
    command = [sys.executable, "-m", "tests.online.dynamodb_server"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()
