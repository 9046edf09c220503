"""The registry's objects in the JSON of Feast's registry server: `spec` and `meta` in camel case.

What Feast has no word for stands beside in ours: `joinKeys` of an entity, `dtype` of a feature with its precise type,
`pii`, `versions`. A project is a code location.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from feature_assets.registry import Registry
from feature_assets.spec import (
    DeltaSource,
    Entity,
    Field,
    FileSource,
    Function,
    KafkaSource,
    KinesisSource,
    OnDemandViewSpec,
    RecordSource,
    RequestSource,
    ServiceSpec,
    SqlSource,
    ViewProjection,
    ViewSpec,
    to_builtins,
)
from feature_assets.types import FeatureType, ListType, MapType, StructType, VectorType, rfc3339

Json = dict[str, Any]

_VALUE_TYPES: Final = {
    "Int8": "INT32",
    "Int16": "INT32",
    "Int32": "INT32",
    "Int64": "INT64",
    "Float32": "FLOAT",
    "Float64": "DOUBLE",
    "String": "STRING",
    "Bool": "BOOL",
    "Bytes": "BYTES",
    "Date": "STRING",
    "Timestamp": "UNIX_TIMESTAMP",
    "UUID": "UUID",
    "Json": "JSON",
}


def value_type(of: FeatureType) -> str:
    """The nearest of Feast's value types, of which there are fewer."""
    if isinstance(of, VectorType):
        return "FLOAT_LIST"
    if isinstance(of, ListType):
        element = value_type(of.element)
        return f"{element}_LIST" if element in _IN_LISTS else "VALUE_LIST"
    if isinstance(of, StructType):
        return "STRUCT"
    if isinstance(of, MapType):
        return "MAP" if str(of.key) == "String" else "SCALAR_MAP"
    return _VALUE_TYPES.get(str(of), "DECIMAL")


_IN_LISTS: Final = frozenset({*_VALUE_TYPES.values(), "DECIMAL", "STRUCT", "MAP"})


class Listed(NamedTuple):
    """One object as a list shows it. `key` is its place in the answer, where one name may stand for several things."""

    kind: str
    name: str
    project: str
    description: str
    tags: Mapping[str, str]
    body: Json


