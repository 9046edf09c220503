"""Pushes over HTTP come out as pushes to a store in this process, also where an answer is lost on the way."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from inspect import signature
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_assets import ChecksFailed, ContractBroken, FeatureStore, Forbidden, RequestError, UnknownView, WrongType
from feature_assets.access import Principal
from feature_assets.checks import InRange
from feature_assets.errors import UnknownSource
from feature_assets.offline import OfflineStore
from feature_assets.remote import RemoteFeatureStore
from feature_assets.settlement import verify
from feature_assets.spec import Entity, Field, PushSource, Stream, ViewSpec
from feature_assets.testing.values import ALL_TYPES, bits, optional
from feature_assets.types import Float64, Int64
from tests.remote.losing_proxy import LosingProxy, losing_proxy
from tests.server.conftest import DRIVER, Platform, served

NOW = datetime.now(UTC).replace(microsecond=250) - timedelta(hours=1)


def fed(name: str, *features: Field, entity: Entity = DRIVER, **more: Any) -> ViewSpec:
    return ViewSpec(
        name=name, entities=(entity,), event_timestamp="at", features=features, stream=Stream(f"{name}_rows"), **more
    )


TRIPS = fed("trips", Field("km", Float64), checks=(InRange("km", minimum=0),))
TOLD = fed("told", Field("km", Float64), created_timestamp="told_at")
TYPED = fed("typed", *(Field(f"f{n}", of) for n, of in enumerate(ALL_TYPES)), entity=Entity("thing", {"id": Int64}))
PLAIN = ViewSpec(name="plain", entities=(DRIVER,), event_timestamp="at", features=(Field("km", Float64),))
VIEWS = (TRIPS, TOLD, TYPED)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("pushes")
    made = Platform(folder)
    made.settings = made.settings.model_copy(
        update={
            "present": None,
            "durability": "process",
            "offline": str(folder / "offline"),
            "push": str(folder / "push"),
        }
    )
    made.objects += [*VIEWS, PLAIN, *(PushSource(name=f"{one.name}_rows") for one in VIEWS)]
    made.publish()
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def proxy(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LosingProxy]:
    with served(platform, tmp_path_factory.mktemp("server") / "log") as target, losing_proxy(target) as made:
        yield made


SCOPES = ("features:push", "features:read", "registry:read")


@pytest.fixture(scope="module")
def remote(platform: Platform, proxy: LosingProxy) -> Iterator[RemoteFeatureStore]:
    with FeatureStore.remote(proxy.url, token=lambda: platform.token(*SCOPES), timeout=60, deadline=60) as store:
        yield store


@pytest.fixture(scope="module")
def local(platform: Platform) -> Iterator[FeatureStore]:
    with FeatureStore(platform.settings, principal=Principal.of("tester", SCOPES)) as store:
        yield store


def kept(platform: Platform, view: ViewSpec, *drivers: int) -> list[tuple[Any, ...]]:
    rows = OfflineStore(platform.settings.place(platform.settings.offline)).scan(view).collect()
    return sorted(rows.filter(pl.col("driver_id").is_in(drivers)).select("driver_id", "km").rows())


def row(driver: int, km: Any = 2.5, at: Any = NOW, **more: Any) -> dict[str, Any]:
    return {"driver_id": driver, "at": at, "km": km, **more}


def test_the_signatures_are_the_same() -> None:
    for name in ("push", "push_async", "write_to_online_store", "write_to_online_store_async"):
        here, there = signature(getattr(FeatureStore, name)), signature(getattr(RemoteFeatureStore, name))
        assert here.parameters == there.parameters


@pytest.mark.parametrize("form", ["dicts", "columns", "polars", "lazy", "pandas", "arrow"])
def test_rows_come_in_every_form(form: str, platform: Platform, remote: RemoteFeatureStore) -> None:
    drivers = [100 + 2 * ["dicts", "columns", "polars", "lazy", "pandas", "arrow"].index(form) + n for n in (0, 1)]
    frame = pl.DataFrame([row(driver) for driver in drivers])
    forms: dict[str, Any] = {
        "dicts": frame.to_dicts(), "columns": frame.to_dict(as_series=False), "polars": frame, "lazy": frame.lazy(),
        "pandas": frame.to_pandas(), "arrow": frame.to_arrow(),
    }  # fmt: skip
    pushed = remote.push("trips_rows", forms[form])
    assert (pushed.rows, pushed.views) == (2, ("trips",))
    assert pushed.wait(30)
    assert kept(platform, TRIPS, *drivers) == [(driver, 2.5) for driver in drivers]
    found = remote.get_online_features(["trips:km"], {"driver_id": drivers})
    assert found.to_dict()["km"] == [2.5, 2.5]


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(*map(optional, ALL_TYPES)), min_size=1, max_size=3))
def test_values_of_every_type_arrive_bit_for_bit(
    platform: Platform, remote: RemoteFeatureStore, pieces: list[tuple[Any, ...]]
) -> None:
    test_values_of_every_type_arrive_bit_for_bit.turn += 10  # type: ignore[attr-defined]
    first: int = test_values_of_every_type_arrive_bit_for_bit.turn  # type: ignore[attr-defined]
    rows = [
        {"id": first + n, "at": NOW, **{f"f{m}": one for m, one in enumerate(piece)}} for n, piece in enumerate(pieces)
    ]
    remote.write_to_online_store("typed", rows)
    stored = OfflineStore(platform.settings.place(platform.settings.offline)).scan(TYPED).collect()
    for n, piece in enumerate(pieces):
        found = stored.filter(pl.col("id") == first + n)
        for m, (of, value) in enumerate(zip(ALL_TYPES, piece, strict=True)):
            assert bits(of.from_frame(found[f"f{m}"])) == bits([of.parse(value)])


test_values_of_every_type_arrive_bit_for_bit.turn = 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ["/push", "/write-to-online-store"])
@pytest.mark.parametrize("view", [TRIPS, TOLD], ids=lambda view: view.name)
def test_a_push_whose_answer_is_lost_is_sent_again_and_changes_nothing(
    path: str, view: ViewSpec, platform: Platform, proxy: LosingProxy, remote: RemoteFeatureStore
) -> None:
    """Also where the time at which the row was created is left to the server, which is another the second time."""
    driver = 200 + len(proxy.passed)
    proxy.passed.clear()
    proxy.losing[path] = 2
    if path == "/push":
        pushed = remote.push(f"{view.name}_rows", [row(driver)])
    else:
        pushed = remote.write_to_online_store(view.name, [row(driver)])
    assert proxy.passed == [path] * 3
    assert (pushed.rows, pushed.wait(30)) == (1, True)
    assert kept(platform, view, driver) == [(driver, 2.5)]
    assert remote.get_online_features([f"{view.name}:km"], {"driver_id": [driver]})["km"] == [2.5]
    offline = OfflineStore(platform.settings.place(platform.settings.offline))
    assert verify(view, offline, platform.store).total == 0


async def test_coroutines_push_beside_one_another_over_a_line_that_loses(
    platform: Platform, proxy: LosingProxy
) -> None:
    proxy.losing |= {"/push": 5, "/write-to-online-store": 5}
    drivers = list(range(1000, 1020))
    async with FeatureStore.remote(proxy.url, token=platform.token(*SCOPES), timeout=60, deadline=60) as store:
        pushes = [store.push_async("trips_rows", [row(driver)], event_id=f"e{driver}") for driver in drivers]
        writes = [store.write_to_online_store_async("trips", [row(driver + 100)]) for driver in drivers]
        done = await asyncio.gather(*pushes, *writes)
        for one in done:
            assert await asyncio.to_thread(one.wait, 30)
        again = await store.push_async("trips_rows", [row(drivers[0], 9.0)], event_id=f"e{drivers[0]}")
        assert await asyncio.to_thread(again.wait, 30)
    assert kept(platform, TRIPS, *drivers) == [(driver, 2.5) for driver in drivers]
    assert kept(platform, TRIPS, *(driver + 100 for driver in drivers)) == [(driver + 100, 2.5) for driver in drivers]


REFUSED: dict[str, tuple[str, tuple[Any, ...], type[Exception]]] = {
    "no source": ("push", ("trip_rows", [row(1)]), UnknownSource),
    "no view": ("write_to_online_store", ("trip", [row(1)]), UnknownView),
    "a view without a source": ("write_to_online_store", ("plain", [row(1)]), RequestError),
    "no key": ("push", ("trips_rows", [row(None)]), ContractBroken),  # type: ignore[arg-type]
    "the future": ("push", ("trips_rows", [row(1, at=NOW + timedelta(days=9))]), ContractBroken),
    "a check": ("push", ("trips_rows", [row(1, -1.0)]), ChecksFailed),
    "another type": ("push", ("trips_rows", [row(1, "far")]), WrongType),
    "an unknown field": ("push", ("trips_rows", [row(1, speed=1)]), RequestError),
    "no rows": ("push", ("trips_rows", []), RequestError),
    "no dicts": ("push", ("trips_rows", [1]), RequestError),
    "nothing with rows": ("push", ("trips_rows", 7), RequestError),
    "nanoseconds": (
        "push",
        ("trips_rows", pl.DataFrame([row(1)]).with_columns(at=pl.lit(1_700_000_000_000_000_001).cast(pl.Datetime("ns", "UTC")))),
        ValueError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("method, given, of", REFUSED.values(), ids=REFUSED)
def test_refusals_are_of_the_same_class(
    method: str, given: Any, of: type[Exception], local: FeatureStore, remote: RemoteFeatureStore
) -> None:
    for store in (local, remote):
        with pytest.raises(of):
            getattr(store, method)(*given)


def test_who_may_not_push_is_told_so(platform: Platform, proxy: LosingProxy) -> None:
    with FeatureStore.remote(proxy.url, token=platform.token("features:read")) as store:
        for push in (
            lambda: store.push("trips_rows", [row(1)]),
            lambda: store.write_to_online_store("trips", [row(1)]),
        ):
            with pytest.raises(Forbidden):
                push()


def test_whether_it_is_published_is_told_to_whoever_may_push(
    platform: Platform, remote: RemoteFeatureStore, proxy: LosingProxy
) -> None:
    """By any process: what another one has published the ledger tells."""
    pushed = remote.push("trips_rows", [row(300)])
    assert pushed.wait(30)
    later = type(pushed)(1, pushed.views, pushed.journal, pushed.sequence + 10**9, pushed._published)
    elsewhere = type(pushed)(1, pushed.views, "0" * 32, 1, pushed._published)
    assert (later.wait(0.2), elsewhere.wait(0.2)) == (False, False)
    with FeatureStore(platform.settings) as store:
        here = store.push("trips_rows", [row(301)])
        assert here.wait(30)
        assert type(pushed)(1, here.views, here.journal, here.sequence, pushed._published).wait(30)
    with FeatureStore.remote(proxy.url, token=platform.token("features:push:told")) as blind, pytest.raises(Forbidden):
        type(pushed)(1, ("trips",), pushed.journal, pushed.sequence, blind._published).wait(1)


def test_it_says_where_things_are(tmp_path: Path) -> None:
    with (
        FeatureStore.remote("http://127.0.0.1:9", token="t", deadline=0.1) as store,
        pytest.raises(OSError, match="reached"),
    ):
        store.push("trips_rows", [row(1)])
