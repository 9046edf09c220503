"""How much memory joining may take, and what that comes to in rows."""

import re
from dataclasses import dataclass
from typing import Final

import polars as pl

from feature_assets.errors import RequestError
from feature_assets.joins import HELD_BYTES

LEAST: Final = 100_000_000
"""Readers and writers of Parquet take about so much whatever is joined."""

_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
_POWERS: Final = " kmgt"

# Looking up and taking up the features come one after the other. What one has given back the allocator keeps for a while.
_HISTORY, _ANSWER = 0.35, 0.35
_COPIES: Final = 3
_MOMENT_BYTES: Final = 64
_SAMPLE: Final = 5_000


def memory_limit(given: int | str | None) -> int | None:
    """Bytes: a number of them, or text as "4GB" or "4 GiB".

    Raises:
        RequestError: it is neither, or less than can be kept to.
    """
    if given is None:
        return None
    size = given if isinstance(given, int) else _parsed(given)
    if size < LEAST:
        raise RequestError(
            f"A memory limit of {size:,} bytes is less than reading and writing take ({LEAST:,} bytes). Give more."
        )
    return size


def _parsed(text: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise RequestError(f"'{text}' is no amount of memory. Give bytes, or text as '4GB'.")
    number, unit, binary = found.groups()
    power: int = _POWERS.index(unit.lower() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)


@dataclass(slots=True)
class Budget:
    """A limit in bytes, and about how many of them one row of the answer takes."""

    limit: int
    row_bytes: float = 1

    @property
    def rows(self) -> int:
        """How many rows of the answer are joined at once."""
        return max(1, int(self.limit * _ANSWER / (self.row_bytes * _COPIES + _MOMENT_BYTES)))

    @property
    def held(self) -> int:
        """How many keys and times of a history are held at once."""
        return max(1, int(self.limit * _HISTORY / HELD_BYTES))

    def seen(self, rows: pl.DataFrame) -> None:
        """Learn from rows of the answer: later ones may be longer than those that were looked at first."""
        if not rows.is_empty():
            self.row_bytes = max(self.row_bytes, bytes_of_a_row(rows))


def bytes_of_a_row(rows: pl.DataFrame) -> float:
    """About how much memory one of these rows takes."""
    return rows.estimated_size() / max(1, rows.height)


def sampled(rows: pl.LazyFrame) -> float:
    """About how much memory one row takes, by the first ones."""
    return bytes_of_a_row(rows.head(_SAMPLE).collect(engine="streaming"))
