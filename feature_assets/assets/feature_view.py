"""`FeatureView`: a Dagster asset whose materialisation is published offline and online."""

import hashlib
import inspect
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import dagster as dg
import msgspec
import polars as pl

from feature_assets.assets.checks import check_result, check_specs
from feature_assets.assets.function import AssetFunction
from feature_assets.assets.materialization import (
    column_lineage,
    definition_metadata,
    materialization,
    partition_materializations,
)
from feature_assets.assets.metadata import metadata_for, spec_from_metadata
from feature_assets.assets.partitions import dimensions, slices
from feature_assets.assets.resources import LOOKBACK, RESOURCE, SOURCE, FeatureAssets
from feature_assets.checks import AnyCheck, CheckResult
from feature_assets.errors import DeclarationError, FeatureAssetsError, PublicationConflict, StoreError
from feature_assets.publication import publish
from feature_assets.spec import AnySource, Entity, Field, ViewProjection, ViewSpec, digest, to_builtins


class FeatureView(dg.AssetsDefinition):
    """An asset whose rows are published twice: as history in Delta and as the latest row per key online.

    Made by `@feature_view` or `FeatureView.from_source`. Dagster copies assets as it works with them, so everything
    that makes this one a view lies in its metadata.
    """

    @classmethod
    def dagster_internal_init(cls, **attributes: Any) -> "FeatureView":
        """How Dagster makes every copy."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=dg.PreviewWarning)
            warnings.simplefilter("ignore", category=dg.BetaWarning)
            return cls(**attributes)

    @classmethod
    def from_source(
        cls,
        source: AnySource,
        *,
        name: str | None = None,
        transform: Callable[[pl.LazyFrame], pl.LazyFrame] | None = None,
        **declaration: Any,
    ) -> "FeatureView":
        """A view of a source's rows as they are, or through `transform`; the rest as in `feature_view`."""

        def rows(source: pl.LazyFrame) -> Any:
            return transform(source) if transform else source

        rows.__name__ = rows.__qualname__ = name or source.name
        rows.__doc__ = (transform.__doc__ if transform else None) or source.description
        # What tells such views apart is the source and the transformation; around them they are all the same.
        rows.transform = transform  # type: ignore[attr-defined]
        # Columns that are passed on as they are have a lineage that is known.
        rows.passes_on = None if transform else source  # type: ignore[attr-defined]
        return feature_view(name=name or f"{source.name}_view", sources={"source": source}, **declaration)(rows)

    @property
    def spec(self) -> ViewSpec:
        """The declaration as data."""
        spec = spec_from_metadata(self.metadata_by_key[self.key])
        if not isinstance(spec, ViewSpec):
            raise DeclarationError(
                f"Asset {self.key.to_user_string()} has lost its declaration: its metadata was replaced."
            )
        return spec

    @property
    def reference(self) -> ViewProjection:
        """All features of the view."""
        return ViewProjection(self.spec.name)

    def __getitem__(self, features: Sequence[str]) -> ViewProjection:
        # Python's old iteration protocol asks for 0, 1, 2 …; a view is not a sequence.
        if isinstance(features, int):
            raise TypeError(
                f"A feature view is not a sequence; name features, as in view[['{self.spec.features[0].name}']]."
            )
        known = [field.name for field in self.spec.features]
        if unknown := [name for name in features if name not in known] if not isinstance(features, str) else []:
            raise DeclarationError(
                f"View '{self.spec.name}' has no feature '{unknown[0]}'. It has: {', '.join(known)}."
            )
        return self.reference[features]

    def with_name(self, alias: str) -> ViewProjection:
        """All features under another view name."""
        return self.reference.with_name(alias)

    def with_join_key_map(self, join_key_map: Mapping[str, str]) -> ViewProjection:
        """All features looked up by other columns: `{"origin": "dest"}` takes the key from `dest`."""
        return self.reference.with_join_key_map(join_key_map)


