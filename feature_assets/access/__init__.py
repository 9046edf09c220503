"""Who is asking, and what they may do: the same for the HTTP server and for a `FeatureStore` with a principal.

- `scopes`: acts, and tokens narrowed to some views
- `principals`: who is asking
- `decisions`: scope and view policy and field policy and row filter, by one registry snapshot
"""

from feature_assets.access.decisions import Access, Decision, Reading, in_general
from feature_assets.access.principals import Claim, Principal
from feature_assets.access.scopes import (
    ACTS,
    ADMIN,
    HISTORY,
    KNOW,
    MATERIALIZE,
    PUBLISH,
    PUSH,
    READ,
    SEE_PII,
    Grant,
    Scope,
    checked_scopes,
    parse_scope,
)

__all__ = [
    "ACTS",
    "ADMIN",
    "HISTORY",
    "KNOW",
    "MATERIALIZE",
    "PUBLISH",
    "PUSH",
    "READ",
    "SEE_PII",
    "Access",
    "Claim",
    "Decision",
    "Grant",
    "Principal",
    "Reading",
    "Scope",
    "checked_scopes",
    "in_general",
    "parse_scope",
]
