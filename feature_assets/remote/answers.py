"""Online questions and answers as JSON, both ways: an answer is the one that a store in this process would give."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import orjson

from feature_assets.errors import RequestError, StoreUnavailable
from feature_assets.lookup import MASKED, NOT_FOUND, OUTSIDE_MAX_AGE, EntityRows, OnlineResponse
from feature_assets.lookup.entities import ColumnCheck, as_columns, as_list
from feature_assets.lookup.response import Rows
from feature_assets.references import Features, Referable
from feature_assets.spec import ViewProjection, to_builtins
from feature_assets.types import Bytes, Date, Timestamp, microseconds, parse_type

_NO_TIME: Final = "1970-01-01T00:00:00Z"
_PLAIN: Final = frozenset({str, int, bool, type(None)})


def asked(features: Features) -> dict[str, Any]:
    """What is asked for, as the body of a request has it."""
    if isinstance(features, str) and ":" not in features:
        return {"feature_service": features}
    listed = [features] if isinstance(features, str | ViewProjection | Referable) else features
    return {"features": [_reference(one) for one in listed]}


def _reference(one: Any) -> Any:
    thing = one.reference if isinstance(one, Referable) else one
    if isinstance(thing, ViewProjection):
        return to_builtins(thing)
    if not isinstance(thing, str):
        raise RequestError(f"{thing!r} is not a feature reference, a view, a projection or a service.")
    return thing


def columns_of(rows: EntityRows) -> dict[str, list[Any]]:
    """Entity rows of any form, by column.

    Raises:
        RequestError: they are of no known form, or have not all the same columns.
    """
    if not isinstance(rows, list | tuple):
        given = as_columns(rows)
        return {str(name): as_list(name, given[name]) for name in given}
    if not rows:
        raise RequestError("There are no entity rows. Give at least one, as in [{'origin': 'JFK'}].")
    for position, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise RequestError(f"Entity row {position} is {row!r}. Give each as a dict, as in {{'origin': 'JFK'}}.")
    names = list(rows[0])
    for position, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            raise RequestError(
                f"Entity row {position} has {', '.join(map(str, row))}, and the first one {', '.join(map(str, names))}. "
                "Give all of them the same."
            )
    return {name: [row[name] for row in rows] for name in names}


def question(features: Features, columns: Mapping[str, list[Any]], *, full_feature_names: bool) -> bytes:
    """The body of POST /get-online-features."""
    body = asked(features) | {
        "entities": {name: plain(values) for name, values in columns.items()},
        "full_feature_names": full_feature_names,
        "include_types": True,
    }
    return dumped(body)


def dumped(value: Any) -> bytes:
    """JSON of what `plain` made plain.

    Raises:
        RequestError: there is something in it that JSON has no form for.
    """
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise RequestError(f"The request cannot be written as JSON: {error}.") from None


def plain(values: Iterable[Any]) -> list[Any]:
    """Python values in the JSON form of the type that they are of."""
    listed = list(values)
    if _PLAIN.issuperset(map(type, listed)):
        return (
            listed
            if all(type(one) is not int or -(2**63) <= one < 2**64 for one in listed)
            else list(map(_plain, listed))
        )
    return [_plain(one) for one in listed]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return Bytes.to_json([bytes(value)])[0]
    if isinstance(value, datetime):
        return Timestamp.to_json([Timestamp.parse(value)])[0]
    if isinstance(value, date):
        return Date.to_json([value])[0]
    if isinstance(value, Decimal | UUID):
        return str(value)
    if isinstance(value, Mapping):
        if all(isinstance(name, str) for name in value):
            return {name: _plain(one) for name, one in value.items()}
        return [[_plain(name), _plain(one)] for name, one in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist") and not isinstance(value, str):
        # NumPy's values and arrays.
        return _plain(value.tolist())
    return value


def response(body: bytes, given: Mapping[str, list[Any]]) -> OnlineResponse:
    """The answer, once what was asked is seen to be of the types that it has to be of.

    Raises:
        WrongType: a value of the request would not have been taken by a store in this process.
        StoreUnavailable: the answer is not one.
    """
    try:
        document = orjson.loads(body)
        metadata, results = document["metadata"], document["results"]
        entities = {name: parse_type(of) for name, of in metadata["entities"].items()}
        types = {column["name"]: parse_type(column["type"]) for column in metadata["columns"]}
        views = [column["view"] for column in metadata["columns"]]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreUnavailable("The server's answer cannot be read. Is it a feature server of this release?") from error
    for name, of in entities.items():
        # JSON has one string for text, bytes and times. What a local store would refuse, it has not seen as such.
        ColumnCheck(f"'{name}'", of, nullable=True)(given[name])
    checks = (ColumnCheck(f"'{name}'", of, nullable=True) for name, of in types.items())
    values = [check(result["values"]) for check, result in zip(checks, results, strict=True)]
    masked = frozenset(
        name
        for name, result in zip(types, results, strict=True)
        if result["statuses"] and set(result["statuses"]) == {MASKED}
    )
    rows = _rows(views, results)
    return OnlineResponse(types, values, [rows.get(view) for view in views], masked)


def _rows(views: Sequence[str | None], results: Sequence[Mapping[str, Any]]) -> dict[str | None, Rows]:
    """What each view had for the keys, told by one of its columns: one that is not masked, if there is any."""
    telling: dict[str, Mapping[str, Any]] = {}
    for view, result in zip(views, results, strict=True):
        if view is not None and (view not in telling or MASKED in telling[view]["statuses"]):
            telling[view] = result
    return {view: _had(result) for view, result in telling.items()}


def _had(result: Mapping[str, Any]) -> Rows:
    times, statuses = result["event_timestamps"], result["statuses"]
    events = [
        None
        if status == NOT_FOUND or (status == MASKED and at == _NO_TIME)
        else microseconds(datetime.fromisoformat(at))
        for at, status in zip(times, statuses, strict=True)
    ]
    expired = frozenset(at for at, status in enumerate(statuses) if status == OUTSIDE_MAX_AGE)
    return Rows(events, expired)
