"""The policies of `deploy/aws`, with what stands for their placeholders in the tests."""

import json
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).parents[2] / "deploy" / "aws"
ACCOUNT = "123456789012"
VALUES = {
    "ACCOUNT": ACCOUNT,
    "BUCKET": "features",
    "ISSUER": "https://issuer.example",
    "PREFIX": "flights",
    "REGION": "us-east-1",
    "SECURITY_GROUP": "sg-1",
    "SUBNET": "subnet-1",
    "TAG": "1",
}

Call = tuple[str, str, str]
"""Who, which action, for which key, table, task …"""


def filled(text: str, **values: str) -> str:
    """The text of a file there, without placeholders."""
    return re.sub(r"\$\{(\w+)\}", lambda found: {**VALUES, **values}[found[1]], text)


def policy(role: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(filled((DEPLOY / "iam" / f"{role}.json").read_text()))
    return found


def actions(role: str) -> set[str]:
    return {action for statement in policy(role)["Statement"] for action in statement["Action"]}


def beyond(called: Iterable[Call]) -> list[Call]:
    """Those calls that the policy of their role does not allow."""
    called = list(called)
    policies = {role: policy(role) for role in {role for role, _, _ in called}}
    return [call for call in called if not _allows(policies[call[0]], *call[1:])]


def _allows(of_role: dict[str, Any], action: str, of: str) -> bool:
    for statement in of_role["Statement"]:
        if action not in statement["Action"]:
            continue
        if action == "s3:ListBucket":
            if any(fnmatchcase(of.rstrip("/"), one) for one in statement["Condition"]["StringLike"]["s3:prefix"]):
                return True
        elif any(fnmatchcase(_arn(action, of), resource) for resource in statement["Resource"]):
            return True
    return False


def _arn(action: str, of: str) -> str:
    if of.startswith("arn:"):
        return of
    if action.startswith("s3:"):
        return f"arn:aws:s3:::features/{of}"
    if action.startswith("ssm:"):
        return f"arn:aws:ssm:us-east-1:{ACCOUNT}:parameter{of}"
    return f"arn:aws:dynamodb:us-east-1:{ACCOUNT}:table/{of}"
