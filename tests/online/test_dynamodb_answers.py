"""What a read is answered is what botocore would have made of it."""

import json
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from hypothesis import given
from hypothesis import strategies as st

from feature_assets.online.dynamodb.answers import parse_reads

ARGUMENTS: dict[str, dict[str, Any]] = {
    "get_item": {"TableName": "table", "Key": {}},
    "batch_get_item": {"RequestItems": {"table": {"Keys": [{}]}}},
    "query": {"TableName": "table"},
    "scan": {"TableName": "table"},
}
PLAIN = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",))).map(lambda text: {"S": text}),
    st.floats(-1e30, 1e30).map(lambda number: {"N": repr(number)}),
    st.binary().map(lambda held: {"B": b64encode(held).decode()}),
    st.booleans().map(lambda held: {"BOOL": held}),
    st.just({"NULL": True}),
)
VALUES = st.recursive(
    PLAIN,
    lambda held: (
        st.lists(held, max_size=4).map(lambda values: {"L": values})
        | st.dictionaries(st.text("ab_", min_size=1), held, max_size=4).map(lambda values: {"M": values})
    ),
    max_leaves=12,
)
ITEMS = st.dictionaries(st.sampled_from(["__key", "temp", "wind"]), VALUES)
CONSUMED = st.fixed_dictionaries({"TableName": st.just("table"), "CapacityUnits": st.sampled_from([0.5, 2.0])})
ANSWERS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "get_item": st.fixed_dictionaries({}, optional={"Item": ITEMS, "ConsumedCapacity": CONSUMED}),
    "batch_get_item": st.fixed_dictionaries(
        {"Responses": st.dictionaries(st.sampled_from(["a", "b"]), st.lists(ITEMS, max_size=4))},
        optional={
            "UnprocessedKeys": st.dictionaries(
                st.sampled_from(["a", "b"]),
                st.fixed_dictionaries(
                    {"Keys": st.lists(ITEMS, min_size=1, max_size=3), "ConsistentRead": st.booleans()},
                    optional={
                        "ProjectionExpression": st.just("#0, #1"),
                        "ExpressionAttributeNames": st.just({"#0": "__key", "#1": "temp"}),
                    },
                ),
            ),
            "ConsumedCapacity": st.lists(CONSUMED, max_size=2),
        },
    ),
    **dict.fromkeys(
        ("query", "scan"),
        st.fixed_dictionaries(
            {"Items": st.lists(ITEMS, max_size=4)},
            optional={"LastEvaluatedKey": ITEMS, "ConsumedCapacity": CONSUMED},
        ),
    ),
}
USED = frozenset({"Item", "Items", "LastEvaluatedKey", "Responses", "UnprocessedKeys", "ConsumedCapacity"})


class Answered:
    """A client whose every call is answered with what it is told."""

    def __init__(self, prepare: Callable[[Any], None] = lambda _: None) -> None:
        self.client = boto3.client(
            "dynamodb",
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            config=Config(parameter_validation=False, retries={"total_max_attempts": 1}),
        )
        self.client.meta.events.register("before-send.dynamodb", self._send)
        prepare(self.client)
        self.status, self.body = 200, b""

    def _send(self, request: Any, **_: object) -> AWSResponse:
        answer = AWSResponse(request.url, self.status, {}, None)
        answer._content = self.body
        return answer

    def ask(self, operation: str) -> dict[str, Any]:
        answer = getattr(self.client, operation)(**ARGUMENTS[operation])
        return {name: value for name, value in answer.items() if name in USED}


@pytest.fixture(scope="module")
def ways() -> tuple[Answered, Answered]:
    return Answered(parse_reads), Answered()


@pytest.mark.parametrize("operation", ARGUMENTS)
@given(data=st.data())
def test_an_answer_is_read_as_botocore_reads_it(
    operation: str, data: st.DataObject, ways: tuple[Answered, Answered]
) -> None:
    ours, botocore = ways
    ours.body = botocore.body = json.dumps(data.draw(ANSWERS[operation])).encode()
    assert ours.ask(operation) == botocore.ask(operation)


@pytest.mark.parametrize("body", [b"<html>", b'{"Item": 7}', b'{"Item": {"a": {"B": "not base64"}}}'])
def test_what_is_no_answer_is_not_taken_for_one_without_rows(body: bytes, ways: tuple[Answered, Answered]) -> None:
    ours, _ = ways
    ours.body = body
    with pytest.raises(BotoCoreError, match="what answers there is no DynamoDB"):
        ours.ask("get_item")


def test_a_refusal_is_left_to_botocore(ways: tuple[Answered, Answered]) -> None:
    ours, _ = ways
    ours.status, ours.body = 400, b'{"__type": "com.amazonaws.dynamodb#ResourceNotFoundException", "message": "none"}'
    with pytest.raises(ours.client.exceptions.ResourceNotFoundException, match="none"):
        ours.ask("get_item")
    ours.status = 200
