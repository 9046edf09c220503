"""The online store on DynamoDB, against boto3 doing just the call.

    python -m benchmarks.dynamodb                                      moto, started for the run
    DYNAMODB_ENDPOINT=http://127.0.0.1:8000 python -m benchmarks.dynamodb

Guarded writes: as many conditional puts in parallel, of items made beforehand. Lookups: GetItem or BatchGetItem for the
same keys of one table or of three, and the numbers read from the answer. A stand-in for DynamoDB answers more slowly than
our code and boto3 work, so that ratios near 1 say: nothing is sent twice or one after the other. The rates are the
stand-in's; what this process computes meanwhile is told apart.

Held lookups: so many coroutines of one process at once, each answered after 50 ms by `benchmarks.replay`.
"""

import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import polars as pl
from botocore.config import Config
from botocore.exceptions import ClientError

from benchmarks.timing import compare
from feature_assets import FeatureStore
from feature_assets.config import Settings
from feature_assets.lookup import OnlineLookup
from feature_assets.online import open_online_store
from feature_assets.online.dynamodb.items import KEY, TOKEN, Shape
from feature_assets.online.protocol import OnlineStore
from feature_assets.references import resolve
from feature_assets.registry import Registry, RegistryStore
from feature_assets.spec import PUBLICATION, Entity, Field, ViewSpec
from feature_assets.types import Float64, String, Timestamp

ENTITIES, VIEWS, FEATURES, WRITES, PARALLEL = 2_000, 3, 10, 200, 32
HELD, TIMES, SECONDS_AWAY = 64, 10, 0.05
ROOT = Path(__file__).parents[1]
START = datetime(2024, 3, 1, tzinfo=UTC)


@contextmanager
def endpoint() -> Iterator[str]:
    if given := os.environ.get("DYNAMODB_ENDPOINT"):
        yield given
        return
    command = [sys.executable, "-m", "tests.online.dynamodb_server"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.kill()


def view(number: int) -> ViewSpec:
    return ViewSpec(
        name=f"view_{number}",
        entities=(Entity("driver", {"driver": String}),),
        features=tuple(Field(f"feature_{number}_{place}", Float64) for place in range(FEATURES)),
        event_timestamp="observed_at",
    )


def rows(of: ViewSpec, entities: int, turn: int = 0) -> pl.DataFrame:
    numbers = pl.Series("driver", range(entities), dtype=pl.Int64)
    return pl.DataFrame(
        {
            "driver": "driver-" + numbers.cast(pl.String),
            "observed_at": pl.repeat(START + timedelta(seconds=turn), entities, dtype=Timestamp.polars, eager=True),
            **{field.name: numbers.cast(pl.Float64) / (place + 3) for place, field in enumerate(of.features)},
            PUBLICATION: pl.repeat(1, entities, dtype=pl.Int64, eager=True),
        }
    )


class ByHand:
    """boto3 and a pool of threads."""

    def __init__(self, place: str, prefix: str, parallel: int = PARALLEL) -> None:
        config = Config(max_pool_connections=parallel)
        self.client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=place, config=config)
        self.pool = ThreadPoolExecutor(parallel)
        self.tables = [f"{prefix}.view_{number}.v1" for number in range(VIEWS)]

    def put(self, items: Sequence[Any]) -> int:
        return sum(self.pool.map(self._put, items))

    def _put(self, item: Any) -> bool:
        try:
            self.client.put_item(
                TableName=self.tables[0],
                Item=item,
                ConditionExpression="attribute_not_exists(#t) OR #t <= :t",
                ExpressionAttributeNames={"#t": TOKEN},
                ExpressionAttributeValues={":t": item[TOKEN]},
            )
        except ClientError:
            return False
        return True

    def get(self, keys: Sequence[bytes], views: int) -> list[list[float | None]]:
        tables = self.tables[:views]
        if len(keys) == 1 and views == 1:
            answer = self.client.get_item(TableName=tables[0], Key={KEY: {"B": keys[0]}})
            found = {tables[0]: {keys[0]: answer["Item"]}} if "Item" in answer else {tables[0]: {}}
            return self._columns(found, keys)
        asked = [(table, key) for table in tables for key in keys]
        found = {table: {} for table in tables}
        for part in self.pool.map(self._batch, [asked[start : start + 100] for start in range(0, len(asked), 100)]):
            for table, items in part.items():
                found[table].update((item[KEY]["B"], item) for item in items)
        return self._columns(found, keys)

    def _batch(self, asked: Sequence[tuple[str, bytes]]) -> Any:
        wanted: dict[str, Any] = {}
        for table, key in asked:
            wanted.setdefault(table, {"Keys": []})["Keys"].append({KEY: {"B": key}})
        return self.client.batch_get_item(RequestItems=wanted)["Responses"]

    def _columns(self, found: dict[str, dict[bytes, Any]], keys: Sequence[bytes]) -> list[list[float | None]]:
        columns: list[list[float | None]] = []
        for number, items in enumerate(found.values()):
            for place in range(FEATURES):
                name = f"feature_{number}_{place}"
                columns.append([float(items[key][name]["N"]) if key in items else None for key in keys])
        return columns


