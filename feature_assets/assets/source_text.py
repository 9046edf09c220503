"""The source of an asset function, by which a change of its code is known."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

_blocks: dict[str, tuple[list[str], Mapping[int, int]]] = {}
"""Of each file its lines, and where the function that begins at a line ends."""


def source_of(function: Callable[..., Any]) -> str:
    """The text of the function with its decorators; empty where there is none, as for what was typed into a prompt."""
    function = inspect.unwrap(function)
    try:
        lines, first = inspect.findsource(function)
    except (OSError, TypeError):
        return ""
    end = _ends(inspect.getsourcefile(function) or "", lines).get(first + 1)
    return textwrap.dedent("".join(lines[first:end] if end else inspect.getblock(lines[first:])))


def _ends(file: str, lines: list[str]) -> Mapping[int, int]:
    # `inspect` reads a function token by token, which takes longer than all else in declaring a view; a file is parsed once.
    known = _blocks.get(file)
    if known is None or known[0] is not lines:
        known = _blocks[file] = (lines, _parsed(lines))
    return known[1]


def _parsed(lines: list[str]) -> dict[int, int]:
    try:
        tree = ast.parse("".join(lines))
    except SyntaxError:
        # A cell of a notebook may hold more than Python.
        return {}
    functions = _functions(tree.body)
    return {min([one.lineno, *(each.lineno for each in one.decorator_list)]): one.end_lineno or 0 for one in functions}


def _functions(statements: Iterable[ast.AST]) -> Iterator[ast.FunctionDef]:
    """Those of the statements and within them; expressions, of which a module has most, hold none."""
    for one in statements:
        if isinstance(one, ast.FunctionDef):
            yield one
        for inner in ("body", "orelse", "finalbody", "handlers", "cases"):
            blocks = getattr(one, inner, ())
            yield from _functions(blocks if isinstance(blocks, list) else ())
