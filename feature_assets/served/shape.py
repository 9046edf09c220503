"""What the log of a service has: a Delta table beside those of the views, a row for each vector that was served."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgspec

from feature_assets.errors import NameCollision
from feature_assets.references import ReadPlan, resolve
from feature_assets.registry import Registry
from feature_assets.spec import Entity, Field, ServiceSpec, ViewSpec
from feature_assets.types import FeatureType, Int64, String, Timestamp

SERVED_AT = "served_at"
REQUEST_ID = "request_id"
REQUEST_ROW = "request_row"
REGISTRY = "registry_digest"
FOLDER = "__served"
"""Of the offline store: names of views have no two underscores."""


def _column(name: str, of: FeatureType) -> Field:
    """A column of a log. Unlike a feature's its name may hold two underscores, as in `temp__status`."""
    made = Field("column", of)
    msgspec.structs.force_setattr(made, "name", name)
    return made


@dataclass(frozen=True, slots=True)
class LogShape:
    """The log of one service by one registry.

    `keys` and `request` are columns of the request, `outputs` the features that are logged with their positions among
    those of the plan, `events` for each view that is read the position of its first feature.
    """

    table: ViewSpec
    plan: ReadPlan
    keys: Mapping[str, FeatureType]
    request: Mapping[str, FeatureType]
    outputs: Mapping[str, tuple[int, FeatureType]]
    events: Mapping[str, int]

    def at(self, version: int) -> ViewSpec:
        """The table of an earlier or later shape of the service."""
        return msgspec.structs.replace(self.table, version=version)


def shape_of(registry: Registry, service: ServiceSpec, personal: Collection[str]) -> LogShape:
    """What is logged of a service. `personal` names the outputs that hold personal data, by `view__feature`: they are
    logged only if the service declares it, and so are request fields.

    Raises:
        RequestError: two columns of the log would have one name.
    """
    try:
        plan = resolve(registry, service.name)
    except NameCollision:
        plan = resolve(registry, service.name, full_feature_names=True)
    declared = frozenset(service.logging.pii if service.logging else ())
    request = {
        name: field.type
        for name, field in plan.request.items()
        if name not in plan.join_keys and (not field.pii or name in declared)
    }
    outputs = {
        one.name: (position, one.field.type)
        for position, one in enumerate(plan.outputs)
        if one.column not in personal or one.name in declared
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
    table = ViewSpec(
        name=service.name,
        entities=(Entity("request", {REQUEST_ID: String, REQUEST_ROW: Int64}),),
        features=tuple(_column(name, of) for name, of in columns.items()),
        event_timestamp=SERVED_AT,
        online=False,
    )
    return LogShape(table, plan, dict(plan.join_keys), request, outputs, events)
