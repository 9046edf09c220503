"""Which partitions a person means, and how many Dagster runs they take."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from feature_assets.assets.partitions import require_keys
from feature_assets.cli.failures import Mistake
from feature_assets.errors import RequestError, hint


@dataclass(frozen=True, slots=True)
class Target:
    """An asset that can be materialised.

    `per_run` is how many partitions its policy allows in one run, None for any; `typed` how a partition of it was asked
    for, to be typed again.
    """

    name: str
    key: dg.AssetKey
    partitions_def: dg.PartitionsDefinition[Any] | None
    per_run: int | None
    typed: str

    def keys(self, instance: dg.DagsterInstance) -> list[str]:
        """All partition keys up to now, in their order."""
        if self.partitions_def is None:
            return []
        return [str(key) for key in self.partitions_def.get_partition_keys(dynamic_partitions_store=instance)]

    def extent(self, instance: dg.DagsterInstance) -> str:
        """The partitions in words: "daily, 2013-01-01 to 2013-12-31, 365 in all"."""
        if self.partitions_def is None:
            return "not partitioned"
        known = self.keys(instance)
        words = [rhythm] if (rhythm := _rhythm(self.partitions_def)) else []
        words += [f"{known[0]} to {known[-1]}", f"{len(known):,} in all"] if known else ["none yet"]
        return ", ".join(words)


def target_named(graph: Any, name: str, *, typed: str = "materialize {} --partition") -> Target:
    """The view of that name, else the asset of that key.

    Raises:
        Mistake: the definitions have neither, or there is nothing in it that could be materialised.
    """
    from feature_assets.assets.metadata import spec_from_metadata
    from feature_assets.spec import ViewSpec

    nodes = {key.to_user_string(): graph.get(key) for key in graph.get_all_asset_keys()}
    specs = {one: spec_from_metadata(node.metadata) for one, node in nodes.items()}
    views = {spec.name: nodes[one] for one, spec in specs.items() if isinstance(spec, ViewSpec)}
    node = views.get(name) or nodes.get(name)
    if node is None:
        raise Mistake(
            f"There is no feature view '{name}' in the definitions. {hint(name, sorted(views), 'views')}",
            attempt="feature-assets plan",
        )
    if not node.is_materializable:
        kind = type(specs[node.key.to_user_string()]).__name__
        why = {"OnDemandViewSpec": "it is computed when asked for", "ServiceSpec": "it only names features of views"}
        raise Mistake(
            f"'{name}' cannot be materialised: {why.get(kind, 'somebody else writes it')}.",
            attempt=f"feature-assets registry show {name}" if kind in why else "",
        )
    return Target(name, node.key, node.partitions_def, _per_run(node), typed)


def _per_run(node: Any) -> int | None:
    policy = node.backfill_policy
    return 1 if policy is None else policy.max_partitions_per_run


def chosen(
    target: Target,
    instance: dg.DagsterInstance,
    *,
    partitions: Sequence[str] = (),
    first: str | None = None,
    last: str | None = None,
    latest: bool = False,
    every: bool = False,
    now: datetime | None = None,
) -> list[str]:
    """The partition keys that are meant; none for an asset without partitions.

    Raises:
        RequestError: a key is no partition of the asset, or it was not said which ones.
    """
    if target.partitions_def is None:
        require_keys(target.name, None, [*partitions, *(key for key in (first, last) if key)], instance)
        return []
    if latest:
        return _latest(target, instance, now or datetime.now(UTC))
    if every:
        return target.keys(instance)
    if partitions:
        return [key for given in partitions for key in _expanded(target, given, given, instance)]
    if first is not None or last is not None:
        known = target.keys(instance)
        return _expanded(target, first or known[0], last or known[-1], instance)
    raise Mistake(
        f"{target.name} has partitions ({target.extent(instance)}), and it was not said which to materialise.",
        attempt=f"feature-assets materialize {target.name} --latest",
    )


def _expanded(target: Target, first: str, last: str, instance: dg.DagsterInstance) -> list[str]:
    """The keys from first to last. Of a view by time and another dimension, a time alone means all of the other."""
    known = target.keys(instance)
    time = _time_dimension(target.partitions_def)
    if time is not None and "|" not in first and "|" not in last:
        times = list(dict.fromkeys(_part(target.partitions_def, key, time.name) for key in known))
        _require(target, first, times, instance)
        _require(target, last, times, instance)
        wanted = set(_slice(target, times, first, last))
        return [key for key in known if _part(target.partitions_def, key, time.name) in wanted]
    for key in (first, last):
        _require(target, key, known, instance)
    if isinstance(target.partitions_def, dg.MultiPartitionsDefinition):
        return _rectangle(target.partitions_def, first, last, instance)
    return _slice(target, known, first, last)


def _require(target: Target, key: str, known: Sequence[str], instance: dg.DagsterInstance) -> None:
    if key in known:
        return
    near = _near(key, known)
    attempt = f"feature-assets {target.typed.format(target.name)} {shlex.quote(near)}" if near else ""
    raise Mistake(f"'{key}' is not a partition of {target.name} ({target.extent(instance)}).", attempt=attempt)


def _near(key: str, known: Sequence[str]) -> str:
    """The key that may have been meant: the last that sorts before it and begins like it, else the nearest end."""
    if not known:
        return ""
    before = [one for one in known if one <= key]
    return before[-1] if before else known[0]


def _slice(target: Target, known: Sequence[str], first: str, last: str) -> list[str]:
    start, end = known.index(first), known.index(last)
    if start > end:
        span = f"{target.name} {shlex.quote(last)} {shlex.quote(first)}"
        if not target.typed.startswith("backfill"):
            span = f"{target.name} --from {shlex.quote(last)} --to {shlex.quote(first)}"
        raise Mistake(
            f"'{first}' comes after '{last}' in the partitions of {target.name}.",
            attempt=f"feature-assets {target.typed.split()[0]} {span}",
        )
    return list(known[start : end + 1])


def _latest(target: Target, instance: dg.DagsterInstance, now: datetime) -> list[str]:
    """The partitions of the last window of time that is over."""
    time = _time_dimension(target.partitions_def)
    times = target.partitions_def if time is None else time.partitions_def
    if not isinstance(times, dg.TimeWindowPartitionsDefinition):
        raise Mistake(
            f"{target.name} is not partitioned by time ({target.extent(instance)}), so none of them is the latest.",
            attempt=f"feature-assets materialize {target.name} --all",
        )
    for key in reversed(times.get_partition_keys()):
        window = times.time_window_for_partition_key(key)
        if window.end.astimezone(UTC) <= now:
            return [key] if time is None else _expanded(target, key, key, instance)
    raise RequestError(f"No partition of {target.name} is over yet ({target.extent(instance)}). Name one: --partition.")


def last_over(target: Target, instance: dg.DagsterInstance, first: str, *, now: datetime | None = None) -> str:
    """The last partition that is over and may follow `first`: of the same other dimension, or a time alone as it is.

    `first` itself where nothing later is over, the last key of all where nothing is divided by time.
    """
    known = target.keys(instance)
    if not known:
        return first
    try:
        latest = chosen(target, instance, latest=True, now=now)
    except Mistake:
        return known[-1]
    except RequestError:
        return first
    time = _time_dimension(target.partitions_def)
    if time is None:
        return latest[0] if first not in known or known.index(first) <= known.index(latest[0]) else first
    if "|" not in first:
        return max(first, _part(target.partitions_def, latest[0], time.name))
    same = [
        key for key in latest if first in known and _others(target, key, time.name) == _others(target, first, time.name)
    ]
    return same[0] if same else first


def _others(target: Target, key: str, time: str) -> dict[str, str]:
    parts: dict[str, str] = dict(target.partitions_def.get_partition_key_from_str(key).keys_by_dimension)  # type: ignore[union-attr]
    return {name: part for name, part in parts.items() if name != time}


def _time_dimension(partitions_def: Any) -> Any:
    if not isinstance(partitions_def, dg.MultiPartitionsDefinition):
        return None
    times = [
        one
        for one in partitions_def.partitions_defs
        if isinstance(one.partitions_def, dg.TimeWindowPartitionsDefinition)
    ]
    return times[0] if times else None


def _part(partitions_def: Any, key: str, dimension: str) -> str:
    part: str = partitions_def.get_partition_key_from_str(key).keys_by_dimension[dimension]
    return part


def _rectangle(
    partitions_def: dg.MultiPartitionsDefinition, first: str, last: str, instance: dg.DagsterInstance
) -> list[str]:
    between = partitions_def.get_partition_keys_in_range(
        dg.PartitionKeyRange(first, last), dynamic_partitions_store=instance
    )
    return [str(key) for key in between]


def runs_of(
    target: Target, keys: Sequence[str], instance: dg.DagsterInstance, *, per_run: int | None = None
) -> list[list[str]]:
    """The keys as the runs that materialise them: contiguous ones together, as many as the asset's policy allows.

    Of an asset without partitions it is one run without keys.
    """
    if target.partitions_def is None:
        return [[]]
    most = min((one for one in (per_run, target.per_run) if one is not None), default=None)
    return [
        group[start : start + (most or len(group))]
        for group in _contiguous(target, list(dict.fromkeys(keys)), instance, most)
        for start in range(0, len(group), most or len(group))
    ]


def _contiguous(target: Target, keys: list[str], instance: dg.DagsterInstance, most: int | None) -> list[list[str]]:
    partitions_def = target.partitions_def
    known = {key: number for number, key in enumerate(target.keys(instance))}
    keys.sort(key=known.__getitem__)
    if not isinstance(partitions_def, dg.MultiPartitionsDefinition):
        return _unbroken(keys, known)
    # A range of two dimensions is a rectangle. Within one value of the other dimension, any span of time is one.
    whole = bool(keys) and sorted(_rectangle(partitions_def, keys[0], keys[-1], instance)) == sorted(keys)
    if whole and (most is None or len(keys) <= most):
        return [keys]
    time = _time_dimension(partitions_def)
    if time is None:
        return [[key] for key in keys]
    order = {key: number for number, key in enumerate(time.partitions_def.get_partition_keys())}
    others: dict[tuple[str, ...], list[str]] = {}
    for key in keys:
        parts = partitions_def.get_partition_key_from_str(key).keys_by_dimension
        others.setdefault(tuple(one for name, one in parts.items() if name != time.name), []).append(key)
    numbers = {key: order[_part(partitions_def, key, time.name)] for key in keys}
    return [group for same in others.values() for group in _unbroken(sorted(same, key=numbers.__getitem__), numbers)]


def _unbroken(keys: Sequence[str], number: dict[str, int]) -> list[list[str]]:
    groups: list[list[str]] = []
    for key in keys:
        if groups and number[key] == number[groups[-1][-1]] + 1:
            groups[-1].append(key)
        else:
            groups.append([key])
    return groups


def _rhythm(partitions_def: Any) -> str:
    if not isinstance(partitions_def, dg.TimeWindowPartitionsDefinition):
        return ""
    schedule = partitions_def.schedule_type
    return schedule.value.lower() if schedule is not None else ""
