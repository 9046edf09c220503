"""Run by the Python that has Feast: a repository of Feast with the rows of the benchmark in its SQLite online store.

    python feast_repo.py <folder> <discovery url>

The folder has `<view>.parquet` for each view, and will have `feature_store.yaml`, for `feast serve`.
"""

import sys
from datetime import timedelta
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64

SETTINGS = """\
project: benchmark
registry: {{path: registry.db, cache_ttl_seconds: 3600}}
provider: local
offline_store: {{type: file}}
online_store: {{type: sqlite, path: online.db}}
auth: {{type: oidc, auth_discovery_url: "{discovery}"}}
entity_key_serialization_version: 3
"""


def main() -> None:
    folder, discovery = Path(sys.argv[1]), sys.argv[2]
    (folder / "feature_store.yaml").write_text(SETTINGS.format(discovery=discovery))
    store = FeatureStore(repo_path=str(folder))
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    frames = {path.stem: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}
    views = [
        FeatureView(
            name=name,
            entities=[driver],
            ttl=timedelta(days=36_500),
            source=FileSource(name=name, path=str(folder / f"{name}.parquet"), timestamp_field="observed_at"),
            schema=[
                Field(name="driver_id", dtype=Int64),
                *(Field(name=one, dtype=Float64) for one in frame.columns if one.startswith(name)),
            ],
        )
        for name, frame in frames.items()
    ]
    store.apply([driver, *views])
    for name, frame in frames.items():
        store.write_to_online_store(name, frame)


main()
