"""C3: 200,000 keys are published again and again while two clients take thousands of answers from the server."""

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from feature_assets.conform import PartitionSlice
from feature_assets.offline import OfflineStore
from feature_assets.publication import publish
from feature_assets.spec import Field
from feature_assets.types import Int64
from tests.acceptance.running import serving, tell
from tests.server.conftest import DRIVER, NOW, Platform, bearer, columns, view

KEYS, ANSWERS, ASKED = 200_000, 10_000, 20
DAY = datetime(2013, 2, 8, tzinfo=UTC)
SLICE = PartitionSlice("2013-02-08", DAY, DAY + timedelta(days=1))
TRIPS = view("trips", Field("first", Int64), Field("second", Int64), Field("third", Int64), entity=DRIVER)


def rows(turn: int) -> pl.DataFrame:
    turned = [pl.lit(turn, pl.Int64).alias(name) for name in ("first", "second", "third")]
    at = pl.lit(NOW).dt.cast_time_unit("us").alias("at")
    return pl.DataFrame({"driver_id": pl.Series(range(KEYS), dtype=pl.Int64)}).select("driver_id", at, *turned)


class Client:
    """Takes its half of the answers, over one connection."""

    def __init__(self, url: str, token: dict[str, Any], seed: int) -> None:
        self.url, self.token, self.seed = url, token, seed
        self.torn: list[Any] = []
        self.digests: list[str] = []
        self.turns: list[int] = []

    def ask(self) -> None:
        with httpx.Client(base_url=self.url, headers=self.token, timeout=60) as http:
            for number in range(ANSWERS // 2):
                keys = [(self.seed + number * 7_919 + place * 9_973) % KEYS for place in range(ASKED)]
                body = {"features": ["trips:*"], "entities": {"driver_id": keys}}
                answer = http.post("/get-online-features", json=body)
                assert answer.status_code == 200, answer.text
                self.digests.append(answer.headers["x-feature-registry"])
                found = columns(answer.json())
                of_each = list(zip(found["first"], found["second"], found["third"], strict=True))
                self.torn += [row for row in of_each if len(set(row)) != 1]
                # SQLite's rows of one publication are one transaction, and an answer is one read.
                if len({row[0] for row in of_each}) != 1:
                    self.torn.append(of_each)
                self.turns.append(of_each[0][0])


@pytest.mark.timeout(900)
def test_no_answer_mixes_two_publications(tmp_path: Path) -> None:
    platform = Platform(tmp_path)
    platform.add(TRIPS)
    platform.publish()
    offline = OfflineStore(platform.settings.place(platform.settings.offline), durability="process")
    publish(TRIPS, rows(0), [SLICE], offline=offline, online=platform.store)
    token = bearer(platform.token())
    with serving(platform) as server:
        clients = [Client(server.url, token, seed) for seed in (0, 1)]
        threads = [threading.Thread(target=client.ask) for client in clients]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        turn = 0
        while any(thread.is_alive() for thread in threads):
            turn += 1
            publish(TRIPS, rows(turn), [SLICE], offline=offline, online=platform.store)
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - begun
    platform.store.close()
    for client in clients:
        assert len(client.turns) == ANSWERS // 2, "it was stopped by an answer that was none"
        assert client.torn == []
        assert client.turns == sorted(client.turns), "what was seen once is not taken back"
        assert len(set(client.digests)) == 1
    seen = {turn for client in clients for turn in client.turns}
    assert len(seen) > 2
    tell(
        "C3",
        answers=ANSWERS,
        keys_in_each=ASKED,
        publications=f"{turn} of {KEYS:,} rows",
        seen=len(seen),
        torn=0,
        seconds=f"{seconds:.0f}",
    )
