"""The part of a registry that somebody may know."""

from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from feature_assets.registry.snapshot import Registry
from feature_assets.spec import OnDemandViewSpec, ViewProjection, ViewSpec


def narrowed(registry: Registry, known: Callable[[str], bool]) -> Registry:
    """What remains if only these views are known: nothing in it names, or is made from, one of the others.

    An on-demand view stays if all that it is computed from does, a service if all of its views do, a source if a view
    that stays reads it. Where nothing goes it is the registry itself.
    """
    stay = {name for name in (*registry.views, *registry.on_demand) if _all_known(registry, name, known)}
    if len(stay) == len(registry.views) + len(registry.on_demand):
        return registry
    views = {name: view for name, view in registry.views.items() if name in stay}
    superseded = {key: view for key, view in registry.superseded.items() if view.name in stay}
    hidden = _assets(registry, stay)
    read = {key for view in (*views.values(), *superseded.values()) for key in view.upstream}
    read |= {view.stream.source for view in views.values() if view.stream is not None}
    sources = {name: source for name, source in registry.sources.items() if name in read}
    services = {
        name: service
        for name, service in registry.services.items()
        if all(one.view in stay for one in service.features)
    }
    left = {"view": stay, "service": services.keys(), "source": sources.keys()}
    return Registry(
        format=registry.format,
        views=_without(views, hidden),
        superseded=_without(superseded, hidden),
        on_demand={name: view for name, view in registry.on_demand.items() if name in stay},
        services=services,
        sources=sources,
        owners={key: owner for key, owner in registry.owners.items() if _stays(key, left)},
    )


def _all_known(registry: Registry, view: str, known: Callable[[str], bool]) -> bool:
    return all(map(known, views_behind(registry, [ViewProjection(view)])))


def views_behind(registry: Registry, projections: Iterable[ViewProjection]) -> set[str]:
    """The views and on-demand views that these need, with all that they are computed from; unknown ones too."""
    found: set[str] = set()
    waiting = [one.view for one in projections]
    while waiting:
        view = waiting.pop()
        if view not in found:
            found.add(view)
            if view in registry.on_demand:
                waiting += [source.view for source in registry.on_demand[view].sources]
    return found


def _assets(registry: Registry, stay: set[str]) -> set[str]:
    """The keys of the assets of all that does not stay."""
    views: list[ViewSpec | OnDemandViewSpec] = [*registry.every_version(), *registry.on_demand.values()]
    return {"/".join(one.asset_key) for one in views if one.name not in stay}


def _without(views: Mapping[str, ViewSpec], hidden: set[str]) -> dict[str, ViewSpec]:
    return {
        key: msgspec.structs.replace(view, upstream=tuple(one for one in view.upstream if one not in hidden))
        if hidden.intersection(view.upstream)
        else view
        for key, view in views.items()
    }


def _stays(key: str, left: Mapping[str, Collection[str]]) -> bool:
    kind, _, name = key.partition("/")
    return name in left[kind]
