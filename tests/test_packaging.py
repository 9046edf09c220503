"""What is declared, what is locked and what is imported agree."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()


def distributions(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


RUNTIME = PROJECT["project"]["dependencies"]
EXTRAS = [line for group in PROJECT["project"]["optional-dependencies"].values() for line in group]
DEVELOPMENT = PROJECT["dependency-groups"]["dev"]


def imported_modules(folder: Path) -> dict[str, Path]:
    """Top-level modules that the code below `folder` imports, each with one file that does."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update({alias.name.partition(".")[0]: path for alias in node.names})
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found[node.module.partition(".")[0]] = path
    return found


# Used where present, and the code says what to install where not.
OPTIONAL_MODULES = {"hypothesis", "pytest"}  # feature_assets.testing, for whoever tests a store of their own


def test_everything_imported_is_declared():
    provided = packages_distributions()
    declared = distributions(RUNTIME + EXTRAS)
    undeclared = {
        module: str(path.relative_to(ROOT))
        for module, path in imported_modules(ROOT / "feature_assets").items()
        if module not in sys.stdlib_module_names | OPTIONAL_MODULES | {"feature_assets", "examples"}
        and not declared & {canonicalize_name(name) for name in provided.get(module, [module])}
    }
    assert undeclared == {}, "add these to [project.dependencies] or an extra in pyproject.toml, then `make lock`"


@pytest.mark.parametrize("line", RUNTIME + EXTRAS + DEVELOPMENT)
def test_lock_satisfies_what_is_declared(line: str):
    wanted = Requirement(line)
    pins = re.findall(rf"^{re.escape(canonicalize_name(wanted.name))}(?:\[[^]]*])?==([^\s;]+)", LOCK, re.MULTILINE)
    assert pins, f"requirements.lock has no {wanted.name}: run `make lock`"
    assert all(wanted.specifier.contains(pin) for pin in pins), f"requirements.lock is stale: run `make lock` ({pins})"


def test_lock_says_nothing_about_where_it_was_made():
    """No index, no folder: it installs from whatever the machine at hand is set up to use."""
    assert re.findall(r"^--|://|file:|/(?:home|root|tmp|Users|opt)/", LOCK, re.MULTILINE) == []
