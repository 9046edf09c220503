"""Dagster's partitions as data, and partition keys as the UTC windows that rows are published into."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import dagster as dg
from dagster import MultiPartitionKey

from feature_assets.conform import PartitionSlice
from feature_assets.errors import DeclarationError, RequestError
from feature_assets.spec import SINGLE, DynamicPartitions, Partitions, StaticPartitions, TimePartitions


def dimensions(partitions_def: dg.PartitionsDefinition | None, place: str) -> dict[str, Partitions]:
    """Each dimension as data.

    Raises:
        DeclarationError: a kind of partitions that a view cannot have.
    """
    if partitions_def is None:
        return {}
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        found = {one.name: _dimension(one.partitions_def, place) for one in partitions_def.partitions_defs}
        if sum(isinstance(one, TimePartitions) for one in found.values()) > 1:
            raise DeclarationError(
                f"{place}: {' and '.join(found)} both divide time, and a row has one event timestamp. Keep the finer one."
            )
        return found
    return {SINGLE: _dimension(partitions_def, place)}


def _dimension(partitions_def: dg.PartitionsDefinition, place: str) -> Partitions:
    if isinstance(partitions_def, dg.TimeWindowPartitionsDefinition):
        return TimePartitions(
            cron=partitions_def.cron_schedule,
            timezone=partitions_def.timezone,
            start=partitions_def.start.isoformat(),
            end=partitions_def.end.isoformat() if partitions_def.end else None,
            fmt=partitions_def.fmt,
            end_offset=partitions_def.end_offset,
            exclusions=tuple(
                each if isinstance(each, str) else datetime.fromtimestamp(each.timestamp, UTC).isoformat()
                for each in partitions_def.exclusions or ()
            ),
        )
    if isinstance(partitions_def, dg.StaticPartitionsDefinition):
        return StaticPartitions(tuple(partitions_def.get_partition_keys()))
    if isinstance(partitions_def, dg.DynamicPartitionsDefinition) and partitions_def.name:
        return DynamicPartitions(partitions_def.name)
    raise DeclarationError(
        f"{place}: {type(partitions_def).__name__} cannot divide a feature view. "
        "Use time, static, named dynamic or multi partitions."
    )


def has_time(partitions_def: dg.PartitionsDefinition | None) -> bool:
    """Whether time divides the asset, alone or beside other dimensions."""
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        return any(has_time(one.partitions_def) for one in partitions_def.partitions_defs)
    return isinstance(partitions_def, dg.TimeWindowPartitionsDefinition)


def slices(partitions_def: dg.PartitionsDefinition | None, keys: Iterable[str]) -> list[PartitionSlice]:
    """What each partition key stands for, in the order of time; the one slice of an unpartitioned view."""
    if partitions_def is None:
        return [PartitionSlice()]
    found = [_slice(partitions_def, key) for key in keys]
    if len(found) > 1 and isinstance(partitions_def, dg.StaticPartitionsDefinition | dg.DynamicPartitionsDefinition):
        # Nothing but a column can tell the rows of several such partitions apart.
        found = [replace(one, dimensions={SINGLE: one.key}) for one in found]
    return sorted(found, key=lambda one: (one.start or datetime.min.replace(tzinfo=UTC), one.key))


def _slice(partitions_def: dg.PartitionsDefinition, key: str) -> PartitionSlice:
    if isinstance(partitions_def, dg.TimeWindowPartitionsDefinition):
        window = partitions_def.time_window_for_partition_key(key)
        return PartitionSlice(key, window.start.astimezone(UTC), window.end.astimezone(UTC))
    if not isinstance(partitions_def, dg.MultiPartitionsDefinition):
        return PartitionSlice(key)
    multi = key if isinstance(key, MultiPartitionKey) else partitions_def.get_partition_key_from_str(key)
    others = dict(multi.keys_by_dimension)
    start = end = None
    for one in partitions_def.partitions_defs:
        if isinstance(one.partitions_def, dg.TimeWindowPartitionsDefinition):
            window = one.partitions_def.time_window_for_partition_key(others.pop(one.name))
            start, end = window.start.astimezone(UTC), window.end.astimezone(UTC)
    return PartitionSlice(str(key), start, end, others)


def window_of(parts: Sequence[PartitionSlice]) -> tuple[datetime, datetime] | None:
    """From the first start to the last end (UTC); None where time does not divide them."""
    starts = [one.start for one in parts if one.start is not None]
    ends = [one.end for one in parts if one.end is not None]
    return (min(starts), max(ends)) if starts and ends else None


def require_keys(
    name: str,
    partitions_def: dg.PartitionsDefinition | None,
    keys: Sequence[str],
    instance: dg.DagsterInstance | None = None,
) -> None:
    """Refuse keys that are no partitions of the view, before anything runs.

    Raises:
        RequestError: naming the first such key and the keys there are.
    """
    if partitions_def is None:
        if keys:
            raise RequestError(f"{name} has no partitions, so '{keys[0]}' is none of them. Leave the partition out.")
        return
    with dg.partition_loading_context(dynamic_partitions_store=instance):
        for key in keys:
            if not _has(partitions_def, key):
                known = list(partitions_def.get_partition_keys())
                extent = f"{known[0]} to {known[-1]}, {len(known):,} in all" if known else "there are none yet"
                raise RequestError(f"'{key}' is not a partition of {name} ({extent}).")


def _has(partitions_def: dg.PartitionsDefinition, key: str) -> bool:
    try:
        return partitions_def.has_partition_key(key)
    except (ValueError, dg.DagsterUnknownPartitionError):
        return False
