"""Refusals as RFC 9457 problem documents: what is wrong, where, and how to mend it; never what a caller may not know.

Clients of Feast are refused in the form that they know, with the same status and the same words.
"""

import logging
import re
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import orjson
from starlette.types import Scope, Send

from feature_assets.access import Decision
from feature_assets.errors import (
    ContractBroken,
    Forbidden,
    MissingJoinKey,
    NameCollision,
    NotPublished,
    RegistryError,
    RequestError,
    StoreError,
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

log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"

Dialect: TypeAlias = Literal["problem", "feast", "feast registry"]
"""In which form a refusal is read: RFC 9457, the error of Feast's feature server, or that of its registry server."""

# Only Feast's SDK sends these, and it sends one of them with all that its users ask for or write.
_SENT_BY_FEAST: Final = (b'"include_feature_view_version_metadata"', b'"allow_registry_cache"')

_FEAST_CLASSES: Final = {
    "unknown-view": "FeatureViewNotFoundException",
    "unknown-or-forbidden": "FeatureViewNotFoundException",
    "unknown-service": "FeatureServiceNotFoundException",
    "unknown-feature": "SpecifiedFeaturesNotPresentError",
    "unknown-source": "PushSourceNotFoundException",
    "name-collision": "FeatureNameCollisionError",
    "insufficient-scope": "FeastPermissionError",
    "forbidden": "FeastPermissionError",
}

_LONGEST_DETAIL = 700
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Problem(Exception):
    """A request is refused. `kind` is the stable name of the reason, `close` ends the connection as well, and
    `challenge` is what RFC 6750 has to say to who brought no token or one that does not do; `more` are members of its own.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        pointer: str = "",
        headers: Mapping[str, str] | None = None,
        challenge: str | None = None,
        close: bool = False,
        more: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.pointer = status, kind, detail, pointer
        self.headers, self.challenge, self._more = dict(headers or {}), challenge, more
        if close:
            # What is left of the body is not read.
            self.headers["connection"] = "close"

    def document(self, request_id: str) -> bytes:
        """The problem document."""
        found: dict[str, object] = {
            **self._more,
            "type": f"urn:feature-assets:problem:{self.kind}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self._shown,
        }
        if self.pointer:
            found["pointer"] = _CONTROL.sub("�", self.pointer)[:_LONGEST_DETAIL]
        if request_id:
            found["request_id"] = request_id
        return orjson.dumps(found)

    def as_feast(self) -> bytes:
        """A string of JSON in JSON, which Feast's SDK raises again as an error of that class."""
        name = _FEAST_CLASSES.get(self.kind, "FeastError")
        detail = {"module": "feast.errors", "class": name, "message": self._shown}
        return orjson.dumps(orjson.dumps(detail).decode())

    def as_feast_registry(self) -> bytes:
        """What Feast's registry server answers."""
        names = {403: "FeastPermissionError", 404: "FeastObjectNotFoundException", 422: "RequestValidationError"}
        name = names.get(self.status, "HTTPException")
        return orjson.dumps({"status_code": self.status, "detail": self._shown, "error_type": name})

    @property
    def _shown(self) -> str:
        detail = _CONTROL.sub("�", self.detail)
        return detail if len(detail) <= _LONGEST_DETAIL else detail[: _LONGEST_DETAIL - 1] + "…"

    async def answer(self, scope: Scope, send: Send, request_id: str, dialect: Dialect = "problem") -> None:
        """Send it."""
        if dialect == "problem":
            document, media_type = self.document(request_id), MEDIA_TYPE
        else:
            document = self.as_feast() if dialect == "feast" else self.as_feast_registry()
            media_type = "application/json"
        if self.challenge is not None:
            about = f'resource_metadata="{origin(scope)}/.well-known/oauth-protected-resource"'
            self.headers["www-authenticate"] = ", ".join(
                filter(None, ('Bearer realm="feature-assets"', self.challenge, about))
            )
        headers = [(b"content-type", media_type.encode()), (b"content-length", str(len(document)).encode())]
        headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": document})


def dialect_of(body: bytes) -> Dialect:
    """Whether Feast's SDK sent this body, by a field that it always sends and nobody else does."""
    return "feast" if any(field in body for field in _SENT_BY_FEAST) else "problem"


_HOST = re.compile(rb"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:]{2,45}\](:[0-9]{1,5})?")


def origin(scope: Scope) -> str:
    """Scheme and host by which the server was reached."""
    host = next((value for name, value in scope["headers"] if name == b"host"), b"")
    if _HOST.fullmatch(host):
        return f"{scope['scheme']}://{host.decode()}"
    name, port = scope.get("server") or ("127.0.0.1", None)
    return f"{scope['scheme']}://{name}" + (f":{port}" if port else "")


# The first class that an error is of decides. A message that may tell of paths or values of others is not passed on.
_KINDS: Final[tuple[tuple[type[Exception], int, str, str | None], ...]] = (
    (UnknownView, 404, "unknown-view", ""),
    (UnknownFeature, 404, "unknown-feature", ""),
    (UnknownService, 404, "unknown-service", ""),
    (UnknownSource, 404, "unknown-source", ""),
    (UnknownName, 404, "unknown-name", ""),
    (MissingJoinKey, 422, "missing-join-key", ""),
    (NameCollision, 422, "name-collision", ""),
    (WrongType, 422, "wrong-type", ""),
    (RequestError, 422, "bad-question", ""),
    (ContractBroken, 422, "not-computable", "An on-demand feature cannot be computed from these values."),
    (TransformationRefused, 503, "not-computable-here", "An on-demand view cannot be computed by this server."),
    (TableMissing, 503, "not-materialised", ""),
    (StoreError, 503, "store-unavailable", "The store cannot be read now. Try again."),
    (NotPublished, 503, "no-registry", "No registry has been published yet. Run: feature-assets apply"),
    (RegistryError, 503, "registry-unreadable", "The registry cannot be read now. Try again."),
)


def problem_of(error: Exception) -> Problem | None:
    """The problem that an error of the platform is to a caller; None for an error that nobody foresaw."""
    if isinstance(error, Forbidden):
        return _forbidden(error)
    if isinstance(error, Unauthenticated):
        return Problem(401, "unauthenticated", str(error), challenge='error="invalid_token"')
    for of, status, kind, instead in _KINDS:
        if isinstance(error, of):
            if of is ContractBroken:
                log.warning("request refused kind=%s error=%s", kind, type(error).__name__)
            elif instead:
                log.warning("request refused kind=%s error=%s: %s", kind, type(error).__name__, error)
            headers = {"retry-after": "1"} if status == 503 else None
            return Problem(status, kind, instead or str(error), headers=headers)
    return None


def _forbidden(error: Forbidden) -> Problem:
    """RFC 6750 has a code for a token whose scopes do not suffice; where no scope would help, there is none to name."""
    decision: Decision | None = error.decision
    if decision is not None and decision.hidden:
        return Problem(404, "unknown-or-forbidden", str(error))
    if decision is not None and decision.lacks:
        challenge = f'error="insufficient_scope", scope="{" ".join(decision.lacks)}"'
        return Problem(403, "insufficient-scope", str(error), challenge=challenge)
    return Problem(403, "forbidden", str(error))


def unforeseen(error: Exception, request_id: str) -> Problem:
    """The answer to an error of ours. Where it came from goes to the log; its message may hold values and does not."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    place = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    log.error("request failed id=%s error=%s at %s", request_id, type(error).__name__, place)
    return Problem(500, "internal", "The server failed. Its log has more under this request id.")
