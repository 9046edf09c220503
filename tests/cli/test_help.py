"""Help: there at once, the same for everybody, ending in examples that work."""

import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from feature_assets.cli.program import PROGRAM, app

SNAPSHOT = Path(__file__).parents[1] / "snapshots" / "cli_help.txt"
ROOT = Path(__file__).parents[2]


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The program, its groups and its commands, in the order of help."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, child in sorted(getattr(command, "commands", {}).items()):
        yield from commands(child, (*path, name))


def leaves() -> list[tuple[tuple[str, ...], Any]]:
    return [(path, command) for path, command in commands() if not getattr(command, "commands", None)]


def help_text(path: tuple[str, ...]) -> str:
    """What `--help` prints, at a width of 100."""
    command = typer.main.get_command(app)
    context = command.make_context(PROGRAM, [], resilient_parsing=True, max_content_width=100)
    for name in path:
        command = command.commands[name]  # type: ignore[attr-defined]
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
    return re.sub(r"\x1b\[[0-9;]*m", "", command.get_help(context)).rstrip() + "\n"


def everything() -> str:
    return "\n".join(f"$ {' '.join((PROGRAM, *path, '--help'))}\n{help_text(path)}" for path, _ in commands())


def test_help_is_as_it_was_reviewed() -> None:
    """A changed option shows in review. After a change on purpose: UPDATE_SNAPSHOTS=1."""
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(everything())
    assert everything() == SNAPSHOT.read_text()


@pytest.mark.parametrize(
    "path,command", leaves(), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_help_ends_in_examples_that_can_be_typed(path: tuple[str, ...], command: Any) -> None:
    examples = (command.epilog or "").splitlines()
    assert examples, f"{' '.join(path)} has no example"
    for example in examples:
        words = shlex.split(example)
        assert words[: len(path) + 1] == [PROGRAM, *path]
        command.make_context(path[-1], words[len(path) + 1 :]).close()


@pytest.mark.parametrize(
    "path,command", leaves(), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_help_says_in_one_line_what_the_command_does(path: tuple[str, ...], command: Any) -> None:
    first = command.help.split("\n\n")[0]
    assert first.endswith(".")
    assert "\n" not in first.strip()
    assert len(first) <= 110


def test_help_loads_no_library_that_it_does_not_need_and_is_there_at_once() -> None:
    """Half a second, of which a terminal, Python and typer take most."""
    probe = (
        "import sys; from feature_assets.cli import run; run(['--help']); "
        "heavy = {'dagster', 'polars', 'pyarrow', 'deltalake', 'fastapi', 'pydantic', 'msgspec', 'sqlite_utils'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    used = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", probe], check=False, capture_output=True, text=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(used) < 0.5, f"{min(used):.2f} s of processor time"


def test_help_without_arguments(run: Any) -> None:
    assert "Usage: feature-assets" in run(code=2).out
    assert "Usage: feature-assets registry" in run("registry", code=2).out


def test_version(run: Any) -> None:
    assert run("--version").out.startswith("feature-assets ")
