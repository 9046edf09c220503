"""Pushes over HTTP: rows of any form as JSON, and the receipt of what was taken."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import polars as pl

from feature_assets.errors import RequestError, StoreUnavailable
from feature_assets.lookup.entities import as_columns, as_list
from feature_assets.remote.answers import dumped, plain

PATH: Final = "/push"
WRITE_PATH: Final = "/write-to-online-store"
PUBLISHED_PATH: Final = "/v1/pushes"

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


@dataclass(frozen=True, slots=True)
class RemotePushed:
    """See `Pushed`: how many rows were taken for which views. `wait` asks the server until they are in both stores."""

    rows: int
    views: tuple[str, ...]
    journal: str
    sequence: int
    _published: Callable[[Mapping[str, Any]], bool] = field(repr=False, compare=False)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the rows are in both stores; whether they are, if not for ever."""
        latest = None if seconds is None else time.monotonic() + seconds
        asked = {"journal": self.journal, "sequence": self.sequence, "view": list(self.views)}
        pause = _FIRST_PAUSE
        while not self._published(asked):
            if latest is not None and time.monotonic() + pause > latest:
                return False
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)
        return True


def push_question(source: str, rows: Any, *, to: str, event_id: str | None) -> bytes:
    """The body of POST /push."""
    return _question({"push_source_name": source, "to": to}, rows, event_id)


def write_question(view: str, rows: Any, *, event_id: str | None) -> bytes:
    """The body of POST /write-to-online-store."""
    return _question({"feature_view_name": view}, rows, event_id)


def _question(body: dict[str, Any], rows: Any, event_id: str | None) -> bytes:
    columns = {name: plain(values) for name, values in _columns(rows).items()}
    more = {} if event_id is None else {"event_id": event_id}
    return dumped({**body, **more, "df": columns, "receipt": True})


def _columns(rows: Any) -> Mapping[str, list[Any]]:
    """Rows of any form, by column.

    Raises:
        RequestError: they are of no known form, or a time in them has nanoseconds, which JSON's reader would drop.
    """
    if isinstance(rows, list | tuple):
        for at, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise RequestError(
                    f"Pushed row {at} is {type(row).__name__}. Give each as a dict, as in {{'driver_id': 7}}."
                )
        names = dict.fromkeys(name for row in rows for name in row)
        return {str(name): [row.get(name) for row in rows] for name in names}
    if isinstance(rows, pl.LazyFrame):
        rows = rows.collect()
    if hasattr(rows, "__arrow_c_stream__") and not isinstance(rows, pl.DataFrame):
        rows = pl.DataFrame(rows)
    if isinstance(rows, pl.DataFrame):
        rows = rows.with_columns(_in_microseconds(rows[name]) for name in rows.columns)
    given = as_columns(rows)
    return {str(name): as_list(name, given[name]) for name in given}


def _in_microseconds(column: pl.Series) -> pl.Series:
    if not isinstance(column.dtype, pl.Datetime):
        return column
    micros = column.dt.cast_time_unit("us")
    if column.dtype.time_unit == "ns" and (micros.dt.cast_time_unit("ns") != column).any():
        raise RequestError(f"'{column.name}' has times that are not in whole microseconds. Round them on purpose.")
    return micros


def pushed(body: bytes, published: Callable[[Mapping[str, Any]], bool]) -> RemotePushed:
    """What the receipt says.

    Raises:
        StoreUnavailable: it is none.
    """
    try:
        told = orjson.loads(body)
        return RemotePushed(told["rows"], tuple(told["views"]), told["journal"], told["sequence"], published)
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable() from error


def published(body: bytes) -> bool:
    """What the server says of rows that were pushed.

    Raises:
        StoreUnavailable: it says something else.
    """
    try:
        return bool(orjson.loads(body)["published"])
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable() from error


def _unreadable() -> StoreUnavailable:
    return StoreUnavailable("The server's answer cannot be read. Is it a feature server of this release?")
