"""The online store on DynamoDB keeps the contract of all online stores."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from feature_assets.errors import ConfigurationError
from feature_assets.online import open_online_store
from feature_assets.online.dynamodb import DynamoOnlineStore
from feature_assets.online.dynamodb.catalogue import SECONDS_TO_EXPIRE
from feature_assets.online.protocol import AppliedPublication, WriteCount
from feature_assets.testing import OnlineStoreContract, minute, online_rows
from feature_assets.testing.online import COUNTER, WEATHER, weather


class TestDynamoDB(OnlineStoreContract):
    # Each call takes milliseconds there; with a server of one's own all of it is tried.
    races, many, examples, runs, steps, orders = (
        (8, 230, 3, 3, 10, 12) if "FEATURE_ASSETS_TEST_DYNAMODB" not in os.environ else (200, 2600, 25, 20, 20, 120)
    )

    @pytest.fixture(autouse=True)
    def _places(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._prefixes: dict[Path, str] = {}

    def url(self, tmp_path: Path) -> str:
        prefix = self._prefixes.setdefault(tmp_path, f"t{uuid4().hex[:10]}")
        return f"dynamodb:{prefix}?region=us-east-1&endpoint={self._endpoint}&consistent=true"

    def test_what_calls_consume_is_counted(self, weather_store: DynamoOnlineStore) -> None:
        before = weather_store.units()
        weather_store.write(WEATHER, online_rows(WEATHER, [weather(name, 1) for name in "abc"]), None)
        read, written = weather_store.units()
        assert written - before[1] >= 3.0
        weather_store.reader(WEATHER, ["temp"])([("a",), ("b",)])
        assert weather_store.units()[0] > read

    def test_a_publication_costs_its_rows_its_ledger_and_what_is_refused(
        self, weather_store: DynamoOnlineStore
    ) -> None:
        def cost(time: int, publication: int) -> float:
            before = weather_store.units()[1]
            rows = online_rows(WEATHER, [weather(name, time, publication=publication) for name in "abc"])
            weather_store.write(WEATHER, rows, AppliedPublication(publication, publication, {"p": 3}))
            return weather_store.units()[1] - before

        # The write is begun, told of, entered, ended, and its latest event noted; moto has updates at half the price.
        assert 3 + 4 <= cost(5, 1) <= 3 + 5
        assert 3 + 4 <= cost(3, 2) <= 3 + 5, "of a row that is refused DynamoDB does not tell the price, and takes it"

    def test_rows_older_than_what_is_there_cost_no_writes(self, weather_store: DynamoOnlineStore) -> None:
        names = [f"k{number}" for number in range(50)]
        weather_store.write(WEATHER, online_rows(WEATHER, [weather(name, 60) for name in names]), None)
        before = weather_store.units()
        past = online_rows(WEATHER, [weather(name, 5) for name in names])
        assert weather_store.write(WEATHER, past, None).kept == 50
        read, written = (now - then for now, then in zip(weather_store.units(), before, strict=True))
        assert written < 10
        assert read >= 25

    def test_several_views_are_read_by_one_call(self, weather_store: DynamoOnlineStore) -> None:
        weather_store.prepare(COUNTER)
        weather_store.write(WEATHER, online_rows(WEATHER, [weather("JFK", 1, temp=1.5, wind=2)]), None)
        row = {"user": "u", "at": minute(3), "clicks": 4, "views": 5}
        weather_store.write(COUNTER, online_rows(COUNTER, [row]), None)
        temp, clicks = weather_store.reader(WEATHER, ["temp"]), weather_store.reader(COUNTER, ["clicks"])
        wind = weather_store.reader(WEATHER, ["wind"])
        questions = [(temp, [("JFK",), (None,)]), (clicks, [("u",), ("v",)]), (wind, [("LGA",), ("JFK",)])]
        assert weather_store.read_together(questions) == [reader(keys) for reader, keys in questions]

    def test_a_table_that_nobody_wrote_to_is_filled_by_batches(self, weather_store: DynamoOnlineStore) -> None:
        names = [f"k{number}" for number in range(2100)]
        rows = online_rows(WEATHER, [weather(name, 1, temp=float(place)) for place, name in enumerate(names)])
        old = weather_store.reader(WEATHER, ["temp"])
        assert old([("k7",)])[0] == [None]
        assert weather_store.write(WEATHER, rows, AppliedPublication(7, 2, {"a": 2100})) == WriteCount(written=2100)
        assert list(old([("k7",), ("k2099",)])[1][0]) == [7.0, 2099.0]
        assert weather_store.ledger(WEATHER).entries["a"].settled
        assert weather_store.doctor() == []
        early, late = (online_rows(WEATHER, [weather("k7", event, temp=0.0)]) for event in (0, 2))
        assert weather_store.write(WEATHER, early, None) == WriteCount(kept=1)
        assert weather_store.write(WEATHER, late, None) == WriteCount(written=1)

    def test_a_writer_that_died_leaves_its_partitions_unsettled(
        self, weather_store: DynamoOnlineStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = online_rows(WEATHER, [weather("JFK", 1)])

        def dies(*_: object) -> bool:
            raise KeyboardInterrupt

        monkeypatch.setattr(weather_store._catalogue, "enter", dies)
        with pytest.raises(KeyboardInterrupt):
            weather_store.write(WEATHER, rows, AppliedPublication(7, 2, {"a": 1}))
        monkeypatch.undo()
        assert [entry.settled for entry in weather_store.ledger(WEATHER).entries.values()] == [False]
        weather_store.settle(WEATHER, 7, ["a"], whole_since=datetime.now(UTC))
        assert not weather_store.ledger(WEATHER).entries["a"].settled, "it may be at work still"
        later = datetime.now(UTC) + timedelta(seconds=SECONDS_TO_EXPIRE + 1)
        weather_store.settle(WEATHER, 7, ["a"], whole_since=later)
        assert weather_store.ledger(WEATHER).entries == {}


@pytest.mark.parametrize(
    "url, message",
    [
        ("dynamodb:a/b", "no prefix"),
        ("dynamodb:features?regoin=x", r"'regoin' is no option. Known: region"),
        ("dynamodb:features?consistent=yes", "true or false, and not 'yes'"),
        ("dynamodb:features?read_units=5", "both read_units and write_units"),
        ("dynamodb:features?concurrency=0", "from 1 to 40000"),
        ("dynamodb:features?tags=team", "name:value"),
        ("dynamodb:features?region=", "region is empty"),
    ],
)
def test_a_url_that_cannot_be_right_says_why(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        open_online_store(url)
