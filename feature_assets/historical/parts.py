"""A spine that is joined part by part, so that no more than some rows are in memory, and answered in its own order.

Parts are rows that follow one another, where their times lie together too: of a history each part reads its own time only.
Otherwise every part would read all of it, so the rows are parted by time first, on disk; the answers are kept there as
well, and read back in the order of the spine.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Final, NamedTuple

import polars as pl
from polars.io.plugins import register_io_source

from feature_assets.errors import StoreError, StoreFull
from feature_assets.historical.budget import Budget
from feature_assets.historical.scratch import Scratch
from feature_assets.historical.spine import Spine

log = logging.getLogger(__name__)

_QUANTILES: Final = 256
_FAR: Final = 2
"""Parts whose times together span so many times the spine's are parted by time."""

_WORTH: Final = 3
"""Parting by time writes and reads spine and answer about so many times more."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training set is: so many of its rows are done. `stage` is "joining", then, where they have to be brought
    back into the spine's order, "ordering", or "writing" where workers write them in that order.
    """

    stage: str
    done: int
    rows: int


class Slice(NamedTuple):
    """So many rows of some files together, from an offset on."""

    names: list[str]
    offset: int
    length: int


class Filed(NamedTuple):
    """The rows of a spine in files, part by part; in the column `number` stands where each row is."""

    number: str
    slices: list[Slice]


