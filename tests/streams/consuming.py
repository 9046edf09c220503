"""Consumers of this process, which run for as long as there is something to wait for."""

import threading
import time

from feature_assets.config import Settings
from feature_assets.streams.running import Consumers


def consume(settings: Settings, records: int) -> Consumers:
    """Run the consumers of these settings until `rides` has so many records, then end them."""
    consumers = Consumers(settings)
    thread = threading.Thread(target=consumers.run)
    thread.start()
    latest = time.monotonic() + 60
    while consumers.running["rides"].progress.records < records:
        assert time.monotonic() < latest
        time.sleep(0.05)
    consumers.stop()
    thread.join(30)
    assert not thread.is_alive()
    return consumers
