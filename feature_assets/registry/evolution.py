"""What may change within one version of a view."""

from collections.abc import Iterator, Mapping

from feature_assets.errors import DeclarationError
from feature_assets.registry.snapshot import Registry
from feature_assets.spec import Partitions, StaticPartitions, TimePartitions, ViewSpec


def refuse_broken_versions(published: Registry, new: Registry) -> None:
    """See that no view changed what its tables cannot follow without a new version.

    Raises:
        DeclarationError: one did. The message names the next free version.
    """
    before = {(view.name, view.version): view for view in published.every_version()}
    for view in new.views.values():
        former = before.get((view.name, view.version))
        if former is None or former is view:
            continue
        for breach in breaches(former, view):
            following = max(published.versions(view.name)) + 1
            raise DeclarationError(
                f"View '{view.name}' is published as version {view.version}, and {breach}. Its tables cannot follow "
                f"that: raise the version, version={following}, which gets tables of its own; or take the change back."
            )


def breaches(former: ViewSpec, view: ViewSpec) -> Iterator[str]:
    """What has changed that the tables of one version cannot follow, in words; nothing if they can."""
    yield from view_breaches(former, view)
    for field in former.features:
        now = view.field(field.name)
        if now is None:
            yield f"feature '{field.name}' was removed"
        elif now.type != field.type:
            yield f"feature '{field.name}' changed from {field.type} to {now.type}"


def view_breaches(former: ViewSpec, view: ViewSpec) -> Iterator[str]:
    """Those of the view itself, without its features."""
    if former.join_keys != view.join_keys:
        yield f"its join keys changed from {_columns(former.join_keys)} to {_columns(view.join_keys)}"
    if former.event_timestamp != view.event_timestamp:
        yield f"its event timestamp changed from '{former.event_timestamp}' to '{view.event_timestamp}'"
    if former.created_timestamp != view.created_timestamp:
        yield f"its created timestamp changed from {_quoted(former)} to {_quoted(view)}"
    if _grids(former) != _grids(view):
        # Rows lie under the keys of their partitions: under new keys the same rows would come to lie beside the old.
        yield "its partitions are cut differently"


def _grids(view: ViewSpec) -> dict[str, tuple[object, ...]]:
    return {dimension: _grid(each) for dimension, each in view.partitions.items()}


def _grid(partitions: Partitions) -> tuple[object, ...]:
    """What decides under which key a row lies. The range of time and the list of static keys may grow and shrink."""
    if isinstance(partitions, TimePartitions):
        return ("time", partitions.cron, partitions.timezone, partitions.fmt)
    return ("static",) if isinstance(partitions, StaticPartitions) else ("dynamic",)


def _columns(keys: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {of}" for name, of in keys.items()) or "none"


def _quoted(view: ViewSpec) -> str:
    return f"'{view.created_timestamp}'" if view.created_timestamp else "none"
