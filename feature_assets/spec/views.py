"""Feature views, those computed on demand, and what of them is asked for."""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Literal, Self

import msgspec

from feature_assets.checks import AnyCheck
from feature_assets.errors import DeclarationError
from feature_assets.policies import ON_DEMAND_ACTS, checked_access, checked_row_filter
from feature_assets.spec.base import LONGEST, Entity, Field, Spec, check_distinct, check_name
from feature_assets.spec.partitions import Partitions
from feature_assets.spec.sources import RequestSource
from feature_assets.types import FeatureType, Timestamp

PUBLICATION = "__publication"
"""The column that every stored row carries: the publication that wrote it; a later one is greater."""

PARTITION = "__partition"
"""The column that every offline row carries: the Dagster partition that it belongs to."""

EVENT_ID = "__event"
"""The column of pushed rows that holds the id by which a repeated push is known; null where none was given."""

SEQUENCE = "__sequence"
"""The column of rows on their way from a journal that holds the number of their push; it is not stored."""

_CHECK_NAME = re.compile(r"[A-Za-z0-9_]+")


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
        check_distinct(features, f"{self.view}[{list(features)!r}]", "feature")
        return self._with(features=features)

    def with_name(self, alias: str) -> Self:
        """The same features under another view name."""
        check_name(f"View '{self.view}': alias", alias)
        return self._with(alias=alias)

    def with_join_key_map(self, join_key_map: Mapping[str, str]) -> Self:
        """The same features looked up by other columns: `{"origin": "dest"}` takes the key from `dest`."""
        return self._with(join_key_map=join_key_map)

    def _with(self, **changed: Any) -> Self:
        # Not `replace`, which would take arguments of any type.
        return type(self)(**{**msgspec.structs.asdict(self), **changed})


class Described(Spec, frozen=True, kw_only=True):
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


class ViewSpec(Described, frozen=True, kw_only=True):
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
        check_name("FeatureView", self.name)
        place = f"View '{self.name}'"
        if self.version < 1:
            raise DeclarationError(f"{place}: version {self.version} is not 1 or more.")
        if not self.features:
            raise DeclarationError(f"{place} has no features; give schema=[Field(…)].")
        check_name(f"{place}: event_timestamp", self.event_timestamp)
        if self.created_timestamp is not None:
            check_name(f"{place}: created_timestamp", self.created_timestamp)
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
        check_distinct((entity.name for entity in self.entities), place, "entity")
        # Of two entities with one key the columns would be one, and no row could tell them apart.
        check_distinct((key for entity in self.entities for key in entity.join_keys), place, "join key")
        check_distinct(self.columns, place, "column")
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
        check_distinct((check.label for check in self.checks), place, "check")
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


class OnDemandViewSpec(Described, frozen=True, kw_only=True):
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
        check_name("OnDemandFeatureView", self.name)
        place = f"On-demand view '{self.name}'"
        if not self.features:
            raise DeclarationError(f"{place} has no features; give schema=[Field(…)].")
        if not self.sources and not self.request:
            raise DeclarationError(f"{place} has no inputs; give sources=[…].")
        check_distinct((field.name for field in self.features), place, "feature")
        check_distinct((field.name for source in self.request for field in source.schema), place, "request field")
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
