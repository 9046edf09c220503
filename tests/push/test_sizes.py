"""A row that the online store cannot hold is told of before anything is done with it, and holds up no other."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import polars as pl
import pytest

from feature_assets import FeatureStore, Settings
from feature_assets.conform import PartitionSlice
from feature_assets.errors import ContractBroken, DeclarationError
from feature_assets.publication import publish
from feature_assets.registry import Registry, RegistryStore
from feature_assets.settlement import pending, verify
from feature_assets.spec import Entity, Field, KafkaSource, PushSource, Stream, TimePartitions, ViewSpec
from feature_assets.streams.admission import Intake
from feature_assets.streams.log import Records
from feature_assets.types import Int8, String
from tests.aws_server import aws_server
from tests.streams.shards import shard

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
NOTES = ViewSpec(
    name="notes",
    entities=(Entity("writer", {"writer": String}),),
    features=(Field("text", String),),
    event_timestamp="at",
    partitions={
        "partition": TimePartitions(cron="0 0 * * *", timezone="UTC", start="2024-01-01T00:00:00+00:00", fmt="%Y-%m-%d")
    },
    stream=Stream("notes"),
)
SLICE = PartitionSlice(f"{TODAY:%Y-%m-%d}", TODAY, TODAY + timedelta(days=1))


def note(writer: str, text: str = "short") -> dict[str, Any]:
    return {"writer": writer, "at": TODAY, "text": text}


LARGE = {
    "row": (note("b", "y" * 420_000), "the row of writer='b' takes 4.* bytes in DynamoDB"),
    "key": (note("k" * 3_000), "a key takes 3012 bytes in DynamoDB"),
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_server() as found:
        yield found


@pytest.fixture
def store(tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FeatureStore]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    online = f"dynamodb:t{uuid4().hex[:10]}?region=us-east-1&endpoint={endpoint}"
    made = Settings(root=tmp_path, durability="process", push_interval_seconds=0.01, online=online)
    registry = Registry.of([NOTES, PushSource(name="notes")])
    RegistryStore(made.place(made.registry)).publish(registry, location="tests", by="tests")
    with FeatureStore(made) as opened:
        yield opened


@pytest.mark.parametrize("large, message", LARGE.values(), ids=LARGE)
def test_it_is_pushed_in_vain_and_what_comes_after_it_is_served(
    store: FeatureStore, large: dict[str, Any], message: str
) -> None:
    with pytest.raises(ContractBroken, match=message):
        store.push("notes", [note("a"), large])
    assert store.push("notes", [note("c")]).wait(30)
    assert store.offline.scan(NOTES).select("writer").collect().rows() == [("c",)]
    assert pending(NOTES, store.offline, store.online) == ()


@pytest.mark.parametrize("large, message", LARGE.values(), ids=LARGE)
def test_nothing_is_published_with_it(store: FeatureStore, large: dict[str, Any], message: str) -> None:
    stores: dict[str, Any] = {"offline": store.offline, "online": store.online}
    publish(NOTES, pl.DataFrame([note("a")]), [SLICE], **stores)
    with pytest.raises(ContractBroken, match=message):
        publish(NOTES, pl.DataFrame([note("b"), large]), [SLICE], **stores)
    assert store.offline.scan(NOTES).select("writer").collect().rows() == [("a",)]
    assert verify(NOTES, **stores).total == 0
    assert pending(NOTES, **stores) == ()


def test_where_the_view_is_not_served_it_may_be_as_large_as_it_is(store: FeatureStore) -> None:
    offline = msgspec.structs.replace(NOTES, online=False)
    large, _ = LARGE["row"]
    publish(offline, pl.DataFrame([large]), [SLICE], offline=store.offline, online=store.online)
    assert store.offline.scan(offline).select("writer").collect().rows() == [("b",)]


def test_of_a_stream_it_is_a_dead_letter(store: FeatureStore) -> None:
    source = KafkaSource(name="notes", connection="kafka", topics=("notes",))
    intake = Intake(source, [NOTES], store.settings, store.online)
    values = [note("a"), LARGE["row"][0], note("c"), LARGE["key"][0], note("e")]
    data = [msgspec.json.encode(one) for one in values]
    none = [None] * len(data)
    read = intake.read(
        Records([shard(0)] * len(data), list(range(len(data))), none, data, [()] * len(data), none), TODAY
    )
    rows, letters = intake.rows("notes", read.fields, TODAY)
    assert rows is not None
    assert rows["writer"].to_list() == ["a", "c", "e"]
    assert [one.place for one in letters] == [1, 3]
    assert all("bytes in DynamoDB" in one.reason for one in letters)


def test_of_a_view_with_more_columns_than_sqlite_takes_nothing_is_taken(tmp_path: Path) -> None:
    names = [f"f{number}" for number in range(1_998)]
    wide = msgspec.structs.replace(NOTES, features=tuple(Field(name, Int8) for name in names))
    row = {"writer": "a", "at": TODAY, **dict.fromkeys(names, 1)}
    made = Settings(root=tmp_path, durability="process")
    registry = Registry.of([wide, PushSource(name="notes")])
    RegistryStore(made.place(made.registry)).publish(registry, location="tests", by="tests")
    message = r"View 'notes': its online table would have 2,001 columns, and SQLite takes 2,000\. Split the view"
    with FeatureStore(made) as store:
        with pytest.raises(DeclarationError, match=message):
            store.push("notes", [row])
        with pytest.raises(DeclarationError, match=message):
            publish(wide, pl.DataFrame([row]), [SLICE], offline=store.offline, online=store.online)
        assert store.offline.state(wide) is None
    with pytest.raises(DeclarationError, match=message):
        Intake(KafkaSource(name="notes", connection="kafka", topics=("notes",)), [wide], made, store.online)
