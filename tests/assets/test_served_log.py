"""The log of what a service served, as Dagster shows it: an asset downstream of the service, reported day by day."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import polars as pl
import pytest

from feature_assets import DeclarationError, FeatureStore, LoggingConfig
from feature_assets.assets import FeatureAssets, FeatureService, feature_definitions
from feature_assets.assets.metadata import registry_from_graph
from feature_assets.assets.partitions import slices
from feature_assets.publication import publish
from feature_assets.served.shape import log_store, log_table, shape_of
from feature_assets.served.writing import Served, ServedLog
from tests.assets.test_metrics_reference import documented
from tests.assets.test_platform import DAILY, _tick, feels_like, weather

NOON = datetime(2024, 1, 2, 12, tzinfo=UTC)
SERVED = dg.AssetKey("outdoors_served")


def platform(stores: FeatureAssets, *assets: Any, **logging: Any) -> dg.Definitions:
    outdoors = FeatureService(
        "outdoors",
        [weather[["temp"]].with_name("air"), feels_like],
        logging=LoggingConfig(**logging),
        group_name="walks",
    )
    return feature_definitions([weather, feels_like, outdoors, *assets], config=stores.config)


def published(stores: FeatureAssets, definitions: dg.Definitions) -> FeatureStore:
    """The platform with a row of weather in both stores, and its registry."""
    rows = pl.DataFrame(
        {"origin": ["JFK"], "observed_at": [NOON - timedelta(hours=1)], "temp": [1.0], "wind": [2.0]},
    )
    publish(weather.spec, rows, slices(DAILY, ["2024-01-02"]), offline=stores.offline(), online=stores.online())
    stores.registry().publish(registry_from_graph(definitions.resolve_asset_graph()), location="tests", by="me")
    return FeatureStore(stores.settings().model_copy(update={"present": NOON}))


def serve(store: FeatureStore, *moments: datetime, keys: tuple[str, ...] = ("JFK", "LGA")) -> None:
    """Have answers of these moments logged, as a server has."""
    shape = shape_of(store.registry, "outdoors")
    log = ServedLog(log_store(store.settings), seconds=60, max_bytes=1 << 20)
    for number, moment in enumerate(moments):
        entities = {"origin": list(keys), "hour": [12] * len(keys)}
        answer = store.get_online_features("outdoors", entities)
        at = int(moment.timestamp() * 1e6)
        log.take(Served(shape, "digest", f"{moment:%d%H}-{number}", at, entities, answer, 100))
    log.close()


def reports(tick: Any) -> dict[str, dict[str, Any]]:
    """What a tick reports, by day."""
    return {
        event.partition: {name: value.value for name, value in event.metadata.items()} for event in tick.asset_events
    }


def test_the_log_of_a_service_is_an_asset_downstream_of_it(stores: FeatureAssets) -> None:
    definitions = platform(stores, sample_rate=0.5, retention=timedelta(days=30))
    graph = definitions.resolve_asset_graph()
    node = graph.get(SERVED)
    assert node.parent_keys == {dg.AssetKey("outdoors")}
    assert not node.is_materializable
    assert node.group_name == "walks"
    assert node.partitions_def == dg.DailyPartitionsDefinition("2024-01-01", end_offset=1)
    columns = {one.name: one for one in node.metadata["dagster/column_schema"].columns}
    assert list(columns) == [
        *("request_id", "request_row", "served_at", "registry_digest", "origin", "hour", "temp", "chill"),
        *("temp__status", "chill__status", "event_timestamp__air"),
    ]
    assert columns["temp"].type == "Float64"
    assert not columns["origin"].constraints.nullable
    assert node.metadata["retention"] == "30 days, 0:00:00"
    assert registry_from_graph(graph).services["outdoors"].logging == LoggingConfig(
        sample_rate=0.5, retention=timedelta(days=30)
    )


def test_what_arrives_is_reported_as_materialisations_of_its_days(
    stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    definitions = platform(stores)
    quiet = _tick(definitions, "report_served_features", instance)
    assert (quiet.asset_events, quiet.skip_message) == ([], "Nothing was logged since the last look.")
    with published(stores, definitions) as store:
        serve(store, NOON, NOON + timedelta(days=1))
        first = _tick(definitions, "report_served_features", instance, quiet.cursor)
        days = reports(first)
        assert {day: found["dagster/partition_row_count"] for day, found in days.items()} == {
            "2024-01-02": 2,
            "2024-01-03": 2,
        }
        assert {found["dagster/row_count"] for found in days.values()} == {4}
        lineage = days["2024-01-02"]["dagster/column_lineage"].deps_by_column
        assert lineage["temp"] == [dg.TableColumnDep(weather.key, "temp")]
        assert lineage["chill"] == [dg.TableColumnDep(feels_like.key, "chill")]
        assert lineage["origin"] == [dg.TableColumnDep(weather.key, "origin")]
        again = _tick(definitions, "report_served_features", instance, first.cursor)
        assert not again.asset_events
        serve(store, NOON + timedelta(days=1, hours=1))
        more = _tick(definitions, "report_served_features", instance, again.cursor)
        assert {day: (one["rows"], one["dagster/partition_row_count"]) for day, one in reports(more).items()} == {
            "2024-01-03": (2, 4)
        }
    for event in [*first.asset_events, *more.asset_events]:
        instance.report_runless_asset_event(event)
    assert instance.get_materialized_partitions(SERVED) == {"2024-01-02", "2024-01-03"}


def test_compaction_is_no_news(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    definitions = platform(stores)
    with published(stores, definitions) as store:
        serve(store, NOON)
        serve(store, NOON)
        first = _tick(definitions, "report_served_features", instance)
        table = shape_of(store.registry, "outdoors").table
        assert log_store(store.settings).compact_pushes(table, ["2024-01-02"], more_than=1) is not None
        assert not _tick(definitions, "report_served_features", instance, first.cursor).asset_events


def checked(definitions: dg.Definitions, instance: dg.DagsterInstance, **window: str) -> Any:
    job = dg.define_asset_job("check", selection=dg.AssetSelection.checks_for_assets(SERVED))
    resolved = dg.Definitions.merge(definitions, dg.Definitions(jobs=[job])).resolve_job_def("check")
    ops = {"ops": {"outdoors_served_skew": {"config": window}}} if window else {}
    return resolved.execute_in_process(instance=instance, run_config=ops, raise_on_error=False)


@pytest.mark.parametrize(
    "tolerance, severity, passes",
    [(0.0, "warn", False), (0.0, "error", False), (0.5, "error", True)],
    ids=["warns", "fails", "tolerated"],
)
def test_skew_is_a_check_of_the_log(
    stores: FeatureAssets, instance: dg.DagsterInstance, tolerance: float, severity: Any, passes: bool
) -> None:
    definitions = platform(stores, skew_tolerance=tolerance, skew_severity=severity)
    with published(stores, definitions) as store:
        serve(store, NOON)
        result = checked(definitions, instance, since="2024-01-01")
        assert result.success
        (same,) = result.get_asset_check_evaluations()
        assert (same.passed, same.asset_key, same.check_name) == (True, SERVED, "skew")
        assert {name: same.metadata[name].value for name in ("rows", "features_that_differ", "greatest_share")} == {
            "rows": 2,
            "features_that_differ": 0,
            "greatest_share": 0.0,
        }
        changed = pl.DataFrame(
            {"origin": ["JFK"], "observed_at": [NOON - timedelta(hours=1)], "temp": [1.5], "wind": [2.0]},
        )
        publish(weather.spec, changed, slices(DAILY, ["2024-01-02"]), offline=stores.offline(), online=None)
        (after,) = checked(definitions, instance, since="2024-01-01").get_asset_check_evaluations()
    assert after.passed is passes
    assert after.severity == (dg.AssetCheckSeverity.ERROR if severity == "error" else dg.AssetCheckSeverity.WARN)
    assert after.metadata["greatest_share"].value == 0.5
    assert "temp | 2 | 1 | 1 | 0 | 50.00% | 0.5" in after.metadata["features"].value
    assert "| 1.0 | 1.5" in after.metadata["examples"].value
    found = {one.feature: one.share for one in FeatureStore(stores.settings()).skew("outdoors")}
    assert found == {"temp": 0.5, "chill": 0.5}, "the check and the command say the same"


def test_the_check_fails_with_words_where_nothing_was_logged(
    stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    definitions = platform(stores)
    with published(stores, definitions):
        result = checked(definitions, instance)
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "Nothing that service 'outdoors' served is logged." in failure.event_specific_data.error_display_string


def test_an_asset_reads_the_days_of_its_window_from_the_log(
    stores: FeatureAssets, instance: dg.DagsterInstance
) -> None:
    taken: dict[str, list[datetime]] = {}

    @dg.asset(partitions_def=dg.DailyPartitionsDefinition("2024-01-01", end_offset=1))
    def retrained(context: dg.AssetExecutionContext, outdoors_served: pl.LazyFrame) -> None:
        rows = outdoors_served.collect()
        assert {"request_id", "origin", "temp", "chill", "hour"} <= set(rows.columns)
        taken[context.partition_key] = rows["served_at"].unique().to_list()

    definitions = platform(stores, retrained)
    assert definitions.resolve_asset_graph().get(retrained.key).parent_keys == {SERVED}
    with published(stores, definitions) as store:
        serve(store, NOON, NOON + timedelta(days=1))
    job = definitions.resolve_implicit_global_asset_job_def()
    done = job.execute_in_process(instance=instance, asset_selection=[retrained.key], partition_key="2024-01-03")
    assert done.success
    assert taken == {"2024-01-03": [NOON + timedelta(days=1)]}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"retention": timedelta(hours=1)}, "retention 1:00:00 is not a day at least"),
        ({"skew_tolerance": 1.5}, "skew_tolerance 1.5 is not a share"),
        ({"skew_severity": "fatal"}, "skew_severity"),
    ],
    ids=["retention", "tolerance", "severity"],
)
def test_a_logging_config_that_cannot_be_right_is_refused(wrong: dict[str, Any], message: str) -> None:
    make: Callable[..., Any] = LoggingConfig
    with pytest.raises(DeclarationError, match=message):
        make(**wrong)


def test_a_log_does_not_take_another_assets_name(stores: FeatureAssets) -> None:
    taken = FeatureService("outdoors_served", [weather])
    with pytest.raises(DeclarationError, match="logged as the asset 'outdoors_served', and there is another"):
        platform(stores, taken)


def test_the_page_names_what_is_reported(stores: FeatureAssets, instance: dg.DagsterInstance) -> None:
    definitions = platform(stores)
    with published(stores, definitions) as store:
        serve(store, NOON)
        first = _tick(definitions, "report_served_features", instance)
        serve(store, NOON)
        then = _tick(definitions, "report_served_features", instance, first.cursor)
        (check,) = checked(definitions, instance, since="2024-01-01", until="2025-01-01").get_asset_check_evaluations()
    reported = {name for event in then.asset_events for name in event.metadata}
    assert reported | set(check.metadata) | {"examples"} == documented("Of a served log")


def days_of(stores: FeatureAssets) -> list[str]:
    table = log_table("outdoors")
    state = log_store(stores.settings()).state(table)
    return list(state.rows_by_partition) if state else []


@pytest.mark.parametrize(
    "retention, left",
    [(timedelta(days=2), ["today"]), (timedelta(days=30), ["old", "today"]), (None, ["old", "today"])],
    ids=["gone", "kept", "for ever"],
)
def test_upkeep_removes_the_days_that_lie_back_longer_than_the_retention(
    stores: FeatureAssets, instance: dg.DagsterInstance, retention: timedelta | None, left: list[str]
) -> None:
    definitions = platform(stores, retention=retention)
    now = datetime.now(UTC)
    named = {"old": now - timedelta(days=10), "today": now}
    with published(stores, definitions) as store:
        serve(store, *named.values())
        first = _tick(definitions, "report_served_features", instance)
        spine = store.get_served_features("outdoors").select("origin", "hour", "served_at").collect()
        asked = store.get_historical_features(spine, "outdoors", timestamp_column="served_at")
        asked.save("from_the_log")
        assert definitions.resolve_job_def("maintain_stores").execute_in_process(instance=instance).success
        assert days_of(stores) == [f"{named[name]:%Y-%m-%d}" for name in left]
        told = _tick(definitions, "report_served_features", instance, first.cursor)
        assert len(told.asset_events or ()) == 2 - len(left), "a day that went is told as a day without rows"
        assert [one["dagster/partition_row_count"] for one in reports(told).values()] == [0] * (2 - len(left))
        assert store.rebuild("from_the_log").collect().equals(asked.collect()), "saved sets do without the log"
