"""`docs/reference/metrics.md` names all that a view, its materialisations and its checks report, and nothing else."""

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from feature_assets import Entity, FeatureView, Field, FileSource, Float64, InRange, String, feature_definitions
from feature_assets.assets import FeatureAssets, feature_view

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
DAILY = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-02-01")
airport = Entity("airport", join_keys={"origin": String})


def documented(heading: str) -> set[str]:
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@feature_view(
    entities=[airport],
    schema=[Field("temp", Float64)],
    event_timestamp="observed_at",
    partitions_def=DAILY,
    checks=[InRange("temp", maximum=0, severity="warn")],
    deprecated="use station_weather",
)
def weather(context: dg.AssetExecutionContext) -> pl.DataFrame:
    """One reading a day, told twice, with a column that nobody declared."""
    days = [datetime.fromisoformat(key) for key in context.partition_keys]
    frame = pl.DataFrame({"origin": "JFK", "observed_at": days, "temp": 1.5, "station": 7})
    return pl.concat([frame, frame])


def test_the_page_names_what_is_reported(stores: FeatureAssets, instance: dg.DagsterInstance, tmp_path: Path) -> None:
    pl.DataFrame({"origin": ["JFK"], "observed_at": [datetime(2024, 1, 1)], "temp": [1.5]}).write_parquet(
        tmp_path / "w.parquet"
    )
    copied = FeatureView.from_source(
        FileSource(name="readings", path=str(tmp_path / "w.parquet")),
        name="copied",
        entities=[airport],
        event_timestamp="observed_at",
        schema=[Field("temp", Float64)],
    )
    job = feature_definitions(
        [weather, copied], resources={"feature_assets": stores}
    ).resolve_implicit_global_asset_job_def()

    def run(name: str, **more: Any) -> dg.ExecuteInProcessResult:
        return job.execute_in_process(asset_selection=[dg.AssetKey(name)], instance=instance, **more)

    span = {"dagster/asset_partition_range_start": "2024-01-02", "dagster/asset_partition_range_end": "2024-01-03"}
    several, whole = run("weather", tags=span), run("copied")
    events = [*several.asset_materializations_for_node("weather"), *whole.asset_materializations_for_node("copied")]
    assert {name for event in events for name in event.metadata} == documented("Of every materialisation of a view")

    (check,) = several.get_asset_check_evaluations()
    assert set(check.metadata) | {"kept_at"} == documented("Of every check")

    views = [view.metadata_by_key[view.key] for view in (weather, copied)]
    assert {name for metadata in views for name in metadata} == documented("Of the view itself")

    (event,) = run("feature_registry").asset_materializations_for_node("feature_registry")
    assert set(event.metadata) == documented("Of the registry")
