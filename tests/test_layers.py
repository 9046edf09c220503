"""Imports point one way, down, and each heavy library is known to one room."""

import ast
import subprocess
import sys
from collections.abc import Container, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "feature_assets"

LAYERS = [
    {"errors", "config", "types", "declared", "drafts", "expressions", "checks", "policies", "profiles", "spec"},
    {
        "references",
        "casting",
        "duplicates",
        "conform",
        "shapes",
        "functions",
        "transformations",
        "joins",
        "json_text",
        "ticks",
        "windows",
        "intake",
    },
    {"access", "registry", "offline", "online", "objects", "sources"},
    {"settlement", "publication", "push", "historical", "lookup", "training", "served", "remote", "store"},
    {"streams"},
    {"assets", "server"},
    {"cli", "testing"},
]
SIBLINGS = {"assets", "server"}

ROOMS = {
    "dagster": {"assets", "cli"},
    "fastapi": {"server"},
    "httpx": {"remote", "server"},
    "starlette": {"server"},
    "uvicorn": {"server"},
    "authlib": {"server"},
    "joserfc": {"server"},
    "deltalake": {"offline"},
    "sqlite3": {"online/sqlite"},
    "sqlite_utils": {"online/sqlite"},
    "apsw": {"online/sqlite"},
    "obstore": {"objects"},
    "boto3": {"online/dynamodb", "streams/kinesis_calls.py"},
    "confluent_kafka": {"streams/kafka_calls.py", "streams/decoding"},
    "fastavro": {"streams/decoding"},
    "google.protobuf": {"streams/decoding"},
    "daft": {"joins/daft"},
    "ray": {"training/feeding"},
    "torch": {"training/feeding"},
    "typer": {"cli"},
    "pydantic_settings": {"config"},
}

MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.module or "", node.lineno


def room(path: Path) -> str:
    """The module or folder right below the package."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    found = [number for number, names in enumerate(LAYERS) if name in names]
    assert found, f"feature_assets/{name} stands in no layer of tests/test_layers.py"
    return found[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    here = room(path)
    for name, line in imported(path):
        parts = name.split(".")
        if parts[0] != "feature_assets" or len(parts) == 1:
            continue
        there = parts[1]
        assert layer(there) <= layer(here), f"{path}:{line}: {here} imports {there}, which lies above it"
        assert here == there or not {here, there} <= SIBLINGS, f"{path}:{line}: {here} imports its sibling {there}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_heavy_library_is_known_to_one_room(path: Path) -> None:
    here = path.relative_to(ROOT).as_posix()
    for name, line in imported(path):
        rooms = ROOMS.get(name.split(".")[0])
        assert rooms is None or here.startswith(tuple(rooms)), f"{path}:{line}: {name} belongs in {rooms} only"


def test_no_two_modules_of_one_layer_need_one_another() -> None:
    needs: dict[str, set[str]] = {}
    for path in MODULES:
        names = {name.split(".")[1] for name, _ in imported(path) if name.startswith("feature_assets.")}
        needs.setdefault(room(path), set()).update(names - {room(path)})
    for start, needed in needs.items():
        reached, waiting = set(), list(needed)
        while waiting:
            one = waiting.pop()
            if one not in reached:
                reached.add(one)
                waiting.extend(needs.get(one, ()))
        assert start not in reached, f"{start} needs itself, by way of {sorted(reached)}"


def test_no_two_files_need_one_another() -> None:
    """Not for the sake of types either: what is read first must be readable first."""
    files = {_module(path): path for path in MODULES}
    needs = {name: {one for one in _needed(path, files) if one != name} for name, path in files.items()}
    for start, needed in needs.items():
        reached, waiting = set(), list(needed)
        while waiting:
            one = waiting.pop()
            if one not in reached:
                reached.add(one)
                waiting.extend(needs[one])
        assert start not in reached, f"{start} needs itself, by way of {sorted(reached)}"


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _needed(path: Path, files: Container[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield from (one for one in (name if name in files else node.module or "",) if one in files)


def test_retrieval_loads_neither_dagster_nor_fastapi() -> None:
    """A training container pays for the store and its clients only."""
    probe = (
        "import sys, feature_assets as fa; fa.FeatureStore; "
        "print(sorted({'dagster', 'fastapi', 'pandas', 'sqlite_utils', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", probe], text=True) == "[]\n"
