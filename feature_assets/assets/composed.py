"""`OnDemandFeatureView` and `FeatureService`: nodes of the asset graph that nothing materialises."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import dagster as dg
import polars as pl

from feature_assets.assets.metadata import metadata_for, spec_from_metadata
from feature_assets.errors import DeclarationError
from feature_assets.expressions import to_data
from feature_assets.spec import (
    Expressions,
    Field,
    Function,
    OnDemandViewSpec,
    RequestSource,
    ServiceSpec,
    ViewProjection,
)
from feature_assets.transformations import check_row_wise, function_digest, import_path

_Declared = TypeVar("_Declared", bound="_Declaration")


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
        self, spec: OnDemandViewSpec | ServiceSpec, deps: Sequence[Any], kind: str, asset: dict[str, Any]
    ) -> None:
        one = dg.AssetSpec(
            asset.pop("key", None) or [*_path(asset.pop("key_prefix", None)), spec.name],
            deps=list(dict.fromkeys(deps)),
            description=spec.description or None,
            owners=list(spec.owners),
            tags=dict(spec.tags),
            kinds=asset.pop("kinds", None) or {kind},
            metadata={**metadata_for(spec), **(asset.pop("metadata", None) or {})},
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
        transformation: Expressions | Function
        if expressions is not None and function is None:
            for feature, expression in expressions.items():
                check_row_wise(expression, f"On-demand view '{name}', feature '{feature}'")
            stored = {
                one: to_data(expression, f"On-demand view '{name}', feature '{one}'")
                for one, expression in expressions.items()
            }
            transformation = Expressions(stored)
        elif function is not None and expressions is None:
            transformation = Function(import_path(function), function_digest(function), mode)
        else:
            raise DeclarationError(f"On-demand view '{name}': give either expressions= or function=.")
        views = [one for one in sources if not isinstance(one, RequestSource)]
        spec = OnDemandViewSpec(
            name=name,
            sources=tuple(_projection(one, f"On-demand view '{name}'") for one in views),
            request=tuple(one for one in sources if isinstance(one, RequestSource)),
            features=tuple(schema),
            transformation=transformation,
            full_feature_names=full_feature_names,
            access=access,  # type: ignore[arg-type]
            description=description or inspect.cleandoc((function.__doc__ if function else "") or ""),
            tags=dict(tags or {}),
            owners=tuple(owners),
            deprecated=deprecated,
        )
        self._declare(spec, [_key(one) for one in views], "polars", asset)

    @property
    def spec(self) -> OnDemandViewSpec:
        """The declaration as data."""
        return spec_from_metadata(self.metadata_by_key[self.key])  # type: ignore[return-value]

    @property
    def reference(self) -> ViewProjection:
        """All features of the view."""
        return ViewProjection(self.spec.name)

    def __getitem__(self, features: Sequence[str]) -> ViewProjection:
        if isinstance(features, int):
            raise TypeError("An on-demand view is not a sequence; name features in a list.")
        return self.reference[features]


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
        **asset: Any,
    ) -> None:
        spec = ServiceSpec(
            name=name,
            features=tuple(_projection(one, f"Feature service '{name}'") for one in features),
            description=description,
            tags=dict(tags or {}),
            owners=tuple(owners),
            deprecated=deprecated,
        )
        self._declare(spec, [_key(one) for one in features], "featureservice", asset)

    @property
    def spec(self) -> ServiceSpec:
        """The declaration as data."""
        return spec_from_metadata(self.metadata_by_key[self.key])  # type: ignore[return-value]

    @property
    def reference(self) -> str:
        """The name that the registry knows the service by."""
        return self.spec.name


def _projection(source: Any, place: str) -> ViewProjection:
    projection = source if isinstance(source, ViewProjection) else getattr(source, "reference", None)
    if not isinstance(projection, ViewProjection):
        raise DeclarationError(f"{place}: {source!r} is no feature view, on-demand view or projection of one.")
    return projection


def _key(source: Any) -> dg.AssetKey:
    # A projection knows its view by name only; views with a key prefix are named as such in deps.
    return dg.AssetKey(source.view) if isinstance(source, ViewProjection) else source.key
