"""The shape of a column in one line of text: what a person looks at first, and any terminal or page can show."""

from collections.abc import Mapping
from typing import NamedTuple, cast

import polars as pl

from feature_assets.spec import ViewSpec

_BARS = "▁▂▃▄▅▆▇█"
_BINS = 16
_SAMPLE = 20_000


class Shape(NamedTuple):
    """A histogram of finite values in bars, between the least and the greatest of them; no bars for one value alone."""

    least: str = ""
    bars: str = ""
    greatest: str = ""


def shapes(view: ViewSpec, rows: pl.LazyFrame, total: int) -> Mapping[str, Shape]:
    """The shape of each numeric feature that is not personal, over some 20,000 of the `total` rows, evenly spread."""
    numeric = [one.name for one in view.features if one.type.polars.is_numeric() and not one.pii]
    if not numeric:
        return {}
    # Not the first ones: of a range they would all be of its first partitions.
    spread = rows.select(pl.col(numeric).cast(pl.Float64)).with_row_index("__row")
    sample = spread.filter(pl.col("__row") % max(1, total // _SAMPLE) == 0).collect(engine="streaming")
    return {name: _shape(sample[name]) for name in numeric}


def _shape(values: pl.Series) -> Shape:
    finite = values.drop_nulls().filter(values.drop_nulls().is_finite())
    if finite.is_empty():
        return Shape()
    low, high = cast(float, finite.min()), cast(float, finite.max())
    if low == high:
        return Shape(f"{low:g}", "", f"{high:g}")
    # By halves, for the span of the largest floats is infinite; the halves of the smallest are nothing.
    share = ((finite / 2 - low / 2) / (high / 2 - low / 2)).fill_nan(0.0)
    bins = (share * _BINS).floor().clip(0, _BINS - 1).cast(pl.Int64)
    counts = dict(bins.value_counts().iter_rows())
    most = max(counts.values())
    bars = "".join(_BARS[round(counts.get(place, 0) / most * (len(_BARS) - 1))] for place in range(_BINS))
    return Shape(f"{low:.4g}", bars, f"{high:.4g}")
