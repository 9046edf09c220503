"""Counting, where it must cost next to nothing: plain numbers, which are looked at when somebody asks for the metrics.

A request adds to a few of them, without a lock and without looking anything up. Threads may add too: CPython switches
between threads at calls and at the ends of loops, so that `n += 1` on an attribute or an item loses none.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from time import perf_counter, time
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from feature_assets.access import Decision
from feature_assets.lookup import MASKED, NOT_FOUND, NULL_VALUE, OUTSIDE_MAX_AGE, PRESENT
from feature_assets.online.protocol import Answer, Question, Reader, Readers, ReadsTogether
from feature_assets.references import ReadPlan
from feature_assets.server import metrics
from feature_assets.server.metrics import Key, Metric, Spread, Value
from feature_assets.spec import ViewSpec

Watched: TypeAlias = Iterable[tuple[Metric, tuple[str, ...], float]]


class Histogram:
    """How many values lie up to each bound, and their sum. `unit` is what a value that is added counts in the metric's."""

    __slots__ = ("add", "spread")

    add: Callable[[float], None]
    """Count one value."""
    spread: Callable[[], Spread]
    """What was counted so far."""

    def __init__(self, metric: Metric, *, unit: float = 1.0) -> None:
        bounds, counts, total = tuple(bound / unit for bound in metric.bounds), [0] * (len(metric.bounds) + 1), 0.0

        # Functions within a function: what they share costs them half of what attributes would.
        def add(value: float) -> None:
            nonlocal total
            counts[bisect_left(bounds, value)] += 1
            total += value

        def spread() -> Spread:
            return Spread(tuple(counts), total * unit)

        self.add, self.spread = add, spread


class ViewMeter:
    """What is counted of one view."""

    __slots__ = ("age", "counted", "failures", "rows", "seconds", "statuses")

    counted: Callable[[Answer, float], None]
    """Count what a read gave, and its seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds, self.age = Histogram(metrics.READ_SECONDS), Histogram(metrics.DATA_AGE, unit=1e-6)
        self.rows = self.failures = 0
        self.statuses: dict[str, int] = dict.fromkeys((PRESENT, NOT_FOUND, NULL_VALUE, OUTSIDE_MAX_AGE, MASKED), 0)
        add_seconds, add_age, turn = self.seconds.add, self.age.add, 0

        def counted(answer: Answer, seconds: float) -> None:
            nonlocal turn
            add_seconds(seconds)
            events = answer[0]
            self.rows += len(events)
            # Not of every row: a hundred of them would cost as much as a tenth of the read.
            turn += 1
            event = events[turn % len(events)]
            if event is not None:
                age = clock() * 1e6 - event
                add_age(age if age > 0 else 0.0)

        self.counted = counted

    def metered(self, read: Reader) -> Reader:
        """The same read, counted."""
        counted = self.counted

        def metered(keys: Sequence[tuple[Any, ...]]) -> Answer:
            begun = perf_counter()
            try:
                answer = read(keys)
            except Exception:
                self.failures += 1
                raise
            counted(answer, perf_counter() - begun)
            return answer

        return metered


class ValueMeter:
    """Counts, for one compiled question, what became of the values in its answers."""

    __slots__ = ("_columns", "_widths")

    def __init__(self, columns: Sequence[ViewMeter | None]) -> None:
        """`columns` has the view of each column of an answer, None for a join key."""
        self._columns = [None if view is None else view.statuses for view in columns]
        views = dict.fromkeys(view for view in columns if view is not None)
        self._widths = [(view.statuses, columns.count(view)) for view in views]

    def all_present(self, rows: int) -> None:
        """Every value of so many rows is there."""
        for statuses, width in self._widths:
            statuses[PRESENT] += rows * width

    def add(self, position: int, found: Sequence[str]) -> None:
        """The statuses of one column."""
        statuses = self._columns[position]
        if statuses is not None:
            for status in set(found):
                count = found.count(status)
                statuses[status] += count


class Meters:
    """All that one process counts."""

    def __init__(self, *, clock: Callable[[], float] = time) -> None:
        """`clock` gives the moment that the age of data counts from, in seconds since 1970."""
        self._clock = clock
        self._views: dict[str, ViewMeter] = {}
        self._histograms: dict[Key, Histogram] = {}
        self._counters: dict[Key, float] = {}
        self._counting = Lock()
        self._decisions: dict[tuple[str, bool, str], int] = {}
        self._watched: list[Callable[[], Watched]] = []

    def view(self, name: str) -> ViewMeter:
        """The meter of a view, on-demand views among them."""
        # One that is made and thrown away leaves cycles, which the server collects rarely.
        return self._views.get(name) or self._views.setdefault(name, ViewMeter(self._clock))

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        """A histogram to add to."""
        found = self._histograms.get((metric.name, labels))
        return found or self._histograms.setdefault((metric.name, labels), Histogram(metric))

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Add to a counter: for what does not happen with every request."""
        key = (metric.name, labels)
        with self._counting:
            self._counters[key] = self._counters.get(key, 0) + by

    def decided(self, decision: Decision) -> None:
        """Count a decision. In the event loop only."""
        key = (decision.act, decision.allowed, _kind(decision.rule))
        self._decisions[key] = self._decisions.get(key, 0) + 1

    def watch(self, gauges: Callable[[], Watched]) -> None:
        """Ask this for the values of gauges whenever the metrics are asked for."""
        self._watched.append(gauges)

    def values(self, plan: ReadPlan) -> ValueMeter:
        """The meter for the answers of a compiled question."""
        return ValueMeter(
            [*[None] * len(plan.join_keys), *(self.view(_view_of(plan, one.view)) for one in plan.outputs)]
        )

    def reads(self, store: Readers) -> Readers:
        """The store with its reads counted."""
        if isinstance(store, ReadsTogether):
            return _MeteredTogether(store, store.read_together, self)
        return _MeteredReads(store, self)

    def collect(self) -> dict[Key, Value]:
        """All values as they are now."""
        found: dict[Key, Value] = {key: one.spread() for key, one in list(self._histograms.items())}
        found.update(self._counters.copy())
        for (act, allowed, rule), count in self._decisions.copy().items():
            found[metrics.DECISIONS.name, (act, "allowed" if allowed else "refused", rule)] = count
        for name, view in list(self._views.items()):
            found.update(_of_view(name, view))
        for gauges in self._watched:
            found.update({(metric.name, labels): value for metric, labels, value in gauges()})
        return found