class Described:
    """Lists what is in a registry. `published_at` is when it came into force: when a single object did, nobody knows."""

    def __init__(self, registry: Registry, published_at: datetime) -> None:
        self.registry = registry
        self._meta = {"createdTimestamp": rfc3339(published_at), "lastUpdatedTimestamp": rfc3339(published_at)}

    def projects(self) -> list[Json]:
        """The code locations."""
        names = sorted(set(self.registry.owners.values()))
        return [{"spec": {"name": name}, "meta": self._meta} for name in names]

    def entities(self) -> list[Listed]:
        """All entities of all views."""
        found: dict[str, tuple[Entity, str]] = {}
        for view in self.registry.views.values():
            for entity in view.entities:
                found.setdefault(entity.name, (entity, self.registry.owner(view.name)))
        return [self._entity(*found[name]) for name in sorted(found)]

    def _entity(self, entity: Entity, project: str) -> Listed:
        first, of = next(iter(entity.join_keys.items()))
        spec = {
            "name": entity.name,
            "project": project,
            "valueType": value_type(of),
            "joinKey": first,
            "joinKeys": {name: str(of) for name, of in entity.join_keys.items()},
            "description": entity.description,
            "tags": entity.tags,
            "owner": ", ".join(entity.owners),
        }
        return Listed(
            "entity",
            entity.name,
            project,
            entity.description,
            entity.tags,
            {"spec": spec, "meta": self._meta},
        )

    def feature_views(self) -> list[Listed]:
        """Views and on-demand views by name."""
        views: list[ViewSpec | OnDemandViewSpec] = [*self.registry.views.values(), *self.registry.on_demand.values()]
        return [self._view(view) for view in sorted(views, key=lambda one: one.name)]

    def _view(self, view: ViewSpec | OnDemandViewSpec) -> Listed:
        project = self.registry.owner(view.name)
        spec: Json = {
            "name": view.name,
            "project": project,
            "features": [_feature(field) for field in view.features],
            "description": view.description,
            "tags": view.tags,
            "owner": ", ".join(view.owners),
            "deprecated": view.deprecated,
        }
        spec |= self._stored(view) if isinstance(view, ViewSpec) else self._computed(view)
        kind = "featureView" if isinstance(view, ViewSpec) else "onDemandFeatureView"
        body = {"type": kind, "spec": spec, "meta": self._meta}
        return Listed("featureView", view.name, project, view.description, view.tags, body)

    def _stored(self, view: ViewSpec) -> Json:
        sources = [self._source(self.registry.sources[name]) for name in view.upstream if name in self.registry.sources]
        return {
            "entities": [entity.name for entity in view.entities],
            "entityColumns": [
                {"name": name, "valueType": value_type(of), "dtype": str(of)} for name, of in view.join_keys.items()
            ],
            "ttl": _duration(view.ttl),
            "online": view.online,
            "offline": True,
            "timestampField": view.event_timestamp,
            "createdTimestampColumn": view.created_timestamp,
            "batchSource": sources[0].body if sources else None,
            "upstream": list(view.upstream),
            "version": view.version,
            "versions": list(self.registry.versions(view.name)),
            "partitions": to_builtins(view.partitions),
        }

    @staticmethod
    def _computed(view: OnDemandViewSpec) -> Json:
        sources: Json = {one.name: {"featureViewProjection": _projection(one)} for one in view.sources}
        sources |= {one.name: {"requestDataSource": _request(one)} for one in view.request}
        function = view.transformation if isinstance(view.transformation, Function) else None
        return {
            "sources": sources,
            "mode": function.mode if function else "expressions",
            "transformation": to_builtins(view.transformation),
        }

    def feature_services(self) -> list[Listed]:
        """Feature services by name."""
        return [self._service(self.registry.services[name]) for name in sorted(self.registry.services)]

    def _service(self, service: ServiceSpec) -> Listed:
        project = self.registry.owner(service.name, "service")
        spec = {
            "name": service.name,
            "project": project,
            "features": [self._columns(one) for one in service.features],
            "description": service.description,
            "tags": service.tags,
            "owner": ", ".join(service.owners),
            "deprecated": service.deprecated,
        }
        body = {"spec": spec, "meta": self._meta}
        return Listed("featureService", service.name, project, service.description, service.tags, body)

    def _columns(self, projection: ViewProjection) -> Json:
        view = self.registry.on_demand.get(projection.view) or self.registry.view(projection.view, projection.version)
        wanted = projection.features
        fields = [field for field in view.features if wanted is None or field.name in wanted]
        columns = {"featureColumns": [_feature(field) for field in fields]}
        return _projection(projection) | columns

    def data_sources(self) -> list[Listed]:
        """Sources of views and of requests, by name."""
        requests = {source.name: source for view in self.registry.on_demand.values() for source in view.request}
        found = {name: self._source(source) for name, source in self.registry.sources.items()}
        for view in self.registry.on_demand.values():
            project = self.registry.owner(view.name)
            for source in view.request:
                body = {**_request(requests[source.name]), "project": project, "meta": self._meta}
                found.setdefault(source.name, Listed("dataSource", source.name, project, "", {}, body))
        return [found[name] for name in sorted(found)]

    def _source(self, source: Any) -> Listed:
        project = self.registry.owner(source.name, "source")
        body = {
            "name": source.name,
            "project": project,
            "type": _source_type(source),
            "timestampField": source.timestamp_field,
            "fieldMapping": source.field_mapping,
            "description": source.description,
            "tags": source.tags,
            "owner": ", ".join(source.owners),
            "meta": self._meta,
            **_source_options(source),
        }
        return Listed("dataSource", source.name, project, source.description, source.tags, body)

    def features(self) -> list[Listed]:
        """Features of views and on-demand views, by view and as declared."""
        owners = {
            view.name: ", ".join(view.owners)
            for view in (*self.registry.views.values(), *self.registry.on_demand.values())
        }
        return [
            Listed(
                "feature",
                one.field.name,
                one.owner,
                one.field.description,
                one.field.tags,
                {
                    "name": one.field.name,
                    "featureView": one.view,
                    "type": value_type(one.field.type),
                    "dtype": str(one.field.type),
                    "description": one.field.description,
                    "tags": one.field.tags,
                    "owner": owners[one.view],
                    "pii": one.field.pii,
                    **self._meta,
                },
            )
            for one in self.registry.features()
        ]


