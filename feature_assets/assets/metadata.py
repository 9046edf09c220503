"""Declarations as asset metadata and back, and the registry that an asset graph amounts to."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import dagster as dg
import msgspec

from feature_assets.registry import AnyObject, Registry
from feature_assets.spec import AnySource, OnDemandViewSpec, ServiceSpec, Spec, ViewSpec, convert, to_builtins

SPEC = "feature_assets/spec"
KIND = "feature_assets/declares"
SOURCES = "feature_assets/sources"

_KINDS: Mapping[str, type[Spec]] = {"view": ViewSpec, "on_demand": OnDemandViewSpec, "service": ServiceSpec}
_T = TypeVar("_T", bound=Spec)


def metadata_for(spec: ViewSpec | OnDemandViewSpec | ServiceSpec, sources: Iterable[AnySource] = ()) -> dict[str, Any]:
    """The metadata that carries a declaration; `spec_from_metadata` reads it back."""
    kind = next(name for name, of in _KINDS.items() if isinstance(spec, of))
    metadata: dict[str, Any] = {SPEC: dg.MetadataValue.json(to_builtins(spec)), KIND: kind}
    if sources := list(sources):
        metadata[SOURCES] = dg.MetadataValue.json([to_builtins(source) for source in sources])
    return metadata


def spec_from_metadata(metadata: Mapping[str, Any]) -> ViewSpec | OnDemandViewSpec | ServiceSpec | None:
    """The declaration that the metadata of an asset carries; None for an asset that declares no features."""
    kind = _plain(metadata.get(KIND))
    if kind not in _KINDS:
        return None
    return convert(_plain(metadata[SPEC]), _KINDS[kind])  # type: ignore[return-value]


def sources_from_metadata(metadata: Mapping[str, Any]) -> list[AnySource]:
    """The sources that a view reads outside the graph."""
    return [convert(one, AnySource) for one in _plain(metadata.get(SOURCES)) or ()]  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, dg.MetadataValue) else value


def registry_from_graph(graph: Any) -> Registry:
    """What every view, on-demand view and service of a resolved asset graph declares.

    References are not followed: they may lead to another code location's views, which only publishing knows.

    Args:
        graph: what `Definitions.resolve_asset_graph()` or a repository's `asset_graph` gives.

    Raises:
        DeclarationError: two assets declare one name.
    """
    objects: list[AnyObject] = []
    for key in sorted(graph.get_all_asset_keys()):
        node = graph.get(key)
        spec = spec_from_metadata(node.metadata)
        if spec is None:
            continue
        spec = msgspec.structs.replace(spec, asset_key=tuple(key.path))
        if isinstance(spec, ViewSpec):
            upstream = tuple(sorted(parent.to_user_string() for parent in node.parent_keys))
            spec = msgspec.structs.replace(spec, upstream=upstream)
            objects += sources_from_metadata(node.metadata)
        objects.append(spec)
    return Registry.of(objects)