def _of_view(name: str, view: ViewMeter) -> Iterable[tuple[Key, Value]]:
    for status, count in view.statuses.copy().items():
        yield (metrics.VALUES.name, (name, status)), count
    if view.rows or view.failures:
        yield (metrics.READ_SECONDS.name, (name,)), view.seconds.spread()
        yield (metrics.DATA_AGE.name, (name,)), view.age.spread()
        yield (metrics.ROWS.name, (name,)), view.rows
        yield (metrics.READ_FAILURES.name, (name,)), view.failures


def _view_of(plan: ReadPlan, name: str) -> str:
    """The view behind the name that an answer's columns carry, which may be an alias."""
    return next((read.view.name for read in plan.reads if read.name == name), name)


class _MeteredReads:
    """A store whose reads are counted."""

    def __init__(self, store: Readers, meters: Meters) -> None:
        self._store, self._meters = store, meters

    def reader(self, view: ViewSpec, features: Sequence[str]) -> Reader:
        return self._meters.view(view.name).metered(self._store.reader(view, features))


class _MeteredTogether(_MeteredReads):
    """One that answers several reads at the price of one: each of them counts as taking as long as all did."""

    def __init__(self, store: Readers, together: Callable[[Sequence[Question]], list[Answer]], meters: Meters) -> None:
        super().__init__(store, meters)
        self._together = together
        # What the store is asked for together are readers of its own.
        self._readers: WeakKeyDictionary[Reader, tuple[Reader, ViewMeter]] = WeakKeyDictionary()

    def reader(self, view: ViewSpec, features: Sequence[str]) -> Reader:
        meter, read = self._meters.view(view.name), self._store.reader(view, features)
        metered = meter.metered(read)
        self._readers[metered] = read, meter
        return metered

    def read_together(self, questions: Sequence[Question]) -> list[Answer]:
        asked = [(*self._readers[reader], keys) for reader, keys in questions]
        begun = perf_counter()
        try:
            answers = self._together([(read, keys) for read, _, keys in asked])
        except Exception:
            for _, meter, _ in asked:
                meter.failures += 1
            raise
        seconds = perf_counter() - begun
        for (_, meter, _), answer in zip(asked, answers, strict=True):
            meter.counted(answer, seconds)
        return answers


def _kind(rule: str) -> str:
    """What decided, in a word: rules name views and scopes, of which there may be many."""
    if rule.startswith(("row filter", "no such")):
        return "row_filter" if rule.startswith("row") else "unknown"
    return "policy" if " policy of " in rule else "scope"
