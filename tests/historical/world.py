"""A small platform to ask: declared objects, a real Delta store, and rows published into it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from feature_assets.historical import historical_features, rebuild
from feature_assets.offline import OfflineStore
from feature_assets.registry import Registry, RegistryStore
from feature_assets.spec import PARTITION, Entity, Field, ViewSpec
from feature_assets.training import TrainingSet, TrainingSets
from feature_assets.types import FeatureType, Float64, Int64, String

NOON = datetime(2013, 2, 8, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
CLOCK = pl.Datetime("us", "UTC")


def view(
    name: str, keys: dict[str, FeatureType] | None = None, features: Sequence[Field] | None = None, **options: Any
) -> ViewSpec:
    """A view with one feature `<name>_value` unless told otherwise, and one entity unless there are no keys."""
    keys = {"driver": String} if keys is None else keys
    return ViewSpec(
        name=name,
        entities=(Entity(f"{name}_entity", keys),) if keys else (),
        features=tuple(features or [Field(f"{name}_value", Float64)]),
        event_timestamp="at",
        **options,
    )


class World:
    def __init__(self, folder: Path, *objects: Any) -> None:
        self.folder = folder
        self.offline = OfflineStore(str(folder / "offline"), durability="process")
        self.sets = TrainingSets(folder / "training")
        self.published = RegistryStore(folder / "registry")
        self.registry = Registry.of(objects)
        self.published.publish(self.registry, location="tests", by="tests")
        self.registry = self.published.read().registry

    def publish(self, view: ViewSpec, rows: Sequence[dict[str, Any]] | pl.DataFrame, partition: str = "all") -> int:
        """Make these rows all that the partition holds; the number of the publication."""
        given = rows if isinstance(rows, pl.DataFrame) else pl.DataFrame(rows, schema=_schema(view), orient="row")
        frame = given.select(view.columns).with_columns(pl.lit(partition).alias(PARTITION))
        return self.offline.replace(view, frame, [partition], metadata={}).publication

    def ask(self, spine: Any, features: Any, **options: Any) -> TrainingSet:
        options = {"sets": self.sets, **options}
        return historical_features(self.registry, self.offline, spine, features, **options)

    def rebuild(self, name: str, **options: Any) -> TrainingSet:
        return rebuild(name, sets=self.sets, snapshot=self.published.snapshot, offline=self.offline, **options)


def _schema(view: ViewSpec) -> dict[str, Any]:
    times = [each for each in (view.event_timestamp, view.created_timestamp) if each]
    return {
        **{name: of.polars for name, of in view.join_keys.items()},
        **dict.fromkeys(times, CLOCK),
        **{field.name: field.type.polars for field in view.features},
    }


def spine(times: Sequence[datetime | None] = (NOON,), **columns: Any) -> pl.DataFrame:
    """A frame of these columns and `event_timestamp`."""
    return pl.DataFrame({**columns, "event_timestamp": pl.Series(times, dtype=CLOCK)})


__all__ = ["CLOCK", "HOUR", "MICROSECOND", "NOON", "Int64", "World", "spine", "view"]
