"""Credentials from `~/.aws`, as the AWS command line has them, serve all stores."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from feature_assets.config import Settings
from feature_assets.errors import ConfigurationError
from feature_assets.objects import open_objects
from feature_assets.offline import OfflineStore
from feature_assets.online import open_online_store
from feature_assets.profiles import with_profile
from tests.offline.tables import WEATHER, held, replace

CREDENTIALS = """\
[work]
aws_access_key_id = OFWORK
aws_secret_access_key = secret

[printed]
credential_process = {python} -c "print('{printed}')"
"""
CONFIG = """\
[profile work]
region = eu-central-1

[profile printed]
region = eu-west-1

[profile signs-on]
sso_session = ours
sso_account_id = 123456789012
sso_role_name = reader

[sso-session ours]
sso_region = us-east-1
sso_start_url = https://example.org/start
"""
PRINTED = {"Version": 1, "AccessKeyId": "PRINTED", "SecretAccessKey": "secret", "SessionToken": "token"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    command = [sys.executable, str(Path(__file__).with_name("recording_server.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        keys = {"aws_access_key_id": "owner", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket="features")
        yield endpoint
        server.kill()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home with profiles, and nothing of AWS in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / ".aws").mkdir()
    printed = json.dumps(PRINTED).replace('"', '\\"')
    (tmp_path / ".aws" / "credentials").write_text(CREDENTIALS.format(python=sys.executable, printed=printed))
    (tmp_path / ".aws" / "config").write_text(CONFIG)


@pytest.mark.parametrize("profile, key", [("work", "OFWORK"), ("printed", "PRINTED")])
def test_every_store_is_called_with_the_profile(
    endpoint: str, profile: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", profile)
    settings = Settings(
        offline=f"s3://features/{profile}/offline",
        registry=f"s3://features/{profile}/registry",
        online=f"dynamodb:{profile}?endpoint={endpoint}",
        storage_options={"aws_endpoint_url": endpoint, "allow_http": "true"},
    )
    open_objects(settings.registry, settings.storage()).put("a", b"1")
    offline = OfflineStore(settings.offline, storage_options=settings.storage())
    replace(offline, {"p": [("k", 0, None, 1)]})
    assert held(offline) == {"p": [("k", 0, None, 1)]}
    online = open_online_store(settings.online_url)
    online.prepare(WEATHER)
    online.close()
    with urllib.request.urlopen(f"{endpoint}/_calls", timeout=20) as answer:  # noqa: S310 (loopback)
        calls = [tuple(call) for call in json.load(answer)]
    mine = [caller for caller, _, of in calls if of.startswith(profile)]
    assert set(mine) == {key}
    assert {action.partition(":")[0] for caller, action, _ in calls if caller == key} == {"s3", "dynamodb"}


def test_what_is_given_counts_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "work")
    of_profile = {"aws_access_key_id": "OFWORK", "aws_secret_access_key": "secret", "aws_region": "eu-central-1"}
    assert with_profile({}, ["s3://features"]) == of_profile
    assert with_profile({"aws_region": "us-east-1"}, ["s3://b"]) == of_profile | {"aws_region": "us-east-1"}
    given = {"AWS_ACCESS_KEY_ID": "given", "AWS_SECRET_ACCESS_KEY": "s"}
    assert with_profile(given, ["s3://features"]) == given
    assert with_profile({}, ["folder", "gs://features"]) == {}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "environment")
    assert with_profile({}, ["s3://features"]) == {}
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/of-the-task")
    assert with_profile({}, ["s3://features"]) == {}, "the libraries find and renew these themselves"


@pytest.mark.parametrize(
    "profile, message", [("wrok", "profile 'wrok' of AWS: .*could not be found"), ("signs-on", "SSO")]
)
def test_a_profile_that_cannot_be_used_is_named(profile: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", profile)
    with pytest.raises(ConfigurationError, match=f"{message}.*aws sts get-caller-identity"):
        with_profile({}, ["s3://features"])