def write(store: OnlineStore, hand: ByHand) -> None:
    of, turns = view(0), count(1)

    def ours() -> int:
        return store.write(of, rows(of, WRITES, next(turns)), None).written

    def limit() -> int:
        return hand.put(list(Shape(of).items(rows(of, WRITES, next(turns)))))

    taken = compare(f"{WRITES} guarded writes × {FEATURES} features", {"ours": ours, "limit": limit}, mark=1.5)
    print("  a second: " + ", ".join(f"{way} {WRITES / timing.median:.0f}" for way, timing in taken.items()))


def read(store: OnlineStore, hand: ByHand, keys: int, views: int) -> None:
    registry = Registry.of([view(number) for number in range(VIEWS)])
    lookup = OnlineLookup(resolve(registry, [f"view_{number}:*" for number in range(views)]), store)
    # One in twenty is not there.
    names = [f"driver-{number}" for number in random.Random(7).sample(range(ENTITIES * 20 // 19), keys)]
    encode = Shape(view(0)).key
    encoded = [encode((name,)) or b"" for name in names]
    ways = {
        "ours": lambda: [list(column) for column in lookup.read({"driver": names}).values[1:]],
        "limit": lambda: hand.get(encoded, views),
    }
    name = f"{keys} keys × {FEATURES} features × {views} views"
    compare(name, ways, 9, mark=1.5, calls=20)
    compare(f"{name}, what this process computes", ways, 5, mark=1.5, calls=20, clock=time.process_time)


@contextmanager
def far_away(place: str) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.replay", place, str(SECONDS_AWAY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.kill()


def hold(place: str, prefix: str) -> None:
    """Many lookups at once by one process, each of one key."""
    hand = ByHand(place, prefix, HELD)
    encode = Shape(view(0)).key
    names = [f"driver-{number}" for number in range(HELD)]
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            root=Path(folder), registry="registry", online=f"dynamodb:{prefix}?region=us-east-1&endpoint={place}"
        )
        RegistryStore(f"{folder}/registry").publish(
            Registry.of([view(number) for number in range(VIEWS)]), location="benchmark", by="benchmark"
        )

        async def ours(store: FeatureStore, name: str) -> list[Any]:
            found = [await store.get_online_features_async(["view_0:*"], {"driver": [name]}) for _ in range(TIMES)]
            return [list(column) for column in found[-1].values[1:]]

        async def limit(name: str) -> list[Any]:
            loop, key = asyncio.get_running_loop(), [encode((name,)) or b""]
            return [await loop.run_in_executor(hand.pool, hand.get, key, 1) for _ in range(TIMES)][-1]

        async def all_of(ask: Callable[[str], Coroutine[Any, Any, list[Any]]]) -> list[list[Any]]:
            return await asyncio.gather(*map(ask, names))

        with FeatureStore(settings) as store:
            ways = {
                "ours": lambda: asyncio.run(all_of(partial(ours, store))),
                "limit": lambda: asyncio.run(all_of(limit)),
            }
            title = f"{HELD * TIMES} lookups of 1 key by {HELD} coroutines, {SECONDS_AWAY * 1e3:.0f} ms away"
            taken = compare(title, ways, 9, mark=1.5)
    print("  a second: " + ", ".join(f"{way} {HELD * TIMES / timing.median:.0f}" for way, timing in taken.items()))


def main() -> None:
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "key")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "secret")
    with endpoint() as place:
        prefix = f"bench{uuid4().hex[:8]}"
        store = open_online_store(f"dynamodb:{prefix}?region=us-east-1&endpoint={place}")
        for number in range(VIEWS):
            store.prepare(view(number))
            store.write(view(number), rows(view(number), ENTITIES), None)
        hand = ByHand(place, prefix)
        write(store, hand)
        for keys in (1, 10, 100):
            for views in (1, VIEWS):
                read(store, hand, keys, views)
        store.close()
        with far_away(place) as slow:
            hold(slow, prefix)


if __name__ == "__main__":
    main()
