"""What a command works on: the settings, the stores that they name, the code with the definitions.

Everything opens on first use, so that a command pays for what it needs.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import typer

from feature_assets.cli.app import Options
from feature_assets.cli.output import note, working
from feature_assets.errors import RegistryUnreadable

if TYPE_CHECKING:
    import dagster as dg

    from feature_assets.config import Settings
    from feature_assets.offline import OfflineStore
    from feature_assets.online.protocol import OnlineStore
    from feature_assets.registry import Registry, RegistryStore
    from feature_assets.spec import ViewSpec
    from feature_assets.store import FeatureStore
    from feature_assets.training import TrainingSets

_EVER = sys.maxsize


class Project:
    """One project, as its `feature_assets.toml` and the environment describe it."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @classmethod
    def of(cls, ctx: typer.Context) -> "Project":
        """The project of a command."""
        return cls(ctx.obj if isinstance(ctx.obj, Options) else Options())

    @cached_property
    def settings(self) -> "Settings":
        from feature_assets.config import Settings

        settings = Settings.load(self.options.config)
        if settings.functions:
            from feature_assets.functions import make_importable

            # The installed command starts with its own folder on the path, not with the project's.
            make_importable(settings.root)
        return settings

    @cached_property
    def store(self) -> "FeatureStore":
        from feature_assets.store import FeatureStore

        return FeatureStore(self.settings)

    @cached_property
    def offline(self) -> "OfflineStore":
        from feature_assets.offline import OfflineStore

        settings = self.settings
        return OfflineStore(
            settings.place(settings.offline), storage_options=settings.storage(), durability=settings.durability
        )

    @cached_property
    def online(self) -> "OnlineStore":
        from feature_assets.online import open_online_store

        return open_online_store(self.settings.online_url)

    @cached_property
    def training_sets(self) -> "TrainingSets":
        from feature_assets.training import TrainingSets

        return TrainingSets(self.settings.place(self.settings.training), self.settings.storage())

    @cached_property
    def registry_store(self) -> "RegistryStore":
        from feature_assets.registry import RegistryStore

        return RegistryStore(self.settings.place(self.settings.registry), self.settings.storage())

    @cached_property
    def registry(self) -> "Registry":
        """The published registry."""
        return self.registry_store.read().registry

    def registries(self) -> "Iterator[Registry]":
        """Every registry that ever was published here, each once, the one in force first."""
        seen = {self.registry.digest}
        yield self.registry
        for entry in self.registry_store.history(limit=_EVER):
            if entry.digest not in seen:
                seen.add(entry.digest)
                try:
                    yield self.registry_store.snapshot(entry.digest)
                except RegistryUnreadable as error:
                    note(f"A former registry is passed over: {error}")

    @cached_property
    def definitions(self) -> "dg.Definitions":
        """The Dagster definitions of the project's code."""
        # Nothing that Dagster reports about its users leaves this machine from here.
        os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "yes")
        from feature_assets.cli.loading import load_definitions

        with working("Loading the definitions …"):
            return load_definitions(self.settings)

    @cached_property
    def derived(self) -> "Registry":
        """The registry that the code declares."""
        from feature_assets.assets import registry_from_graph

        return registry_from_graph(self.definitions.resolve_asset_graph())

    def views(self, names: Sequence[str]) -> "list[ViewSpec]":
        """The published views of these names, or else every published view in every version that can be read.

        Raises:
            UnknownView: there is no such view.
        """
        if not names:
            return sorted(self.registry.every_version(), key=lambda view: (view.name, view.version))
        return [self.view(name) for name in dict.fromkeys(names)]

    def label(self, view: "ViewSpec") -> str:
        """The view's name, with its version where it is not the current one."""
        current = self.registry.views.get(view.name)
        return view.name if current is not None and current.version == view.version else f"{view.name}@v{view.version}"

    def view(self, name: str) -> "ViewSpec":
        """A published view by its name, its name and version (`name@v1`), or the key of its asset."""
        base, _, version = name.partition("@v")
        if version.isdigit():
            return self.registry.view(base, int(version))
        by_key = {"/".join(view.asset_key): view.name for view in self.registry.views.values()}
        return self.registry.view(by_key.get(name, name) if name not in self.registry.views else name)
