"""What a person is told when something went wrong: one line, and the next thing to type."""

import os
import re
import shlex
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import typer
from rich.text import Text

from feature_assets.cli.app import PROGRAM
from feature_assets.cli.output import aside, note, notes
from feature_assets.errors import FeatureAssetsError, NameCollision, NotPublished

# How messages of the platform name the mend: "… Run: feature-assets apply", as their last words.
_MEND = re.compile(r"\s*(?:Run|See|Try): (?P<command>(?:feature-assets|dagster|pip|make) [^:]+?)\.?$")


class Mistake(FeatureAssetsError):
    """A mistake that the command line itself finds, with the next thing to type."""

    def __init__(self, message: str, *, attempt: str = "") -> None:
        super().__init__(message)
        self.attempt = attempt


class Stopped(FeatureAssetsError):
    """A person stopped what can be taken up again."""

    def __init__(self, *, attempt: str) -> None:
        super().__init__("Stopped.")
        self.attempt = attempt


class NotWell(FeatureAssetsError):
    """What was looked at is not as it should be. The result that was printed says so; there is no more to say."""


class Told(NamedTuple):
    """An error in words: the line, and the next thing to type if there is one."""

    message: str
    attempt: str = ""


def told(error: BaseException, arguments: Sequence[str] = ()) -> Told:
    """The line for a person, without "Error:"; `arguments` are what was typed."""
    message = str(error).strip() or type(error).__name__
    if isinstance(error, Mistake) and error.attempt:
        return Told(message, error.attempt)
    what, asked, _ = message.partition(" Ask with full_feature_names=True")
    if isinstance(error, NameCollision) and asked and arguments:
        # That is how it is said in Python.
        return Told(what, shlex.join([PROGRAM, *arguments, "--full-names"]))
    found = _MEND.search(message)
    if found:
        return Told(message[: found.start()], found["command"].strip())
    return Told(message)


def tell(error: BaseException, arguments: Sequence[str]) -> None:
    """Print an error of the platform's on stderr."""
    _lines(_outside(Path.cwd()) if isinstance(error, NotPublished) and _is_nowhere() else told(error, arguments))


def _is_nowhere() -> bool:
    """Whether neither a file nor the environment says where a registry would be."""
    from feature_assets.config import nearest_file

    named = {"FEATURE_ASSETS_CONFIG", "FEATURE_ASSETS_REGISTRY", "FEATURE_ASSETS_ROOT"}
    return not named & set(os.environ) and nearest_file(Path.cwd()) is None


def _outside(folder: Path) -> Told:
    return Told(
        f"There is no feature_assets.toml in {folder} or above it, and nothing is published here. Go to a project, "
        "name its file with --config, or start one.",
        "feature-assets init",
    )


def tell_usage(error: typer.TyperException, arguments: Sequence[str]) -> None:
    """Print that the command was typed wrongly, and where its help is."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else PROGRAM
    attempt = f"{path} --help"
    option = getattr(error, "option_name", "")
    if option in ("--config", "--debug", "--verbose") and context is not None and context.parent is not None:
        # These stand before the command, and everybody types them after it once.
        value = [option]
        rest = list(arguments)
        at = next((i for i, one in enumerate(rest) if one.split("=")[0] == option), len(rest))
        taken = rest[at : at + (2 if option == "--config" and "=" not in "".join(rest[at : at + 1]) else 1)]
        del rest[at : at + len(taken)]
        attempt = shlex.join([PROGRAM, *(taken or value), *rest])
    _lines(Told(error.format_message().strip(), attempt))


def tell_unexpected(error: Exception, arguments: Sequence[str]) -> None:
    """Print an error that nobody foresaw: what, where, and how to see all of it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.relpath(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    first = (str(error).strip().splitlines() or [""])[0]
    message = f"{type(error).__name__}: {first}{place}" if first else f"{type(error).__name__}{place}"
    _lines(Told(message, shlex.join([PROGRAM, "--debug", *arguments])))


def tell_stopped(attempt: str = "") -> None:
    """Say that a person stopped the command, and how it goes on."""
    note("Stopped.", style="yellow")
    if attempt:
        _try(attempt)


def _lines(what: Told) -> None:
    aside(Text.assemble(("Error: ", "bold red"), what.message))
    if what.attempt:
        _try(what.attempt)


def _try(attempt: str) -> None:
    # Whole even where it is wider than the terminal: it is there to be copied.
    notes().print(Text.assemble(("Try:   ", "bold"), (attempt, "cyan")), soft_wrap=True)
