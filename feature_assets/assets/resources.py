"""`FeatureAssets`: the one Dagster resource, which opens the stores and hands upstream rows to asset functions."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dagster as dg
import polars as pl

from feature_assets.assets.annotated import as_annotated
from feature_assets.assets.metadata import spec_from_metadata
from feature_assets.assets.partitions import has_time, slices
from feature_assets.config import Settings
from feature_assets.drafts import drafted
from feature_assets.errors import ContractBroken, RequestError, StoreError, TableMissing
from feature_assets.offline import OfflineStore
from feature_assets.online import open_online_store
from feature_assets.online.protocol import OnlineStore
from feature_assets.registry import RegistryStore
from feature_assets.sources import Window, read_source
from feature_assets.spec import UNPARTITIONED, BatchSource, ViewSpec
from feature_assets.store import FeatureStore
from feature_assets.training import TrainingSet, set_of_partition

RESOURCE = "feature_assets"
"""The key of the resource and IO manager that every view needs."""

SERVED = "feature_assets/served"
"""Metadata of the asset of a served log: the service that was asked for."""

TRAINING_SET = "feature_assets/training_set"
"""The metadata key of an asset whose rows are a saved training set: the name that it is saved under."""

LOOKBACK = "feature_assets/lookback_seconds"
TIMESTAMP = "feature_assets/timestamp"
"""Metadata of a plain asset kept by this IO manager: the column by whose time its rows are cut to a window."""


@lru_cache(maxsize=8)
def _settings(config: str | None) -> Settings:
    return Settings.load(config)


@lru_cache(maxsize=8)
def _online(url: str) -> OnlineStore:
    return open_online_store(url)


class FeatureAssets(dg.ConfigurableIOManager):
    """The stores, from `feature_assets.toml` and the environment; give `config` the path of another file.

    Views write through `publish`; as their IO manager it only reads. Plain assets with `io_manager_key="feature_assets"`
    are kept as Parquet beside the offline store, one file per partition.
    """

    config: str | None = None

    def settings(self) -> Settings:
        """Where everything is kept."""
        return _settings(self.config)

    def offline(self) -> OfflineStore:
        """The Delta tables."""
        settings = self.settings()
        root = settings.place(settings.offline)
        return OfflineStore(root, storage_options=settings.storage(), durability=settings.durability)

    def online(self) -> OnlineStore:
        """The latest row per key."""
        return _online(self.settings().online_url)

    def registry(self) -> RegistryStore:
        """The published registry."""
        settings = self.settings()
        return RegistryStore(settings.place(settings.registry), settings.storage())

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Keep the rows of a plain asset: a Polars frame, or anything that exports Arrow."""
        rows = obj if isinstance(obj, pl.LazyFrame | pl.DataFrame) else pl.DataFrame(obj)
        folder = self._folder(context.asset_key)
        if not context.has_asset_partitions:
            self._write(f"{folder}/{UNPARTITIONED}.parquet", rows.lazy())
            return
        keys = list(context.asset_partition_keys)
        if len(keys) == 1:
            self._write(f"{folder}/{quote(keys[0], safe='')}.parquet", rows.lazy())
            return
        column = _plain((context.definition_metadata or {}).get(TIMESTAMP))
        if not column and has_time(context.asset_partitions_def):
            raise ContractBroken(
                f"{context.asset_key.to_user_string()}: {len(keys)} partitions came in one frame. Name the column that "
                f'tells them apart: metadata={{"{TIMESTAMP}": "<column>"}}, or use BackfillPolicy.multi_run(1).'
            )
        frame = rows.lazy().collect(engine="streaming")
        for one in slices(context.asset_partitions_def, keys):
            part = frame.lazy() if one.start is None else _cut(frame.lazy(), column, one.start, one.end)
            for name, wanted in one.dimensions.items():
                if name not in frame.columns:
                    raise ContractBroken(
                        f"{context.asset_key.to_user_string()}: {len(keys)} partitions came in one frame that has no "
                        f"column '{name}' to tell them apart. Return it, or use BackfillPolicy.multi_run(1)."
                    )
                part = part.filter(pl.col(name).cast(pl.String) == wanted)
            self._write(f"{folder}/{quote(one.key, safe='')}.parquet", part)

    def read(
        self, source: BatchSource, window: Window | None = None, *, lookback: timedelta = timedelta(0)
    ) -> pl.LazyFrame:
        """The rows of a source: of the window (UTC), reaching back so far; all of them without one."""
        if window is not None:
            window = (window[0] - lookback, window[1])
        return read_source(source, window, storage_options=self.settings().storage())

    def load_input(self, context: dg.InputContext) -> Any:
        """Upstream rows: of the partition's window, reaching back as far as the view declared.

        A lazy frame, unless the parameter is annotated as a Polars, pandas or Arrow one; of a training set also as
        `TrainingSet`.
        """
        upstream = (context.upstream_output.definition_metadata if context.upstream_output else None) or {}
        if (name := _plain(upstream.get(TRAINING_SET))) is not None:
            return self._saved(name, context)
        return as_annotated(self._rows(context), context.dagster_type.typing_type)

    def _rows(self, context: dg.InputContext) -> pl.LazyFrame:
        start, end = _window(context)
        metadata = context.definition_metadata or {}
        if start is not None:
            start -= timedelta(seconds=_number(metadata.get(LOOKBACK)))
        upstream = context.upstream_output.definition_metadata if context.upstream_output else {}
        if (service := _plain((upstream or {}).get(SERVED))) is not None:
            return self._served(service, start, end)
        spec = spec_from_metadata(upstream or {})
        if isinstance(spec, ViewSpec):
            return self._history(spec, start, end)
        return self._kept(context, (upstream or {}).get(TIMESTAMP), start, end)

    def _saved(self, name: str, context: dg.InputContext) -> Any:
        partitions = context.asset_partition_keys if context.has_asset_partitions else [None]
        with FeatureStore(self.settings()) as store:
            sets = [store.training_set(set_of_partition(name, one)) for one in partitions]
        if context.dagster_type.typing_type is not TrainingSet:
            return as_annotated(pl.concat(one.lazy() for one in sets), context.dagster_type.typing_type)
        if len(sets) != 1:
            raise RequestError(
                f"Training set '{name}' comes in {len(sets)} partitions, and a TrainingSet is one of them. Annotate the "
                "parameter as a frame, or map it to one partition."
            )
        return sets[0]

    def _history(self, spec: ViewSpec, start: datetime | None, end: datetime | None) -> pl.LazyFrame:
        rows = self.offline().scan(spec, since=start).select(spec.columns)
        return rows if end is None else rows.filter(pl.col(spec.event_timestamp) < end)

    def _served(self, service: str, start: datetime | None, end: datetime | None) -> pl.LazyFrame:
        with FeatureStore(self.settings()) as store:
            return store.get_served_features(service, since=start, until=end)

    def _kept(
        self, context: dg.InputContext, column: Any, start: datetime | None, end: datetime | None
    ) -> pl.LazyFrame:
        folder = self._folder(context.asset_key)
        keys = (
            [quote(key, safe="") for key in context.asset_partition_keys]
            if context.has_asset_partitions
            else [UNPARTITIONED]
        )
        files = [f"{folder}/{key}.parquet" for key in keys]
        if "://" not in folder:
            files = [file for file in files if Path(file).is_file()]
        if not files:
            raise TableMissing(
                f"Asset '{context.asset_key.to_user_string()}' has nothing for {_shown(keys)}. Materialise it first: "
                f"dagster asset materialize --select {context.asset_key.to_user_string()}"
            )
        rows = pl.scan_parquet(files, storage_options=self.settings().storage() or None)
        return _cut(rows, _plain(column), start, end) if column else rows

    def _folder(self, key: dg.AssetKey) -> str:
        settings = self.settings()
        return "/".join((settings.place(settings.offline), "__assets", *(quote(part, safe="") for part in key.path)))

    def _write(self, place: str, rows: pl.LazyFrame) -> None:
        if "://" in place:
            rows.sink_parquet(place, storage_options=self.settings().storage() or None)
            return
        target = Path(place)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with drafted(target) as draft:
                rows.sink_parquet(draft)
        except OSError as error:
            raise StoreError(f"{target} could not be written: {error}. Free some room or correct the path.") from error


