"""`OnDemandFeatureView` and `FeatureService`: nodes of the asset graph that nothing materialises."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import dagster as dg
import polars as pl

from feature_assets.assets.feature_view import FeatureView
from feature_assets.assets.metadata import metadata_for, spec_from_metadata
from feature_assets.assets.passed_on import declaring, refuse_unknown_parameters
from feature_assets.assets.projection import Projection, asset_key, projected
from feature_assets.errors import DeclarationError
from feature_assets.registry import Registry, check_registry
from feature_assets.spec import (
    Expressions,
    Field,
    Function,
    LoggingConfig,
    OnDemandViewSpec,
    RequestSource,
    ServiceSpec,
    ViewProjection,
    ViewSpec,
)
from feature_assets.transformations import declared_expressions, declared_function

_Declared = TypeVar("_Declared", bound="_Declaration")
Needed: TypeAlias = ViewSpec | OnDemandViewSpec | None


class _Declaration(dg.AssetsDefinition):
    """An external asset that carries a declaration in its metadata."""

    @classmethod
    def dagster_internal_init(cls: type[_Declared], **attributes: Any) -> _Declared:
        """How Dagster makes every copy."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=dg.PreviewWarning)
            warnings.simplefilter("ignore", category=dg.BetaWarning)
            made = cls.__new__(cls)
            dg.AssetsDefinition.__init__(made, **attributes)
            return made

    def with_resources(self: _Declared, resource_defs: Mapping[str, dg.ResourceDefinition]) -> _Declared:
        """Itself: nothing runs here. Dagster's own calls the class with its own arguments and not ours."""
        return self

    def _declare(
        self,
        spec: OnDemandViewSpec | ServiceSpec,
        place: str,
        deps: Sequence[dg.AssetKey],
        kind: str,
        asset: dict[str, Any],
    ) -> None:
        refuse_unknown_parameters(place, asset, dg.AssetSpec, type(self).__init__)
        prefix, key = asset.pop("key_prefix", None), asset.pop("key", None)
        key = dg.AssetKey.from_coercible(key or [*_path(prefix), spec.name])
        if key in deps:
            raise DeclarationError(
                f"{place} has the name of a view that it is made of. Give it another, or give one of the two a key_prefix=."
            )
        deprecated = {"feature_assets/deprecated": ""} if spec.deprecated else {}
        metadata = {**metadata_for(spec), **({"deprecated": spec.deprecated} if spec.deprecated else {})}
        with declaring(place):
            one = dg.AssetSpec(
                key,
                deps=list(dict.fromkeys(deps)),
                description=spec.description or None,
                owners=list(spec.owners),
                tags={**spec.tags, **deprecated},
                kinds=asset.pop("kinds", None) or {kind},
                metadata={**metadata, **(asset.pop("metadata", None) or {})},
                **asset,
            )
        dg.AssetsDefinition.__init__(self, specs=[one])


def _path(prefix: str | Sequence[str] | None) -> list[str]:
    return [] if prefix is None else [prefix] if isinstance(prefix, str) else list(prefix)


class OnDemandFeatureView(_Declaration):
    """Features computed when asked for, from other features and from request data; the same in training and serving.

    Args:
        name: the view's name.
        sources: feature views, projections, other on-demand views and request sources.
        schema: the features.
        expressions: for each feature a Polars expression over the inputs. Stored as data; row by row only.
        function: instead of expressions, an importable function. It is stored as import path and digest, and a server
            loads it from the modules that its configuration allows.
        mode: `frame`: the function takes a Polars frame and returns one with the features, row for row;
            `row`: it takes a dict and returns a dict.
        full_feature_names: inputs are seen as `view__feature`, for sources whose features share names.
        access: who may read it and see its PII, beyond being allowed to read all its sources.
        **asset: what `dagster.AssetSpec` takes, as group_name.

    Raises:
        DeclarationError: the declaration cannot be right; the message says how to mend it.
    """

    def __init__(
        self,
        name: str,
        *,
        sources: Sequence[Any],
        schema: Sequence[Field],
        expressions: Mapping[str, pl.Expr] | None = None,
        function: Callable[..., Any] | None = None,
        mode: Literal["frame", "row"] = "frame",
        full_feature_names: bool = False,
        access: Mapping[str, Sequence[str]] | None = None,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
        owners: Sequence[str] = (),
        deprecated: str | None = None,
        **asset: Any,
    ) -> None:
        place = f"On-demand view '{name}'"
        if (expressions is None) == (function is None) or (function is None and mode != "frame"):
            raise DeclarationError(f"{place}: give either expressions=, or function= and perhaps mode=.")
        inputs = _listed(sources, place, "sources")
        views = [one for one in inputs if not isinstance(one, RequestSource)]
        transformation: Expressions | Function
        if function is not None:
            transformation = declared_function(function, mode=mode)
        else:
            transformation = declared_expressions(name, expressions or {})
        # As they were given: the specification compares each with what it takes.
        declaration: dict[str, Any] = {
            "name": name,
            "sources": [projected(one, place) for one in views],
            "request": [one for one in inputs if isinstance(one, RequestSource)],
            "features": schema,
            "transformation": transformation,
            "full_feature_names": full_feature_names,
            "access": access,
            "description": description or inspect.cleandoc((function.__doc__ if function else "") or ""),
            "tags": tags or {},
            "owners": owners,
            "deprecated": deprecated,
        }
        spec = OnDemandViewSpec(**declaration)
        self.needs = _needed(views)
        _check_together(spec, self.needs)
        kind = "polars" if expressions is not None else "python"
        self._declare(spec, place, [asset_key(one) for one in views], kind, asset)

    @property
    def spec(self) -> OnDemandViewSpec:
        """The declaration as data."""
        return spec_from_metadata(self.metadata_by_key[self.key])  # type: ignore[return-value]

    @property
    def reference(self) -> ViewProjection:
        """All features of the view."""
        return ViewProjection(self.spec.name)

    def __getitem__(self, features: Sequence[str]) -> Projection:
        return Projection.of(self)[features]


