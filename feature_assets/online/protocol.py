"""What an online store promises, and the rules that every one of them keeps alike.

An online store holds, per view version, at most one row for each key: the latest by (event timestamp, created
timestamp, publication). Rows go in and out as frames of exact dtypes; the read path alone works on plain Python values.
All times are UTC microseconds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol, TypeAlias, overload, runtime_checkable

import polars as pl

from feature_assets.errors import ContractBroken, DeclarationError
from feature_assets.spec import PUBLICATION, ViewSpec
from feature_assets.types import FeatureType, Timestamp


class Token(NamedTuple):
    """What orders the rows of one key: microseconds since 1970, and the publication that wrote the row."""

    event: int
    created: int | None
    publication: int


def replaces(new: Token, stored: Token | None) -> bool:
    """Whether a row may be written over another: it is later, or the very same. No created time comes before any."""
    if stored is None:
        return True
    if new.event != stored.event:
        return new.event > stored.event
    if new.created != stored.created:
        return stored.created is None or (new.created is not None and new.created > stored.created)
    return new.publication >= stored.publication


@overload
def within_ttl(event: datetime, at: datetime, ttl: timedelta | None) -> bool: ...
@overload
def within_ttl(event: int, at: int, ttl: int | None) -> bool: ...
def within_ttl(event: Any, at: Any, ttl: Any) -> bool:
    """Whether a row of this event time may be served at that time; both ends included. Datetimes, or microseconds.

    The join and the server ask this one function, so a value is never fresh in one and stale in the other.
    """
    return bool(event <= at and (ttl is None or at - event <= ttl))


class WriteCount(NamedTuple):
    """Rows written, and rows kept out because a later one is stored. `superseded`: not even tried, see `write`."""

    written: int = 0
    kept: int = 0
    superseded: bool = False


@dataclass(frozen=True, slots=True)
class AppliedPublication:
    """A publication as the ledger records it: its number, its Delta version, and the rows of each partition.

    `settled` is false while rows that it took back may still be online. `seen` are other entries of the ledger, with the
    publications that stood there before the rows were committed to Delta, 0 for none: a later one may have taken rows back
    that are only now on their way.
    """

    publication: int
    delta_version: int
    partitions: Mapping[str, int]
    settled: bool = True
    seen: Mapping[str, int] = field(default_factory=dict)

    @property
    def at_most(self) -> dict[str, int]:
        """The entries that decide whether it is superseded: none of them may have a later publication than this."""
        return {**self.seen, **dict.fromkeys(self.partitions, self.publication)}


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """The last publication of one partition that the online store reflects; `rows` it had offline."""

    publication: int
    rows: int
    delta_version: int
    settled: bool
    applied_at: datetime


@dataclass(frozen=True, slots=True)
class Ledger:
    """What of the offline history is online: an entry per partition, and the latest event timestamp ever written."""

    entries: Mapping[str, LedgerEntry]
    watermark: datetime | None = None


Answer: TypeAlias = tuple[list[int | None], list[Sequence[Any]]]
"""Event timestamps in microseconds, None where there is no row; and for each feature its canonical values."""


class Reader(Protocol):
    """The compiled read of some features of a view. Safe to share between threads."""

    def __call__(self, keys: Sequence[tuple[Any, ...]]) -> Answer:
        """The stored rows of these keys, in their order; a key that is asked for twice is answered twice.

        Args:
            keys: canonical Python values in the order of `view.join_keys`; `()` for a view without entities. A key
                with a null in it has no row.

        Returns:
            Event timestamps in microseconds, None where there is no row; and for each feature its canonical Python
            values, None where there is no row, the value is null, or the table does not have the feature yet.

        Raises:
            TableMissing: the view version has no table (yet).
            StoreError: the store cannot be read.
        """
        ...


Question: TypeAlias = tuple[Reader, Sequence[tuple[Any, ...]]]
"""A compiled read and the keys that it is asked for."""


@runtime_checkable
class ReadsTogether(Protocol):
    """A store that answers several reads at the price of one, as over a network."""

    def read_together(self, questions: Sequence[Question]) -> list[Answer]:
        """What each of this store's readers would answer. Raises as they do."""
        ...


@runtime_checkable
class ReadsOverNetwork(Protocol):
    """A store whose reads wait for a network most of the time."""

    @property
    def lookups_at_once(self) -> int:
        """How many of them one process may have waiting; those that are more take their turn."""
        ...


