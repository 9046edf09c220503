"""The public surface is one page: each name is there, says what it is, and costs only what it needs."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import feature_assets
from feature_assets import errors

PAGE = Path(feature_assets.__file__)
HEAVY = (
    "dagster",
    "fastapi",
    "pandas",
    "pyarrow",
    "deltalake",
    "sqlite_utils",
    "obstore",
    "boto3",
    "pydantic_settings",
)


def in_a_fresh_interpreter(statement: str) -> list[str]:
    """The heavy libraries that the statement loads."""
    probe = f"{statement}\nimport json, sys\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    return json.loads(subprocess.check_output([sys.executable, "-c", probe], text=True))


@pytest.mark.parametrize("name", feature_assets.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    thing = getattr(feature_assets, name)
    if inspect.isclass(thing):
        # Its own, and not that of its root.
        assert vars(thing)["__doc__"], f"{name} has no docstring"
    elif not isinstance(thing, str):
        # A function, or a type such as Float64: help() shows what its class says.
        assert thing.__doc__, f"{name} has no docstring"


def test_the_page_lists_what_it_imports_and_nothing_else():
    imported = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(PAGE.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("feature_assets.")
        for alias in node.names
    }
    assert imported == set(feature_assets.__all__)
    assert len(feature_assets.__all__) == len(set(feature_assets.__all__))
    assert dir(feature_assets) == sorted(feature_assets.__all__)


def test_every_error_is_public():
    tree = {
        name for name, thing in vars(errors).items() if inspect.isclass(thing) and thing.__module__ == errors.__name__
    }
    assert tree <= set(feature_assets.__all__)


def test_what_is_not_public_is_not_there():
    with pytest.raises(AttributeError, match="feature_assets has no public name 'feature_vew'"):
        feature_assets.feature_vew  # noqa: B018


def test_words_and_retrieval_load_nothing_heavy():
    assert in_a_fresh_interpreter("from feature_assets import Entity, Field, FeatureStore, OnlineResponse") == []


def test_a_lookup_loads_neither_dagster_nor_delta_nor_arrow(tmp_path):
    lookup = f"""
import sys
sys.path.insert(0, {str(PAGE.parent.parent)!r})
from feature_assets import FeatureStore, Settings, NotPublished
try:
    FeatureStore(Settings(root={str(tmp_path)!r})).get_online_features("model", [{{}}])
except NotPublished:
    pass
"""
    assert in_a_fresh_interpreter(lookup) == ["pydantic_settings"]
