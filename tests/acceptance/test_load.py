"""L1: a steady load of lookups with the token checked. What it reaches is told and not asserted: machines differ."""

import json
import time
from collections.abc import Iterator
from statistics import median

import httpx
import pytest

from benchmarks.load import is_installed, load
from feature_assets.spec import Field
from feature_assets.types import Float64
from tests.acceptance.running import MEGABYTE, Running, serving, tell
from tests.server.conftest import DRIVER, HOUR, NOW, Platform, bearer, view

pytestmark = pytest.mark.skipif(not is_installed(), reason="needs wrk: apt install wrk")

FEATURES = [f"feature_{number}" for number in range(10)]
STATS = view("stats", *(Field(name, Float64) for name in FEATURES), entity=DRIVER)
CONNECTIONS, SECONDS = 8, 20


@pytest.fixture(scope="module")
def platform(tmp_path_factory) -> Iterator[Platform]:
    made = Platform(tmp_path_factory.mktemp("platform"), audit="audit.jsonl")
    made.add(STATS, *[(key, NOW - HOUR, *(key + number / 8 for number in range(10))) for key in range(1_000)])
    made.publish()
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def running(platform) -> Iterator[Running]:
    with serving(platform) as found:
        yield found


@pytest.mark.parametrize("keys", [1, 10])
def test_every_lookup_is_answered(keys, platform, running, tmp_path):
    token = platform.token("features:read")
    asked = list(range(7, 7 + keys))
    question = {"features": [f"stats:{name}" for name in FEATURES], "entities": {"driver_id": asked}}
    answer = httpx.post(f"{running.url}/get-online-features", json=question, headers=bearer(token)).json()
    assert [one["values"] for one in answer["results"]][1:] == [[key + n / 8 for key in asked] for n in range(10)]
    before = running.memory("VmRSS")
    # wrk counts every answer that is no 2xx, and that is an error there.
    rounds = [
        load(
            f"{running.url}/get-online-features",
            running.pid,
            json.dumps(question).encode(),
            {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            connections=CONNECTIONS,
            seconds=SECONDS // 4,
            folder=tmp_path,
        )
        for _ in range(4)
    ]
    time.sleep(1)
    lines = (platform.settings.root / "audit.jsonl").read_bytes().count(b"\n")
    tell(
        f"L1, {keys} × {len(FEATURES)}",
        answers=sum(one.count for one in rounds),
        not_2xx=0,
        a_second=f"{median(one.rate for one in rounds):.0f}",
        p50=f"{median(one.p50 for one in rounds):.2f} ms",
        p99=f"{median(one.p99 for one in rounds):.2f} ms",
        memory_grown=f"{(running.memory('VmRSS') - before) / MEGABYTE:.1f} MB",
    )
    assert lines >= sum(one.count for one in rounds)
