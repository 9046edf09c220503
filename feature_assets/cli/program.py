"""A command as it was typed: which it is, and what is told when something goes wrong.

A person's mistake is one line and the next thing to type, and exit code 1; a command that was typed wrongly has exit
code 2. A traceback is shown for `--debug` only.
"""

import logging
import os
import sys
import warnings
from collections.abc import Sequence

import typer

# Each module adds its commands to the program.
from feature_assets.cli import (
    doctor,
    erasing,
    failures,
    features,
    keys,
    materializing,
    permissions,
    publishing,
    pushing,
    registry,
    retrieval,
    serving,
    skew,
    starting,
    streaming,
    training,
    upkeep,
)
from feature_assets.cli.app import PROGRAM, app
from feature_assets.errors import FeatureAssetsError

__all__ = [
    "doctor",
    "erasing",
    "features",
    "keys",
    "materializing",
    "permissions",
    "publishing",
    "pushing",
    "registry",
    "retrieval",
    "run",
    "serving",
    "skew",
    "starting",
    "streaming",
    "training",
    "upkeep",
]

# What a shell expects of a program that Ctrl-C ended; typer makes it of the interrupt.
_STOPPED = 130


def run(arguments: Sequence[str]) -> int:
    """Run a command; its exit code."""
    verbose = "--verbose" in arguments
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with warnings.catch_warnings():
        if not verbose:
            # What Dagster says to whoever builds on it is nothing to whoever runs it.
            warnings.filterwarnings("ignore", module=r"dagster")
        return _told(arguments, debug="--debug" in arguments)


def _told(arguments: Sequence[str], *, debug: bool) -> int:
    """Run a command and put what went wrong in words; its exit code."""
    try:
        code = app(list(arguments), prog_name=PROGRAM, standalone_mode=False)
        if code == _STOPPED:
            failures.tell_stopped()
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())
            return 2
        failures.tell_usage(error, arguments)
        return error.exit_code
    except failures.Stopped as error:
        failures.tell_stopped(error.attempt)
        return _STOPPED
    except (typer.Abort, KeyboardInterrupt):
        failures.tell_stopped()
        return _STOPPED
    except BrokenPipeError:
        # Who read our output has seen enough. Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except failures.NotWell:
        return 1
    except FeatureAssetsError as error:
        if debug:
            raise
        failures.tell(error, arguments)
        return 1
    except Exception as error:
        if debug:
            raise
        failures.tell_unexpected(error, arguments)
        return 1
