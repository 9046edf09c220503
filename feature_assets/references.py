"""From what a person asks for ("view:feature", a service, a projection) to one resolved plan of what to read.

Training and serving both follow the same `ReadPlan`, so they answer the same question.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from feature_assets.errors import NameCollision, RequestError, UnknownFeature
from feature_assets.spec import (
    Field,
    OnDemandViewSpec,
    ServiceSpec,
    ViewProjection,
    ViewSpec,
    canonical_json,
    from_json,
)
from feature_assets.types import FeatureType

_REFERENCE = re.compile(r"(?P<view>[^:@]+)(?:@v(?P<version>[1-9][0-9]{0,8}))?:(?P<feature>[^:@]+)")


@runtime_checkable
class Referable(Protocol):
    """Anything that stands for features: a view, or a service that is known to the registry by its name."""

    @property
    def reference(self) -> "str | ViewProjection":
        """What the registry knows it by."""


Features: TypeAlias = str | ViewProjection | Referable | Sequence[str | ViewProjection | Referable]

Question: TypeAlias = str | tuple[str | bytes, ...]
"""Features by value: equal where the same is asked for, and hashable."""


class Catalogue(Protocol):
    """The part of the registry that references are resolved against."""

    @property
    def on_demand(self) -> Mapping[str, OnDemandViewSpec]:
        """The on-demand views by name."""

    def view(self, name: str, version: int | None = None) -> ViewSpec:
        """The view in that version, else in its current one; raises UnknownView."""

    def service(self, name: str) -> ServiceSpec:
        """The service of that name; raises UnknownService."""


@dataclass(frozen=True, slots=True)
class ViewRead:
    """One view to read, looked up by `keys`: pairs of a join key of the view and the spine or request column with it."""

    view: ViewSpec
    name: str
    keys: tuple[tuple[str, str], ...]
    features: tuple[Field, ...]

    def column(self, feature: str) -> str:
        """The qualified name of one of its features."""
        return f"{self.name}__{feature}"


@dataclass(frozen=True, slots=True)
class OnDemandRead:
    """One on-demand view to compute; `inputs` are pairs of the name that it sees and the column with the values."""

    spec: OnDemandViewSpec
    name: str
    inputs: tuple[tuple[str, str], ...]
    features: tuple[Field, ...]

    def column(self, feature: str) -> str:
        """The qualified name of one of its features."""
        return f"{self.name}__{feature}"


@dataclass(frozen=True, slots=True)
class Output:
    """One feature of the answer: its name there, the qualified column with its values, where it comes from."""

    name: str
    column: str
    field: Field
    view: str


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What to read and compute to answer one question.

    `on_demand` has dependencies first, `outputs` the order that was asked. `join_keys` are the columns that the spine
    or request must have, `request` those that on-demand views need besides.
    """

    reads: tuple[ViewRead, ...]
    on_demand: tuple[OnDemandRead, ...]
    outputs: tuple[Output, ...]
    join_keys: Mapping[str, FeatureType]
    request: Mapping[str, Field]

    def types(self) -> dict[str, FeatureType]:
        """The type of every column that is read, given with the request or computed, by its qualified name."""
        given = {name: field.type for name, field in self.request.items()}
        given.update((read.column(field.name), field.type) for read in self.reads for field in read.features)
        given.update((read.column(field.name), field.type) for read in self.on_demand for field in read.features)
        return given


def parse_reference(text: str) -> ViewProjection:
    """The projection that "view:feature", "view@v2:feature" or "view:*" names.

    Raises:
        RequestError: the text is not of that form.
    """
    found = _REFERENCE.fullmatch(text.strip())
    if not found:
        raise RequestError(f"'{text}' is not a feature reference. Write it as view:feature, view@v2:feature or view:*.")
    version = int(found["version"]) if found["version"] else None
    features = None if found["feature"] == "*" else (found["feature"],)
    return ViewProjection(found["view"], features=features, version=version)


def listed(features: Features) -> list[str | ViewProjection | Referable]:
    """What was asked for, one by one, to be gone through more than once.

    Raises:
        RequestError: it is nothing that names features.
    """
    if isinstance(features, str | ViewProjection | Referable):
        return [features]
    if not isinstance(features, Iterable):
        raise RequestError(f"{features!r} is not a feature reference, a view, a projection or a service.")
    return list(features)


