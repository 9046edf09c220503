"""JSON that others have written: how deep its values may be, and why it cannot be read."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import orjson

DEEPEST: Final = 32
"""Values are walked by functions that call themselves: how deep lists and objects may be is settled before."""


def is_deep(values: Iterable[Any]) -> bool:
    """Whether one of these values is nested deeper than `DEEPEST`."""
    level: Sequence[Any] = list(values)
    for _ in range(DEEPEST):
        level = [
            item
            for value in level
            if value.__class__ is list or value.__class__ is dict
            for item in (value.values() if value.__class__ is dict else value)
        ]
        if not level:
            return False
    return True


def why_unreadable(data: bytes, error: Exception) -> str:
    """In words why it is no JSON, of which a decoder has raised this error."""
    try:
        # It says where, and what about half a surrogate pair.
        orjson.loads(data)
    except orjson.JSONDecodeError as found:
        return str(found)
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
