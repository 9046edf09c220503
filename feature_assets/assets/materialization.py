"""What a publication looks like in Dagster: metadata of the definition and of each materialisation."""

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

import dagster as dg
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    DEFAULT_DATA_VERSION,
    NULL_EVENT_POINTER,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
from dagster._core.events import DagsterEvent, DagsterEventBatchMetadata
from dagster._core.execution.context.system import StepExecutionContext

from feature_assets.publication import Publication
from feature_assets.shapes import Shape
from feature_assets.spec import BatchSource, ViewSpec

# An output that has this key gets no event of Dagster's, which knows it from sources that report events themselves.
_SAID_BELOW: Mapping[str, Any] = {
    SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: "each partition has an event of its own"
}


def column_schema(spec: ViewSpec) -> dg.TableSchema:
    """The columns of a view with their feature types."""
    keys = [
        dg.TableColumn(name, str(of), description="join key", constraints=_required())
        for name, of in spec.join_keys.items()
    ]
    times = [dg.TableColumn(spec.event_timestamp, "Timestamp", description="event timestamp", constraints=_required())]
    if spec.created_timestamp:
        times.append(dg.TableColumn(spec.created_timestamp, "Timestamp", description="created timestamp"))
    features = [
        dg.TableColumn(one.name, str(one.type), description=one.description or None, tags=dict(one.tags) or None)
        for one in spec.features
    ]
    return dg.TableSchema(columns=[*keys, *times, *features])


def _required() -> dg.TableColumnConstraints:
    return dg.TableColumnConstraints(nullable=False)


def definition_metadata(spec: ViewSpec) -> dict[str, Any]:
    """What the asset's page says before anything was materialised."""
    metadata: dict[str, Any] = {
        "dagster/column_schema": column_schema(spec),
        "entities": ", ".join(entity.name for entity in spec.entities) or "none",
        "ttl": str(spec.ttl) if spec.ttl else "never expires",
        "version": spec.version,
    }
    if spec.deprecated:
        metadata["deprecated"] = dg.MetadataValue.text(spec.deprecated)
    return metadata


def column_lineage(spec: ViewSpec, source: BatchSource | None) -> dict[str, Any]:
    """Which column of a source each column comes from, for a view that passes them on; nothing where that is not known."""
    if source is None:
        return {}
    original = {renamed: name for name, renamed in source.field_mapping.items()}
    asset = dg.AssetKey(source.name)
    columns = {
        name: [dg.TableColumnDep(asset_key=asset, column_name=original.get(name, name))] for name in spec.columns
    }
    return {"dagster/column_lineage": dg.TableColumnLineage(columns)}


def materialization(
    publication: Publication, spec: ViewSpec, key: dg.AssetKey, lineage: Mapping[str, Any]
) -> dg.MaterializeResult[Any]:
    """The result of the run: with all there is to say of a single partition; that of a range is said per partition."""
    if len(publication.partitions) > 1:
        return dg.MaterializeResult(asset_key=key, metadata=_SAID_BELOW)
    version = publication.data_versions[publication.partitions[0]]
    return dg.MaterializeResult(
        asset_key=key, metadata={**_told(spec, publication), **lineage}, data_version=dg.DataVersion(version)
    )


def partition_materializations(
    publication: Publication,
    spec: ViewSpec,
    key: dg.AssetKey,
    lineage: Mapping[str, Any],
    context: dg.AssetExecutionContext,
) -> Iterator[DagsterEvent]:
    """For a range: each partition's own row count and data version; with the last one, what the whole run did.

    A run has one data version for all its partitions; with that alone, rows that changed in one partition would make
    what is downstream of every other stale. They stand instead of Dagster's own events and have what those would have. To
    be asked for once the result of the run was yielded.
    """
    if len(publication.partitions) == 1:
        return
    step = context.get_step_execution_context()
    dimensions = {str(one): _dimensions(one) for one in context.partition_keys}
    inputs = _inputs(key, step)
    function = {
        **(step.get_output_metadata(context.assets_def.get_output_name_for_asset_key(key)) or {}),
        **(step.get_asset_metadata(key) or {}),
    }
    # Marked as one batch, as Dagster marks its own: an event log that can stores them together.
    batch = uuid4().hex
    for partition in publication.partitions:
        last = partition == publication.partitions[-1]
        told = dg.AssetMaterialization(
            asset_key=key,
            partition=partition,
            metadata={
                "dagster/partition_row_count": publication.rows_by_partition[partition],
                **({**_told(spec, publication), **lineage} if last else _part_of(publication)),
                **function,
                **(step.get_asset_metadata(key, partition_key=partition) or {}),
            },
            tags={
                **inputs,
                **dimensions[partition],
                DATA_VERSION_TAG: publication.data_versions[partition],
                DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
                CODE_VERSION_TAG: spec.code_version,
            },
        )
        yield DagsterEvent.asset_materialization(step, told, DagsterEventBatchMetadata(batch, last))


