"""What Prometheus reads: who may, what is counted, and that several processes count as one."""

import asyncio
import gc
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from feature_assets.access import Decision
from feature_assets.errors import StoreUnavailable
from feature_assets.online.protocol import Answer, Question, Reader, ReadsTogether
from feature_assets.server import metrics
from feature_assets.server.meters import Histogram, Meters, ValueMeter, ViewMeter
from feature_assets.server.metrics import METRICS, Spread
from feature_assets.server.workers import Workers, merged
from feature_assets.spec import ViewSpec
from tests.server.conftest import DRIVERS, HOUR, WEATHER, Platform, bearer, client_of, fill, served

ASK = "/get-online-features"
Numbers = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Platform]:
    made = Platform(tmp_path)
    fill(made)
    yield made
    made.store.close()


def read(text: str) -> Numbers:
    """Every sample, by its name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def number(found: Numbers, name: str, **labels: str) -> float:
    """The sum of the samples with these labels, whatever others they have."""
    wanted = set(labels.items())
    return sum(value for (one, of), value in found.items() if one == name and wanted <= set(of))


async def scraped(http: httpx.AsyncClient, platform: Platform) -> Numbers:
    answer = await http.get("/metrics", headers=bearer(platform.token("admin")))
    assert answer.status_code == 200, answer.text
    return read(answer.text)


async def ask(http: httpx.AsyncClient, token: str, features: Any, **entities: list[Any]) -> None:
    question = {"feature_service": features} if isinstance(features, str) else {"features": features}
    answer = await http.post(ASK, json={**question, "entities": entities}, headers=bearer(token))
    assert answer.status_code == 200, answer.text


async def test_nobody_sees_them_without_the_scope(http, platform):
    assert (await http.get("/metrics")).status_code == 401
    refused = await http.get("/metrics", headers=bearer(platform.token("features:read", "registry:read")))
    assert refused.status_code == 403
    assert 'scope="admin"' in refused.headers["www-authenticate"]
    seen = await http.get("/metrics", headers=bearer(platform.token("admin")))
    assert seen.status_code == 200
    assert seen.headers["content-type"].startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize(
    "client, headers, status",
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("10.1.2.3", {}, 401),
        ("testclient", {}, 401),
        ("127.0.0.1", {"x-forwarded-for": "10.1.2.3"}, 401),
        ("127.0.0.1", {"forwarded": "for=10.1.2.3"}, 401),
    ],
)
async def test_the_machine_itself_may_where_the_settings_say_so(client, headers, status, tmp_path):
    platform = Platform(tmp_path, metrics="loopback")
    platform.publish()
    app = platform.app()
    async with client_of(app):
        transport = httpx.ASGITransport(app, client=(client, 50_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:6566") as http:
            assert (await http.get("/metrics", headers=headers)).status_code == status
    platform.store.close()


async def test_what_became_of_every_value_is_counted_by_view(own):
    async with client_of(own.app()) as http:
        token = own.token()
        # All there, then one of each kind: null in LGA, expired in EWR, no such airport.
        await ask(http, token, ["weather:temp", "weather:wind"], origin=["JFK"])
        await ask(http, token, ["weather:temp", "weather:wind"], origin=["JFK", "LGA", "EWR", "XXX"])
        await ask(http, token, ["driver_stats:trips", "driver_stats:email"], driver_id=[1, 2])
        await ask(http, token, "flying", origin=["JFK", "XXX"], layers=[1, 1])
        found = await scraped(http, own)

    def of(view: str, status: str) -> float:
        return number(found, "feature_assets_values_total", view=view, status=status)

    # The service asks for the wind of the view too; what only feeds an on-demand feature is in no answer.
    assert of("weather", "PRESENT") == 2 + 3 + 1
    assert of("weather", "NULL_VALUE") == 1
    assert of("weather", "OUTSIDE_MAX_AGE") == 2
    assert of("weather", "NOT_FOUND") == 2 + 1
    assert (of("driver_stats", "PRESENT"), of("driver_stats", "MASKED")) == (2, 2)
    assert (of("comfort", "PRESENT"), of("comfort", "NULL_VALUE")) == (1, 1)
    assert number(found, "feature_assets_store_rows_total", view="weather") == 1 + 4 + 2
    assert number(found, "feature_assets_store_read_seconds_count", view="weather") == 3
    assert number(found, "feature_assets_on_demand_seconds_count") == 1


async def test_the_age_of_data_counts_from_the_present_of_the_settings(own):
    """JFK's row is an hour old, LGA's has just come, nothing is known of XXX."""
    async with client_of(own.app()) as http:
        token = own.token()
        for origin in ("JFK", "JFK", "LGA", "XXX"):
            await ask(http, token, ["weather:temp"], origin=[origin])
        found = await scraped(http, own)
    name = "feature_assets_data_age_seconds"
    assert number(found, f"{name}_sum", view="weather") == pytest.approx(2 * HOUR.total_seconds())
    assert number(found, f"{name}_bucket", view="weather", le="1.0") == 1
    assert number(found, f"{name}_bucket", view="weather", le="900.0") == 1
    assert number(found, f"{name}_bucket", view="weather", le="3600.0") == 3
    assert number(found, f"{name}_count", view="weather") == 3


async def test_of_a_read_of_many_rows_every_row_has_its_turn():
    found: tuple[list[int | None], list[Any]] = ([1_000_000 * event for event in range(1, 101)], [])
    meter = ViewMeter(clock=lambda: 101.0)
    metered = meter.metered(lambda _keys: found)
    for _ in range(100):
        metered([()] * 100)
    assert meter.age.spread().total == pytest.approx(sum(range(1, 101)))


async def test_a_row_from_the_future_is_no_younger_than_now():
    meter = ViewMeter(clock=lambda: 100.0)
    meter.metered(lambda _keys: ([200_000_000], []))([()])
    assert meter.age.spread() == Spread((1, *[0] * len(metrics.DATA_AGE.bounds)), 0.0)


async def test_a_store_that_fails_is_counted_by_view(own):
    async with client_of(own.app()) as http:
        await ask(http, own.token(), ["weather:temp"], origin=["JFK"])
        own.store.drop(own.objects[0])
        body = {"features": ["weather:temp"], "entities": {"origin": ["JFK"]}}
        assert (await http.post(ASK, json=body, headers=bearer(own.token()))).status_code == 503
        found = await scraped(http, own)
    assert number(found, "feature_assets_store_read_failures_total", view="weather") >= 1
    assert number(found, "feature_assets_request_seconds_count", route=ASK, status="503") == 1


async def test_what_a_client_makes_up_is_no_series_of_its_own(own):
    async with client_of(own.app()) as http:
        for path in ("/wp-admin", "/a/b/c", f"{ASK}/x"):
            await http.get(path)
        await http.post("/")
        await http.request("BREW", "/health")
        await http.get("/health")
        found = await scraped(http, own)
    labels = {of for name, of in found if name == "feature_assets_request_seconds_count"}
    assert {dict(one)["route"] for one in labels} == {"other", "/health"}
    assert {dict(one)["method"] for one in labels} == {"GET", "POST", "other"}


async def test_the_snapshot_in_force_its_age_and_every_look_at_the_registry(own):
    published = own.registry.read()
    async with client_of(own.app()) as http:
        before = await scraped(http, own)
        own.objects.pop()
        digest = own.publish()
        for _ in range(200):
            found = await scraped(http, own)
            if number(found, "feature_assets_registry_refreshes_total", outcome="taken_up") == 2:
                break
            await _moment()
        own.registry._objects.delete("latest.json")
        for _ in range(200):
            failed = await scraped(http, own)
            if number(failed, "feature_assets_registry_refreshes_total", outcome="failed"):
                break
            await _moment()
    name = "feature_assets_registry_snapshot_info"
    assert number(before, name, digest=published.digest) == 1
    assert number(before, "feature_assets_registry_snapshot_timestamp_seconds") == published.published_at.timestamp()
    assert number(found, name, digest=digest) == number(found, name) == 1
    assert number(failed, "feature_assets_registry_refreshes_total", outcome="failed") >= 1
    now = datetime.now(UTC).timestamp()
    assert now - 60 < number(failed, "feature_assets_registry_refresh_timestamp_seconds") <= now


async def _moment() -> None:
    await asyncio.sleep(0.02)


async def test_every_metric_is_announced_before_anything_happened(own):
    async with client_of(own.app()) as http:
        text = (await http.get("/metrics", headers=bearer(own.token("admin")))).text
    announced = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    assert announced == set(METRICS)


def test_asking_for_a_meter_again_leaves_nothing_to_be_collected():
    """Views are asked for whenever a registry is taken up, and the server collects rarely."""
    meters = Meters()
    first = meters.view("weather")
    gc.collect()
    for _ in range(100):
        assert meters.view("weather") is first
    assert gc.collect() < 10


def test_threads_lose_no_count():
    meters = Meters()
    histogram, view = meters.histogram(metrics.ON_DEMAND_SECONDS), meters.view("weather")
    metered: Reader = view.metered(lambda _keys: ([None], []))
    several = [view, view, None]
    values = ValueMeter(several)

    def work() -> None:
        for _ in range(20_000):
            histogram.add(0.01)
            metered([()])
            values.all_present(1)
            values.add(0, ["NOT_FOUND", "PRESENT"])
            meters.count(metrics.REFRESHES, "failed")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(histogram.spread().counts) == 80_000
    assert view.rows == 80_000
    assert sum(view.seconds.spread().counts) == 80_000
    assert view.statuses["PRESENT"] == 3 * 80_000
    assert view.statuses["NOT_FOUND"] == 80_000
    assert meters.collect()[metrics.REFRESHES.name, ("failed",)] == 80_000


def test_reads_that_a_store_answers_together_are_counted_each():
    """Whatever way a store reads, and with the readers that it made itself."""

    class Together:
        def reader(self, view: ViewSpec, features: Sequence[str]) -> Reader:
            return partial(self._read, view)

        def _read(self, view: ViewSpec, keys: Sequence[Any]) -> Answer:
            return [None] * len(keys), []

        def read_together(self, questions: Sequence[Question]) -> list[Answer]:
            assert all(reader.func == self._read for reader, _ in questions)
            if len(questions[0][1]) == 3:
                raise StoreUnavailable("away")
            return [reader(keys) for reader, keys in questions]

    meters = Meters()
    store = meters.reads(Together())
    assert isinstance(store, ReadsTogether)
    readers = [store.reader(WEATHER, ["temp"]), store.reader(DRIVERS, ["trips"])]
    assert [len(events) for events, _ in store.read_together([(one, [(), ()]) for one in readers])] == [2, 2]
    readers[0]([()])
    with pytest.raises(StoreUnavailable):
        store.read_together([(one, [()] * 3) for one in readers])
    assert (meters.view("weather").rows, meters.view("driver_stats").rows) == (3, 2)
    assert (meters.view("weather").failures, meters.view("driver_stats").failures) == (1, 1)
    assert sum(meters.view("weather").seconds.spread().counts) == 2


async def test_decisions_by_what_decided(own):
    """Scopes and policies name views, of which there may be any number; a label has a few words."""
    async with client_of(own.app()) as http:
        body = {"features": ["weather:temp"], "entities": {"origin": ["JFK"]}}
        for scope in ("features:read", "features:read:weather", "features:read:wea*"):
            assert (await http.post(ASK, json=body, headers=bearer(own.token(scope)))).status_code == 200
        for scope in ("registry:read", "features:read:other"):
            assert (await http.post(ASK, json=body, headers=bearer(own.token(scope)))).status_code in (403, 404)
        assert (await http.post(ASK, json=body)).status_code == 401
        assert (await http.post(ASK, json=body, headers=bearer("no.such.token"))).status_code == 401
        found = await scraped(http, own)
    name = "feature_assets_decisions_total"
    assert number(found, name, act="features:read", outcome="allowed", rule="scope") == 3
    assert number(found, name, act="features:read", outcome="refused", rule="scope") == 2
    assert number(found, name, outcome="unauthenticated", rule="token") == 2


@pytest.mark.parametrize(
    "rule, kind",
    [
        ("scope features:read", "scope"),
        ("no scope features:read", "scope"),
        ("scope features:read:weather; read policy of weather: role:risk", "policy"),
        ("read policy of weather", "policy"),
        ("row filter of weather on origin", "row_filter"),
        ("no such feature view", "unknown"),
    ],
)
def test_a_rule_is_counted_under_a_word(rule, kind):
    meters = Meters()
    meters.decided(Decision("features:read", (), allowed=True, rule=rule))
    assert meters.collect()[metrics.DECISIONS.name, ("features:read", "allowed", kind)] == 1


def test_a_histogram_counts_up_to_and_with_each_bound():
    histogram = Histogram(metrics.Metric("x", "histogram", "x", (), (1.0, 2.0)))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.add(value)
    assert histogram.spread() == Spread((2, 2, 1), 7.5)


def test_values_of_several_processes_go_together_as_their_metric_says():
    name, labels = metrics.REQUEST_SECONDS.name, ("GET", "/health", "200")
    one = {
        (metrics.VALUES.name, ("weather", "PRESENT")): 2.0,
        (metrics.SNAPSHOT_INFO.name, ("abc",)): 1.0,
        (metrics.REFRESH_TIME.name, ()): 100.0,
        (name, labels): Spread((1, 2), 0.5),
    }
    other = {
        (metrics.VALUES.name, ("weather", "PRESENT")): 3.0,
        (metrics.SNAPSHOT_INFO.name, ("abc",)): 1.0,
        (metrics.REFRESH_TIME.name, ()): 90.0,
        (name, labels): Spread((4, 0), 0.25),
    }
    assert merged([one, other]) == {
        (metrics.VALUES.name, ("weather", "PRESENT")): 5.0,
        (metrics.SNAPSHOT_INFO.name, ("abc",)): 1.0,
        (metrics.REFRESH_TIME.name, ()): 90.0,
        (name, labels): Spread((5, 2), 0.75),
    }


def test_who_comes_after_counts_on_in_the_same_place(tmp_path):
    """And what was true only of the one who went is not told any more."""
    key, gauge = (metrics.REFRESHES.name, ("failed",)), (metrics.WORKERS.name, ())
    first = Workers(meters := Meters(), tmp_path)
    meters.count(metrics.REFRESHES, "failed", by=3)
    assert first.collect()[key] == 3
    second = Workers(Meters(), tmp_path)
    assert second.collect()[key] == 3
    assert second.collect()[gauge] == 2
    first.close()
    assert second.collect()[key] == 3
    assert second.collect()[gauge] == 1
    third = Workers(meters := Meters(), tmp_path)
    meters.count(metrics.REFRESHES, "failed")
    assert third.collect()[key] == 4
    assert second.collect()[key] == 4
    assert sorted(path.name for path in tmp_path.glob("*.counts")) == ["0.counts", "1.counts"]


def test_several_processes_are_seen_as_one_and_a_killed_one_takes_no_count_with_it(own, tmp_path):
    """The processes of one server, over sockets; whichever answers tells of all."""
    headers = bearer(own.token("admin", "features:read"))
    body = {"features": ["weather:temp"], "entities": {"origin": ["JFK"]}}

    # A connection for each request, as it is the connection that chooses the process.
    http = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0), headers=headers, timeout=20)

    def scrape() -> Numbers:
        return read(http.get(f"{url}/metrics").text)

    with served(own, tmp_path / "server.log", workers=2) as (host, port):
        url = f"http://{host}:{port}"
        for _ in range(60):
            assert http.post(f"{url}{ASK}", json=body).status_code == 200
        asked = {"route": ASK, "status": "200"}
        _until(lambda: number(scrape(), "feature_assets_request_seconds_count", **asked) == 60)
        assert number(scrape(), "feature_assets_values_total", view="weather", status="PRESENT") == 60
        _until(lambda: number(scrape(), "feature_assets_workers") == 2)
        # The one that answers this request goes; another takes its place, and its counts are still there.
        time.sleep(1.5)
        os.kill(_a_worker(tmp_path / "server.log"), signal.SIGKILL)
        for _ in range(100):
            try:
                assert number(scrape(), "feature_assets_request_seconds_count", **asked) == 60
            except httpx.TransportError:
                continue
            time.sleep(0.02)
        _until(lambda: number(scrape(), "feature_assets_workers") == 2)
        assert number(scrape(), "feature_assets_request_seconds_count", **asked) == 60


def _until(holds: Any) -> None:
    for _ in range(400):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it never came to hold")


def _a_worker(log: Path) -> int:
    """The process id of one of the workers, as uvicorn's log has it."""
    found = re.findall(r"Started server process \[(\d+)\]", log.read_text())
    return int(found[0])
