"""The shape of a column in one line of text: what a person looks at first, and any terminal or page can show."""

from collections.abc import Mapping
from typing import cast

import polars as pl

from feature_assets.spec import ViewSpec

_BARS = "▁▂▃▄▅▆▇█"
_BINS = 16
_SAMPLE = 20_000


def shapes(view: ViewSpec, rows: pl.LazyFrame) -> Mapping[str, str]:
    """For each numeric feature a histogram of its finite values over the first 20,000 rows: "-3.2 ▁▂▅█▃▁ 41"."""
    numeric = [one.name for one in view.features if one.type.polars.is_numeric() and not one.pii]
    if not numeric:
        return {}
    sample = rows.select(pl.col(numeric).cast(pl.Float64)).head(_SAMPLE).collect(engine="streaming")
    return {name: _shape(sample[name]) for name in numeric}


def _shape(values: pl.Series) -> str:
    finite = values.drop_nulls().filter(values.drop_nulls().is_finite())
    if finite.is_empty():
        return ""
    low, high = cast(float, finite.min()), cast(float, finite.max())
    if low == high:
        return f"{low:g}"
    # By halves, for the span of the largest floats is infinite; the halves of the smallest are nothing.
    share = ((finite / 2 - low / 2) / (high / 2 - low / 2)).fill_nan(0.0)
    bins = (share * _BINS).floor().clip(0, _BINS - 1).cast(pl.Int64)
    counts = dict(bins.value_counts().iter_rows())
    most = max(counts.values())
    bars = "".join(_BARS[round(counts.get(place, 0) / most * (len(_BARS) - 1))] for place in range(_BINS))
    return f"{low:.4g} {bars} {high:.4g}"