def _dimensions(partition: str) -> dict[str, str]:
    """The tags that tell Dagster which keys the key of several dimensions is made of."""
    if not isinstance(partition, dg.MultiPartitionKey):
        return {}
    return {f"dagster/partition/{name}": key for name, key in partition.keys_by_dimension.items()}


def _inputs(key: dg.AssetKey, step: StepExecutionContext) -> dict[str, str]:
    """The versions of the inputs, as Dagster tags its own events with them.

    An event without them counts as one from before the inputs were declared: every partition would be stale at once.
    """
    step.wipe_input_asset_version_info(key)
    tags = {}
    for parent in step.job_def.asset_layer.get(key).parent_keys:
        info = step.maybe_fetch_and_get_input_asset_version_info(parent)
        version = (info.data_version if info else None) or DEFAULT_DATA_VERSION
        tags[get_input_data_version_tag(parent)] = version.value
        tags[get_input_event_pointer_tag(parent)] = str((info and info.storage_id) or NULL_EVENT_POINTER)
    return tags


def _part_of(publication: Publication) -> dict[str, Any]:
    first, last = publication.partitions[0], publication.partitions[-1]
    return {
        "partitions": f"{first} … {last}, {len(publication.partitions):,} in one commit",
        "delta_version": publication.delta_version,
    }


def _told(spec: ViewSpec, publication: Publication) -> dict[str, Any]:
    """What a publication did, as a person looks at it."""
    metadata: dict[str, Any] = {"rows": publication.rows, "keys": publication.keys}
    # Dagster's own keys: the rows of the whole table, and of the one partition.
    metadata["dagster/row_count"] = publication.total
    if len(publication.partitions) > 1:
        metadata |= _part_of(publication)
    elif spec.partitions:
        metadata["dagster/partition_row_count"] = publication.rows
    if publication.first_event is not None and publication.last_event is not None:
        metadata["first_event"] = dg.MetadataValue.timestamp(publication.first_event)
        metadata["last_event"] = dg.MetadataValue.timestamp(publication.last_event)
    if publication.duplicates:
        metadata["duplicates_dropped"] = publication.duplicates
    if publication.dropped:
        metadata["undeclared_columns_dropped"] = ", ".join(publication.dropped)
    online = f"{publication.written:,} written, {publication.kept:,} already later, {publication.retracted:,} corrected"
    metadata["online"] = dg.MetadataValue.text(online if spec.online else "not served")
    if publication.units is not None:
        metadata["online_read_units"], metadata["online_write_units"] = publication.units
    metadata["features"] = dg.MetadataValue.md(_feature_table(spec, publication))
    metadata["delta_version"] = publication.delta_version
    metadata["seconds"] = round(sum(publication.seconds.values()), 3)
    return metadata


def _feature_table(spec: ViewSpec, publication: Publication) -> str:
    """Each feature with its share of nulls and the shape of its values."""
    lines = ["feature | null | least | distribution | greatest", " | ".join(["---"] * 5)]
    for one in spec.features:
        share = publication.nulls.get(one.name, 0) / publication.rows if publication.rows else 0.0
        least, bars, greatest = publication.shapes.get(one.name, Shape())
        lines.append(f"{one.name} | {share:.1%} | {least} | {bars} | {greatest}")
    return "\n".join(lines)
