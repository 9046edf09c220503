"""The parameters of an asset function: upstream assets, which Dagster hands over, and sources, which the view reads itself.

Dagster would want an asset behind every input that it hands over. Of what a view only depends on it makes a node of its
own, so that a view of a source can be put into any `Definitions`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import dagster as dg
import polars as pl

from feature_assets.assets.function import AssetFunction
from feature_assets.assets.resources import LOOKBACK, FeatureAssets
from feature_assets.declared import taken
from feature_assets.errors import DeclarationError
from feature_assets.sources import Window
from feature_assets.spec import LONGEST, BatchSource, TimePartitions, ViewSpec


@dataclass(frozen=True, slots=True)
class Outside:
    """What a view reads from outside the asset graph, by parameter, and how far before the window."""

    sources: Mapping[str, BatchSource]
    reaches: Mapping[str, timedelta]

    def read(self, stores: FeatureAssets, window: Window | None) -> dict[str, pl.LazyFrame]:
        return {
            name: stores.read(source, window, lookback=self.reaches.get(name, timedelta(0)))
            for name, source in self.sources.items()
        }


def check_parameters(
    spec: ViewSpec,
    key: dg.AssetKey,
    function: AssetFunction,
    sources: Mapping[str, BatchSource],
    back: Mapping[str, timedelta],
    given: Mapping[str, Any],
) -> None:
    """See that what is said of parameters is said of parameters that there are, and once.

    Raises:
        DeclarationError: it is not, or a source has the name of the view.
    """
    place = f"View '{spec.name}'"
    for name in (*sources, *back, *given):
        if name not in function.frames:
            raise DeclarationError(
                f"{place}: the function has no parameter '{name}' to take it "
                f"(it has: {', '.join(function.frames) or 'none'})."
            )
    if both := [name for name in given if name in sources]:
        raise DeclarationError(
            f"{place}: '{both[0]}' is among sources= and among ins=. It is read from one of them: leave the other out."
        )
    for source in sources.values():
        if dg.AssetKey(source.name) == key:
            raise DeclarationError(
                f"{place} reads a source of its own name, and both are nodes of one graph. Rename one of them."
            )


def upstream(
    function: AssetFunction,
    sources: Mapping[str, BatchSource],
    back: Mapping[str, timedelta],
    given: Mapping[str, Any],
) -> dict[str, dg.AssetIn]:
    """What Dagster and the IO manager have to know of each upstream asset beyond its name."""
    inputs: dict[str, dg.AssetIn] = {}
    for name in function.frames:
        if name in sources:
            continue
        one = given.get(name, dg.AssetIn())
        one = one if isinstance(one, dg.AssetIn) else dg.AssetIn(key=one)
        metadata = dict(one.metadata or {})
        if reach := back.get(name):
            metadata[LOOKBACK] = reach.total_seconds()
        inputs[name] = one._replace(metadata=metadata)
    return inputs


def sources_beside(given: Any, sources: Mapping[str, BatchSource]) -> list[Any]:
    """What the view depends on without taking it from Dagster; of a source that nobody declares Dagster makes a node."""
    named = {dg.AssetDep.from_coercible(one).asset_key for one in given}
    keys = dict.fromkeys(dg.AssetKey(source.name) for source in sources.values())
    return [*given, *(key for key in keys if key not in named)]


def reaches(
    spec: ViewSpec, function: AssetFunction, lookback: timedelta | Mapping[str, timedelta] | None
) -> dict[str, timedelta]:
    """How far before the window each parameter reaches.

    Raises:
        DeclarationError: there is no window, nothing that could reach, or it reaches ahead.
    """
    place = f"View '{spec.name}'"
    given: Any = taken(place, "lookback", lookback or {}, timedelta | dict[str, timedelta])
    reaches = given if isinstance(given, dict) else dict.fromkeys(function.frames, given)
    if lookback and not reaches:
        raise DeclarationError(
            f"{place}: the function takes no rows that lookback= could reach back for. Leave it out."
        )
    if lookback and not any(isinstance(one, TimePartitions) for one in spec.partitions.values()):
        raise DeclarationError(
            f"{place} is not divided by time and reads all there is; lookback= reaches back from a window. Leave it out."
        )
    for name, reach in reaches.items():
        if not timedelta(0) <= reach <= LONGEST:
            raise DeclarationError(
                f"{place}: lookback of '{name}' is {reach}. It reaches back, not ahead: give 0 to {LONGEST.days:,} days."
            )
    return reaches
