"""The asset function: what a person wrote, wrapped into what Dagster runs."""

import inspect
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from feature_assets.assets.annotated import as_annotated, is_frame
from feature_assets.errors import DeclarationError

CONTEXT_NAMES = frozenset({"context", "_context", "context_", "_"})


@dataclass(frozen=True, slots=True)
class AssetFunction:
    """A person's function with its parameters told apart.

    `frames` maps each parameter that is an upstream asset or source to the kind of frame that it is annotated with,
    None for anything else. `others` are resources and config.
    """

    call: Callable[..., Any]
    wants_context: bool
    frames: Mapping[str, type | None]
    others: Mapping[str, inspect.Parameter]

    @classmethod
    def of(cls, function: Callable[..., Any], place: str) -> "AssetFunction":
        """The function of a view.

        Raises:
            DeclarationError: it is none that returns rows, or its parameters cannot be told apart.
        """
        _require_returns_rows(function, place)
        try:
            # Resolved in the person's own module, so that `from __future__ import annotations` does no harm there.
            hints = typing.get_type_hints(function, include_extras=True)
        except (NameError, TypeError, AttributeError) as error:
            raise DeclarationError(
                f"{place}: an annotation of its function cannot be resolved: {error}. Import what it names where the "
                "function is defined, also while the program runs."
            ) from error
        parameters = list(inspect.signature(function).parameters.values())
        if various := [one for one in parameters if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]:
            raise DeclarationError(
                f"{place}: its function takes *{various[0].name}. Name each upstream asset and resource as a parameter."
            )
        wants_context = bool(parameters) and parameters[0].name in CONTEXT_NAMES
        frames: dict[str, type | None] = {}
        others: dict[str, inspect.Parameter] = {}
        for one in parameters[1:] if wants_context else parameters:
            hint = hints.get(one.name, one.annotation)
            if _is_resource_or_config(one.name, hint):
                others[one.name] = one.replace(annotation=hint)
            else:
                frames[one.name] = hint if is_frame(hint) else None
        return cls(function, wants_context, frames, others)

    def __call__(self, context: dg.AssetExecutionContext, given: Mapping[str, Any]) -> Any:
        """What the person's function returns for these inputs, resources and config."""
        arguments = {name: as_annotated(value, self.frames.get(name)) for name, value in given.items()}
        return self.call(context, **arguments) if self.wants_context else self.call(**arguments)

    def wrapping(
        self, compute: Callable[..., Iterator[Any]], name: str, *, apart_from: Collection[str]
    ) -> Callable[..., Iterator[Any]]:
        """`compute(context, **inputs)` with the parameters that Dagster has to see, those `apart_from` left out.

        Every parameter is positional-or-keyword: Dagster takes a keyword-only one for no dependency at all. There is
        no return annotation: it would become the type of the asset's output.
        """
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter("context", kind, annotation=dg.AssetExecutionContext)]
        parameters += [inspect.Parameter(one, kind, annotation=Any) for one in self.frames if one not in apart_from]
        parameters += [one.replace(kind=kind, default=inspect.Parameter.empty) for one in self.others.values()]
        compute.__name__ = compute.__qualname__ = name
        compute.__doc__ = self.call.__doc__
        compute.__module__ = self.call.__module__
        compute.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return compute


def _require_returns_rows(function: Any, place: str) -> None:
    if not callable(function) or inspect.isclass(function):
        raise DeclarationError(f"{place}: {function!r} is not a function that returns rows.")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise DeclarationError(f"{place}: its function is async, and nothing awaits it. Define it with def.")
    if inspect.isgeneratorfunction(function):
        raise DeclarationError(f"{place}: its function yields. Return one frame with the rows of all partitions.")


def _is_resource_or_config(name: str, hint: Any) -> bool:
    # `ResourceParam[T]` is an Annotated with Dagster's marker.
    if any(value == "resource_param" for value in getattr(hint, "__metadata__", ())):
        return True
    return isinstance(hint, type) and (
        issubclass(hint, dg.ConfigurableResource | dg.ConfigurableIOManager)
        or (name == "config" and issubclass(hint, dg.Config))
    )