def feature_view(
    *,
    schema: Sequence[Field],
    event_timestamp: str,
    entities: Sequence[Entity] = (),
    created_timestamp: str | None = None,
    ttl: timedelta | None = None,
    partitions_def: dg.PartitionsDefinition | None = None,
    name: str | None = None,
    version: int = 1,
    online: bool = True,
    sources: Mapping[str, AnySource] | None = None,
    lookback: timedelta | Mapping[str, timedelta] | None = None,
    checks: Sequence[AnyCheck] = (),
    max_future: timedelta = timedelta(minutes=5),
    access: Mapping[str, Sequence[str]] | None = None,
    row_filter: Mapping[str, str] | None = None,
    description: str | None = None,
    owners: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
    deprecated: str | None = None,
    code_version: str | None = None,
    backfill_policy: dg.BackfillPolicy | None = None,
    **asset: Any,
) -> Callable[[Callable[..., Any]], FeatureView]:
    """Declare a feature view by the function that computes its rows.

    The function takes upstream assets and `sources` as parameters (frames cut to the partition's window plus
    `lookback`), resources, config and `context`, and returns a Polars frame or Arrow table with the join keys, the
    event timestamp and the features of every partition that is materialised: one, or a range in a backfill.

    Args:
        schema: the features.
        event_timestamp: the column that says when a row became true; naive times are read as UTC.
        entities: what the features describe; none for a view with one row at a time.
        created_timestamp: the column that says when a row became known, where that differs.
        ttl: how long a value stays valid after its event time, both ends included; None for ever.
        partitions_def: any time partitions, also with static or dynamic dimensions.
        name: of view and asset; the function's name if left out.
        version: raise it when a feature's type changes or a feature goes; each version has its own tables.
        online: whether the latest rows are served.
        sources: parameters that are read from outside the asset graph.
        lookback: how far before the window the inputs reach, for all of them or by parameter.
        checks: what the rows have to pass before anything is published.
        max_future: how far an event timestamp may lie ahead of the clock.
        access: who may read, push, materialize and see PII, as {"read": ["role:risk", "client:scorer"]}; what it does
            not name, nobody may. Without it, scopes alone decide.
        row_filter: by join key the claim of the token that it has to equal, as {"tenant_id": "tenant"}.
        description: the function's docstring if left out.
        owners: as "team:flight-ops" or an e-mail address.
        tags: for view and asset.
        deprecated: what to use instead.
        code_version: a digest of the declaration and the function's source if left out.
        backfill_policy: one run per range if left out; `BackfillPolicy.multi_run(1)` for one per partition.
        **asset: anything else that `dagster.asset` takes, as group_name, key_prefix, ins, deps, retry_policy,
            automation_condition or pool.

    Raises:
        DeclarationError: the declaration cannot be right; the message says how to mend it.
    """

    def declare(function: Callable[..., Any]) -> FeatureView:
        title = name or str(getattr(function, "__name__", ""))
        spec = ViewSpec(
            name=title,
            version=version,
            entities=tuple(entities),
            features=tuple(schema),
            event_timestamp=event_timestamp,
            created_timestamp=created_timestamp,
            ttl=ttl,
            partitions=dimensions(partitions_def, f"View '{title}'"),
            checks=tuple(checks),
            online=online,
            max_future=max_future,
            description=description or inspect.cleandoc(function.__doc__ or ""),
            owners=tuple(owners),
            tags=dict(tags or {}),
            deprecated=deprecated,
        )
        # Who may see the rows changes nothing in them: a policy that changes makes no partition stale.
        version_of = code_version or _code_version(function, spec, sources or {})
        policy = {"access": access, "row_filter": row_filter or {}}
        spec = msgspec.structs.replace(spec, code_version=version_of, **policy)
        return _asset(spec, AssetFunction.of(function), partitions_def, sources or {}, lookback, backfill_policy, asset)

    return declare


def _code_version(function: Callable[..., Any], spec: ViewSpec, sources: Mapping[str, AnySource]) -> str:
    text = _source_of(getattr(function, "transform", None) or function) + digest(spec)
    if sources:
        text += digest(dict(sources))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _source_of(function: Callable[..., Any]) -> str:
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        # Typed into a prompt, or no plain function: there is no source to compare, so only the declaration counts.
        return ""


