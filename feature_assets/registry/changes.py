"""What lies between two registries, and what it means for data."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias, TypeVar

from feature_assets.registry.evolution import view_breaches
from feature_assets.registry.logging_changes import logging_changed
from feature_assets.registry.snapshot import Registry
from feature_assets.registry.words import difference, percent, signed, span
from feature_assets.spec import (
    AnySource,
    Field,
    OnDemandViewSpec,
    RequestSource,
    ServiceSpec,
    Spec,
    StreamSource,
    ViewProjection,
    ViewSpec,
)

Kind: TypeAlias = Literal["view", "on-demand view", "feature", "service", "source"]

_T = TypeVar("_T", bound=Spec)

_DESCRIPTIVE = ("description", "tags", "owners", "asset_key")


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `breaking`: who reads the object may not go on as before, or its tables cannot follow."""

    action: Literal["added", "changed", "removed"]
    kind: Kind
    name: str
    detail: str
    meaning: str
    breaking: bool = False


def plan(old: Registry | None, new: Registry) -> list[Change]:
    """How the second registry differs from the first: views, on-demand views, services, sources, each by name."""
    old = old or Registry()
    return [
        *_between(old.views, new.views, _view_added, partial(_view_changed, old), _view_removed),
        *_versions_forgotten(old, new),
        *_between(old.on_demand, new.on_demand, _on_demand_added, _on_demand_changed, _on_demand_removed),
        *_between(old.services, new.services, _service_added, _service_changed, _service_removed),
        *_between(old.sources, new.sources, _source_added, _source_changed, _source_removed),
    ]


def _between(
    old: Mapping[str, _T],
    new: Mapping[str, _T],
    added: Callable[[_T], Change],
    changed: Callable[[_T, _T], Iterator[Change]],
    removed: Callable[[_T], Change],
) -> Iterator[Change]:
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            yield added(new[name])
        elif name not in new:
            yield removed(old[name])
        elif old[name] != new[name]:
            yield from changed(old[name], new[name])


# Views


def _view_added(view: ViewSpec) -> Change:
    keys = f" by {', '.join(view.join_keys)}" if view.join_keys else ""
    detail = f"version {view.version}{keys}: {_listed(view.features)}"
    return Change("added", "view", view.name, detail, "new view: nothing is served until its first materialisation")


def _view_removed(view: ViewSpec) -> Change:
    meaning = "no longer served or offered for training, in any version; its tables stay until they are dropped"
    return Change("removed", "view", view.name, f"version {view.version}", meaning, breaking=True)


def _view_changed(registry: Registry, old: ViewSpec, new: ViewSpec) -> Iterator[Change]:
    if old.version != new.version:
        yield _version_changed(registry, old, new)
    following = max(registry.versions(old.name)) + 1
    for breach in view_breaches(old, new):
        meaning = "who asks for the view has to follow"
        if old.version == new.version:
            meaning = f"its tables cannot follow: raise the version, version={following}"
        yield Change("changed", "view", new.name, breach, meaning, breaking=True)
    yield from _features_changed(old, new, following)
    yield from _order_changed(old, new)
    yield from _ttl_changed(old, new)
    yield from _online_changed(old, new)
    yield from _access_changed(old, new, "view")
    yield from _row_filter_changed(old, new)
    if old.version == new.version:
        yield from _making_changed(old, new)
    yield from _described(old, new, "view")


def _version_changed(registry: Registry, old: ViewSpec, new: ViewSpec) -> Change:
    if f"{new.name}@v{new.version}" in registry.superseded:
        tables = f"read and written in the tables of version {new.version} again"
    else:
        tables = "new tables, backfill needed"
    meaning = f"{tables}; version {old.version} stays readable as {old.name}@v{old.version}"
    return Change("changed", "view", new.name, f"version {old.version} → {new.version}", meaning, breaking=True)


def _features_changed(old: ViewSpec, new: ViewSpec, following: int) -> Iterator[Change]:
    in_place = old.version == new.version
    refused = f"its tables cannot follow: raise the version, version={following}"
    for name, before, after in _paired(old.features, new.features):
        change = partial(Change, kind="feature", name=f"{new.name}:{name}")
        if before is None and after is not None:
            meaning = "null until its partitions are materialised again" if in_place else "part of the new version"
            yield change("added", detail=str(after.type), meaning=meaning)
        elif after is None and before is not None:
            meaning = refused if in_place else f"gone from the new version; {old.name}@v{old.version} still has it"
            yield change("removed", detail=str(before.type), meaning=meaning, breaking=True)
        elif before is not None and after is not None:
            if before.type != after.type:
                meaning = refused if in_place else "who reads it gets the other type"
                yield change("changed", detail=f"{before.type} → {after.type}", meaning=meaning, breaking=True)
            yield from _field_changed(before, after, change)


