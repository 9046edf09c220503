"""From a broker to both stores: rows a second, and how long a record takes, against a consumer by hand.

    python -m benchmarks.stream [rows] [seconds of latency] [rounds]

The limit decodes JSON by msgspec, appends to Delta and puts each key's last row into SQLite, batch by batch, and commits
its offsets to Kafka: no types are compared, nothing is checked, nothing tells whether a row is there already, no partition
is kept, no ledger, nothing is forced to disk. Both read the same topic in a process of their own, in turn; what they have at
the end is compared row by row. Latency is from the moment at which a record is handed to the producer until it is read
online, at a fixed rate. The broker is Tansu in memory, which takes a part of the two processors.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import polars as pl

ROWS = 300_000
RATE = 1_000
DRIVERS = 10_000
AT = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=3)
TOPIC = "rides"
SESSION = {"session.timeout.ms": "6000", "heartbeat.interval.ms": "500", "log_level": "0"}


def view() -> Any:
    from feature_assets.spec import Entity, Field, Stream, TimePartitions, ViewSpec
    from feature_assets.types import Float64, Int64, String

    daily = TimePartitions(cron="0 0 * * *", timezone="UTC", start="2024-01-01T00:00:00+00:00", fmt="%Y-%m-%d")
    return ViewSpec(
        name="trips",
        entities=(Entity("driver", {"driver_id": Int64}),),
        features=(Field("km", Float64), Field("city", String), Field("people", Int64)),
        event_timestamp="at",
        partitions={"partition": daily},
        stream=Stream("rides"),
    )


def record(number: int) -> dict[str, Any]:
    """Times grow, and each driver comes again and again."""
    at = AT + timedelta(milliseconds=200 * number)
    return {
        "driver_id": number * 7919 % DRIVERS,
        "at": at.isoformat().replace("+00:00", "Z"),
        "km": number / 8,
        "city": "Ulm",
        "people": number % 4,
    }


def prepare(folder: Path, address: str) -> Path:
    """A published view with a Kafka source; the settings file."""
    from feature_assets.config import Settings
    from feature_assets.registry import Registry, RegistryStore
    from feature_assets.spec import KafkaSource

    file = folder / "feature_assets.toml"
    lines = [f'"{name}" = "{value}"' for name, value in {"bootstrap.servers": address, **SESSION}.items()]
    file.write_text(
        "\n".join(['registry = "registry"', "[stream]", "seconds = 0.25", "[stream.connections.kafka]", *lines])
    )
    settings = Settings.load(file)
    source = KafkaSource(name="rides", connection="kafka", topics=(TOPIC,))
    registry = Registry.of([view(), source])
    RegistryStore(settings.place(settings.registry)).publish(registry, location="benchmark", by="benchmark")
    return file


class Row(msgspec.Struct, gc=False):
    driver_id: int
    at: str
    km: float
    city: str
    people: int


def by_hand(folder: Path, address: str) -> None:
    """The limit: consumes until it is told to end."""
    from confluent_kafka import Consumer
    from deltalake import write_deltalake

    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "hand",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            **SESSION,
        }
    )
    consumer.subscribe([TOPIC])
    online = sqlite3.connect(folder / "hand.db")
    online.execute("PRAGMA journal_mode = WAL")
    online.execute("CREATE TABLE trips (driver_id INTEGER PRIMARY KEY, at INTEGER, km REAL, city TEXT, people INTEGER)")
    online.commit()
    decode = msgspec.json.Decoder(Row).decode
    put = "INSERT INTO trips VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET at = excluded.at, km = excluded.km, "
    put += "city = excluded.city, people = excluded.people WHERE excluded.at >= at"
    while not ended:
        messages, until = [], time.monotonic() + 0.25
        while len(messages) < 20_000 and (left := until - time.monotonic()) > 0:
            messages += consumer.consume(20_000 - len(messages), left)
        rows = [decode(one.value()) for one in messages if one.error() is None]
        if not rows:
            continue
        columns = list(zip(*map(msgspec.structs.astuple, rows), strict=True))
        frame = pl.DataFrame(columns, schema=["driver_id", "at", "km", "city", "people"]).with_columns(
            pl.col("at").str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ", time_unit="us", time_zone="UTC")
        )
        write_deltalake(str(folder / "hand"), frame.to_arrow(), mode="append")
        last = frame.unique("driver_id", keep="last").with_columns(pl.col("at").to_physical())
        with online:
            online.executemany(put, last.rows())
        consumer.commit(asynchronous=True)
    consumer.close()
    online.close()


@contextmanager
def running(which: str, folder: Path, address: str) -> Iterator[None]:
    """One of the two consumers, in a process of its own."""
    if which == "ours":
        command = [sys.executable, "-m", "feature_assets.cli", "stream", "run"]
    else:
        command = [sys.executable, "-m", "benchmarks.stream", "hand", str(folder), address]
    environment = {**os.environ, "FEATURE_ASSETS_CONFIG": str(folder / "feature_assets.toml")}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as consumer:
        try:
            yield
        finally:
            consumer.terminate()
            _, said = consumer.communicate()
    assert consumer.returncode == 0, said.decode()


def history(which: str, folder: Path) -> pl.LazyFrame:
    from feature_assets.offline import OfflineStore

    if which == "ours":
        return OfflineStore(str(folder / ".feature_assets" / "offline")).scan(view())
    return pl.scan_delta(str(folder / "hand"))


def online_file(which: str, folder: Path) -> Path:
    return folder / ".feature_assets" / "online.db" if which == "ours" else folder / "hand.db"


def served(which: str, folder: Path) -> pl.DataFrame:
    if which == "ours":
        from feature_assets.online import open_online_store

        store = open_online_store(f"sqlite:{online_file(which, folder)}")
        rows = pl.concat([pl.DataFrame(batch) for batch in store.scan(view())])
        store.close()
    else:
        with sqlite3.connect(online_file(which, folder)) as online:
            found = online.execute("SELECT driver_id, at, km, city, people FROM trips").fetchall()
        rows = pl.DataFrame(found, schema=["driver_id", "at", "km", "city", "people"], orient="row")
    return rows.select("driver_id", pl.col("km").cast(pl.Float64), "city", "people").sort("driver_id")


class Probe:
    """Reads one key of a consumer's online store, as cheaply as may be: its kilometres, None while there are none."""

    def __init__(self, which: str, folder: Path) -> None:
        self._file, self._which, self._online = online_file(which, folder), which, None

    def km(self, driver: int) -> float | None:
        with suppress(sqlite3.OperationalError):
            if self._online is None and self._file.exists():
                self._online = sqlite3.connect(f"file:{self._file}?mode=ro", uri=True)
                tables = [
                    name for (name,) in self._online.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
                ]
                self._table = next((name for name in tables if name.startswith("trips")), None)
                if self._table is None:
                    self._online.close()
                    self._online = None
            if self._online is not None:
                row = self._online.execute(f'SELECT km FROM "{self._table}" WHERE driver_id = ?', (driver,)).fetchone()
                return None if row is None else row[0]
        return None

    def close(self) -> None:
        if self._online is not None:
            self._online.close()