def _feature(field: Field) -> Json:
    return {
        "name": field.name,
        "valueType": value_type(field.type),
        "dtype": str(field.type),
        "description": field.description,
        "tags": field.tags,
        "default": field.default,
        "pii": field.pii,
    }


def _projection(one: ViewProjection) -> Json:
    names = {"featureColumns": [{"name": name} for name in one.features]} if one.features is not None else {}
    return {
        "featureViewName": one.view,
        "featureViewNameAlias": one.alias or "",
        "joinKeyMap": one.join_key_map,
        "versionTag": one.version,
        **names,
    }


def _request(source: RequestSource) -> Json:
    return {
        "name": source.name,
        "type": "REQUEST_SOURCE",
        "requestDataOptions": {"schema": [_feature(field) for field in source.schema]},
    }


def _source_type(source: Any) -> str:
    if isinstance(source, FileSource | DeltaSource):
        return "BATCH_FILE"
    if isinstance(source, SqlSource):
        return "CUSTOM_SOURCE"
    kind = type(source).__name__.removesuffix("Source").upper()
    return f"STREAM_{kind}" if isinstance(source, RecordSource) else kind


def _source_options(source: Any) -> Json:
    if isinstance(source, FileSource):
        return {"fileOptions": {"uri": source.path, "fileFormat": source.format}}
    if isinstance(source, DeltaSource):
        return {"fileOptions": {"uri": source.path, "fileFormat": "delta"}}
    if isinstance(source, KafkaSource):
        return {"kafkaOptions": {"topic": ",".join(source.topics)}}
    if isinstance(source, KinesisSource):
        return {"kinesisOptions": {"streamName": source.stream}}
    return (
        {"sqlOptions": {"query": source.query, "connection": source.connection}}
        if isinstance(source, SqlSource)
        else {}
    )


def _duration(span: timedelta | None) -> str | None:
    """As protobuf writes durations: seconds, with a fraction where there is one."""
    if span is None:
        return None
    seconds, micros = divmod(span // timedelta(microseconds=1), 1_000_000)
    return f"{seconds}.{micros:06d}s" if micros else f"{seconds}s"


class Relation(NamedTuple):
    """One thing goes into another."""

    source: tuple[str, str]
    target: tuple[str, str]

    def body(self) -> Json:
        """As an answer has it."""
        ends = zip(("source", "target"), self, strict=True)
        return {end: {"type": kind, "name": name} for end, (kind, name) in ends}


def relations(registry: Registry) -> list[Relation]:
    """What goes into what, one step each; each once, in a fixed order."""
    return sorted({*_of_views(registry), *_of_on_demand(registry), *_of_services(registry)})


def _of_views(registry: Registry) -> Iterator[Relation]:
    assets = {"/".join(view.asset_key): view.name for view in registry.views.values()}
    for view in registry.views.values():
        target = ("featureView", view.name)
        yield from (Relation(("entity", entity.name), target) for entity in view.entities)
        yield from (Relation(("feature", field.name), target) for field in view.features)
        for name in view.upstream:
            if name in assets:
                yield Relation(("featureView", assets[name]), target)
            else:
                # A declared source, or an asset that somebody else makes.
                yield Relation(("dataSource", name), target)


def _of_on_demand(registry: Registry) -> Iterator[Relation]:
    for view in registry.on_demand.values():
        target = ("featureView", view.name)
        yield from (Relation(("feature", field.name), target) for field in view.features)
        yield from (Relation(("featureView", source.view), target) for source in view.sources)
        yield from (Relation(("dataSource", source.name), target) for source in view.request)


def _of_services(registry: Registry) -> Iterator[Relation]:
    for service in registry.services.values():
        yield from (Relation(("featureView", one.view), ("featureService", service.name)) for one in service.features)


def indirect(direct: Iterable[Relation]) -> list[Relation]:
    """What goes into what by way of something else."""
    following: dict[tuple[str, str], list[tuple[str, str]]] = {}
    direct = set(direct)
    for source, target in direct:
        following.setdefault(source, []).append(target)
    found = set()
    for start, next_ones in following.items():
        reached: set[tuple[str, str]] = set()
        waiting = [far for near in next_ones for far in following.get(near, ())]
        while waiting:
            one = waiting.pop()
            if one not in reached:
                reached.add(one)
                waiting += following.get(one, ())
        found |= {Relation(start, end) for end in reached}
    return sorted(found - direct)
