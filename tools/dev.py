"""Several programs together, until one ends or Ctrl-C is pressed: `dev.py -- dagster dev … -- feature-assets serve`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

GRACE_SECONDS = 20.0
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Program = tuple[str, subprocess.Popen[bytes]]


def commands(arguments: Sequence[str]) -> list[list[str]]:
    """The command lines that follow each `--` of `arguments`."""
    found: list[list[str]] = []
    for argument in arguments:
        if argument == "--":
            found.append([])
        elif found:
            found[-1].append(argument)
    return [command for command in found if command]


def start(command: Sequence[str]) -> Program:
    """Run a program of this environment in a process group of its own, so that Ctrl-C reaches it once, from here."""
    path = Path(sys.executable).parent / command[0]
    return command[0], subprocess.Popen([str(path), *command[1:]], start_new_session=True)


def stop(programs: Sequence[Program]) -> None:
    """Ask each to end as Ctrl-C would, then insist: what is left after the grace is killed with all it started."""
    for _, process in programs:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + GRACE_SECONDS
    for name, process in programs:
        try:
            process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            print(f"{name} did not stop in {GRACE_SECONDS:.0f} s and is killed.", file=sys.stderr)
        with suppress(ProcessLookupError):  # everything in its group has ended, as it should
            os.killpg(process.pid, signal.SIGKILL)


def interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    for ending in ENDINGS:
        signal.signal(ending, interrupt)
    programs: list[Program] = []
    try:
        for command in commands(arguments):
            programs.append(start(command))
        while True:
            for name, process in programs:
                if process.poll() is not None:
                    print(f"{name} ended with code {process.returncode}; stopping the rest.", file=sys.stderr)
                    return process.returncode or 1
            time.sleep(0.2)
    except KeyboardInterrupt:
        return 0
    finally:
        for ending in ENDINGS:
            signal.signal(ending, signal.SIG_IGN)  # a second Ctrl-C must not leave one of them running
        stop(programs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
