"""The demo with everything on S3 and DynamoDB, which moto plays on this machine: `make demo-aws`.

Definitions, code and commands are those of `make demo`: environment variables say where things are kept, as they would
for an account of AWS. What moto keeps is gone when it ends.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import boto3

from examples.nyc_flights import demo

BUCKET = "features"
REGION = "us-east-1"
NEXT = """\
  [cyan]docs/how-to/aws.md[/cyan]             from here to an account of AWS: roles, images, tasks
  [cyan]deploy/aws[/cyan]                     all of it as files
  [cyan]docs/how-to/dynamodb.md[/cyan]        what the online store costs there, and what it promises
  [cyan]docs/how-to/object-stores.md[/cyan]   S3, Google Cloud Storage, Azure
  [cyan]make demo[/cyan]                      the same on folders and a SQLite file, which stay
"""
_SERVE = """
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, *arguments):
        pass

server = make_server(
    "127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True, request_handler=Quiet
)
print(server.port, flush=True)
server.serve_forever()
"""


def main() -> None:
    """Run the demo there."""
    with local_aws() as endpoint, TemporaryDirectory(prefix="demo-aws-") as home:
        shutil.copy(demo.ROOT / "dagster.yaml", home)
        kept = kept_at(endpoint)
        os.environ |= kept | {"DAGSTER_HOME": home, "FEATURE_ASSETS_SECRETS": str(Path(home) / "secrets")}
        demo.out.print(f"\nS3 and DynamoDB are played by moto, at {endpoint}:\n")
        for name in ("offline", "registry", "training", "online"):
            demo.out.print(f"  {name:8}  {kept[f'FEATURE_ASSETS_{name.upper()}']}")
        demo.main(NEXT, again="make demo-aws")


@contextlib.contextmanager
def local_aws() -> Iterator[str]:
    """The endpoint of an S3 with one bucket and of a DynamoDB, in a process of their own.

    Raises:
        SystemExit: they do not start.
    """
    command = [sys.executable, "-c", _SERVE]
    with (
        TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as server,
    ):
        try:
            assert server.stdout is not None  # noqa: S101 (it is a pipe)
            port = server.stdout.readline().strip()
            if not port:
                errors.seek(0)
                raise SystemExit(f"S3 and DynamoDB did not start: {errors.read()}")
            endpoint = f"http://127.0.0.1:{port}"
            given = {"aws_access_key_id": "demo", "aws_secret_access_key": "demo", "region_name": REGION}
            boto3.client("s3", endpoint_url=endpoint, **given).create_bucket(Bucket=BUCKET)
            yield endpoint
        finally:
            # It keeps nothing, so there is nothing to end in order.
            server.kill()


def kept_at(endpoint: str) -> Mapping[str, str]:
    """The environment that says where things are kept. For an account of AWS the endpoint is left out."""
    options = {"aws_endpoint_url": endpoint, "aws_region": REGION, "allow_http": "true"}
    return {
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": "demo",
        "FEATURE_ASSETS_OFFLINE": f"s3://{BUCKET}/offline",
        "FEATURE_ASSETS_REGISTRY": f"s3://{BUCKET}/registry",
        "FEATURE_ASSETS_TRAINING": f"s3://{BUCKET}/training",
        "FEATURE_ASSETS_ONLINE": f"dynamodb:flights?region={REGION}&endpoint={endpoint}&consistent=true",
        "FEATURE_ASSETS_STORAGE_OPTIONS": json.dumps(options),
    }


if __name__ == "__main__":
    main()