def _shown(keys: Sequence[str]) -> str:
    return f"partition {keys[0]}" if len(keys) == 1 else f"partitions {keys[0]} … {keys[-1]}"


def _window(context: dg.InputContext) -> tuple[datetime | None, datetime | None]:
    """The window of the run in UTC, whatever the upstream's partitions are; nothing where time does not divide the view."""
    step = context.step_context
    if not step.has_partitions or not has_time(step.entity_partitions_def):
        return None, None
    window = step.partition_time_window
    return window.start.astimezone(UTC), window.end.astimezone(UTC)


def _cut(rows: pl.LazyFrame, column: str, start: datetime | None, end: datetime | None) -> pl.LazyFrame:
    dtype = rows.collect_schema().get(column)
    if dtype is None:
        raise ContractBroken(
            f"The column '{column}' that {TIMESTAMP} names is not there (columns: {', '.join(rows.collect_schema())})."
        )
    time = pl.col(column)
    if getattr(dtype, "time_zone", None):
        time = time.dt.convert_time_zone("UTC")
    else:
        time = time.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if start is not None:
        rows = rows.filter(time >= start.astimezone(UTC))
    return rows if end is None else rows.filter(time < end.astimezone(UTC))


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, dg.MetadataValue) else value


def _number(value: Any) -> float:
    return float(_plain(value) or 0)