def projections(catalogue: Catalogue, features: Features) -> list[ViewProjection]:
    """What was asked for as projections, services replaced by theirs; in the order asked.

    Raises:
        RequestError: nothing was asked for, or a reference is malformed.
        UnknownService: there is no such service.
    """
    found: list[ViewProjection] = []
    for one in listed(features):
        thing = one.reference if isinstance(one, Referable) else one
        if isinstance(thing, ViewProjection):
            found.append(thing)
        elif not isinstance(thing, str):
            raise RequestError(f"{thing!r} is not a feature reference, a view, a projection or a service.")
        elif ":" in thing:
            found.append(parse_reference(thing))
        else:
            found.extend(catalogue.service(thing).features)
    if not found:
        raise RequestError("No features were asked for. Name a feature service, or references such as view:feature.")
    return found


def resolve(catalogue: Catalogue, features: Features, *, full_feature_names: bool = False) -> ReadPlan:
    """The plan for the features asked for.

    Raises:
        UnknownView, UnknownFeature, UnknownService: something of that name is not in the registry.
        NameCollision: two outputs would have one name.
        RequestError: a reference is malformed, or join keys disagree on a type.
    """
    asked = projections(catalogue, features)
    resolver = _Resolver(catalogue)
    # Views that are asked for by name take their names first; the hidden inputs of on-demand views make way.
    for projection in sorted(asked, key=lambda one: one.view in catalogue.on_demand):
        resolver.add(projection, hidden=False)
    outputs: dict[str, Output] = {}
    for projection in asked:
        for output in resolver.outputs(projection, full_feature_names=full_feature_names):
            other = outputs.setdefault(output.name, output)
            if other.column != output.column:
                raise NameCollision.of(
                    output.name, f"{other.view}:{other.field.name}", f"{output.view}:{output.field.name}"
                )
    return resolver.plan(tuple(outputs.values()))


_Identity: TypeAlias = tuple[object, ...]


