"""`@training_set`: an asset that joins features to the spine that its function returns, and keeps the rows under a name."""

import hashlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import dagster as dg

from feature_assets.assets.composed import FeatureService
from feature_assets.assets.feature_view import told_to_dagster
from feature_assets.assets.function import AssetFunction
from feature_assets.assets.passed_on import declaring, refuse_unknown_parameters
from feature_assets.assets.projection import asset_key, projected
from feature_assets.assets.resources import RESOURCE, TRAINING_SET, FeatureAssets
from feature_assets.errors import DeclarationError, RequestError
from feature_assets.historical import Progress
from feature_assets.historical.budget import memory_limit as bytes_of
from feature_assets.joins import check_engine
from feature_assets.store import FeatureStore
from feature_assets.training import Manifest, set_of_partition

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]*")
_TAKEN_OVER: Final = ("io_manager_key", "io_manager_def", "dagster_type", "check_specs", "output_required", "ins")


def training_set(
    *,
    features: Any,
    name: str | None = None,
    partitions_def: dg.PartitionsDefinition | None = None,
    timestamp_column: str | None = None,
    full_feature_names: bool = False,
    created_cutoff: bool = True,
    engine: str = "polars",
    memory_limit: int | str | None = None,
    description: str | None = None,
    code_version: str | None = None,
    backfill_policy: dg.BackfillPolicy | None = None,
    **asset: Any,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Declare a training set by the function that gives its spine.

    The function takes upstream assets, resources and `context` as a feature view's does, and returns what
    `FeatureStore.get_historical_features` takes as a spine: a frame, a path, a source, a query. Its materialisation joins
    the features of the published registry and saves the rows, in place of those from before: under the asset's name, and
    of a partition under `name.partition`. Downstream a parameter gets a lazy frame of the rows, or what it is annotated
    with: a Polars, pandas or Arrow frame, or `TrainingSet`.

    Args:
        features: a feature service, or a list of views, projections and on-demand views; a service of another code location
            by its name.
        name: of the asset and of the saved set; the function's name if left out.
        partitions_def: any partitions; each is a set of its own, made by a run of its own.
        timestamp_column, full_feature_names, created_cutoff, engine, memory_limit: as of `get_historical_features`.
        description: the function's docstring if left out.
        code_version: a digest of the function's source if left out.
        backfill_policy: one run for each partition if left out.
        **asset: anything else that `dagster.asset` takes, as group_name, key_prefix, deps, automation_condition or pool.

    Raises:
        DeclarationError: the declaration cannot be right; the message says how to mend it.
    """

    def declare(function: Callable[..., Any]) -> dg.AssetsDefinition:
        title = name or str(getattr(function, "__name__", ""))
        place = f"Training set '{title}'"
        if not _NAME.fullmatch(title):
            raise DeclarationError(f"{place}: a name has letters, digits and underscores. Give another: name='…'.")
        refuse_unknown_parameters(place, asset, dg.asset, training_set)
        for parameter in _TAKEN_OVER:
            if parameter in asset:
                raise DeclarationError(f"{place}: {parameter}= is not for a training set. Leave it out.")
        try:
            check_engine(engine)
            bytes_of(memory_limit)
        except RequestError as error:
            raise DeclarationError(f"{place}: {error}") from None
        asked, upstream = _asked(features, place)
        options = {
            "timestamp_column": timestamp_column,
            "full_feature_names": full_feature_names,
            "created_cutoff": created_cutoff,
            "engine": engine,
            "memory_limit": memory_limit,
        }
        wrapped = AssetFunction.of(function, place)
        deps = asset.pop("deps", None) or ()
        with declaring(place):
            made = dg.asset(
                name=title,
                partitions_def=partitions_def,
                deps=[*deps, *(key for key in upstream if key.path[-1] not in wrapped.frames)],
                metadata={TRAINING_SET: title, **(asset.pop("metadata", None) or {})},
                description=description or inspect.cleandoc(function.__doc__ or "") or None,
                code_version=code_version or _code_version(function),
                kinds=asset.pop("kinds", None) or {engine.partition("-")[0], "parquet"},
                io_manager_key=RESOURCE,
                **asset,
            )(wrapped.wrapping(_compute(wrapped, title, asked, options), title, apart_from=()))
        policy = backfill_policy or (dg.BackfillPolicy.multi_run(1) if partitions_def else None)
        return _with_policy(made, policy)

    return declare


def _with_policy(made: dg.AssetsDefinition, policy: dg.BackfillPolicy | None) -> dg.AssetsDefinition:
    with warnings.catch_warnings():
        # Dagster calls the parameter new.
        warnings.simplefilter("ignore", category=dg.BetaWarning)
        return dg.AssetsDefinition.dagster_internal_init(**{**made.get_attributes_dict(), "backfill_policy": policy})


def _asked(features: Any, place: str) -> tuple[Any, list[dg.AssetKey]]:
    """What is asked of the registry, and the assets that it depends on."""
    if isinstance(features, FeatureService):
        return features.reference, [features.key]
    if isinstance(features, str):
        return features, [dg.AssetKey(features)]
    if not isinstance(features, list | tuple) or not features:
        raise DeclarationError(f"{place}: features= takes a feature service, or a list of views: features=[…].")
    return [projected(one, place) for one in features], list(dict.fromkeys(asset_key(one) for one in features))


def _code_version(function: Callable[..., Any]) -> str | None:
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return None  # typed into a prompt: there is no source to compare


def _compute(
    function: AssetFunction, title: str, asked: Any, options: dict[str, Any]
) -> Callable[..., Iterator[dg.MaterializeResult[Any]]]:
    def compute(context: dg.AssetExecutionContext, **inputs: Any) -> Iterator[dg.MaterializeResult[Any]]:
        stores: FeatureAssets = getattr(context.resources, RESOURCE)
        keys: Sequence[str] = context.partition_keys if context.has_partition_key_range else ()
        if context.has_partition_key:
            keys = [context.partition_key]
        if len(keys) > 1:
            raise dg.Failure(f"{title}: a run makes one partition, and this one has {len(keys)}. Use multi_run(1).")

        def progress(made: Progress) -> None:
            context.log.info("%s: %d of %d rows", made.stage, made.done, made.rows)

        spine = function(context, inputs)
        with told_to_dagster(), FeatureStore(stores.settings()) as store:
            found = store.get_historical_features(spine, asked, progress=progress, **options)
            manifest = found.save(set_of_partition(title, *keys), overwrite=True)
        yield dg.MaterializeResult(metadata=_told(manifest), data_version=dg.DataVersion(manifest.result.digest))

    return compute


def _told(manifest: Manifest) -> dict[str, Any]:
    question = manifest.question
    columns = [dg.TableColumn(name, dtype) for name, dtype in manifest.schema.items()]
    return {
        "dagster/row_count": manifest.result.rows,
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "training set": manifest.name,
        "digest": manifest.result.digest,
        "spine": f"{', '.join(manifest.spine.columns)} ({manifest.spine.digest[:12]})",
        "registry": question.registry,
        "Delta versions": dg.MetadataValue.json(question.tables),
        "features": dg.MetadataValue.json(
            [f"{one.view}:{'*' if one.features is None else ','.join(one.features)}" for one in question.features]
        ),
        "engine": question.engine,
        "libraries": dg.MetadataValue.json(manifest.libraries),
    }
