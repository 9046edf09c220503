"""Where rows come from."""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

import msgspec

from feature_assets.errors import DeclarationError
from feature_assets.spec.base import Field, Spec, check_distinct, check_name
from feature_assets.spec.formats import Format, JsonFormat
from feature_assets.types import String, Timestamp

_STREAM = re.compile(r"(arn:aws[a-z-]*:kinesis:[a-z0-9-]+:[0-9]{12}:stream/)?[A-Za-z0-9._-]{1,128}")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Source(Spec, frozen=True, kw_only=True):
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
        check_name(type(self).__name__, self.name)
        check_distinct(self.field_mapping.values(), f"{place}: field_mapping", "column")


class FileSource(Source, frozen=True, kw_only=True, tag="file"):
    """Files of one format: a path, a glob or an object-store URL."""

    path: str
    format: Literal["parquet", "csv", "jsonl"] = "parquet"

    def __post_init__(self) -> None:
        Source.__post_init__(self)
        if not self.path.strip():
            raise DeclarationError(f"FileSource '{self.name}' has no path; name a file, a glob or a URL.")


class DeltaSource(Source, frozen=True, kw_only=True, tag="delta"):
    """A Delta table: a path or an object-store URL."""

    path: str

    def __post_init__(self) -> None:
        Source.__post_init__(self)
        if not self.path.strip():
            raise DeclarationError(f"DeltaSource '{self.name}' has no path; name the folder of a table, or its URL.")


class SqlSource(Source, frozen=True, kw_only=True, tag="sql"):
    """A query on a database. `connection` names the environment variable that holds the connection URI."""

    query: str
    connection: str

    def __post_init__(self) -> None:
        Source.__post_init__(self)
        if not self.query.strip():
            raise DeclarationError(f"SqlSource '{self.name}' has no query; write one.")
        if not _VARIABLE.fullmatch(self.connection):
            raise DeclarationError(
                f"SqlSource '{self.name}': connection is the name of an environment variable that holds the URI, "
                "as in connection='WAREHOUSE_URI'; a URI itself would put its password into the registry."
            )


BatchSource = FileSource | DeltaSource | SqlSource
"""What an asset function reads."""


class PushSource(Source, frozen=True, kw_only=True, tag="push"):
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
        Source.__post_init__(self)
        place = f"PushSource '{self.name}'"
        if self.timestamp_field is not None:
            raise DeclarationError(
                f"{place}: nothing cuts pushed rows to a window, so timestamp_field= says nothing. Leave it out, or give it "
                "to batch_source."
            )
        check_distinct((field.name for field in self.schema), place, "field")
        _check_event_id(place, self.event_id, self.schema)


def _check_event_id(place: str, event_id: str | None, schema: Sequence[Field]) -> None:
    if event_id is None:
        return
    check_name(f"{place}: event_id", event_id)
    types = {field.name: field.type for field in schema}
    if types.get(event_id, String) != String:
        raise DeclarationError(f"{place}: the event id '{event_id}' is a {types[event_id]}; declare a String.")


_JSON = JsonFormat()


