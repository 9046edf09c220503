"""What tells which rows are in a table already: numbers in the very commits that brought them.

A journal numbers its rows, and its last number is the version of a transaction of the application. The records of a stream
have positions: a commit names for every shard that it goes through the last one. A position may be longer than the 63 bits
of a version; then its upper parts have transactions of their own. Beside them a transaction has the number of the commit,
by which it shows whether the online store has got so far. A stream that is removed and made again numbers its records anew:
so another one has a number that tells the two apart, put there by the first commit that knows it.

Delta neither orders versions nor refuses lesser ones. So a commit of records says after which position they begin, and is
not made where the table is elsewhere: another consumer was first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import polars as pl
from deltalake import DeltaTable

from feature_assets.errors import PublicationConflict
from feature_assets.spec import SEQUENCE

_BITS = 62
_LIMB = (1 << _BITS) - 1


class Overtaken(PublicationConflict):
    """Another consumer of a stream has published from the same shard in between."""


def journal_application(journal: str) -> str:
    """The id of the application transaction whose version is the last sequence number of a journal that is in the table."""
    return f"feature-assets/push/{journal}"


def stream_journal(source: str, shard: str) -> str:
    """What a shard of a stream is called where journals are: its sequence numbers are those of the commits."""
    return f"stream/{source}/{shard}"


@dataclass(frozen=True, slots=True)
class InJournal:
    """Rows are numbered by a journal of pushes."""

    journal: str
    moves: bool = False

    def late(self, table: DeltaTable, rows: pl.DataFrame) -> pl.DataFrame:
        done = table.transaction_version(journal_application(self.journal))
        return rows if done is None else rows.filter(pl.col(SEQUENCE) > done)

    def transactions(self, table: DeltaTable, rows: pl.DataFrame, number: int) -> dict[str, int]:
        """What the commit with this number, which brings these rows, says so that they are known again."""
        return {journal_application(self.journal): int(rows[SEQUENCE].max())}  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Moved:
    """Rows are of records of a stream: by shard the position that they come after, None for the first of all, and the
    last that is done with them. Both have the same shards; what lies between and is no row needs none. `origins` tells
    shards from those of the same names in a stream that was made anew: those that the table does not have so.
    """

    source: str
    before: Mapping[str, int | None]
    after: Mapping[str, int]
    origins: Mapping[str, int] = field(default_factory=dict)
    moves: ClassVar[bool] = True

    def late(self, table: DeltaTable, rows: pl.DataFrame) -> pl.DataFrame | None:
        """All rows if no commit has brought them; None if one has, whatever became of the answer to it.

        Raises:
            Overtaken: the table is neither where these records begin nor where they end.
        """
        found = {shard: position(table, self.source, shard) for shard in self.before}
        if found == dict(self.before):
            return rows
        if found == dict(self.after):
            return None
        shard = next(name for name, at in found.items() if at != self.before[name])
        raise Overtaken(
            f"'{self.source}', shard {shard}: the table is at {found[shard]} and not at {self.before[shard]}, so another "
            "consumer has published from it. Nothing of this was written."
        )

    def transactions(self, table: DeltaTable, rows: pl.DataFrame, number: int) -> dict[str, int]:
        """As of `InJournal`; the number is that of the commit."""
        said: dict[str, int] = {}
        for shard, last in self.after.items():
            said[journal_application(stream_journal(self.source, shard))] = number
            # The table is where these begin. To ask it for what it says reads the log each time.
            former = self.before[shard]
            rest, place, known = last + 1, 0, 0 if former is None else former + 1
            while rest or known or not place:
                said[_application(self.source, shard, place)] = rest & _LIMB
                rest, known, place = rest >> _BITS, known >> _BITS, place + 1
            if (origin := self.origins.get(shard)) is not None:
                said[_origin_application(self.source, shard)] = origin
        return said


class Reached(NamedTuple):
    """How far a table has the records of a shard: the last position, and the number of the commit that brought it there;
    None if none did. `origin` tells which stream of this name they are of; None where that one did not tell.
    """

    position: int | None = None
    commit: int | None = None
    origin: int | None = None


def reached(table: DeltaTable, source: str, shard: str) -> Reached:
    """How far the table has the records of a shard."""
    commit = table.transaction_version(journal_application(stream_journal(source, shard)))
    return Reached(position(table, source, shard), commit, _origin(table, source, shard))


def position(table: DeltaTable, source: str, shard: str) -> int | None:
    """The position that the table has reached in a shard; None if it was never there."""
    limbs = _limbs(table, source, shard)
    return sum(limb << _BITS * place for place, limb in enumerate(limbs)) - 1 if limbs else None


def _limbs(table: DeltaTable, source: str, shard: str) -> list[int]:
    """The parts of a position plus one, the least first."""
    limbs: list[int] = []
    while (limb := table.transaction_version(_application(source, shard, len(limbs)))) is not None:
        limbs.append(limb)
    return limbs


def _origin(table: DeltaTable, source: str, shard: str) -> int | None:
    return table.transaction_version(_origin_application(source, shard))


def _origin_application(source: str, shard: str) -> str:
    return f"feature-assets/origin/{source}/{shard}"


def _application(source: str, shard: str, place: int) -> str:
    return f"feature-assets/position/{source}/{shard}" + (f"#{place}" if place else "")
