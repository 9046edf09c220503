"""`features`: every published feature, to be found and looked at."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from feature_assets.cli.app import command, group
from feature_assets.cli.failures import Mistake
from feature_assets.cli.output import AsJson, Column, facts, print_json, show
from feature_assets.cli.project import Project

features = group("features", "Every published feature: of which view, of what type, whose.", section="Ask")


@command(
    features,
    "list",
    examples=["features list", "features list --entity customer", "features list --search delay --json"],
)
def list_(
    ctx: typer.Context,
    view: Annotated[str | None, typer.Option(metavar="VIEW", help="Only of this view.", show_default=False)] = None,
    entity: Annotated[
        str | None, typer.Option(metavar="ENTITY", help="Only of this entity.", show_default=False)
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Only with this text in name, description or tags.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the features that can be asked for, with type, entities and description."""
    registry = Project.of(ctx).registry
    _require_known("feature view", view, [*registry.views, *registry.on_demand], kind="view")
    _require_known("entity", entity, list(registry.entities()), kind="entity")
    rows = [
        {
            "feature": one.reference,
            "type": str(one.field.type),
            "entities": list(one.entities),
            "version": one.version,
            "pii": one.field.pii,
            "tags": one.field.tags,
            "location": one.owner,
            "description": one.field.description,
        }
        for one in registry.features()
        if view in (None, one.view) and (entity is None or entity in one.entities)
    ]
    if search is not None:
        wanted = search.casefold()
        rows = [row for row in rows if wanted in f"{row['feature']} {row['description']} {row['tags']}".casefold()]
    columns = (
        Column("feature", style="name"),
        Column("type"),
        Column("entities"),
        Column("pii"),
        Column("tags"),
        Column("description"),
    )
    show(rows, columns, as_json=as_json, empty="No published feature is like that.")


def _require_known(what: str, asked: str | None, known: Sequence[str], *, kind: str) -> None:
    if asked is not None and asked not in known:
        from feature_assets.errors import hint

        raise Mistake(
            f"There is no {what} '{asked}' in the published registry. {hint(asked, known, 'names')}",
            attempt=f"feature-assets registry list --kind {kind}",
        )


@command(features, "show", examples=["features show customer_orders:spent_7d"])
def show_(
    ctx: typer.Context,
    feature: Annotated[str, typer.Argument(metavar="VIEW:FEATURE", help="The feature.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show one feature: its type and meaning, how it is looked up, how long it holds, who uses it."""
    from feature_assets.references import resolve

    registry = Project.of(ctx).registry
    output = resolve(registry, feature, full_feature_names=True).outputs[0]
    field, listed = (
        output.field,
        next(one for one in registry.features() if one.view == output.view and one.field.name == output.field.name),
    )
    view = registry.views.get(output.view)
    services = [
        name
        for name, service in sorted(registry.services.items())
        if any(
            one.view == output.view and (one.features is None or field.name in one.features) for one in service.features
        )
    ]
    found: dict[str, Any] = {
        "feature": listed.reference,
        "type": str(field.type),
        "description": field.description,
        "default": field.default,
        "pii": field.pii,
        "tags": field.tags,
        "version": listed.version,
        "entities": list(listed.entities),
        "join_keys": {name: str(of) for name, of in listed.join_keys.items()},
        "event_timestamp": view.event_timestamp if view else None,
        "ttl": view.ttl if view else None,
        "served_online": view.online if view else True,
        "deprecated": (view or registry.on_demand[output.view]).deprecated,
        "computed": "from the partitions of an asset" if view else "when asked for",
        "services": services,
        "owners": list(view.owners) if view else list(registry.on_demand[output.view].owners),
        "location": listed.owner,
    }
    if as_json:
        print_json(found)
    else:
        facts({name.replace("_", " "): value for name, value in found.items()})
