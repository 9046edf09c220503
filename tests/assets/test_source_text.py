"""The text by which a change of code is known is that of the function, as Python's own `inspect` has it."""

import functools
import importlib.util
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from feature_assets.assets.source_text import source_of

MODULE = '''
import functools

def plain():
    """Rows."""
    return 1


@functools.cache
@functools.lru_cache(
    maxsize=2,
)
def decorated(a: int = 1,
              b: int = 2):
    def inner():
        return (a,
                b)
    return inner


def one_line(): return [1, 2]


if True:
    try:
        class Views:
            def method(self):
                text = """
                    of several lines
                """
                return text
    finally:
        def at_last(): return {
            "a": 1,
        }

shorter = lambda rows: rows
'''


@pytest.fixture
def module(tmp_path: Path) -> ModuleType:
    return loaded(tmp_path / "views.py", MODULE)


def loaded(path: Path, text: str) -> ModuleType:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize("name", ["plain", "decorated", "one_line", "Views.method", "at_last", "shorter"])
def test_it_is_what_inspect_says(name: str, module: ModuleType) -> None:
    function: Callable[..., Any] = functools.reduce(getattr, name.split("."), module)  # type: ignore[assignment]
    text = source_of(function)
    assert text == textwrap.dedent(inspect.getsource(function))
    assert text.startswith(("def ", "@", "shorter ="))


def test_what_has_no_source_has_none() -> None:
    assert source_of(len) == ""


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    """The functions of a module that is loaded again begin and end elsewhere."""
    before = loaded(tmp_path / "views.py", "def rows():\n    return 1\n")
    assert source_of(before.rows) == "def rows():\n    return 1\n"
    after = loaded(tmp_path / "views.py", "import os\n\n\ndef rows():\n    os.getpid()\n    return 22\n")
    assert source_of(after.rows) == "def rows():\n    os.getpid()\n    return 22\n"
