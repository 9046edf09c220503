"""`permissions`: who may do what with which view, by the published registry."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from feature_assets.cli.app import command, group
from feature_assets.cli.failures import Mistake
from feature_assets.cli.output import AsJson, Column, note, print_json, say, show, table
from feature_assets.cli.project import Project
from feature_assets.cli.serving import Claims, Groups, Roles, claims_given

if TYPE_CHECKING:
    from feature_assets.access import Access, Decision, Principal
    from feature_assets.registry import Registry

permissions = group("permissions", "Who may read, push, materialise and see personal data, and why.", section="Serve")

_BY_SCOPE: Final = "by scope"
_NOBODY: Final = "nobody"

# What is asked for, in the order of the columns, with the scope that it needs.
_ACTS: Final = {
    "read": "features:read",
    "history": "features:history",
    "push": "features:push",
    "materialize": "features:materialize",
    "pii": "pii:read",
    "describe": "registry:read",
}


@command(permissions, "list", examples=["permissions list", "permissions list --json"])
def list_(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List every view with whom its policy names for each act.

    "by scope" is a view without a policy: the scopes of a token alone decide. Of an on-demand view, all that it is made
    from has a say as well.
    """
    from feature_assets.access import Access

    registry = Project.of(ctx).registry
    listed = [_listed(registry, Access(registry), name) for name in _names(registry)]
    rows = listed if as_json else [line for row in listed for line in _lines(row)]
    columns = (Column("view", style="name"), Column("act"), Column("who"))
    show(rows, columns, as_json=as_json, empty="No view is published. Run: feature-assets apply")


def _names(registry: "Registry") -> list[str]:
    return sorted([*registry.views, *registry.on_demand])


def _listed(registry: "Registry", access: "Access", name: str) -> dict[str, Any]:
    """One view as a program reads it; None where no policy speaks."""
    view = registry.views.get(name)
    return {
        "view": name,
        **{act: access.names(name, _ACTS[act]) for act in ("read", "push", "materialize", "pii")},
        "personal": sorted(feature.partition("__")[2] for feature in _tainted(access, name)),
        "row_filter": dict(view.row_filter) if view is not None else {},
        "made_from": _sources(registry, name),
    }


