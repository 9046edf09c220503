"""Whether the parts of a registry go together."""

from collections.abc import Iterable

from feature_assets.errors import DeclarationError, RequestError, UnknownName
from feature_assets.intake import check_stream, fields_of
from feature_assets.references import ReadPlan, resolve
from feature_assets.registry.snapshot import Registry
from feature_assets.spec import Entity, StreamSource, ViewProjection, ViewSpec
from feature_assets.transformations import check_declaration


def check_registry(registry: Registry) -> None:
    """See that names are unique, that all that is referred to is there, and that types agree.

    Raises:
        DeclarationError: they do not; the message names the object and the mend.
    """
    _check_names(registry)
    _check_versions(registry)
    _check_entities(registry)
    for each in registry.views.values():
        _check_stream(registry, each)
    for name, view in registry.on_demand.items():
        plan = _check_resolves(registry, f"On-demand view '{name}'", [ViewProjection(name)], "view", name)
        types, read = plan.types(), next(one for one in plan.on_demand if one.name == name)
        check_declaration(view, {seen: types[column] for seen, column in read.inputs})
    for name, service in registry.services.items():
        _check_resolves(registry, f"Feature service '{name}'", service.features, "service", name)


def _check_names(registry: Registry) -> None:
    rooms = (registry.views, registry.on_demand, registry.services, registry.sources)
    for room in rooms:
        for name, each in room.items():
            if each.name != name:
                raise DeclarationError(f"'{each.name}' is filed under the name '{name}'. File it under its own.")
    seen: dict[str, str] = {}
    for name in [*registry.views, *registry.on_demand]:
        # SQLite folds the case of table names.
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise DeclarationError(f"Views '{other}' and '{name}' differ in nothing but case. Rename one of them.")
    if both := sorted(registry.views.keys() & registry.on_demand.keys()):
        raise DeclarationError(f"'{both[0]}' is both a view and an on-demand view. Rename one of them.")


def _check_versions(registry: Registry) -> None:
    for key, view in registry.superseded.items():
        current = registry.views.get(view.name)
        if key != f"{view.name}@v{view.version}" or current is None or current.version == view.version:
            raise DeclarationError(f"'{key}' is no superseded version of a view. Take it out.")


def _check_entities(registry: Registry) -> None:
    declared: dict[str, tuple[str, Entity]] = {}
    for view in registry.views.values():
        for entity in view.entities:
            other_view, other = declared.setdefault(entity.name, (view.name, entity))
            if other.join_keys != entity.join_keys:
                raise DeclarationError(
                    f"Entity '{entity.name}' is found by {_keys(other)} in view '{other_view}' and by {_keys(entity)} in "
                    f"view '{view.name}'. Use one Entity object in both, or rename one."
                )


def _check_stream(registry: Registry, view: ViewSpec) -> None:
    if view.stream is None:
        return
    source = registry.sources.get(view.stream.source)
    if source is None and not registry.owners:
        return  # a part of a registry, which somebody looks at before it is published
    if not isinstance(source, StreamSource):
        raise DeclarationError(
            f"View '{view.name}' takes the rows of '{view.stream.source}', which is no source of a stream in this registry. "
            "Declare a PushSource, KafkaSource or KinesisSource of that name."
        )
    check_stream(view, source)
    fields_of(source, registry.fed_by(source.name))


def _keys(entity: Entity) -> str:
    return ", ".join(f"{key}: {of}" for key, of in entity.join_keys.items())


def _check_resolves(
    registry: Registry, place: str, projections: Iterable[ViewProjection], kind: str, name: str
) -> ReadPlan:
    owner = registry.owners.get(f"{kind}/{name}")
    where = f"{place} (code location '{owner}')" if owner else place
    try:
        # With full names: a service may hold two features of one name, which its users then ask for by full names.
        return resolve(registry, list(projections), full_feature_names=True)
    except UnknownName as error:
        raise DeclarationError(
            f"{where}: {error} Name one that is declared, or declare and publish it first."
        ) from error
    except RequestError as error:
        told = str(error)
        raise DeclarationError(told if told.startswith(place) else f"{where}: {told}") from error
