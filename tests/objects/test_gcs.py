"""The registry and a Delta table at gs://, by conditions on generations: what is sent is what Google's documentation asks for."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_assets.objects import PutConflict, open_objects
from feature_assets.offline import OfflineStore
from tests.offline.tables import WEATHER, held, replace


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    command = [sys.executable, str(Path(__file__).with_name("gcs_server.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        found = f"http://127.0.0.1:{int(server.stdout.readline())}"
        made = urllib.request.Request(f"{found}/features", method="PUT")  # noqa: S310 (loopback)
        urllib.request.urlopen(made, timeout=20).close()  # noqa: S310
        yield found
        server.kill()


@pytest.fixture
def options(endpoint: str) -> dict[str, str]:
    account = {"gcs_base_url": endpoint, "disable_oauth": True, "client_email": "", "private_key": ""}
    return {"google_service_account_key": json.dumps({**account, "private_key_id": ""}), "allow_http": "true"}


def asked(endpoint: str, below: str) -> list[str]:
    """The conditions of writes below a folder of the bucket."""
    with urllib.request.urlopen(f"{endpoint}/_conditions", timeout=20) as answer:  # noqa: S310 (loopback)
        return [condition for path, condition in json.load(answer) if path.startswith(f"/features/{below}")]


def test_writes_are_conditional_on_generations(endpoint: str, options: dict[str, str]) -> None:
    objects = open_objects("gs://features/registry", options)
    first = objects.put("latest.json", b"1", if_absent=True)
    with pytest.raises(PutConflict):
        objects.put("latest.json", b"2", if_absent=True)
    second = objects.put("latest.json", b"3", if_match=first)
    with pytest.raises(PutConflict):
        objects.put("latest.json", b"4", if_match=first)
    stored = objects.get("latest.json")
    assert stored is not None
    assert (stored.data, stored.etag) == (b"3", second)
    assert [objects.changed("latest.json", tag) for tag in (first, second)] == [True, False]
    generation = first.rpartition(" ")[2]
    assert asked(endpoint, "registry/latest.json") == ["0", "0", generation, generation]
    objects.probe()
    assert objects.list("") == ["latest.json"]


def test_the_log_of_a_table_is_written_by_conditions(endpoint: str, options: dict[str, str]) -> None:
    store = OfflineStore("gs://features/offline", storage_options=options)
    for number in range(3):
        assert replace(store, {"p": [("k", 0, None, number)]}).version == number + 1
        assert held(store) == {"p": [("k", 0, None, number)]}
    assert store.check(WEATHER) == []
    entries = [f"offline/weather/v1/_delta_log/{version:020d}.json" for version in range(4)]
    assert [asked(endpoint, entry) for entry in entries] == [["0"]] * 4
