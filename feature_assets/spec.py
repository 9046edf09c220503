"""What is declared, as data: frozen structures that are equal by value and have one canonical JSON.

Nothing here knows Dagster, a store or a server. A structure is checked once, when it is made.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from threading import Lock
from typing import Any, ClassVar, Literal, Self, TypeVar

import msgspec

from feature_assets.checks import AnyCheck
from feature_assets.declared import Declared
from feature_assets.errors import DeclarationError, WrongType
from feature_assets.policies import ON_DEMAND_ACTS, checked_access, checked_row_filter
from feature_assets.types import FeatureType, String, Timestamp, parse_type

PUBLICATION = "__publication"
"""The column that every stored row carries: the publication that wrote it; a later one is greater."""

PARTITION = "__partition"
"""The column that every offline row carries: the Dagster partition that it belongs to."""

EVENT_ID = "__event"
"""The column of pushed rows that holds the id by which a repeated push is known; null where none was given."""

SEQUENCE = "__sequence"
"""The column of rows on their way from a journal that holds the number of their push; it is not stored."""

UNPARTITIONED = "all"
"""The `__partition` of every row of a view without partitions."""

_CHECK_NAME = re.compile(r"[A-Za-z0-9_]+")
SINGLE = "partition"
"""What the one dimension of a view is called that has one only."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")


def _check_name(kind: str, name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or "__" in name:
        raise DeclarationError(
            f"{kind} {name!r}: a name starts with a letter and has letters, digits and single underscores "
            "(two in a row separate a view from its feature), 100 at most."
        )


def _check_distinct(names: Iterable[str], place: str, kind: str) -> None:
    seen: set[str] = set()
    for name in names:
        # SQLite and some catalogues fold case; two names that differ in nothing else would be one column there.
        if name.lower() in seen:
            raise DeclarationError(f"{place} names {kind} '{name}' twice. Give each its own name.")
        seen.add(name.lower())


LONGEST = timedelta(days=365_000)
"""Longer spans lead out of the years that times are kept in."""


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, metaclass=Declared):
    """The root of all declarations. `KIND` is what a message calls it, `CALLED` what its author calls a field."""

    KIND: ClassVar[str] = ""
    CALLED: ClassVar[Mapping[str, str]] = {}


class Entity(Spec, frozen=True):
    """A thing that features describe, found by one or several typed join keys."""

    name: str
    join_keys: dict[str, FeatureType]
    description: str = ""
    tags: dict[str, str] = {}
    owners: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_name("Entity", self.name)
        if not self.join_keys:
            raise DeclarationError(
                f"Entity '{self.name}' has no join keys. Name each with its type: join_keys={{'{self.name}_id': String}}."
            )
        for key, of in self.join_keys.items():
            _check_name(f"Entity '{self.name}': join key", key)
            if not of.keyable:
                raise DeclarationError(
                    f"Entity '{self.name}': join key '{key}' cannot be a {of}: two such values may be equal and differ "
                    "in bits, or have parts. Use String, an integer type, Bool, Bytes, Date, Timestamp, Decimal or UUID."
                )
        _check_distinct(self.join_keys, f"Entity '{self.name}'", "join key")
        # Canonical JSON sorts them, and who reads the registry must find the columns in the order that its author had.
        msgspec.structs.force_setattr(self, "join_keys", dict(sorted(self.join_keys.items())))


class Field(Spec, frozen=True):
    """A feature: one named, typed column of a view.

    `default` stands in where a view has no row for a key; it is kept in its JSON form. `pii` names the kind of
    personal data, as in `pii="email"`.
    """

    name: str
    type: FeatureType
    description: str = ""
    tags: dict[str, str] = {}
    default: Any = None
    pii: str | None = None

    def __post_init__(self) -> None:
        _check_name("Field", self.name)
        if self.default is None:
            return
        try:
            value = self.type.parse(self.default)
        except WrongType as error:
            raise DeclarationError(f"Field '{self.name}': the default {error}.") from error
        msgspec.structs.force_setattr(self, "default", self.type.to_json([value])[0])

    @property
    def default_value(self) -> Any:
        """The default as the type's canonical Python value."""
        return self.type.parse(self.default)


