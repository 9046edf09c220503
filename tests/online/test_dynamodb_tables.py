"""Tables are made as the store's URL asks; rows and keys may be as large as DynamoDB takes, and no larger."""

import os
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal as Number
from typing import Any
from uuid import uuid4

import boto3
import msgspec
import polars as pl
import pytest

from feature_assets.errors import ContractBroken
from feature_assets.online import open_online_store
from feature_assets.online.dynamodb import store as dynamodb_store
from feature_assets.online.dynamodb.items import Shape
from feature_assets.online.protocol import AppliedPublication, MadeByOptions, TableDifference, WriteCount
from feature_assets.spec import Entity, Field, ViewSpec
from feature_assets.testing import minute, online_rows
from feature_assets.testing.online import WEATHER, weather
from feature_assets.types import Bytes, Decimal, FeatureType, Float64, Int64, List, Map, String, Struct

KMS = "arn:aws:kms:us-east-1:123456789012:key/0b7cbd8a-7f2c-4d2b-9a3e-0a1b2c3d4e5f"
TTL = timedelta(hours=6)
LIMIT = 400 * 1024


def test_tables_are_made_as_declared(spoiled_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a view, the one that its first load moves it to, and the catalogue."""
    monkeypatch.setattr(dynamodb_store, "_WORTH_A_LOAD", 3)
    prefix = f"t{uuid4().hex[:10]}"
    options = f"read_units=7&write_units=3&recovery=true&key={KMS}&tags=team:flights,stage:prod"
    store = open_online_store(f"dynamodb:{prefix}?region=us-east-1&endpoint={spoiled_endpoint}&{options}")
    loaded, small = (msgspec.structs.replace(WEATHER, name=name, ttl=TTL) for name in ("loaded", "small"))
    for view, names in ((loaded, "abc"), (small, "a")):
        for _ in range(2):
            store.prepare(view)
        store.write(view, online_rows(view, [weather(name, 1) for name in names]), AppliedPublication(1, 1, {"p": 1}))
    store.close()
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=spoiled_endpoint)
    tables = [name for name in client.list_tables()["TableNames"] if name.startswith(f"{prefix}.")]
    assert [name for name in tables if name in (f"{prefix}.catalogue", f"{prefix}.small.v1")] == tables[:1] + tables[2:]
    assert tables[1].startswith(f"{prefix}.loaded.v1.")
    for name in tables:
        assert_declared(client, name, {"team": "flights", "stage": "prod"})


def assert_declared(client: Any, table: str, tags: dict[str, str]) -> None:
    """Capacity, key, recovery and, but for the catalogue, expiry."""
    made = client.describe_table(TableName=table)["Table"]
    units = made["ProvisionedThroughput"]
    assert (units["ReadCapacityUnits"], units["WriteCapacityUnits"]) == (7, 3)
    assert (made["SSEDescription"]["SSEType"], made["SSEDescription"]["KMSMasterKeyArn"]) == ("KMS", KMS)
    found = client.list_tags_of_resource(ResourceArn=made["TableArn"])["Tags"]
    assert {tag["Key"]: tag["Value"] for tag in found} == tags
    backups = client.describe_continuous_backups(TableName=table)["ContinuousBackupsDescription"]
    assert backups["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"] == "ENABLED"
    expires = client.describe_time_to_live(TableName=table)["TimeToLiveDescription"]
    if table.endswith("catalogue"):
        assert expires["TimeToLiveStatus"] == "DISABLED"
    else:
        assert (expires["TimeToLiveStatus"], expires["AttributeName"]) == ("ENABLED", "__expires")


def test_tables_are_brought_to_what_the_url_says_now(endpoint: str) -> None:
    prefix = f"t{uuid4().hex[:10]}"
    url = f"dynamodb:{prefix}?region=us-east-1&endpoint={endpoint}"
    view, other = msgspec.structs.replace(WEATHER, ttl=TTL), msgspec.structs.replace(WEATHER, name="other")
    first = open_online_store(f"{url}&expire=false&tags=owner:ours&key={KMS}")
    assert isinstance(first, MadeByOptions)
    for one in (view, other):
        first.prepare(one)
    first.write(view, online_rows(view, [weather("JFK", 1)]), None)
    assert list(first.differences([view, other])) == []
    second = open_online_store(f"{url}&read_units=7&write_units=3&recovery=true&key={KMS}&tags=team:flights,stage:prod")
    assert isinstance(second, MadeByOptions)
    expected = [
        (f"{prefix}.{table}", what)
        for table in ("catalogue", "other.v1", "weather.v1")
        for what in (
            "is paid on demand, and should have 7 read and 3 write units",
            "has no tags stage=prod, team=flights",
            "has no point-in-time recovery",
            "does not delete what has expired",
        )
        if what != "does not delete what has expired" or table == "weather.v1"
    ]
    assert sorted(second.differences([view, other])) == sorted(expected)
    assert len(list(second.differences([other]))) == len(expected) - 1, (
        "how long rows stay, of the views that are named"
    )
    assert list(second.amend([view, other])) == list(map(TableDifference._make, expected))
    assert list(second.differences([view, other])) == []
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=endpoint)
    for name in (f"{prefix}.catalogue", f"{prefix}.weather.v1"):
        assert_declared(client, name, {"owner": "ours", "team": "flights", "stage": "prod"})
    third = open_online_store(f"{url}&expire=false")
    assert isinstance(third, MadeByOptions)
    assert list(third.amend([view])) == [
        (f"{prefix}.{table}", what)
        for table, what in (
            ("catalogue", "has 7 read and 3 write units, and should be paid on demand"),
            ("other.v1", "has 7 read and 3 write units, and should be paid on demand"),
            ("weather.v1", "has 7 read and 3 write units, and should be paid on demand"),
            ("weather.v1", "deletes what has expired"),
        )
    ], "what the URL does not name is left as it is"
    assert list(third.differences([view])) == []
    assert third.reader(view, ["temp"])([("JFK",)])[0] != [None]
    for store in (first, second, third):
        store.close()


@pytest.mark.skipif("FEATURE_ASSETS_TEST_DYNAMODB" not in os.environ, reason="moto does not change a table's key")
def test_tables_are_encrypted_with_the_key_that_the_url_says_now(endpoint: str) -> None:
    prefix = f"t{uuid4().hex[:10]}"
    url = f"dynamodb:{prefix}?region=us-east-1&endpoint={endpoint}"
    first, second = open_online_store(url), open_online_store(f"{url}&key={KMS}")
    third = open_online_store(f"{url}&key=alias/ours")
    assert isinstance(second, MadeByOptions)
    assert isinstance(third, MadeByOptions)
    first.prepare(WEATHER)
    what = f"is encrypted with a key of AWS's, and should be with {KMS}"
    assert list(second.amend([WEATHER])) == [(f"{prefix}.{table}", what) for table in ("catalogue", "weather.v1")]
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=endpoint)
    for table in ("catalogue", "weather.v1"):
        made = client.describe_table(TableName=f"{prefix}.{table}")["Table"]
        assert made["SSEDescription"]["KMSMasterKeyArn"] == KMS
    assert list(second.differences([WEATHER])) == []
    assert list(third.differences([WEATHER])) == [], "which key an alias names KMS alone knows"
    for store in (first, second, third):
        store.close()


def test_tables_are_paid_on_demand_unless_capacity_is_asked_for(spoiled_endpoint: str) -> None:
    prefix = f"t{uuid4().hex[:10]}"
    store = open_online_store(f"dynamodb:{prefix}?region=us-east-1&endpoint={spoiled_endpoint}&expire=false")
    view = msgspec.structs.replace(WEATHER, ttl=TTL)
    store.prepare(view)
    store.close()
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=spoiled_endpoint)
    for name in (f"{prefix}.catalogue", f"{prefix}.weather.v1"):
        made = client.describe_table(TableName=name)["Table"]
        assert made["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
        expires = client.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
        assert expires["TimeToLiveStatus"] == "DISABLED"


def test_an_item_may_be_deleted_two_days_after_its_ttl(spoiled_endpoint: str) -> None:
    prefix = f"t{uuid4().hex[:10]}"
    store = open_online_store(f"dynamodb:{prefix}?region=us-east-1&endpoint={spoiled_endpoint}")
    view = msgspec.structs.replace(WEATHER, ttl=TTL)
    store.prepare(view)
    store.write(view, online_rows(view, [weather("JFK", 1)]), None)
    store.close()
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=spoiled_endpoint)
    (item,) = client.scan(TableName=f"{prefix}.weather.v1")["Items"]
    assert int(item["__expires"]["N"]) == (minute(1) + TTL + timedelta(days=2)).timestamp()


def document(*of: FeatureType) -> ViewSpec:
    return ViewSpec(
        name="large",
        entities=(Entity("document", {"path": String}),),
        features=tuple(Field(f"value_{number}", one) for number, one in enumerate(of)),
        event_timestamp="at",
    )


@pytest.mark.skipif(
    "FEATURE_ASSETS_TEST_DYNAMODB" not in os.environ, reason="moto has a limit of its own, 405,000 bytes"
)
@pytest.mark.parametrize(
    "of, value",
    [
        (String, lambda size: "x" * size),
        (String, lambda size: "é😀" * (size // 6)),
        (Bytes, lambda size: b"\x00" * size),
        (List[Int64], lambda size: [2**63 - 1 - number for number in range(size // 12)]),
        (List[Float64], lambda size: [number / 7 for number in range(size // 12)]),
        (List[String], lambda size: [""] * (size // 2)),
        (List[Decimal(38, 10)], lambda size: [Number(number) / 7 for number in range(size // 20)]),
        (Map[String, Int64], lambda size: {f"key {number}": number for number in range(size // 16)}),
        (List[Struct({"a": Int64, "b": String})], lambda size: [{"a": 10**15, "b": "é"}] * (size // 20)),
    ],
    ids=lambda given: None if callable(given) else str(given),
)
def test_the_largest_row_that_is_let_through_is_taken(
    endpoint: str, of: FeatureType, value: Callable[[int], Any]
) -> None:
    """What counts as a byte is DynamoDB's to say; the largest row that we let through is not larger than it takes."""
    store = open_online_store(f"dynamodb:t{uuid4().hex[:10]}?region=us-east-1&endpoint={endpoint}&consistent=true")
    view = document(of)

    def rows(size: int) -> pl.DataFrame:
        return online_rows(view, [{"path": "a", "at": minute(1), "value_0": value(size)}])

    def is_let_through(size: int) -> bool:
        try:
            next(Shape(view).items(rows(size)))
        except ContractBroken:
            return False
        return True

    smallest, largest = LIMIT // 8, LIMIT * 4
    while largest - smallest > 16:
        middle = (smallest + largest) // 2
        smallest, largest = (middle, largest) if is_let_through(middle) else (smallest, middle)
    assert smallest > LIMIT // 8
    store.prepare(view)
    assert store.write(view, rows(smallest), None) == WriteCount(written=1)
    assert pl.concat(store.scan(view)).equals(rows(smallest))
    with pytest.raises(ContractBroken, match=r"bytes in DynamoDB, and 409600 is its limit\. Split the view"):
        store.write(view, rows(largest), None)
    store.close()


def test_rows_that_are_too_many_for_one_answer_are_all_read(endpoint: str) -> None:
    """An answer has 16 MB at the most; what is over comes back as unprocessed keys. Here are 20 MB."""
    store = open_online_store(f"dynamodb:t{uuid4().hex[:10]}?region=us-east-1&endpoint={endpoint}&consistent=true")
    view = document(String)
    store.prepare(view)
    paths = [f"path {number}" for number in range(60)]
    for path in paths:
        store.write(view, online_rows(view, [{"path": path, "at": minute(1), "value_0": path * 50_000}]), None)
    _, (found,) = store.reader(view, ["value_0"])([(path,) for path in [*paths, "nowhere"]])
    assert [None if value is None else (len(value), value[:8]) for value in found] == [
        *((len(path) * 50_000, (path * 2)[:8]) for path in paths),
        None,
    ]
    store.close()


def test_a_key_may_have_as_many_bytes_as_dynamodb_takes(endpoint: str) -> None:
    store = open_online_store(f"dynamodb:t{uuid4().hex[:10]}?region=us-east-1&endpoint={endpoint}&consistent=true")
    view = document(Int64)
    store.prepare(view)
    largest = 2_048 - 12
    for path in ("p" * largest, "é" * (largest // 2), ""):
        row = {"path": path, "at": minute(1), "value_0": 7}
        assert store.write(view, online_rows(view, [row]), None) == WriteCount(written=1)
        assert store.reader(view, ["value_0"])([(path,), ("q" + path[1:],)]) == (
            [int(minute(1).timestamp() * 1e6), None],
            [(7, None)],
        )
    store.close()


def test_rows_and_keys_that_are_too_large_are_refused_before_anything_is_written(endpoint: str) -> None:
    store = open_online_store(f"dynamodb:t{uuid4().hex[:10]}?region=us-east-1&endpoint={endpoint}")
    view = document(String)
    store.prepare(view)
    small = {"path": "a", "at": minute(1), "value_0": "x"}
    for row, message in (
        ({**small, "value_0": "é" * 210_000}, r"the row of path='a' takes 4\d{5} bytes in DynamoDB"),
        ({**small, "path": "p" * 2_037}, r"a key takes 2049 bytes in DynamoDB, and 2048 is its limit"),
    ):
        with pytest.raises(ContractBroken, match=message):
            store.write(view, online_rows(view, [small, row]), None)
    assert store.stored(view).is_empty()
    store.close()
