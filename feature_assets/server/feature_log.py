"""What the server does for services that are logged: it hands a sample of their answers to the log."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from feature_assets.config import Settings
from feature_assets.lookup import OnlineResponse
from feature_assets.server import metrics
from feature_assets.server.meters import Meters
from feature_assets.server.serving import LoggedService
from feature_assets.server.wire import OnlineQuestion
from feature_assets.types import microseconds

if TYPE_CHECKING:
    from feature_assets.served.writing import ServedLog


class FeatureLog:
    """Opened by the first answer that is logged: a server without such services loads nothing for it."""

    def __init__(self, settings: Settings, meters: Meters) -> None:
        self._settings = settings
        self._present = None if settings.present is None else microseconds(settings.present)
        self._log: ServedLog | None = None
        meters.watch(self._watched)

    def take(
        self, service: LoggedService, request: bytes, asked: OnlineQuestion, found: OnlineResponse, size: int
    ) -> None:
        """Log an answer, if it is in the sample. Never waits for the log."""
        from feature_assets.served.writing import Served, is_sampled

        if is_sampled(request, service.rate):
            at = self._present or time.time_ns() // 1_000
            one = Served(service.shape, service.registry, request.decode(), at, asked.entities, found, size)
            self._opened().take(one)

    def _opened(self) -> "ServedLog":
        if self._log is None:
            from feature_assets.served.shape import log_store
            from feature_assets.served.writing import ServedLog

            server = self._settings.server
            self._log = ServedLog(
                log_store(self._settings),
                seconds=server.feature_log_seconds,
                max_bytes=server.feature_log_max_bytes,
            )
        return self._log

    def _watched(self) -> Iterator[tuple[metrics.Metric, tuple[str, ...], float]]:
        if self._log is None:
            return
        counts = self._log.counts
        yield metrics.LOG_WAITING, (), self._log.waiting_bytes
        for outcome, by_service in (("written", counts.written), ("dropped", counts.dropped)):
            for service, count in by_service.copy().items():
                yield metrics.LOG_ROWS, (service, outcome), count
        for service, count in counts.failures.copy().items():
            yield metrics.LOG_FAILURES, (service,), count

    def close(self) -> None:
        """Write what waits."""
        if self._log is not None:
            self._log.close()
