"""What Dagster makes of views by itself: automation, and lineage down to the column."""

from datetime import datetime
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from feature_assets import Entity, Field, FileSource, Float64, String
from feature_assets.assets import FeatureAssets, FeatureView, feature_view

DAILY = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-02-01")
airport = Entity("airport", join_keys={"origin": String})
ROWS = pl.DataFrame({"origin": ["JFK"], "observed_at": [datetime(2024, 1, 31, 6)], "temp": [1.0]})


# Dagster's own evaluation selects with a parameter that it calls beta.
@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
def test_automation_conditions_see_views_as_assets(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    """A view with an eager condition is asked for when what it reads was materialised."""

    @feature_view(
        entities=[airport], schema=[Field("temp", Float64)], event_timestamp="observed_at", partitions_def=DAILY
    )
    def weather() -> pl.DataFrame:
        return ROWS

    @feature_view(
        entities=[airport],
        schema=[Field("warm", Float64)],
        event_timestamp="observed_at",
        partitions_def=DAILY,
        automation_condition=dg.AutomationCondition.eager(),
    )
    def warmth(weather: pl.LazyFrame) -> pl.LazyFrame:
        return weather.select("origin", "observed_at", warm="temp")

    definitions = dg.Definitions(assets=[weather, warmth], resources={"feature_assets": stores})
    before = dg.evaluate_automation_conditions(defs=definitions, instance=instance)
    assert before.total_requested == 0
    resources = {"feature_assets": stores}
    assert dg.materialize([weather], instance=instance, resources=resources, partition_key="2024-01-31").success
    after = dg.evaluate_automation_conditions(defs=definitions, instance=instance, cursor=before.cursor)
    assert after.get_requested_partitions(warmth.key) == {"2024-01-31"}


def test_columns_that_are_passed_on_have_a_lineage(
    stores: FeatureAssets, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    ROWS.rename({"temp": "temperature"}).write_parquet(tmp_path / "station.parquet")
    source = FileSource(name="station", path=str(tmp_path / "station.parquet"), field_mapping={"temperature": "temp"})
    declaration = {"entities": [airport], "schema": [Field("temp", Float64)], "event_timestamp": "observed_at"}
    as_it_is = FeatureView.from_source(source, name="weather", **declaration)
    changed = FeatureView.from_source(
        source, name="colder", transform=lambda rows: rows.with_columns(pl.col("temp") - 1), **declaration
    )
    result = dg.materialize(
        [dg.AssetSpec("station"), as_it_is, changed], instance=instance, resources={"feature_assets": stores}
    )
    lineage = result.asset_materializations_for_node("weather")[0].metadata["dagster/column_lineage"].value
    station = dg.AssetKey("station")
    assert lineage.deps_by_column == {
        "origin": [dg.TableColumnDep(station, "origin")],
        "observed_at": [dg.TableColumnDep(station, "observed_at")],
        "temp": [dg.TableColumnDep(station, "temperature")],
    }
    assert "dagster/column_lineage" not in result.asset_materializations_for_node("colder")[0].metadata
