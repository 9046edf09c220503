"""The command `feature-assets`: what people type. `main` is the entry point.

Loading the commands takes a quarter of a second, and Ctrl-C in it is no reason for a traceback: they are loaded when one
is run, and nothing here needs more than Python itself.
"""

import sys
from collections.abc import Sequence


def main() -> None:
    """Run the command that was typed, and end the process with its exit code."""
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        # As of every command that is stopped later.
        code = 130
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run a command as `main` does; its exit code."""
    from feature_assets.cli import program

    return program.run(arguments)
