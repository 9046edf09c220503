"""Dagster's event log in SQLite, for runs over many partitions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dagster._core.events import ASSET_EVENTS
from dagster._core.events.log import EventLogEntry
from dagster._core.instance.config import dagster_instance_config
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._serdes import ConfigurableClassData

BATCH = 250
"""So many events Dagster hands to its event log at once. Other processes wait for the index as long as it takes to store them."""

_CHOSEN = ("storage", "run_storage", "event_log_storage", "schedule_storage", "instance_class")


class BatchedSqliteEventLog(SqliteEventLogStorage):
    """Dagster's own event log, which stores the events of many partitions in one transaction.

    Dagster's forces every event to the disk by itself, in two databases, and there are three events a partition. The files
    are the same, and whoever reads them sees no difference.
    """

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "BatchedSqliteEventLog":
        return cls(inst_data=inst_data, **config_value)

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        together = [one for one in events if one.dagster_event_type in ASSET_EVENTS]
        if together:
            self._store_together(together)
        for one in events:
            if one.dagster_event_type not in ASSET_EVENTS:
                self.store_event(one)

    def _store_together(self, events: Sequence[EventLogEntry]) -> None:
        rows = [self._event_to_row(one) for one in events]
        # The index first: other processes write it too, and what fails there Dagster stores again, one by one.
        with self.index_transaction() as connection:
            connection.execute(SqlEventLogStorageTable.insert(), rows)
            # SQLite numbers them one after the other, as long as nobody else can write.
            last_number: int = connection.exec_driver_sql("SELECT last_insert_rowid()").scalar_one()
            numbers = range(last_number - len(rows) + 1, last_number + 1)
            self._store_asset_event_tags(connection, events, numbers)
            last = {
                (row["asset_key"], row["dagster_event_type"]): (event, number)
                for row, event, number in zip(rows, events, numbers, strict=True)
            }
            for event, number in last.values():
                self._store_asset_event(connection, event, number)
        with self.run_connection(events[0].run_id) as connection:
            connection.execute(SqlEventLogStorageTable.insert(), rows)


def batched(home: Path) -> dict[str, Any]:
    """What makes an instance of this home use it; nothing where its settings say where events are kept."""
    settings, _ = dagster_instance_config(str(home))
    if any(settings.get(name) for name in _CHOSEN):
        return {}
    log = {"module": __name__, "class": BatchedSqliteEventLog.__name__}
    return {"event_log_storage": {**log, "config": {"base_dir": str(home / "history" / "runs")}}}
