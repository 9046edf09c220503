"""Run by the Python that has Feast: its answer to the benchmark of joins, the seconds it took, and its process's peak memory.

    python feast_join.py <folder> <offline store: duckdb or dask> <spine.parquet>

The folder has `views.json`, which says what to declare, and `<view>.parquet` for each view, and will have `answer.parquet`.
"""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64, String, UnixTimestamp

SETTINGS = """\
project: benchmark
registry: {{path: registry.db, cache_ttl_seconds: 3600}}
provider: local
offline_store: {{type: {offline}}}
online_store: {{type: sqlite, path: online.db}}
entity_key_serialization_version: 3
"""
TYPES = {"Int64": Int64, "Float64": Float64, "String": String, "Timestamp": UnixTimestamp}
KEYS = {"Int64": ValueType.INT64, "String": ValueType.STRING}


def main() -> None:
    folder, offline, spine = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    (folder / "feature_store.yaml").write_text(SETTINGS.format(offline=offline))
    store = FeatureStore(repo_path=str(folder))
    entities, views, asked = {}, [], []
    for name, view in json.loads((folder / "views.json").read_text()).items():
        for key in view["keys"]:
            entities[key] = Entity(name=key, join_keys=[key], value_type=KEYS[view["types"][key]])
        typed = {**view["types"], **view["features"]}
        views.append(
            FeatureView(
                name=name,
                entities=[entities[key] for key in view["keys"]],
                ttl=timedelta(seconds=view["ttl"]),
                source=FileSource(name=name, path=str(folder / f"{name}.parquet"), timestamp_field=view["time"]),
                schema=[Field(name=column, dtype=TYPES[of]) for column, of in typed.items()],
            )
        )
        asked += [f"{name}:{feature}" for feature in view["features"]]
    store.apply([*entities.values(), *views])
    begun = time.perf_counter()
    answer = store.get_historical_features(entity_df=pd.read_parquet(spine), features=asked).to_arrow()
    seconds = time.perf_counter() - begun
    pq.write_table(answer, folder / "answer.parquet")
    peak = 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    print(seconds, peak)


main()
