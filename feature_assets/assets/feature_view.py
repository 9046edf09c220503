"""`FeatureView`: a Dagster asset whose materialisation is published offline and online."""

import hashlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import dagster as dg
import msgspec
import polars as pl

from feature_assets.assets.checks import check_result, check_specs
from feature_assets.assets.function import AssetFunction
from feature_assets.assets.inputs import Outside, check_parameters, reaches, sources_beside, upstream
from feature_assets.assets.materialization import (
    column_lineage,
    definition_metadata,
    materialization,
    partition_materializations,
)
from feature_assets.assets.metadata import metadata_for, spec_from_metadata
from feature_assets.assets.partitions import dimensions, slices, window_of
from feature_assets.assets.passed_on import declaring, refuse_unknown_parameters
from feature_assets.assets.projection import Projection
from feature_assets.assets.resources import RESOURCE, FeatureAssets
from feature_assets.assets.source_text import source_of
from feature_assets.checks import AnyCheck, CheckResult, check_types
from feature_assets.declared import taken
from feature_assets.errors import DeclarationError, FeatureAssetsError, PublicationConflict, StoreError
from feature_assets.publication import publish
from feature_assets.spec import (
    BatchSource,
    DeltaSource,
    Entity,
    Field,
    FileSource,
    SqlSource,
    ViewProjection,
    ViewSpec,
    digest,
)


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
        source: BatchSource,
        *,
        name: str | None = None,
        transform: Callable[[pl.LazyFrame], pl.LazyFrame] | None = None,
        **declaration: Any,
    ) -> "FeatureView":
        """A view of a source's rows as they are, or through `transform`; the rest as in `feature_view`."""

        if not isinstance(source, FileSource | DeltaSource | SqlSource):
            raise DeclarationError(f"from_source() takes a FileSource, DeltaSource or SqlSource, not {source!r}.")
        rows = passing_on(source, transform, name or source.name)
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

    def __getitem__(self, features: Sequence[str]) -> Projection:
        return Projection.of(self)[features]

    def with_name(self, alias: str) -> Projection:
        """All features under another view name."""
        return Projection.of(self).with_name(alias)

    def with_join_key_map(self, join_key_map: Mapping[str, str]) -> Projection:
        """All features looked up by other columns: `{"origin": "dest"}` takes the key from `dest`."""
        return Projection.of(self).with_join_key_map(join_key_map)


def passing_on(
    source: BatchSource, transform: Callable[[pl.LazyFrame], pl.LazyFrame] | None, name: str
) -> Callable[[pl.LazyFrame], Any]:
    """An asset function that returns the rows of a source, as they are or transformed."""

    def rows(source: pl.LazyFrame) -> Any:
        return transform(source) if transform else source

    rows.__name__ = rows.__qualname__ = name
    rows.__doc__ = (transform.__doc__ if transform else None) or source.description
    # What tells such views apart is the source and the transformation; around them they are all the same.
    rows.transform = transform  # type: ignore[attr-defined]
    # Columns that are passed on as they are have a lineage that is known.
    rows.passes_on = None if transform else source  # type: ignore[attr-defined]
    return rows


_TAKEN_OVER = {
    "check_specs": (
        "Its function returns rows and no check results, so they would stay without any: declare them with checks=, or "
        "apart with @dagster.asset_check."
    ),
    "io_manager_key": "Its rows go to the stores that feature_assets.toml names; for plain assets use @dagster.asset.",
    "io_manager_def": "Its rows go to the stores that feature_assets.toml names; for plain assets use @dagster.asset.",
    "dagster_type": "The type of its rows is schema=.",
    "output_required": "It publishes whenever it is materialised; return no rows to empty the partition.",
}


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
    sources: Mapping[str, BatchSource] | None = None,
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
        place = f"View '{title}'"
        refuse_unknown_parameters(place, asset, dg.asset, feature_view)
        # As they were given: the specification compares each with what it takes.
        declaration: dict[str, Any] = {
            "name": title,
            "version": version,
            "entities": entities,
            "features": schema,
            "event_timestamp": event_timestamp,
            "created_timestamp": created_timestamp,
            "ttl": ttl,
            "partitions": dimensions(partitions_def, place),
            "checks": checks,
            "online": online,
            "max_future": max_future,
            "description": description or inspect.cleandoc(function.__doc__ or ""),
            "owners": owners,
            "tags": tags or {},
            "deprecated": deprecated,
        }
        spec = ViewSpec(**declaration)
        check_types(spec.checks, pl.Schema({one: of.polars for one, of in spec.types.items()}))
        outside: dict[str, BatchSource] = taken(place, "sources", sources or {}, dict[str, BatchSource])
        wrapped = AssetFunction.of(function, place)
        # Who may see the rows changes nothing in them: a policy that changes makes no partition stale.
        version_of = taken(place, "code_version", code_version, str | None) or _code_version(function, spec, outside)
        policy: dict[str, Any] = {"access": access, "row_filter": row_filter or {}}
        spec = msgspec.structs.replace(spec, code_version=version_of, **policy)
        return _asset(spec, wrapped, partitions_def, outside, lookback, backfill_policy, asset)

    return declare


