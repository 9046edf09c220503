"""JSON objects as the values of records."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from feature_assets.json_text import DEEPEST, is_deep, why_unreadable
from feature_assets.spec.formats import JsonFormat
from feature_assets.streams.decoding.columns import MISSING, Columns, Decoded
from feature_assets.streams.decoding.framing import TOMBSTONE, Unreadable, behind_id

_NOT_READ: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class JsonDecoder:
    """Reads JSON objects. Of a member that stands twice the last one counts, as it does over HTTP."""

    def __init__(self, format: JsonFormat, columns: Columns) -> None:
        self._columns = columns
        self._framed = format.framing == "confluent"
        names = {f"field_{at}": name for at, name in enumerate(columns.fields)}
        row = msgspec.defstruct(
            "Row",
            [(attribute, Any, MISSING) for attribute in names],
            rename=names,
            forbid_unknown_fields=format.unknown_fields == "refuse",
            gc=False,
        )
        self._read = msgspec.json.Decoder(row).decode

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """See `Decoder.decode`."""
        failures: dict[int, str] = {}
        if not self._framed and None not in values:
            try:
                rows = [self._checked(value) for value in values if value is not None]
            except (Unreadable, *_NOT_READ):
                pass
            else:
                return self._columns.decoded(self._transposed(rows), range(len(values)), failures)
        at, rows = [], []
        for place, value in enumerate(values):
            try:
                rows.append(self._one(value))
            except Unreadable as error:
                failures[place] = str(error)
            else:
                at.append(place)
        return self._columns.decoded(self._transposed(rows), at, failures)

    def _checked(self, value: bytes) -> Any:
        row = self._read(value)
        if value.count(b"{") + value.count(b"[") > DEEPEST and is_deep(msgspec.structs.astuple(row)):
            raise Unreadable(f"It has values that are nested more than {DEEPEST} deep. Send them flatter.")
        return row

    def _one(self, value: bytes | None) -> Any:
        if value is None:
            raise Unreadable(TOMBSTONE)
        if self._framed:
            _, value = behind_id(value)
        try:
            return self._checked(value)
        except msgspec.ValidationError as error:
            raise Unreadable(_no_row(error)) from None
        except _NOT_READ as error:
            raise Unreadable(f"It is not JSON: {why_unreadable(value, error)}. Send one JSON object.") from None

    def _transposed(self, rows: Sequence[Any]) -> Sequence[Sequence[Any]]:
        if not rows:
            return [[] for _ in self._columns.fields]
        return list(zip(*map(msgspec.structs.astuple, rows), strict=True))


def _no_row(error: msgspec.ValidationError) -> str:
    if "unknown field" in str(error):
        name = str(error).split("`")[1]
        return (
            f"It has '{name}', which is not declared. Leave that out, or declare the format with unknown_fields='drop'."
        )
    what, _, path = str(error).partition(" - at `$")
    if not path:
        return "It is JSON, but no object. Send an object with a member for each field."
    return f"'{path.strip('.`')}': {what}. Send a number that 64 bits can hold, or text."
