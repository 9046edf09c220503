"""The real Feast SDK, in an environment of its own, with `online_store: {type: remote}` and nothing else changed.

`FEAST_PYTHON` names a Python that has Feast; else one is made beside the repository's environment, once.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from feature_assets.offline import OfflineStore
from feature_assets.spec import Entity, Field, PushSource, ServiceSpec, Stream, ViewProjection
from feature_assets.types import Float64, Int64, String
from tests.server.conftest import HOUR, NOW, Platform, bearer, columns, served, view

FEAST = "0.67.0"
ROOT = Path(__file__).parents[2]
AIRPORT, DRIVER = Entity("airport", {"origin": String}), Entity("driver", {"driver_id": Int64})
WEATHER = view("weather", Field("temp", Float64), Field("wind", Float64), entity=AIRPORT)
CROWDS = view("crowds", Field("waiting", Int64), Field("note", String), entity=AIRPORT)
DRIVERS = view("driver_stats", Field("trips", Int64), entity=DRIVER)
WRITTEN = view("written", Field("score", Float64), Field("nick", String), entity=DRIVER, stream=Stream("scores"))
THREE = ServiceSpec(name="three", features=tuple(ViewProjection(one) for one in ("weather", "crowds", "driver_stats")))
FEATURES = ["weather:wind", "weather:temp", "crowds:waiting", "crowds:note", "driver_stats:trips"]


@pytest.fixture(scope="session")
def feast_python() -> str:
    """A Python with the release of Feast that was tested."""
    named = os.environ.get("FEAST_PYTHON")
    if named:
        return named
    place = ROOT / ".venv-feast"
    python = place / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    made = subprocess.run(
        # Its server checks RS256 tokens with cryptography, which it does not ask for; `benchmarks/http.py` has it do so.
        [str(python), "-m", "pip", "install", "--quiet", f"feast=={FEAST}", "cryptography"],
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"Feast cannot be installed here: {made.stderr.strip().splitlines()[-1]}")
    return str(python)


@pytest.fixture(scope="module")
def platform(tmp_path_factory) -> Iterator[Platform]:
    made = Platform(tmp_path_factory.mktemp("platform"))
    at = NOW - HOUR
    made.add(WEATHER, ("JFK", at, 40.5, None), *[(f"A{number}", at, number / 3, -0.0) for number in range(0, 100, 2)])
    made.add(CROWDS, ("JFK", at, 2**53 + 1, "é 😀"), *[(f"A{number}", at, number, "") for number in range(100)])
    made.add(DRIVERS, *[(number, at, number * 10) for number in range(90)])
    for one in (PushSource(name="scores"), WRITTEN, THREE):
        made.add(one)
    made.publish()
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def both(platform, feast_python, tmp_path_factory) -> Any:
    """What the SDK got, and how to ask directly."""
    folder = tmp_path_factory.mktemp("feast")
    client, secret = platform.issuer.add_client("feast", ["features:read"])
    with served(platform, folder / "log") as (host, port):
        url = f"http://{host}:{port}"
        script = Path(__file__).with_name("feast_client.py")
        discovery = f"{url}/.well-known/openid-configuration"
        token = platform.token("features:read", "features:push", "registry:read")
        ran = subprocess.run(
            [feast_python, str(script), str(folder), url, token, discovery, client, secret],
            check=False,
            capture_output=True,
            text=True,
            timeout=280,
            cwd=folder,
        )
        assert ran.returncode == 0, ran.stderr[-4_000:]

        def directly(features: Any, entities: dict[str, list[Any]]) -> dict[str, list[Any]]:
            asked = {"feature_service": features} if isinstance(features, str) else {"features": features}
            answer = httpx.post(
                f"{url}/get-online-features", json={**asked, "entities": entities}, headers=bearer(token), timeout=30
            )
            return columns(answer.json())

        yield json.loads(ran.stdout), directly
    assert "request failed" not in (folder / "log").read_text()


KEYS = {"driver_id": [0, 1, 2, 3]}
ONE = {"origin": ["JFK"], "driver_id": [1]}


@pytest.mark.timeout(1_500)
def test_one_row_of_three_views_in_the_order_asked(both):
    found, directly = both
    assert found["one"] == found["by_client"] == directly(FEATURES, ONE)
    assert list(found["one"]) == ["origin", "driver_id", "wind", "temp", "waiting", "note", "trips"]
    assert found["one"]["waiting"] == [2**53 + 1]


def test_a_hundred_rows_with_some_that_are_not_there(both):
    found, directly = both
    entities = {"origin": [f"A{number}" for number in range(100)], "driver_id": list(range(100))}
    assert found["hundred"] == directly(FEATURES, entities)
    assert found["hundred"]["trips"][88:92] == [880, 890, None, None]


def test_full_names_and_a_service(both):
    found, directly = both
    assert found["full_names"]["weather__temp"] == [40.5]
    assert found["service"] == directly("three", ONE)


def test_a_service_over_three_views_for_a_hundred_rows(both):
    found, directly = both
    entities = {"origin": [f"A{number}" for number in range(100)], "driver_id": list(range(100))}
    assert found["service_hundred"] == directly("three", entities)
    assert list(found["service_hundred"]) == list(directly("three", entities))


def test_what_feast_writes_and_pushes_is_what_everybody_reads(both):
    found, directly = both
    written = found["written"]
    assert written["before"] == {"driver_id": [0, 1, 2, 3], "score": [None] * 4, "nick": [None] * 4}
    assert written["after"]["score"] == [0.1, -0.0, None, None]
    assert str(written["after"]["score"][1]) == "-0.0"
    assert written["after"]["nick"] == ["é 😀", "", None, None]
    assert written["pushed"]["score"] == [0.1, 1e300, 2.5, None]
    assert written["pushed"]["nick"] == ["é 😀", None, "two", None]
    # A row from before what is there is history, and changes nothing that is served.
    assert written["at last"] == written["pushed"] == directly(["written:score", "written:nick"], KEYS)


def test_what_feast_writes_is_history_as_well(both, platform):
    history = OfflineStore(platform.settings.place(platform.settings.offline)).scan(WRITTEN).collect()
    assert sorted(history["driver_id"].to_list()) == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    "what, of, words", [("future", "FeastError", "later than now"), ("no stream", "FeastError", "takes no rows")]
)
def test_writes_that_are_refused(both, what, of, words):
    found, _ = both
    refused = found["written"]["refused"][what]
    assert refused["class"] == of, refused
    assert words in refused["message"]


def test_what_feast_reads_inside_for_its_on_demand_views(both):
    found, _ = both
    present, absent = found["internal"]
    assert present == {"at": "2013-02-08 11:00:00+00:00", "values": {"temp": 40.5, "wind": None}}
    assert absent["values"] == {"temp": None, "wind": None}


@pytest.mark.parametrize(
    "what, of, words",
    [
        ("view", "FeatureViewNotFoundException", "There is no feature view 'nothing'"),
        ("feature", "SpecifiedFeaturesNotPresentError", "Did you mean 'temp'?"),
        ("key", "FeastError", "is looked up by 'origin'"),
        ("type", "FeastError", "Join key 'origin', row 0"),
        ("null", "FeastError", "Join key 'origin' is null in row 0"),
        ("many", "FeastError", "1000 is the limit"),
        ("token", "RuntimeError", "401"),
    ],
)
def test_refusals_are_raised_again_as_errors_of_feast(both, what, of, words):
    found, _ = both
    assert found["refused"][what]["class"] == of, found["refused"][what]
    assert words in found["refused"][what]["message"]
