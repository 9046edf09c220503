"""The command line in this process, and a project of its own for every test that changes something."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from feature_assets import cli
from tests.environment import become


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code, and what it printed where."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> Any:
        return json.loads(self.out)

    @property
    def said(self) -> str:
        """What it said beside the result, folded or not."""
        return " ".join(self.err.split())


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command as a person would; `code` is what it has to end with."""

    def typed(*words: str, code: int = 0) -> Outcome:
        _forget_the_project()
        capsys.readouterr()
        found = cli.run(list(words))
        printed = capsys.readouterr()
        outcome = Outcome(found, printed.out, printed.err)
        assert found == code, f"{' '.join(words)} ended with {found}\n{outcome.out}\n{outcome.err}"
        return outcome

    return typed


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test is a process of its own, as far as settings and definitions go."""
    monkeypatch.setenv("COLUMNS", "100")
    environment, path = dict(os.environ), list(sys.path)
    _forget_the_project()
    yield
    become(environment)
    sys.path[:] = path
    _forget_the_project()


def _forget_the_project() -> None:
    sys.modules.pop("definitions", None)
    if resources := sys.modules.get("feature_assets.assets.resources"):
        for kept in (resources._settings, resources._online):
            kept.cache_clear()


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as `init` makes it, published and materialised. Not to be changed."""
    folder = tmp_path_factory.mktemp("shop") / "shop"
    here, environment = Path.cwd(), dict(os.environ)
    assert cli.run(["init", str(folder)]) == 0
    settings = folder / "feature_assets.toml"
    settings.write_text('durability = "process"\n' + settings.read_text())
    os.chdir(folder)
    try:
        assert cli.run(["apply"]) == 0
        assert cli.run(["materialize", "customer_orders", "--all"]) == 0
    finally:
        os.chdir(here)
        become(environment)
    return folder


@pytest.fixture
def looking(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shop to look at; it is shared."""
    monkeypatch.chdir(shop)
    return shop


@pytest.fixture
def project(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shop to change."""
    folder = tmp_path / "shop"
    shutil.copytree(shop, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def first_day(folder: Path) -> str:
    """The first partition of the shop's view."""
    text = (folder / "definitions.py").read_text()
    return text.split('DailyPartitionsDefinition("')[1][:10]
