"""Access tokens for a client: given ones, or from the issuer that the server names (OAuth client credentials).

The two ways of waiting, with and without `await`, share one walk: it yields requests, and is sent the answers.
"""

import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import quote, urlsplit

import httpx
import orjson

from feature_assets.errors import ConfigurationError, StoreUnavailable, Unauthenticated

Walk: TypeAlias = Generator[httpx.Request, httpx.Response, str]
"""Yields requests, is sent their answers, returns a token."""

TokenSource: TypeAlias = str | Callable[[], str]
"""A token, or what gives one whenever one is needed."""

_SECONDS_EARLY: Final = 30.0
_SHARE_EARLY: Final = 0.1


class Tokens:
    """The token of one client, renewed before it ends and when the server takes it no longer."""

    def __init__(
        self,
        url: str,
        given: TokenSource | None,
        client_id: str | None,
        client_secret: str | None,
        scope: str | None,
        parameters: Mapping[str, str],
        *,
        allow_http: bool,
    ) -> None:
        """Raises:
        ConfigurationError: neither a token nor a client is given, or both.
        """
        if (given is None) == (client_id is None) or (client_id is None) != (client_secret is None):
            raise ConfigurationError(
                "Give either a token (or a function that gives one) or client_id and client_secret."
            )
        self._url, self._given, self._scope, self._parameters = url, given, scope, dict(parameters)
        self._client = (client_id or "", client_secret or "")
        self._allow_http = allow_http
        self._token, self._renew_at = "", 0.0

    @property
    def current(self) -> str | None:
        """The token, if there is one that is good for a while."""
        if callable(self._given):
            return self._given()
        if isinstance(self._given, str):
            return self._given
        return self._token if self._token and time.monotonic() < self._renew_at else None

    def refused(self, token: str) -> bool:
        """The server did not take it: whether there may be another one."""
        if self._given is not None:
            return callable(self._given) and self._given() != token
        if token == self._token:
            self._token = ""
        return True

    def fetch(self) -> Walk:
        """Get a token.

        Raises:
            Unauthenticated: the issuer does not give one to this client.
            StoreUnavailable: the issuer does not answer as one.
        """
        resource = yield httpx.Request("GET", f"{self._url}/.well-known/oauth-protected-resource")
        servers = _json(resource).get("authorization_servers")
        if not isinstance(servers, list) or not servers:
            raise StoreUnavailable(f"{self._url} does not say who issues its tokens. Give a token instead.")
        endpoint = yield from self._endpoint(str(servers[0]).rstrip("/"))
        form = {"grant_type": "client_credentials", **self._parameters}
        if self._scope is not None:
            form["scope"] = self._scope
        basic = httpx.BasicAuth(*(quote(part, safe="") for part in self._client))
        request = httpx.Request("POST", endpoint, data=form, headers={"accept": "application/json"})
        answer = yield next(basic.auth_flow(request))
        return self._kept(answer)

    def _endpoint(self, issuer: str) -> Generator[httpx.Request, httpx.Response, str]:
        """The issuer's token endpoint, by its metadata in the place of RFC 8414 or of OpenID."""
        parts = urlsplit(issuer)
        origin = f"{parts.scheme}://{parts.netloc}"
        for place in (
            f"{origin}/.well-known/oauth-authorization-server{parts.path}",
            f"{issuer}/.well-known/openid-configuration",
        ):
            answer = yield httpx.Request("GET", self._secured(place))
            if answer.is_success and isinstance(found := _json(answer).get("token_endpoint"), str):
                return self._secured(found)
        raise StoreUnavailable(f"{issuer} does not say where it gives tokens. Give a token instead.")

    def _secured(self, url: str) -> str:
        check_secured(url, allow_http=self._allow_http)
        return url

    def _kept(self, answer: httpx.Response) -> str:
        document = _json(answer)
        token = document.get("access_token")
        if not answer.is_success or not isinstance(token, str):
            why = str(document.get("error_description") or document.get("error") or f"it answered {answer.status_code}")
            raise Unauthenticated(f"The issuer gives no token to the client '{self._client[0]}': {why[:200]}")
        lifetime = document.get("expires_in")
        seconds = float(lifetime) if isinstance(lifetime, int | float) else 300.0
        early = min(_SECONDS_EARLY, seconds * _SHARE_EARLY)
        self._token, self._renew_at = token, time.monotonic() + seconds - early
        return token


def check_secured(url: str, *, allow_http: bool) -> None:
    """Refuse to send tokens and secrets where others can read them.

    Raises:
        ConfigurationError: it is not HTTPS, and not on this machine.
    """
    parts = urlsplit(url)
    local = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme == "https" or (parts.scheme == "http" and (local or allow_http)):
        return
    raise ConfigurationError(
        f"{parts.scheme}://{parts.netloc} is not HTTPS: a token sent there can be read on its way. Use https://, or say "
        "allow_http=True where something else keeps the way closed."
    )


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