def _order_changed(old: ViewSpec, new: ViewSpec) -> Iterator[Change]:
    before = [field.name for field in old.features if new.field(field.name)]
    after = [field.name for field in new.features if old.field(field.name)]
    if before != after:
        meaning = "columns come in another order at once where all features are asked for"
        yield Change("changed", "view", new.name, "order of features", meaning)


def _field_changed(old: Field, new: Field, change: Callable[..., Change]) -> Iterator[Change]:
    """What may change of a feature beside its type."""
    if old.default != new.default and old.type == new.type:
        meaning = "answered at once for keys without a row, in training and in serving"
        yield change("changed", detail=f"default {old.default!r} → {new.default!r}", meaning=meaning)
    if old.pii != new.pii:
        meaning = "MASKED at once for readers without pii:read" if new.pii else "readable at once without pii:read"
        detail = f"personal data: {old.pii or 'none'} → {new.pii or 'none'}"
        yield change("changed", detail=detail, meaning=meaning, breaking=bool(new.pii) and not old.pii)
    if differing := [name for name in ("description", "tags") if getattr(old, name) != getattr(new, name)]:
        yield change("changed", detail=", ".join(differing), meaning=_NO_DATA)


def _ttl_changed(old: ViewSpec, new: ViewSpec) -> Iterator[Change]:
    if old.ttl == new.ttl:
        return
    shorter = new.ttl is not None and (old.ttl is None or new.ttl < old.ttl)
    if old.ttl is None or new.ttl is None:
        detail = f"ttl set to {span(new.ttl)}" if new.ttl else f"ttl of {span(old.ttl)} removed"
    else:
        detail = f"ttl {'shortened' if shorter else 'lengthened'} from {span(old.ttl)} to {span(new.ttl)}"
    if shorter:
        meaning = "older values become OUTSIDE_MAX_AGE at once and leave training sets"
    else:
        meaning = "older values are served at once and join training sets"
    yield Change("changed", "view", new.name, detail, meaning, breaking=shorter)


def _online_changed(old: ViewSpec, new: ViewSpec) -> Iterator[Change]:
    if old.online and not new.online:
        meaning = "no longer served online; training goes on as before"
        yield Change("changed", "view", new.name, "online switched off", meaning, breaking=True)
    elif new.online and not old.online:
        meaning = "nothing is served until its next materialisation, or: feature-assets reconcile"
        yield Change("changed", "view", new.name, "online switched on", meaning)


_NEXT_REFRESH = "at each server's next refresh; no data changes"


def _access_changed(old: ViewSpec | OnDemandViewSpec, new: ViewSpec | OnDemandViewSpec, kind: Kind) -> Iterator[Change]:
    """Who may do what. Breaking where somebody may no longer do what they could."""
    if old.access == new.access:
        return
    change = partial(Change, "changed", kind, new.name)
    if new.access is None:
        yield change("access policy removed", f"scopes alone decide, {_NEXT_REFRESH}")
        return
    if old.access is None:
        detail = "; ".join(f"{act}: {', '.join(names) or 'nobody'}" for act, names in new.access.items())
        meaning = f"who is not named is refused, {_NEXT_REFRESH}"
        yield change(f"access policy {detail}", meaning, breaking=True)
        return
    for act in sorted(old.access.keys() | new.access.keys()):
        gone, come = difference(old.access.get(act, ()), new.access.get(act, ()))
        if gone or come:
            effect = " and ".join(word for word, any_ in (("allowed", come), ("refused", gone)) if any_)
            yield change(f"access to {act} {signed(come, gone)}", f"{effect} {_NEXT_REFRESH}", breaking=bool(gone))


def _row_filter_changed(old: ViewSpec, new: ViewSpec) -> Iterator[Change]:
    if old.row_filter == new.row_filter:
        return
    gone, come = (
        [f"{key} = claim {claim}" for key, claim in one.items() if other.get(key) != claim]
        for one, other in ((old.row_filter, new.row_filter), (new.row_filter, old.row_filter))
    )
    meaning = f"{'other rows are' if come else 'more rows are'} open to a token, {_NEXT_REFRESH}"
    yield Change("changed", "view", new.name, f"row filter {signed(come, gone)}", meaning, breaking=bool(come))


