"""The model that the features serve: will a departure arrive more than 15 minutes late?

A gradient-boosted classifier, fitted on January to September, scored by ROC AUC on October to December. Three
training sets tell the story: the schedule alone (0.64), the features as they were known (0.75), and the features
joined by day, which know the future (0.97, and 0.63 once they do not).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OrdinalEncoder
from threadpoolctl import threadpool_limits

SEED = 13
LABEL = "arrived_late"
SPLIT = datetime(2013, 10, 1, tzinfo=UTC)
TRAINING_ROWS = 100_000
"""A sample: all 245,000 would gain 0.004 in AUC and take twice as long."""

CATEGORIES = ("carrier", "origin")
SCHEDULE = ("carrier", "origin", "distance", "scheduled_hour", "scheduled_weekday")
FEATURES = (
    *SCHEDULE,
    "temp",
    "dewp",
    "humid",
    "wind_speed",
    "wind_gust",
    "precip",
    "pressure",
    "visib",
    "crosswind",
    "icing",
    "departures_2h",
    "mean_dep_delay_2h",
    "overdue_3h",
    "last_arr_delay",
    "mean_arr_delay_5",
    "arrivals_7d",
    "minutes_since_last_arrival",
    "carrier_mean_arr_delay_1d",
    "carrier_share_late_1d",
    "carrier_mean_arr_delay_7d",
    "carrier_share_late_7d",
    "carrier_mean_arr_delay_28d",
    "carrier_share_late_28d",
    "carrier_delay_trend",
    "route_mean_arr_delay_28d",
    "route_share_late_28d",
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A fitted model and how well it ranks the departures from `SPLIT` on."""

    model: Pipeline
    columns: tuple[str, ...]
    auc: float
    training_rows: int
    test_rows: int


def evaluate(
    training_set: pl.DataFrame, columns: Sequence[str] = FEATURES, *, training_rows: int = TRAINING_ROWS
) -> Evaluation:
    """Fits on a fixed sample of the departures before `SPLIT`, scores on all from then on.

    Args:
        training_set: `columns`, `LABEL` and `scheduled_departure`, in any fixed order of rows. A feature may be null:
            trees split on it.
    """
    past = training_set.filter(pl.col("scheduled_departure") < SPLIT)
    train = past.sample(min(training_rows, past.height), seed=SEED)
    model = fit(train, columns)
    test = training_set.filter(pl.col("scheduled_departure") >= SPLIT)
    return Evaluation(model, tuple(columns), auc(model, test, columns), train.height, test.height)


def fit(train: pl.DataFrame, columns: Sequence[str] = FEATURES) -> Pipeline:
    """Same rows, same model: the seed is fixed and nothing stops early."""
    categories = [column for column in columns if column in CATEGORIES]
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    trees = HistGradientBoostingClassifier(
        categorical_features=range(len(categories)), max_iter=120, early_stopping=False, random_state=SEED
    )
    encoded_first = make_column_transformer((codes, categories), remainder="passthrough")
    with _one_thread():
        return make_pipeline(encoded_first, trees).fit(_inputs(train, columns), train[LABEL].to_numpy())


def late_probability(model: Pipeline, rows: pl.DataFrame, columns: Sequence[str] = FEATURES) -> pl.Series:
    """How probable it is that each row arrives late, in the order of the rows."""
    with _one_thread():
        return pl.Series("late_probability", model.predict_proba(_inputs(rows, columns))[:, 1])


def auc(model: Pipeline, rows: pl.DataFrame, columns: Sequence[str] = FEATURES) -> float:
    return float(roc_auc_score(rows[LABEL].to_numpy(), late_probability(model, rows, columns).to_numpy()))


def joined_by_day(spine: pl.LazyFrame, history: pl.LazyFrame, keys: Sequence[str], time: str) -> pl.LazyFrame:
    """The join NOT to make: to each departure, its keys' last row of the same (UTC) day.

    It looks as innocent as any join on a date, and hands the model what became known after the departure: tonight's
    punctuality, and for a plane's last flight of the day the very arrival to be predicted. Here to show what that does
    to an AUC.
    """
    last_of_day = history.sort(time).group_by(*keys, pl.col(time).dt.date().alias("day")).last()
    return (
        spine.with_columns(day=pl.col("scheduled_departure").dt.date())
        .join(last_of_day, on=[*keys, "day"], how="left", maintain_order="left")
        .drop("day", time)
    )


def _inputs(rows: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    return rows.select(columns).with_columns(pl.col(pl.Boolean).cast(pl.Float64))


def _one_thread() -> threadpool_limits:
    # The threads of OpenMP spin while they wait for one another: on two busy cores, two took 24 seconds for what one
    # does in 5, with the same model.
    return threadpool_limits(limits=1, user_api="openmp")
