"""Rows as items and back: the key's bytes, the token's text, an attribute for each value that is not null.

A token's text sorts as `Token`s do, so that one comparison of strings is the whole guard.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Final

import polars as pl

from feature_assets.errors import ContractBroken
from feature_assets.online.dynamodb.calls import Item
from feature_assets.online.dynamodb.keys import KEY, LARGEST_KEY, KeyBytes, key_bytes
from feature_assets.online.protocol import column_types, token_schema
from feature_assets.spec import PUBLICATION, ViewSpec
from feature_assets.types import FeatureType, Int64

TOKEN: Final = "__token"  # noqa: S105 (what orders the rows of a key)
EXPIRES: Final = "__expires"
"""Seconds since 1970 after which DynamoDB may delete the item, where the view has a ttl."""

LARGEST_ITEM: Final = 400 * 1024

_OFFSET = 2**63
_GRACE = timedelta(days=2)


def token_text(event: int, created: int | None, publication: int) -> str:
    """A token as text of 48 hexadecimal digits that sorts as tokens do."""
    return f"{event + _OFFSET:016x}{0 if created is None else created + _OFFSET:016x}{publication:016x}"


def token_of(text: str) -> tuple[int, int | None, int]:
    """Event and created time in microseconds, and publication."""
    event, created, publication = (int(text[start : start + 16], 16) for start in (0, 16, 32))
    return event - _OFFSET, created - _OFFSET if created else None, publication


@dataclass(frozen=True)
class Shape:
    """How the rows of one view version lie in items."""

    view: ViewSpec

    @cached_property
    def types(self) -> dict[str, FeatureType]:
        """The type of each stored column, in the order of a row."""
        return {**column_types(self.view), PUBLICATION: Int64}

    @cached_property
    def key(self) -> KeyBytes:
        return key_bytes(self.view)

    def keys(self, frame: pl.DataFrame) -> list[bytes]:
        """The key of each row; no join key is null."""
        if not self.view.join_keys:
            return [b"\x01"] * frame.height
        columns = [of.from_frame(frame[name]) for name, of in self.view.join_keys.items()]
        return [self._whole(key) for key in zip(*columns, strict=True)]

    def _whole(self, key: tuple[Any, ...]) -> bytes:
        encoded = self.key(key)
        if encoded is None:
            raise ContractBroken(f"View '{self.view.name}': a join key is null; conform the rows first.")
        if len(encoded) > LARGEST_KEY:
            raise ContractBroken(
                f"View '{self.view.name}': a key takes {len(encoded)} bytes in DynamoDB, and {LARGEST_KEY} is its limit "
                f"(the key begins with {repr(key)[:60]}). Use shorter keys, or a digest of them."
            )
        return encoded

    def tokens(self, frame: pl.DataFrame) -> list[str]:
        """The token of each row, as text."""
        event = frame[self.view.event_timestamp].to_physical().to_list()
        created: Sequence[int | None] = [None] * frame.height
        if self.view.created_timestamp is not None:
            created = frame[self.view.created_timestamp].to_physical().to_list()
        return list(map(token_text, event, created, frame[PUBLICATION].to_list()))

    def items(self, rows: pl.DataFrame) -> Iterator[Item]:
        """An item for each row.

        Raises:
            ContractBroken: a row or its key is larger than DynamoDB takes.
        """
        values = {name: of.from_frame(rows[name]) for name, of in self.types.items()}
        ttl = self.view.ttl
        for position, (key, token) in enumerate(zip(self.keys(rows), self.tokens(rows), strict=True)):
            item: Item = {KEY: {"B": key}, TOKEN: {"S": token}}
            for name, of in self.types.items():
                value = values[name][position]
                if value is not None:
                    item[name] = of.to_dynamodb(value)
            if ttl is not None:
                expires = token_of(token)[0] / 1e6 + (ttl + _GRACE).total_seconds()
                item[EXPIRES] = {"N": str(int(expires))}
            if (size := item_size(item)) > LARGEST_ITEM:
                keys = ", ".join(f"{name}={values[name][position]!r}" for name in self.view.join_keys)
                raise ContractBroken(
                    f"View '{self.view.name}': the row of {keys[:200]} takes {size} bytes in DynamoDB, and {LARGEST_ITEM} "
                    "is its limit. Split the view, or store a reference to the large value."
                )
            yield item

    def frame(self, items: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
        """Items as rows, in their order."""
        return self._framed(items, self.types)

    def token_frame(self, items: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
        """The join keys and tokens of items, as `token_schema` has them."""
        return self._framed(items, {name: self.types[name] for name in token_schema(self.view)})

    def _framed(self, items: Sequence[Mapping[str, Any]], types: Mapping[str, FeatureType]) -> pl.DataFrame:
        return pl.DataFrame(
            [
                of.to_frame(name, [of.from_dynamodb(item[name]) if name in item else None for item in items])
                for name, of in types.items()
            ]
        )


def item_size(item: Item) -> int:
    """What DynamoDB counts of an item, to the byte or a little more."""
    return sum(len(name.encode()) + _value_size(value) for name, value in item.items())


def _value_size(value: Mapping[str, Any]) -> int:
    ((kind, held),) = value.items()
    if kind == "S":
        return len(held.encode())
    if kind == "B":
        return len(held)
    if kind == "N":
        return len(held.lstrip("-0.").rstrip("0").replace(".", "")) // 2 + 3
    if kind == "L":
        return 3 + sum(1 + _value_size(one) for one in held)
    if kind == "M":
        return 3 + sum(1 + len(name.encode()) + _value_size(one) for name, one in held.items())
    return 1
