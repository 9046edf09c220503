"""A view, its two stores, and what they have to hold, kept by hand: a dict of partitions with the rows of each."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import polars as pl

from feature_assets.conform import PartitionSlice
from feature_assets.offline import InJournal, Moved, OfflineStore, Overtaken
from feature_assets.online import open_online_store
from feature_assets.publication import append, publish
from feature_assets.settlement import erase, finish_stream
from feature_assets.spec import EVENT_ID, PARTITION, PUBLICATION, SEQUENCE, Entity, Field, ViewSpec
from feature_assets.types import FeatureType, Int64, String
from tests.promises.turns import Actor

START = datetime(2024, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
SHARD = "events/0"
CLOCK = pl.Datetime("us", "UTC")

Key: TypeAlias = tuple[Any, ...]
Row: TypeAlias = tuple[Key, int, int | None, int | None]
"""key, minute of its partition, minutes until it was reported, value"""

Stored: TypeAlias = tuple[Key, Any, Any, int | None, int]
"""key, event, created, value, publication"""


@dataclass(frozen=True)
class Case:
    """A kind of view: `days` have windows of time, `regions` do not, so that equal times meet in several of them."""

    keys: Sequence[Key]
    types: Mapping[str, FeatureType]
    created: bool
    days: bool

    @property
    def partitions(self) -> list[str]:
        return [f"2024-03-0{day}" for day in (1, 2, 3)] if self.days else ["east", "north", "west"]

    @property
    def view(self) -> ViewSpec:
        return ViewSpec(
            name="weather",
            entities=(Entity("airport", join_keys=dict(self.types)),) if self.types else (),
            features=(Field("temp", Int64),),
            event_timestamp="observed_at",
            created_timestamp="reported_at" if self.created else None,
        )

    def slice(self, partition: str) -> PartitionSlice:
        if not self.days:
            return PartitionSlice(partition, dimensions={"region": partition})
        start = START + DAY * self.partitions.index(partition)
        return PartitionSlice(partition, start, start + DAY)

    def frame(self, rows: Mapping[str, Sequence[Row]]) -> pl.DataFrame:
        flat = [
            (*key, *self._times(partition, minute, delay), value, partition)
            for partition, of_partition in rows.items()
            for key, minute, delay, value in of_partition
        ]
        schema = {
            **{name: of.polars for name, of in self.types.items()},
            "observed_at": CLOCK,
            "reported_at": CLOCK,
            "temp": pl.Int64(),
            "region": pl.String(),
        }
        return pl.DataFrame(flat, schema=schema, orient="row")

    def _times(self, partition: str, minute: int, delay: int | None) -> tuple[datetime, datetime | None]:
        event = START + MINUTE * minute + (DAY * self.partitions.index(partition) if self.days else timedelta(0))
        return event, event + MINUTE * delay if self.created and delay is not None else None

    def standing(self, rows: Mapping[str, Sequence[Row]]) -> dict[str, list[tuple[Key, Any, Any, int | None]]]:
        """What is stored of one publication: of rows with one key and the same times the last."""
        last = {
            (key, *self._times(partition, minute, delay)): (partition, value)
            for partition, of_partition in rows.items()
            for key, minute, delay, value in of_partition
        }
        stands: dict[str, list[tuple[Key, Any, Any, int | None]]] = {partition: [] for partition in rows}
        for (key, event, created), (partition, value) in last.items():
            stands[partition].append((key, event, created, value))
        return stands


CASES = {
    "days": Case([("a",), ("b",), ("ab",), ("",)], {"origin": String}, created=True, days=True),
    "regions": Case(
        [("a", 1), ("a", 2), ("b", 1), ("", -1)], {"origin": String, "runway": Int64}, created=True, days=False
    ),
    "uncreated": Case([(1,), (2,), (-1,)], {"gate": Int64}, created=False, days=False),
    "without entities": Case([()], {}, created=True, days=False),
}


@dataclass
class Platform:
    """The stores of one view, and the rows that have to stand in each partition.

    `log` are records of a stream with the partition that each is of, `consumed` the places of those that were published.
    """

    case: Case
    folder: Path
    online_url: str = ""
    stands: dict[str, list[Stored]] = field(default_factory=dict)
    journals: int = 0
    log: list[tuple[str, Row]] = field(default_factory=list)
    consumed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.view = self.case.view
        self.offline = OfflineStore(str(self.folder / "offline"), durability="process")
        self.online = open_online_store(self.online_url or f"sqlite:{self.folder / 'online.db'}")

    def publishing(self, actor: Actor, rows: Mapping[str, Sequence[Row]]) -> None:
        """Publish these rows as one of several."""

        def committed(commit: Any) -> None:
            self._replaced(rows, commit.publication)

        self._publish(rows, actor.store(self.offline, replace=committed), actor.store(self.online))

    def publish(self, rows: Mapping[str, Sequence[Row]]) -> int:
        number = self._publish(rows, self.offline, self.online)
        self._replaced(rows, number)
        return number

    def _replaced(self, rows: Mapping[str, Sequence[Row]], number: int) -> None:
        for partition, stands in self.case.standing(rows).items():
            self.stands[partition] = [(*row, number) for row in stands]

    def pushing(self, actor: Actor, rows: Mapping[str, Sequence[Row]]) -> None:
        """Push these rows as one of several, as from a journal of their own."""
        self.journals += 1

        def committed(answer: Any) -> None:
            _, found = answer
            self._stands(found.fresh)

        stores = {
            "offline": actor.store(self.offline, append=committed),
            "online": actor.store(self.online),
        }
        append(self.view, self._appended(rows), numbered=InJournal(f"journal{self.journals}"), **stores)

    def streaming(self, actor: Actor, most: int) -> None:
        """Consume so many records of the log as one of several, who all take its shard for theirs."""
        offline, online = actor.store(self.offline), actor.store(self.online)
        at = offline.streamed(self.view, "events", [SHARD])[SHARD].position
        finish_stream(self.view, "events", [SHARD], offline, online)
        begins = 0 if at is None else at + 1
        records = self.log[begins : begins + most]
        if not records:
            return
        moved = Moved("events", {SHARD: at}, {SHARD: begins + len(records) - 1})

        def committed(answer: Any) -> None:
            commit, found = answer
            if commit is not None:
                self.consumed += range(begins, begins + len(records))
                self._stands(found.fresh)

        rows: dict[str, list[Row]] = {}
        for partition, row in records:
            rows.setdefault(partition, []).append(row)
        with suppress(Overtaken):
            append(
                self.view,
                self._appended(rows),
                numbered=moved,
                offline=actor.store(self.offline, append=committed),
                online=online,
            )

    def _appended(self, rows: Mapping[str, Sequence[Row]]) -> pl.DataFrame:
        return self.case.frame(rows).select(
            *self.view.columns,
            pl.col("region").alias(PARTITION),
            pl.lit(None, pl.String).alias(EVENT_ID),
            pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(SEQUENCE),
        )

    def _stands(self, fresh: pl.DataFrame) -> None:
        for row in fresh.iter_rows(named=True):
            key = tuple(row[name] for name in self.view.join_keys)
            stored = (key, row["observed_at"], row.get("reported_at"), row["temp"], row[PUBLICATION])
            self.stands.setdefault(row[PARTITION], []).append(stored)

    def _publish(self, rows: Mapping[str, Sequence[Row]], offline: Any, online: Any) -> int:
        slices = [self.case.slice(partition) for partition in rows]
        return publish(self.view, self.case.frame(rows), slices, offline=offline, online=online).number

    def erasing(self, actor: Actor, keys: Sequence[Key]) -> None:
        """Erase these keys as one of several."""

        def committed(commit: Any) -> None:
            self.stands = {
                partition: [row for row in rows if row[0] not in keys] for partition, rows in self.stands.items()
            }

        schema = {name: of.polars for name, of in self.case.types.items()}
        frame = pl.DataFrame(list(keys), schema=schema, orient="row")
        erase(self.view, frame, actor.store(self.offline, erase=committed), actor.store(self.online))

    def latest_by_hand(self) -> dict[Key, tuple[Any, Any, int | None]]:
        """What every key has to have online, by reading every row that stands."""
        best: dict[Key, tuple[Any, ...]] = {}
        for rows in self.stands.values():
            for key, event, created, value, number in rows:
                rank = (event, created is not None, created or event, number)
                if key not in best or rank > best[key][0]:
                    best[key] = (rank, event, created, value)
        return {key: (event, created, value) for key, (_, event, created, value) in best.items()}

    def stored(self) -> dict[Key, tuple[Any, Any, int | None]]:
        """What every key has online."""
        return {
            tuple(row[name] for name in self.view.join_keys): (
                row["observed_at"],
                row.get("reported_at"),
                row["temp"],
            )
            for frame in self.online.scan(self.view)
            for row in frame.iter_rows(named=True)
        }
