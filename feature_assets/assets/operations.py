"""What keeps the platform in step: the registry asset, the sensors that publish and reconcile, the jobs of upkeep."""

import getpass
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, TypeVar

import dagster as dg

from feature_assets.assets.composed import FeatureService, OnDemandFeatureView
from feature_assets.assets.feature_view import FeatureView
from feature_assets.assets.metadata import registry_from_graph, sources_from_metadata
from feature_assets.assets.passed_on import declaring
from feature_assets.assets.pushed import report_pushes_sensor
from feature_assets.assets.reconciling import JOB as RECONCILE_JOB
from feature_assets.assets.reconciling import reconcile_sensor
from feature_assets.assets.resources import RESOURCE, FeatureAssets
from feature_assets.assets.served_log import log_assets, logged, report_sensor, skew_checks
from feature_assets.assets.stream_view import StreamFeatureView
from feature_assets.assets.streamed import logged_views, stream_checks, watch_streams_sensor
from feature_assets.errors import FeatureAssetsError, NotPublished
from feature_assets.push import drain_orphans
from feature_assets.registry import Registry
from feature_assets.served.shape import log_store
from feature_assets.served.upkeep import keep_up as keep_up_served
from feature_assets.settlement import reconcile
from feature_assets.spec import AnySource, FileSource, LoggingConfig, LogSource, ServiceSpec, ViewSpec
from feature_assets.streams.dead_letters import dead_letter_store
from feature_assets.streams.dead_letters import keep_up as keep_up_dead
from feature_assets.training import NeededVersions, TrainingSets

log = logging.getLogger(__name__)

_Named = TypeVar("_Named", ViewSpec, ServiceSpec, LogSource)

REGISTRY = "feature_registry"
_GROUP = "feature_platform"
_VERSIONS_KEPT = timedelta(days=30)


def feature_definitions(
    assets: Iterable[Any],
    *,
    resources: dict[str, Any] | None = None,
    config: str | None = None,
    asset_checks: Sequence[Any] = (),
    sensors: Sequence[Any] = (),
    jobs: Sequence[Any] = (),
    **more: Any,
) -> dg.Definitions:
    """Dagster definitions of a feature platform: these assets, and all that keeps them in step.

    Adds the resource `feature_assets`, the asset `feature_registry` downstream of every view, the sensors
    `publish_registry` and `reconcile_online_store` and the job `maintain_stores`; nodes for the sources too, and for the
    log of each service that is logged, with the check `skew` and the sensor `report_served_features`; and with a view that
    takes pushed rows the sensor `report_pushed_rows`.

    Args:
        assets: whatever `dagster.Definitions` takes as assets.
        resources: besides `feature_assets`, or instead of the default one.
        config: the path of a `feature_assets.toml`, for the default resource.
        asset_checks, sensors, jobs, **more: passed on to `dagster.Definitions`.
    """
    found = list(assets)
    declared = [one for one in found if isinstance(one, FeatureView | OnDemandFeatureView | FeatureService)]
    views = [one for one in declared if isinstance(one, FeatureView)]
    sources = [source for view in views for source in sources_from_metadata(view.metadata_by_key[view.key])]
    # Two of one name are told here, in our words, and not when somebody publishes or Dagster resolves the graph.
    registry = Registry.of([*(one.spec for one in declared), *sources])
    services = logged(declared)
    logs = log_assets(services, declared, registry)
    everything = [*found, *_source_nodes(found, sources), *logs]
    reporting = [report_sensor(services, declared, registry)] if services else []
    if streams := [view for view in views if isinstance(view, StreamFeatureView)]:
        reporting.append(report_pushes_sensor(streams))
        if logged_views(streams):
            reporting.append(watch_streams_sensor(streams))

    @cache
    def derive() -> Registry:
        # Definitions do not change in a process, and the sensor asks twice a minute.
        return registry_from_graph(made.resolve_asset_graph())

    made = dg.Definitions(
        assets=[*everything, registry_asset(declared, derive)],
        resources={RESOURCE: FeatureAssets(config=config), **(resources or {})},
        asset_checks=[*skew_checks(services), *stream_checks(streams), *asset_checks],
        sensors=[publish_registry_sensor(derive), reconcile_sensor(views), *reporting, *sensors],
        jobs=[reconcile_job(views), maintenance_job(views, services, logged_views(streams)), *jobs],
        **more,
    )
    return made