class Parts:
    """The parts of one spine.

    Args:
        spine: the rows.
        times: of so many rows from an offset on their times; checks them, and their keys.
        join: the answer to some rows, in their order.
        budget: what may be in memory at once.
        history_rows: how many rows all histories have together.
        progress: is told how far it is.
    """

    def __init__(
        self,
        spine: Spine,
        times: Callable[[int, int], pl.Series],
        join: Callable[[pl.DataFrame], pl.DataFrame],
        *,
        budget: Budget,
        history_rows: int,
        progress: Callable[[Progress], None],
    ) -> None:
        self._spine, self._times, self._join, self._budget = spine, times, join, budget
        self._history_rows, self._progress = history_rows, progress

    def answers(self) -> Iterator[pl.DataFrame]:
        """The answer to all rows, in the spine's order, a part at a time; one empty part if there are none."""
        height = self.height
        if height <= self._budget.rows:
            yield self._answer(self._spine.slice(0, height), 0)
            return
        cuts = self._cuts()
        if cuts is not None:
            yield from self._by_time(cuts)
            return
        offset = 0
        while offset < height:
            rows = self._spine.slice(offset, self._budget.rows)
            yield self._answer(rows, offset)
            offset += rows.height

    @property
    def height(self) -> int:
        """How many rows the spine has, which is read for it."""
        self._spine.read(into_memory=False)
        return self._spine.height

    @property
    def piece(self) -> int:
        """How many rows of the answer may be in memory at once."""
        return self._budget.rows

    def filed(self, scratch: Scratch) -> "Filed":
        """The parts in files, each row with its number."""
        number, part = _free("__number", self._spine.schema), _free("__part", self._spine.schema)
        size, cuts = self._budget.rows, self._cuts()
        if cuts is not None:
            groups = self._parted(scratch, cuts, number, part)
        else:
            groups = [[self._file(scratch, offset, size, number)] for offset in range(0, self.height, size)]
        slices = []
        for names in groups:
            rows = scratch.scan(names).select(pl.len()).collect().item()
            slices += [Slice(names, offset, min(size, rows - offset)) for offset in range(0, rows, size)]
        return Filed(number, slices)

    def _file(self, scratch: Scratch, offset: int, size: int, number: str) -> str:
        name = f"part-{offset:012d}.parquet"
        rows = self._spine.slice(offset, size)
        numbers = pl.int_range(offset, offset + rows.height, dtype=pl.Int64, eager=True)
        scratch.write(name, rows.with_columns(numbers.alias(number)))
        return name

    def _cuts(self) -> pl.Series | None:
        """Times that part the rows, if that is worth it; every time and key is looked at for it."""
        height, size = self.height, self._budget.rows
        spans = [_Span.of(self._times(offset, size)) for offset in range(0, height, size)]
        worth = len(spans) > 1 and (len(spans) - 1) * self._history_rows > _WORTH * height and _far(spans)
        return _cuts(spans) if worth else None

    def _answer(self, rows: pl.DataFrame, done: int) -> pl.DataFrame:
        answer = self._join(rows)
        self._budget.seen(answer)
        self.tell("joining", done + rows.height)
        return answer

    def tell(self, stage: str, done: int) -> None:
        """Tell whoever watches how far it is."""
        log.info("training set: %s rows=%d of=%d", stage, done, self._spine.height)
        self._progress(Progress(stage, done, self._spine.height))

    def _by_time(self, cuts: pl.Series) -> Iterator[pl.DataFrame]:
        number, part = _free("__number", self._spine.schema), _free("__part", self._spine.schema)
        with room(), Scratch.made(None, {}) as scratch:
            parted = self._parted(scratch, cuts, number, part)
            answers: list[str] = []
            done = 0
            for names in parted:
                for rows in self._slices(scratch, names):
                    answer = self._answer(rows.drop(number), done).with_columns(rows[number])
                    answers.append(f"answer-{len(answers):06d}.parquet")
                    group = max(1, answer.height // len(parted))
                    scratch.write(answers[-1], answer.sort(number), group=group)
                    done += rows.height
                scratch.remove(names)
            yield from self.in_order(scratch, answers, number)

    def _parted(self, scratch: Scratch, cuts: pl.Series, number: str, part: str) -> list[list[str]]:
        """The files with the rows of each part of the time, each row with its number."""
        numbers, size = count(), self._budget.rows
        files: dict[int, list[str]] = {}

        def pieces(*_: object) -> Iterator[pl.DataFrame]:
            for offset in range(0, self._spine.height, size):
                rows = self._spine.slice(offset, size)
                # A row without a time has no answer, wherever it is.
                times = self._times(offset, size).to_physical().fill_null(0)
                yield rows.with_columns(
                    pl.int_range(offset, offset + rows.height, dtype=pl.Int64, eager=True).alias(number),
                    cuts.search_sorted(times, side="right").cast(pl.Int32).alias(part),
                )

        def named(file: pl.FileProviderArgs) -> str:
            key = int(file.partition_keys[part].item())
            name = f"part-{key:06d}-{next(numbers)}.parquet"
            files.setdefault(key, []).append(name)
            return name

        schema = {**self._spine.schema, number: pl.Int64(), part: pl.Int32()}
        register_io_source(pieces, schema=schema).sink_parquet(
            pl.PartitionBy(scratch.place, key=part, include_key=False, file_path_provider=named),
            compression="lz4",
            row_group_size=max(1, size // (len(cuts) + 1)),
            storage_options=dict(scratch.options) or None,
        )
        return [files[key] for key in sorted(files)]

    def _slices(self, scratch: Scratch, names: list[str]) -> Iterator[pl.DataFrame]:
        rows = scratch.scan(names)
        height, offset = rows.select(pl.len()).collect().item(), 0
        while offset < height:
            piece = rows.slice(offset, self._budget.rows).collect(engine="streaming")
            yield piece
            offset += piece.height

    def in_order(self, scratch: Scratch, answers: Sequence[str], number: str) -> Iterator[pl.DataFrame]:
        """What the files hold together, by number; raises as `numbered`."""
        done = 0
        for piece in numbered(scratch, answers, number, range(self.height), self._budget.rows):
            yield piece
            done += piece.height
            self.tell("ordering", done)


def numbered(scratch: Scratch, answers: Sequence[str], number: str, rows: range, size: int) -> Iterator[pl.DataFrame]:
    """The rows of these numbers by number, so many at a time; each of the files has its rows by it.

    Raises:
        StoreError: rows are missing.
    """
    joined = scratch.scan(answers)
    for first in rows[::size]:
        last = min(first + size, rows.stop)
        piece = joined.filter(pl.col(number) >= first, pl.col(number) < last)
        found = piece.collect(engine="streaming").sort(number)
        if found.height != last - first:
            raise StoreError("Rows that were joined are no longer in the temporary folder. Repeat the request.")
        yield found.drop(number)


@dataclass(frozen=True, slots=True)
class _Span:
    """The times of a part: from when to when, and some in between, as many between each two."""

    first: int | None
    last: int | None
    quantiles: pl.Series

    @classmethod
    def of(cls, times: pl.Series) -> "_Span":
        there = times.to_physical().drop_nulls().sort()
        if there.is_empty():
            return cls(None, None, there)
        some = min(_QUANTILES, len(there))
        return cls(there[0], there[-1], there.gather([n * (len(there) - 1) // max(1, some - 1) for n in range(some)]))


def _far(spans: Sequence[_Span]) -> bool:
    there = [(span.first, span.last) for span in spans if span.first is not None and span.last is not None]
    if not there:
        return False
    whole = max(last for _, last in there) - min(first for first, _ in there)
    return sum(last - first for first, last in there) > _FAR * whole


def _cuts(spans: Sequence[_Span]) -> pl.Series:
    """Times that part all rows into about as many parts as there are spans, with about as many rows each."""
    times = pl.concat([span.quantiles for span in spans]).sort()
    places = [n * len(times) // len(spans) for n in range(1, len(spans))]
    return times.gather(places).unique().sort()


def _free(name: str, taken: pl.Schema) -> str:
    while name in taken:
        name += "_"
    return name


@contextmanager
def room() -> Iterator[None]:
    """What there is no room for in the temporary folder is told so."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        if StoreFull.is_told_by(error):
            raise StoreFull.of_temporary(tempfile.gettempdir(), "the rows that are joined") from error
        raise
