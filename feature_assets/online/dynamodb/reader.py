"""The compiled read of some features of a view."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from feature_assets.errors import TableMissing, UnknownFeature
from feature_assets.online.dynamodb.calls import KEYS_AT_ONCE, Calls, Item, NotThere
from feature_assets.online.dynamodb.items import KEY, Shape
from feature_assets.spec import ViewSpec

Keys = Sequence[tuple[Any, ...]]
Answer = tuple[list[int | None], list[Sequence[Any]]]

_FRESH: Final = 2
"""How often a table's name is looked up: once it may have been moved between the two."""


class DynamoReader:
    """See `Reader` in the protocol. `where` tells the table's name, the second time not from memory."""

    def __init__(
        self, calls: Calls, view: ViewSpec, features: Sequence[str], where: Callable[..., str]
    ) -> None:
        known = {field.name: field.type for field in view.features}
        for name in features:
            if name not in known:
                raise UnknownFeature.among(view.name, name, list(known))
        self._calls, self._view, self._where = calls, view, where
        self._key = Shape(view).key
        self._decoders = [(name, known[name].from_dynamodb) for name in features]
        self._event = view.event_timestamp
        columns = dict.fromkeys((KEY, self._event, *features))
        self._names = {f"#{number}": name for number, name in enumerate(columns)}
        self._asked = {
            "ProjectionExpression": ", ".join(self._names),
            "ExpressionAttributeNames": self._names,
            "ConsistentRead": calls.location.consistent,
        }

    def __call__(self, keys: Keys) -> Answer:
        """The stored rows of these keys, in their order."""
        encoded = list(map(self._key, keys))
        unique = list(dict.fromkeys(key for key in encoded if key is not None))
        found = self._found(unique)
        items = [None if key is None else found.get(key) for key in encoded]
        events = [None if item is None else int(item[self._event]["N"]) for item in items]
        columns: list[Sequence[Any]] = [
            tuple(
                [None if item is None or name not in item else decode(item[name]) for item in items]
            )
            for name, decode in self._decoders
        ]
        return events, columns

    def _found(self, keys: Sequence[bytes]) -> dict[bytes, Item]:
        for attempt in range(_FRESH):
            table = self._where(self._view, fresh=attempt > 0)
            try:
                return self._read(table, keys)
            except NotThere:
                continue
        raise TableMissing.of(self._view.name, self._view.version, "online")

    def _read(self, table: str, keys: Sequence[bytes]) -> dict[bytes, Item]:
        if len(keys) == 1:
            answer = self._calls.call(
                "get_item", TableName=table, Key={KEY: {"B": keys[0]}}, ReturnConsumedCapacity="TOTAL", **self._asked
            )
            return {keys[0]: answer["Item"]} if "Item" in answer else {}
        return self._many(table, keys)

    def _many(self, table: str, keys: Sequence[bytes]) -> dict[bytes, Item]:
        parts = [keys[start : start + KEYS_AT_ONCE] for start in range(0, len(keys), KEYS_AT_ONCE)]
        asked = ({table: {"Keys": [{KEY: {"B": key}} for key in part], **self._asked}} for part in parts)
        found: dict[bytes, Item] = {}
        for answer in self._answers(list(asked)):
            found.update(answer[table])
        return found

    def _answers(self, asked: Sequence[dict[str, Any]]) -> Iterable[dict[str, dict[bytes, Item]]]:
        if len(asked) == 1:
            return [self._calls.got(asked[0], key=KEY)]
        return self._calls.together(lambda one: self._calls.got(one, key=KEY), asked)
