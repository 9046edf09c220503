"""What Dagster is told of many partitions is stored together, and reads as if it had been stored one by one."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from dagster._core.events import ASSET_EVENTS
from dagster._core.events.log import EventLogEntry

from feature_assets import Entity, FeatureAssets, Field, Int64, NotNull, feature_view
from feature_assets.cli.event_log import BatchedSqliteEventLog, batched
from feature_assets.cli.runs import dagster_instance
from feature_assets.config import Settings

DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-01-07")
RANGE = {"dagster/asset_partition_range_start": "2024-01-01", "dagster/asset_partition_range_end": "2024-01-06"}


@feature_view(
    entities=[Entity("driver", join_keys={"driver_id": Int64})],
    partitions_def=DAYS,
    event_timestamp="at",
    schema=[Field("km", Int64)],
    checks=[NotNull("km")],
)
def trips(context: dg.AssetExecutionContext) -> pl.DataFrame:
    """A row every other day."""
    start = context.partition_time_window.start
    days = list(pl.datetime_range(start, context.partition_time_window.end, "1d", closed="left", eager=True))
    kept = [day for day in days if day.day % 2]
    return pl.DataFrame({"driver_id": [1] * len(kept), "at": kept, "km": [day.day for day in kept]})


def told(folder: Path, instance: dg.DagsterInstance) -> dict[str, Any]:
    """What Dagster has of a run over a week, and of one over its last days after it."""
    (folder / "feature_assets.toml").write_text('durability = "process"\n')
    stores = FeatureAssets(config=str(folder / "feature_assets.toml"))
    runs = [
        dg.materialize([trips], instance=instance, resources={"feature_assets": stores}, tags=tags)
        for tags in (RANGE, RANGE | {"dagster/asset_partition_range_start": "2024-01-05"})
    ]
    record = instance.get_asset_records([trips.key])[0].asset_entry
    each = instance.fetch_materializations(trips.key, limit=1_000).records
    return {
        "materialised": instance.get_materialized_partitions(trips.key),
        "run": [run.run_id == record.last_run_id for run in runs],
        "last": record.last_materialization_record.partition_key,  # type: ignore[union-attr]
        "versions": [(one.partition_key, one.asset_materialization.tags["dagster/data_version"]) for one in each],  # type: ignore[union-attr,index]
        "planned": [event_types(instance, run.run_id) for run in runs],
        "tagged": [instance.get_event_tags_for_asset(trips.key, filter_event_id=one.storage_id) for one in each],
        "checks": [
            one.status.value
            for one in instance.event_log_storage.get_asset_check_execution_history(
                next(iter(trips.check_keys)), limit=100
            )
        ],
    }


def event_types(instance: dg.DagsterInstance, run: str) -> list[str]:
    return [one.dagster_event.event_type_value for one in instance.all_logs(run) if one.dagster_event is not None]


def test_it_reads_as_dagsters_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one: list[EventLogEntry] = []
    store = BatchedSqliteEventLog.store_event

    def noted(log: BatchedSqliteEventLog, event: EventLogEntry) -> None:
        one_by_one.append(event)
        store(log, event)

    monkeypatch.setattr(BatchedSqliteEventLog, "store_event", noted)
    found = {}
    for name in ("own", "batched"):
        folder = tmp_path / name
        (folder / ".dagster").mkdir(parents=True)
        if name == "own":
            monkeypatch.delenv("DAGSTER_EVENT_BATCH_SIZE", raising=False)
            with dg.DagsterInstance.local_temp(str(folder / ".dagster")) as instance:
                found[name] = told(folder, instance)
        else:
            monkeypatch.delenv("DAGSTER_HOME", raising=False)
            with dagster_instance(Settings(root=folder)) as (instance, _):
                assert type(instance.event_log_storage) is BatchedSqliteEventLog
                found[name] = told(folder, instance)
                kinds = {each.dagster_event_type for each in one_by_one}
            with dg.DagsterInstance.local_temp(str(folder / ".dagster")) as instance:
                assert len(instance.get_materialized_partitions(trips.key)) == 6, "for whoever opens it next"
    assert found["own"] == found["batched"]
    assert kinds
    assert not kinds & ASSET_EVENTS, "of partitions nothing was stored by itself"


@pytest.mark.parametrize(
    "settings",
    [
        "storage: {sqlite: {base_dir: /elsewhere}}",
        (
            "event_log_storage: {module: dagster._core.storage.event_log, class: ConsolidatedSqliteEventLogStorage, "
            "config: {base_dir: /elsewhere}}"
        ),
    ],
    ids=["all storage", "the event log"],
)
def test_who_says_where_events_are_kept_is_not_overruled(settings: str, tmp_path: Path) -> None:
    assert set(batched(tmp_path)) == {"event_log_storage"}
    (tmp_path / "dagster.yaml").write_text(settings)
    assert batched(tmp_path) == {}


def test_commands_that_begin_at_once_make_the_home_of_dagster_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster's own databases, made by several at once, are broken for good."""
    (tmp_path / ".dagster").mkdir()
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    start = threading.Barrier(6)

    def opened(_: int) -> int:
        start.wait()
        with dagster_instance(Settings(root=tmp_path)) as (instance, _):
            return instance.get_runs_count()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(opened, range(6))) == [0] * 6