def _source_nodes(assets: Sequence[Any], sources: Sequence[AnySource]) -> Iterator[dg.AssetSpec]:
    """An external asset for each source, where nobody declared one."""
    known = {key for one in assets for key in (one.keys if isinstance(one, dg.AssetsDefinition) else [one.key])}
    for source in {one.name: one for one in sources}.values():
        if dg.AssetKey(source.name) in known:
            continue
        kind = source.format if isinstance(source, FileSource) else type(source).__name__.removesuffix("Source").lower()
        with declaring(f"{type(source).__name__} '{source.name}'"):
            yield dg.AssetSpec(
                source.name,
                description=source.description or None,
                owners=list(source.owners),
                tags=dict(source.tags),
                kinds={kind},
            )


def registry_asset(
    declared: Sequence[FeatureView | OnDemandFeatureView | FeatureService], derive: Callable[[], Registry]
) -> dg.AssetsDefinition:
    """The asset `feature_registry`: materialising it publishes what the graph declares."""

    @dg.asset(
        name=REGISTRY,
        deps=[one.key for one in declared],
        required_resource_keys={RESOURCE},
        group_name=_GROUP,
        kinds={"json"},
        description="The published registry: what training and serving read. Derived from the asset graph; nobody edits it.",
    )
    def feature_registry(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        stores: FeatureAssets = getattr(context.resources, RESOURCE)
        location = stores.settings().location
        try:
            published = stores.registry().publish(
                derive(), location=location, by=_who(), message=f"Dagster run {context.run.run_id}"
            )
        except FeatureAssetsError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        registry = published.registry
        return dg.MaterializeResult(
            metadata={
                "digest": published.digest,
                "views": len(registry.views),
                "on_demand_views": len(registry.on_demand),
                "services": len(registry.services),
                "features": sum(1 for _ in registry.features()),
            },
            data_version=dg.DataVersion(published.digest),
        )

    return feature_registry


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run as a user that has no name.
        return "unknown"


def publish_registry_sensor(derive: Callable[[], Registry]) -> dg.SensorDefinition:
    """Requests a run of `feature_registry` whenever the code declares something else than what is published."""

    @dg.sensor(
        name="publish_registry",
        asset_selection=dg.AssetSelection.assets(REGISTRY),
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={RESOURCE},
        description="Publishes the registry when the declarations differ from what is published.",
    )
    def publish_registry(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        stores: FeatureAssets = getattr(context.resources, RESOURCE)
        try:
            current = stores.registry().read()
        except NotPublished:
            current = None
        derived = stores.registry().merged(derive(), location=stores.settings().location).digest
        if current is not None and current.digest == derived:
            return dg.SkipReason(f"Published: {derived[:12]}.")
        if current is not None and current.entry.withdrawn == derived:
            return dg.SkipReason(
                f"Rolled back: {derived[:12]} stays withdrawn until the code changes, or `feature-assets apply`."
            )
        # A run key is spent for ever; a declaration that returns after a rollback, or whose run failed, is tried again.
        wanted = f"{current.digest if current else 'nothing'}>{derived}"
        former, _, attempt = (context.cursor or "").rpartition(":")
        cursor = f"{wanted}:{int(attempt) + 1 if former == wanted else 0}"
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=cursor)], cursor=cursor)

    return publish_registry


def reconcile_job(views: Sequence[FeatureView]) -> dg.JobDefinition:
    """Finishes what a crash left between the two stores, for every view."""

    @dg.op(name="reconcile_views", required_resource_keys={RESOURCE})
    def reconcile_views(context: dg.OpExecutionContext) -> None:
        stores: FeatureAssets = getattr(context.resources, RESOURCE)

        def finish(view: ViewSpec) -> None:
            done = reconcile(view, stores.offline(), stores.online())
            context.log.info(
                "%s: %d partitions were pending, %d keys changed", done.view, len(done.pending), done.changed
            )

        if journals := drain_orphans(stores.settings(), stores.offline(), stores.online()):
            context.log.info("published what %d processes had pushed and left behind", journals)
        _each_materialised(views, stores, finish, context.log)

    @dg.job(name=RECONCILE_JOB, description="Makes the online store equal to the offline one.")
    def reconcile_online_store_job() -> None:
        reconcile_views()

    return reconcile_online_store_job