def on_demand_feature_view(
    *,
    sources: Sequence[Any],
    schema: Sequence[Field],
    name: str | None = None,
    mode: Literal["frame", "row"] = "frame",
    **more: Any,
) -> Callable[[Callable[..., Any]], OnDemandFeatureView]:
    """Declare an on-demand view by the function that computes it; arguments as of `OnDemandFeatureView`."""

    def declare(function: Callable[..., Any]) -> OnDemandFeatureView:
        view = OnDemandFeatureView(
            name or function.__name__, sources=sources, schema=schema, function=function, mode=mode, **more
        )
        # The import path names the view from now on; a server finds the function behind it.
        view.__wrapped__ = function  # type: ignore[attr-defined]
        return view

    return declare


class FeatureService(_Declaration):
    """The named list of features that one model uses.

    Args:
        name: the service's name, which training and serving ask for.
        features: views, projections such as `airport_weather[["temp"]].with_name("dest_weather")`, on-demand views.
        logging: whether what is served is logged, and how much of it.
        **asset: what `dagster.AssetSpec` takes, as group_name.

    Raises:
        DeclarationError: the declaration cannot be right; the message says how to mend it.
    """

    def __init__(
        self,
        name: str,
        features: Sequence[Any],
        *,
        description: str = "",
        tags: Mapping[str, str] | None = None,
        owners: Sequence[str] = (),
        deprecated: str | None = None,
        logging: LoggingConfig | None = None,
        **asset: Any,
    ) -> None:
        place = f"Feature service '{name}'"
        views = _listed(features, place, "features")
        declaration: dict[str, Any] = {
            "name": name,
            "features": [projected(one, place) for one in views],
            "description": description,
            "tags": tags or {},
            "owners": owners,
            "deprecated": deprecated,
            "logging": logging,
        }
        spec = ServiceSpec(**declaration)
        _check_together(spec, _needed(views))
        self._declare(spec, place, [asset_key(one) for one in views], "featureservice", asset)

    @property
    def spec(self) -> ServiceSpec:
        """The declaration as data."""
        return spec_from_metadata(self.metadata_by_key[self.key])  # type: ignore[return-value]

    @property
    def reference(self) -> str:
        """The name that the registry knows the service by."""
        return self.spec.name


def _listed(given: Any, place: str, parameter: str) -> list[Any]:
    """The items of a list of views; one alone is a common slip, and Python would try to iterate over it."""
    if isinstance(given, dg.AssetsDefinition | Projection | ViewProjection | RequestSource | str):
        raise DeclarationError(f"{place}: {parameter}= takes a list of views. Put it into one: {parameter}=[…].")
    return list(given)


def _check_together(spec: OnDemandViewSpec | ServiceSpec, needs: Sequence[Needed]) -> None:
    """See that what is composed goes together, as far as its views are at hand and not known by name only.

    Raises:
        DeclarationError: it does not; publishing the registry would say the same.
    """
    if None not in needs:
        check_registry(Registry.of([*(one for one in needs if one is not None), spec]))


def _needed(sources: Iterable[Any]) -> tuple[Needed, ...]:
    """The declarations that these need, their own included; None stands for what is known by name only."""
    needs: list[Needed] = []
    for source in sources:
        view = source.view if isinstance(source, Projection) else source
        if isinstance(view, FeatureView):
            needs.append(view.spec)
        elif isinstance(view, OnDemandFeatureView):
            # Dagster's copies of a view have lost what the original was declared with.
            needs += [*getattr(view, "needs", (None,)), view.spec]
        else:
            needs.append(None)
    return tuple(needs)
