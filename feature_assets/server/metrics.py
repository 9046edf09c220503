"""Every metric of the server, as Prometheus reads it.

Names, labels and help stand here alone; the docs, the dashboard and the alert rules are tested against this list. What
counts is in `meters`, what several processes have in common in `workers`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

MEDIA_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `bounds` are those of a histogram; `across` says what the processes' values of a gauge come to."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    across: Literal["sum", "max", "min"] = "sum"


@dataclass(frozen=True, slots=True)
class Spread:
    """What a histogram holds: how many values lie up to each bound and above the last, and their sum."""

    counts: tuple[int, ...]
    total: float


Value: TypeAlias = float | Spread
Key: TypeAlias = tuple[str, tuple[str, ...]]
"""A metric's name and the values of its labels."""

_SHORT: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
_AGES: Final = (
    *(1.0, 10.0, _MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR),
    *(_DAY, 3 * _DAY, 7 * _DAY, 30 * _DAY, 90 * _DAY, 365 * _DAY),
)

REQUEST_SECONDS: Final = Metric(
    "feature_assets_request_seconds",
    "histogram",
    "Seconds from a request's headers to its answer.",
    ("method", "route", "status"),
    _SHORT,
)
REQUESTS_OPEN: Final = Metric("feature_assets_requests_open", "gauge", "Requests that wait for their answer.")
READ_SECONDS: Final = Metric(
    "feature_assets_store_read_seconds",
    "histogram",
    "Seconds of one read of a view from the online store.",
    ("view",),
    _SHORT,
)
READ_FAILURES: Final = Metric(
    "feature_assets_store_read_failures_total", "counter", "Reads of a view that the online store failed.", ("view",)
)
ROWS: Final = Metric(
    "feature_assets_store_rows_total", "counter", "Rows that were asked of the online store.", ("view",)
)
VALUES: Final = Metric(
    "feature_assets_values_total",
    "counter",
    "Values in answers by what became of them: PRESENT, NOT_FOUND, NULL_VALUE, OUTSIDE_MAX_AGE or MASKED.",
    ("view", "status"),
)
DATA_AGE: Final = Metric(
    "feature_assets_data_age_seconds",
    "histogram",
    "From a row's event timestamp to its being read, of one row of each read, in turn.",
    ("view",),
    _AGES,
)
ON_DEMAND_SECONDS: Final = Metric(
    "feature_assets_on_demand_seconds",
    "histogram",
    "Seconds that the on-demand features of a request took.",
    (),
    _SHORT,
)
DECISIONS: Final = Metric(
    "feature_assets_decisions_total",
    "counter",
    "Decisions on requests by the act, by outcome (allowed, refused, unauthenticated) and by what decided: token, scope, "
    "policy, row_filter, unknown or quota.",
    ("act", "outcome", "rule"),
)
AUDIT_LOST: Final = Metric(
    "feature_assets_audit_lost_total", "counter", "Lines of the audit log that could not be written."
)
SNAPSHOT_INFO: Final = Metric(
    "feature_assets_registry_snapshot_info",
    "gauge",
    "1 for the registry snapshot in force, named by its digest.",
    ("digest",),
    across="max",
)
SNAPSHOT_TIME: Final = Metric(
    "feature_assets_registry_snapshot_timestamp_seconds",
    "gauge",
    "When the registry snapshot in force was published; of several processes the oldest.",
    across="min",
)
REFRESH_TIME: Final = Metric(
    "feature_assets_registry_refresh_timestamp_seconds",
    "gauge",
    "When the registry was last read without failure; of several processes the longest ago.",
    across="min",
)
REFRESHES: Final = Metric(
    "feature_assets_registry_refreshes_total",
    "counter",
    "Looks at the published registry by outcome: unchanged, taken_up or failed.",
    ("outcome",),
)
LOG_ROWS: Final = Metric(
    "feature_assets_feature_log_rows_total",
    "counter",
    "Served rows of logged services by outcome: written, or dropped because too much waited.",
    ("service", "outcome"),
)
LOG_WAITING: Final = Metric(
    "feature_assets_feature_log_queue_bytes", "gauge", "Bytes of answers that wait to be logged."
)
LOG_FAILURES: Final = Metric(
    "feature_assets_feature_log_failures_total", "counter", "Writes of a service's log that failed.", ("service",)
)
JOURNAL_BYTES: Final = Metric(
    "feature_assets_push_journal_bytes", "gauge", "Bytes of the journal of pushed rows while some of it waits."
)
JOURNAL_SECONDS: Final = Metric(
    "feature_assets_push_waiting_seconds",
    "gauge",
    "How long pushed rows have been seen waiting for the stores; of several processes the longest.",
    across="max",
)
THREADS: Final = Metric("feature_assets_pool_threads", "gauge", "Threads that a pool may have.", ("pool",))
THREADS_BUSY: Final = Metric("feature_assets_pool_busy", "gauge", "Tasks of a pool that are being done.", ("pool",))
THREADS_WAITING: Final = Metric("feature_assets_pool_waiting", "gauge", "Tasks of a pool that wait.", ("pool",))
WORKERS: Final = Metric("feature_assets_workers", "gauge", "Processes that answer.")

METRICS: Final[Mapping[str, Metric]] = {
    one.name: one
    for one in (
        *(REQUEST_SECONDS, REQUESTS_OPEN),
        *(READ_SECONDS, READ_FAILURES, ROWS, VALUES, DATA_AGE, ON_DEMAND_SECONDS),
        *(DECISIONS, AUDIT_LOST, SNAPSHOT_INFO, SNAPSHOT_TIME, REFRESH_TIME, REFRESHES),
        *(LOG_ROWS, LOG_WAITING, LOG_FAILURES),
        *(JOURNAL_BYTES, JOURNAL_SECONDS),
        *(THREADS, THREADS_BUSY, THREADS_WAITING, WORKERS),
    )
}


def page(values: Mapping[Key, Value]) -> bytes:
    """The values in Prometheus' text format; a metric that has none yet is announced all the same."""
    by_name: dict[str, list[tuple[tuple[str, ...], Value]]] = {name: [] for name in METRICS}
    for (name, labels), value in values.items():
        by_name[name].append((labels, value))
    registry = CollectorRegistry()
    registry.register(_Families([_family(METRICS[name], found) for name, found in by_name.items()]))
    return generate_latest(registry)


class _Families:
    """What prometheus_client collects: families that are there already."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families


def _family(metric: Metric, values: Sequence[tuple[tuple[str, ...], Value]]) -> Family:
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, value in sorted(values):
            if isinstance(value, Spread):
                histogram.add_metric(labels, list(_buckets(metric, value)), value.total)
        return histogram
    of = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = of(metric.name, metric.help, labels=metric.labels)
    for labels, value in sorted(values):
        if not isinstance(value, Spread):
            family.add_metric(labels, value)
    return family


def _buckets(metric: Metric, spread: Spread) -> Iterator[tuple[str, float]]:
    below = 0
    for bound, count in zip((*map(repr, metric.bounds), "+Inf"), spread.counts, strict=True):
        below += count
        yield bound, below