class TimePartitions(Spec, frozen=True, kw_only=True, tag="time"):
    """Consecutive windows of time, each from one tick of a cron schedule in a time zone to the next.

    `start` and `end` are ISO 8601 with an offset; `fmt` writes the start of a window as its key. `exclusions` are
    windows that are left out: starts in ISO 8601, or cron schedules of starts.
    """

    cron: str
    timezone: str
    start: str
    end: str | None = None
    fmt: str
    end_offset: int = 0
    exclusions: tuple[str, ...] = ()


class StaticPartitions(Spec, frozen=True, tag="static"):
    """A fixed list of keys."""

    keys: tuple[str, ...]


class DynamicPartitions(Spec, frozen=True, tag="dynamic"):
    """Keys that are added while the platform runs, kept by Dagster under this name."""

    name: str


Partitions = TimePartitions | StaticPartitions | DynamicPartitions

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _Source(Spec, frozen=True, kw_only=True):
    """What every source of rows outside the asset graph has.

    `field_mapping` renames columns of the source to names of the view. With `timestamp_field` (its name in the
    source) only the rows of the partition's window are read.
    """

    name: str
    timestamp_field: str | None = None
    field_mapping: dict[str, str] = {}
    description: str = ""
    tags: dict[str, str] = {}
    owners: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        place = f"{type(self).__name__} '{self.name}'"
        _check_name(type(self).__name__, self.name)
        _check_distinct(self.field_mapping.values(), f"{place}: field_mapping", "column")


class FileSource(_Source, frozen=True, kw_only=True, tag="file"):
    """Files of one format: a path, a glob or an object-store URL."""

    path: str
    format: Literal["parquet", "csv", "jsonl"] = "parquet"

    def __post_init__(self) -> None:
        _Source.__post_init__(self)
        if not self.path.strip():
            raise DeclarationError(f"FileSource '{self.name}' has no path; name a file, a glob or a URL.")


class DeltaSource(_Source, frozen=True, kw_only=True, tag="delta"):
    """A Delta table: a path or an object-store URL."""

    path: str

    def __post_init__(self) -> None:
        _Source.__post_init__(self)
        if not self.path.strip():
            raise DeclarationError(f"DeltaSource '{self.name}' has no path; name the folder of a table, or its URL.")


class SqlSource(_Source, frozen=True, kw_only=True, tag="sql"):
    """A query on a database. `connection` names the environment variable that holds the connection URI."""

    query: str
    connection: str

    def __post_init__(self) -> None:
        _Source.__post_init__(self)
        if not self.query.strip():
            raise DeclarationError(f"SqlSource '{self.name}' has no query; write one.")
        if not _VARIABLE.fullmatch(self.connection):
            raise DeclarationError(
                f"SqlSource '{self.name}': connection is the name of an environment variable that holds the URI, "
                "as in connection='WAREHOUSE_URI'; a URI itself would put its password into the registry."
            )


BatchSource = FileSource | DeltaSource | SqlSource
"""What an asset function reads."""


class PushSource(_Source, frozen=True, kw_only=True, tag="push"):
    """Rows that their producers push: from Python, over HTTP or from the command line.

    `schema` are the fields of a pushed row; left out, they are the columns of the views that take its rows, which is all
    there can be where a view transforms them. `event_id` is a field with an id by which a row that comes again is known.
    What a row has beyond that is refused, or with `unknown_fields="drop"` dropped. `batch_source` holds the same rows for
    the batch side.
    """

    schema: tuple[Field, ...] = ()
    event_id: str | None = None
    unknown_fields: Literal["refuse", "drop"] = "refuse"
    batch_source: BatchSource | None = None

    def __post_init__(self) -> None:
        _Source.__post_init__(self)
        place = f"PushSource '{self.name}'"
        if self.timestamp_field is not None:
            raise DeclarationError(
                f"{place}: nothing cuts pushed rows to a window, so timestamp_field= says nothing. Leave it out, or give it "
                "to batch_source."
            )
        _check_distinct((field.name for field in self.schema), place, "field")
        if self.event_id is not None:
            _check_name(f"{place}: event_id", self.event_id)
            types = {field.name: field.type for field in self.schema}
            if types.get(self.event_id, String) != String:
                raise DeclarationError(
                    f"{place}: the event id '{self.event_id}' is a {types[self.event_id]}; declare a String."
                )


StreamSource = PushSource
"""What rows come from by themselves."""

