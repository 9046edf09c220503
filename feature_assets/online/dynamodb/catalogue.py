"""The one table beside those of the views: which view versions have a table of which name, and the ledger.

    view            part
    __views         weather/v1             its table, its columns' types, the latest event ever written
    weather/v1      partition/2013-02-08   the last publication of the partition that is reflected here
    weather/v1      writing/3f2a…          a publication that is being written now

DynamoDB has no transaction over as many items as a publication has. So a writer first says that it writes, then writes
its rows, then enters its publication, which fails where a later one stands there by now. If it dies in between, what it
said stays: until it was cleared by `settle`, the partitions count as unsettled. Whoever writes renews what it said, and
stops where it cannot; once that is old enough, its writer writes no more.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

from feature_assets.errors import PublicationConflict, TableMissing
from feature_assets.online.dynamodb.calls import Calls, Item, NotThere, Refused
from feature_assets.online.dynamodb.keys import KEY
from feature_assets.online.dynamodb.tables import Tables
from feature_assets.online.protocol import AppliedPublication, Ledger, LedgerEntry, column_types, refuse_other_types
from feature_assets.spec import ViewSpec
from feature_assets.types import moment

SECONDS_TO_RENEW: Final = 15.0
SECONDS_TO_STOP: Final = 60.0
SECONDS_TO_EXPIRE: Final = 300.0
"""From the last renewal: after the second of these a writer writes no more, after the third everybody counts on it."""

_VIEWS = "__views"
_PARTITION = "partition/"
_WRITING = "writing/"


@dataclass(frozen=True, slots=True)
class Stored:
    """What is known of a view version: its table, the types of its columns, the writes that were begun, the latest event."""

    table: str
    keys: tuple[str, ...]
    types: Mapping[str, str]
    writes: int
    watermark: int | None


class Catalogue:
    """See the module. Safe to share between threads and processes."""

    def __init__(self, calls: Calls, tables: Tables) -> None:
        self._calls, self._tables = calls, tables
        self._name = f"{calls.location.prefix}.catalogue"

    # View versions

    def find(self, view: ViewSpec) -> Stored | None:
        """What is known of the view version, or None where it has no table."""
        try:
            answer = self._calls.call("get_item", TableName=self._name, Key=_view_key(view), ConsistentRead=True)
        except NotThere:
            return None
        return _stored(answer["Item"]) if "Item" in answer else None

    def needed(self, view: ViewSpec) -> Stored:
        """What is known of the view version.

        Raises:
            TableMissing: it has no table.
        """
        found = self.find(view)
        if found is None:
            raise TableMissing.of(view.name, view.version, "online")
        return found

    def prepare(self, view: ViewSpec) -> None:
        """Make the table, or note the features that it gets.

        Raises:
            DeclarationError: a stored column has another type.
        """
        declared = {name: str(of) for name, of in column_types(view).items()}
        while True:
            found = self.find(view)
            if found is None:
                self._make(view, declared)
                continue
            refuse_other_types(view, found.keys, found.types)
            types = {**found.types, **declared}
            if types == found.types:
                return
            with suppress(Refused):
                self._calls.call(
                    "update_item",
                    TableName=self._name,
                    Key=_view_key(view),
                    UpdateExpression="SET #types = :types",
                    ConditionExpression="#types = :before",
                    ExpressionAttributeNames={"#types": "types"},
                    ExpressionAttributeValues={":types": _text(types), ":before": _text(found.types)},
                )

    def _make(self, view: ViewSpec, declared: Mapping[str, str]) -> None:
        self._tables.make(self._name, ("view", "S"), ("part", "S"))
        table = self.table_name(view)
        self._tables.make(table, (KEY, "B"))
        item = {
            **_view_key(view),
            "table": {"S": table},
            "keys": {"S": json.dumps(list(view.join_keys))},
            "types": _text(declared),
            "writes": {"N": "0"},
        }
        with suppress(Refused):
            self._calls.call(
                "put_item", TableName=self._name, Item=item, ConditionExpression="attribute_not_exists(part)"
            )

    def table_name(self, view: ViewSpec, *, load: str = "") -> str:
        """The name of a table for the view version; a load has one of its own."""
        return f"{self._calls.location.prefix}.{view.name}.v{view.version}{'.' if load else ''}{load}"

    def drop(self, view: ViewSpec) -> None:
        """Forget the view version and delete its table."""
        found = self.find(view)
        if found is None:
            return
        for item in list(self._items(view)):
            self._calls.call("delete_item", TableName=self._name, Key={name: item[name] for name in ("view", "part")})
        self._calls.call("delete_item", TableName=self._name, Key=_view_key(view))
        self._tables.delete(found.table)

    def names(self) -> Iterator[tuple[tuple[str, int], str]]:
        """Each view version that has a table, with the table's name."""
        for item in self._query(_VIEWS):
            name, _, version = item["part"]["S"].rpartition("/v")
            yield (name, int(version)), _stored(item).table

    def views(self) -> list[tuple[str, int]]:
        """The view versions that have a table, sorted."""
        return sorted(version for version, _ in self.names())

    def problems(self) -> list[str]:
        """What is left over or not there, in words with a mend each."""
        found: list[str] = []
        wanted = {self._name}
        for item in self._query(_VIEWS):
            wanted.add(_stored(item).table)
            view = item["part"]["S"]
            dead = [
                one for one in self._query(view) if one["part"]["S"].startswith(_WRITING) and _is_dead(one, time.time())
            ]
            if dead:
                name = view.rpartition("/v")[0]
                found.append(
                    f"{len(dead)} writers of {view} died before they were done. Run: feature-assets reconcile {name}"
                )
        there = set(self._tables.own())
        for table in sorted(wanted - there):
            if there:
                found.append(f"Table {table} of {self._calls.described} is gone. Run: feature-assets reconcile --force")
        for table in sorted(there - wanted):
            found.append(
                f"Table {table} of {self._calls.described} serves no view: a first load that did not end left it. If none is "
                f"under way, delete it with: aws dynamodb delete-table --table-name {table}"
            )
        return found

    # Writing

    def begin(self, view: ViewSpec) -> Stored:
        """Count a write, and say where to.

        Raises:
            TableMissing: the view version has no table.
        """
        try:
            answer = self._calls.call(
                "update_item",
                TableName=self._name,
                Key=_view_key(view),
                UpdateExpression="ADD writes :one",
                ConditionExpression="attribute_exists(part)",
                ExpressionAttributeValues={":one": {"N": "1"}},
                ReturnValues="ALL_NEW",
            )
        except (NotThere, Refused) as error:
            raise TableMissing.of(view.name, view.version, "online") from error
        return _stored(answer["Attributes"])

    def raise_watermark(self, view: ViewSpec, event: int) -> None:
        """Note an event time that is later than any before."""
        with suppress(Refused):
            self._calls.call(
                "update_item",
                TableName=self._name,
                Key=_view_key(view),
                UpdateExpression="SET watermark = :event",
                ConditionExpression="attribute_exists(part) AND (attribute_not_exists(watermark) OR watermark < :event)",
                ExpressionAttributeValues={":event": {"N": str(event)}},
            )

    def move(self, view: ViewSpec, stored: Stored, table: str) -> bool:
        """Serve the view version from another table, if no write was begun since; whether that was so."""
        try:
            self._calls.call(
                "update_item",
                TableName=self._name,
                Key=_view_key(view),
                UpdateExpression="SET #table = :table",
                ConditionExpression="#table = :before AND writes = :writes",
                ExpressionAttributeNames={"#table": "table"},
                ExpressionAttributeValues={
                    ":table": {"S": table},
                    ":before": {"S": stored.table},
                    ":writes": {"N": str(stored.writes)},
                },
            )
        except Refused:
            # So is a second attempt whose first was carried out, and only its answer lost.
            return self.needed(view).table == table
        return True

    # Ledger

    def ledger(self, view: ViewSpec) -> Ledger:
        """What is reflected. A partition that is being written, or whose writer died, is not settled."""
        found = self.find(view)
        if found is None:
            return Ledger({})
        entries: dict[str, LedgerEntry] = {}
        writing: list[Item] = []
        for item in self._items(view):
            part = item["part"]["S"]
            if part.startswith(_PARTITION):
                entries[part.removeprefix(_PARTITION)] = _entry(item)
            else:
                writing.append(item)
        for item in writing:
            open_entry = _entry(item)
            for name, rows in json.loads(item["partitions"]["S"]).items():
                latest = entries.get(name)
                if latest is None or latest.publication < open_entry.publication:
                    latest = LedgerEntry(
                        open_entry.publication,
                        rows,
                        open_entry.delta_version,
                        settled=False,
                        applied_at=open_entry.applied_at,
                    )
                entries[name] = LedgerEntry(
                    latest.publication, latest.rows, latest.delta_version, settled=False, applied_at=latest.applied_at
                )
        watermark = None if found.watermark is None else moment(found.watermark)
        return Ledger(dict(sorted(entries.items())), watermark)

    def is_superseded(self, view: ViewSpec, at_most: Mapping[str, int]) -> bool:
        """Whether any of these entries has a later publication."""
        if not at_most:
            return False
        # One query reads the ledger of thousands of partitions; a call for each of them would take their number's time.
        return any(
            _entry(item).publication > at_most[name]
            for item in self._items(view)
            if (name := item["part"]["S"].removeprefix(_PARTITION)) in at_most
            and item["part"]["S"].startswith(_PARTITION)
        )

    def enter(self, view: ViewSpec, publication: AppliedPublication) -> bool:
        """Enter the publication; False where a later one of a partition stands there, the others are entered then too."""
        entered = list(self._calls.together(lambda name: self._enter(view, publication, name), publication.partitions))
        return all(entered)

    def _enter(self, view: ViewSpec, publication: AppliedPublication, partition: str) -> bool:
        item = {
            **_part_key(view, _PARTITION + partition),
            **_told(publication, publication.partitions[partition]),
            "settled": {"BOOL": publication.settled},
        }
        try:
            self._calls.call(
                "put_item",
                TableName=self._name,
                Item=item,
                ConditionExpression="attribute_not_exists(part) OR publication <= :publication",
                ExpressionAttributeValues={":publication": item["publication"]},
            )
        except Refused:
            return False
        return True

    def settle(self, view: ViewSpec, publication: int, partitions: Sequence[str]) -> None:
        """Mark entries of this publication."""

        def mark(name: str) -> None:
            with suppress(Refused):
                self._calls.call(
                    "update_item",
                    TableName=self._name,
                    Key=_part_key(view, _PARTITION + name),
                    UpdateExpression="SET settled = :yes",
                    ConditionExpression="publication = :publication",
                    ExpressionAttributeValues={":yes": {"BOOL": True}, ":publication": {"N": str(publication)}},
                )

        for _ in self._calls.together(mark, partitions):
            pass

    def clear_dead(self, view: ViewSpec, before: datetime) -> None:
        """Clear what writers said who had written their last before that moment."""
        for item in list(self._items(view)):
            part = item["part"]["S"]
            if part.startswith(_WRITING) and _is_dead(item, before.timestamp()):
                self._calls.call("delete_item", TableName=self._name, Key=_part_key(view, part))

    def forget(self, view: ViewSpec, partitions: Sequence[str]) -> None:
        with suppress(NotThere):
            for name in partitions:
                self._calls.call("delete_item", TableName=self._name, Key=_part_key(view, _PARTITION + name))

    def _items(self, view: ViewSpec) -> Iterator[Item]:
        return self._query(_whole(view))

    def _query(self, view: str) -> Iterator[Item]:
        start: dict[str, Any] = {}
        while True:
            try:
                answer = self._calls.call(
                    "query",
                    TableName=self._name,
                    KeyConditionExpression="#view = :view",
                    ExpressionAttributeNames={"#view": "view"},
                    ExpressionAttributeValues={":view": {"S": view}},
                    ConsistentRead=True,
                    **start,
                )
            except NotThere:
                return
            yield from answer["Items"]
            if not answer.get("LastEvaluatedKey"):
                return
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}


