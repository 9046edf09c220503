"""What was served is logged bit for bit, once, whatever type it has and whoever dies."""

import os
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal as PyDecimal
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets import FeatureStore, Field, RequestSource
from feature_assets.errors import TableMissing
from feature_assets.lookup import EntityRows
from feature_assets.served.shape import log_store, shape_of
from feature_assets.served.writing import Served, ServedLog
from feature_assets.spec import LoggingConfig, OnDemandViewSpec, ServiceSpec, ViewProjection, ViewSpec
from feature_assets.transformations import declared_expressions
from feature_assets.types import Decimal, Float64, Int64, List, microseconds
from tests.promises.test_same_value import FEATURES, NOON, TYPED, TYPES, frame, platform, published
from tests.server.conftest import NOW, WEATHER, Platform, bearer, served
from tests.values import bits, values

REQUEST = {"price": Decimal(12, 3), "basket": List[Float64]}
ASKED = OnDemandViewSpec(
    name="asked",
    sources=(ViewProjection("typed", features=("f3",)),),
    request=(RequestSource("cart", tuple(Field(name, of) for name, of in REQUEST.items())),),
    features=(Field("same", Int64),),
    transformation=declared_expressions("asked", {"same": pl.col("f3")}),
)
SERVICE = ServiceSpec(name="all", features=(ViewProjection("typed"), ViewProjection("asked")), logging=LoggingConfig())
WEATHERED = ServiceSpec(name="weathered", features=(ViewProjection("weather"),), logging=LoggingConfig())
Request = tuple[PyDecimal | None, list[float | None] | None]
ROWS = st.lists(
    st.tuples(FEATURES, *(st.none() | values(of) for of in REQUEST.values()), st.sampled_from([0, 1, 7])),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory):
    with platform(tmp_path_factory.mktemp("served"), TYPED, ASKED, SERVICE) as store:
        yield store


def answer_logged(store: FeatureStore, log: ServedLog, service: str, entities: EntityRows, request: str) -> Any:
    """Have the answer to these entities logged, as the server has it."""
    answer = store.get_online_features(service, entities)
    shape = shape_of(store.registry, service)
    log.take(Served(shape, "digest", request, microseconds(NOON), entities, answer, 1))
    return answer


@settings(max_examples=20, deadline=None)
@given(ROWS)
def test_every_value_is_logged_and_trained_on_bit_for_bit(typed: FeatureStore, rows: list[Any]) -> None:
    """Statuses and event timestamps too; one key is not there, and some rows are past their ttl."""
    history = {((str(at), at), age): features for at, (features, _, _, age) in enumerate(rows)}
    published(typed, TYPED, frame(history))
    entities: dict[str, list[Any]] = {
        "code": [*(str(at) for at in range(len(rows))), "absent"],
        "number": [*range(len(rows)), 0],
        "price": [*(row[1] for row in rows), None],
        "basket": [*(row[2] for row in rows), None],
    }
    log = ServedLog(log_store(typed.settings), seconds=60, max_bytes=1 << 20)
    request = f"r-{time.time_ns()}"
    answer = answer_logged(typed, log, "all", entities, request)
    log.close()
    assert log.counts.written == {"all": len(rows) + 1}
    logged = typed.get_served_features("all", statuses=True).filter(pl.col("request_id") == request).collect()
    types = {**TYPES, "same": Int64}
    for name, of in types.items():
        assert bits(of.from_frame(logged[name])) == bits(answer[name]), name
        assert logged[f"{name}__status"].to_list() == answer.status(name)
    for name, of in REQUEST.items():
        assert bits(of.from_frame(logged[name])) == bits(entities[name]), name
    assert logged["event_timestamp__typed"].to_list() == answer.event_timestamps("f0")
    spine = logged.select(
        "code", "number", *REQUEST, "served_at", *(pl.col(name).alias(f"was_{name}") for name in TYPES)
    )
    trained = typed.get_historical_features(spine, "all", timestamp_column="served_at").collect()
    for name, of in TYPES.items():
        assert bits(of.from_frame(trained[f"was_{name}"])) == bits(answer[name]), name
        assert bits(of.from_frame(trained[name])) == bits(answer[name]), f"{name} as history has it"


