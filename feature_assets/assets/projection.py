"""Some features of a view that is at hand: what they are asked for is compared with the view at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import dagster as dg

from feature_assets.errors import DeclarationError, UnknownFeature
from feature_assets.spec import OnDemandViewSpec, ViewProjection, ViewSpec


class DeclaredView(Protocol):
    """A `FeatureView` or an `OnDemandFeatureView`."""

    @property
    def key(self) -> dg.AssetKey:
        """The asset that it is."""

    @property
    def spec(self) -> ViewSpec | OnDemandViewSpec:
        """The declaration as data."""


@dataclass(frozen=True, slots=True)
class Projection:
    """Features of `view`, perhaps under another name and looked up by other columns; `reference` is that as data."""

    view: DeclaredView
    reference: ViewProjection

    @classmethod
    def of(cls, view: DeclaredView) -> "Projection":
        """All features of the view."""
        return cls(view, ViewProjection(view.spec.name))

    def __getitem__(self, features: Sequence[str]) -> "Projection":
        # Python's old iteration protocol asks for 0, 1, 2 …; this is no sequence.
        if isinstance(features, int):
            first = self.view.spec.features[0].name
            raise TypeError(f"A feature view is not a sequence; name features, as in view[['{first}']].")
        chosen = self.reference[features]
        known = [field.name for field in self.view.spec.features]
        for name in chosen.features or ():
            if name not in known:
                raise DeclarationError(str(UnknownFeature.among(self.reference.view, name, known)))
        return replace(self, reference=chosen)

    def with_name(self, alias: str) -> "Projection":
        """The same features under another view name."""
        self._require_rows("another name")
        return replace(self, reference=self.reference.with_name(alias))

    def with_join_key_map(self, join_key_map: Mapping[str, str]) -> "Projection":
        """The same features looked up by other columns: `{"origin": "dest"}` takes the key from `dest`."""
        keys = list(self._require_rows("a join-key map").join_keys)
        mapped = self.reference.with_join_key_map(join_key_map)
        for key in mapped.join_key_map:
            if key not in keys:
                raise DeclarationError(
                    f"View '{self.reference.view}' has no join key '{key}' to map "
                    f"(join keys: {', '.join(keys) or 'none: it has no entities'})."
                )
        return replace(self, reference=mapped)

    def _require_rows(self, what: str) -> ViewSpec:
        spec = self.view.spec
        if isinstance(spec, ViewSpec):
            return spec
        raise DeclarationError(
            f"On-demand view '{spec.name}' is computed from its sources and takes no {what.removeprefix('another ')}; "
            "do that to its sources."
        )


def projected(source: Any, place: str) -> ViewProjection:
    """What stands for features, as data.

    Raises:
        DeclarationError: it is something else.
    """
    found = source if isinstance(source, ViewProjection) else getattr(source, "reference", None)
    if not isinstance(found, ViewProjection):
        raise DeclarationError(f"{place}: {source!r} is no feature view, on-demand view or projection of one.")
    return found


def asset_key(source: Any) -> dg.AssetKey:
    """The asset behind a view or projection; of a view that is known by name only, the asset of that name."""
    if isinstance(source, ViewProjection):
        return dg.AssetKey(source.view)
    return source.view.key if isinstance(source, Projection) else source.key
