"""Rows cut into frames of one length, mixed within a bounded buffer, and dealt to workers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import polars as pl

from feature_assets.errors import RequestError


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several workers that share the rows, each of them as many as any other or one more."""

    number: int = 0
    of: int = 1

    @classmethod
    def checked(cls, number: int, of: int) -> Self:
        """The shard.

        Raises:
            RequestError: there is no such one.
        """
        if of < 1 or not 0 <= number < of:
            raise RequestError(f"There is no shard {number} of {of}. They count from 0 to {max(of, 1) - 1}.")
        return cls(number, of)

    def within(self, number: int, of: int) -> "Shard":
        """A worker's share of this one's rows: of all of them each row is one worker's."""
        return Shard(self.number + self.of * number, self.of * of)


def rebatched(frames: Iterator[pl.DataFrame], rows: int) -> Iterator[pl.DataFrame]:
    """The same rows, so many at a time; the last frame has what is left."""
    waiting: list[pl.DataFrame] = []
    held, given = 0, False
    for frame in frames:
        waiting.append(frame)
        held += frame.height
        while held >= rows:
            together = pl.concat(waiting)
            yield together.slice(0, rows)
            waiting, held, given = [together.slice(rows)], held - rows, True
    if held or not given:
        yield pl.concat(waiting)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows that follow one another within a portion."""

    portion: int
    first: int
    rows: int


def shares(portions: Sequence[int], shard: Shard) -> Iterator[Stretch]:
    """What a shard reads of portions of so many rows: whole ones in turn, so that it has some of everywhere, and of the
    rows that are left then so many in a row that the counts of all shards are even.

    A portion is read by one shard, or by few; of rows dealt one by one each would read them all.
    """
    each, more = divmod(sum(portions), shard.of)
    fair = [each + (number < more) for number in range(shard.of)]
    held, whole = [0] * shard.of, 0
    while whole + shard.of <= len(portions):
        turn = portions[whole : whole + shard.of]
        then = [before + rows for before, rows in zip(held, turn, strict=True)]
        if any(rows > limit for rows, limit in zip(then, fair, strict=True)):
            break
        yield Stretch(whole + shard.number, 0, turn[shard.number])
        held, whole = then, whole + shard.of
    wanted = [limit - rows for limit, rows in zip(fair, held, strict=True)]
    low = sum(wanted[: shard.number])
    high = low + wanted[shard.number]
    for number, end in enumerate(accumulate(portions[whole:]), whole):
        start = end - portions[number]
        if (rows := min(high, end) - max(low, start)) > 0:
            yield Stretch(number, max(low, start) - start, rows)


def dealt(frames: Iterator[pl.DataFrame], shard: Shard) -> Iterator[pl.DataFrame]:
    """The rows of one shard: row `number` and every `of`-th after it."""
    if shard.of == 1:
        yield from frames
        return
    first = shard.number
    for frame in frames:
        yield frame.gather_every(shard.of, first) if first < frame.height else frame.clear()
        first = (first - frame.height) % shard.of


def mixed(frames: Iterator[pl.DataFrame], buffer: int, seed: int) -> Iterator[pl.DataFrame]:
    """The rows in an order of chance, each among the `buffer` rows around it at least; the same order for the same seed."""
    kept: pl.DataFrame | None = None
    for turn, frame in enumerate(frames):
        together = frame if kept is None else pl.concat([kept, frame])
        shuffled = together.sample(fraction=1, shuffle=True, seed=_seed(seed, turn))
        ready = max(0, shuffled.height - buffer)
        yield shuffled.slice(0, ready)
        kept = shuffled.slice(ready)
    if kept is not None:
        yield kept


def _seed(seed: int, turn: int) -> int:
    # Neighbouring seeds have nothing to do with one another.
    return (seed * 0x9E3779B97F4A7C15 + turn * 0xBF58476D1CE4E5B9) % (1 << 63)
