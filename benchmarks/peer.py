"""Feast beside us: its Python, and its scripts of this folder run by it."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def feast_python(needs: str = "cryptography") -> Path | None:
    """The Python of `FEAST_PYTHON`, or of `.venv-feast`, if it has Feast and the modules that it needs besides."""
    named = os.environ.get("FEAST_PYTHON")
    python = Path(named) if named else ROOT / ".venv-feast" / "bin" / "python"
    if not python.exists():
        return None
    complete = subprocess.run([str(python), "-c", f"import feast, {needs}"], check=False, capture_output=True)
    return None if complete.returncode else python


def run_by(python: Path, script: str, *arguments: object) -> str:
    """What a script of this folder prints, run by that Python.

    Raises:
        AssertionError: it failed.
    """
    with Path(__file__).with_name(script).open("rb") as text:
        # Not by its path: beside it lie files that Python would take for its own modules, such as `http`.
        command = [str(python), "-", *map(str, arguments)]
        made = subprocess.run(command, stdin=text, capture_output=True, text=True, check=False, env=quietly())
    assert made.returncode == 0, made.stderr
    return made.stdout


def quietly() -> dict[str, str]:
    """The environment of Feast's processes: nothing is told to anybody, and nothing of ours is imported."""
    return {**os.environ, "FEAST_USAGE": "False", "PYTHONWARNINGS": "ignore", "PYTHONPATH": ""}
