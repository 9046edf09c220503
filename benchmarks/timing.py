"""One harness for all benchmarks: ours, the limit by hand and perhaps the peer, in turn in one run, answers compared.

Seconds say little on a shared machine; read the ratios.
"""

import os
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple

import polars as pl


def as_installed() -> dict[str, str]:
    """The environment of a process whose start is measured: modules are compiled once, as an installation has them."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Timing(NamedTuple):
    """Seconds of one call."""

    fastest: float
    median: float
    slowest: float


def compare(
    name: str,
    ways: Mapping[str, Callable[[], Any]],
    repeats: int = 5,
    *,
    limit: str = "limit",
    mark: float | None = None,
    calls: int = 1,
    before: Callable[[], object] = lambda: None,
    same: Callable[[Any, Any], bool] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time each way in turn, `repeats` times over, and print fastest, median, slowest and the ratio to the limit.

    Args:
        name: what is done, for the title.
        ways: by label, what does it; each returns its answer, and all answers have to be the same.
        repeats: how many samples of each way.
        limit: the label that ratios refer to.
        mark: the ratio that the first way has to keep; the title says whether it does.
        calls: calls per sample, for what takes microseconds.
        before: called before each sample, outside the measured time.
        same: whether two answers are equal; by default frames are compared as frames and all else by `==`.
        clock: what tells the seconds; `time.process_time` tells those that this process's threads computed.

    Raises:
        AssertionError: two ways gave different answers.
    """
    answers = {label: _answer(way, before) for label, way in ways.items()}
    for label, answer in answers.items():
        assert (same or _same)(answers[limit], answer), f"{name}: '{label}' and '{limit}' give different answers"
    samples: dict[str, list[float]] = {label: [] for label in ways}
    for turn in range(repeats):
        # Every other turn backwards, so that none always comes after the one that warms up the machine.
        for label in list(ways) if turn % 2 == 0 else list(ways)[::-1]:
            before()
            samples[label].append(_timed(ways[label], calls, clock))
    timings = {label: Timing(min(taken), median(taken), max(taken)) for label, taken in samples.items()}
    _print(name, timings, limit, mark)
    return timings


def _answer(way: Callable[[], Any], before: Callable[[], object]) -> Any:
    before()
    return way()


def _timed(way: Callable[[], Any], calls: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(calls):
        way()
    return (clock() - start) / calls


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, pl.DataFrame) and isinstance(other, pl.DataFrame):
        return one.equals(other)
    return bool(one == other)


def _print(name: str, timings: Mapping[str, Timing], limit: str, mark: float | None) -> None:
    ours = next(iter(timings))
    verdict = ""
    if mark is not None:
        ratio = timings[ours].median / timings[limit].median
        verdict = f"  [{'within' if ratio <= mark else 'OVER'} the mark: {ratio:.2f} of {mark:g}]"
    print(f"\n{name}{verdict}")
    width = max(map(len, timings))
    print(f"  {'':{width}}  {'min':>10}  {'median':>10}  {'max':>10}  {'ratio':>7}")
    for label, timing in timings.items():
        shown = "  ".join(f"{_duration(seconds):>10}" for seconds in timing)
        print(f"  {label:{width}}  {shown}  {timing.median / timings[limit].median:>6.2f}x")


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
