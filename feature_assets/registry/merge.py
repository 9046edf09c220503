"""A registry and what one code location newly derives, made into one."""

from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

import msgspec

from feature_assets.errors import RegistryConflict
from feature_assets.registry.snapshot import Kind, Registry
from feature_assets.spec import ViewSpec

_T = TypeVar("_T")


def merged(
    published: Registry,
    derived: Registry,
    location: str,
    *,
    adopt: Collection[str] = (),
    prune: bool = False,
) -> Registry:
    """The published registry with the objects of one code location replaced by those derived from its code.

    Every other version of a view that stays is kept beside it as superseded; with `prune` only those of this
    location's views that something refers to. What a location in `adopt` owns may be declared here and changes hands.

    Raises:
        RegistryConflict: another code location owns an object of that name.
    """
    own = {"", location, *adopt}
    shared = set(_shared_sources(published, derived, own))
    taken = _keys(derived) - shared
    _refuse_foreign(published, taken, location, own)
    stays = {key for key, owner in published.owners.items() if owner != location} - taken
    owners = {key: published.owners[key] for key in stays} | dict.fromkeys(taken, location)
    views = _kept(published.views, "view", stays) | derived.views
    result = Registry(
        views=views,
        superseded=_superseded(published, views),
        on_demand=_kept(published.on_demand, "view", stays) | derived.on_demand,
        services=_kept(published.services, "service", stays) | derived.services,
        sources=_kept(published.sources, "source", stays) | derived.sources,
        owners=owners,
    )
    return _pruned(result, derived.views) if prune else result


def _kept(room: Mapping[str, _T], kind: Kind, stays: Collection[str]) -> dict[str, _T]:
    return {name: each for name, each in room.items() if f"{kind}/{name}" in stays}


def _keys(registry: Registry) -> set[str]:
    return {
        *(f"view/{name}" for name in (*registry.views, *registry.on_demand)),
        *(f"service/{name}" for name in registry.services),
        *(f"source/{name}" for name in registry.sources),
    }


def _shared_sources(published: Registry, derived: Registry, own: Collection[str]) -> Iterator[str]:
    """Sources that another location declares just the same: both read them, and the first one goes on to own them."""
    for name, source in derived.sources.items():
        if published.owner(name, "source") not in own and published.sources.get(name) == source:
            yield f"source/{name}"


def _refuse_foreign(published: Registry, taken: Collection[str], location: str, own: Collection[str]) -> None:
    for key in sorted(taken):
        owner = published.owners.get(key, "")
        if owner not in own:
            kind, _, name = key.partition("/")
            raise RegistryConflict(
                f"{kind.capitalize()} '{name}' belongs to code location '{owner}', and '{location}' declares it too. "
                f"Rename it here, or publish '{owner}' without it first; "
                f"if '{owner}' is gone or has become '{location}': feature-assets apply --adopt {owner}"
            )


def _superseded(published: Registry, views: Mapping[str, ViewSpec]) -> dict[str, ViewSpec]:
    return {
        f"{view.name}@v{view.version}": view
        for view in published.every_version()
        if view.name in views and view.version != views[view.name].version
    }


def _pruned(registry: Registry, views: Collection[str]) -> Registry:
    asked = [projection for service in registry.services.values() for projection in service.features]
    asked += [projection for view in registry.on_demand.values() for projection in view.sources]
    wanted = {f"{projection.view}@v{projection.version}" for projection in asked}
    kept = {key: view for key, view in registry.superseded.items() if view.name not in views or key in wanted}
    return msgspec.structs.replace(registry, superseded=kept)
