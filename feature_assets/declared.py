"""What a person writes into a declaration is compared with what it takes, and refused in words that mend."""

import inspect
import os
import re
import typing
from collections.abc import Iterable, Mapping
from datetime import timedelta
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Any, Literal, NamedTuple, NoReturn

import msgspec

from feature_assets.errors import DeclarationError
from feature_assets.types import FeatureType


class Declared(msgspec.StructMeta):
    """The class of every declaration's class: it checks the arguments before there is a declaration.

    What is read from JSON does not come by here: its decoder has checked it.
    """

    def __call__(cls, *given: Any, **named: Any) -> Any:  # noqa: N805 (an instance of it is a class)
        expected = _expected(cls)
        if len(given) > len(expected.positional):
            raise DeclarationError(
                f"{_place(cls, given, named)}: {len(given)} arguments came without a name, and "
                f"{len(expected.positional)} may. Name them: {', '.join(expected.types)}."
            )
        arguments = dict(zip(expected.positional, given, strict=False))
        for name in named:
            if name not in expected.types:
                refuse_unknown(_place(cls, given, named), name, expected.types)
            if name in arguments:
                raise DeclarationError(f"{_place(cls, given, named)}: {name}= came twice. Give it once.")
        arguments |= named
        if missing := [name for name in expected.required if name not in arguments]:
            called = [expected.called.get(name, name) for name in missing]
            raise DeclarationError(
                f"{_place(cls, given, named)} has no {' and no '.join(called)}. Give {', '.join(f'{one}=…' for one in called)}."
            )
        for name, value in arguments.items():
            of = expected.types[name]
            if type(value) is not of and name not in expected.own_words:
                arguments[name] = taken(_place(cls, given, named), expected.called.get(name, name), value, of)
        return super().__call__(**arguments)


class _Expected(NamedTuple):
    """What a class of declarations takes: by name, in order, at least; and what authors call a field of it.

    Fields in `own_words` are left to `__post_init__`, which knows better what to say of them.
    """

    types: Mapping[str, Any]
    positional: tuple[str, ...]
    required: tuple[str, ...]
    called: Mapping[str, str]
    own_words: frozenset[str]


@cache
def _expected(cls: type[msgspec.Struct]) -> _Expected:
    fields = msgspec.structs.fields(cls)
    parameters = inspect.signature(cls).parameters.values()
    return _Expected(
        types={field.name: field.type for field in fields},
        positional=tuple(one.name for one in parameters if one.kind is not one.KEYWORD_ONLY),
        required=tuple(field.name for field in fields if field.required),
        called=getattr(cls, "CALLED", {}),
        own_words=getattr(cls, "OWN_WORDS", frozenset()),
    )


def refuse_unknown(place: str, name: str, known: Iterable[str]) -> NoReturn:
    """Raises what says that there is no such argument, and which one may have been meant."""
    known = list(known)
    near = get_close_matches(name, known, n=1)
    mend = f"Did you mean '{near[0]}'?" if near else f"It takes: {', '.join(known)}."
    raise DeclarationError(f"{place} takes no argument '{name}'. {mend}")


def taken(place: str, name: str, value: Any, of: Any) -> Any:
    """The value as the type wants it: a list becomes a tuple, any mapping a dict.

    Raises:
        DeclarationError: it is of another type; nothing is converted that could have been meant otherwise.
    """
    if _wants(of, dict) and isinstance(value, Mapping):
        value = dict(value)
    elif _wants(of, tuple) and isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        value = tuple(value)
    elif of is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    try:
        return msgspec.convert(value, of, dec_hook=_as_it_is)
    except (msgspec.ValidationError, TypeError) as error:
        raise DeclarationError(
            f"{place}: {name}= takes {_words(of)}, not {_short(value)}.{_mend(name, value, of)}"
        ) from error


@cache
def _wants(of: Any, collection: type) -> bool:
    return any(typing.get_origin(one) is collection for one in (of, *typing.get_args(of)))


def _as_it_is(_: type, value: Any) -> Any:
    return value


def _place(cls: type, given: tuple[Any, ...], named: Mapping[str, Any]) -> str:
    kind = getattr(cls, "KIND", "") or cls.__name__
    name = named.get("name", given[0] if given else None)
    return f"{kind} '{name}'" if isinstance(name, str) and name else kind


def _short(value: object) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else text[:77] + "…"


_WORDS: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    timedelta: "a timedelta",
    FeatureType: "a feature type",
    type(None): "None",
}


def _words(of: Any) -> str:
    """What a type is called in a message."""
    origin, parts = typing.get_origin(of), typing.get_args(of)
    if origin is tuple:
        return f"a list of {_words(parts[0])}"
    if origin is dict:
        return f"a dict from {_words(parts[0])} to {_words(parts[1])}"
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in (typing.Union, UnionType):
        return " or ".join(_words(one) for one in parts)
    return _WORDS.get(of) or re.sub(r"Spec$", "", getattr(of, "__name__", str(of)))


def _mend(name: str, value: Any, of: Any) -> str:
    parts = (of, *typing.get_args(of))
    if _wants(of, tuple) and not isinstance(value, tuple | Mapping):
        return f" Put it into a list: {name}=[…]."
    if timedelta in parts and isinstance(value, int | float):
        return f" Write {name}=timedelta(seconds={value})."
    if FeatureType in parts:
        return " Import one, as in: from feature_assets import Float64, Int64, String."
    return ""