def with_weather(folder: Path, **server: Any) -> Platform:
    made = Platform(folder, **server)
    made.add(WEATHER, ("JFK", NOW, 40.5, 11.0), ("LGA", NOW, None, 3.5))
    made.add(WEATHERED)
    made.publish()
    return made


def ask(made: Platform, address: tuple[str, int], times: int) -> list[str]:
    """Ask so often; the ids of the requests."""
    return [request for request, _ in answered(made, address, times)]


def answered(made: Platform, address: tuple[str, int], times: int) -> Iterator[tuple[str, str]]:
    """Ask so often; the id of each request, and the registry that it was answered by."""
    body = {"feature_service": "weathered", "entities": {"origin": ["JFK", "LGA"]}}
    headers = bearer(made.token())
    for _ in range(times):
        # A connection of its own each: processes share them out.
        answer = httpx.post("http://{}:{}/get-online-features".format(*address), json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        yield answer.headers["x-request-id"], answer.headers["x-feature-registry"]


def in_log(made: Platform) -> list[tuple[str, int]]:
    with FeatureStore(made.settings) as store:
        try:
            rows = store.get_served_features("weathered").collect()
        except TableMissing:
            return []
        return rows.select("request_id", "request_row").rows()


def rows_of(requests: list[str]) -> list[tuple[str, int]]:
    return sorted((request, row) for request in requests for row in (0, 1))


def test_several_processes_log_each_answer_once(tmp_path: Path) -> None:
    made = with_weather(tmp_path, feature_log_seconds=0.1)
    with served(made, tmp_path / "server.log", workers=2) as address:
        asked = ask(made, address, 60)
    assert sorted(in_log(made)) == rows_of(asked)
    assert len({request.split("-")[0] for request in asked}) == 2, "both have answered"
    made.store.close()


def test_a_killed_server_loses_what_it_had_not_written_and_nothing_else(tmp_path: Path) -> None:
    made = with_weather(tmp_path, feature_log_seconds=0.5)
    with served(made, tmp_path / "server.log", ends=(-signal.SIGKILL,)) as address:
        before = ask(made, address, 10)
        for _ in range(600):
            if len(in_log(made)) == 20:
                break
            time.sleep(0.05)
        assert sorted(in_log(made)) == rows_of(before), "what was written is seen while the server lives"
        late = ask(made, address, 10)
        os.kill(int((tmp_path / "server.pid").read_text()), signal.SIGKILL)
        time.sleep(0.1)
    left = in_log(made)
    assert len(set(left)) == len(left), "nothing twice"
    assert set(rows_of(before)) <= set(left) <= set(rows_of(before + late))
    with served(made, tmp_path / "again.log") as address:
        after = ask(made, address, 5)
    assert set(in_log(made)) == set(left) | set(rows_of(after))
    made.store.close()


def test_the_log_goes_on_while_its_service_changes(tmp_path: Path) -> None:
    """A feature comes, one goes, one gets another type: each row is read as the service is now."""
    made = with_weather(tmp_path)
    other = ViewSpec(
        name="comfort_index",
        entities=WEATHER.entities,
        event_timestamp="at",
        features=(Field("felt", Float64),),
        ttl=timedelta(hours=1),
    )
    made.add(other, ("JFK", NOW, 7.5))
    log = ServedLog(log_store(made.settings), seconds=60, max_bytes=1 << 20)

    def serve(request: str, *views: ViewProjection) -> None:
        made.objects = [one for one in made.objects if one != WEATHERED and not isinstance(one, ServiceSpec)]
        made.add(ServiceSpec(name="weathered", features=views, logging=LoggingConfig()))
        made.publish()
        with FeatureStore(made.settings) as store:
            answer_logged(store, log, "weathered", {"origin": ["JFK"]}, request)

    serve("a", ViewProjection("weather"))
    serve("b", ViewProjection("weather"), ViewProjection("comfort_index"))
    serve("c", ViewProjection("weather", features=("wind",)), ViewProjection("comfort_index"))
    log.close()
    assert log.counts.written == {"weathered": 3}
    with FeatureStore(made.settings) as store:
        found = store.get_served_features("weathered").collect().sort("request_id")
    assert found.select("request_id", "wind", "felt").rows() == [("a", 11.0, None), ("b", 11.0, 7.5), ("c", 11.0, 7.5)]
    made.store.close()


def test_a_server_logs_on_while_a_feature_gets_another_type(tmp_path: Path) -> None:
    """The view goes to version 2 under a server that answers: every answer of either version is in the log, once."""
    made = with_weather(tmp_path, feature_log_seconds=0.1)
    made.past(WEATHER, ("JFK", NOW, 40.5, 11.0), ("LGA", NOW, None, 3.5))
    with served(made, tmp_path / "server.log", workers=2) as address:
        asked = {"wind of floats": ask(made, address, 10)}
        retyped = msgspec.structs.replace(WEATHER, version=2, features=(Field("temp", Float64), Field("wind", Int64)))
        made.objects.remove(WEATHER)
        made.add(retyped, ("JFK", NOW, 40.5, 12), ("LGA", NOW, None, 4))
        made.past(retyped, ("JFK", NOW, 40.5, 12), ("LGA", NOW, None, 4))
        digest, both = made.publish(), list[tuple[str, str]]()
        while {by for _, by in both[-20:]} != {digest}:
            both += answered(made, address, 20)
        asked["while both are served"] = [request for request, _ in both]
        asked["wind of whole numbers"] = ask(made, address, 10)
    with FeatureStore(made.settings) as store:
        rows = store.get_served_features("weathered", statuses=True).collect()
        skew = {one.feature: (one.rows, one.equal) for one in store.skew("weathered")}
    assert sorted(rows.select("request_id", "request_row").rows()) == rows_of([*chain(*asked.values())])
    wind = {name: set(rows.filter(pl.col("request_id").is_in(of))["wind"]) for name, of in asked.items()}
    assert wind["wind of floats"] == {None}
    assert wind["wind of whole numbers"] == {12, 4}
    whole = rows.filter(pl.col("wind__status").is_not_null()).height
    assert skew == {"temp": (rows.height, rows.height), "wind": (whole, whole)}
    made.store.close()


def test_a_full_disk_is_told_and_the_log_goes_on_when_there_is_room(small_disk: Path) -> None:
    made = with_weather(small_disk)
    log = ServedLog(log_store(made.settings), seconds=0.05, max_bytes=1 << 20)
    with FeatureStore(made.settings) as store:
        filler = small_disk / "filler"
        fill(filler)
        answer_logged(store, log, "weathered", {"origin": ["JFK"]}, "full")
        wait_until(lambda: log.counts.failures.get("weathered", 0) >= 2)
        answer_logged(store, log, "weathered", {"origin": ["LGA"]}, "still full")
        assert log.waiting_bytes == 2
        filler.unlink()
        wait_until(lambda: log.counts.written.get("weathered", 0) == 2)
        log.close()
        found = store.get_served_features("weathered").collect()
    assert sorted(found["request_id"]) == ["full", "still full"]
    assert log.counts.dropped == {}
    made.store.close()


def fill(file: Path) -> None:
    """Leave no room on the file's disk."""
    size = 1 << 16
    with file.open("wb", buffering=0) as target:
        while size:
            try:
                target.write(b"x" * size)
            except OSError:
                size //= 2


def wait_until(holds: Any) -> None:
    ends = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.02)
