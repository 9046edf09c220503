"""The answer of an online lookup: values by column, and for each value whether and why it is there."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from itertools import repeat
from typing import Any, Final, Literal, TypeAlias

import polars as pl

from feature_assets.errors import UnknownFeature
from feature_assets.types import FeatureType, moment

Status: TypeAlias = Literal["PRESENT", "NOT_FOUND", "NULL_VALUE", "OUTSIDE_MAX_AGE", "MASKED"]
"""What became of a value.

    PRESENT            there it is
    NOT_FOUND          the view has no row of that key: the declared default, else null
    NULL_VALUE         the row is there and the value in it is null
    OUTSIDE_MAX_AGE    the row is older than the view's ttl: withheld, as if it were not found
    MASKED             the caller may not see it: null
"""

PRESENT: Final = "PRESENT"
NOT_FOUND: Final = "NOT_FOUND"
NULL_VALUE: Final = "NULL_VALUE"
OUTSIDE_MAX_AGE: Final = "OUTSIDE_MAX_AGE"
MASKED: Final = "MASKED"


class Rows:
    """What one view had for the keys: event times in microseconds (None: no row), and the rows that are too old."""

    __slots__ = ("events", "expired")

    def __init__(self, events: list[int | None], expired: frozenset[int]) -> None:
        self.events, self.expired = events, expired

    def statuses(self, values: Sequence[Any]) -> list[Status]:
        """The status of each value of one feature of the view."""
        found = _statuses(values)
        if None in self.events:
            found = [one if event is not None else NOT_FOUND for one, event in zip(found, self.events, strict=True)]
        for position in self.expired:
            found[position] = OUTSIDE_MAX_AGE
        return found


def _statuses(values: Sequence[Any]) -> list[Status]:
    # `None in values` would compare, and a value may compare as it likes; by type it is asked in C.
    if type(None) in set(map(type, values)):
        return [PRESENT if value is not None else NULL_VALUE for value in values]
    return [PRESENT] * len(values)


def statuses_of(values: Sequence[Any], rows: Rows | None) -> list[Status]:
    """The status of each value of a column; `rows` is None for join keys and what is computed on demand."""
    return _statuses(values) if rows is None else rows.statuses(values)


class OnlineResponse:
    """Values, statuses and event timestamps, in the rows' order: join keys first, then the features as asked for.

    `values` holds a column for each of `names`, of canonical Python values; `types` the type of each name.
    """

    __slots__ = ("_masked", "_rows", "names", "types", "values")

    def __init__(
        self,
        types: Mapping[str, FeatureType],
        values: Sequence[Sequence[Any]],
        rows: Sequence[Rows | None],
        masked: frozenset[str] = frozenset(),
    ) -> None:
        self.types, self.values, self._rows, self._masked = types, values, rows, masked
        self.names: tuple[str, ...] = tuple(types)

    def __len__(self) -> int:
        return len(self.values[0])

    def __getitem__(self, name: str) -> list[Any]:
        """The values of one column.

        Raises:
            UnknownFeature: the response has no such column.
        """
        return list(self.values[self._position(name)])

    def to_dict(self) -> dict[str, list[Any]]:
        """All values by column."""
        return {name: list(values) for name, values in zip(self.names, self.values, strict=True)}

    def rows(self) -> list[dict[str, Any]]:
        """All values by row."""
        return [dict(zip(self.names, row, strict=True)) for row in zip(*self.values, strict=True)]

    def to_polars(self) -> pl.DataFrame:
        """All values as a frame, each column with the dtype of its type."""
        columns = zip(self.types.items(), self.values, strict=True)
        return pl.DataFrame([of.to_frame(name, list(values)) for (name, of), values in columns])

    def status(self, name: str) -> list[Status]:
        """The status of each value of a column. Join keys are PRESENT; features computed on demand have no row of
        their own and are PRESENT or NULL_VALUE.
        """
        return self._status(self._position(name))

    def statuses(self) -> list[list[Status]]:
        """The statuses of all columns, in the order of `names`."""
        return list(map(self._status, range(len(self.names))))

    def event_timestamps(self, name: str) -> list[datetime | None]:
        """When each value became true (UTC). None where there is no row; for join keys and what is computed on demand."""
        return [None if event is None else moment(event) for event in self.event_micros(name)]

    def event_micros(self, name: str) -> list[int | None]:
        """`event_timestamps` as microseconds since 1970."""
        rows = self._rows[self._position(name)]
        return [None] * len(self) if rows is None else rows.events

    @property
    def found(self) -> Sequence[Rows | None]:
        """For each of `names` what its view had; features of one view share one. None for what has no view."""
        return self._rows

    @property
    def hidden(self) -> frozenset[str]:
        """The columns whose values are withheld."""
        return self._masked

    def masked(self, names: Collection[str]) -> "OnlineResponse":
        """The same answer with the values of these columns withheld."""
        hidden = self._masked | frozenset(names)
        values = [
            [None] * len(self) if name in hidden else column
            for name, column in zip(self.names, self.values, strict=True)
        ]
        return OnlineResponse(self.types, values, self._rows, hidden)

    def _status(self, position: int) -> list[Status]:
        if self.names[position] in self._masked:
            return list(repeat(MASKED, len(self)))
        rows, values = self._rows[position], self.values[position]
        return statuses_of(values, rows)

    def _position(self, name: str) -> int:
        try:
            return self.names.index(name)
        except ValueError:
            raise UnknownFeature(f"The answer has no column '{name}'. It has: {', '.join(self.names)}.") from None

    def __repr__(self) -> str:
        with pl.Config(tbl_hide_dataframe_shape=True, tbl_rows=10):
            table = str(self.to_polars())
        missing = [
            f"{name}: {', '.join(f'{count} {status}' for status, count in counts.items())}"
            for name, counts in zip(self.names, map(Counter, self.statuses()), strict=True)
            if counts.keys() != {PRESENT}
        ]
        return "\n".join([f"OnlineResponse, {len(self)} rows", table, *missing])


Clock: TypeAlias = Callable[[], int]
"""The present in microseconds since 1970."""
