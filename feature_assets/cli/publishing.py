"""`plan` and `apply`: what the code declares against what is published."""

import getpass
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_assets.cli.app import app, command
from feature_assets.cli.failures import Mistake, NotWell
from feature_assets.cli.output import AsJson, Column, Yes, confirmed, counted, done, print_json, say, table, working
from feature_assets.cli.project import Project

if TYPE_CHECKING:
    from feature_assets.registry import Change

_SECTION = "Declare and publish"

_SIGNS = {"added": "+", "changed": "~", "removed": "−"}
_COLOURS = {"added": "green", "changed": "yellow", "removed": "red"}

_COLUMNS = (
    Column("sign", " ", style="dim"),
    Column("what"),
    Column("name", style="name"),
    Column("detail"),
    Column("meaning"),
)

Adopt = Annotated[
    list[str] | None,
    typer.Option(
        "--adopt",
        metavar="LOCATION",
        help="Take over what this code location owns, where the code here declares it; may be repeated.",
        show_default=False,
    ),
]
Prune = Annotated[bool, typer.Option("--prune", help="Drop former versions of views that nothing asks for.")]


@command(app, "plan", section=_SECTION, examples=["plan", "plan --check", "plan --json"])
def plan(
    ctx: typer.Context,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if anything would change.")] = False,
    adopt: Adopt = None,
    prune: Prune = False,
    as_json: AsJson = False,
) -> None:
    """Show how the code's declarations differ from what is published.

    Each difference is told with what it means for data. Nothing is written.
    """
    changes = _changes(Project.of(ctx), adopt, prune=prune)
    if as_json:
        print_json([row(change) for change in changes])
    elif changes:
        print_changes(changes)
    else:
        done("Published as declared: nothing to change.")
    if check and changes:
        raise NotWell("There are changes.")


@command(app, "apply", section=_SECTION, examples=["apply", 'apply --yes --message "wind gusts added"'])
def apply(
    ctx: typer.Context,
    message: Annotated[
        str, typer.Option("--message", "-m", metavar="TEXT", help="What this is about, for the history.")
    ] = "",
    yes: Yes = False,
    adopt: Adopt = None,
    prune: Prune = False,
    as_json: AsJson = False,
) -> None:
    """Publish what the code declares, so that training and serving see it.

    Shows the plan first, and asks where a change breaks what somebody may rely on.
    """
    project = Project.of(ctx)
    changes = _changes(project, adopt, prune=prune)
    if changes and not as_json:
        print_changes(changes)
    breaking = [change for change in changes if change.breaking]
    if breaking:
        # Nobody is asked to agree to what is refused in any case.
        project.registry_store.check(
            project.derived, location=project.settings.location, adopt=adopt or (), prune=prune
        )
    if breaking and not confirmed(f"{counted(len(breaking), 'change')} may break what others use. Publish?", yes=yes):
        raise Mistake(
            f"Nothing was published: {counted(len(breaking), 'change')} may break what others use "
            f"(first: {breaking[0].kind} {breaking[0].name}, {breaking[0].detail}).",
            attempt="feature-assets apply --yes",
        )
    with working("Publishing …"):
        published = project.registry_store.publish(
            project.derived,
            location=project.settings.location,
            by=who(),
            message=message,
            adopt=adopt or (),
            prune=prune,
        )
    if as_json:
        print_json(
            {
                "changed": published.changed,
                "digest": published.digest,
                "sequence": published.sequence,
                "published_at": published.published_at,
                "changes": [row(change) for change in changes],
            }
        )
    elif published.changed:
        done(f"Published {published.digest[:12]} as number {published.sequence} at {project.registry_store.place}")
    else:
        done(f"Published as declared: nothing to change ({published.digest[:12]}).")


def _changes(project: Project, adopt: Sequence[str] | None, *, prune: bool) -> "list[Change]":
    derived = project.derived
    return project.registry_store.plan(derived, location=project.settings.location, adopt=adopt or (), prune=prune)


def row(change: "Change") -> dict[str, Any]:
    """A change for machines."""
    return {name: getattr(change, name) for name in ("action", "kind", "name", "detail", "meaning", "breaking")}


def print_changes(changes: "Sequence[Change]") -> None:
    """The changes as a table, and how many there are of each kind."""
    from rich.text import Text

    rows = []
    for change in changes:
        colour = _COLOURS[change.action]
        meaning = Text(change.meaning)
        if change.breaking:
            meaning = Text.assemble(("breaking: ", "bold red"), change.meaning)
        rows.append(
            {
                "sign": Text(_SIGNS[change.action], f"bold {colour}"),
                "what": Text(change.kind, colour),
                "name": change.name,
                "detail": change.detail,
                "meaning": meaning,
            }
        )
    table(rows, _COLUMNS)
    counts = [f"{sum(one.action == action for one in changes)} {action}" for action in _SIGNS]
    breaking = sum(change.breaking for change in changes)
    say(", ".join(counts) + (f"; {breaking} breaking" if breaking else ""), style="dim")


def who() -> str:
    """Who is at the keyboard, for the history."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run as a user that has no name.
        return "unknown"
