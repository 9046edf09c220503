"""What the platform consists of, as one value: all views, services and sources of all code locations."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Literal, NamedTuple, Self, TypeAlias

import msgspec

from feature_assets.errors import DeclarationError, RegistryUnreadable, UnknownService, UnknownSource, UnknownView
from feature_assets.spec import (
    AnySource,
    Entity,
    Field,
    OnDemandViewSpec,
    ServiceSpec,
    Spec,
    StreamSource,
    ViewSpec,
    canonical_json,
    from_json,
)
from feature_assets.types import FeatureType

FORMAT = 1
"""The number of the JSON form. It rises when a reader of the former form would misunderstand the new one."""

Kind: TypeAlias = Literal["view", "service", "source"]
"""What has names of its own. Views and on-demand views share theirs: both are asked for as `view:feature`."""

AnyObject: TypeAlias = ViewSpec | OnDemandViewSpec | ServiceSpec | AnySource


class ListedFeature(NamedTuple):
    """One feature as a listing shows it. `entities` and `join_keys` of an on-demand view are those of its sources."""

    view: str
    version: int | None
    field: Field
    entities: tuple[str, ...]
    join_keys: Mapping[str, FeatureType]
    owner: str

    @property
    def reference(self) -> str:
        """What it is asked for by: "view:feature"."""
        return f"{self.view}:{self.field.name}"


class Registry(Spec, frozen=True, kw_only=True, omit_defaults=False, dict=True):
    """All that is declared. Its canonical JSON is its identity, and `digest` the SHA-256 of that.

    `views` has the current version of each view, `superseded` the other versions that can still be read, as
    "name@v1". `owners` leads from "view/name", "service/name" or "source/name" to the code location that declares it.
    """

    format: int = FORMAT
    views: dict[str, ViewSpec] = msgspec.field(default_factory=dict)
    superseded: dict[str, ViewSpec] = msgspec.field(default_factory=dict)
    on_demand: dict[str, OnDemandViewSpec] = msgspec.field(default_factory=dict)
    services: dict[str, ServiceSpec] = msgspec.field(default_factory=dict)
    sources: dict[str, AnySource] = msgspec.field(default_factory=dict)
    owners: dict[str, str] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, objects: Iterable[AnyObject]) -> Self:
        """The registry of one code location's objects; equal ones may come twice.

        Raises:
            DeclarationError: two different objects of one kind have one name.
        """
        found: dict[str, dict[str, AnyObject]] = {"views": {}, "on_demand": {}, "services": {}, "sources": {}}
        for each in objects:
            same_kind = found[_room(each)]
            if same_kind.setdefault(each.name, each) != each:
                raise DeclarationError(
                    f"{type(each).__name__.removesuffix('Spec')} '{each.name}' is declared twice, differently. "
                    "Rename one of them."
                )
        return cls(**found)  # type: ignore[arg-type]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON in hexadecimal: the identity of the snapshot."""
        return hashlib.sha256(canonical_json(self)).hexdigest()

    def view(self, name: str, version: int | None = None) -> ViewSpec:
        """The view in that version, else in its current one.

        Raises:
            UnknownView: there is no such view or version.
        """
        current = self.views.get(name)
        if current is None:
            if name in self.on_demand:
                raise UnknownView(f"'{name}' is an on-demand view: it is computed when asked for and has no rows.")
            raise UnknownView.among(name, [*self.views, *self.on_demand])
        if version is None or version == current.version:
            return current
        other = self.superseded.get(f"{name}@v{version}")
        if other is None:
            known = ", ".join(str(version) for version in self.versions(name))
            raise UnknownView(f"View '{name}' has no version {version} in the published registry. It has: {known}.")
        return other

    def versions(self, name: str) -> tuple[int, ...]:
        """All versions of the view that can be read, ascending; none for an unknown view."""
        return tuple(sorted(view.version for view in self.every_version() if view.name == name))

    def every_version(self) -> Iterator[ViewSpec]:
        """All views in all versions: what may have tables."""
        yield from self.views.values()
        yield from self.superseded.values()

    def fed_by(self, source: str) -> tuple[ViewSpec, ...]:
        """The current views that take the rows of a stream's source, by name."""
        views = sorted(self.views.values(), key=lambda view: view.name)
        return tuple(view for view in views if view.stream is not None and view.stream.source == source)

    def stream_source(self, name: str) -> StreamSource:
        """The source of a stream.

        Raises:
            UnknownSource: there is none of that name.
        """
        found = self.sources.get(name)
        if not isinstance(found, StreamSource):
            known = [one.name for one in self.sources.values() if isinstance(one, StreamSource)]
            raise UnknownSource.among(name, known)
        return found

    def service(self, name: str) -> ServiceSpec:
        """The feature service.

        Raises:
            UnknownService: there is none of that name.
        """
        found = self.services.get(name)
        if found is None:
            view = self.views.get(name) or self.on_demand.get(name)
            if view is not None:
                raise UnknownService.but_view(name, [field.name for field in view.features])
            raise UnknownService.among(name, list(self.services))
        return found

    def owner(self, name: str, kind: Kind = "view") -> str:
        """The code location that declares it; empty in a registry that was not published."""
        return self.owners.get(f"{kind}/{name}", "")

    def entities(self) -> dict[str, Entity]:
        """All entities of all current views, by name."""
        return {entity.name: entity for view in self.views.values() for entity in view.entities}

    def features(self) -> Iterator[ListedFeature]:
        """Every feature of every current view and on-demand view, views by name, features as declared."""
        for name in sorted([*self.views, *self.on_demand]):
            view = self.views.get(name) or self.on_demand[name]
            entities = {entity.name: entity for entity in self._entities_of(name)}
            keys = {key: of for entity in entities.values() for key, of in entity.join_keys.items()}
            version = view.version if isinstance(view, ViewSpec) else None
            for field in view.features:
                yield ListedFeature(name, version, field, tuple(entities), keys, self.owner(name))

    def _entities_of(self, view: str) -> Iterator[Entity]:
        if view in self.views:
            yield from self.views[view].entities
        elif view in self.on_demand:
            for source in self.on_demand[view].sources:
                yield from self._entities_of(source.view)


