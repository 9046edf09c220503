"""What reads are answered, parsed by msgspec.

botocore walks an answer by the model of the service, in Python: of a hundred rows that takes longer than all else that a
lookup does. Here it is told that the answer is empty, and given what was in it.
"""

from __future__ import annotations

from typing import Any, Final, TypedDict

import msgspec
from botocore.exceptions import BotoCoreError


class NoAnswer(BotoCoreError):  # type: ignore[misc]
    """What came is nothing that DynamoDB answers."""

    fmt = "what answers there is no DynamoDB, perhaps a proxy on the way"


class Value(TypedDict, total=False):
    """An attribute's value, of just one kind; `B` comes as base64 and is bytes here, as botocore has it."""

    S: str
    N: str
    B: bytes
    BOOL: bool
    NULL: bool
    L: list[Value]
    M: dict[str, Value]


Item = dict[str, Value]


class _Unprocessed(TypedDict, total=False):
    Keys: list[Item]
    ProjectionExpression: str
    ExpressionAttributeNames: dict[str, str]
    ConsistentRead: bool


class _Consumed(TypedDict, total=False):
    TableName: str
    CapacityUnits: float


class _Answer(TypedDict, total=False):
    Item: Item
    Items: list[Item]
    LastEvaluatedKey: Item
    Responses: dict[str, list[Item]]
    UnprocessedKeys: dict[str, _Unprocessed]
    ConsumedCapacity: _Consumed | list[_Consumed]


_READS: Final = frozenset({"GetItem", "BatchGetItem", "Query", "Scan"})
_PARSER: Final = msgspec.json.Decoder(_Answer)


def parse_reads(client: Any) -> None:
    """Have this client's reads parsed so, after whatever else looks at answers before they are parsed."""
    client.meta.events.register_last("before-parse.dynamodb", _parse)


def _parse(
    operation_model: Any, response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any
) -> None:
    if operation_model.name not in _READS or response_dict["status_code"] >= 300:
        return
    try:
        customized_response_dict.update(_PARSER.decode(response_dict["body"]))
    except msgspec.MsgspecError as error:
        # botocore would take it for an answer without rows.
        raise NoAnswer() from error
    response_dict["body"] = b"{}"
