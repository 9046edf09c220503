"""The registry: what is declared, as one value with one digest, and where it is published."""

from feature_assets.registry.changes import Change, plan
from feature_assets.registry.consistency import check_registry
from feature_assets.registry.merge import merged
from feature_assets.registry.published import Entry, Published, RegistryStore
from feature_assets.registry.snapshot import FORMAT, AnyObject, ListedFeature, Registry, read_registry

__all__ = [
    "FORMAT",
    "AnyObject",
    "Change",
    "Entry",
    "ListedFeature",
    "Published",
    "Registry",
    "RegistryStore",
    "check_registry",
    "merged",
    "plan",
    "read_registry",
]
