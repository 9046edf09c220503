"""What a declaration passes on to Dagster, and how Dagster's refusals read."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import dagster as dg
from dagster_shared.check import CheckError

from feature_assets.declared import refuse_unknown
from feature_assets.errors import DeclarationError

# Dagster's own decorator still takes it, beside what its signature says.
_UNLISTED = {"compute_kind", "key_prefix"}


def refuse_unknown_parameters(place: str, given: Iterable[str], *takers: Callable[..., Any]) -> None:
    """Refuse what none of the takers has a parameter for.

    Raises:
        DeclarationError: naming the nearest parameter.
    """
    known = _UNLISTED.union(*map(_parameters, takers))
    for name in given:
        if name not in known:
            refuse_unknown(place, name, sorted(known - {"self", "kwargs", "asset", "compute_fn"}))


@cache
def _parameters(taker: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(taker).parameters)


@contextmanager
def declaring(place: str) -> Iterator[None]:
    """What Dagster refuses in here is a declaration that cannot be right."""
    try:
        yield
    except (dg.DagsterError, CheckError) as error:
        raise DeclarationError(f"{place}: {error}") from error