def maintenance_job(
    views: Sequence[FeatureView],
    services: Sequence[FeatureService] = (),
    streams: Sequence[tuple[StreamFeatureView, LogSource]] = (),
) -> dg.JobDefinition:
    """The job `maintain_stores`: compacts small files and removes those that nothing needs any more, neither a version of
    the last 30 days nor a saved training set.

    Of the logs of services and of dead letters the days go that lie back longer than they are kept.
    """

    @dg.op(name="compact_and_vacuum", required_resource_keys={RESOURCE})
    def compact_and_vacuum(context: dg.OpExecutionContext) -> None:
        stores: FeatureAssets = getattr(context.resources, RESOURCE)
        settings = stores.settings()
        needed = NeededVersions.of(TrainingSets(settings.place(settings.training), settings.storage()))

        def keep_up(view: ViewSpec) -> None:
            stores.offline().compact(view)
            keep = needed.versions(view)
            removed = stores.offline().vacuum(view, older_than=_VERSIONS_KEPT, keep_versions=keep, dry_run=False)
            context.log.info("%s: compacted, %d old files removed", view.name, len(removed))

        def keep_up_log(service: ServiceSpec) -> None:
            now, config = settings.present or datetime.now(UTC), service.logging or LoggingConfig()
            done = keep_up_served(service.name, config, log_store(settings), now=now, older_than=_VERSIONS_KEPT)
            if done is not None:
                told = "what %s served: compacted, %d days and %d old files removed"
                context.log.info(told, service.name, len(done.days), done.files)

        failed = _tried([view.spec for view in views], _if_there(stores, keep_up), context.log)

        def keep_up_letters(source: LogSource) -> None:
            settings = stores.settings()
            now, kept = settings.present or datetime.now(UTC), timedelta(days=settings.stream.dead_letter_days)
            letters = dead_letter_store(settings)
            # Nobody asks what dead letters there were once, and they may have anybody in them.
            days = keep_up_dead(letters, source.name, now=now, kept=kept, older_than=timedelta(days=1))
            if days is not None:
                context.log.info("dead letters of %s: compacted, %d days removed", source.name, len(days))

        failed += _tried([service.spec for service in services], keep_up_log, context.log)
        failed += _tried(list({source.name: source for _, source in streams}.values()), keep_up_letters, context.log)
        if failed:
            raise dg.Failure("; ".join(failed))

    @dg.job(name="maintain_stores", description="Compacts the Delta tables and removes files nobody needs.")
    def maintain_stores() -> None:
        compact_and_vacuum()

    return maintain_stores


def _each_materialised(
    views: Sequence[FeatureView], stores: FeatureAssets, work: Callable[[ViewSpec], None], told: logging.Logger
) -> None:
    """Do the work for every view, also after one failed; then fail with what all of them said."""
    failed = _tried([view.spec for view in views], _if_there(stores, work), told)
    if failed:
        raise dg.Failure("; ".join(failed))


def _if_there(stores: FeatureAssets, work: Callable[[ViewSpec], None]) -> Callable[[ViewSpec], None]:
    """The same work, of views that were materialised."""

    def done(view: ViewSpec) -> None:
        if stores.offline().state(view) is not None:
            work(view)

    return done


def _tried(specs: Sequence[_Named], work: Callable[[_Named], None], told: logging.Logger) -> list[str]:
    """Do the work for each, also after one failed; what those that failed said."""
    failed = []
    for spec in specs:
        try:
            work(spec)
        except FeatureAssetsError as error:
            told.exception("%s failed; the others go on", spec.name)
            failed.append(f"{spec.name}: {error}")
    return failed