class Writing:
    """What a writer says of itself while it writes a publication."""

    def __init__(self, calls: Calls, view: ViewSpec, publication: AppliedPublication) -> None:
        self._calls, self._view = calls, view
        self._table = f"{calls.location.prefix}.catalogue"
        self._key = _part_key(view, _WRITING + uuid4().hex)
        self._item = {
            **self._key,
            **_told(publication, sum(publication.partitions.values())),
            "partitions": {"S": json.dumps(dict(publication.partitions))},
        }
        self._renewed = time.monotonic()
        self._put()

    def _put(self, **condition: str) -> None:
        started = time.monotonic()
        item = {**self._item, "renewed": {"N": f"{time.time():.3f}"}, "settled": {"BOOL": False}}
        self._calls.call("put_item", TableName=self._table, Item=item, **condition)
        self._renewed = started

    def renew(self) -> None:
        """Called now and then by who writes.

        Raises:
            PublicationConflict: others have counted this writer as dead.
        """
        if time.monotonic() - self._renewed < SECONDS_TO_RENEW:
            return
        try:
            self._put(ConditionExpression="attribute_exists(part)")
        except Refused as error:
            raise PublicationConflict(
                f"{self._view.name}: the online write took so long between two steps that it was counted as dead. Offline "
                f"is right; run: feature-assets reconcile {self._view.name}"
            ) from error

    @property
    def until(self) -> float:
        """The monotonic time after which no row may be written any more."""
        return self._renewed + SECONDS_TO_STOP

    def end(self) -> None:
        """All is written and entered."""
        self._calls.call("delete_item", TableName=self._table, Key=self._key)