AnySource = BatchSource | StreamSource


class RequestSource(Spec, frozen=True):
    """Values that come with the request (online) or with the spine (training)."""

    name: str
    schema: tuple[Field, ...]

    def __post_init__(self) -> None:
        _check_name("RequestSource", self.name)
        if not self.schema:
            raise DeclarationError(f"RequestSource '{self.name}' has no fields; give schema=[Field(…)].")
        _check_distinct((field.name for field in self.schema), f"RequestSource '{self.name}'", "field")


class ViewProjection(Spec, frozen=True):
    """Some features of one view, perhaps under another name and looked up by other columns.

    `features` None means all of them. `join_key_map` leads from a join key of the view to the column of the spine
    or request that holds it.
    """

    view: str
    features: tuple[str, ...] | None = None
    version: int | None = None
    alias: str | None = None
    join_key_map: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The name that its answers carry: the alias, else the view's own."""
        return self.alias or self.view

    def __getitem__(self, features: Sequence[str]) -> Self:
        if isinstance(features, str):
            raise DeclarationError(
                f"{self.view}['{features}']: name features in a list, as in {self.view}[['{features}']]."
            )
        if not features:
            raise DeclarationError(f"{self.view}[[]] names no feature; name some, or leave the brackets out for all.")
        _check_distinct(features, f"{self.view}[{list(features)!r}]", "feature")
        return self._with(features=features)

    def with_name(self, alias: str) -> Self:
        """The same features under another view name."""
        _check_name(f"View '{self.view}': alias", alias)
        return self._with(alias=alias)

    def with_join_key_map(self, join_key_map: Mapping[str, str]) -> Self:
        """The same features looked up by other columns: `{"origin": "dest"}` takes the key from `dest`."""
        return self._with(join_key_map=join_key_map)

    def _with(self, **changed: Any) -> Self:
        # Not `replace`, which would take arguments of any type.
        return type(self)(**{**msgspec.structs.asdict(self), **changed})


class _Described(Spec, frozen=True, kw_only=True):
    """What views and services have alike. `deprecated` says what to use instead."""

    CALLED: ClassVar[Mapping[str, str]] = {"features": "schema", "partitions": "partitions_def"}
    OWN_WORDS: ClassVar[frozenset[str]] = frozenset({"access", "row_filter"})

    name: str
    description: str = ""
    tags: dict[str, str] = {}
    owners: tuple[str, ...] = ()
    deprecated: str | None = None


class Expressions(Spec, frozen=True, tag="expressions"):
    """A transformation as data: for each feature the Polars expression that computes it."""

    features: dict[str, str]


class Function(Spec, frozen=True, tag="function"):
    """A transformation as code that lies elsewhere.

    `path` is "package.module:function" and `digest` the SHA-256 of its source. Mode `frame` maps a Polars frame to
    one with the features, for an on-demand view row for row; mode `row` maps a dict to a dict.
    """

    path: str
    digest: str
    mode: Literal["frame", "row"] = "frame"


class Stream(Spec, frozen=True):
    """The stream side of a view: the source whose rows it takes, and what makes the view's rows of them."""

    source: str
    transform: Expressions | Function | None = None


