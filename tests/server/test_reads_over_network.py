"""One process holds many lookups that wait for DynamoDB at once, and goes on with everything else meanwhile."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, get_ident
from typing import Any

import pytest

from feature_assets import FeatureStore
from feature_assets.config import ServerSettings, Settings
from feature_assets.online import open_online_store
from feature_assets.online.dynamodb import calls
from feature_assets.registry import RegistryStore
from tests.acceptance.bad_wire import Wire, through
from tests.aws_server import aws_server
from tests.server.conftest import HOUR, NOW, WEATHER, Platform, bearer, client_of, columns

WAITING = 100
VALUES = {"origin": ["JFK"], "temp": [40.5], "wind": [11.0]}
ASKED = b"DynamoDB_20120810.GetItem"


class Holding(Wire):
    """Lets no answer through before so many connections wait for one at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.asked = 0
        self._waiting: set[int] = set()
        self._changed = Condition()

    def through(self, piece: bytes, *, answer: bool) -> bytes:
        with self._changed:
            if not answer:
                self.asked += ASKED in piece
                self._changed.notify_all()
            elif self.count:
                self._waiting.add(get_ident())
                self._changed.notify_all()
                assert self._changed.wait_for(lambda: len(self._waiting) >= self.count, timeout=60)
        return piece

    def hold(self, count: int) -> None:
        """From now on; none that is held is let through where it is 0."""
        with self._changed:
            self.count, self.asked = count, 0
            self._waiting.clear()
            self._changed.notify_all()

    def until_asked(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.asked >= count, timeout=60)

    @property
    def held(self) -> int:
        return len(self._waiting)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_server() as found:
        yield found


@pytest.fixture
def wire() -> Holding:
    return Holding()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked again because the machine is busy, so that as many are held as were asked."""
    monkeypatch.setattr(calls, "_OF_LOOKUPS", calls.Patience(1, 60.0))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@contextmanager
def on_dynamodb(folder: Path, endpoint: str, options: str = "") -> Iterator[Platform]:
    """A platform whose one row is in DynamoDB."""
    made = Platform.__new__(Platform)
    made.settings = Settings(
        root=folder,
        online=f"dynamodb:t?region=us-east-1&endpoint={endpoint}{options}",
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


async def test_a_server_holds_a_hundred_lookups(tmp_path: Path, endpoint: str, wire: Holding) -> None:
    body = {"features": ["weather:*"], "entities": {"origin": ["JFK"]}}
    with through(wire, endpoint) as slow, on_dynamodb(tmp_path, slow) as platform:
        token = bearer(platform.token())
        async with client_of(platform.app(), timeout=90) as http:

            async def ask() -> dict[str, list[Any]]:
                answer = await http.post("/get-online-features", json=body, headers=token)
                assert answer.status_code == 200, answer.text
                return columns(answer.json())

            assert await ask() == VALUES
            wire.hold(WAITING)
            lookups = [asyncio.create_task(ask()) for _ in range(WAITING - 1)]
            while wire.held < WAITING - 1:
                assert (await http.get("/health")).status_code == 200, "nobody else is held up"
                await asyncio.sleep(0.01)
            lookups.append(asyncio.create_task(ask()))
            assert await asyncio.gather(*lookups) == [VALUES] * WAITING


async def test_coroutines_of_a_store_wait_together(tmp_path: Path, endpoint: str, wire: Holding) -> None:
    with (
        through(wire, endpoint) as slow,
        on_dynamodb(tmp_path, slow) as platform,
        FeatureStore(platform.settings) as own,
    ):
        assert (await own.get_online_features_async(["weather:*"], [{"origin": "JFK"}])).to_dict() == VALUES
        wire.hold(WAITING)
        lookups = [own.get_online_features_async(["weather:*"], [{"origin": "JFK"}]) for _ in range(WAITING)]
        found = await asyncio.gather(*lookups)
        assert [one.to_dict() for one in found] == [VALUES] * WAITING


async def test_who_waits_for_its_turn_no_longer_is_not_read_for(tmp_path: Path, endpoint: str, wire: Holding) -> None:
    with (
        through(wire, endpoint) as slow,
        on_dynamodb(tmp_path, slow, "&lookups=2") as platform,
        FeatureStore(platform.settings) as own,
    ):

        async def ask() -> dict[str, list[Any]]:
            return (await own.get_online_features_async(["weather:*"], [{"origin": "JFK"}])).to_dict()

        async def in_time() -> dict[str, list[Any]]:
            async with asyncio.timeout(0.2):
                return await ask()

        assert await ask() == VALUES
        wire.hold(1_000)
        first, second = asyncio.create_task(ask()), asyncio.create_task(ask())
        await asyncio.to_thread(wire.until_asked, 2)
        ended = await asyncio.gather(*(in_time() for _ in range(4)), return_exceptions=True)
        assert [type(one) for one in ended] == [TimeoutError] * 4, "whoever waits decides how long"
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert wire.asked == 2, "no more than two wait for the store, and who gave up before his turn never does"
        wire.hold(0)
        assert await first == VALUES
        assert await asyncio.gather(*(ask() for _ in range(6))) == [VALUES] * 6, "the threads are free again"
        assert wire.asked == 6
