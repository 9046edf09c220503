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
        yield {
            "azure_storage_account_name": ACCOUNT,
            "azure_storage_account_key": KEY,
            "azure_storage_endpoint": f"{endpoint}/{ACCOUNT}",
            "allow_http": "true",
        }


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


def test_a_table_is_written_and_read(options: dict[str, str]) -> None:
    """Of one commit: delta-rs 1.6.6 cannot make a second one in Azurite 3.35, not of a plain table of its own either."""
    store = OfflineStore("az://features/offline", storage_options=options)
    assert replace(store, {"p": [("k", 0, None, 1)], "empty": []}).version == 1
    assert held(store) == {"p": [("k", 0, None, 1)]}
    assert store.check(WEATHER) == []
    tell("R1, Azurite", publications=f"{WRITERS * TIMES} of {WRITERS * TIMES}")