def _making_changed(old: ViewSpec, new: ViewSpec) -> Iterator[Change]:
    """What changes how rows are made, and leaves the stored ones as they are."""
    change = partial(Change, "changed", "view", new.name)
    if old.code_version != new.code_version:
        detail = f"code {old.code_version[:8] or 'unknown'} → {new.code_version[:8] or 'unknown'}"
        yield change(detail, "stored rows stay as the former code made them until they are materialised again")
    if old.partitions != new.partitions and not any("partitions" in breach for breach in view_breaches(old, new)):
        yield change("range of partitions", "partitions that come in have to be materialised; rows of others stay")
    if old.upstream != new.upstream:
        gone, come = difference(old.upstream, new.upstream)
        yield change(f"upstream {signed(come, gone)}", "the next materialisation reads from there; stored rows stay")
    if old.checks != new.checks:
        gone, come = difference([check.label for check in old.checks], [check.label for check in new.checks])
        detail = f"checks {signed(come, gone)}" if come or gone else "bounds of checks"
        yield change(detail, "the next materialisation is held to them; stored rows are not looked at again")
    if old.stream != new.stream:
        yield change(_stream_changed(old, new), "rows that come from now on are taken so; stored rows stay")
    if old.max_future != new.max_future:
        detail = f"max_future {span(old.max_future)} → {span(new.max_future)}"
        yield change(detail, "the next materialisation is held to it")


def _stream_changed(old: ViewSpec, new: ViewSpec) -> str:
    before, after = (view.stream.source if view.stream else "none" for view in (old, new))
    return "transform of its stream" if before == after else f"stream {before} → {after}"


def _versions_forgotten(old: Registry, new: Registry) -> Iterator[Change]:
    for key, view in sorted(old.superseded.items()):
        if view.name in new.views and view.version not in new.versions(view.name):
            meaning = "can no longer be asked for; its tables stay until they are dropped"
            yield Change("removed", "view", key, "superseded version", meaning, breaking=True)


# On-demand views


def _on_demand_added(view: OnDemandViewSpec) -> Change:
    return Change("added", "on-demand view", view.name, _listed(view.features), "computed when asked for, from now on")


def _on_demand_removed(view: OnDemandViewSpec) -> Change:
    meaning = "no longer computed, in serving or in training"
    return Change("removed", "on-demand view", view.name, _listed(view.features), meaning, breaking=True)


def _on_demand_changed(old: OnDemandViewSpec, new: OnDemandViewSpec) -> Iterator[Change]:
    for name, before, after in _paired(old.features, new.features):
        change = partial(Change, kind="feature", name=f"{new.name}:{name}")
        if before is None and after is not None:
            yield change("added", detail=str(after.type), meaning="computed when asked for, from now on")
        elif after is None and before is not None:
            yield change("removed", detail=str(before.type), meaning="no longer computed", breaking=True)
        elif before is not None and after is not None:
            if before.type != after.type:
                meaning = "who reads it gets the other type"
                yield change("changed", detail=f"{before.type} → {after.type}", meaning=meaning, breaking=True)
            yield from _field_changed(before, after, change)
    view_change = partial(Change, "changed", "on-demand view", new.name)
    if old.transformation != new.transformation or old.full_feature_names != new.full_feature_names:
        yield view_change("transformation", "its values change at once, in serving and in training alike")
    if old.sources != new.sources:
        gone, come = difference(_references(old.sources), _references(new.sources))
        detail = f"inputs {signed(come, gone)}" if come or gone else "how its inputs are looked up"
        yield view_change(detail, "its values change at once; requests need the join keys of the new inputs")
    yield from _request_changed(old.request, new.request, view_change)
    yield from _access_changed(old, new, "on-demand view")
    yield from _described(old, new, "on-demand view")


def _request_changed(
    old: Sequence[RequestSource], new: Sequence[RequestSource], change: Callable[..., Change]
) -> Iterator[Change]:
    gone, come = difference(_request_fields(old), _request_fields(new))
    if come:
        yield change(f"request data {signed(come, gone)}", "requests and spines have to bring it", breaking=True)
    elif gone:
        yield change(f"request data {signed(come, gone)}", "requests need not bring it any more")


def _request_fields(sources: Sequence[RequestSource]) -> list[str]:
    return [f"{field.name} {field.type}" for source in sources for field in source.schema]


# Services and sources


def _service_added(service: ServiceSpec) -> Change:
    detail = ", ".join(_references(service.features))
    meaning = "can be asked for from now on"
    if service.logging is not None:
        meaning += f"; {percent(service.logging.sample_rate)} of the answers to requests by its name are logged"
    return Change("added", "service", service.name, detail, meaning)


