"""The log of what a service served as an asset: its days as partitions, what arrives as materialisations, skew as a check.

Nothing here writes the log; servers do, and they know no Dagster. A sensor looks at its Delta log and reports.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import dagster as dg

from feature_assets.assets.composed import FeatureService, OnDemandFeatureView
from feature_assets.assets.feature_view import FeatureView
from feature_assets.assets.passed_on import declaring
from feature_assets.assets.resources import RESOURCE, SERVED, FeatureAssets
from feature_assets.errors import DeclarationError, FeatureAssetsError, TableMissing, UnknownFeature, UnknownView
from feature_assets.references import ReadPlan
from feature_assets.registry import Registry
from feature_assets.served.days import ChangedDay, Changes, changed_days
from feature_assets.served.shape import DAY, REGISTRY, REQUEST_ID, REQUEST_ROW, SERVED_AT, LogShape, log_store, shape_of
from feature_assets.served.skew import FeatureSkew, beyond
from feature_assets.spec import LoggingConfig, TimePartitions
from feature_assets.store import FeatureStore

CHECK: Final = "skew"

_FIRST_DAY: Final = "2020-01-01"
_COMPARED: Final = timedelta(days=1)
_TOLD: Final[Mapping[str, str]] = {
    REQUEST_ID: "the answer's X-Request-Id",
    REQUEST_ROW: "position among the rows of the request, from 0",
    SERVED_AT: "when it was served, UTC",
    REGISTRY: "the registry snapshot by which it was answered",
}


def logged(assets: Sequence[Any]) -> list[FeatureService]:
    """The services of which there is a log."""
    return [one for one in assets if isinstance(one, FeatureService) and one.spec.logging is not None]


def log_key(service: FeatureService) -> dg.AssetKey:
    """The asset of a service's log stands beside the service: `departures_served` beside `departures`."""
    return dg.AssetKey([*service.key.path[:-1], f"{service.key.path[-1]}_served"])


def log_assets(
    services: Sequence[FeatureService],
    declared: Sequence[FeatureView | OnDemandFeatureView | FeatureService],
    registry: Registry,
) -> list[dg.AssetSpec]:
    """An external asset for the log of each service, downstream of it.

    Raises:
        DeclarationError: there is another asset of its name.
    """
    keys = {one.key for one in declared}
    made = []
    for service in services:
        key, spec = log_key(service), service.spec
        if key in keys:
            raise DeclarationError(
                f"Feature service '{spec.name}': what it serves is logged as the asset '{key.to_user_string()}', and there is "
                "another asset of that name. Give one of the two another name or key_prefix."
            )
        shape = _shape(registry, spec.name)
        with declaring(f"The log of feature service '{spec.name}'"):
            one = dg.AssetSpec(
                key,
                deps=[service.key],
                description=f"What the feature server answered, of service '{spec.name}': a row for each vector.",
                group_name=service.group_names_by_key.get(service.key),
                owners=list(spec.owners),
                tags=dict(spec.tags),
                kinds={"delta"},
                metadata={SERVED: spec.name, **_definition(spec.logging or LoggingConfig(), shape)},
                partitions_def=dg.DailyPartitionsDefinition(_first_day(declared, shape), end_offset=1),
            )
            made.append(one.with_io_manager_key(RESOURCE))
    return made


def _shape(registry: Registry, service: str) -> LogShape | None:
    """None where the service is made of another code location's views, which only publishing knows."""
    try:
        return shape_of(registry, service)
    except (UnknownView, UnknownFeature):
        return None


def _definition(config: LoggingConfig, shape: LogShape | None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "sample_rate": config.sample_rate,
        "retention": str(config.retention) if config.retention else "for ever",
    }
    return told if shape is None else {**told, "dagster/column_schema": _column_schema(shape)}


