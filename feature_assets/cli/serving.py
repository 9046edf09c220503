"""`serve` and `auth`: the feature server, and who may ask it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_assets.cli.app import app, command, group
from feature_assets.cli.failures import Mistake
from feature_assets.cli.output import AsJson, Column, Yes, confirmed, done, facts, note, print_json, show
from feature_assets.cli.project import Project

if TYPE_CHECKING:
    from feature_assets.server.issuer import Issuer

_SECTION = "Serve"
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,18})")

auth = group("auth", "Who may ask the server on this machine: clients, their scopes, tokens.", section=_SECTION)
client = group("client", "Clients of the embedded issuer, each with an id, a secret and scopes.", within=auth)

Scopes = Annotated[
    list[str],
    typer.Option(
        "--scope",
        "-s",
        metavar="SCOPE",
        help="As features:read or features:read:driver_*; may be repeated.",
        show_default=False,
    ),
]
Roles = Annotated[
    list[str] | None,
    typer.Option("--role", metavar="ROLE", help="A role of its; may be repeated.", show_default=False),
]
Groups = Annotated[
    list[str] | None,
    typer.Option("--group", metavar="GROUP", help="A group that it is in; may be repeated.", show_default=False),
]
Claims = Annotated[
    list[str] | None,
    typer.Option(
        "--claim",
        metavar="NAME=VALUE",
        help="What else its tokens say, for row filters, as tenant=acme; a whole number is one. May be repeated.",
        show_default=False,
    ),
]


@command(
    app,
    "serve",
    section=_SECTION,
    examples=[
        "serve",
        "serve --host 0.0.0.0 --port 8080 --workers 4",
        "serve --port 8443 --tls-certificate server.pem --tls-key server.key",
    ],
)
def serve(
    ctx: typer.Context,
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Where to listen, if not where the settings say.", show_default=False),
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="PORT", min=0, max=65535, help="As for --host.", show_default=False)
    ] = None,
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="How many processes answer.")] = 1,
    tls_certificate: Annotated[
        str | None, typer.Option(metavar="FILE", help="Certificate for TLS, PEM.", show_default=False)
    ] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="Its key, PEM.", show_default=False)] = None,
) -> None:
    """Run the feature server: latest values over HTTP, closed to whoever has no token.

    It speaks the JSON of Feast's feature server, so clients move by changing a URL. Ctrl-C ends it. SIGHUP has it read
    its certificate again, and with several workers replaces them one by one.
    """
    from feature_assets.server.process import run

    files = {"tls_certificate": tls_certificate, "tls_key": tls_key}
    absolute = {name: None if file is None else str(Path(file).absolute()) for name, file in files.items()}
    run(Project.of(ctx).settings, host=host, port=port, workers=workers, **absolute)


@command(
    client,
    "add",
    examples=[
        "auth client add scoring --scope features:read",
        "auth client add ops -s features:read -s registry:read --json",
        "auth client add acme -s features:read --role risk --claim tenant=acme",
    ],
)
def add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called.", show_default=False)],
    scopes: Scopes,
    roles: Roles = None,
    groups: Groups = None,
    claims: Claims = None,
    as_json: AsJson = False,
) -> None:
    """Add a client, and show its secret this once."""
    issuer = embedded_issuer(Project.of(ctx))
    more = claims_given(roles, groups, claims)
    client_id, secret = issuer.add_client(name, scopes, more)
    if as_json:
        print_json({"client_id": client_id, "client_secret": secret, "scopes": scopes, "claims": more})
        return
    facts(
        {
            "client id": client_id,
            "client secret": secret,
            "scopes": " ".join(scopes),
            "claims": _listed_claims(more),
        }
    )
    note("The secret is not kept and cannot be shown again.", style="yellow")


@command(client, "list", examples=["auth client list"])
def list_(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the clients and what each may ask for."""
    rows = [
        {
            "client_id": one.client_id,
            "name": one.name,
            "scopes": list(one.scopes),
            "claims": one.claims if as_json else _listed_claims(one.claims),
            "created_at": one.created_at,
        }
        for one in embedded_issuer(Project.of(ctx)).clients()
    ]
    columns = (
        Column("client_id", "client id", style="name"),
        Column("name"),
        Column("scopes"),
        Column("claims"),
        Column("created_at", "added"),
    )
    show(rows, columns, as_json=as_json, empty="There are no clients yet. Add one: feature-assets auth client add")


@command(client, "remove", examples=["auth client remove scoring-1f0c2a9b"])
def remove(
    ctx: typer.Context,
    client_id: Annotated[str, typer.Argument(metavar="CLIENT_ID", help="Its id.", show_default=False)],
    yes: Yes = False,
) -> None:
    """Remove a client. Tokens that it has go on until they expire."""
    issuer = embedded_issuer(Project.of(ctx))
    if not confirmed(f"Remove {client_id}?", yes=yes):
        raise Mistake("Nothing was removed.", attempt=f"feature-assets auth client remove {client_id} --yes")
    issuer.remove_client(client_id)
    done(f"Removed {client_id}.")


@command(
    auth,
    "token",
    examples=["auth token --scope features:read", "auth token --client ops -s registry:read --lifetime 600"],
)
def token(
    ctx: typer.Context,
    scopes: Scopes,
    client_id: Annotated[
        str, typer.Option("--client", metavar="ID", help="In whose name; a client's tokens have its claims.")
    ] = "command-line",
    roles: Roles = None,
    groups: Groups = None,
    claims: Claims = None,
    lifetime: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS", min=1, help="How long it lives, if not as the settings say.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token for the server on this machine, without a client: for curl and a first look.

    It is signed with the embedded issuer's key, so who may read that key's folder may do this.
    """
    project = Project.of(ctx)
    seconds = lifetime or project.settings.server.token_lifetime_seconds
    issuer = embedded_issuer(project)
    own = next((one.claims for one in issuer.clients() if one.client_id == client_id), {})
    made = issuer.token(client_id, scopes, seconds, {**own, **claims_given(roles, groups, claims)})
    if as_json:
        print_json({"access_token": made, "token_type": "Bearer", "expires_in": seconds, "scope": " ".join(scopes)})
    else:
        typer.echo(made)


def claims_given(roles: list[str] | None, groups: list[str] | None, others: list[str] | None) -> dict[str, Any]:
    """What was typed as the claims of a token.

    Raises:
        Mistake: one is no claim with a value, or comes twice.
    """
    claims: dict[str, Any] = {name: named for name, named in (("roles", roles), ("groups", groups)) if named}
    for given in others or ():
        name, equals, value = given.partition("=")
        if not equals or name in claims:
            raise Mistake(f"'--claim {given}' names no claim of its own and a value.", attempt="--claim tenant=acme")
        claims[name] = int(value) if _WHOLE.fullmatch(value) else {"true": True, "false": False}.get(value, value)
    return claims


def _listed_claims(claims: Mapping[str, Any]) -> str:
    return " ".join(
        f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}" for name, value in claims.items()
    )


def embedded_issuer(project: Project) -> "Issuer":
    """The issuer of tokens that lives in this project.

    Raises:
        Mistake: its tokens come from elsewhere.
    """
    settings = project.settings
    if settings.server.issuer is not None:
        raise Mistake(
            f"Clients, keys and tokens of this server come from {settings.server.issuer}, and not from here. See there."
        )
    from feature_assets.server.issuer import Issuer

    return Issuer.open(settings.place(settings.secrets), audience=settings.server.audience)
