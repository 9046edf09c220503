"""`registry`: what is published, when and by whom; and back to what was."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_assets.cli.app import command, group
from feature_assets.cli.failures import Mistake
from feature_assets.cli.output import AsJson, Column, Yes, confirmed, done, facts, note, print_json, show, table
from feature_assets.cli.project import Project
from feature_assets.cli.publishing import print_changes, who

if TYPE_CHECKING:
    from feature_assets.references import Output
    from feature_assets.registry import Registry, RegistryStore
    from feature_assets.spec import OnDemandViewSpec, ServiceSpec, ViewSpec

registry = group("registry", "What is published, its history, and the way back.", section="Declare and publish")


@command(registry, "list", examples=["registry list", "registry list --kind service"])
def list_(
    ctx: typer.Context,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="Only these: view, on-demand, service, source or entity.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what is published: views, on-demand views, services, sources and entities."""
    found = _objects(Project.of(ctx).registry)
    if kind is not None and kind not in ("view", "on-demand", "service", "source", "entity"):
        raise typer.BadParameter(f"'{kind}' is none of view, on-demand, service, source, entity", param_hint="--kind")
    rows = [row for row in found if kind in (None, row["kind"])]
    columns: Sequence[Column] = (
        Column("kind"),
        Column("name", style="name"),
        Column("version", style="number", spare=True),
        Column("keys"),
        Column("features", style="number", spare=True),
        Column("location", spare=True),
        Column("description"),
    )
    if kind is not None:
        columns = columns[1:]
    show(rows, columns, as_json=as_json, empty="Nothing of that kind is published.")


def _objects(registry: "Registry") -> list[dict[str, Any]]:
    views = [
        _object("view", one, one.version, list(one.join_keys), len(one.features), registry.owner(one.name))
        for one in registry.views.values()
    ]
    on_demand = [
        _object("on-demand", one, None, [], len(one.features), registry.owner(one.name))
        for one in registry.on_demand.values()
    ]
    services = [
        _object("service", one, None, [], _count(registry, one), registry.owner(one.name, "service"))
        for one in registry.services.values()
    ]
    sources = [
        _object("source", one, None, [], None, registry.owner(one.name, "source")) for one in registry.sources.values()
    ]
    entities = [_object("entity", one, None, list(one.join_keys), None, "") for one in registry.entities().values()]
    return [row for rows in (views, on_demand, services, sources, entities) for row in _by_name(rows)]


def _object(
    kind: str, one: Any, version: int | None, keys: list[str], features: int | None, location: str
) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": one.name,
        "version": version,
        "keys": keys,
        "features": features,
        "location": location,
        "description": _first_sentence(one.description),
    }


def _by_name(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: str(row["name"]))


def _first_sentence(description: str) -> str:
    return " ".join(description.split("\n\n", maxsplit=1)[0].split())


def _count(registry: "Registry", service: "ServiceSpec") -> int:
    return sum(
        len(one.features)
        if one.features is not None
        else len((registry.views.get(one.view) or registry.on_demand[one.view]).features)
        for one in service.features
    )