class RecordSource(Source, frozen=True, kw_only=True):
    """Records of a log, such as a topic has: a value, mostly a key, and the time that the log gave it.

    `connection` names the `[stream.connections.…]` of the settings that leads there, with addresses and secrets. `value`
    says how values are written and `schema` which fields a record has; left out, they are the columns of the views that
    take the rows. The field `key_field` is not in the value but is the record's key, `time_field` the time that the log
    has for it; a created timestamp that no field brings is that time too. `event_id` and `batch_source` are as of a
    `PushSource`. A shard of which nothing has been published is read from its first record on, or with `start="latest"`
    from what comes then. `max_lag` records may be unread, and the latest event be `max_age` old, before a check tells.
    """

    connection: str
    value: Format = _JSON
    schema: tuple[Field, ...] = ()
    key_field: str | None = None
    time_field: str | None = None
    event_id: str | None = None
    batch_source: BatchSource | None = None
    start: Literal["earliest", "latest"] = "earliest"
    max_lag: int | None = None
    max_age: timedelta | None = None

    def __post_init__(self) -> None:
        Source.__post_init__(self)
        place = f"{type(self).__name__} '{self.name}'"
        if self.max_lag is not None and self.max_lag < 0:
            raise DeclarationError(f"{place}: max_lag {self.max_lag} is negative. Leave it out for no limit.")
        if self.max_age is not None and self.max_age <= timedelta(0):
            raise DeclarationError(f"{place}: max_age {self.max_age} is not positive. Leave it out for no limit.")
        check_name(f"{place}: connection", self.connection)
        if self.value == _JSON:
            # What canonical JSON leaves out is the default itself, not what equals it.
            msgspec.structs.force_setattr(self, "value", _JSON)
        if self.timestamp_field is not None:
            raise DeclarationError(
                f"{place}: nothing cuts records to a window, so timestamp_field= says nothing. Leave it out, or give it to "
                "batch_source; time_field= names the field that gets the time of the record."
            )
        check_distinct((field.name for field in self.schema), place, "field")
        check_distinct(self.beside_value, place, "field of the record")
        _check_event_id(place, self.event_id, self.schema)
        types = {field.name: field.type for field in self.schema}
        if types and (odd := [name for name in self.beside_value if name not in types]):
            raise DeclarationError(f"{place}: the schema has no field '{odd[0]}'. It has: {', '.join(types)}.")
        if types.get(self.time_field or "", Timestamp) != Timestamp:
            raise DeclarationError(
                f"{place}: '{self.time_field}', the time of a record, is a {types[self.time_field or '']}; declare a Timestamp."
            )

    @property
    def beside_value(self) -> tuple[str, ...]:
        """The fields that do not come from the value of a record."""
        return tuple(name for name in (self.key_field, self.time_field) if name is not None)


class KafkaSource(RecordSource, frozen=True, kw_only=True, tag="kafka"):
    """Records of Kafka topics. `header_fields` leads from a field to the name of the header that it is taken from.

    `group` is the consumer group, "feature-assets.<name>" if none is given; its offsets only tell how far consumers are,
    for they go on from where the tables of the views are.
    """

    topics: tuple[str, ...]
    header_fields: dict[str, str] = {}
    group: str | None = None

    def __post_init__(self) -> None:
        RecordSource.__post_init__(self)
        place = f"KafkaSource '{self.name}'"
        if not self.topics:
            raise DeclarationError(f"{place} has no topics; name one: topics=['orders'].")
        for topic in self.topics:
            if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
                raise DeclarationError(
                    f"{place}: {topic!r} is no topic: 1 to 249 letters, digits, dots, hyphens and underscores."
                )
        if len(set(self.topics)) < len(self.topics):
            raise DeclarationError(f"{place} names a topic twice. Name each once.")

    @property
    def beside_value(self) -> tuple[str, ...]:
        """The fields that do not come from the value of a record."""
        return (*RecordSource.beside_value.fget(self), *self.header_fields)  # type: ignore[attr-defined]


class KinesisSource(RecordSource, frozen=True, kw_only=True, tag="kinesis"):
    """Records of a Kinesis stream, by its name or ARN. The record's key is its partition key.

    Consumers of one `group`, "feature-assets.<name>" if none is given, share the shards. Without `[stream.connections.…]` of
    that name, region and credentials are found as the AWS command line finds them.
    """

    stream: str
    connection: str = "kinesis"
    group: str | None = None

    def __post_init__(self) -> None:
        RecordSource.__post_init__(self)
        if not _STREAM.fullmatch(self.stream):
            raise DeclarationError(
                f"KinesisSource '{self.name}': {self.stream!r} is no stream; give its name (1 to 128 letters, digits, dots, "
                "hyphens and underscores) or its ARN."
            )


LogSource = KafkaSource | KinesisSource
"""What consumers read."""

StreamSource = PushSource | LogSource
"""What rows come from by themselves."""

AnySource = BatchSource | StreamSource


class RequestSource(Spec, frozen=True):
    """Values that come with the request (online) or with the spine (training)."""

    name: str
    schema: tuple[Field, ...]

    def __post_init__(self) -> None:
        check_name("RequestSource", self.name)
        if not self.schema:
            raise DeclarationError(f"RequestSource '{self.name}' has no fields; give schema=[Field(…)].")
        check_distinct((field.name for field in self.schema), f"RequestSource '{self.name}'", "field")
