"""What a consumer has done and where it is, for whoever watches."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from feature_assets.streams.log import Lag, Shard


@dataclass(slots=True)
class Progress:
    """Of one source in one process, since it began. `started` is when a consumer last joined its group (UTC).

    `rows` and `watermarks`, the latest event timestamps (UTC), are by view. `tombstones` are records without a value,
    `failures` those of stores, `overtaken` counts how often another consumer was first, and `lost` the records that the
    stream had removed before they were read. `error` is what it waits for, if it does.
    """

    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    records: int = 0
    batches: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    watermarks: dict[str, datetime] = field(default_factory=dict)
    letters: int = 0
    tombstones: int = 0
    failures: int = 0
    overtaken: int = 0
    lost: int = 0
    shards: set[Shard] = field(default_factory=set)
    lag: Mapping[Shard, Lag] = field(default_factory=dict)
    error: str = ""
