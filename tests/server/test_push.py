"""POST /push and /write-to-online-store: Feast's shapes, scopes, refusals, and what several servers take at once."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from feature_assets.offline import OfflineStore
from feature_assets.online import open_online_store
from feature_assets.settlement import verify
from feature_assets.spec import Field, PushSource, Stream, ViewSpec
from feature_assets.types import Float64, Int64, Map, String, Timestamp
from tests.server.conftest import DRIVER, Platform, bearer, client_of, served

NOW = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
TRIPS = ViewSpec(
    name="trips", entities=(DRIVER,), event_timestamp="at", features=(Field("km", Float64),), stream=Stream("rides")
)
OTHER = ViewSpec(
    name="other_trips",
    entities=(DRIVER,),
    event_timestamp="at",
    features=(Field("km", Float64),),
    stream=Stream("rides"),
)
NESTED = ViewSpec(
    name="nested",
    entities=(DRIVER,),
    event_timestamp="seen_at",
    created_timestamp="told_at",
    features=(Field("tags", Map[String, Int64]), Field("since", Timestamp)),
    stream=Stream("nested_rows"),
)
PLAIN = ViewSpec(name="plain", entities=(DRIVER,), event_timestamp="at", features=(Field("km", Float64),))


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    made = Platform(tmp_path)
    made.settings = made.settings.model_copy(
        update={
            "present": None,
            "durability": "process",
            "offline": str(tmp_path / "offline"),
            "push": str(tmp_path / "push"),
        }
    )
    for one in (TRIPS, OTHER, NESTED, PLAIN, PushSource(name="rides"), PushSource(name="nested_rows")):
        made.objects.append(one)
    made.publish()
    return made


def rides(driver: int = 1, km: Any = 2.5, **more: Any) -> dict[str, Any]:
    df = {"driver_id": [driver], "at": [NOW.isoformat()], "km": [km], **more}
    return {"push_source_name": "rides", "df": df, "allow_registry_cache": True, "to": "online_and_offline"}


def kept(platform: Platform) -> bool:
    """Whether a journal has anything."""
    return any(Path(platform.settings.place(platform.settings.push)).glob("*/*.rows"))


async def until_online(client: httpx.AsyncClient, token: dict[str, Any], feature: str, driver: int, value: Any) -> None:
    for _ in range(400):
        question = {"features": [feature], "entities": {"driver_id": [driver]}}
        answer = await client.post("/get-online-features", json=question, headers=token)
        if answer.is_success and answer.json()["results"][1]["values"] == [value]:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(answer.text)


async def test_a_push_reaches_every_view_of_its_source(platform: Platform) -> None:
    token = bearer(platform.token("features:push", "features:read"))
    async with client_of(platform.app()) as client:
        answer = await client.post("/push", json=rides(7), headers=token)
        assert (answer.status_code, answer.content) == (200, b"")
        assert (await client.post("/push", json=rides(7), headers=token)).status_code == 200
        await until_online(client, token, "trips:km", 7, 2.5)
        await until_online(client, token, "other_trips:km", 7, 2.5)
    store = OfflineStore(platform.settings.place(platform.settings.offline))
    for view in (TRIPS, OTHER):
        assert store.scan(view).collect().height == 1
        assert verify(view, store, platform.store).total == 0


async def test_feasts_client_writes_rows_of_one_view(platform: Platform) -> None:
    token = bearer(platform.token("features:push", "features:read"))
    body = {
        "feature_view_name": "nested",
        "df": {
            "driver_id": [1, 2],
            "tags": ['{"a": 1}', None],
            "since": [int(NOW.timestamp()), None],
            "event_timestamp": [NOW.replace(tzinfo=None).isoformat()] * 2,
            "created": [None, None],
        },
        "allow_registry_cache": False,
    }
    async with client_of(platform.app()) as client:
        answer = await client.post("/write-to-online-store", json=body, headers=token)
        assert (answer.status_code, answer.json()) == (200, None)
        question = {"features": ["nested:tags", "nested:since"], "entities": {"driver_id": [1]}}
        found = (await client.post("/get-online-features", json=question, headers=token)).json()["results"]
        assert [column["values"][0] for column in found] == [1, {"a": 1}, NOW.isoformat().replace("+00:00", "Z")]
        for name in ("plain", "nowhere"):
            refused = await client.post(
                "/write-to-online-store", json={**body, "feature_view_name": name}, headers=token
            )
            assert 400 <= refused.status_code < 500


BAD: dict[str, tuple[dict[str, Any], int]] = {
    "no such source": ({"push_source_name": "nothing", "df": {}}, 404),
    "an unknown field": (rides(speed=[1]), 422),
    "another type": (rides(km="far"), 422),
    "a key that is null": (rides(None), 422),  # type: ignore[arg-type]
    "no rows": ({"push_source_name": "rides", "df": {"driver_id": [], "at": [], "km": []}}, 422),
    "columns of other lengths": ({"push_source_name": "rides", "df": {"driver_id": [1], "at": [], "km": [1]}}, 422),
    "no such mode": ({**rides(), "to": "somewhere"}, 422),
    "no frame": ({"push_source_name": "rides"}, 422),
}


async def test_what_is_not_taken_is_a_refusal(platform: Platform) -> None:
    token = bearer(platform.token("features:push", "registry:read"))
    async with client_of(platform.app()) as client:
        for name, (body, status) in BAD.items():
            answer = await client.post("/push", json=body, headers=token)
            assert answer.status_code == status, (name, answer.text)
            assert answer.json(), name
        assert (await client.post("/push", content=b"{", headers=token)).status_code == 400
    assert not kept(platform)


async def test_a_scope_for_every_view_or_none(platform: Platform) -> None:
    async with client_of(platform.app()) as client:
        assert (await client.post("/push", json=rides())).status_code == 401
        reader = bearer(platform.token("features:read"))
        assert (await client.post("/push", json=rides(), headers=reader)).status_code == 403
        one_of_two = bearer(platform.token("features:push:trips", "registry:read"))
        refused = await client.post("/push", json=rides(), headers=one_of_two)
        assert refused.status_code == 403
        assert "other_trips" in refused.text
    assert not kept(platform)


async def test_where_there_is_no_room_it_is_said_and_no_place_is_told(platform: Platform) -> None:
    """More waits than may: as on a full disk, the push is refused with a status of its own."""
    platform.settings = platform.settings.model_copy(update={"push_backlog_bytes": 1})
    token = bearer(platform.token("features:push"))
    async with client_of(platform.app()) as client:
        assert (await client.post("/push", json=rides(1), headers=token)).status_code == 200
        for _ in range(200):
            answer = await client.post("/push", json=rides(2), headers=token)
            if answer.status_code != 200:
                break
            await asyncio.sleep(0.02)
        assert answer.status_code == 507
        document = answer.json() if isinstance(answer.json(), dict) else {"detail": answer.text}
        assert "No room is left for pushed rows, and none of these was taken" in document["detail"]
        assert str(platform.settings.root) not in answer.text


async def test_two_servers_push_to_one_view(platform: Platform, tmp_path: Path) -> None:
    token = bearer(platform.token("features:push", "features:read"))
    with served(platform, tmp_path / "a.log") as first, served(platform, tmp_path / "b.log") as second:
        async with httpx.AsyncClient(headers=token) as client:
            urls = [f"http://{host}:{port}/push" for host, port in (first, second)]
            answers = await asyncio.gather(
                *(client.post(urls[number % 2], json=rides(number // 3), timeout=60) for number in range(36))
            )
    assert {answer.status_code for answer in answers} == {200}
    # A server that has ended has published what it took.
    store, online = (
        OfflineStore(platform.settings.place(platform.settings.offline)),
        open_online_store(platform.settings.online_url),
    )
    assert sorted(store.scan(TRIPS).collect()["driver_id"]) == list(range(12)), "each once, though pushed to both"
    assert verify(TRIPS, store, online).total == 0
    online.close()


async def gauge(client: httpx.AsyncClient, platform: Platform, name: str) -> float:
    text = (await client.get("/metrics", headers=bearer(platform.token("admin")))).text
    (line,) = [one for one in text.splitlines() if one.startswith(f"{name} ")]
    return float(line.split()[1])


async def test_what_waits_for_a_store_shows_in_the_metrics(platform: Platform, tmp_path: Path) -> None:
    token = bearer(platform.token("features:push", "features:read"))
    in_the_way = tmp_path / "offline"
    in_the_way.write_text("no folder")
    async with client_of(platform.app()) as client:
        assert await gauge(client, platform, "feature_assets_push_journal_bytes") == 0
        assert (await client.post("/push", json=rides(7), headers=token)).status_code == 200
        assert await gauge(client, platform, "feature_assets_push_journal_bytes") > 0
        first = await gauge(client, platform, "feature_assets_push_waiting_seconds")
        await asyncio.sleep(0.1)
        assert await gauge(client, platform, "feature_assets_push_waiting_seconds") > first
        in_the_way.unlink()
        await until_online(client, token, "trips:km", 7, 2.5)
        for _ in range(200):
            if await gauge(client, platform, "feature_assets_push_journal_bytes") == 0:
                break
            await asyncio.sleep(0.05)
        assert await gauge(client, platform, "feature_assets_push_waiting_seconds") == 0
