"""Problem documents of the feature server, as the errors that a store in this process raises."""

from typing import Any, Final

import httpx
import orjson

from feature_assets.errors import (
    ChecksFailed,
    ContractBroken,
    FeatureAssetsError,
    Forbidden,
    MissingJoinKey,
    NameCollision,
    NotPublished,
    RegistryConflict,
    RegistryError,
    RequestError,
    StoreFull,
    StoreUnavailable,
    TableMissing,
    TransformationRefused,
    Unauthenticated,
    UnknownFeature,
    UnknownName,
    UnknownService,
    UnknownSource,
    UnknownView,
    WrongType,
)

_KINDS: Final[dict[str, type[FeatureAssetsError]]] = {
    "unknown-view": UnknownView,
    "unknown-feature": UnknownFeature,
    "unknown-service": UnknownService,
    "unknown-source": UnknownSource,
    "unknown-name": UnknownName,
    "unknown-or-forbidden": Forbidden,
    "insufficient-scope": Forbidden,
    "forbidden": Forbidden,
    "unauthenticated": Unauthenticated,
    "missing-join-key": MissingJoinKey,
    "name-collision": NameCollision,
    "wrong-type": WrongType,
    "not-computable": ContractBroken,
    "bad-rows": ContractBroken,
    "checks-failed": ChecksFailed,
    "store-full": StoreFull,
    "not-computable-here": TransformationRefused,
    "not-materialised": TableMissing,
    "no-registry": NotPublished,
    "registry-unreadable": RegistryError,
    "other-in-force": RegistryConflict,
}
_STATUSES: Final[dict[int, type[FeatureAssetsError]]] = {401: Unauthenticated, 403: Forbidden, 404: UnknownName}
_LASTING: Final = frozenset({"not-computable-here", "not-materialised", "no-registry", "registry-unreadable"})


def error_of(answer: httpx.Response) -> FeatureAssetsError:
    """What the server refused, or what stands before it."""
    document = _document(answer)
    kind = _kind(document)
    by_status = RequestError if 400 <= answer.status_code < 500 else StoreUnavailable
    of = _KINDS.get(kind) or _STATUSES.get(answer.status_code) or by_status
    detail = document.get("detail")
    if not isinstance(detail, str):
        detail = f"{answer.request.url.host} answered {answer.status_code}, and not as a feature server does."
    request_id = document.get("request_id")
    if answer.status_code >= 500 and request_id:
        detail += f" (Its log has more under {request_id}.)"
    return of(detail)


def may_pass(answer: httpx.Response) -> bool:
    """Whether the same request may be answered soon."""
    if answer.status_code not in (429, 502, 503, 504):
        return False
    return _kind(_document(answer)) not in _LASTING


def _kind(document: dict[str, Any]) -> str:
    return str(document.get("type", "")).rpartition(":")[2]


def _document(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