@runtime_checkable
class Metered(Protocol):
    """A store whose every call has a price."""

    def units(self) -> tuple[float, float]:
        """Read and write units that this process has consumed there."""
        ...


@runtime_checkable
class LimitsSizes(Protocol):
    """A store that does not take every row that keeps its view's contract."""

    def check_sizes(self, view: ViewSpec, rows: pl.LazyFrame) -> None:
        """See that it could take each of these conformed rows; asked before they are acknowledged or committed anywhere.

        Raises:
            ContractBroken: a row or its key is larger than it takes.
            DeclarationError: no row of the view would fit.
        """
        ...


@runtime_checkable
class ForgetsExpired(Protocol):
    """A store that may delete rows by itself once they are past their view's ttl."""

    @property
    def forgets_expired(self) -> bool:
        """Whether it does, as it is set up."""
        ...


class TableDifference(NamedTuple):
    """A table, and what it has otherwise than it should: "has no point-in-time recovery"."""

    table: str
    what: str


@runtime_checkable
class MadeByOptions(Protocol):
    """A store whose tables are made by options of its URL, which may have changed since."""

    def differences(self, views: Iterable[ViewSpec]) -> Iterator[TableDifference]:
        """What tables have otherwise than the options say now; how long rows stay is looked at for these views."""
        ...

    def amend(self, views: Iterable[ViewSpec]) -> Iterator[TableDifference]:
        """Mend each difference, then name it. Repeating it changes nothing."""
        ...


class Readers(Protocol):
    """The part of an online store that a lookup needs."""

    def reader(self, view: ViewSpec, features: Sequence[str]) -> Reader:
        """Compile the read of these features once; the reader stays valid while the table is written or evolved.

        Raises:
            UnknownFeature: the view has no such feature.
        """
        ...


class OnlineStore(Readers, Protocol):
    """Latest rows by key. Every method may be called from any thread and any process, beside any other.

    "Rows" have the columns of `row_schema(view)`; "tokens" those of `token_schema(view)`; "keys" the join keys, each
    key once. Methods other than `prepare`, `ledger`, `forget`, `drop` and `tables` raise TableMissing where the view
    version has no table.
    """

    def prepare(self, view: ViewSpec) -> None:
        """Make the table of this view version, or add the features that it lacks. Repeating it changes nothing.

        Raises:
            DeclarationError: a stored column has another type; raise the view's version.
        """

    def write(self, view: ViewSpec, rows: pl.DataFrame, publication: AppliedPublication | None) -> WriteCount:
        """Set each row unless a later one is stored (`replaces`). Safe to repeat.

        A key may have several rows, of different tokens.

        With a publication, and as one with the rows: if the ledger has a later publication of any of its partitions, or
        of any that it has `seen`, nothing is written and the count says `superseded`; otherwise the ledger has it from
        then on.
        """
        ...

    def retract(self, view: ViewSpec, expected: pl.DataFrame, replacement: pl.DataFrame) -> int:
        """Compare and set: take back the rows that still have exactly these tokens.

        Each is set to the row of its key in `replacement`, or deleted if that has none. Rows of other keys in
        `replacement` are ignored.

        Returns:
            How many keys were no longer as expected, and were left as they are.
        """
        ...

    def settle(
        self, view: ViewSpec, publication: int, partitions: Sequence[str], *, whole_since: datetime | None = None
    ) -> None:
        """Mark the ledger's entries of this publication as settled; later ones are left as they are.

        `whole_since`: every key of the view was compared with Delta after that moment (UTC), so that whatever a writer
        left who died before it is settled too. A store that enters rows and ledger as one has nothing left of such.
        """

    def stored(self, view: ViewSpec, keys: pl.DataFrame | None = None) -> pl.DataFrame:
        """The tokens of the stored rows, of these keys or of all, in any order."""
        ...

    def scan(self, view: ViewSpec, *, batch_size: int = 50_000) -> Iterator[pl.DataFrame]:
        """All stored rows, in any order; each row is whole."""
        ...

    def delete(self, view: ViewSpec, keys: pl.DataFrame) -> int:
        """Delete the rows of these keys; returns how many there were."""
        ...

    def ledger(self, view: ViewSpec) -> Ledger:
        """What the store reflects of this view version; empty where nothing was ever published."""
        ...

    def forget(self, view: ViewSpec, partitions: Sequence[str]) -> None:
        """Remove ledger entries."""

    def drop(self, view: ViewSpec) -> None:
        """Remove the table of this view version and its ledger; nothing happens where there is none."""

    def tables(self) -> list[tuple[str, int]]:
        """The view versions that have a table, as (view, version), sorted."""
        ...

    def close(self) -> None:
        """Let go of files and connections; the store answers nothing afterwards."""


