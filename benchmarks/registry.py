"""A registry of 1000 views with 10 features each: load it, and publish it with one view changed.

    python -m benchmarks.registry [views]

The limit of loading is to parse the same bytes as JSON, which gives neither types nor checks; the mark is 50 ms. The limit
of publishing is to do by hand, without a check, what has to reach the disk: encode, and write three synced files. Its mark
is 5 s, deriving included.
"""

import os
import sys
import tempfile
from datetime import timedelta
from itertools import count
from pathlib import Path

import msgspec
import orjson

from benchmarks.timing import compare
from feature_assets.registry import Registry, RegistryStore
from feature_assets.spec import Entity, Field, ServiceSpec, TimePartitions, ViewProjection, ViewSpec, canonical_json
from feature_assets.types import Float64, Int64, String

LOAD_MARK = 0.050
PUBLISH_MARK = 5.0


def declared(views: int, description: str = "") -> Registry:
    """As many views, and for every tenth a service over three of them."""
    airport = Entity("airport", {"origin": String}, description="A departure airport")
    daily = TimePartitions(cron="0 0 * * *", timezone="UTC", start="2013-01-01T00:00:00+00:00", fmt="%Y-%m-%d")
    made = [
        ViewSpec(
            name=f"view_{number}",
            description=description or f"View {number}",
            entities=(airport,),
            features=tuple(
                Field(
                    f"feature_{number}_{each}", Int64 if each % 2 else Float64, f"The {each}th of them", {"team": "ops"}
                )
                for each in range(10)
            ),
            event_timestamp="observed_at",
            ttl=timedelta(hours=6),
            partitions={"partition": daily},
            upstream=("observations",),
            asset_key=(f"view_{number}",),
            code_version="0123456789abcdef" * 4,
        )
        for number in range(views)
    ]
    services = [
        ServiceSpec(
            name=f"service_{number}",
            features=tuple(ViewProjection(f"view_{(number + each) % views}") for each in range(3)),
        )
        for number in range(0, views, 10)
    ]
    return Registry.of([*made, *services])


def write_by_hand(folder: Path, registry: Registry, number: int) -> int:
    """Encode and write durably: snapshot, history, pointer."""
    data = canonical_json(registry)
    for name, content in ((f"{number}.json", data), (f"history_{number}", b"{}"), ("latest.json", b"{}")):
        with (folder / f"{name}.draft").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        (folder / f"{name}.draft").replace(folder / name)
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return len(registry.views)


def benchmark_load(store: RegistryStore, folder: Path, views: int) -> None:
    published = store.publish(declared(views), location="bench", by="bench")
    path = folder / "snapshots" / f"{published.digest}.json"
    print(f"{views} views, {path.stat().st_size / 1e6:.2f} MB of JSON")
    timings = compare(
        "load",
        {
            "ours": lambda: len(store.read().registry.views),
            "limit (orjson)": lambda: len(orjson.loads(path.read_bytes())["views"]),
        },
        repeats=15,
        limit="limit (orjson)",
    )
    report("load", timings["ours"].median, LOAD_MARK)


def benchmark_publish(store: RegistryStore, folder: Path, views: int) -> None:
    registry, numbers = declared(views), count()

    def changed() -> Registry:
        """Another description each time: publishing the same again writes nothing."""
        number = next(numbers)
        one = msgspec.structs.replace(registry.views["view_0"], description=f"changed {number}")
        return msgspec.structs.replace(registry, views=registry.views | {"view_0": one})

    def publish() -> int:
        published = store.publish(changed(), location="bench", by="bench")
        assert published.changed
        return len(published.registry.views)

    timings = compare(
        "merge, check and publish",
        {"ours": publish, "limit": lambda: write_by_hand(folder, changed(), next(numbers))},
        repeats=7,
    )
    report("publish", timings["ours"].median, PUBLISH_MARK)
    compare("plan", {"ours": lambda: len(store.plan(changed(), location="bench"))}, repeats=5, limit="ours")


def report(what: str, seconds: float, mark: float) -> None:
    print(
        f"  {what}: {seconds * 1e3:.1f} ms, {'within' if seconds <= mark else 'OVER'} the mark of {mark * 1e3:.0f} ms"
    )


def main() -> None:
    views = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as place:
        folder, by_hand = Path(place) / "registry", Path(place) / "by_hand"
        by_hand.mkdir()
        store = RegistryStore(folder)
        benchmark_load(store, folder, views)
        benchmark_publish(store, by_hand, views)


if __name__ == "__main__":
    main()
