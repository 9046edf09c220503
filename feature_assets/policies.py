"""Who may do what with a view, as it is declared: `access` and `row_filter`, checked when they are made.

A policy names principals as `role:risk`, `group:/teams/risk`, `client:scorer` or `subject:user-1`, exactly or by how they
begin: `role:risk_*`. There are no patterns beyond that, so that everybody reads the same out of one.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from feature_assets.errors import DeclarationError
from feature_assets.types import UUID, Bool, FeatureType, Int8, Int16, Int32, Int64, String

POLICY_ACTS: Final[Mapping[str, str]] = {
    "read": "its latest values, histories and training sets",
    "push": "push rows into it",
    "materialize": "materialise, backfill and reconcile it",
    "pii": "see its personal data",
}

ON_DEMAND_ACTS: Final[Mapping[str, str]] = {act: POLICY_ACTS[act] for act in ("read", "pii")}
"""A view that is computed when asked for holds no rows to push or materialise."""

_PRINCIPAL = re.compile(r"(role|group|client|subject):(?P<name>[^*]*)(?P<star>\*?)")
_LONGEST = 512

# What a claim of one JSON value can be, without a second way to write it.
_CLAIMED: Final[tuple[FeatureType, ...]] = (String, Int8, Int16, Int32, Int64, Bool, UUID)


def checked_access(place: str, access: Any, acts: Mapping[str, str] = POLICY_ACTS) -> dict[str, tuple[str, ...]] | None:
    """The policy in its one form: principals sorted, for their order means nothing. None stays None.

    Raises:
        DeclarationError: an act or a principal is none.
    """
    if access is None:
        return None
    if not isinstance(access, Mapping) or not access:
        raise DeclarationError(
            f"{place}: access is {access!r}. Name who may do what, as in access={{'read': ['role:risk']}}; what it does not "
            "name, nobody may. Leave it out for a view that scopes alone decide about."
        )
    for act, principals in access.items():
        if act not in acts:
            raise DeclarationError(f"{place}: access has no act '{act}'. There are: {', '.join(acts)}.")
        if isinstance(principals, str) or not isinstance(principals, list | tuple | set | frozenset):
            raise DeclarationError(
                f"{place}: access['{act}'] is {principals!r}. Give a list of principals, as in ['role:risk', 'client:scorer']."
            )
        for principal in principals:
            _check_principal(f"{place}: access['{act}']", principal)
    return {act: tuple(sorted(set(principals))) for act, principals in sorted(access.items())}


def _check_principal(place: str, principal: Any) -> None:
    found = _PRINCIPAL.fullmatch(principal) if isinstance(principal, str) else None
    if found is None or not (found["name"] or found["star"]):
        raise DeclarationError(
            f"{place} names {principal!r}. Write role:…, group:…, client:… or subject:…, exactly or with a star behind it, "
            "as in role:risk_*."
        )
    if not principal.isprintable() or len(principal) > _LONGEST:
        raise DeclarationError(
            f"{place} names {principal[:60]!r}, which no token can name: it is longer than {_LONGEST} letters or not "
            "printable."
        )


def checked_row_filter(place: str, row_filter: Any, join_keys: Mapping[str, FeatureType]) -> dict[str, str]:
    """The row filter, join keys in the order of their names.

    Raises:
        DeclarationError: a key is no join key, or of a type that no claim can be; or a claim has no name.
    """
    if not isinstance(row_filter, Mapping):
        raise DeclarationError(
            f"{place}: row_filter is {row_filter!r}. Give the claim for each join key, as in {{'tenant_id': 'tenant'}}."
        )
    for key, claim in row_filter.items():
        if key not in join_keys:
            known = ", ".join(join_keys) or "none: it has no entities"
            raise DeclarationError(
                f"{place}: row_filter names '{key}', which is no join key of it (join keys: {known})."
            )
        if join_keys[key] not in _CLAIMED:
            raise DeclarationError(
                f"{place}: row_filter compares '{key}', a {join_keys[key]}, and no claim of a token is one. Filter by a "
                f"join key that is one of: {', '.join(map(str, _CLAIMED))}."
            )
        if not isinstance(claim, str) or not 0 < len(claim) <= _LONGEST or not claim.isprintable():
            raise DeclarationError(
                f"{place}: row_filter compares '{key}' with the claim {claim!r}. Give the claim's name, or its dotted path."
            )
    return dict(sorted(row_filter.items()))
