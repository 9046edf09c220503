"""What the log of a service has: a Delta table beside those of the views, a row for each vector that was served."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

import msgspec

from feature_assets.access import Access
from feature_assets.config import Settings
from feature_assets.errors import NameCollision
from feature_assets.offline import OfflineStore
from feature_assets.references import ReadPlan, resolve
from feature_assets.registry import Registry
from feature_assets.spec import Entity, Field, LoggingConfig, ViewSpec, canonical_json
from feature_assets.types import FeatureType, Int64, String, Timestamp

SERVED_AT = "served_at"
REQUEST_ID = "request_id"
REQUEST_ROW = "request_row"
REGISTRY = "registry_digest"
FOLDER = "__served"
"""Of the offline store: names of views have no two underscores."""

_VERSIONS_KEPT = timedelta(days=1)
"""A log has a commit every few seconds, for ever, and nobody asks what it was once."""

DAY = "%Y-%m-%d"
"""The partition of a row is the day on which it was served, in UTC."""


def log_store(settings: Settings) -> OfflineStore:
    """Where the logs of all services are kept: beside the history of the views."""
    root = f"{settings.place(settings.offline)}/{FOLDER}"
    return OfflineStore(
        root, storage_options=settings.storage(), durability=settings.durability, forgets=_VERSIONS_KEPT
    )


def _column(name: str, of: FeatureType) -> Field:
    """A column of a log. Unlike a feature's its name may hold two underscores, as in `temp__status`."""
    made = Field("column", of)
    msgspec.structs.force_setattr(made, "name", name)
    return made


@dataclass(frozen=True, slots=True)
class LogShape:
    """The log of one service by one registry.

    `keys` and `request` are columns of the request, `outputs` the features that are logged with their positions among
    those of the plan, `events` for each view that is read the position of its first feature. Shapes of one `digest` have
    the same columns.
    """

    config: LoggingConfig
    table: ViewSpec
    digest: bytes
    plan: ReadPlan
    keys: Mapping[str, FeatureType]
    request: Mapping[str, FeatureType]
    outputs: Mapping[str, tuple[int, FeatureType]]
    events: Mapping[str, int]

    def at(self, version: int) -> ViewSpec:
        """The table of an earlier or later shape of the service."""
        return msgspec.structs.replace(self.table, version=version)


def log_table(service: str, columns: Mapping[str, FeatureType] | None = None) -> ViewSpec:
    """The first table of a service's log, as far as all shapes of the service have it alike, or with these columns."""
    return ViewSpec(
        name=service,
        entities=(Entity("request", {REQUEST_ID: String, REQUEST_ROW: Int64}),),
        features=tuple(_column(name, of) for name, of in (columns or {REGISTRY: String}).items()),
        event_timestamp=SERVED_AT,
        online=False,
    )


def tables_of(first: ViewSpec, offline: OfflineStore) -> Iterator[ViewSpec]:
    """The tables that there are of a log, `first` with each version that the log has."""
    version = first.version
    while offline.state(table := msgspec.structs.replace(first, version=version)) is not None:
        yield table
        version += 1


def shape_of(registry: Registry, name: str) -> LogShape:
    """What is logged of a service. What holds personal data is only if the service declares it, features and request
    fields.

    Raises:
        UnknownService: there is no such service.
        UnknownView, UnknownFeature: it is made of what the registry does not have.
        RequestError: two columns of the log would have one name.
    """
    service = registry.service(name)
    try:
        plan = resolve(registry, name)
    except NameCollision:
        plan = resolve(registry, name, full_feature_names=True)
    personal = Access(registry).personal(plan)
    config = service.logging or LoggingConfig()
    declared = frozenset(config.pii)
    request = {
        name: field.type
        for name, field in plan.request.items()
        if name not in plan.join_keys and (not field.pii or name in declared)
    }
    outputs = {
        one.name: (position, one.field.type)
        for position, one in enumerate(plan.outputs)
        if one.name not in personal or one.name in declared
    }
    source = {read.column(field.name): read.name for read in plan.reads for field in read.features}
    events: dict[str, int] = {}
    for position, one in enumerate(plan.outputs):
        if one.column in source:
            events.setdefault(source[one.column], position)
    columns: dict[str, FeatureType] = {REGISTRY: String}
    for name, of in (
        *plan.join_keys.items(),
        *request.items(),
        *((name, of) for name, (_, of) in outputs.items()),
        *((f"{name}__status", String) for name in outputs),
        *((f"event_timestamp__{read}", Timestamp) for read in events),
    ):
        if name in columns or name in (SERVED_AT, REQUEST_ID, REQUEST_ROW):
            raise NameCollision(
                f"The log of service '{service.name}' would have two columns named '{name}'. Rename the one of the "
                "service: features of another view name with .with_name(…), keys with .with_join_key_map(…)."
            )
        columns[name] = of
    table = log_table(service.name, columns)
    return LogShape(config, table, canonical_json(table), plan, dict(plan.join_keys), request, outputs, events)
