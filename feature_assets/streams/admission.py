"""From the records of a batch to the rows of the views that take them, or to what is wrong with each.

Rows are conformed and checked as pushed ones are, each record like a push of its own. Where something is wrong with some
of many, those are told from the others by column operations, and so is what each of them is told; where rows do not tell,
halves are tried, down to the records that it is wrong with.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import polars as pl

from feature_assets.config import Settings
from feature_assets.errors import ChecksFailed, DeclarationError, FeatureAssetsError, WrongType
from feature_assets.intake import fields_of, optional_fields
from feature_assets.online.protocol import OnlineStore
from feature_assets.push.admission import PUSH, Recipient
from feature_assets.spec import EVENT_ID, SEQUENCE, KafkaSource, LogSource, ViewSpec
from feature_assets.streams.dead_letters import DeadLetter
from feature_assets.streams.decoding import decoder
from feature_assets.streams.log import Records
from feature_assets.types import Bytes, FeatureType, Timestamp

_WRITTEN: Final = "__written"
_KIND: Final = "__kind"
_LONGEST: Final = 2_000
_ANY: Final = (Exception, pl.exceptions.PanicException)
"""Whatever one record does to us is told of that record, and stops nobody."""


@dataclass(frozen=True, slots=True)
class Read:
    """What the records of a batch say: `fields` has a row for each that could be read, with its place in the batch as
    `__push`; `letters` tell of those that could not. `tombstones` are records without a value, which say nothing.
    """

    fields: pl.DataFrame
    letters: Sequence[DeadLetter]
    tombstones: int


class Intake:
    """Reads the records of one source for the views that take them. For one thread at a time.

    Args:
        settings: from which modules functions may be loaded; where a schema registry is.
        online: the store that has to be able to take the rows.

    Raises:
        DeclarationError: the source and its views do not fit.
        ConfigurationError: a library is not installed, or a setting is missing.
        TransformationRefused: a function is not in an allowed module, or is not the one that was registered.
    """

    def __init__(
        self, source: LogSource, views: Sequence[ViewSpec], settings: Settings, online: OnlineStore | None = None
    ) -> None:
        self.source, self.views = source, tuple(views)
        fields = fields_of(source, views)
        self._renamed = {name: source.field_mapping.get(name, name) for name in fields}
        self._beside = {name: fields[name] for name in source.beside_value if name in fields}
        optional = optional_fields(source, views)
        in_value = {name: of for name, of in fields.items() if name not in self._beside}
        if not in_value:
            raise DeclarationError(f"Source '{source.name}' takes no field from the value of a record. Declare one.")
        self._decoder = decoder(source.value, in_value, settings, optional=optional)
        # What no record brings has the time of its record, which stays the same when it is read again.
        self._created = sorted({view.created_timestamp for view in views if view.created_timestamp is not None})
        place = f"{type(source).__name__} '{source.name}'"
        functions = settings.functions
        self._recipients = {view.name: _RecordsOf(view, source, place, functions, online) for view in views}

    def read(self, records: Records, now: datetime) -> Read:
        """What these records say; `now` stands in where the log has no time of one.

        Raises:
            StoreUnavailable: a schema registry cannot be asked now.
        """
        there = [place for place, value in enumerate(records.values) if value is not None]
        decoded = self._decoder.decode([records.values[place] for place in there])
        letters = {there[at]: f"The value cannot be read. {reason}" for at, reason in decoded.failures}
        places = [there[at] for at in decoded.indices]
        columns, wrong = self._columns_beside(records, places)
        letters |= wrong
        frame = decoded.rows.with_columns(*columns, pl.Series(PUSH, places, dtype=pl.Int64))
        if wrong:
            frame = frame.filter(~pl.col(PUSH).is_in(list(wrong)))
        told = [DeadLetter(place, reason) for place, reason in sorted(letters.items())]
        return Read(self._named(frame, records, now), told, len(records) - len(there))

    def _columns_beside(self, records: Records, places: Sequence[int]) -> tuple[list[pl.Series], dict[int, str]]:
        columns, wrong = [], dict[int, str]()
        for name, of in self._beside.items():
            if name == self.source.time_field:
                times = pl.Series(name, [records.times[place] for place in places], dtype=pl.Int64)
                columns.append(times.cast(Timestamp.polars))
                continue
            told, given = self._given(name, records)
            values: list[Any] = []
            for place in places:
                try:
                    values.append(_value(of, given[place]))
                except (WrongType, ValueError) as error:
                    wrong.setdefault(place, f"{told} cannot be read as '{name}': {error}.")
                    values.append(None)
            columns.append(of.to_frame(name, values))
        return columns, wrong

    def _given(self, name: str, records: Records) -> tuple[str, Sequence[bytes | None]]:
        if name == self.source.key_field:
            return "The key", records.keys
        header = self.source.header_fields[name] if isinstance(self.source, KafkaSource) else name
        # Of a header that comes several times the last one counts, as Kafka's own clients have it.
        return f"The header '{header}'", [dict(each).get(header) for each in records.headers]

    def _named(self, frame: pl.DataFrame, records: Records, now: datetime) -> pl.DataFrame:
        """The fields by the names that views know them by, with `__event` and created timestamps."""
        event_id = self.source.event_id
        ids = pl.lit(None, pl.String) if event_id is None else pl.col(event_id).cast(pl.String)
        made = frame.with_columns(ids.alias(EVENT_ID)).rename(self._renamed)
        if event_id is not None:
            # A record that stands twice among these is the same event; a function is to see it once.
            made = made.filter(pl.col(EVENT_ID).is_first_distinct() | pl.col(EVENT_ID).is_null())
        if self._created:
            written = pl.Series(_WRITTEN, records.times, dtype=pl.Int64).cast(Timestamp.polars).fill_null(now)
            own = written.gather(made[PUSH])
            made = made.with_columns(
                (made[name].fill_null(own) if name in made.columns and made.schema[name] == own.dtype else own).alias(
                    name
                )
                for name in self._created
                if name not in made.columns or made[name].null_count()
            )
        return made

    def rows(self, view: str, fields: pl.DataFrame, now: datetime) -> tuple[pl.DataFrame | None, list[DeadLetter]]:
        """The rows of a view that these make, with `__partition`, `__event` and `__sequence`; and what it refuses.

        Raises:
            TransformationRefused: its function is not the one that was registered.
        """
        if fields.is_empty():
            return None, []
        parts: list[pl.DataFrame] = []
        letters: list[DeadLetter] = []
        for found in self._admitted(self._recipients[view], fields, now):
            if isinstance(found, DeadLetter):
                letters.append(found)
            else:
                parts.append(found)
        if not parts:
            return None, letters
        rows = parts[0] if len(parts) == 1 else pl.concat(parts).sort(PUSH, maintain_order=True)
        return rows.rename({PUSH: SEQUENCE}), letters

    def _admitted(
        self, recipient: "_RecordsOf", fields: pl.DataFrame, now: datetime
    ) -> Iterator[pl.DataFrame | DeadLetter]:
        """Rows and dead letters."""
        if fields.is_empty():
            return
        if fields.height == 1:
            try:
                found = recipient.rows(fields, now, alone=True)
            except _ANY as error:
                yield DeadLetter(fields[PUSH].item(), _told(error), recipient.view.name)
            else:
                if found is not None:
                    yield found
            return
        found = recipient.several(fields, now)
        if found is not None:
            yield found
            return
        suspects = recipient.suspects(fields, now)
        if suspects is not None:
            for (kind,), alike in fields.with_columns(suspects).group_by(_KIND, maintain_order=True):
                part = alike.drop(_KIND)
                yield from self._alike(recipient, part, now) if kind else self._admitted(recipient, part, now)
            return
        yield from self._halves(recipient, fields, now)

    def _halves(
        self, recipient: "_RecordsOf", fields: pl.DataFrame, now: datetime
    ) -> Iterator[pl.DataFrame | DeadLetter]:
        half = fields.height // 2
        for part in (fields.head(half), fields.tail(fields.height - half)):
            yield from self._admitted(recipient, part, now)

    def _alike(
        self, recipient: "_RecordsOf", fields: pl.DataFrame, now: datetime
    ) -> Iterator[pl.DataFrame | DeadLetter]:
        """The same of records with all of which the same may be wrong."""
        found = recipient.by_contract(fields, now)
        if found is not None:
            yield found  # a check that warns
        elif fields.height == 1 or (reasons := recipient.reasons(fields, now)) is None:
            yield from (
                self._halves(recipient, fields, now) if fields.height > 1 else self._admitted(recipient, fields, now)
            )
        else:
            of = recipient.view.name
            yield from (DeadLetter(at, reason, of) for at, reason in zip(fields[PUSH], reasons, strict=True))


class _RecordsOf(Recipient):
    """A view as records meet it: each is a push of its own, and keeps its place in the batch."""

    known_by_content = False

    def several(self, fields: pl.DataFrame, now: datetime) -> pl.DataFrame | None:
        """The rows of several records, if nothing is wrong with any."""
        if not self.together and self.row_wise:
            return None
        try:
            return self.rows(fields, now, alone=not self.plain)
        except _ANY:
            return None

    def by_contract(self, fields: pl.DataFrame, now: datetime) -> pl.DataFrame | None:
        """The same where something may only look wrong, as for a check that warns."""
        try:
            return self.rows(fields, now, alone=True)
        except _ANY:
            return None

    def suspects(self, fields: pl.DataFrame, now: datetime) -> pl.Series | None:
        """For each of several records what may be wrong with it, empty for nothing; None where that does not show."""
        if not self.together:
            return None
        try:
            found = self._plain.suspects(self._transform(fields), now)
        except _ANY:
            return None
        # Where nothing shows something is wrong all the same.
        return None if found is None or not (found != "").any() else found.alias(_KIND)

    def reasons(self, fields: pl.DataFrame, now: datetime) -> Sequence[str] | None:
        """What each of several records is told that the same is wrong with; None where that does not show."""
        try:
            told = self.breaches(fields, now)
            if all(one is None for one in told):
                self.rows(fields.head(1), now, alone=True)
        except ChecksFailed as error:
            # Of a row alone they say which they are, and nothing of the row.
            return [_told(error)] * fields.height
        except _ANY:
            return None
        found = [one[:_LONGEST] for one in told if one is not None]
        return found if len(found) == fields.height else None

    def _with_ids(self, made: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
        """What a function has made, numbered in its order; what it made of one event has one number."""
        made = super()._with_ids(made, frame)
        turn = pl.int_range(pl.len(), dtype=pl.Int64)
        of_event = pl.when(pl.col(EVENT_ID).is_null()).then(turn).otherwise(turn.min().over(EVENT_ID))
        return made.with_columns(of_event.alias(PUSH))


def _told(error: BaseException) -> str:
    text = str(error) if isinstance(error, FeatureAssetsError) else f"{type(error).__name__}: {error}"
    return text[:_LONGEST]


def _value(of: FeatureType, data: bytes | None) -> Any:
    """What the bytes of a key or a header say: those of a Bytes themselves, of everything else its text in UTF-8."""
    if data is None or of == Bytes:
        return data
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise WrongType("it is not text in UTF-8; declare Bytes") from None
    try:
        return of.parse(text)
    except WrongType:
        # A number or a truth value, as text writes it.
        return of.parse(json.loads(text))
