"""Compiled reads, alone and several at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from feature_assets.errors import TableMissing, UnknownFeature
from feature_assets.online.dynamodb.calls import KEYS_AT_ONCE, Calls, Item, NotThere
from feature_assets.online.dynamodb.items import Shape
from feature_assets.online.dynamodb.keys import KEY
from feature_assets.online.protocol import Answer
from feature_assets.spec import ViewSpec

Keys = Sequence[tuple[Any, ...]]

Encoded = list[bytes | None]

_ATTEMPTS: Final = 2
"""How often a table's name is looked up: once more, since it may have been moved."""


class DynamoReader:
    """See `Reader` in the protocol. `where` tells the table's name, on demand not from memory."""

    def __init__(self, calls: Calls, view: ViewSpec, features: Sequence[str], where: Callable[..., str]) -> None:
        known = {field.name: field.type for field in view.features}
        for name in features:
            if name not in known:
                raise UnknownFeature.among(view.name, name, list(known))
        self.view = view
        self.columns = tuple(dict.fromkeys((KEY, view.event_timestamp, *features)))
        self._calls, self._where = calls, where
        self._key = Shape(view).key
        self._decoders = [(name, known[name].from_dynamodb) for name in features]

    def __call__(self, keys: Keys) -> Answer:
        """The stored rows of these keys, in their order."""
        return read_together(self._calls, self._where, [(self, keys)])[0]

    def encoded(self, keys: Keys) -> Encoded:
        return list(map(self._key, keys))

    def decoded(self, keys: Encoded, found: Mapping[bytes, Item]) -> Answer:
        """The answer for these keys from the items that there are."""
        items = [None if key is None else found.get(key) for key in keys]
        event = self.view.event_timestamp
        events = [None if item is None else int(item[event]["N"]) for item in items]
        columns: list[Sequence[Any]] = [
            tuple([None if item is None or name not in item else decode(item[name]) for item in items])
            for name, decode in self._decoders
        ]
        return events, columns


def read_together(
    calls: Calls, where: Callable[..., str], questions: Sequence[tuple[DynamoReader, Keys]]
) -> list[Answer]:
    """The answers of several readers, whose tables are read by the same calls."""
    encoded = [reader.encoded(keys) for reader, keys in questions]
    views = [reader.view for reader, _ in questions]
    for attempt in range(_ATTEMPTS):
        tables = [where(view, fresh=attempt > 0) for view in views]
        try:
            found = _found(
                calls,
                [(table, reader, keys) for table, (reader, _), keys in zip(tables, questions, encoded, strict=True)],
            )
        except NotThere:
            continue
        return [
            reader.decoded(keys, found[table])
            for table, (reader, _), keys in zip(tables, questions, encoded, strict=True)
        ]
    raise TableMissing.of(views[0].name, views[0].version, "online")


def _found(calls: Calls, asked: Sequence[tuple[str, DynamoReader, Encoded]]) -> dict[str, dict[bytes, Item]]:
    """What there is in each table. One that is asked for twice is read once, with the columns of both."""
    columns: dict[str, dict[str, None]] = {}
    wanted: dict[tuple[str, bytes], None] = {}
    for table, reader, keys in asked:
        columns.setdefault(table, {}).update(dict.fromkeys(reader.columns))
        wanted.update(dict.fromkeys((table, key) for key in keys if key is not None))
    shared = {table: _projected(names, consistent=calls.location.consistent) for table, names in columns.items()}
    found: dict[str, dict[bytes, Item]] = {table: {} for table in columns}
    if len(wanted) == 1:
        ((table, key),) = wanted
        answer = calls.call("get_item", TableName=table, Key={KEY: {"B": key}}, **shared[table])
        if "Item" in answer:
            found[table][key] = answer["Item"]
        return found
    requests = [_request(part, shared) for part in _parts(list(wanted))]
    for answer in calls.together(calls.got, requests):
        for table, items in answer.items():
            found[table].update(items)
    return found


def _projected(names: Sequence[str] | Mapping[str, None], *, consistent: bool) -> dict[str, Any]:
    placeholders = {f"#{number}": name for number, name in enumerate(names)}
    return {
        "ProjectionExpression": ", ".join(placeholders),
        "ExpressionAttributeNames": placeholders,
        "ConsistentRead": consistent,
    }


def _parts(wanted: Sequence[tuple[str, bytes]]) -> list[Sequence[tuple[str, bytes]]]:
    return [wanted[start : start + KEYS_AT_ONCE] for start in range(0, len(wanted), KEYS_AT_ONCE)]


def _request(wanted: Sequence[tuple[str, bytes]], shared: Mapping[str, Any]) -> dict[str, Any]:
    request: dict[str, Any] = {}
    for table, key in wanted:
        request.setdefault(table, {"Keys": [], **shared[table]})["Keys"].append({KEY: {"B": key}})
    return request
