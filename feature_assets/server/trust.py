"""Whose tokens count: those of the configured issuer, or without one those of the issuer in this server.

Here too is how clients learn of it: the metadata documents, and for the embedded issuer its keys and its token endpoint.
"""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.models import OAuthFlowClientCredentials, OAuthFlows
from fastapi.security import OAuth2, OpenIdConnect
from fastapi.security.base import SecurityBase
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from feature_assets.access import ACTS
from feature_assets.config import ServerSettings, Settings
from feature_assets.errors import ConfigurationError
from feature_assets.server import documentation as pages
from feature_assets.server.auth import TokenValidator
from feature_assets.server.bearer import Bearer
from feature_assets.server.gate import Handler
from feature_assets.server.introspection import Introspection
from feature_assets.server.issuer import Issuer
from feature_assets.server.keys import KeyCache, checked_issuer, is_loopback
from feature_assets.server.limits import Quota
from feature_assets.server.oauth import (
    JWKS_PATH,
    TOKEN_PATH,
    TokenEndpoint,
    openid_configuration,
    resource_metadata,
    server_metadata,
)
from feature_assets.server.problems import origin

if TYPE_CHECKING:
    from feature_assets.server.foreign import ForeignIssuer


class Trust:
    """Made of the settings, once for each application. `bearer` tells who is asking.

    Raises:
        ConfigurationError: the issuer is none, or the embedded one cannot have its keys.
    """

    def __init__(self, settings: Settings) -> None:
        self._server = settings.server
        self._own: Issuer | None = None
        self._foreign: ForeignIssuer | None = None
        if settings.server.issuer is None:
            self._own = Issuer.open(settings.place(settings.secrets), audience=settings.server.audience)
            identifier, self._keys = self._own.identifier, _own_keys(self._own)
        else:
            identifier = checked_issuer(settings.server.issuer)
            self._foreign = _foreign(settings.server, identifier)
            self._keys = KeyCache(self._foreign.keys)
        validator = TokenValidator(
            identifier,
            settings.server.audience,
            self._keys,
            role_claims=settings.server.role_claims,
            group_claims=settings.server.group_claims,
            introspection=self._introspection(),
        )
        self.bearer = Bearer(validator, _quota(settings.server))

    def _introspection(self) -> Introspection | None:
        if self._foreign is None or self._server.introspection_client is None:
            return None
        return Introspection(self._foreign.introspected, seconds=self._server.introspection_seconds)

    def security(self) -> SecurityBase:
        """How to get a token, for the OpenAPI document."""
        if self._server.issuer is not None:
            place = f"{self._server.issuer.rstrip('/')}/.well-known/openid-configuration"
            return OpenIdConnect(openIdConnectUrl=place, scheme_name="issuer", auto_error=False)
        flow = OAuthFlowClientCredentials(tokenUrl=TOKEN_PATH, scopes=ACTS)
        return OAuth2(flows=OAuthFlows(clientCredentials=flow), scheme_name="client", auto_error=False)

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """What the gate answers itself: tokens, if the issuer is here."""
        if self._own is None:
            return {}
        return {("POST", TOKEN_PATH): TokenEndpoint(self._own, self._server.token_lifetime_seconds)}

    def add_to(self, app: FastAPI) -> None:
        """Add the documents by which clients find their way."""
        if self._own is not None:
            _describe_token(app)
            _add_issuer(app, self._own)
        _add_resource(app, self._server)

    async def keep_fresh(self) -> None:
        """Follow the issuer's keys for ever."""
        await self._keys.keep_fresh()

    async def close(self) -> None:
        """Let go of connections."""
        if self._foreign is not None:
            await self._foreign.close()


