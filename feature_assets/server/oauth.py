"""The OAuth side of the server: tokens for clients of the embedded issuer, and the metadata that clients look for.

One grant and two ways of client authentication, read strictly. The answers of the token endpoint have the form that RFC
6749 gives them, errors too: every OAuth client knows them, and none knows problem documents.
"""

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_plus

import orjson
from starlette.types import Receive, Scope

from feature_assets.access import ACTS, Decision, parse_scope
from feature_assets.errors import ConfigurationError
from feature_assets.server.gate import Exchange
from feature_assets.server.issuer import Client, Issuer
from feature_assets.server.limits import Allowance, read_body
from feature_assets.server.problems import Problem

TOKEN_PATH: Final = "/oauth/token"  # noqa: S105 (a path)
JWKS_PATH: Final = "/oauth/jwks.json"

_LARGEST_FORM: Final = 16_384
_TOKENS_A_SECOND: Final = 50
_TOKENS_AT_ONCE: Final = 100

_NO_STORE: Final = ((b"cache-control", b"no-store"), (b"pragma", b"no-cache"))


class _Refused(Exception):
    """An error of RFC 6749, 5.2."""

    def __init__(self, code: str, description: str, *, status: int = 400, headers: Sequence[tuple[bytes, bytes]] = ()):
        super().__init__(description)
        self.code, self.description, self.status, self.headers = code, description, status, headers


class TokenEndpoint:
    """POST /oauth/token: client credentials, by HTTP Basic or in the form."""

    def __init__(self, issuer: Issuer, lifetime: int) -> None:
        self._issuer, self._lifetime = issuer, lifetime
        self._allowance = Allowance(_TOKENS_A_SECOND, _TOKENS_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        """Answer one request."""
        wait = self._allowance.take()
        if wait:
            retry = {"retry-after": str(int(wait) + 1)}
            raise Problem(429, "too-many-requests", "Too many tokens are asked for at once. Wait.", headers=retry)
        headers = _single_headers(scope)
        body = await read_body(scope, receive, largest=_LARGEST_FORM)
        try:
            form = _form(headers.get(b"content-type", b""), body)
            # Files are read, and a key may be made.
            client, answer = await asyncio.to_thread(self._granted, form, headers.get(b"authorization"))
            exchange.client = client.client_id
            exchange.decision = Decision("token", (), allowed=True, rule="client secret")
            await _send(exchange, 200, answer)
        except _Refused as error:
            exchange.denied = error.code
            document = {"error": error.code, "error_description": error.description}
            await _send(exchange, error.status, document, error.headers)
        except ConfigurationError as error:
            raise Problem(503, "issuer-unavailable", "The issuer's keys and clients cannot be read.") from error

    def _granted(self, form: Mapping[str, str], authorization: bytes | None) -> tuple[Client, dict[str, Any]]:
        client_id, secret, by_header = _credentials(form, authorization)
        client = self._issuer.authenticated(client_id, secret)
        if client is None:
            challenge = ((b"www-authenticate", b'Basic realm="feature-assets"'),) if by_header else ()
            raise _Refused("invalid_client", "No such client, or not its secret.", status=401, headers=challenge)
        if form.get("grant_type") != "client_credentials":
            code = "unsupported_grant_type" if form.get("grant_type") else "invalid_request"
            raise _Refused(code, "Ask with grant_type=client_credentials.")
        scopes = _granted_scopes(client, form.get("scope", ""))
        token = self._issuer.token(client.client_id, scopes, self._lifetime, client.claims)
        return client, {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": self._lifetime,
            "scope": " ".join(scopes),
        }


def _granted_scopes(client: Client, asked: str) -> tuple[str, ...]:
    if not asked.strip():
        return client.scopes
    allowed = [scope for scope in map(parse_scope, client.scopes) if scope is not None]
    scopes = tuple(dict.fromkeys(asked.split()))
    for text in scopes:
        scope = parse_scope(text)
        if scope is None or not any(one.covers(scope) for one in allowed):
            raise _Refused("invalid_scope", f"This client may ask for: {' '.join(client.scopes)}")
    return scopes


def _single_headers(scope: Scope) -> Mapping[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in found and name in (b"authorization", b"content-type"):
            raise Problem(400, "bad-headers", f"There is more than one {name.decode()} header.")
        found[name] = value
    return found


def _form(content_type: bytes, body: bytes) -> Mapping[str, str]:
    if content_type.split(b";")[0].strip().lower() != b"application/x-www-form-urlencoded":
        raise _Refused("invalid_request", "Send a form: Content-Type: application/x-www-form-urlencoded.")
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, strict_parsing=bool(body), errors="strict", max_num_fields=20
        )
    except ValueError:
        raise _Refused("invalid_request", "The form cannot be read.") from None
    form = dict(pairs)
    if len(form) != len(pairs):
        raise _Refused("invalid_request", "The form has a field twice.")
    return form


def _credentials(form: Mapping[str, str], authorization: bytes | None) -> tuple[str, str, bool]:
    """Client id and secret, and whether they came in the header."""
    if authorization is None:
        if "client_id" not in form or "client_secret" not in form:
            raise _Refused("invalid_client", "Send client_id and client_secret.", status=401)
        return form["client_id"], form["client_secret"], False
    if "client_secret" in form:
        raise _Refused("invalid_request", "Send the client's secret in one place.")
    client_id, secret = _basic(authorization)
    if form.get("client_id", client_id) != client_id:
        raise _Refused("invalid_request", "Header and form name different clients.")
    return client_id, secret, True


def _basic(authorization: bytes) -> tuple[str, str]:
    scheme, _, encoded = authorization.partition(b" ")
    try:
        if scheme.lower() != b"basic":
            raise ValueError(scheme)
        client_id, colon, secret = base64.b64decode(encoded.strip(), validate=True).decode("utf-8").partition(":")
        if not colon:
            raise ValueError(colon)
    except (ValueError, binascii.Error):
        challenge = ((b"www-authenticate", b'Basic realm="feature-assets"'),)
        description = "The Authorization header holds no client and secret."
        raise _Refused("invalid_client", description, status=401, headers=challenge) from None
    return unquote_plus(client_id), unquote_plus(secret)


async def _send(
    exchange: Exchange, status: int, document: Mapping[str, Any], more: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    body = orjson.dumps(document)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *_NO_STORE,
        *more,
    ]
    await exchange.send({"type": "http.response.start", "status": status, "headers": headers})
    await exchange.send({"type": "http.response.body", "body": body})


def server_metadata(issuer: Issuer, place: str) -> dict[str, Any]:
    """What the embedded issuer is (RFC 8414), reached at `place`."""
    return {
        "issuer": issuer.identifier,
        "token_endpoint": f"{place}{TOKEN_PATH}",
        "jwks_uri": f"{place}{JWKS_PATH}",
        "scopes_supported": list(ACTS),
        "response_types_supported": [],
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
    }


def openid_configuration(issuer: Issuer, place: str) -> dict[str, Any]:
    """The same for clients that look in OpenID's place. It identifies no persons, so there are no ID tokens."""
    return {
        **server_metadata(issuer, place),
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    }


def resource_metadata(issuer: str, audience: str, place: str) -> dict[str, Any]:
    """What the server asks of a token (RFC 9728), reached at `place`."""
    return {
        "resource": audience if audience.startswith(("https://", "http://")) else place,
        "authorization_servers": [issuer],
        "scopes_supported": list(ACTS),
        "bearer_methods_supported": ["header"],
        "resource_name": "Feature Assets",
    }
