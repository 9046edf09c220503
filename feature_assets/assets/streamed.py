"""How far views are with the records of their sources, in Dagster: observations, and checks of lag and dead letters.

Consumers know no Dagster. A sensor looks at the log, the tables and the dead letters, and reports what has changed; the
same checks can be run by hand or in a job.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import dagster as dg

from feature_assets.assets.metadata import sources_from_metadata
from feature_assets.assets.resources import RESOURCE, FeatureAssets
from feature_assets.assets.stream_view import StreamFeatureView
from feature_assets.errors import FeatureAssetsError
from feature_assets.spec import LogSource
from feature_assets.streams.dead_letters import NO_VIEW, counted, dead_letter_store
from feature_assets.streams.status import ViewStatus, status_of

SENSOR: Final = "watch_streams"
LAG: Final = "stream_lag"
DEAD_LETTERS: Final = "dead_letters"

_TOLD: Final = timedelta(days=1)
"""Dead letters of so long count for the check."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a check came out."""

    name: str
    passed: bool
    description: str
    metadata: dict[str, Any]


def logged_views(views: Sequence[StreamFeatureView]) -> list[tuple[StreamFeatureView, LogSource]]:
    """The views that take records of a log, with their sources."""
    found = []
    for view in views:
        name = view.spec.stream.source if view.spec.stream is not None else None
        for source in sources_from_metadata(view.metadata_by_key[view.key]):
            if source.name == name and isinstance(source, LogSource):
                found.append((view, source))
    return found


def lag_outcome(source: LogSource, found: ViewStatus, now: datetime) -> Outcome:
    """Whether a view is as close behind its source as that declares."""
    age = None if found.watermark is None else now - found.watermark
    wrong = []
    if found.error:
        wrong.append(found.error if found.shards else f"the log cannot be asked: {found.error}")
    if source.max_lag is not None and found.lag is not None and found.lag > source.max_lag:
        wrong.append(f"{found.lag:,} records are not read, more than {source.max_lag:,}")
    if source.max_age is not None and (age is None or age > source.max_age):
        told = "nothing has come yet" if age is None else f"the latest event is {_span(age)} old"
        wrong.append(f"{told}, and {_span(source.max_age)} is allowed")
    said = (
        f"{found.lag:,} records are not read"
        if found.lag is not None
        else "how much is not read, the log does not tell"
    )
    return Outcome(LAG, not wrong, "; ".join(wrong) or said, _measured(found))


def _measured(found: ViewStatus) -> dict[str, Any]:
    metadata: dict[str, Any] = {"shards": len(found.shards), "dead_letters": found.dead_letters}
    if found.lag is not None:
        metadata["lag"] = found.lag
    if found.watermark is not None:
        metadata["watermark"] = dg.MetadataValue.timestamp(found.watermark)
    if found.consumers is not None:
        metadata["consumers"] = found.consumers
    return metadata


def letters_outcome(stores: FeatureAssets, view: StreamFeatureView, source: LogSource, now: datetime) -> Outcome:
    """Whether no record of the last day became a dead letter."""
    offline = dead_letter_store(stores.settings())
    each = counted(offline, source.name, since=now - _TOLD)
    mine = [one for one in each if one.view in (NO_VIEW, view.spec.name)]
    count = sum(one.letters for one in mine)
    metadata: dict[str, Any] = {"dead_letters": count}
    if mine:
        metadata["last"] = dg.MetadataValue.timestamp(max(one.last for one in mine))
    said = f"{count:,} records of the last day are no rows. See them: feature-assets stream dead-letters {source.name}"
    return Outcome(DEAD_LETTERS, not count, said if count else "every record of the last day is a row", metadata)


def _span(span: timedelta) -> str:
    return str(timedelta(seconds=round(span.total_seconds())))


def stream_checks(views: Sequence[StreamFeatureView]) -> Iterator[dg.AssetChecksDefinition]:
    """For each view that takes records of a log, the checks of its lag and of dead letters."""
    for view, source in logged_views(views):
        yield _lag_check(view, source)
        yield _letters_check(view, source)


def _lag_check(view: StreamFeatureView, source: LogSource) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=view.key,
        name=LAG,
        description="The view is as close behind its stream as the source declares with max_lag= and max_age=.",
        required_resource_keys={RESOURCE},
    )
    def stream_lag(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        stores: FeatureAssets = getattr(context.resources, RESOURCE)
        found = status_of(source, view.spec, stores.settings(), stores.offline(), stores.online())
        return _result(lag_outcome(source, found, _now(stores)))

    return stream_lag


def _letters_check(view: StreamFeatureView, source: LogSource) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=view.key,
        name=DEAD_LETTERS,
        description="No record of the last day is a dead letter.",
        required_resource_keys={RESOURCE},
    )
    def dead_letters(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        stores: FeatureAssets = getattr(context.resources, RESOURCE)
        return _result(letters_outcome(stores, view, source, _now(stores)))

    return dead_letters


def _now(stores: FeatureAssets) -> datetime:
    return stores.settings().present or datetime.now(UTC)


def _result(outcome: Outcome) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=outcome.passed, description=outcome.description, metadata=outcome.metadata, check_name=outcome.name
    )


def watch_streams_sensor(views: Sequence[StreamFeatureView]) -> dg.SensorDefinition:
    """Reports how far views are with their streams, and how the checks come out, wherever that has changed."""
    watched = logged_views(views)

    @dg.sensor(
        name=SENSOR,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={RESOURCE},
        description="Reports lag, watermark and dead letters of views that take the records of a stream.",
    )
    def watch_streams(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        stores: FeatureAssets = getattr(context.resources, RESOURCE)
        seen: dict[str, list[Any]] = json.loads(context.cursor or "{}")
        now, events = _now(stores), list[Any]()
        failed: list[FeatureAssetsError] = []
        for view, source in watched:
            try:
                found = status_of(source, view.spec, stores.settings(), stores.offline(), stores.online())
                outcomes = [lag_outcome(source, found, now), letters_outcome(stores, view, source, now)]
            except FeatureAssetsError as error:
                context.log.exception("the stream of %s cannot be looked at; the others are", view.spec.name)
                failed.append(error)
                continue
            told = [found.lag, str(found.watermark), found.dead_letters, *(one.passed for one in outcomes)]
            if seen.get(view.spec.name) == told:
                continue
            seen[view.spec.name] = told
            events.append(dg.AssetObservation(view.key, metadata=_measured(found)))
            events += [_evaluation(view, one) for one in outcomes]
        if failed and not events:
            raise failed[0]
        said = f"Reported, by views: {len(events) // 3}." if events else "Nothing has changed since the last look."
        return dg.SensorResult(
            cursor=json.dumps(seen, sort_keys=True), asset_events=events, skip_reason=dg.SkipReason(said)
        )

    return watch_streams


def _evaluation(view: StreamFeatureView, outcome: Outcome) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=view.key,
        check_name=outcome.name,
        passed=outcome.passed,
        metadata=outcome.metadata,
        description=outcome.description,
        severity=dg.AssetCheckSeverity.ERROR,
    )