def check_binding(settings: Settings, host: str) -> None:
    """Refuse to be reached by others before it is said whose tokens count.

    Raises:
        ConfigurationError: the address is not loopback, and issuer or audience are not set.
    """
    if settings.server.issuer:
        checked_issuer(settings.server.issuer)
    if is_loopback(host):
        return
    missing = [
        name
        for name, there in (
            ("server.issuer", settings.server.issuer),
            ("server.audience", "audience" in settings.server.model_fields_set),
        )
        if not there
    ]
    if missing:
        raise ConfigurationError(
            f"Listening on '{host}' opens the server to others, and {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set. Name the OIDC issuer whose tokens count and the audience "
            "that they are for, or listen on 127.0.0.1."
        )


def cautions(server: ServerSettings) -> Iterator[str]:
    """What is worth a line in the log of a server that others can reach, once, at its start."""
    if is_loopback(server.host):
        return
    if server.tls_certificate is None:
        yield (
            "without TLS whoever is on the way reads tokens and values: set server.tls_certificate and server.tls_key, or "
            "let a proxy in front end TLS"
        )
    if server.audit is None:
        yield "nothing will tell who asked for what: set server.audit for a log of decisions"


def _foreign(server: ServerSettings, issuer: str) -> "ForeignIssuer":
    # With its HTTP client, which takes a tenth of a second to load and is for this alone.
    from feature_assets.server.foreign import ForeignIssuer

    secret = server.introspection_secret
    return ForeignIssuer(
        issuer, client_id=server.introspection_client, secret=secret.get_secret_value() if secret else None
    )


def _own_keys(issuer: Issuer) -> KeyCache:
    async def public_keys() -> object:
        return await asyncio.to_thread(issuer.public_keys)

    # Files of our own: looking again costs nothing, and a key that another process has just made counts at once.
    return KeyCache(public_keys, pause=0.0, fresh=5.0)


def _quota(server: ServerSettings) -> Quota | None:
    each, total = server.requests_per_second, server.total_requests_per_second
    return Quota(each=each, burst=server.burst, total=total) if each or total else None


def _describe_token(app: FastAPI) -> None:
    """For OpenAPI alone: the gate answers this route before FastAPI would."""

    @app.post(
        TOKEN_PATH,
        tags=["authorisation"],
        summary="An access token for a client",
        response_model=pages.TokenAnswer,
        responses={
            400: {"model": pages.TokenError, "description": "The request is not as it should be."},
            401: {"model": pages.TokenError, "description": "There is no such client, or it is not its secret."},
            **pages.refusals(408, 413, 429, 500, 503),
        },
        openapi_extra={"requestBody": pages.TOKEN_FORM},
    )
    async def token() -> None:
        """OAuth 2 client credentials of the embedded issuer. Clients are added with `feature-assets auth`."""


def _add_issuer(app: FastAPI, issuer: Issuer) -> None:
    @app.get("/.well-known/oauth-authorization-server", tags=["authorisation"], summary="The issuer (RFC 8414)")
    async def oauth_authorization_server(request: Request) -> dict[str, Any]:
        return server_metadata(issuer, origin(request.scope))

    @app.get("/.well-known/openid-configuration", tags=["authorisation"], summary="The issuer, in OpenID's place")
    async def openid_configuration_(request: Request) -> dict[str, Any]:
        return openid_configuration(issuer, origin(request.scope))

    @app.get(
        JWKS_PATH,
        tags=["authorisation"],
        summary="The issuer's public keys",
        response_class=Response,
        responses={200: {"content": {"application/jwk-set+json": {"schema": {"type": "object"}}}}},
    )
    async def jwks() -> Response:
        return JSONResponse(await asyncio.to_thread(issuer.public_keys), media_type="application/jwk-set+json")


def _add_resource(app: FastAPI, server: ServerSettings) -> None:
    @app.get("/.well-known/oauth-protected-resource", tags=["authorisation"], summary="What a token needs (RFC 9728)")
    async def oauth_protected_resource(request: Request) -> dict[str, Any]:
        place = origin(request.scope)
        return resource_metadata(server.issuer or place, server.audience, place)
