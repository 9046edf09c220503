"""`StreamFeatureView`: a feature view that also takes rows from a stream."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import dagster as dg
import msgspec
import polars as pl

from feature_assets.assets.feature_view import FeatureView, feature_view, passing_on
from feature_assets.assets.metadata import metadata_for, sources_from_metadata
from feature_assets.errors import DeclarationError
from feature_assets.expressions import check_row_wise, to_data
from feature_assets.intake import check_stream
from feature_assets.spec import Expressions, Function, Stream, StreamSource, ViewSpec
from feature_assets.transformations import declared_function

Transform: TypeAlias = Callable[[pl.LazyFrame], Any] | Mapping[str, pl.Expr]
"""What makes a view's rows from those of its source: a function of a frame, or an expression for each column."""


class StreamFeatureView(FeatureView):
    """A feature view with two sides: its asset function makes whole partitions, and a stream brings single rows meanwhile.

    Made by `@stream_feature_view` or `StreamFeatureView.from_source`. Rows of the stream go through the same checks and
    into the same stores as those of the function, into the partition that their event time belongs to; a materialisation
    of the partition replaces them.
    """

    @classmethod
    def from_source(  # type: ignore[override]
        cls, source: StreamSource, *, name: str | None = None, transform: Transform | None = None, **declaration: Any
    ) -> "StreamFeatureView":
        """A view whose both sides are made alike: the batch side of the rows of `source.batch_source`.

        The rest as in `stream_feature_view`.
        """
        place = f"View '{name or source.name}'"
        if source.batch_source is None:
            raise DeclarationError(
                f"{place}: from_source() makes the batch side of the rows of {type(source).__name__} '{source.name}' as they "
                "are kept. Say where: batch_source=FileSource(…); or write the function, with @stream_feature_view."
            )
        rows = passing_on(source.batch_source, _as_function(transform), name or source.name)
        declared = {"name": name or f"{source.name}_view", "sources": {"source": source.batch_source}, **declaration}
        return stream_feature_view(source=source, transform=transform, **declared)(rows)


def stream_feature_view(
    *, source: StreamSource, transform: Transform | None = None, deps: Sequence[Any] = (), **declaration: Any
) -> Callable[[Callable[..., Any]], StreamFeatureView]:
    """Declare a feature view that also takes rows from a stream.

    The decorated function is the batch side, as with `@feature_view`.

    Args:
        source: where the rows come from.
        transform: what makes the view's columns from the source's fields: an expression for each column that is not
            there already, or a function of a lazy frame, which a server loads from the modules that its settings name.
            Without it, rows come as the view has them.
        deps, **declaration: as of `feature_view`.

    Raises:
        DeclarationError: the declaration cannot be right; the message says how to mend it.
    """

    def declare(function: Callable[..., Any]) -> StreamFeatureView:
        if not isinstance(source, StreamSource):
            raise DeclarationError(
                f"@stream_feature_view takes source=PushSource(…), KafkaSource(…) or KinesisSource(…), not {source!r}."
            )
        if source.name == declaration.get("name", getattr(function, "__name__", "")):
            raise DeclarationError(
                f"View '{source.name}' takes the rows of a source of its own name, and both are nodes of one graph. "
                "Rename one of them."
            )
        view = feature_view(deps=[*deps, dg.AssetKey(source.name)], **declaration)(function)
        spec = msgspec.structs.replace(view.spec, stream=Stream(source.name, _as_data(view.spec, transform)))
        check_stream(spec, source)
        return _with_stream(view, spec, source)

    return declare


def _with_stream(view: FeatureView, spec: ViewSpec, source: StreamSource) -> StreamFeatureView:
    attributes = view.get_attributes_dict()
    sources = [*sources_from_metadata(view.metadata_by_key[view.key]), source]
    declared = [
        one.replace_attributes(metadata={**one.metadata, **metadata_for(spec, sources)}) for one in attributes["specs"]
    ]
    made = StreamFeatureView.dagster_internal_init(**{**attributes, "specs": declared})
    assert isinstance(made, StreamFeatureView)  # noqa: S101 (the class makes its own)
    return made


def _as_data(spec: ViewSpec, transform: Any) -> Expressions | Function | None:
    if transform is None:
        return None
    if not isinstance(transform, Mapping):
        return declared_function(transform)
    stored = {}
    for name, expression in transform.items():
        place = f"View '{spec.name}', transform of '{name}'"
        if not isinstance(expression, pl.Expr):
            raise DeclarationError(f"{place}: {expression!r} is not a Polars expression.")
        check_row_wise(expression, place)
        stored[name] = to_data(expression, place)
    return Expressions(stored)


def _as_function(transform: Any) -> Callable[[pl.LazyFrame], Any] | None:
    if not isinstance(transform, Mapping):
        return transform  # type: ignore[no-any-return]
    expressions = dict(transform)
    return lambda rows: rows.with_columns(**expressions)
