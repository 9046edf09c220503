"""Where rows come from."""

import re
from typing import Literal

from feature_assets.errors import DeclarationError
from feature_assets.spec.base import Field, Spec, check_distinct, check_name
from feature_assets.types import String

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
        if self.event_id is not None:
            check_name(f"{place}: event_id", self.event_id)
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
        check_name("RequestSource", self.name)
        if not self.schema:
            raise DeclarationError(f"RequestSource '{self.name}' has no fields; give schema=[Field(…)].")
        check_distinct((field.name for field in self.schema), f"RequestSource '{self.name}'", "field")
