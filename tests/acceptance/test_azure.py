"""The registry and a Delta table in Azure Blob Storage, which Microsoft's Azurite plays: the same code as for S3, by another URL."""

import base64
import hashlib
import hmac
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import httpx
import pytest

from feature_assets.objects import open_objects
from feature_assets.offline import OfflineStore
from feature_assets.registry import Registry, RegistryStore
from feature_assets.spec import Field, ViewSpec
from feature_assets.types import Float64
from tests.acceptance.clouds import azurite
from tests.acceptance.running import tell
from tests.offline.tables import WEATHER, held, replace

# What every Azurite has, and no account of Azure.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
WRITERS, TIMES = 3, 6


def make_container(endpoint: str, name: str) -> None:
    date, version = formatdate(usegmt=True), "2021-12-02"
    told = [f"x-ms-date:{date}", f"x-ms-version:{version}", f"/{ACCOUNT}/{ACCOUNT}/{name}", "restype:container"]
    signed = hmac.new(base64.b64decode(KEY), "\n".join(["PUT", *[""] * 11, *told]).encode(), hashlib.sha256).digest()
    authorization = f"SharedKey {ACCOUNT}:{base64.b64encode(signed).decode()}"
    headers = {"x-ms-date": date, "x-ms-version": version, "authorization": authorization}
    httpx.put(f"{endpoint}/{ACCOUNT}/{name}?restype=container", headers=headers).raise_for_status()


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with azurite(tmp_path_factory.mktemp("azure")) as endpoint:
        make_container(endpoint, "features")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AZURITE_BLOB_STORAGE_URL", endpoint)
            # Azure lists what follows a name (startFrom); Azurite lists all, and delta-rs would take the first entries of a
            # log for new ones. Told that it is Azurite, the client leaves them out itself.
            yield {"azure_storage_use_emulator": "true", "allow_http": "true"}


def test_it_keeps_to_conditions(options: dict[str, str]) -> None:
    open_objects("az://features/registry", options).probe()


def test_publications_at_once_are_all_there(options: dict[str, str]) -> None:
    def publish(location: str) -> None:
        store = RegistryStore("az://features/registry", options)
        for number in range(TIMES):
            features = (Field("value", Float64),)
            view = ViewSpec(name=f"of_{location}", features=features, event_timestamp="at", description=f"{number}")
            store.publish(Registry.of([view]), location=location, by=location)

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(publish, "abc"))
    published = RegistryStore("az://features/registry", options).read()
    assert published.sequence == WRITERS * TIMES
    assert {view.description for view in published.registry.views.values()} == {f"{TIMES - 1}"}
    assert len(published.registry.views) == WRITERS


def test_commits_at_once_are_all_there(options: dict[str, str]) -> None:
    def publish(name: str) -> list[int]:
        store = OfflineStore("az://features/offline", storage_options=options)
        return [replace(store, {f"{name}{number}": [(name, number, None, number)]}).version for number in range(TIMES)]

    with ThreadPoolExecutor(WRITERS) as pool:
        versions = [version for of_writer in pool.map(publish, "abc") for version in of_writer]
    assert sorted(versions) == list(range(1, WRITERS * TIMES + 1))
    store = OfflineStore("az://features/offline", storage_options=options)
    assert held(store) == {
        f"{name}{number}": [(name, number, None, number)] for name in "abc" for number in range(TIMES)
    }
    replace(store, {"a0": [("a", 0, None, 7)], "a1": []})
    assert held(store)["a0"] == [("a", 0, None, 7)]
    assert "a1" not in held(store)
    assert held(store, version=WRITERS * TIMES)["a0"] == [("a", 0, None, 0)]
    assert store.check(WEATHER) == []
    count = WRITERS * TIMES
    tell("K1, R1, Azurite", publications=f"{count} of {count}", commits=f"{count} of {count}")
