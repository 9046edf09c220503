"""A DynamoDB for the tests of this folder."""

import os
from collections.abc import Iterator

import pytest

from tests.aws_server import aws_server


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.fixture(scope="module")
def spoiled_endpoint() -> Iterator[str]:
    """A DynamoDB over HTTP that misbehaves when told to, see `dynamodb_server`."""
    with aws_server() as found:
        yield found


@pytest.fixture(scope="module")
def endpoint(request: pytest.FixtureRequest) -> str:
    """A DynamoDB over HTTP: that of the environment, or moto's."""
    given = os.environ.get("FEATURE_ASSETS_TEST_DYNAMODB")
    return given or str(request.getfixturevalue("spoiled_endpoint"))