@command(
    registry,
    "show",
    examples=["registry show", "registry show customer_orders", "registry show customer_orders --json"],
)
def show_(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A view, on-demand view, service, source or entity.", show_default=False),
    ] = None,
    snapshot: Annotated[
        str | None,
        typer.Option(metavar="DIGEST", help="As it was in this snapshot of the history.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show one thing in full, or what is in force: its digest, when, by whom, how much.

    With --json: the declaration itself, or the whole registry.
    """
    from feature_assets.spec import to_builtins

    project = Project.of(ctx)
    if name is None:
        _show_snapshot(project, snapshot, as_json=as_json)
        return
    store = project.registry_store
    registry = store.snapshot(store.found(snapshot)) if snapshot else project.registry
    kind, found = _named(registry, name)
    if as_json:
        print_json({"kind": kind, **to_builtins(found)})
    elif kind == "view":
        _show_view(registry, found)
    elif kind in ("on-demand view", "service"):
        _show_composed(registry, kind, found)
    else:
        facts({"kind": kind, **_told(to_builtins(found))})


def _show_snapshot(project: Project, snapshot: str | None, *, as_json: bool) -> None:
    from feature_assets.spec import to_builtins

    store = project.registry_store
    entries = {entry.digest: entry for entry in store.history(limit=10_000)}
    digest = store.found(snapshot) if snapshot else store.read().digest
    registry, entry = store.snapshot(digest), entries.get(digest)
    if as_json:
        print_json(to_builtins(registry))
        return
    facts(
        {
            "digest": digest,
            "at": store.place,
            "number": str(entry.sequence) if entry else None,
            "published": entry.published_at if entry else None,
            "by": entry.by if entry else None,
            "from location": entry.location if entry else None,
            "message": entry.message if entry else None,
            "views": len(registry.views),
            "former versions": len(registry.superseded) or None,
            "on-demand views": len(registry.on_demand) or None,
            "services": len(registry.services) or None,
            "sources": len(registry.sources) or None,
            "features": sum(1 for _ in registry.features()),
        }
    )


def _named(registry: "Registry", name: str) -> tuple[str, Any]:
    view, _, version = name.partition("@v")
    if version.isdigit():
        return "view", registry.view(view, int(version))
    kinds: dict[str, Mapping[str, Any]] = {
        "view": registry.views,
        "on-demand view": registry.on_demand,
        "service": registry.services,
        "source": registry.sources,
        "entity": registry.entities(),
    }
    for kind, objects in kinds.items():
        if name in objects:
            return kind, objects[name]
    from difflib import get_close_matches

    known = [one for objects in kinds.values() for one in objects]
    near = get_close_matches(name, known, n=1)
    raise Mistake(
        f"Nothing that is called '{name}' is published.",
        attempt=f"feature-assets registry show {near[0]}" if near else "feature-assets registry list",
    )


def _show_view(registry: "Registry", view: "ViewSpec") -> None:
    facts(
        {
            "view": view.name,
            "version": f"{view.version} of {', '.join(map(str, registry.versions(view.name)))}",
            "description": view.description,
            "deprecated": view.deprecated,
            "entities": [one.name for one in view.entities] or "none",
            "join keys": {name: str(of) for name, of in view.join_keys.items()},
            "event timestamp": view.event_timestamp,
            "created timestamp": view.created_timestamp,
            "ttl": view.ttl or "never expires",
            "partitions": _partitions(view),
            "served online": view.online,
            "asset": "/".join(view.asset_key),
            "made from": view.upstream,
            "used by": _users(registry, view.name),
            "owners": view.owners,
            **_policy(view),
            "row filter": ", ".join(f"{key} = claim {claim}" for key, claim in view.row_filter.items()),
            "location": registry.owner(view.name),
            "tags": view.tags,
            "code version": view.code_version,
        }
    )
    typer.echo()
    _print_fields(view.features)
    if view.checks:
        typer.echo()
        rows = [{"check": one.label, "asks": one.asks, "severity": one.severity} for one in view.checks]
        table(rows, (Column("check", style="name"), Column("asks"), Column("severity")))


def _policy(view: "ViewSpec | OnDemandViewSpec") -> dict[str, str]:
    return {f"access: {act}": ", ".join(names) or "nobody" for act, names in (view.access or {}).items()}


def _show_composed(registry: "Registry", kind: str, one: "OnDemandViewSpec | ServiceSpec") -> None:
    from feature_assets.spec import OnDemandViewSpec

    computed = isinstance(one, OnDemandViewSpec)
    facts(
        {
            kind: one.name,
            "description": one.description,
            "deprecated": one.deprecated,
            "made from": [source.name for source in one.sources] if isinstance(one, OnDemandViewSpec) else None,
            "used by": _users(registry, one.name) if computed else None,
            "owners": one.owners,
            **(_policy(one) if isinstance(one, OnDemandViewSpec) else {}),
            "location": registry.owner(one.name, "view" if computed else "service"),
            "tags": one.tags,
        }
    )
    typer.echo()
    if isinstance(one, OnDemandViewSpec):
        _print_fields(one.features)
        for source in one.request:
            typer.echo()
            table(
                [_field(field) for field in source.schema],
                (Column("name", f"asked for ({source.name})", style="name"), Column("type"), Column("description")),
            )
        return
    rows = [
        {
            "name": output.name,
            "type": str(output.field.type),
            "from": f"{output.view}:{output.field.name}",
            "description": output.field.description,
        }
        for output in _outputs(registry, one.name)
    ]
    table(rows, (Column("name", "feature", style="name"), Column("type"), Column("from"), Column("description")))


def _outputs(registry: "Registry", service: str) -> "Sequence[Output]":
    """What a service answers, under the names that its answers have: short ones, unless two would be one."""
    from feature_assets.errors import NameCollision
    from feature_assets.references import resolve

    try:
        return resolve(registry, service).outputs
    except NameCollision:
        return resolve(registry, service, full_feature_names=True).outputs


def _print_fields(fields: Any) -> None:
    table(
        [_field(field) for field in fields],
        (
            Column("name", "feature", style="name"),
            Column("type"),
            Column("default"),
            Column("pii"),
            Column("tags"),
            Column("description"),
        ),
    )


def _field(field: Any) -> dict[str, Any]:
    default = None if field.default is None else repr(field.default)
    return {
        "name": field.name,
        "type": str(field.type),
        "default": default,
        "pii": field.pii,
        "tags": field.tags,
        "description": field.description,
    }


def _partitions(view: "ViewSpec") -> str:
    from feature_assets.spec import StaticPartitions, TimePartitions

    words = []
    for name, one in view.partitions.items():
        if isinstance(one, TimePartitions):
            text = f"by time, {one.cron} in {one.timezone}, from {one.start[:10]}{f' to {one.end[:10]}' if one.end else ''}"
        elif isinstance(one, StaticPartitions):
            text = f"{len(one.keys)} keys"
        else:
            text = f"dynamic keys '{one.name}'"
        words.append(text if len(view.partitions) == 1 else f"{name}: {text}")
    return "; ".join(words) or "none"


def _users(registry: "Registry", view: str) -> list[str]:
    services = [one.name for one in registry.services.values() if any(each.view == view for each in one.features)]
    computed = [one.name for one in registry.on_demand.values() if any(each.view == view for each in one.sources)]
    return sorted([*services, *computed])


def _told(builtins: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", " "): value for name, value in builtins.items()}


@command(registry, "history", examples=["registry history", "registry history --limit 5 --json"])
def history(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most so many, the last one first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List what was in force, the last one first."""
    from feature_assets.errors import NotPublished

    store = Project.of(ctx).registry_store
    entries = store.history(limit)
    if not entries:
        # A damaged pointer says so; it is not the same as none.
        with suppress(NotPublished):
            store.read()
    rows = [
        {
            "number": entry.sequence,
            "digest": entry.digest if as_json else entry.digest[:12],
            "published_at": entry.published_at,
            "action": entry.action,
            "by": entry.by,
            "location": entry.location,
            "message": entry.message,
        }
        for entry in entries
    ]
    columns = (
        Column("number", style="number"),
        Column("digest", style="name"),
        Column("published_at", "published"),
        Column("action"),
        Column("by"),
        Column("location"),
        Column("message"),
    )
    show(rows, columns, as_json=as_json, empty="Nothing was ever published here.")


@command(registry, "rollback", examples=["registry rollback", "registry rollback 3f2a90c1 --yes"])
def rollback(
    ctx: typer.Context,
    to: Annotated[
        str,
        typer.Argument(
            metavar="TO", help="A digest or how it begins, or how many moves to go back.", show_default=False
        ),
    ] = "1",
    message: Annotated[str, typer.Option("--message", "-m", metavar="TEXT", help="Why, for the history.")] = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Put an earlier snapshot in force again, as a new entry of the history; by default the one before.

    Only what is published moves: rows stay as they are in both stores. Servers follow within seconds.
    """
    store = Project.of(ctx).registry_store
    digest = store.found(int(to) if to.isdigit() and len(to) < 8 else to)
    entries = store.history(limit=1)
    if entries and not as_json:
        _print_way_back(store, entries[0].digest, digest)
    if not confirmed(f"Put {digest[:12]} in force?", yes=yes):
        raise Mistake("Nothing was changed.", attempt=f"feature-assets registry rollback {to} --yes")
    published = store.rollback(digest, by=who(), message=message)
    if as_json:
        print_json({"digest": published.digest, "sequence": published.sequence, "changed": published.changed})
    else:
        done(f"{published.digest[:12]} is in force again, as number {published.sequence}.")


def _print_way_back(store: "RegistryStore", in_force: str, wanted: str) -> None:
    from feature_assets.errors import RegistryUnreadable
    from feature_assets.registry import plan

    target = store.snapshot(wanted)
    try:
        changes = plan(store.snapshot(in_force), target)
    except RegistryUnreadable:
        note("What is in force cannot be read, so there is nothing to compare with.")
        return
    if changes:
        print_changes(changes)