def _lines(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The same as a person reads it."""
    asked = [act for act in ("read", "push", "materialize", "pii") if row[act] is not None]
    lines = [("all", _BY_SCOPE)] if not asked else []
    for act in asked:
        if (
            act == "read"
            or (act == "pii" and row["personal"])
            or (act in ("push", "materialize") and not row["made_from"])
        ):
            lines.append((act, ", ".join(row[act]) or _NOBODY))
    lines += [("rows", f"{key} = claim {claim}") for key, claim in row["row_filter"].items()]
    if row["made_from"]:
        lines.append(("made from", ", ".join(row["made_from"])))
    yield from ({"view": row["view"], "act": act, "who": who} for act, who in lines)


def _tainted(access: "Access", view: str) -> Mapping[str, frozenset[str]]:
    """The features of a view that hold personal data or are made from it, each with the views that say who sees it."""
    from feature_assets.access import READ

    return access.personal(access.reading(None, READ, [f"{view}:*"], full_feature_names=True).plan)


def _sources(registry: "Registry", name: str) -> list[str]:
    computed = registry.on_demand.get(name)
    return [] if computed is None else sorted({source.view for source in computed.sources})


@command(
    permissions,
    "check",
    examples=[
        "permissions check scoring-1f0c2a9b",
        'permissions check "features:read:driver_* pii:read" driver_stats --role risk --claim tenant=acme',
    ],
)
def check(
    ctx: typer.Context,
    who: Annotated[
        str,
        typer.Argument(
            metavar="CLIENT_OR_SCOPES",
            help="A client of the embedded issuer by its id, or scopes with spaces between them.",
            show_default=False,
        ),
    ],
    view: Annotated[
        str | None,
        typer.Argument(metavar="VIEW", help="The view to explain; all views if left out.", show_default=False),
    ] = None,
    client_id: Annotated[
        str | None, typer.Option("--client", metavar="ID", help="The client that has the scopes.", show_default=False)
    ] = None,
    roles: Roles = None,
    groups: Groups = None,
    claims: Claims = None,
    as_json: AsJson = False,
) -> None:
    """Show what somebody would be allowed, and by which rule.

    It is decided as the server decides it. "masked" and "own rows" are answers with less in them.
    """
    from feature_assets.access import Access

    project = Project.of(ctx)
    principal = _principal(project, who, client_id, claims_given(roles, groups, claims))
    registry = project.registry
    access = Access(registry)
    if view is not None:
        _require(registry, view)
        rows = list(_decided(registry, access, principal, view))
        columns = (Column("act", style="name"), Column("allowed"), Column("why"))
        show(rows, columns, as_json=as_json, empty="")
        return
    rows = [row for name in _names(registry) for row in _decided(registry, access, principal, name)]
    if as_json:
        print_json(rows)
        return
    found = [
        {"view": name, **{row["act"]: row["allowed"] for row in rows if row["view"] == name}}
        for name in _names(registry)
    ]
    show(
        found,
        (Column("view", style="name"), *map(Column, _ACTS)),
        as_json=False,
        empty="No view is published. Run: feature-assets apply",
    )


def _require(registry: "Registry", view: str) -> None:
    if view not in registry.views and view not in registry.on_demand:
        from feature_assets.errors import UnknownView

        raise UnknownView.among(view, _names(registry))


def _principal(project: Project, who: str, client_id: str | None, claims: Mapping[str, Any]) -> "Principal":
    from feature_assets.access import parse_scope
    from feature_assets.access.scopes import checked_scopes

    words = who.split()
    if len(words) == 1 and parse_scope(who) is None and ":" not in who:
        client = next((one for one in _clients(project) if one.client_id == who), None)
        if client is None:
            known = ", ".join(one.client_id for one in _clients(project)) or "none"
            raise Mistake(
                f"'{who}' is neither a scope nor a client of the embedded issuer (clients: {known}).",
                attempt="feature-assets permissions check features:read",
            )
        return _as_principal(project, client.client_id, client.scopes, {**client.claims, **claims})
    return _as_principal(project, client_id or "nobody-in-particular", map(str, checked_scopes(words)), claims)


def _as_principal(project: Project, client_id: str, scopes: Any, claims: Mapping[str, Any]) -> "Principal":
    """Who a token with these claims would speak for."""
    from feature_assets.access import Principal
    from feature_assets.server.auth import names_in, values_in

    said = {**claims, "sub": client_id, "client_id": client_id}
    settings = project.settings.server
    return Principal.of(
        client_id,
        list(scopes),
        roles=names_in(said, settings.role_claims),
        groups=names_in(said, settings.group_claims),
        claims=values_in(said),
    )


def _clients(project: Project) -> Sequence[Any]:
    """The clients of the embedded issuer, if that is whose tokens count here. Nothing is made where there is none."""
    from pathlib import Path

    from feature_assets.server.issuer import Issuer

    settings = project.settings
    folder = Path(settings.place(settings.secrets))
    if settings.server.issuer is not None or not folder.is_dir():
        return ()
    return Issuer.open(folder, audience=settings.server.audience).clients()


def _decided(registry: "Registry", access: "Access", principal: "Principal", view: str) -> Iterator[dict[str, Any]]:
    """What is decided about each act on a view, with the rule."""
    for act in _ACTS:
        if view in registry.on_demand and act in ("push", "materialize"):
            continue
        allowed, why, decision = _one(access, principal, view, act)
        yield {
            "view": view,
            "act": act,
            "allowed": allowed,
            "why": why,
            "rule": decision.rule,
            "masked": sorted(decision.masked) if decision.allowed else [],
            "own_rows": {rule.column: rule.value for rule in decision.rows},
        }


def _one(access: "Access", principal: "Principal", view: str, act: str) -> "tuple[str, str, Decision]":
    if act in ("push", "materialize", "describe"):
        decision = access.decide(principal, _ACTS[act], view)
        if not decision.allowed:
            return "no", _refused(decision), decision
        return ("own rows" if decision.rows else "yes"), _by(decision), decision
    scope = _ACTS["history" if act == "history" else "read"]
    decision = access.reading(None, scope, [f"{view}:*"], full_feature_names=True).decide(principal)
    if act == "pii":
        return _personal(access, view, decision)
    if not decision.allowed:
        return "no", _refused(decision), decision
    words = [word for word, there in (("masked", decision.masked), ("own rows", decision.rows)) if there]
    return ", ".join(words) or "yes", _by(decision), decision


def _personal(access: "Access", view: str, decision: "Decision") -> "tuple[str, str, Decision]":
    personal = _tainted(access, view)
    if not personal:
        return "", "it has no personal data", decision
    if not decision.allowed:
        return "no", "it may not be read", decision
    if decision.masked:
        views = sorted(set().union(*personal.values()))
        return "no", f"scope pii:read or the pii policy of {' or '.join(views)} does not allow it", decision
    return "yes", "scope pii:read, and no pii policy says otherwise", decision


def _by(decision: "Decision") -> str:
    rows = "".join(f"; only {rule.column} = {rule.value}" for rule in decision.rows)
    masked = (
        f"; without {', '.join(name.partition('__')[2] for name in sorted(decision.masked))}" if decision.masked else ""
    )
    return decision.rule + rows + masked


def _refused(decision: "Decision") -> str:
    # What its own token is not told, whoever has the registry before him may know.
    return decision.rule if decision.hidden or decision.lacks else decision.why


@command(permissions, "who-can", examples=["permissions who-can customer_orders", "permissions who-can orders --json"])
def who_can(
    ctx: typer.Context,
    view: Annotated[str, typer.Argument(metavar="VIEW", help="The view.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show what each act on a view needs, and which clients of the embedded issuer have it."""
    from feature_assets.access import Access

    project = Project.of(ctx)
    registry = project.registry
    _require(registry, view)
    access = Access(registry)
    needs = [
        {"act": act, "scope": scope, "policy": _policy(registry, access, view, act)}
        for act, scope in _ACTS.items()
        if not (view in registry.on_demand and act in ("push", "materialize"))
        and not (act == "pii" and not _tainted(access, view))
    ]
    clients = []
    for client in _clients(project):
        principal = _as_principal(project, client.client_id, client.scopes, client.claims)
        decided = {row["act"]: row["allowed"] for row in _decided(registry, access, principal, view)}
        clients.append({"client": client.client_id, **decided})
    if as_json:
        print_json({"view": view, "needs": needs, "clients": clients})
        return
    table(needs, (Column("act", style="name"), Column("scope"), Column("policy", "and a principal that is")))
    typer.echo()
    if clients:
        table(clients, (Column("client", style="name"), *map(Column, _ACTS)))
    elif project.settings.server.issuer is not None:
        note(f"Clients are those of {project.settings.server.issuer}.", style="")
    else:
        say("The embedded issuer has no clients.")


def _policy(registry: "Registry", access: "Access", view: str, act: str) -> str:
    """Whom the policies of all views that have a say name, in words."""
    if act == "describe":
        return ""
    from feature_assets.registry.narrowing import views_behind
    from feature_assets.spec import ViewProjection

    views = {view}
    if act in ("read", "history"):
        views = views_behind(registry, [ViewProjection(view)])
    elif act == "pii":
        views = set().union(*_tainted(access, view).values())
    named = {one: access.names(one, _ACTS[act]) for one in sorted(views)}
    words = [
        (" or ".join(names) or _NOBODY) + (f" ({one})" if len(views) > 1 else "")
        for one, names in named.items()
        if names is not None
    ]
    return "; and ".join(words)
