"""Rows cut into frames of one length."""

from collections.abc import Iterator

import polars as pl


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
