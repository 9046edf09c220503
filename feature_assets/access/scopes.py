"""OAuth scopes: what a token may do, and to which views.

A scope is an act, as `features:read`, or an act narrowed to one view or to those whose names start alike:
`features:read:driver_stats`, `features:read:driver_*`. No act implies another.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from feature_assets.errors import ConfigurationError

READ: Final = "features:read"
HISTORY: Final = "features:history"
PUSH: Final = "features:push"
MATERIALIZE: Final = "features:materialize"
KNOW: Final = "registry:read"
PUBLISH: Final = "registry:write"
SEE_PII: Final = "pii:read"
ADMIN: Final = "admin"

ACTS = {
    READ: "Read the latest values of features.",
    HISTORY: "Read histories and make training sets.",
    PUSH: "Push rows into views.",
    MATERIALIZE: "Materialise, backfill and reconcile.",
    KNOW: "Know which views, services and features there are.",
    PUBLISH: "Publish the registry and roll it back.",
    SEE_PII: "See personal data unmasked.",
    ADMIN: "See metrics, keys, audit and limits; implies none of the others.",
}

# The longest act first, so that "features:read:x" is cut at the right colon.
_NARROWED = re.compile(rf"(?P<act>{'|'.join(map(re.escape, ACTS))}):(?P<name>[A-Za-z0-9_]*)(?P<star>\*?)")


@dataclass(frozen=True, slots=True)
class Scope:
    """One scope. `name` None means every view; with `prefix` every view whose name starts so."""

    act: str
    name: str | None = None
    prefix: bool = False

    def covers(self, other: "Scope") -> bool:
        """Whether whoever has this scope may do all that the other one allows."""
        if self.act != other.act:
            return False
        if self.name is None or (self.prefix and other.name is not None and other.name.startswith(self.name)):
            return True
        return self == other

    def __str__(self) -> str:
        return self.act if self.name is None else f"{self.act}:{self.name}{'*' if self.prefix else ''}"


def parse_scope(text: str) -> Scope | None:
    """The scope of that text, or None if it is none of ours."""
    if text in ACTS:
        return Scope(text)
    found = _NARROWED.fullmatch(text)
    if not found or not (found["name"] or found["star"]):
        return None
    return Scope(found["act"], found["name"], bool(found["star"]))


def checked_scopes(texts: Iterable[str]) -> tuple[Scope, ...]:
    """The scopes of these texts, each once.

    Raises:
        ConfigurationError: one is not a scope, or there are none.
    """
    found: dict[Scope, None] = {}
    for text in texts:
        scope = parse_scope(text)
        if scope is None:
            raise ConfigurationError(
                f"'{text}' is not a scope. Scopes: {', '.join(ACTS)}; each also for one view or a prefix of names, "
                "as in features:read:driver_*."
            )
        found[scope] = None
    if not found:
        raise ConfigurationError("No scopes were given. Name at least one, as in features:read.")
    return tuple(found)


class Grant:
    """All that the scopes of one token allow. What is no scope of ours allows nothing."""

    __slots__ = ("_acts", "_names", "_prefixes", "scopes")

    def __init__(self, scopes: Iterable[Scope]) -> None:
        self.scopes: Sequence[Scope] = tuple(scopes)
        self._acts = frozenset(scope.act for scope in self.scopes if scope.name is None)
        self._names = frozenset((one.act, one.name) for one in self.scopes if one.name is not None and not one.prefix)
        self._prefixes: dict[str, tuple[str, ...]] = {}
        for scope in self.scopes:
            if scope.prefix and scope.name is not None:
                self._prefixes[scope.act] = (*self._prefixes.get(scope.act, ()), scope.name)

    @classmethod
    def of(cls, text: str) -> "Grant":
        """The grant of a token's `scope`: words with spaces between them."""
        return cls(scope for scope in map(parse_scope, text.split(" ")) if scope is not None)

    def anywhere(self, act: str) -> bool:
        """Whether the act is allowed on any view at all."""
        return act in self._acts or any(scope.act == act for scope in self.scopes)

    def scope(self, act: str, view: str) -> str | None:
        """The scope that allows the act on this view, if one does."""
        wanted = Scope(act, view)
        return next((str(scope) for scope in self.scopes if scope.covers(wanted)), None)

    def everywhere(self, act: str) -> bool:
        """Whether the act is allowed on every view."""
        return act in self._acts

    def allows(self, act: str, view: str) -> bool:
        """Whether the act is allowed on this view."""
        return act in self._acts or (act, view) in self._names or view.startswith(self._prefixes.get(act, ()))