def _service_removed(service: ServiceSpec) -> Change:
    detail = ", ".join(_references(service.features))
    meaning = "requests for it are refused from now on; its features stay"
    return Change("removed", "service", service.name, detail, meaning, breaking=True)


def _service_changed(old: ServiceSpec, new: ServiceSpec) -> Iterator[Change]:
    change = partial(Change, "changed", "service", new.name)
    gone, come = difference(_references(old.features), _references(new.features))
    if come or gone:
        effect = " and ".join(word for word, any_ in (("gain columns", come), ("lose columns", gone)) if any_)
        yield change(f"features {signed(come, gone)}", f"its answers {effect} at once", breaking=bool(gone))
    elif _references(old.features) != _references(new.features):
        yield change("order of features", "its columns come in another order at once", breaking=True)
    before = {projection.name: projection for projection in old.features}
    for projection in new.features:
        former = before.get(projection.name)
        if former is not None and former.join_key_map != projection.join_key_map:
            detail = f"{projection.name} is looked up by {_mapped(projection)} instead of {_mapped(former)}"
            yield change(detail, "requests have to bring those columns", breaking=True)
    yield from logging_changed(old.logging, new.logging, change)
    yield from _described(old, new, "service")


def _source_added(source: AnySource) -> Change:
    meaning = "read by the next materialisation that needs it"
    if isinstance(source, StreamSource):
        meaning = "rows are taken from now on"
    return Change("added", "source", source.name, _type(source), meaning)


def _source_removed(source: AnySource) -> Change:
    stream = isinstance(source, StreamSource)
    meaning = "its rows are refused from now on; stored rows stay" if stream else "no longer read; stored rows stay"
    return Change("removed", "source", source.name, _type(source), meaning, breaking=stream)


def _source_changed(old: AnySource, new: AnySource) -> Iterator[Change]:
    change = partial(Change, "changed", "source", new.name)
    meaning = "the next materialisation reads it so; stored rows stay"
    if isinstance(new, StreamSource):
        meaning = "rows that come from now on are taken so; stored rows stay"
    if type(old) is not type(new):
        yield change(f"{_type(old)} → {_type(new)}", meaning)
        return
    differing = _differing(old, new)
    if reading := [name for name in differing if name not in _DESCRIPTIVE]:
        yield change(", ".join(reading), meaning)
    if described := [name for name in differing if name in _DESCRIPTIVE]:
        yield change(", ".join(described), _NO_DATA)


# What all have alike

_NO_DATA = "described differently; no data changes"


def _described(
    old: ViewSpec | OnDemandViewSpec | ServiceSpec, new: ViewSpec | OnDemandViewSpec | ServiceSpec, kind: Kind
) -> Iterator[Change]:
    differing = [name for name in _differing(old, new) if name in _DESCRIPTIVE]
    if isinstance(old, ViewSpec) and isinstance(new, ViewSpec) and old.join_keys == new.join_keys:
        differing += [name for name in ("entities",) if old.entities != new.entities]
    if differing:
        yield Change("changed", kind, new.name, ", ".join(differing), _NO_DATA)
    if old.deprecated != new.deprecated:
        detail = f"deprecated: {new.deprecated}" if new.deprecated else "no longer deprecated"
        yield Change("changed", kind, new.name, detail, "goes on as before; readers are told")


def _differing(old: Spec, new: Spec) -> list[str]:
    return [name for name in new.__struct_fields__ if getattr(old, name) != getattr(new, name)]


def _paired(old: Sequence[Field], new: Sequence[Field]) -> Iterator[tuple[str, Field | None, Field | None]]:
    """Fields by name, in the new order, then those that are gone."""
    before, after = {field.name: field for field in old}, {field.name: field for field in new}
    for name in [*after, *(name for name in before if name not in after)]:
        yield name, before.get(name), after.get(name)


def _references(projections: Sequence[ViewProjection]) -> list[str]:
    return [
        f"{_label(projection)}:{feature}"
        for projection in projections
        for feature in (projection.features if projection.features is not None else ("*",))
    ]


def _label(projection: ViewProjection) -> str:
    view = projection.view if projection.version is None else f"{projection.view}@v{projection.version}"
    return view if projection.alias is None else f"{view} as {projection.alias}"


def _mapped(projection: ViewProjection) -> str:
    return ", ".join(f"{key}={column}" for key, column in projection.join_key_map.items()) or "its own join keys"


def _listed(fields: Sequence[Field]) -> str:
    shown = ", ".join(f"{field.name} {field.type}" for field in fields[:6])
    return shown if len(fields) <= 6 else f"{shown} and {len(fields) - 6} more"


def _type(source: AnySource) -> str:
    return f"{type(source).__struct_config__.tag} source"