def check_sizes(view: ViewSpec, rows: pl.LazyFrame, online: OnlineStore | LimitsSizes | None) -> None:
    """See that the online store, where the view has one, takes each of these conformed rows (`LimitsSizes`).

    What is in Delta and cannot be served would hold up whatever comes after it.

    Raises:
        ContractBroken: it does not.
        DeclarationError: no row of the view would fit.
    """
    if view.online and isinstance(online, LimitsSizes):
        online.check_sizes(view, rows)


def token_schema(view: ViewSpec) -> dict[str, pl.DataType]:
    """Join keys, event timestamp, created timestamp if the view has one, publication."""
    times = [name for name in (view.event_timestamp, view.created_timestamp) if name is not None]
    return {
        **{name: of.polars for name, of in view.join_keys.items()},
        **dict.fromkeys(times, Timestamp.polars),
        PUBLICATION: pl.Int64(),
    }


def row_schema(view: ViewSpec) -> dict[str, pl.DataType]:
    """The columns of a conformed frame, then the publication."""
    schema = {name: of.polars for name, of in column_types(view).items()}
    return {**schema, PUBLICATION: pl.Int64()}


def column_types(view: ViewSpec) -> dict[str, FeatureType]:
    """The type of each conformed column, in order."""
    times = [name for name in (view.event_timestamp, view.created_timestamp) if name is not None]
    return {
        **view.join_keys,
        **dict.fromkeys(times, Timestamp),
        **{field.name: field.type for field in view.features},
    }


def refuse_other_types(view: ViewSpec, keys: Sequence[str], types: Mapping[str, str]) -> None:
    """Refuse a declaration that the table of its view version cannot take.

    Args:
        keys: the join keys of the stored table.
        types: the names of its columns' types.

    Raises:
        DeclarationError: other join keys, another type, or a column that is not there and is no feature.
    """
    mend = f"Raise the view's version: version={view.version + 1}."
    place = f"View '{view.name}' (version {view.version})"
    if tuple(keys) != tuple(view.join_keys):
        raise DeclarationError(
            f"{place}: its online table is keyed by {', '.join(keys) or 'nothing'} "
            f"and the declaration says {', '.join(view.join_keys) or 'nothing'}. {mend}"
        )
    features = {field.name for field in view.features}
    folded = {name.lower(): name for name in types}
    for name, of in column_types(view).items():
        if name not in types and (name not in features or name.lower() in folded):
            other = folded.get(name.lower(), "none")
            raise DeclarationError(
                f"{place}: its online table has no column '{name}' (but {other}), and only features can be added. {mend}"
            )
        if types.get(name, str(of)) != str(of):
            raise DeclarationError(f"{place}: '{name}' is stored online as {types[name]} and declared as {of}. {mend}")


def checked(view: ViewSpec, frame: pl.DataFrame, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """The columns of `schema`, in its order; a store takes nothing that it would have to convert.

    Raises:
        ContractBroken: a column is missing, has another dtype, or is null where rows are found or ordered by it.
    """
    present = frame.schema
    for name, dtype in schema.items():
        found = present.get(name)
        if found is None:
            raise ContractBroken(
                f"View '{view.name}': the rows for the online store lack '{name}'; conform them first."
            )
        if found != dtype:
            raise ContractBroken(
                f"View '{view.name}': '{name}' is {found} and not {dtype} in the rows for the online store; "
                "conform them first."
            )
    never_null = [name for name in (*view.join_keys, view.event_timestamp, PUBLICATION) if name in schema]
    for name in never_null:
        if nulls := frame[name].null_count():
            raise ContractBroken(
                f"View '{view.name}': '{name}' is null in {nulls} of {frame.height} rows for the online store; "
                "conform them first."
            )
    return frame if frame.columns == list(schema) else frame.select(schema.keys())
