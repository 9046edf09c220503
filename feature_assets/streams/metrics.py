"""The metrics of consumers, as Prometheus reads them from `feature-assets stream run --metrics-port`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family

from feature_assets.errors import ConfigurationError
from feature_assets.streams.progress import Progress


@dataclass(frozen=True, slots=True)
class StreamMetric:
    """One metric, and its values by the values of its labels in one source's progress; which goes on meanwhile."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...]
    values: Callable[[Progress], Mapping[tuple[str, ...], float]]


METRICS: Final = (
    StreamMetric(
        "feature_assets_stream_records_total",
        "counter",
        "Records that were read and are done with.",
        ("source",),
        lambda progress: {(): progress.records},
    ),
    StreamMetric(
        "feature_assets_stream_rows_total",
        "counter",
        "Rows of records that were published.",
        ("source", "view"),
        lambda progress: {(view,): rows for view, rows in progress.rows.copy().items()},
    ),
    StreamMetric(
        "feature_assets_stream_batches_total",
        "counter",
        "Batches that were published.",
        ("source",),
        lambda progress: {(): progress.batches},
    ),
    StreamMetric(
        "feature_assets_stream_dead_letters_total",
        "counter",
        "Records that were no rows and went to the dead letters, of each view that refused them.",
        ("source",),
        lambda progress: {(): progress.letters},
    ),
    StreamMetric(
        "feature_assets_stream_tombstones_total",
        "counter",
        "Records without a value, which were passed over.",
        ("source",),
        lambda progress: {(): progress.tombstones},
    ),
    StreamMetric(
        "feature_assets_stream_lost_records_total",
        "counter",
        "Records that the stream had removed before they were read.",
        ("source",),
        lambda progress: {(): progress.lost},
    ),
    StreamMetric(
        "feature_assets_stream_failures_total",
        "counter",
        "Attempts that a store or a broker failed, and that were made again.",
        ("source",),
        lambda progress: {(): progress.failures},
    ),
    StreamMetric(
        "feature_assets_stream_overtaken_total",
        "counter",
        "Batches that were given up because another consumer had published the same records.",
        ("source",),
        lambda progress: {(): progress.overtaken},
    ),
    StreamMetric(
        "feature_assets_stream_started_timestamp_seconds",
        "gauge",
        "When this process last joined the consumers of the source: at its start, or after a failure.",
        ("source",),
        lambda progress: {(): progress.started.timestamp()},
    ),
    StreamMetric(
        "feature_assets_stream_shards",
        "gauge",
        "Shards that this process reads.",
        ("source",),
        lambda progress: {(): len(progress.shards)},
    ),
    StreamMetric(
        "feature_assets_stream_lag_records",
        "gauge",
        "Records of a shard that have not been read yet.",
        ("source", "shard"),
        lambda progress: {(str(shard),): lag.records for shard, lag in progress.lag.items() if lag.records is not None},
    ),
    StreamMetric(
        "feature_assets_stream_lag_seconds",
        "gauge",
        "How far the reading of a shard is behind its end, where the log tells that in time.",
        ("source", "shard"),
        lambda progress: {(str(shard),): lag.seconds for shard, lag in progress.lag.items() if lag.seconds is not None},
    ),
    StreamMetric(
        "feature_assets_stream_watermark_timestamp_seconds",
        "gauge",
        "The latest event timestamp of the rows that were published.",
        ("source", "view"),
        lambda progress: {(view,): at.timestamp() for view, at in progress.watermarks.copy().items()},
    ),
)


class _Families:
    """What prometheus_client collects."""

    def __init__(self, progress: Mapping[str, Progress]) -> None:
        self._progress = progress

    def collect(self) -> Iterable[Family]:
        return [_family(metric, self._progress) for metric in METRICS]


def _family(metric: StreamMetric, progress: Mapping[str, Progress]) -> Family:
    of = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = of(metric.name, metric.help, labels=metric.labels)
    for labels, value in sorted(_values(metric, progress)):
        family.add_metric(labels, value)
    return family


def _values(metric: StreamMetric, progress: Mapping[str, Progress]) -> Iterator[tuple[tuple[str, ...], float]]:
    for source, of_source in progress.items():
        yield from (((source, *labels), value) for labels, value in metric.values(of_source).items())


def registry_of(progress: Mapping[str, Progress]) -> CollectorRegistry:
    """What has the metrics of these sources, as they are when it is asked."""
    made = CollectorRegistry()
    made.register(_Families(progress))
    return made


def serve(progress: Mapping[str, Progress], host: str, port: int) -> WSGIServer:
    """Answer Prometheus on a port, which the system chooses for 0, from a thread of its own. `server_port` says which.

    Raises:
        ConfigurationError: somebody else has the port.
    """
    try:
        server, _ = start_http_server(port, addr=host, registry=registry_of(progress))
    except OSError as error:
        raise ConfigurationError(
            f"Metrics cannot be shown at {host}:{port} ({error.strerror}). Name another port: --metrics-port"
        ) from error
    return server
