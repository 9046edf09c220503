"""Promise 3 where rows and ledger are not written as one: the same state machine, over DynamoDB."""

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.aws_server import aws_server
from tests.promises.published import CASES
from tests.promises.test_online_is_latest_of_offline import OnlineIsLatestOfOffline


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    if given := os.environ.get("FEATURE_ASSETS_TEST_DYNAMODB"):
        yield given
        return
    with aws_server() as found:
        yield found


@pytest.mark.parametrize("case", ["days", "regions"])
def test_online_is_latest_of_offline(endpoint: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    class Here(OnlineIsLatestOfOffline):
        @staticmethod
        def online_url() -> str:
            return f"dynamodb:t{uuid4().hex[:10]}?region=us-east-1&endpoint={endpoint}&consistent=true"

    Here.case = CASES[case]
    run_state_machine_as_test(
        Here,
        settings=settings(
            # A call takes milliseconds there; with a server of one's own there is time.
            max_examples=25 if "FEATURE_ASSETS_TEST_DYNAMODB" in os.environ else max(3, settings().max_examples // 40),
            stateful_step_count=8 if "FEATURE_ASSETS_TEST_DYNAMODB" in os.environ else 5,
            suppress_health_check=list(HealthCheck),
        ),
    )
