"""One server process holds many lookups that wait for DynamoDB at once, and goes on with everything else meanwhile."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier

import pytest

from feature_assets.config import ServerSettings, Settings
from feature_assets.online import open_online_store
from feature_assets.online.dynamodb import DynamoOnlineStore
from feature_assets.online.dynamodb import calls as dynamodb_calls
from feature_assets.registry import RegistryStore
from tests.aws_server import aws_server
from tests.server.conftest import HOUR, NOW, WEATHER, Platform, bearer, client_of, columns

WAITING = 24


@pytest.fixture
def on_dynamodb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with aws_server() as endpoint:
        made = Platform.__new__(Platform)
        made.settings = Settings(
            root=tmp_path,
            online=f"dynamodb:t?region=us-east-1&endpoint={endpoint}",
            registry="registry",
            present=NOW,
            server=ServerSettings(registry_refresh_seconds=0.05),
        )
        made.store = open_online_store(made.settings.online_url)
        made.registry = RegistryStore(made.settings.place(made.settings.registry))
        made.objects = []
        made.add(WEATHER, ("JFK", NOW - HOUR, 40.5, 11.0))
        made.publish()
        yield made
        made.store.close()


async def test_lookups_wait_for_the_store_together(on_dynamodb: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits until all are on their way: with fewer at once none would ever be answered."""
    together = Barrier(WAITING)
    waits = False

    def wait_for_others(**_: object) -> None:
        if waits:
            together.wait(timeout=60)

    new_client = dynamodb_calls.Calls._new_client

    def watched(self: dynamodb_calls.Calls, *arguments: object) -> object:
        client = new_client(self, *arguments)
        client.meta.events.register("before-send.dynamodb.GetItem", wait_for_others)
        return client

    monkeypatch.setattr(dynamodb_calls.Calls, "_new_client", watched)
    assert isinstance(on_dynamodb.store, DynamoOnlineStore)
    token = bearer(on_dynamodb.token())
    body = {"features": ["weather:*"], "entities": {"origin": ["JFK"]}}

    async with client_of(on_dynamodb.app(), timeout=90) as http:

        async def ask() -> dict[str, list[float]]:
            answer = await http.post("/get-online-features", json=body, headers=token)
            assert answer.status_code == 200, answer.text
            return columns(answer.json())

        expected = {"origin": ["JFK"], "temp": [40.5], "wind": [11.0]}
        assert await ask() == expected
        waits = True
        lookups = [asyncio.create_task(ask()) for _ in range(WAITING - 1)]
        while together.n_waiting < WAITING - 1:
            assert (await http.get("/health")).status_code == 200, "nobody else is held up"
            await asyncio.sleep(0.01)
        lookups.append(asyncio.create_task(ask()))
        assert await asyncio.gather(*lookups) == [expected] * WAITING
