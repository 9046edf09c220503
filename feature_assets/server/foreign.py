"""An issuer elsewhere, asked over HTTP: its metadata, its keys, and about tokens that only it can read.

All that is asked follows from the configured issuer: its metadata (OpenID Discovery or RFC 8414) has to name just this
issuer, and only https, or this machine where the issuer is on it, is asked. No redirect is followed: one could lead a
request that is made inside the network anywhere in it.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote_plus, urlsplit

import httpx

from feature_assets.errors import StoreUnavailable
from feature_assets.server.keys import is_loopback, is_protected

_LARGEST_ANSWER: Final = 1 << 20
_SECONDS_TO_ANSWER: Final = 5.0
_CONNECTIONS: Final = httpx.Limits(max_connections=16, max_keepalive_connections=8)

_JSON: Final = {"accept": "application/json", "accept-encoding": "identity"}


class ForeignIssuer:
    """What is asked of one issuer. `client_id` and `secret` are those with which it lets us introspect tokens."""

    def __init__(self, issuer: str, *, client_id: str | None = None, secret: str | None = None) -> None:
        self.issuer = issuer
        self._client_id, self._secret = client_id, secret
        self._http = httpx.AsyncClient(timeout=_SECONDS_TO_ANSWER, limits=_CONNECTIONS, headers=_JSON)
        self._metadata: Mapping[str, Any] | None = None

    async def keys(self) -> object:
        """Its JWKS. The metadata is read anew as well, so that what moves is followed.

        Raises:
            StoreUnavailable: it cannot be had.
            ValueError: the metadata names another issuer, or an unprotected place.
        """
        self._metadata = await self._fetched_metadata()
        if self._client_id and "jwks_uri" not in self._metadata:
            # It issues no tokens that others can read.
            return {"keys": []}
        found = await self._asked("GET", self._place(self._metadata, "jwks_uri"))
        if not isinstance(found, Mapping) or not isinstance(found.get("keys"), list):
            raise StoreUnavailable(f"What {self.issuer} gives as its keys is no JWKS.")
        return found

    async def introspected(self, token: str) -> Mapping[str, Any]:
        """What it says of a token (RFC 7662).

        Raises:
            StoreUnavailable: it cannot be asked now, or does not let us.
            ValueError: the metadata names another issuer, no endpoint for this, or an unprotected one.
        """
        if self._metadata is None:
            self._metadata = await self._fetched_metadata()
        place = self._place(self._metadata, "introspection_endpoint")
        form = {"token": token, "token_type_hint": "access_token"}
        offered = self._metadata.get("introspection_endpoint_auth_methods_supported", ["client_secret_basic"])
        client_id, secret = self._client_id or "", self._secret or ""
        if "client_secret_basic" in offered:
            # Both are form-encoded first (RFC 6749, 2.3.1).
            login = httpx.BasicAuth(quote_plus(client_id), quote_plus(secret))
            found = await self._asked("POST", place, data=form, auth=login)
        else:
            found = await self._asked("POST", place, data={**form, "client_id": client_id, "client_secret": secret})
        if not isinstance(found, Mapping):
            raise StoreUnavailable(f"{self.issuer} answers an introspection with no object.")
        return found

    async def close(self) -> None:
        """Let go of its connections."""
        await self._http.aclose()

    def _place(self, metadata: Mapping[str, Any], name: str) -> str:
        place = metadata.get(name)
        # An issuer elsewhere has nothing to say about what listens on this machine.
        if not isinstance(place, str) or not is_protected(place) or (_is_here(place) and not _is_here(self.issuer)):
            raise ValueError(f"the {name} of {self.issuer} is missing or not https")
        return place

    async def _fetched_metadata(self) -> Mapping[str, Any]:
        parts = urlsplit(self.issuer)
        path = parts.path.rstrip("/")
        root = f"{parts.scheme}://{parts.netloc}"
        openid, oauth = f"{path}/.well-known/openid-configuration", f"/.well-known/oauth-authorization-server{path}"
        found = await self._asked("GET", root + openid, missing_is_none=True)
        if not isinstance(found, Mapping):
            found = await self._asked("GET", root + oauth)
        if not isinstance(found, Mapping) or found.get("issuer") != self.issuer:
            raise ValueError(
                f"{self.issuer} says that it is another issuer; server.issuer has to be exactly what it says"
            )
        return found

    async def _asked(self, method: str, url: str, *, missing_is_none: bool = False, **options: Any) -> object:
        try:
            async with (
                asyncio.timeout(_SECONDS_TO_ANSWER),
                self._http.stream(method, url, follow_redirects=False, **options) as answer,
            ):
                if answer.status_code == 404 and missing_is_none:
                    return None
                if answer.status_code != 200:
                    raise StoreUnavailable(f"{url} answers with status {answer.status_code}.")
                data = bytearray()
                async for part in answer.aiter_raw():
                    data += part
                    if len(data) > _LARGEST_ANSWER:
                        raise StoreUnavailable(f"{url} answers with more than {_LARGEST_ANSWER} bytes.")
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise StoreUnavailable(f"{url} cannot be reached: {type(error).__name__}.") from error
        try:
            found: object = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise StoreUnavailable(f"{url} does not answer with JSON.") from error
        return found


def _is_here(url: str) -> bool:
    return is_loopback(urlsplit(url).hostname)
