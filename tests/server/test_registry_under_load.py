"""While the registry changes and views are written, every lookup is answered, and each by one snapshot."""

import asyncio
from typing import Any

import pytest

from feature_assets.registry import Registry
from feature_assets.spec import Field
from feature_assets.types import Float64
from tests.server.conftest import NOW, Platform, bearer, client_of, view

ROUNDS = 6
NEW = view("weather", Field("temp", Float64), Field("wind", Float64))
DROPPED = view("crowds", Field("waiting", Float64))


@pytest.mark.parametrize("readers", [8])
async def test_fields_come_and_views_go_under_load(tmp_path, readers):
    """`weather:*` has the fields of the snapshot that the answer names; `crowds` is there, or it is not found."""
    platform = Platform(tmp_path, registry_refresh_seconds=0.01)
    platform.add(NEW, ("JFK", NOW, 40.5, 11.0))
    platform.add(DROPPED, ("JFK", NOW, 3.0))
    first = Registry.of([NEW, DROPPED])
    shapes = {platform.registry.publish(first, location="tests", by="tests").digest: [NEW, DROPPED]}
    seen: set[str] = set()
    async with client_of(platform.app()) as http:
        token = bearer(platform.token("features:read"))
        done = asyncio.Event()

        async def reader(features: str, expected: Any) -> int:
            answered = 0
            while not done.is_set():
                body = {"features": [features], "entities": {"origin": ["JFK"]}}
                answer = await http.post("/get-online-features", json=body, headers=token)
                assert answer.status_code < 500, answer.text
                expected(answer)
                answered += 1
                # Without a socket in between, a short answer waits for nothing: let others have their turn.
                await asyncio.sleep(0)
            return answered

        def weather(answer: Any) -> None:
            assert answer.status_code == 200, answer.text
            digest = answer.headers["x-feature-registry"]
            seen.add(digest)
            names = answer.json()["metadata"]["feature_names"]
            assert names == ["origin", *(field.name for field in shapes[digest][0].features)]

        def crowds(answer: Any) -> None:
            assert answer.status_code in (200, 404), answer.text
            if answer.status_code == 200:
                assert any(one.name == "crowds" for one in shapes[answer.headers["x-feature-registry"]])

        tasks = [asyncio.create_task(reader("weather:*", weather)) for _ in range(readers // 2)]
        tasks += [asyncio.create_task(reader("crowds:*", crowds)) for _ in range(readers // 2)]
        for number in range(ROUNDS):
            features = [
                Field("temp", Float64),
                Field("wind", Float64),
                *(Field(f"more{at}", Float64) for at in range(number + 1)),
            ]
            objects = [view("weather", *features)] + ([DROPPED] if number % 2 else [])
            registry = Registry.of(objects)
            platform.store.prepare(objects[0])
            platform.store.write(objects[0], _row(objects[0], number), None)
            # Known before it is in force: an answer may come from it at once.
            shapes[platform.registry.merged(registry, location="tests").digest] = objects
            await asyncio.to_thread(platform.registry.publish, registry, location="tests", by="tests")
            await asyncio.sleep(0.1)
        done.set()
        answered = await asyncio.gather(*tasks)
    assert min(answered) > 0
    assert len(seen) >= 2
    platform.store.close()


def _row(of: Any, number: int) -> Any:
    from tests.server.conftest import rows

    return rows(of, ("JFK", NOW, *([float(number)] * len(of.features))))
