"""The online store on DynamoDB; see `catalogue` for how a publication is entered without a transaction."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from threading import Lock
from typing import Any
from uuid import uuid4

import polars as pl

from feature_assets.errors import PublicationConflict, StoreError, TableMissing
from feature_assets.online.dynamodb.calls import KEYS_AT_ONCE, PUTS_AT_ONCE, Calls, Item, NotThere, Refused
from feature_assets.online.dynamodb.catalogue import Catalogue, Stored, Writing
from feature_assets.online.dynamodb.items import TOKEN, Shape
from feature_assets.online.dynamodb.keys import KEY
from feature_assets.online.dynamodb.location import Location
from feature_assets.online.dynamodb.reader import DynamoReader, Keys, read_together
from feature_assets.online.dynamodb.sizes import check_sizes
from feature_assets.online.dynamodb.tables import Change, Tables
from feature_assets.online.protocol import (
    Answer,
    AppliedPublication,
    Ledger,
    TableDifference,
    WriteCount,
    checked,
    row_schema,
    token_schema,
)
from feature_assets.spec import ViewSpec

_WORTH_A_LOAD = 2_000
"""Rows from which on a table that nobody wrote to is filled by batches, which cost the same and take a tenth of the calls."""

_WORTH_A_LOOK = 10
_ROWS_AT_ONCE = 1_000


def open_store(url: str) -> "DynamoOnlineStore":
    """The store of `dynamodb:prefix?region=…` (see `Location`); tables are made when views are prepared."""
    return DynamoOnlineStore(Location.of(url))


class DynamoOnlineStore:
    """See `OnlineStore` in the protocol for what each method promises."""

    def __init__(self, location: Location) -> None:
        self._calls = Calls(location)
        self._tables = Tables(self._calls)
        self._catalogue = Catalogue(self._calls, self._tables)
        self._names: dict[tuple[str, int], str] = {}
        self._lock = Lock()
        self._writing: dict[tuple[str, int, int], list[Writing]] = {}

    def __repr__(self) -> str:
        return f"DynamoOnlineStore('{self._calls.location.prefix}')"

    def prepare(self, view: ViewSpec) -> None:
        self._catalogue.prepare(view)
        self._expire(view, self._catalogue.needed(view).table)

    def check_sizes(self, view: ViewSpec, rows: pl.LazyFrame) -> None:
        """See `LimitsSizes` in the protocol."""
        check_sizes(view, rows)

    @property
    def forgets_expired(self) -> bool:
        """See `ForgetsExpired` in the protocol."""
        return self._calls.location.expire

    def _expire(self, view: ViewSpec, table: str) -> None:
        if view.ttl is not None and self.forgets_expired:
            self._tables.expire(table)

    @property
    def lookups_at_once(self) -> int:
        """See `ReadsOverNetwork` in the protocol."""
        return self._calls.location.lookups

    def reader(self, view: ViewSpec, features: Sequence[str]) -> DynamoReader:
        return DynamoReader(self._calls, view, features, self._table)

    def read_together(self, questions: Sequence[tuple[DynamoReader, Keys]]) -> list[Answer]:
        """See `ReadsTogether` in the protocol."""
        return read_together(self._calls, self._table, questions)

    def _table(self, view: ViewSpec, *, fresh: bool = False) -> str:
        """The table of a view version, by memory unless it has to be `fresh`."""
        known = self._names.get((view.name, view.version))
        if known is None or fresh:
            known = self._names[view.name, view.version] = self._catalogue.needed(view).table
        return known

    def write(self, view: ViewSpec, rows: pl.DataFrame, publication: AppliedPublication | None) -> WriteCount:
        rows = checked(view, rows, row_schema(view))
        shape = Shape(view)
        items = _latest(list(shape.items(rows)))
        stored = self._begun(view)
        if publication is None:
            return WriteCount(written := self._put(view, shape, stored, items, None), rows.height - written)
        if self._catalogue.is_superseded(view, publication.at_most):
            return WriteCount(superseded=True)
        with _says_which(view):
            writing = Writing(self._calls, view, publication)
        loaded = stored.writes == 1 and len(items) >= _WORTH_A_LOAD and self._load(view, stored, items)
        written = len(items) if loaded else self._put(view, shape, stored, items, writing)
        # What has been seen is looked at again: whoever enters from now on has not read yet what stands here.
        if not self._catalogue.enter(view, publication) or self._catalogue.is_superseded(view, publication.at_most):
            with self._lock:
                self._writing.setdefault((view.name, view.version, publication.publication), []).append(writing)
            return WriteCount(superseded=True)
        writing.end()
        return WriteCount(written, rows.height - written)

    def _begun(self, view: ViewSpec) -> Stored:
        declared = {name: str(of) for name, of in Shape(view).types.items()}
        stored = self._catalogue.begin(view)
        if any(name in declared and name not in stored.types for name in (field.name for field in view.features)):
            self._catalogue.prepare(view)
        self._names[view.name, view.version] = stored.table
        return stored

    def _load(self, view: ViewSpec, stored: Stored, items: Sequence[Item]) -> bool:
        """Fill a table of its own and serve from it, unless somebody else has begun to write; whether that went well."""
        table = self._catalogue.table_name(view, load=uuid4().hex[:12])
        self._tables.make(table, (KEY, "B"))
        self._expire(view, table)
        parts = [items[start : start + PUTS_AT_ONCE] for start in range(0, len(items), PUTS_AT_ONCE)]
        for _ in self._calls.together(lambda part: self._calls.put_all(table, part), parts):
            pass
        moved = self._catalogue.move(view, stored, table)
        self._tables.delete(stored.table if moved else table)
        if moved:
            self._names[view.name, view.version] = table
            self._catalogue.raise_watermark(view, _latest_event(view, items))
        return moved

    def _put(self, view: ViewSpec, shape: Shape, stored: Stored, items: Sequence[Item], writing: Writing | None) -> int:
        """Put each item unless a later one is stored; how many were."""
        if not items:
            return 0
        latest = _latest_event(view, items)
        if stored.watermark is not None and latest < stored.watermark and len(items) >= _WORTH_A_LOOK:
            # Reading a key costs a part of what a refused write costs.
            items = self._winners(view, stored.table, items)
        written = 0
        for start in range(0, len(items), _ROWS_AT_ONCE):
            if writing is not None:
                writing.renew()
            written += self._put_some(view, stored.table, items[start : start + _ROWS_AT_ONCE], writing)
        self._catalogue.raise_watermark(view, latest)
        return written

    def _put_some(self, view: ViewSpec, table: str, items: Sequence[Item], writing: Writing | None) -> int:
        until = None if writing is None else writing.until

        def put(item: Item) -> bool | Exception:
            if until is not None and time.monotonic() > until:
                return PublicationConflict("The write was too slow.")
            try:
                self._calls.call(
                    "put_item",
                    TableName=table,
                    Item=item,
                    ConditionExpression=f"attribute_not_exists({_T}) OR {_T} <= :token",
                    ExpressionAttributeNames={_T: TOKEN},
                    ExpressionAttributeValues={":token": item[TOKEN]},
                )
            except Refused:
                return False
            except NotThere:
                return TableMissing.of(view.name, view.version, "online")
            except StoreError as error:
                return error
            return True

        done = list(self._calls.together(put, items))
        failed = [(item, result) for item, result in zip(items, done, strict=True) if isinstance(result, Exception)]
        if failed:
            raise _named(view, failed) from failed[0][1]
        return sum(result is True for result in done)

    def _winners(self, view: ViewSpec, table: str, items: Sequence[Item]) -> list[Item]:
        with _says_which(view):
            stored = self._looked_up(table, [item[KEY]["B"] for item in items], [TOKEN])
        return [
            item
            for item in items
            if (found := stored.get(item[KEY]["B"])) is None or found[TOKEN]["S"] <= item[TOKEN]["S"]
        ]

    def _looked_up(self, table: str, keys: Sequence[bytes], columns: Sequence[str]) -> dict[bytes, Item]:
        """What there is of some columns of the items of these keys, as it is at this moment."""
        names = {f"#{number}": name for number, name in enumerate(dict.fromkeys((KEY, *columns)))}
        shared = {
            "ProjectionExpression": ", ".join(names),
            "ExpressionAttributeNames": names,
            "ConsistentRead": True,
        }
        unique = list(dict.fromkeys(keys))
        parts = [unique[start : start + KEYS_AT_ONCE] for start in range(0, len(unique), KEYS_AT_ONCE)]
        asked = [{table: {"Keys": [{KEY: {"B": key}} for key in part], **shared}} for part in parts]
        found: dict[bytes, Item] = {}
        for answer in self._calls.together(self._calls.got, asked):
            found.update(answer[table])
        return found

    def retract(self, view: ViewSpec, expected: pl.DataFrame, replacement: pl.DataFrame) -> int:
        shape = Shape(view)
        expected = checked(view, expected, token_schema(view))
        instead = {item[KEY]["B"]: item for item in shape.items(checked(view, replacement, row_schema(view)))}
        table = self._begun(view).table

        def take_back(asked: tuple[bytes, str]) -> bool:
            key, token = asked
            condition = {
                "TableName": table,
                "ConditionExpression": f"{_T} = :token",
                "ExpressionAttributeNames": {_T: TOKEN},
                "ExpressionAttributeValues": {":token": {"S": token}},
            }
            try:
                if key in instead:
                    self._calls.call("put_item", Item=instead[key], **condition)
                else:
                    self._calls.call("delete_item", Key={KEY: {"B": key}}, **condition)
            except Refused:
                return False
            return True

        with _says_which(view):
            pairs = list(zip(shape.keys(expected), shape.tokens(expected), strict=True))
            done = list(self._calls.together(take_back, pairs))
        set_to = [instead[key] for (key, _), went in zip(pairs, done, strict=True) if went and key in instead]
        if set_to:
            self._catalogue.raise_watermark(view, _latest_event(view, set_to))
        return done.count(False)

    def settle(
        self, view: ViewSpec, publication: int, partitions: Sequence[str], *, whole_since: datetime | None = None
    ) -> None:
        self._catalogue.needed(view)
        self._catalogue.settle(view, publication, partitions)
        with self._lock:
            own = self._writing.pop((view.name, view.version, publication), [])
        for writing in own:
            writing.end()
        if whole_since is not None:
            self._catalogue.clear_dead(view, whole_since)

    def stored(self, view: ViewSpec, keys: pl.DataFrame | None = None) -> pl.DataFrame:
        shape = Shape(view)
        table = self._table(view, fresh=True)
        columns = list(token_schema(view))
        with _says_which(view):
            if keys is None or not view.join_keys:
                return shape.token_frame(list(self._scanned(table, columns)))
            found = self._looked_up(table, shape.keys(keys), columns)
        return shape.token_frame(list(found.values()))

    def scan(self, view: ViewSpec, *, batch_size: int = 50_000) -> Iterator[pl.DataFrame]:
        shape, items = Shape(view), []
        with _says_which(view):
            for item in self._scanned(self._table(view, fresh=True)):
                items.append(item)
                if len(items) == batch_size:
                    yield shape.frame(items)
                    items = []
        if items:
            yield shape.frame(items)

    def _scanned(self, table: str, columns: Sequence[str] = ()) -> Iterator[Item]:
        names = {f"#{number}": name for number, name in enumerate(columns)}
        projected = {"ProjectionExpression": ", ".join(names), "ExpressionAttributeNames": names} if names else {}
        start: dict[str, Any] = {}
        while True:
            answer = self._calls.call("scan", TableName=table, ConsistentRead=True, **projected, **start)
            yield from answer["Items"]
            if not answer.get("LastEvaluatedKey"):
                return
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    def delete(self, view: ViewSpec, keys: pl.DataFrame) -> int:
        shape = Shape(view)
        encoded = dict.fromkeys(shape.keys(keys) if view.join_keys else [b"\x01"])
        table = self._begun(view).table

        def remove(key: bytes) -> bool:
            answer = self._calls.call("delete_item", TableName=table, Key={KEY: {"B": key}}, ReturnValues="ALL_OLD")
            return bool(answer.get("Attributes"))

        with _says_which(view):
            return sum(self._calls.together(remove, encoded))

    def ledger(self, view: ViewSpec) -> Ledger:
        return self._catalogue.ledger(view)

    def forget(self, view: ViewSpec, partitions: Sequence[str]) -> None:
        self._catalogue.forget(view, partitions)

    def drop(self, view: ViewSpec) -> None:
        self._names.pop((view.name, view.version), None)
        self._catalogue.drop(view)

    def tables(self) -> list[tuple[str, int]]:
        return self._catalogue.views()

    def doctor(self) -> list[str]:
        """What is wrong with the tables, in words with a mend each; empty where all is well or nothing is stored yet."""
        return self._catalogue.problems()

    def differences(self, views: Iterable[ViewSpec]) -> Iterator[TableDifference]:
        """See `MadeByOptions` in the protocol."""
        return (change.difference for change in self._changes(views))

    def amend(self, views: Iterable[ViewSpec]) -> Iterator[TableDifference]:
        """See `MadeByOptions` in the protocol."""
        for change in self._changes(views):
            with suppress(NotThere):
                self._tables.make_change(change)
                yield change.difference

    def _changes(self, views: Iterable[ViewSpec]) -> Iterator[Change]:
        ttls = {(view.name, view.version): view.ttl for view in views}
        expire = {
            table: self.forgets_expired and ttls[version] is not None
            for version, table in self._catalogue.names()
            if version in ttls
        }
        for table in sorted(self._tables.own()):
            # A first load that ended meanwhile has removed the table that it took the place of.
            with suppress(NotThere):
                yield from self._tables.changes(table, expire.get(table))

    def units(self) -> tuple[float, float]:
        """Read and write units that this process has consumed here."""
        return self._calls.units()

    def close(self) -> None:
        self._calls.close()


_T = "#token"


@contextmanager
def _says_which(view: ViewSpec) -> Iterator[None]:
    try:
        yield
    except NotThere as error:
        raise TableMissing.of(view.name, view.version, "online") from error


def _latest(items: Sequence[Item]) -> list[Item]:
    """Of several items of one key the latest."""
    found: dict[bytes, Item] = {}
    for item in items:
        key = item[KEY]["B"]
        if key not in found or found[key][TOKEN]["S"] <= item[TOKEN]["S"]:
            found[key] = item
    return list(found.values())


def _latest_event(view: ViewSpec, items: Sequence[Item]) -> int:
    return max(int(item[view.event_timestamp]["N"]) for item in items)


def _named(view: ViewSpec, failed: Sequence[tuple[Item, Exception]]) -> Exception:
    """One error for the keys that were not written."""
    first = failed[0][1]
    if isinstance(first, TableMissing):
        return first
    types = view.join_keys
    keys = ["/".join(str(of.from_dynamodb(item[name])) for name, of in types.items()) for item, _ in failed]
    shown = ", ".join(keys[:10]) + (f" and {len(keys) - 10} more" if len(keys) > 10 else "")
    kind = type(first) if isinstance(first, StoreError) else PublicationConflict
    return kind(
        f"View '{view.name}': {len(failed)} keys were not written online ({shown}): {str(first).rstrip('.')}. "
        f"Offline is right; run: feature-assets reconcile {view.name}"
    )