def _column_schema(shape: LogShape) -> dg.TableSchema:
    described = {output.name: output.field.description for output in shape.plan.outputs}
    described |= {f"{name}__status": f"what became of {name}: PRESENT, NOT_FOUND, …" for name in shape.outputs}
    described |= {f"event_timestamp__{read}": f"event timestamp of the row of {read}" for read in shape.events}
    columns = []
    for name, of in shape.table.types.items():
        what = _TOLD.get(name) or ("join key" if name in shape.keys else None)
        if what is None:
            what = "request field" if name in shape.request else described.get(name) or None
        always = dg.TableColumnConstraints(nullable=name not in _TOLD and name not in shape.keys)
        columns.append(dg.TableColumn(name, str(of), description=what, constraints=always))
    return dg.TableSchema(columns=columns)


def _first_day(declared: Sequence[Any], shape: LogShape | None) -> str:
    """The first day that the service's views have: nothing was served before, in a replay of old data either."""
    views = {read.view.name for read in shape.plan.reads} if shape is not None else set()
    starts = [
        datetime.fromisoformat(one.start).astimezone(UTC).strftime(DAY)
        for view in declared
        if isinstance(view, FeatureView) and view.spec.name in views
        for one in view.spec.partitions.values()
        if isinstance(one, TimePartitions)
    ]
    return min(starts, default=_FIRST_DAY)


def report_sensor(
    services: Sequence[FeatureService],
    declared: Sequence[FeatureView | OnDemandFeatureView | FeatureService],
    registry: Registry,
) -> dg.SensorDefinition:
    """Reports what has arrived in the logs as materialisations of their days, by a look at their Delta logs."""
    keys = {one.spec.name: one.key for one in declared}

    @dg.sensor(
        name="report_served_features",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={RESOURCE},
        description="Reports what was served and logged since the last look as materialisations.",
    )
    def report_served_features(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        stores: FeatureAssets = getattr(context.resources, RESOURCE)
        offline = log_store(stores.settings())
        seen: dict[str, dict[str, Any]] = json.loads(context.cursor or "{}")
        events: list[dg.AssetMaterialization] = []
        failed: list[FeatureAssetsError] = []
        for service in services:
            name = service.spec.name
            try:
                former = {day: (rows, erased) for day, (rows, erased) in seen.get(name, {}).items()}
                changes = changed_days(name, offline, former)
            except FeatureAssetsError as error:
                context.log.exception("the log of %s cannot be looked at; the others are", name)
                failed.append(error)
                continue
            lineage = _column_lineage(_shape(registry, name), keys)
            place = f"{offline.root}/{name}"
            events += [_materialization(log_key(service), day, changes, place, lineage) for day in changes.days]
            seen[name] = dict(changes.seen)
        if failed and not events:
            raise failed[0]
        cursor = json.dumps(seen, sort_keys=True)
        if not events:
            return dg.SensorResult(cursor=cursor, skip_reason=dg.SkipReason("Nothing was logged since the last look."))
        told = dg.SkipReason(f"Reported, by days: {len(events)}. There is nothing to run.")
        return dg.SensorResult(cursor=cursor, asset_events=events, skip_reason=told)

    return report_served_features


def _materialization(
    key: dg.AssetKey, day: ChangedDay, changes: Changes, place: str, lineage: Mapping[str, Any]
) -> dg.AssetMaterialization:
    version = max(changes.versions)
    metadata: dict[str, Any] = {
        "rows": day.added,
        "dagster/row_count": changes.rows,
        "dagster/partition_row_count": day.rows,
        "delta_version": changes.versions[version],
        "table": dg.MetadataValue.path(f"{place}/v{version}"),
        **lineage,
    }
    data_version = ".".join(f"{table}-{at}" for table, at in sorted(changes.versions.items()))
    return dg.AssetMaterialization(
        key, partition=day.day, metadata=metadata, tags={"dagster/data_version": data_version}
    )


def _column_lineage(shape: LogShape | None, keys: Mapping[str, dg.AssetKey]) -> dict[str, Any]:
    """Which column of a view each column of the log was read from."""
    if shape is None:
        return {}
    columns: dict[str, list[dg.TableColumnDep]] = {}
    behind = _behind(shape.plan)

    def asset(view: str) -> dg.AssetKey:
        return keys.get(view, dg.AssetKey(view))

    for output in shape.plan.outputs:
        if output.name in shape.outputs:
            view = asset(behind.get(output.view, output.view))
            columns[output.name] = [dg.TableColumnDep(view, output.field.name)]
    for read in shape.plan.reads:
        for of, column in read.keys:
            columns.setdefault(column, []).append(dg.TableColumnDep(asset(read.view.name), of))
    # One view may be read in several ways.
    once = {name: list(dict.fromkeys(deps)) for name, deps in columns.items()}
    return {"dagster/column_lineage": dg.TableColumnLineage(once)}


def _behind(plan: ReadPlan) -> dict[str, str]:
    return {read.name: read.view.name for read in plan.reads}


class Served(dg.Config):
    """The time of which what was served is compared; the last day if nothing is given. ISO 8601, UTC."""

    since: str | None = None
    until: str | None = None


def skew_checks(services: Sequence[FeatureService]) -> Iterator[dg.AssetChecksDefinition]:
    """For each log the check that what was served is what the offline store says now, within the declared tolerance."""
    for service in services:
        yield _skew_check(service.spec.name, log_key(service), service.spec.logging or LoggingConfig())


def _skew_check(service: str, key: dg.AssetKey, declared: LoggingConfig) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=key,
        name=CHECK,
        description="What was served is what the offline store says now of the same keys and times, but for "
        f"{declared.skew_tolerance:.2%} of the rows of each feature. Compares the last day unless since= is given.",
        required_resource_keys={RESOURCE},
    )
    def skew(context: dg.AssetCheckExecutionContext, config: Served) -> dg.AssetCheckResult:
        stores: FeatureAssets = getattr(context.resources, RESOURCE)
        settings = stores.settings()
        since = config.since or ((settings.present or datetime.now(UTC)) - _COMPARED).isoformat()
        with FeatureStore(settings) as store:
            try:
                found = store.skew(service, since=since, until=config.until)
            except TableMissing as error:
                raise dg.Failure(str(error), allow_retries=False) from error
        return _result(found, declared, {"since": since, **({"until": config.until} if config.until else {})})

    return skew


