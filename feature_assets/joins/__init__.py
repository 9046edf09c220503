"""The point-in-time join: its rules, what an engine is asked, and the choice of one by name.

For a spine row at time t, among the rows of a view's history whose typed join keys are equal to the row's, those count
whose event lies in `t - ttl ≤ event ≤ t` (both ends included) and, where the view has a created timestamp and the
cutoff is on, that were known by then: `created ≤ t`, a row without one being known from its event on. The latest by
(event, created with none first, publication) is the answer: one or none, never several. Null equals nothing. A spine
row without an answer stays, with nulls or the declared defaults.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Final, Protocol, cast

import polars as pl

from feature_assets.errors import RequestError

TIME: Final = "__time"
"""The column of the moments with each spine row's time (µs, UTC); null where it has none."""

FOUND: Final = "__found"
"""The column of looked-up values that says whether the spine row has an answer."""


@dataclass(frozen=True, slots=True)
class History:
    """One view's rows to look up in; reading them again gives the same rows in the same order.

    `keys` are pairs of a join key and the column of the moments with the values to look up; none for a view without
    entities. `created` orders rows with one event time; with `cutoff` a row counts only once it was created. `count`
    is at most about how many rows there are.
    """

    rows: pl.LazyFrame
    keys: tuple[tuple[str, str], ...]
    event: str
    created: str | None
    cutoff: bool
    ttl: timedelta | None
    features: tuple[str, ...]
    count: int


class Lookup(Protocol):
    """The answers of one history to all moments."""

    def values(self, offset: int, length: int) -> pl.DataFrame:
        """The features for so many moments from `offset` on, in their order, and `FOUND`."""


class Engine(Protocol):
    """Joins histories to the moments of one spine."""

    def lookup(self, history: History) -> Lookup:
        """Find the answer to every moment."""


ROWS_HELD: Final = 20_000_000
"""How many rows of keys and times of a history are held and sorted at once where nobody says (about 1 GB)."""

HELD_BYTES: Final = 64
"""About how much memory one such row takes."""

Open = Callable[[pl.DataFrame, int], Engine]

Run = Callable[[Callable[[str], str], Sequence[str]], Iterator[str]]
"""Runs a function of a module on every task, wherever there is room, and gives what it returned in any order."""

_POLARS: Final = "feature_assets.joins.polars"

ENGINES: Final[Mapping[str, str]] = {"polars": _POLARS, "daft": _POLARS, "daft-ray": _POLARS}
"""Where the join of each engine is. Those of Daft spread the parts of a spine, and join each as `polars` does."""

_RUNNERS: Final[Mapping[str, str]] = {"daft": "feature_assets.joins.daft", "daft-ray": "feature_assets.joins.daft"}


def check_engine(name: str) -> None:
    """See that there is an engine of that name; what it needs may be installed elsewhere.

    Raises:
        RequestError: there is no such engine.
    """
    if name not in ENGINES:
        raise RequestError(f"There is no join engine '{name}'. Known: {', '.join(ENGINES)}.")


def engine_named(name: str) -> Open:
    """What opens the engine of that name on moments, and on how many rows of a history it may hold at once.

    The moments are one row per spine row, with `TIME` and the typed join keys.

    Raises:
        RequestError: there is no such engine.
    """
    check_engine(name)
    return cast("Open", import_module(ENGINES[name]).open_engine)


def run_by(name: str, address: str | None) -> Run | None:
    """What spreads parts of a spine with the engine of that name; None for one that joins in this process.

    Raises:
        ConfigurationError: what it needs is not installed, or does not answer.
    """
    if name not in _RUNNERS:
        return None
    return cast("Run", import_module(_RUNNERS[name]).runner(name, address))
