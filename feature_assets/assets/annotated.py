"""Frames as the annotation of a parameter asks for them: Polars lazy or not, pandas, Arrow."""

from typing import Any

import polars as pl

# By name: whoever annotates with them has them loaded, and nobody else has to.
_OTHERS = {("pandas", "DataFrame"): "to_pandas", ("pyarrow", "Table"): "to_arrow"}


def is_frame(hint: Any) -> bool:
    """Whether the annotation is a kind of frame that rows can be handed over as."""
    return hint in (pl.DataFrame, pl.LazyFrame) or _other(hint) is not None


def as_annotated(value: Any, hint: Any) -> Any:
    """A Polars frame as the kind that is asked for; anything else, and without such an annotation, as it is."""
    if not isinstance(value, pl.DataFrame | pl.LazyFrame) or not is_frame(hint):
        return value
    if hint is pl.LazyFrame:
        return value.lazy()
    rows = value.lazy().collect(engine="streaming")
    conversion = _other(hint)
    return rows if conversion is None else getattr(rows, conversion)()


def _other(hint: Any) -> str | None:
    if not isinstance(hint, type):
        return None
    return _OTHERS.get((hint.__module__.partition(".")[0], hint.__name__))