def _room(each: AnyObject) -> str:
    if isinstance(each, ViewSpec):
        return "views"
    if isinstance(each, OnDemandViewSpec):
        return "on_demand"
    return "services" if isinstance(each, ServiceSpec) else "sources"


class _Header(msgspec.Struct):
    format: int


def read_registry(data: bytes, place: str) -> Registry:
    """What `canonical_json(registry)` wrote. Its digest is that of these bytes, whoever wrote them.

    Raises:
        RegistryUnreadable: it is no registry, or one of another format.
    """
    try:
        registry = from_json(data, Registry)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RegistryUnreadable(_explained(data, place, str(error))) from error
    if registry.format != FORMAT:
        raise RegistryUnreadable(_explained(data, place, f"it has format {registry.format}"))
    # A later release may write the same declarations with other bytes; a training set finds them by the stored ones.
    vars(registry)["digest"] = hashlib.sha256(data).hexdigest()
    return registry


def _explained(data: bytes, place: str, reason: str) -> str:
    try:
        header = from_json(data, _Header)
    except msgspec.DecodeError:
        return (
            f"{place} is damaged or is no registry snapshot: {reason}. "
            "Move the registry to an earlier snapshot: feature-assets registry rollback"
        )
    if header.format != FORMAT:
        return (
            f"{place} has registry format {header.format}, and this release of Feature Assets reads format {FORMAT}. "
            "Upgrade feature-assets here, or publish again with this release."
        )
    return (
        f"{place} holds what this release of Feature Assets does not know: {reason}. "
        "Upgrade feature-assets here to the release that published it."
    )
