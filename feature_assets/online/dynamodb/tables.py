"""Tables: made as the store's URL asks, brought to what it asks now, and deleted. What lies in them others know."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from feature_assets.errors import StoreError, StoreUnavailable
from feature_assets.online.dynamodb.calls import Calls, InUse, NotKnown, NotThere, NotYet
from feature_assets.online.dynamodb.items import EXPIRES
from feature_assets.online.protocol import TableDifference

_SECONDS_TO_MAKE = 120.0
_SECONDS_TO_CHANGE = 900.0
"""A table that was paid on demand takes minutes until it has its units, and is changed no further meanwhile."""


@dataclass(frozen=True, slots=True)
class Change:
    """A difference, and the call that mends it."""

    difference: TableDifference
    operation: str
    arguments: Mapping[str, Any]


_ON_DEMAND = (None, None)
_OF_AWS = "a key of AWS's"
_RECOVERY: Mapping[str, Any] = {"PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True}}


class Tables:
    """Those whose names begin with the location's prefix. Safe to share between threads and processes."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def make(self, name: str, *key: tuple[str, str]) -> None:
        """Make a table as the location asks, if there is none, and wait until it is there."""
        location = self._calls.location
        options = self._capacity()
        if location.key is not None:
            options |= self._encryption()
        if location.tags:
            options["Tags"] = _as_tags(location.tags)
        with suppress(InUse):
            self._create(name, key, options)
        self._until_ready(name, self._is_active)
        if location.recovery:
            self._until_ready(name, self._make_recoverable)

    def _capacity(self) -> dict[str, Any]:
        location = self._calls.location
        if location.read_units is None:
            return {"BillingMode": "PAY_PER_REQUEST"}
        units = {"ReadCapacityUnits": location.read_units, "WriteCapacityUnits": location.write_units}
        return {"BillingMode": "PROVISIONED", "ProvisionedThroughput": units}

    def _encryption(self) -> dict[str, Any]:
        return {"SSESpecification": {"Enabled": True, "SSEType": "KMS", "KMSMasterKeyId": self._calls.location.key}}

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
            self._calls.call("update_continuous_backups", TableName=name, **_RECOVERY)
            return True
        return False

    def _until_ready(self, name: str, ready: Callable[[str], bool], seconds: float = _SECONDS_TO_MAKE) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if ready(name):
                return
            time.sleep(0.05 if self._calls.location.endpoint else 1.0)
        raise StoreUnavailable(f"{self._calls.described}: table {name} was not ready in {seconds:.0f} s. Try again.")

    def expire(self, name: str) -> None:
        """Have DynamoDB delete what has expired. It refuses to be told twice."""
        try:
            if self._expires(name):
                return
            self._calls.call("update_time_to_live", TableName=name, **_expiry(enabled=True))
        except StoreError as error:
            if "TimeToLive is already enabled" not in str(error):
                raise

    def changes(self, name: str, expire: bool | None) -> Iterator[Change]:  # noqa: FBT001 (None: as it is)
        """What has to be changed in a table so that it is as the location says.

        Every table is paid in one way or the other; of key, tags and recovery only what the location names is looked at, so
        that what others arranged stays.
        """
        location = self._calls.location
        table = self._calls.call("describe_table", TableName=name)["Table"]

        def change(what: str, operation: str, arguments: Mapping[str, Any]) -> Change:
            return Change(TableDifference(name, what), operation, arguments)

        units, asked = _units(table), (location.read_units, location.write_units)
        if units != asked:
            what = f"is paid on demand, and should have {asked[0]} read and {asked[1]} write units"
            if units != _ON_DEMAND:
                how = "be paid on demand" if asked == _ON_DEMAND else f"have {asked[0]} and {asked[1]}"
                what = f"has {units[0]} read and {units[1]} write units, and should {how}"
            yield change(what, "update_table", {"TableName": name, **self._capacity()})
        key = table.get("SSEDescription", {}).get("KMSMasterKeyArn")
        if location.key is not None and not _is_key(location.key, key):
            what = f"is encrypted with {key or _OF_AWS}, and should be with {location.key}"
            yield change(what, "update_table", {"TableName": name, **self._encryption()})
        if missing := dict(sorted(location.tags.items() - self._tags(table["TableArn"]).items())):
            what = "has no tags " + ", ".join(f"{tag}={value}" for tag, value in missing.items())
            yield change(what, "tag_resource", {"ResourceArn": table["TableArn"], "Tags": _as_tags(missing)})
        if location.recovery and not self._is_recoverable(name):
            what = "has no point-in-time recovery"
            yield change(what, "update_continuous_backups", {"TableName": name, **_RECOVERY})
        if expire is not None and self._expires(name) != expire:
            what = "does not delete what has expired" if expire else "deletes what has expired"
            yield change(what, "update_time_to_live", {"TableName": name, **_expiry(enabled=expire)})

    def make_change(self, change: Change) -> None:
        """Make it, as soon as no other is under way. What AWS does of it in the background is not waited for."""
        name = change.difference.table
        try:
            if change.operation == "update_table":
                self._until_ready(name, self._is_idle, _SECONDS_TO_CHANGE)
            self._calls.call(change.operation, **change.arguments)
        except (InUse, NotYet) as error:
            raise StoreUnavailable(
                f"{self._calls.described}: table {name} is just being made or changed. Try again in a minute."
            ) from error

    def _is_idle(self, name: str) -> bool:
        return bool(self._calls.call("describe_table", TableName=name)["Table"]["TableStatus"] == "ACTIVE")

    def _tags(self, table: str) -> dict[str, str]:
        if not self._calls.location.tags:
            return {}
        found: dict[str, str] = {}
        start: dict[str, str] = {}
        while True:
            answer = self._calls.call("list_tags_of_resource", ResourceArn=table, **start)
            found |= {tag["Key"]: tag["Value"] for tag in answer.get("Tags", ())}
            if not answer.get("NextToken"):
                return found
            start = {"NextToken": answer["NextToken"]}

    def _is_recoverable(self, name: str) -> bool:
        answer = self._calls.call("describe_continuous_backups", TableName=name)["ContinuousBackupsDescription"]
        return bool(answer.get("PointInTimeRecoveryDescription", {}).get("PointInTimeRecoveryStatus") == "ENABLED")

    def _expires(self, name: str) -> bool:
        try:
            answer = self._calls.call("describe_time_to_live", TableName=name)
        except NotKnown:
            if self._calls.location.expire:
                raise
            return False
        return answer.get("TimeToLiveDescription", {}).get("TimeToLiveStatus") in ("ENABLED", "ENABLING")

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


def _units(table: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Read and write units, `_ON_DEMAND` where the table has none of its own."""
    if table.get("BillingModeSummary", {}).get("BillingMode") == "PAY_PER_REQUEST":
        return _ON_DEMAND
    units = table["ProvisionedThroughput"]
    return units["ReadCapacityUnits"], units["WriteCapacityUnits"]


def _is_key(asked: str, arn: str | None) -> bool:
    """Whether it is that key. An alias names one that only KMS knows: any key of the owner's is taken for it."""
    if arn is None:
        return False
    return asked.rpartition(":")[2].startswith("alias/") or arn == asked or arn.endswith(f"/{asked}")


def _as_tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": tag, "Value": value} for tag, value in tags.items()]


def _expiry(*, enabled: bool) -> dict[str, Any]:
    return {"TimeToLiveSpecification": {"Enabled": enabled, "AttributeName": EXPIRES}}