def _code_version(function: Callable[..., Any], spec: ViewSpec, sources: Mapping[str, BatchSource]) -> str:
    text = source_of(getattr(function, "transform", None) or function) + digest(spec)
    if sources:
        text += digest(dict(sources))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _asset(
    spec: ViewSpec,
    function: AssetFunction,
    partitions_def: dg.PartitionsDefinition | None,
    sources: Mapping[str, BatchSource],
    lookback: timedelta | Mapping[str, timedelta] | None,
    backfill_policy: dg.BackfillPolicy | None,
    asset: dict[str, Any],
) -> FeatureView:
    place = f"View '{spec.name}'"
    for parameter, instead in _TAKEN_OVER.items():
        if parameter in asset:
            raise DeclarationError(f"{place}: {parameter}= is not for a view. {instead}")
    if "compute_kind" not in asset:
        asset["kinds"] = asset.get("kinds") or {"polars", "delta"}
    prefix = asset.pop("key_prefix", None) or []
    key = asset.pop("key", None) or [*([prefix] if isinstance(prefix, str) else prefix), spec.name]
    asset_key = dg.AssetKey.from_coercible(key)
    policy = backfill_policy or (dg.BackfillPolicy.single_run() if partitions_def is not None else None)
    given = asset.pop("ins", None) or {}
    back = reaches(spec, function, lookback)
    check_parameters(spec, asset_key, function, sources, back, given)
    compute = _compute(spec, function, asset_key, Outside(sources, back))
    metadata = {
        **metadata_for(spec, sources.values()),
        **definition_metadata(spec),
        **(asset.pop("metadata", None) or {}),
    }
    with declaring(place):
        decorated = dg.asset(
            key=asset_key,
            partitions_def=partitions_def,
            ins=upstream(function, sources, back, given),
            deps=sources_beside(asset.pop("deps", None) or (), sources),
            metadata=metadata,
            description=spec.description,
            owners=list(spec.owners),
            tags={**spec.tags, **({"feature_assets/deprecated": ""} if spec.deprecated else {})},
            code_version=spec.code_version,
            check_specs=check_specs(spec.checks, asset_key),
            io_manager_key=RESOURCE,
            # The IO manager's key makes the resource a required one. Named here as well, it would forbid the function
            # to take resources as parameters.
            required_resource_keys=set(asset.pop("required_resource_keys", None) or ()),
            **asset,
        )(function.wrapping(compute, spec.name, apart_from=sources))
        return FeatureView.dagster_internal_init(**{**decorated.get_attributes_dict(), "backfill_policy": policy})


def _compute(
    spec: ViewSpec, function: AssetFunction, key: dg.AssetKey, outside: Outside
) -> Callable[..., Iterator[Any]]:
    def compute(context: dg.AssetExecutionContext, **inputs: Any) -> Iterator[Any]:
        stores: FeatureAssets = getattr(context.resources, RESOURCE)
        partitions_def = context.assets_def.partitions_def
        parts = slices(partitions_def, context.partition_keys if partitions_def is not None else [])
        with told_to_dagster():
            inputs |= outside.read(stores, window_of(parts))
        with _knowing_of_ranges(context, spec.name):
            frame = function(context, inputs)
        results: list[CheckResult] = []
        try:
            publication = publish(
                spec,
                frame,
                parts,
                offline=stores.offline(),
                online=stores.online(),
                run_id=context.run.run_id,
                on_checks=results.extend,
            )
        except FeatureAssetsError as error:
            yield from (check_result(one, key) for one in results)
            raise _failure(error) from error
        yield from (check_result(one, key) for one in results)
        lineage = column_lineage(spec, getattr(function.call, "passes_on", None))
        yield materialization(publication, spec, key, lineage)
        yield from partition_materializations(publication, spec, key, lineage, context)

    return compute


@contextmanager
def told_to_dagster() -> Iterator[None]:
    try:
        yield
    except FeatureAssetsError as error:
        raise _failure(error) from error


@contextmanager
def _knowing_of_ranges(context: dg.AssetExecutionContext, view: str) -> Iterator[None]:
    """Says what to do to who asks for the one partition of a run that has several."""
    try:
        yield
    except dg.DagsterInvariantViolationError as error:
        if not str(error).startswith("Cannot access partition_key for"):
            raise
        keys = context.partition_keys
        raise dg.Failure(
            f"{view}() asks for context.partition_key, and this run is for {len(keys):,} partitions: {keys[0]} to {keys[-1]}. "
            f"Compute all of context.partition_keys there, or give {view} backfill_policy=dg.BackfillPolicy.multi_run(1), "
            "which makes each of them a run.",
            allow_retries=False,
        ) from error


def _failure(error: FeatureAssetsError) -> dg.Failure:
    # Rows that are wrong are wrong again; a busy or full store may not be.
    return dg.Failure(str(error), allow_retries=isinstance(error, StoreError | PublicationConflict))
