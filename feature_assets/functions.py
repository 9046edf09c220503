"""On-demand functions by import path: named when they are declared, found and verified where they are to run.

The registry holds no code. It holds a path, and the digest of the source that stood there when the view was declared.
"""

import inspect
import linecache
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from feature_assets.errors import DeclarationError, TransformationRefused
from feature_assets.spec import Function


def import_path(function: Callable[..., Any]) -> str:
    """The "package.module:function" that another process finds the function by.

    Raises:
        DeclarationError: it is no plain function at the top of an importable module.
    """
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType):
        raise DeclarationError(f"{function!r} is not a plain function. Write one with def at the top of a module.")
    name = function.__qualname__
    if function.__name__ == "<lambda>":
        why = "is a lambda, which has no name to import it by. Give it one with def"
    elif "." in name:
        why = f"is defined inside {name.rpartition('.')[0].removesuffix('.<locals>')}. Move it to the top of its module"
    elif function.__module__ == "__main__":
        why = "stands in a script or notebook, which a server cannot import. Move it into a module"
    else:
        return f"{function.__module__}:{name}"
    raise DeclarationError(f"Function '{name}' {why}, or write the features as Polars expressions.")


def function_digest(function: Callable[..., Any]) -> str:
    """SHA-256 of the function's own source; what it calls is not part of it.

    Raises:
        DeclarationError: there is no source to read.
    """
    function = inspect.unwrap(function)
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError) as error:
        raise DeclarationError(f"The source of {function!r} cannot be read: {error}. Define it in a file.") from error
    return sha256(textwrap.dedent(source).encode()).hexdigest()


def make_importable(root: Path) -> None:
    """Let this process import what lies in the project's folder, as Dagster does with a working directory."""
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))


def load_function(how: Function, allowed_modules: Sequence[str], place: str) -> Callable[..., Any]:
    """The function that a view names.

    Args:
        how: its path and the digest of its source.
        allowed_modules: modules, or packages with all that is in them. Nothing else is imported.
        place: what the function belongs to, for the message.

    Raises:
        TransformationRefused: its module is not allowed or cannot be imported, or the function is another one here.
    """
    module, _, name = how.path.partition(":")
    if not any(module == allowed or module.startswith(f"{allowed}.") for allowed in allowed_modules):
        raise TransformationRefused(
            f"{place} is computed by {how.path}, and functions may be loaded from "
            f"{', '.join(allowed_modules) or 'no module'} here. If it may run here, add "
            f'"{module}" to functions in feature_assets.toml.'
        )
    try:
        found: Any = getattr(import_module(module), name, None)
    # Whatever a module does while it is imported, it is this view that cannot be computed.
    except Exception as error:
        raise TransformationRefused(
            f"{place} is computed by {how.path}, which cannot be imported here: {type(error).__name__}: {error}. "
            "Install the package that has it."
        ) from error
    # Decorated, the name stands for the view; the function is what it wraps.
    function = inspect.unwrap(found)
    if not isinstance(function, FunctionType):
        raise TransformationRefused(f"{place} is computed by {how.path}, and {module} has no function '{name}' here.")
    _verify(function, how, place)
    return function


def _verify(function: FunctionType, how: Function, place: str) -> None:
    try:
        digest = function_digest(function)
    except DeclarationError as error:
        raise TransformationRefused(f"{place}: {error}") from error
    if digest != how.digest:
        raise TransformationRefused(
            f"{place}: {how.path} here is not the one that was registered (source {digest[:12]}…, registered "
            f"{how.digest[:12]}…). Deploy the same version here, or publish the registry again: feature-assets apply"
        )
    if not _is_what_runs(function):
        raise TransformationRefused(
            f"{place}: the file of {how.path} has changed since this process loaded it, and the old code would run under "
            "the new digest. Restart the process."
        )


def _is_what_runs(function: FunctionType) -> bool:
    """Whether the source on disk, which the digest is of, is what this process has loaded."""
    file = inspect.getsourcefile(function)
    source = "".join(linecache.getlines(file, function.__globals__)) if file else ""
    try:
        codes = _codes(compile(source, file or "", "exec", dont_inherit=True))
    except (SyntaxError, ValueError):
        return False
    return any(code == function.__code__ for code in codes)


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)
