"""Who is asking."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self, TypeAlias

from feature_assets.access.scopes import Grant, checked_scopes

Claim: TypeAlias = str | int | bool
"""What a row filter compares a join key with."""


@dataclass(frozen=True, slots=True, eq=False)
class Principal:
    """Who is asking: known by issuer and subject together, allowed what the scopes say and the views' policies.

    `roles` and `groups` are names as the issuer has them. `claims` are the claims that are one value, by dotted path;
    a row filter compares a join key with one of them. `ends` is when all of this ceases to count, in seconds since 1970.
    `names` is what policies call it by: `role:risk`, `group:…`, `client:…`, `subject:…`.
    """

    issuer: str
    subject: str
    client_id: str
    grant: Grant
    ends: float = math.inf
    roles: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    claims: Mapping[str, Claim] = field(default_factory=dict)
    names: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        named = {f"client:{self.client_id}", f"subject:{self.subject}"}
        named.update(f"role:{role}" for role in self.roles)
        named.update(f"group:{group}" for group in self.groups)
        object.__setattr__(self, "names", frozenset(named))

    @classmethod
    def of(
        cls,
        client_id: str,
        scopes: str | Iterable[str],
        *,
        subject: str = "",
        roles: Iterable[str] = (),
        groups: Iterable[str] = (),
        claims: Mapping[str, Claim] | None = None,
    ) -> Self:
        """A principal that this process vouches for, without a token.

        Args:
            client_id: the client; the subject as well, unless that is given.
            scopes: as "features:read pii:read:driver_*", or a list of them.

        Raises:
            ConfigurationError: a scope is none, or there are none.
        """
        listed = scopes.split() if isinstance(scopes, str) else scopes
        return cls(
            issuer="",
            subject=subject or client_id,
            client_id=client_id,
            grant=Grant(checked_scopes(listed)),
            roles=frozenset(roles),
            groups=frozenset(groups),
            claims=dict(claims or {}),
        )