class _Resolver:
    """Collects reads, each view once for each way of looking it up."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._reads: dict[_Identity, tuple[ViewSpec, str, tuple[tuple[str, str], ...], dict[str, Field]]] = {}
        self._computed: dict[str, tuple[OnDemandViewSpec, tuple[tuple[str, str], ...], dict[str, Field]]] = {}
        self._names: dict[str, _Identity] = {}
        self._request: dict[str, Field] = {}
        self._pending: list[str] = []

    def add(self, projection: ViewProjection, *, hidden: bool) -> tuple[str, tuple[Field, ...]]:
        """Read or compute these features; the name that qualifies their columns, and the fields."""
        if projection.view in self._catalogue.on_demand:
            return self._add_on_demand(projection)
        view = self._catalogue.view(projection.view, projection.version)
        keys = _keys(view, projection)
        fields = _fields(projection, view.features)
        identity = (view.name, view.version, projection.name, keys)
        if identity not in self._reads:
            self._reads[identity] = (view, self._free_name(projection, identity, hidden=hidden), keys, {})
        _, name, _, wanted = self._reads[identity]
        wanted.update((field.name, field) for field in fields)
        return name, fields

    def _add_on_demand(self, projection: ViewProjection) -> tuple[str, tuple[Field, ...]]:
        spec = self._catalogue.on_demand[projection.view]
        if projection.alias or projection.join_key_map or projection.version:
            raise RequestError(
                f"On-demand view '{spec.name}' cannot be renamed, versioned or given a join-key map; do that to its sources."
            )
        fields = _fields(projection, spec.features)
        if spec.name in self._pending:
            raise RequestError(
                f"On-demand views need one another in a circle: {' → '.join((*self._pending, spec.name))}."
            )
        if spec.name not in self._computed:
            self._names[spec.name] = ("on-demand", spec.name)
            self._pending.append(spec.name)
            inputs = self._inputs(spec)
            self._pending.pop()
            # Inserted only now: its own on-demand inputs stand before it.
            self._computed[spec.name] = (spec, inputs, {})
        self._computed[spec.name][2].update((field.name, field) for field in fields)
        return spec.name, fields

    def _inputs(self, spec: OnDemandViewSpec) -> tuple[tuple[str, str], ...]:
        inputs: dict[str, str] = {}
        for source in spec.sources:
            name, fields = self.add(source, hidden=True)
            for field in fields:
                seen = f"{source.name}__{field.name}" if spec.full_feature_names else field.name
                self._add_input(spec, inputs, seen, f"{name}__{field.name}")
        for request in spec.request:
            for field in request.schema:
                other = self._request.setdefault(field.name, field)
                if other.type != field.type:
                    raise RequestError(
                        f"Request field '{field.name}' is a {other.type} in one on-demand view and a {field.type} in "
                        f"'{spec.name}'. Give one of them another name."
                    )
                self._add_input(spec, inputs, field.name, field.name)
        return tuple(inputs.items())

    @staticmethod
    def _add_input(spec: OnDemandViewSpec, inputs: dict[str, str], seen: str, column: str) -> None:
        if inputs.setdefault(seen, column) != column:
            raise NameCollision(
                f"On-demand view '{spec.name}' would see two inputs named '{seen}'. "
                "Declare it with full_feature_names=True, and rename one source with .with_name('…') if need be."
            )

    def _free_name(self, projection: ViewProjection, identity: _Identity, *, hidden: bool) -> str:
        name = projection.name
        if self._names.setdefault(name, identity) == identity:
            return name
        if not hidden:
            raise NameCollision(
                f"View '{projection.view}' is asked for in two ways under one name '{name}'. "
                "Rename one with .with_name('…')."
            )
        number = 2
        while f"{name}__{number}" in self._names:
            number += 1
        self._names[f"{name}__{number}"] = identity
        return f"{name}__{number}"

    def outputs(self, projection: ViewProjection, *, full_feature_names: bool) -> Iterable[Output]:
        name, fields = self.add(projection, hidden=False)
        for field in fields:
            full = f"{name}__{field.name}"
            yield Output(full if full_feature_names else field.name, full, field, projection.name)

    def plan(self, outputs: tuple[Output, ...]) -> ReadPlan:
        reads = tuple(
            ViewRead(view, name, keys, tuple(wanted.values())) for view, name, keys, wanted in self._reads.values()
        )
        computed = tuple(
            OnDemandRead(spec, spec.name, inputs, tuple(wanted.values()))
            for spec, inputs, wanted in self._computed.values()
        )
        join_keys: dict[str, FeatureType] = {}
        for read in reads:
            for key, column in read.keys:
                of = read.view.join_keys[key]
                if join_keys.setdefault(column, of) != of:
                    raise RequestError(
                        f"Column '{column}' would be looked up as a {join_keys[column]} and, in view '{read.view.name}', "
                        f"as a {of}. Map one to a column of its own: .with_join_key_map({{'{key}': '<column>'}})."
                    )
        for column, field in self._request.items():
            if column in join_keys and join_keys[column] != field.type:
                raise RequestError(
                    f"'{column}' is both a join key ({join_keys[column]}) and a request field ({field.type})."
                )
        return ReadPlan(reads, computed, outputs, join_keys, dict(self._request))


def _keys(view: ViewSpec, projection: ViewProjection) -> tuple[tuple[str, str], ...]:
    if unknown := [key for key in projection.join_key_map if key not in view.join_keys]:
        known = ", ".join(view.join_keys) or "none: it has no entities"
        raise RequestError(f"View '{view.name}' has no join key '{unknown[0]}' to map (join keys: {known}).")
    return tuple((key, projection.join_key_map.get(key, key)) for key in view.join_keys)


def _fields(projection: ViewProjection, declared: tuple[Field, ...]) -> tuple[Field, ...]:
    if projection.features is None:
        return declared
    by_name = {field.name: field for field in declared}
    if not projection.features:
        raise RequestError(f"No features of view '{projection.view}' were asked for. Name some: {', '.join(by_name)}.")
    for name in projection.features:
        if name not in by_name:
            raise UnknownFeature.among(projection.view, name, list(by_name))
    return tuple(by_name[name] for name in projection.features)


def question(features: Features) -> Question:
    """What is asked for, as something to find its plan by."""
    if isinstance(features, str):
        return features
    items = features if isinstance(features, list | tuple) else _items(features)
    if set(map(type, items)) == {str}:
        return tuple(items)
    return tuple(map(_by_value, items))


def _items(features: Any) -> list[Any]:
    if isinstance(features, ViewProjection | Referable) or not hasattr(features, "__iter__"):
        return [features]
    return list(features)


def _by_value(item: Any) -> str | bytes:
    thing = item.reference if isinstance(item, Referable) else item
    if isinstance(thing, str):
        return thing
    if not isinstance(thing, ViewProjection):
        raise RequestError(f"{item!r} is not a feature reference, a view, a projection or a service.")
    return canonical_json(thing)


def asked_for(asked: Question) -> Features:
    """The features of a question."""
    if isinstance(asked, str):
        return asked
    return [one if isinstance(one, str) else from_json(one, ViewProjection) for one in asked]
