"""`auth key`: the keys that sign the tokens of the embedded issuer."""

from typing import Annotated

import typer

from feature_assets.cli.app import command, group
from feature_assets.cli.failures import Mistake
from feature_assets.cli.output import AsJson, Column, Yes, confirmed, done, note, show
from feature_assets.cli.project import Project
from feature_assets.cli.serving import auth, embedded_issuer

key = group("key", "Keys of the embedded issuer: the one that signs, and former ones.", within=auth)


@command(key, "list", examples=["auth key list"])
def list_(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the keys: the one that signs, and those that only check the tokens that they signed."""
    rows = [
        {
            "key_id": one.kid,
            "signs": one.until is None,
            "created_at": one.created_at,
            "checks_until": one.until,
        }
        for one in embedded_issuer(Project.of(ctx)).signing_keys()
    ]
    columns = (
        Column("key_id", "key id", style="name"),
        Column("signs"),
        Column("created_at", "made"),
        Column("checks_until", "checks until"),
    )
    show(rows, columns, as_json=as_json, empty="There are no keys.")


@command(key, "rotate", examples=["auth key rotate", "auth key rotate --at-once --yes"])
def rotate(
    ctx: typer.Context,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="End every token there is, as when a key has become known.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Sign with a new key from now on.

    Running servers notice by themselves. The former key goes on checking the tokens that it signed, until none of them can
    be left: a day.
    """
    issuer = embedded_issuer(Project.of(ctx))
    if at_once and not confirmed("End every token that was issued so far?", yes=yes):
        raise Mistake("Nothing was changed.", attempt="feature-assets auth key rotate --at-once --yes")
    new = issuer.rotate_key(at_once=at_once)
    done(f"Tokens are signed with {new} now.")
    if at_once:
        note("Servers refuse all former tokens within 5 seconds. Clients have to ask for new ones.", style="yellow")
