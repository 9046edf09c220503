"""Run by the Python that has Feast: a repository of Feast with the view and the push source of the benchmark of pushes.

    python feast_push_repo.py <folder> <discovery url>

The folder has `trips.parquet`, the history that a push source has to have in Feast.
"""

import sys
from pathlib import Path

from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Float64, Int64, String

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
    history = FileSource(name="trips_history", path=str(folder / "trips.parquet"), timestamp_field="at")
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    trips = FeatureView(
        name="trips",
        entities=[driver],
        source=PushSource(name="rides", batch_source=history),
        schema=[
            Field(name="driver_id", dtype=Int64),
            Field(name="km", dtype=Float64),
            Field(name="city", dtype=String),
        ],
    )
    FeatureStore(repo_path=str(folder)).apply([driver, trips])


main()
