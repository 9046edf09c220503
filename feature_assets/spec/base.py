"""The root of all declarations, and what every one is made of: names, entities and fields."""

import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, ClassVar

import msgspec

from feature_assets.declared import Declared
from feature_assets.errors import DeclarationError, WrongType
from feature_assets.types import FeatureType

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")


def check_name(kind: str, name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or "__" in name:
        raise DeclarationError(
            f"{kind} {name!r}: a name starts with a letter and has letters, digits and single underscores "
            "(two in a row separate a view from its feature), 100 at most."
        )


def check_distinct(names: Iterable[str], place: str, kind: str) -> None:
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
        check_name("Entity", self.name)
        if not self.join_keys:
            raise DeclarationError(
                f"Entity '{self.name}' has no join keys. Name each with its type: join_keys={{'{self.name}_id': String}}."
            )
        for key, of in self.join_keys.items():
            check_name(f"Entity '{self.name}': join key", key)
            if not of.keyable:
                raise DeclarationError(
                    f"Entity '{self.name}': join key '{key}' cannot be a {of}: two such values may be equal and differ "
                    "in bits, or have parts. Use String, an integer type, Bool, Bytes, Date, Timestamp, Decimal or UUID."
                )
        check_distinct(self.join_keys, f"Entity '{self.name}'", "join key")
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
        check_name("Field", self.name)
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
