"""DynamoDB's answers are lost, its calls throttled, its batches half done: what was acknowledged is what is there."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from threading import Barrier
from uuid import uuid4

import boto3
import httpx
import msgspec
import pytest

from feature_assets.errors import StoreError, StoreUnavailable
from feature_assets.online import open_online_store
from feature_assets.online.dynamodb import DynamoOnlineStore, calls
from feature_assets.online.dynamodb import store as dynamodb_store
from feature_assets.online.protocol import AppliedPublication, WriteCount
from feature_assets.testing import online_rows
from feature_assets.testing.online import WEATHER, weather

Faults = Callable[..., None]
NAMES = [f"k{number}" for number in range(120)]


@pytest.fixture(scope="module")
def endpoint(spoiled_endpoint: str) -> str:
    return spoiled_endpoint


@pytest.fixture
def faults(endpoint: str) -> Iterator[Faults]:
    def arrange(operation: str = "", how: str = "", share: float = 1, only: str = "") -> None:
        arranged = [{"operation": operation, "how": how, "share": share, "only": only}] if operation else []
        httpx.put(f"{endpoint}/_faults", content=json.dumps(arranged)).raise_for_status()

    yield arrange
    arrange()


@pytest.fixture
def store(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[DynamoOnlineStore]:
    # Else a first publication goes through a table of its own from 2,000 rows on.
    monkeypatch.setattr(dynamodb_store, "_WORTH_A_LOAD", len(NAMES))
    url = f"dynamodb:t{uuid4().hex[:10]}?region=us-east-1&endpoint={endpoint}&consistent=true"
    opened = open_online_store(url)
    assert isinstance(opened, DynamoOnlineStore)
    yield opened
    opened.close()


def rows(names: list[str], time: int, publication: int, temp: float) -> object:
    return online_rows(WEATHER, [weather(name, time, publication=publication, temp=temp) for name in names])


def temps(store: DynamoOnlineStore, names: list[str]) -> list[float | None]:
    answer = store.reader(WEATHER, ["temp"])([(name,) for name in names])
    return list(answer[1][0])


LOST = [
    "CreateTable",
    "PutItem",
    "UpdateItem",
    "BatchWriteItem",
    "DeleteItem",
    "DeleteTable",
    "BatchGetItem",
    "GetItem",
    "Query",
]


@pytest.mark.parametrize("how", ["drop", "500"])
@pytest.mark.parametrize("operation", LOST)
def test_a_lost_answer_changes_nothing(operation: str, how: str, store: DynamoOnlineStore, faults: Faults) -> None:
    """Each call is done, and its answer lost; botocore asks again."""
    faults(operation, how)
    few = NAMES[:4]
    store.prepare(WEATHER)
    # The first publication fills a table of its own and is then put in place.
    first = store.write(WEATHER, rows(NAMES, 3, 1, 1.0), AppliedPublication(1, 1, {"a": 120}, settled=False))
    assert first == WriteCount(written=120)
    store.settle(WEATHER, 1, ["a"])
    assert temps(store, NAMES) == [1.0] * 120
    second = store.write(WEATHER, rows(few, 4, 2, 2.0), AppliedPublication(2, 2, {"b": 4}))
    assert second == WriteCount(written=4)
    late = store.write(WEATHER, rows(few, 2, 3, 9.0), AppliedPublication(3, 3, {"c": 4}))
    assert late == WriteCount(written=0, kept=4)
    held = store.stored(WEATHER, rows(few, 4, 2, 2.0).select("origin"))
    store.retract(WEATHER, held, rows(few[:2], 3, 1, 1.0))
    assert temps(store, few) == [1.0, 1.0, None, None]
    store.delete(WEATHER, rows(few[:1], 3, 1, 1.0).select("origin"))
    assert temps(store, few) == [None, 1.0, None, None]
    entries = store.ledger(WEATHER).entries
    assert {name: (one.publication, one.settled) for name, one in entries.items()} == {
        "a": (1, True),
        "b": (2, True),
        "c": (3, True),
    }
    store.drop(WEATHER)
    assert store.tables() == []
    faults()
    assert store.doctor() == []


def test_a_table_whose_move_was_not_heard_of_is_kept(store: DynamoOnlineStore, faults: Faults) -> None:
    faults("UpdateItem", "drop", only=":before")
    store.prepare(WEATHER)
    count = store.write(WEATHER, rows(NAMES, 3, 1, 1.0), AppliedPublication(1, 1, {"a": 120}))
    assert count == WriteCount(written=120)
    assert temps(store, NAMES[:100]) == [1.0] * 100
    assert store.doctor() == []


@pytest.mark.parametrize(
    "operation, how", [("PutItem", "ProvisionedThroughputExceededException"), ("*", "503"), ("*", "drop")]
)
def test_throttled_and_lossy_all_of_it_arrives(
    operation: str, how: str, store: DynamoOnlineStore, faults: Faults
) -> None:
    store.prepare(WEATHER)
    store.write(WEATHER, rows(NAMES[:1], 1, 1, 0.0), None)
    faults(operation, how, 0.1)
    count = store.write(WEATHER, rows(NAMES[:40], 3, 2, 1.0), AppliedPublication(2, 1, {"a": 40}))
    assert count == WriteCount(written=40)
    assert temps(store, NAMES[:40]) == [1.0] * 40


def test_batches_that_are_left_half_done_are_finished(store: DynamoOnlineStore, faults: Faults) -> None:
    faults("BatchWriteItem", "unprocessed", 0.6)
    store.prepare(WEATHER)
    count = store.write(WEATHER, rows(NAMES, 3, 1, 1.0), AppliedPublication(1, 1, {"a": 120}))
    assert count == WriteCount(written=120)
    faults("BatchGetItem", "unprocessed", 0.6)
    assert temps(store, NAMES[:100]) == [1.0] * 100


@pytest.mark.parametrize("how", ["damage", "garble"])
@pytest.mark.parametrize("operation, keys", [("GetItem", 1), ("BatchGetItem", 5)])
def test_a_damaged_answer_is_never_taken(
    operation: str, keys: int, how: str, store: DynamoOnlineStore, faults: Faults
) -> None:
    store.prepare(WEATHER)
    store.write(WEATHER, rows(NAMES[:keys], 3, 1, 1.0), None)
    assert temps(store, NAMES[:keys]) == [1.0] * keys
    faults(operation, how)
    assert temps(store, NAMES[:keys]) == [1.0] * keys, "it is asked for again"
    faults(operation, how, 2)
    with pytest.raises(StoreUnavailable, match=r"Checksum CRC32 failed.*Try again"):
        temps(store, NAMES[:keys])


def test_recovery_is_asked_for_until_the_table_is_old_enough(endpoint: str, faults: Faults) -> None:
    faults("UpdateContinuousBackups", "ContinuousBackupsUnavailableException")
    prefix = f"t{uuid4().hex[:10]}"
    store = open_online_store(f"dynamodb:{prefix}?region=us-east-1&endpoint={endpoint}&recovery=true")
    store.prepare(WEATHER)
    store.close()
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=endpoint)
    for table in ("catalogue", "weather.v1"):
        found = client.describe_continuous_backups(TableName=f"{prefix}.{table}")["ContinuousBackupsDescription"]
        assert found["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"] == "ENABLED"


def test_a_table_that_goes_while_it_is_looked_at_is_passed_over(endpoint: str, faults: Faults) -> None:
    prefix = f"t{uuid4().hex[:10]}"
    url = f"dynamodb:{prefix}?region=us-east-1&endpoint={endpoint}"
    first, second = open_online_store(url), open_online_store(f"{url}&read_units=5&write_units=5")
    assert isinstance(second, DynamoOnlineStore)
    first.prepare(WEATHER)
    faults("DescribeTable", "ResourceNotFoundException", 2, only="weather")
    assert [one.table for one in second.differences([WEATHER])] == [f"{prefix}.catalogue"]
    faults("UpdateTable", "ResourceInUseException", 2)
    with pytest.raises(StoreUnavailable, match=f"table {prefix}.catalogue is just being made or changed. Try again"):
        list(second.amend([WEATHER]))
    faults("UpdateTable", "ResourceNotFoundException", 2, only="weather")
    assert [one.table for one in second.amend([WEATHER])] == [f"{prefix}.catalogue"]
    first.close()
    second.close()


@pytest.mark.parametrize(
    "operation, option, instead",
    [("UpdateTimeToLive", "", "expire=false"), ("UpdateContinuousBackups", "&recovery=true", "recovery=false")],
)
def test_a_stand_in_that_cannot_do_all_of_it_is_done_without_by_an_option(
    endpoint: str, faults: Faults, operation: str, option: str, instead: str
) -> None:
    faults(operation, "UnknownOperationException", 2)
    url = f"dynamodb:t{uuid4().hex[:10]}?region=us-east-1&endpoint={endpoint}{option}"
    view = msgspec.structs.replace(WEATHER, ttl=timedelta(hours=1))
    store = open_online_store(url)
    with pytest.raises(StoreError, match=f"does not know '.*add {instead} to the URL"):
        store.prepare(view)
    store.close()
    store = open_online_store(f"{url.removesuffix(option)}&{instead}")
    store.prepare(view)
    assert store.write(view, rows(NAMES[:1], 1, 1, 0.0), None) == WriteCount(written=1)
    store.close()


def test_what_is_never_processed_is_an_error_and_no_missing_row(
    store: DynamoOnlineStore, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_SECONDS_TO_READ", 0.3)
    store.prepare(WEATHER)
    store.write(WEATHER, rows(NAMES[:6], 3, 1, 1.0), None)
    faults("BatchGetItem", "unprocessed", 2)
    with pytest.raises(StoreUnavailable, match=r"did not read \d of table .*weather.v1 in time") as refused:
        temps(store, NAMES[:6])
    (note,) = refused.value.__notes__
    left = note.removeprefix("Not read: ").split(", ")
    assert set(left) < set(NAMES[:6])
    assert f"did not read {len(left)} of" in str(refused.value)
    assert not any(name in str(refused.value) for name in NAMES[:6]), "a server logs it, and keys are nothing for a log"
    faults()
    assert temps(store, NAMES[:6]) == [1.0] * 6


def test_what_is_never_taken_is_named(
    store: DynamoOnlineStore, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_SECONDS_TO_WRITE", 0.3)
    store.prepare(WEATHER)
    faults("BatchWriteItem", "unprocessed", 0.999)
    with pytest.raises(StoreUnavailable, match=r"did not write \d+ of table .* in time .*\(k\d+"):
        store.write(WEATHER, rows(NAMES, 3, 1, 1.0), AppliedPublication(1, 1, {"a": 120}))
    faults()
    assert store.write(WEATHER, rows(NAMES, 3, 1, 1.0), AppliedPublication(1, 1, {"a": 120})).written == 120


def test_conditional_updates_go_in_parallel(store: DynamoOnlineStore) -> None:
    """Each waits until four are on their way: one after the other none would come back."""
    store.prepare(WEATHER)
    store.write(WEATHER, rows(NAMES[:1], 1, 1, 0.0), None)
    together = Barrier(4)

    def wait_for_others(**_: object) -> None:
        together.wait(timeout=20)

    store._calls._client("put_item").meta.events.register("before-send.dynamodb.PutItem", wait_for_others)
    names = NAMES[:8]
    assert store.write(WEATHER, rows(names, 3, 2, 1.0), None) == WriteCount(written=8)
    assert temps(store, names) == [1.0] * 8
