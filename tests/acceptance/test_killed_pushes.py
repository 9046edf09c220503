"""Servers that take pushes are killed under load, 25 times: what was answered is offline once, and online."""

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import polars as pl

from feature_assets.config import Settings
from feature_assets.offline import OfflineStore
from feature_assets.online import open_online_store
from feature_assets.push import drain_orphans, orphaned
from feature_assets.settlement import pending, reconcile, verify
from feature_assets.spec import Entity, Field, PushSource, Stream, TimePartitions, ViewSpec
from feature_assets.types import Float64, Int64
from tests.acceptance.running import answers, command_line, free_port, started, tell, write_settings
from tests.server.conftest import Platform, bearer

KILLS, CLIENTS = 25, 8
AT = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
DAILY = TimePartitions(cron="0 0 * * *", timezone="UTC", start="2024-01-01T00:00:00+00:00", fmt="%Y-%m-%d")
TRIPS = ViewSpec(
    name="trips",
    entities=(Entity("driver", {"driver_id": Int64}),),
    features=(Field("km", Float64),),
    event_timestamp="at",
    partitions={"partition": DAILY},
    stream=Stream("rides"),
)


class Clients:
    """Eight of them, each pushing a row after the other. What got no answer is pushed again by the next round."""

    def __init__(self, token: str) -> None:
        self._headers = bearer(token)
        self._mutex, self._next, self._again = threading.Lock(), 0, list[int]()
        self.answered: set[int] = set()
        self.refused: list[str] = []

    def _row(self) -> int:
        with self._mutex:
            if self._again:
                return self._again.pop()
            self._next += 1
            return self._next

    def push_until(self, stop: threading.Event, url: str) -> None:
        with httpx.Client(headers=self._headers, timeout=30) as client:
            while not stop.is_set():
                row = self._row()
                body = {
                    "push_source_name": "rides",
                    "df": {"driver_id": [row], "at": [AT.isoformat()], "km": [row / 8]},
                }
                try:
                    answer = client.post(f"{url}/push", json=body)
                except httpx.TransportError:
                    with self._mutex:
                        self._again.append(row)
                    return
                with self._mutex:
                    if answer.is_success:
                        self.answered.add(row)
                    else:
                        self.refused.append(answer.text)
                        self._again.append(row)


@contextlib.contextmanager
def doomed(folder: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A server that will be killed."""
    port, log = free_port(), folder / "doomed.log"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            command_line("serve", "--port", str(port)), cwd=folder, env=environment, stdout=stderr, stderr=stderr
        )
    try:
        answers(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def test_every_answered_row_is_there_once(tmp_path: Path) -> None:
    platform = Platform(tmp_path)
    platform.settings = Settings(
        root=tmp_path, online="sqlite:online.db", registry="registry", push_interval_seconds=0.05
    )
    platform.objects += [TRIPS, PushSource(name="rides")]
    platform.publish()
    write_settings(platform.settings)
    clients, chance = Clients(platform.token("features:push", lifetime=3_600)), random.Random(11)
    begun, waiting = time.monotonic(), 0
    # A second server goes through all of it, and pushes into the same tables.
    with started(tmp_path) as lasting:
        for _ in range(KILLS):
            with doomed(tmp_path) as (url, process):
                stop = threading.Event()
                places = [url] * (CLIENTS - 2) + [lasting.url] * 2
                threads = [threading.Thread(target=clients.push_until, args=(stop, place)) for place in places]
                for thread in threads:
                    thread.start()
                time.sleep(chance.uniform(0.1, 1.5))
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                stop.set()
                for thread in threads:
                    thread.join()
            waiting += orphaned(platform.settings)
    offline = OfflineStore(platform.settings.place(platform.settings.offline))
    online = open_online_store(platform.settings.online_url)
    # As `feature-assets reconcile` does: what waits in journals, then notes of those who died while they settled keys.
    drain_orphans(platform.settings, offline, online)
    reconcile(TRIPS, offline, online)
    rows: dict[str, Any] = offline.scan(TRIPS).select("driver_id", "at", "km").collect().to_dict(as_series=False)
    found = rows["driver_id"]
    assert clients.refused == []
    assert clients.answered <= set(found), f"{len(clients.answered - set(found))} answered rows are lost"
    assert len(found) == len(set(found)), "rows are there twice"
    assert all(km == driver / 8 for driver, km in zip(found, rows["km"], strict=True))
    served = pl.concat(online.scan(TRIPS))
    assert clients.answered <= set(served["driver_id"])
    assert verify(TRIPS, offline, online).total == 0
    assert pending(TRIPS, offline, online) == ()
    assert waiting > 0, "some were killed with rows in their journal"
    tell(
        "pushes under kill -9",
        kills=KILLS,
        answered=len(clients.answered),
        lost=0,
        doubled=0,
        left_in_a_journal=f"{waiting} times",
        seconds=round(time.monotonic() - begun),
    )
    online.close()
    platform.store.close()
