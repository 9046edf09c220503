"""`docs/reference/cli.md` has every command, with an example and the help as it is."""

import os
import re
from pathlib import Path

import pytest

from feature_assets.cli.app import PROGRAM
from tests.cli.test_help import help_text, leaves

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
PATHS = [path for path, _ in leaves()]


def sections() -> dict[str, str]:
    """What is said of each command."""
    parts = re.split(r"^### (.+)\n", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], (re.split(r"^## ", part, flags=re.MULTILINE)[0] for part in parts[2::2]), strict=True))


def with_help(text: str) -> str:
    """The page with the help of every command behind its example."""
    text = re.sub(r"\n```text\n(?:Usage: .*?)?```\n", "", text, flags=re.DOTALL)
    text = text.replace("\nThe examples below", f"\n```text\n{help_text(())}```\n\nThe examples below")
    for path in PATHS:
        start = text.index(f"### {' '.join(path)}\n")
        end = min(found for found in (text.find("\n## ", start), text.find("\n### ", start), len(text)) if found > 0)
        text = f"{text[:end].rstrip()}\n\n```text\n{help_text(path)}```\n{text[end:]}"
    return text


def test_the_page_is_in_step_with_help() -> None:
    """After a change on purpose: UPDATE_SNAPSHOTS=1."""
    if os.environ.get("UPDATE_SNAPSHOTS"):
        PAGE.write_text(with_help(PAGE.read_text()))
    assert PAGE.read_text() == with_help(PAGE.read_text())


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_command_is_in_it_with_an_example(path: tuple[str, ...]) -> None:
    found = sections()
    assert " ".join(path) in found
    assert f"{PROGRAM} {' '.join(path)}" in found[" ".join(path)].split("```text")[0]


def test_it_has_nothing_else() -> None:
    assert set(sections()) == {" ".join(path) for path in PATHS}
