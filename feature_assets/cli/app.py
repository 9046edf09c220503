"""The command line as a whole: its global options, its groups, and how help looks.

Nothing here or at the top of a command's module imports Dagster, Polars or the server: help has to be there at once.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

PROGRAM = "feature-assets"

_WIDTH = 100
_SECTIONS = ("Start", "Declare and publish", "Compute", "Ask", "Keep in order", "Serve")

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Options:
    """What stands before the command."""

    config: Path | None = None
    debug: bool = False
    verbose: bool = False


class _Help:
    """Help as plain text of fixed layout; on a terminal headings, options and examples stand out."""

    def get_help(self, ctx: Any) -> str:
        plain: str = super().get_help(ctx)  # type: ignore[misc]
        return plain if os.environ.get("NO_COLOR") else _coloured(plain)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces: list[str] = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        # Required arguments as everybody writes them: VIEW, not {VIEW}.
        return [re.sub(r"^\{(.+)\}", r"\1", piece) for piece in pieces]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            found = [one.get_help_record(ctx) for one in self.get_params(ctx) if one.param_type_name == kind]  # type: ignore[attr-defined]
            # What kind of Python value it becomes says nothing to who types it.
            rows = [(re.sub(r" <[^ ]+>$", "", name), text) for name, text in filter(None, found)]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        epilog: str | None = getattr(self, "epilog", None) or _first_examples(self)
        if epilog:
            with formatter.section("Examples" if "\n" in epilog else "Example"):
                for line in epilog.splitlines():
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class Command(_Help, TyperCommand):
    """One command."""


class Group(_Help, TyperGroup):
    """Commands under headings, each with the first sentence of its help."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = [
            (name, command)
            for name in self.list_commands(ctx)
            if (command := self.get_command(ctx, name)) is not None and not command.hidden
        ]
        headings = [one for one in _SECTIONS if any(_section(command) == one for _, command in commands)] or [""]
        widest = max(len(name) for name, _ in commands)
        for heading in headings:
            with formatter.section(heading or "Commands"):
                rows = [
                    (name.ljust(widest), _first(command)) for name, command in commands if _section(command) == heading
                ]
                formatter.write_dl(rows)


def _first_examples(group: Any) -> str:
    """The first example of each command of a group."""
    children = getattr(group, "commands", {}).values()
    return "\n".join(child.epilog.splitlines()[0] for child in children if child.epilog)


def _section(command: Any) -> str:
    panel = getattr(command, "rich_help_panel", None)
    return panel if panel in _SECTIONS else ""


def _first(command: Any) -> str:
    return " ".join((command.help or "").split("\n\n")[0].split()).removesuffix(".")


def _coloured(plain: str) -> str:
    """The same lines with colours, which are taken out again where nobody sees them."""
    bold = re.sub(r"^(\S[^:\n]*):$", lambda m: typer.style(f"{m[1]}:", bold=True), plain, flags=re.MULTILINE)
    bold = re.sub(r"^(Usage:)", lambda m: typer.style(m[1], bold=True), bold)
    options = re.sub(
        r"^(  )(-[\w-]+(?:, --[\w-]+)?)", lambda m: m[1] + typer.style(m[2], fg="cyan"), bold, flags=re.MULTILINE
    )
    return re.sub(rf"^  ({PROGRAM} .+)$", lambda m: "  " + typer.style(m[1], fg="green"), options, flags=re.MULTILINE)


def group(name: str, help: str, *, section: str | None = None, within: typer.Typer | None = None) -> typer.Typer:
    """A group of commands of the program, or within another group."""
    made = typer.Typer(name=name, help=help, cls=Group, rich_markup_mode=None, no_args_is_help=True)
    (within or app).add_typer(made, rich_help_panel=section)
    return made


def command(
    room: typer.Typer, name: str, *, examples: Sequence[str], section: str | None = None
) -> Callable[[_Command], _Command]:
    """A command of the program or of a group. Its help is the docstring and ends with examples."""
    return room.command(
        name, cls=Command, epilog="\n".join(f"{PROGRAM} {one}" for one in examples), rich_help_panel=section
    )


app = typer.Typer(
    cls=Group,
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": _WIDTH, "help_option_names": ["--help", "-h"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        try:
            found = version(PROGRAM)
        except PackageNotFoundError:
            found = "(not installed, run from its source)"
        typer.echo(f"{PROGRAM} {found}")
        raise typer.Exit


@app.callback(epilog=f"{PROGRAM} init shop\n{PROGRAM} plan\n{PROGRAM} materialize customer_orders --latest")
def options(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A feature_assets.toml. Without it, the nearest one from here upward."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what Dagster and the stores log.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Feature views as Dagster assets: history in Delta, latest rows online, one declaration.

    Results go to stdout, progress and errors to stderr. Most commands take --json.
    """
    if config is not None:
        # The code with the definitions opens the stores too; it must find the same ones.
        os.environ["FEATURE_ASSETS_CONFIG"] = str(config.expanduser().resolve())
    ctx.obj = Options(config, debug, verbose)
