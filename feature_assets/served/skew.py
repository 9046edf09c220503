"""What was served against what the offline store says now of the same keys at the same times."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import polars as pl

from feature_assets.historical import historical_features
from feature_assets.lookup import MASKED
from feature_assets.offline import OfflineStore
from feature_assets.registry import Registry
from feature_assets.served.reading import served_rows
from feature_assets.served.shape import REQUEST_ID, SERVED_AT, LogShape

_EXAMPLES: Final = 3
_SERVED, _OFFLINE = "__served", "__offline"


@dataclass(frozen=True, slots=True)
class FeatureSkew:
    """One feature: rows by how the two values compare. `missing`: one of them is null and the other is not.

    `largest` is the greatest difference of numbers, and of times in seconds; None for what has none.
    """

    feature: str
    rows: int
    equal: int
    different: int
    missing: int
    largest: float | None
    examples: Sequence[Mapping[str, Any]]

    @property
    def share(self) -> float:
        """Of the rows that are not equal."""
        return (self.different + self.missing) / self.rows if self.rows else 0.0


def beyond(found: Sequence[FeatureSkew], tolerance: float) -> list[FeatureSkew]:
    """The features of which a larger share of rows differs than that."""
    return [one for one in found if one.share > tolerance]


def skew_of(
    registry: Registry,
    shape: LogShape,
    offline: OfflineStore,
    history: OfflineStore,
    *,
    since: datetime | str | None = None,
    until: datetime | str | None = None,
    allowed_modules: Sequence[str] = (),
) -> list[FeatureSkew]:
    """Each logged feature of a service.

    Not compared are values that were masked, or served when the feature, or a key, was of another type.

    Args:
        registry, shape: what the service is now.
        offline: where its log is.
        history: where the views are.
        since, until: the time in which it was served: from the one on, before the other.
        allowed_modules: modules that on-demand functions may be loaded from.

    Raises:
        TableMissing: nothing was logged, or a view was never materialised.
    """
    served = served_rows(shape, offline, since=since, until=until, statuses=True, comparable=True).collect()
    spine = served.select(*shape.keys, *shape.request, SERVED_AT)
    full = any(output.name == output.column for output in shape.plan.outputs)
    now = historical_features(
        registry,
        history,
        spine,
        shape.table.name,
        full_feature_names=full,
        timestamp_column=SERVED_AT,
        allowed_modules=allowed_modules,
    ).collect()
    return [_compared(shape, name, served, now.get_column(name)) for name in shape.outputs]


def _compared(shape: LogShape, name: str, served: pl.DataFrame, now: pl.Series) -> FeatureSkew:
    both = served.select(
        REQUEST_ID,
        SERVED_AT,
        *shape.keys,
        pl.col(name).alias(_SERVED),
        now.alias(_OFFLINE),
        (pl.col(f"{name}__status") == MASKED).fill_null(value=True).alias("__out"),
    ).filter(~pl.col("__out"))
    one, other = pl.col(_SERVED), pl.col(_OFFLINE)
    kinds = both.with_columns(equal=one.eq_missing(other), missing=one.is_null() != other.is_null()).with_columns(
        different=~pl.col("equal") & ~pl.col("missing")
    )
    counts = {kind: int(kinds.get_column(kind).sum()) for kind in ("equal", "missing", "different")}
    wrong = kinds.filter(~pl.col("equal"))
    shown = wrong.head(_EXAMPLES).select(
        REQUEST_ID, SERVED_AT, *shape.keys, one.alias("served"), other.alias("offline")
    )
    return FeatureSkew(name, both.height, **counts, largest=_largest(wrong), examples=shown.to_dicts())


def _largest(wrong: pl.DataFrame) -> float | None:
    dtype = wrong.schema[_SERVED]
    gap = pl.col(_SERVED) - pl.col(_OFFLINE)
    if dtype.is_numeric():
        found = wrong.select(gap.cast(pl.Float64).abs().max()).item()
    elif isinstance(dtype, pl.Datetime):
        found = wrong.select(gap.dt.total_microseconds().abs().max() / 1e6).item()
    else:
        return None
    return None if found is None else float(found)