def _result(found: Sequence[FeatureSkew], config: LoggingConfig, window: Mapping[str, str]) -> dg.AssetCheckResult:
    wrong = beyond(found, config.skew_tolerance)
    rows = max((one.rows for one in found), default=0)
    metadata: dict[str, Any] = {
        **window,
        "rows": rows,
        "features_that_differ": len(wrong),
        "greatest_share": max((one.share for one in found), default=0.0),
        "tolerance": config.skew_tolerance,
        "features": dg.MetadataValue.md(_features(found)),
    }
    if examples := _examples(found, config):
        metadata["examples"] = dg.MetadataValue.md(examples)
    said = f"{len(wrong)} of {len(found)} features differ: {', '.join(one.feature for one in wrong[:10])}"
    return dg.AssetCheckResult(
        passed=not wrong,
        severity=dg.AssetCheckSeverity.ERROR if config.skew_severity == "error" else dg.AssetCheckSeverity.WARN,
        description=said if wrong else f"{rows:,} rows were served as history has them",
        metadata=metadata,
    )


def _features(found: Sequence[FeatureSkew]) -> str:
    lines = ["feature | rows | equal | different | missing | share | largest difference", " | ".join(["---"] * 7)]
    for one in found:
        largest = "" if one.largest is None else f"{one.largest:g}"
        cells = (one.feature, one.rows, one.equal, one.different, one.missing, f"{one.share:.2%}", largest)
        lines.append(" | ".join(map(str, cells)))
    return "\n".join(lines)


def _examples(found: Sequence[FeatureSkew], config: LoggingConfig) -> str:
    """The first values that differ; none of personal data, which whoever operates the platform is not to read here."""
    lines = ["feature | request | served at | served | offline", " | ".join(["---"] * 5)]
    for one in found:
        for example in () if one.feature in config.pii else one.examples:
            at = f"{example[SERVED_AT]:%Y-%m-%d %H:%M:%S}Z"
            cells = (one.feature, example[REQUEST_ID], at, example["served"], example["offline"])
            lines.append(" | ".join(str(cell).replace("|", "\\|")[:80] for cell in cells))
    return "\n".join(lines) if len(lines) > 2 else ""
