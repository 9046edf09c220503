"""Tables: made as the store's URL asks, found and deleted. What lies in them is the business of others."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from feature_assets.errors import StoreError, StoreUnavailable
from feature_assets.online.dynamodb.calls import Calls, InUse, NotThere, NotYet
from feature_assets.online.dynamodb.items import EXPIRES

_SECONDS_TO_MAKE = 120.0


class Tables:
    """Those whose names begin with the location's prefix. Safe to share between threads and processes."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def make(self, name: str, *key: tuple[str, str]) -> None:
        """Make a table as the location asks, if there is none, and wait until it is there."""
        location = self._calls.location
        options: dict[str, Any] = {"BillingMode": "PAY_PER_REQUEST"}
        if location.read_units is not None:
            units = {"ReadCapacityUnits": location.read_units, "WriteCapacityUnits": location.write_units}
            options = {"BillingMode": "PROVISIONED", "ProvisionedThroughput": units}
        if location.key is not None:
            options["SSESpecification"] = {"Enabled": True, "SSEType": "KMS", "KMSMasterKeyId": location.key}
        if location.tags:
            options["Tags"] = [{"Key": tag, "Value": value} for tag, value in location.tags.items()]
        with suppress(InUse):
            self._create(name, key, options)
        self._until_ready(name, self._is_active)
        if location.recovery:
            self._until_ready(name, self._make_recoverable)

    def _create(self, name: str, key: Sequence[tuple[str, str]], options: Mapping[str, Any]) -> None:
        self._calls.call(
            "create_table",
            TableName=name,
            KeySchema=[
                {"AttributeName": attribute, "KeyType": kind}
                for (attribute, _), kind in zip(key, ("HASH", "RANGE"), strict=False)
            ],
            AttributeDefinitions=[{"AttributeName": attribute, "AttributeType": of} for attribute, of in key],
            **options,
        )

    def _is_active(self, name: str) -> bool:
        with suppress(NotThere):
            table = self._calls.call("describe_table", TableName=name)["Table"]
            return table["TableStatus"] in ("ACTIVE", "UPDATING")
        return False

    def _make_recoverable(self, name: str) -> bool:
        # DynamoDB refuses that for a while after it has made a table.
        with suppress(NotYet):
            self._calls.call(
                "update_continuous_backups",
                TableName=name,
                PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True},
            )
            return True
        return False

    def _until_ready(self, name: str, ready: Callable[[str], bool]) -> None:
        deadline = time.monotonic() + _SECONDS_TO_MAKE
        while time.monotonic() < deadline:
            if ready(name):
                return
            time.sleep(0.05 if self._calls.location.endpoint else 1.0)
        raise StoreUnavailable(
            f"{self._calls.described}: table {name} was not ready in {_SECONDS_TO_MAKE:.0f} s. Try again."
        )

    def expire(self, name: str) -> None:
        """Have DynamoDB delete what has expired. It refuses to be told twice."""
        try:
            answer = self._calls.call("describe_time_to_live", TableName=name)
            if answer.get("TimeToLiveDescription", {}).get("TimeToLiveStatus") in ("ENABLED", "ENABLING"):
                return
            self._calls.call(
                "update_time_to_live",
                TableName=name,
                TimeToLiveSpecification={"Enabled": True, "AttributeName": EXPIRES},
            )
        except StoreError as error:
            if "TimeToLive is already enabled" not in str(error):
                raise

    def delete(self, name: str) -> None:
        """Delete a table; nothing happens where there is none."""
        # A second attempt, whose first was carried out, finds it gone or going.
        with suppress(NotThere, InUse):
            self._calls.call("delete_table", TableName=name)

    def own(self) -> Iterator[str]:
        """The names of all that begin with the prefix."""
        start: dict[str, Any] = {}
        prefix = f"{self._calls.location.prefix}."
        while True:
            answer = self._calls.call("list_tables", **start)
            yield from (name for name in answer["TableNames"] if name.startswith(prefix))
            if not answer.get("LastEvaluatedTableName"):
                return
            start = {"ExclusiveStartTableName": answer["LastEvaluatedTableName"]}