def _asset(
    spec: ViewSpec,
    function: AssetFunction,
    partitions_def: dg.PartitionsDefinition | None,
    sources: Mapping[str, AnySource],
    lookback: timedelta | Mapping[str, timedelta] | None,
    backfill_policy: dg.BackfillPolicy | None,
    asset: dict[str, Any],
) -> FeatureView:
    if "check_specs" in asset:
        raise DeclarationError(
            f"View '{spec.name}': its function returns rows and no check results, so check_specs= would stay without "
            "any. Declare them with checks=, or apart with @dagster.asset_check."
        )
    if "compute_kind" not in asset:
        asset["kinds"] = asset.get("kinds") or {"polars", "delta"}
    prefix = asset.pop("key_prefix", None) or []
    key = asset.pop("key", None) or [*([prefix] if isinstance(prefix, str) else prefix), spec.name]
    asset_key = dg.AssetKey.from_coercible(key)
    decorated = dg.asset(
        key=asset_key,
        partitions_def=partitions_def,
        ins=_inputs(spec, function, sources, lookback, asset.pop("ins", None) or {}),
        metadata={
            **metadata_for(spec, sources.values()),
            **definition_metadata(spec),
            **(asset.pop("metadata", None) or {}),
        },
        description=spec.description,
        owners=list(spec.owners),
        tags={**spec.tags, **({"feature_assets/deprecated": ""} if spec.deprecated else {})},
        code_version=spec.code_version,
        check_specs=check_specs(spec.checks, asset_key),
        io_manager_key=RESOURCE,
        # The IO manager's key makes the resource a required one. Named here as well, it would forbid the function to
        # take resources as parameters.
        required_resource_keys=set(asset.pop("required_resource_keys", None) or ()),
        **asset,
    )(function.wrapping(_compute(spec, function, asset_key), spec.name))
    policy = backfill_policy or (dg.BackfillPolicy.single_run() if partitions_def is not None else None)
    return FeatureView.dagster_internal_init(**{**decorated.get_attributes_dict(), "backfill_policy": policy})


def _inputs(
    spec: ViewSpec,
    function: AssetFunction,
    sources: Mapping[str, AnySource],
    lookback: timedelta | Mapping[str, timedelta] | None,
    given: Mapping[str, Any],
) -> dict[str, dg.AssetIn]:
    """What Dagster and the IO manager have to know of each parameter beyond its name."""
    reaches = lookback if isinstance(lookback, Mapping) else dict.fromkeys(function.frames, lookback or timedelta(0))
    for name in (*sources, *reaches, *given):
        if name not in function.frames:
            raise DeclarationError(
                f"View '{spec.name}': the function has no parameter '{name}' to take it "
                f"(it has: {', '.join(function.frames) or 'none'})."
            )
    if negative := [name for name, reach in reaches.items() if reach < timedelta(0)]:
        raise DeclarationError(
            f"View '{spec.name}': lookback of '{negative[0]}' is negative; it reaches back, not ahead."
        )
    inputs: dict[str, dg.AssetIn] = {}
    for name in function.frames:
        one = given.get(name, dg.AssetIn())
        one = one if isinstance(one, dg.AssetIn) else dg.AssetIn(key=one)
        metadata = dict(one.metadata or {})
        if reach := reaches.get(name):
            metadata[LOOKBACK] = reach.total_seconds()
        if name in sources:
            metadata[SOURCE] = dg.MetadataValue.json(to_builtins(sources[name]))
            one = one._replace(key=dg.AssetKey(sources[name].name), input_manager_key=RESOURCE)
        inputs[name] = one._replace(metadata=metadata)
    return inputs


def _compute(spec: ViewSpec, function: AssetFunction, key: dg.AssetKey) -> Callable[..., Iterator[Any]]:
    def compute(context: dg.AssetExecutionContext, **inputs: Any) -> Iterator[Any]:
        stores: FeatureAssets = getattr(context.resources, RESOURCE)
        partitions_def = context.assets_def.partitions_def
        keys = context.partition_keys if partitions_def is not None else []
        frame = function(context, inputs)
        results: list[CheckResult] = []
        try:
            publication = publish(
                spec,
                frame,
                slices(partitions_def, keys),
                offline=stores.offline(),
                online=stores.online(),
                run_id=context.run.run_id,
                on_checks=results.extend,
            )
        except FeatureAssetsError as error:
            yield from (check_result(one, key) for one in results)
            # Rows that are wrong are wrong again; a busy or full store may not be.
            again = isinstance(error, StoreError | PublicationConflict)
            raise dg.Failure(str(error), allow_retries=again) from error
        yield from (check_result(one, key) for one in results)
        lineage = column_lineage(spec, getattr(function.call, "passes_on", None))
        yield materialization(publication, spec, key, lineage)
        yield from partition_materializations(publication, spec, key, lineage, context)

    return compute