def throughput(which: str, folder: Path, probe: "Probe", rows: int) -> float:
    """Rows a second, from the first batch that is served until the last one is."""
    first, last = record(0)["driver_id"], record(rows - 1)
    while probe.km(first) is None:
        time.sleep(0.002)
    begun, counted = time.perf_counter(), history(which, folder).select(pl.len()).collect().item()
    while probe.km(last["driver_id"]) != last["km"]:
        time.sleep(0.002)
    return (rows - counted) / (time.perf_counter() - begun)


def latency(producer: Any, probe: "Probe", rows: int, seconds: float) -> list[float]:
    """Seconds from a record's sending until it is served, of 20 a second among those that are sent at the rate."""
    found, begun = list[float](), time.perf_counter()
    waiting = dict[int, tuple[float, float]]()
    end = rows + int(RATE * seconds)
    for number in range(rows, end):
        due = begun + (number - rows) / RATE
        while (wait := due - time.perf_counter()) > 0:
            look(probe, waiting, found)
            time.sleep(min(wait, 0.002))
        one = record(number)
        producer.produce(TOPIC, json.dumps(one))
        producer.poll(0)
        # The last one too: whoever has that has all.
        if number % (RATE // 20) == 0 or number == end - 1:
            waiting[one["driver_id"]] = one["km"], time.perf_counter()
    producer.flush()
    while waiting:
        look(probe, waiting, found)
        time.sleep(0.002)
    return sorted(found)


def look(probe: Probe, waiting: dict[int, tuple[float, float]], found: list[float]) -> None:
    for driver, (km, sent) in list(waiting.items()):
        seen = probe.km(driver)
        if seen is not None and seen >= km:
            found.append(time.perf_counter() - sent)
            del waiting[driver]


def measure(folder: Path, rows: int, seconds: float) -> dict[str, tuple[float, float, float]]:
    """For each: rows a second, and seconds at the median and the 99th percentile."""
    from confluent_kafka import Producer

    from examples.nyc_flights.demo_stream import broker

    figures = {}
    sent: dict[str, int] = {}
    for which in ("hand", "ours"):
        place = folder / which
        place.mkdir()
        with broker(place, TOPIC, partitions=1) as address:
            prepare(place, address)
            told = {"linger.ms": 1, "queue.buffering.max.messages": 2_000_000, "log_level": "0"}
            producer = Producer({"bootstrap.servers": address, **told})
            for number in range(rows):
                producer.produce(TOPIC, json.dumps(record(number)))
                if number % 1000 == 0:
                    producer.poll(0)
            assert producer.flush(120) == 0
            probe = Probe(which, place)
            with running(which, place, address):
                rate = throughput(which, place, probe, rows)
                times = latency(producer, probe, rows, seconds)
            probe.close()
            sent[which] = rows + int(RATE * seconds)
            figures[which] = rate, times[len(times) // 2], times[int(len(times) * 0.99)]
    columns = ["driver_id", "at", "km", "city", "people"]
    both = [history(which, folder / which).select(columns).sort("at").collect() for which in ("hand", "ours")]
    heights = [frame.height for frame in both]
    assert heights == [sent["hand"], sent["ours"]], f"{heights} rows in history, of {sent} sent"
    differing = both[0].join(both[1], on=columns, how="anti").height
    assert not differing, f"{differing} rows of their histories differ"
    assert served("hand", folder / "hand").equals(served("ours", folder / "ours")), "what they serve differs"
    return figures


def main(rows: int = ROWS, seconds: float = 10.0, rounds: int = 1) -> None:
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="stream-") as folder:
            found.append(measure(Path(folder), rows, seconds))
    print(
        f"{rows:,} rows from a broker to both stores; latency at {RATE:,} rows a second for {seconds:.0f} s, {rounds} rounds"
    )
    print(f"{'':8}{'rows a second':>16}{'p50, ms':>12}{'p99, ms':>12}")
    for which in ("hand", "ours"):
        rate, half, most = (median(one[which][at] for one in found) for at in range(3))
        print(f"{which:8}{rate:>16,.0f}{half * 1000:>12,.0f}{most * 1000:>12,.0f}")
    ratio = median(one["ours"][0] / one["hand"][0] for one in found)
    print(f"\nours against the limit: {ratio:.2f}; what both have at the end is the same, row by row")


if __name__ == "__main__":
    if sys.argv[1:2] == ["hand"]:
        by_hand(Path(sys.argv[2]), sys.argv[3])
    else:
        main(*[kind(word) for kind, word in zip((int, float, int), sys.argv[1:], strict=False)])