def _is_dead(writing: Item, at: float) -> bool:
    return float(writing["renewed"]["N"]) + SECONDS_TO_EXPIRE < at


def _whole(view: ViewSpec) -> str:
    return f"{view.name}/v{view.version}"


def _view_key(view: ViewSpec) -> Item:
    return {"view": {"S": _VIEWS}, "part": {"S": _whole(view)}}


def _part_key(view: ViewSpec, part: str) -> Item:
    return {"view": {"S": _whole(view)}, "part": {"S": part}}


def _text(types: Mapping[str, str]) -> dict[str, str]:
    return {"S": json.dumps(types, sort_keys=True)}


def _told(publication: AppliedPublication, rows: int) -> Item:
    return {
        "publication": {"N": str(publication.publication)},
        "delta_version": {"N": str(publication.delta_version)},
        "rows": {"N": str(rows)},
        "applied_at": {"S": datetime.now(UTC).isoformat()},
    }


def _stored(item: Item) -> Stored:
    return Stored(
        table=item["table"]["S"],
        keys=tuple(json.loads(item["keys"]["S"])),
        types=json.loads(item["types"]["S"]),
        writes=int(item["writes"]["N"]),
        watermark=int(item["watermark"]["N"]) if "watermark" in item else None,
    )


def _entry(item: Item) -> LedgerEntry:
    return LedgerEntry(
        publication=int(item["publication"]["N"]),
        rows=int(item["rows"]["N"]),
        delta_version=int(item["delta_version"]["N"]),
        settled=bool(item["settled"]["BOOL"]),
        applied_at=datetime.fromisoformat(item["applied_at"]["S"]),
    )