class ViewSpec(_Described, frozen=True, kw_only=True):
    """A feature view: a named, versioned group of features of one set of entities.

    `partitions` maps each dimension to what divides it; a view with one dimension calls it "partition". `upstream`
    holds the keys of the assets that it is made from, `max_future` how far an event timestamp may lie ahead of the
    clock, `stream` what rows it takes beside those that its asset makes. `access` says which principals may do what (None:
    scopes alone decide), `row_filter` which claim a join key has to equal.
    """

    KIND: ClassVar[str] = "View"

    version: int = 1
    entities: tuple[Entity, ...] = ()
    features: tuple[Field, ...]
    event_timestamp: str
    created_timestamp: str | None = None
    ttl: timedelta | None = None
    partitions: dict[str, Partitions] = {}
    upstream: tuple[str, ...] = ()
    checks: tuple[AnyCheck, ...] = ()
    online: bool = True
    max_future: timedelta = timedelta(minutes=5)
    access: dict[str, tuple[str, ...]] | None = None
    row_filter: dict[str, str] = {}
    stream: Stream | None = None
    asset_key: tuple[str, ...] = ()
    code_version: str = ""

    def __post_init__(self) -> None:
        _check_name("FeatureView", self.name)
        place = f"View '{self.name}'"
        if self.version < 1:
            raise DeclarationError(f"{place}: version {self.version} is not 1 or more.")
        if not self.features:
            raise DeclarationError(f"{place} has no features; give schema=[Field(…)].")
        _check_name(f"{place}: event_timestamp", self.event_timestamp)
        if self.created_timestamp is not None:
            _check_name(f"{place}: created_timestamp", self.created_timestamp)
        if self.ttl is not None and self.ttl <= timedelta(0):
            raise DeclarationError(
                f"{place}: ttl {self.ttl} is not positive. Leave it out for values that never expire."
            )
        if self.max_future < timedelta(0):
            raise DeclarationError(f"{place}: max_future {self.max_future} is negative.")
        if max(self.ttl or self.max_future, self.max_future) > LONGEST:
            raise DeclarationError(
                f"{place}: a ttl or max_future above {LONGEST.days:,} days is no limit. Leave it out."
            )
        _check_distinct((entity.name for entity in self.entities), place, "entity")
        # Of two entities with one key the columns would be one, and no row could tell them apart.
        _check_distinct((key for entity in self.entities for key in entity.join_keys), place, "join key")
        _check_distinct(self.columns, place, "column")
        for check in self.checks:
            if not _CHECK_NAME.fullmatch(check.label):
                raise DeclarationError(
                    f"{place}: a check cannot be called {check.label!r}. Name it with letters, digits and underscores: "
                    "name='no_ghosts'."
                )
            if unknown := [column for column in check.columns if column not in self.columns]:
                raise DeclarationError(
                    f"{place}: check {check.label} reads '{unknown[0]}', which the view does not have. "
                    f"It has: {', '.join(self.columns)}."
                )
        _check_distinct((check.label for check in self.checks), place, "check")
        msgspec.structs.force_setattr(self, "access", checked_access(place, self.access))
        msgspec.structs.force_setattr(self, "row_filter", checked_row_filter(place, self.row_filter, self.join_keys))

    @property
    def join_keys(self) -> dict[str, FeatureType]:
        """All join keys of all entities, in their order; empty for a view without entities."""
        return {key: of for entity in self.entities for key, of in entity.join_keys.items()}

    @property
    def types(self) -> dict[str, FeatureType]:
        """The type of every column, in the order of `columns`."""
        features = {one.name: one.type for one in self.features}
        return {name: features.get(name) or self.join_keys.get(name, Timestamp) for name in self.columns}

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of a conformed frame, in order: join keys, event timestamp, created timestamp, features."""
        times = (
            (self.event_timestamp,)
            if self.created_timestamp is None
            else (self.event_timestamp, self.created_timestamp)
        )
        return (*self.join_keys, *times, *(field.name for field in self.features))

    @property
    def personal(self) -> tuple[str, ...]:
        """The features that hold personal data."""
        return tuple(field.name for field in self.features if field.pii)

    def field(self, name: str) -> Field | None:
        """The feature of that name, None where there is none."""
        return next((field for field in self.features if field.name == name), None)


class OnDemandViewSpec(_Described, frozen=True, kw_only=True):
    """Features computed when asked for, from other features and from the request.

    `sources` are views and other on-demand views. The transformation sees each input under its feature name, or as
    `view__feature` with `full_feature_names`. Who may read it may read all its sources; `access` can ask for more.
    """

    KIND: ClassVar[str] = "On-demand view"

    sources: tuple[ViewProjection, ...] = ()
    request: tuple[RequestSource, ...] = ()
    features: tuple[Field, ...]
    transformation: Expressions | Function
    full_feature_names: bool = False
    access: dict[str, tuple[str, ...]] | None = None
    asset_key: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_name("OnDemandFeatureView", self.name)
        place = f"On-demand view '{self.name}'"
        if not self.features:
            raise DeclarationError(f"{place} has no features; give schema=[Field(…)].")
        if not self.sources and not self.request:
            raise DeclarationError(f"{place} has no inputs; give sources=[…].")
        _check_distinct((field.name for field in self.features), place, "feature")
        _check_distinct((field.name for source in self.request for field in source.schema), place, "request field")
        if isinstance(self.transformation, Expressions):
            declared, given = {field.name for field in self.features}, set(self.transformation.features)
            if odd := sorted(declared ^ given):
                raise DeclarationError(
                    f"{place}: '{odd[0]}' is {'declared but not computed' if odd[0] in declared else 'computed but not declared'}."
                )
        msgspec.structs.force_setattr(self, "access", checked_access(place, self.access, ON_DEMAND_ACTS))

    def field(self, name: str) -> Field | None:
        """The feature of that name, None where there is none."""
        return next((field for field in self.features if field.name == name), None)


class LoggingConfig(Spec, frozen=True, kw_only=True):
    """That what a service serves is logged: `sample_rate` of the requests that ask for it by name, from above 0 to 1.

    `pii` names the features and request fields with personal data that are logged too; keys always are. Days that lie
    back longer than `retention` are removed by upkeep; without one none are. Of each feature `skew_tolerance` is the
    share of rows that may differ from history before the check `skew` fails, with `skew_severity`.
    """

    sample_rate: float = 1.0
    pii: tuple[str, ...] = ()
    retention: timedelta | None = None
    skew_tolerance: float = 0.0
    skew_severity: Literal["error", "warn"] = "warn"

    def __post_init__(self) -> None:
        if not 0 < self.sample_rate <= 1:
            raise DeclarationError(f"LoggingConfig: sample_rate {self.sample_rate!r} is not above 0 and at most 1.")
        if not 0 <= self.skew_tolerance <= 1:
            raise DeclarationError(f"LoggingConfig: skew_tolerance {self.skew_tolerance!r} is not a share from 0 to 1.")
        if self.retention is not None and not timedelta(days=1) <= self.retention <= LONGEST:
            raise DeclarationError(
                f"LoggingConfig: retention {self.retention} is not a day at least: whole days are removed. Give "
                "timedelta(days=…)."
            )
        msgspec.structs.force_setattr(self, "pii", tuple(self.pii))


class ServiceSpec(_Described, frozen=True, kw_only=True):
    """The named list of features that one model uses."""

    KIND: ClassVar[str] = "Feature service"
    CALLED: ClassVar[Mapping[str, str]] = {}

    features: tuple[ViewProjection, ...]
    logging: LoggingConfig | None = None
    asset_key: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_name("FeatureService", self.name)
        if not self.features:
            raise DeclarationError(
                f"Feature service '{self.name}' has no features; give features=[view[['feature']], …]."
            )
        place = f"Feature service '{self.name}'"
        _check_distinct((projection.name for projection in self.features), place, "view")


_T = TypeVar("_T")


def _encode_hook(value: object) -> object:
    if isinstance(value, FeatureType):
        return value.name
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _decode_hook(of: type, value: object) -> object:
    if issubclass(of, FeatureType) and isinstance(value, str):
        return parse_type(value)
    raise TypeError(f"{of.__name__} cannot be read from {value!r}")


_encoder = msgspec.json.Encoder(enc_hook=_encode_hook, order="sorted")
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}
_first_use = Lock()


def _decoder(of: type) -> msgspec.json.Decoder[Any]:
    """The decoder of that type, made once.

    What msgspec knows of a structure it puts together at first use, and two threads at that at once crash the process.
    """
    decoder = _decoders.get(of)
    if decoder is None:
        with _first_use:
            decoder = _decoders[of] = msgspec.json.Decoder(of, dec_hook=_decode_hook)
    return decoder


def canonical_json(value: object) -> bytes:
    """The one JSON of a declaration: sorted keys, no spaces, defaults left out. Equal values give equal bytes."""
    return _encoder.encode(value)


def from_json(data: bytes | str, of: type[_T]) -> _T:
    """What `canonical_json` wrote.

    Raises:
        msgspec.ValidationError: the data is not of that shape.
    """
    return _decoder(of).decode(data)  # type: ignore[no-any-return]


def to_builtins(value: object) -> Any:
    """The declaration as plain dicts and lists, for metadata and tables."""
    return msgspec.to_builtins(value, enc_hook=_encode_hook, order="sorted")


def convert(data: Any, of: type[_T]) -> _T:
    """What `to_builtins` made plain.

    Raises:
        msgspec.ValidationError: the data is not of that shape.
    """
    _decoder(of)
    return msgspec.convert(data, type=of, dec_hook=_decode_hook)


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
