"""The public keys of an issuer: fetched, sifted, kept for a while, and fetched again when one is missing.

A key that cannot check one of the allowed algorithms is as if it were not there: symmetric ones above all, since whoever
may check with such a key may sign with it too.
"""

import asyncio
import ipaddress
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import urlsplit

from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key

from feature_assets.errors import ConfigurationError, StoreUnavailable

log = logging.getLogger(__name__)

# What each type of key, and where it has one, curve, may check.
ALGORITHMS: Final[Mapping[tuple[str, str | None], tuple[str, ...]]] = {
    ("RSA", None): ("RS256", "PS256"),
    ("EC", "P-256"): ("ES256",),
    ("OKP", "Ed25519"): ("EdDSA",),
}

_SMALLEST_RSA = 2048
_LARGEST_ANSWER = 1 << 20
_SECONDS_TO_ANSWER = 5.0

Keys = Mapping[tuple[str, str], Key]
"""Public keys by key id and algorithm."""


def usable_keys(jwks: object) -> Keys:
    """Those keys of a JWKS that may check access tokens. The first of two with one id counts."""
    found: dict[tuple[str, str], Key] = {}
    listed = jwks.get("keys") if isinstance(jwks, Mapping) else None
    for stored in listed if isinstance(listed, list) else ():
        for algorithm, key in _usable(stored):
            found.setdefault((str(key.kid), algorithm), key)
    return found


def _usable(stored: object) -> Iterable[tuple[str, Key]]:
    if not isinstance(stored, Mapping) or not isinstance(stored.get("kid"), str):
        return
    curve = stored.get("crv")
    allowed = ALGORITHMS.get((str(stored.get("kty")), curve if isinstance(curve, str) else None), ())
    if not allowed or stored.get("use", "sig") != "sig" or "verify" not in _operations(stored):
        return
    if stored["kty"] == "RSA" and len(str(stored.get("n"))) * 6 < _SMALLEST_RSA:
        return
    try:
        key = JWKRegistry.import_key(_public(stored))
    except (JoseError, ValueError, TypeError, ArithmeticError) as error:
        log.warning("key is left out kid=%.40r reason=%s", stored["kid"], type(error).__name__)
        return
    yield from ((name, key) for name in allowed if stored.get("alg", name) == name)


def _operations(stored: Mapping[str, Any]) -> list[object]:
    operations = stored.get("key_ops", ["verify"])
    return operations if isinstance(operations, list) else []


def _public(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {name: stored[name] for name in ("kty", "crv", "n", "e", "x", "y", "kid") if name in stored}


class KeyCache:
    """The keys of one issuer, as they were last fetched.

    A missing key makes it fetch again, but not more often than every `pause` seconds, so that made-up key ids cost the
    issuer nothing. What was fetched is used for `stale` seconds if the issuer cannot be reached.
    """

    def __init__(
        self,
        fetch: Callable[[], object],
        *,
        pause: float = 30.0,
        fresh: float = 300.0,
        stale: float = 6 * 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch, self._pause, self._fresh, self._stale, self._clock = fetch, pause, fresh, stale, clock
        self._keys: Keys = {}
        self._fetched: float | None = None
        self._tried: float | None = None
        self._fetching = asyncio.Lock()
        self.version = 0

    async def key(self, kid: str, algorithm: str) -> Key | None:
        """The key of that id for that algorithm; None if the issuer has none.

        Raises:
            StoreUnavailable: the issuer cannot be reached, and what was fetched is too old or nothing at all.
        """
        if (kid, algorithm) not in self._keys or self._age(self._fetched) > self._stale:
            await self.refresh()
        if self._age(self._fetched) > self._stale:
            raise StoreUnavailable("The issuer of tokens cannot be reached, so that no token can be checked.")
        return self._keys.get((kid, algorithm))

    async def keep_fresh(self) -> None:
        """Fetch now and then, for ever: a key that its issuer removed is to be refused soon."""
        while True:
            await self.refresh()
            await asyncio.sleep(self._fresh)

    async def refresh(self) -> None:
        """Fetch the keys again, unless that was tried just now. A failure leaves what there is."""
        async with self._fetching:
            if self._age(self._tried) < self._pause:
                return
            self._tried = self._clock()
            try:
                keys = usable_keys(await asyncio.to_thread(self._fetch))
            except (OSError, ValueError, HTTPException, ConfigurationError) as error:
                log.warning("keys of the issuer cannot be fetched error=%s: %s", type(error).__name__, error)
                return
            if {name: key.as_dict() for name, key in keys.items()} != {
                name: key.as_dict() for name, key in self._keys.items()
            }:
                # Whoever remembers a token that a removed key had signed has to forget it.
                self._keys, self.version = keys, self.version + 1
                log.info("keys of the issuer fetched keys=%d", len({kid for kid, _ in keys}))
            self._fetched = self._clock()

    def _age(self, moment: float | None) -> float:
        return float("inf") if moment is None else self._clock() - moment


def is_loopback(host: str | None) -> bool:
    """Whether the name or address can only be this machine."""
    if host is None:
        return False
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def checked_issuer(issuer: str) -> str:
    """The issuer as it was given.

    Raises:
        ConfigurationError: it is no URL, or others on the way could change what it says.
    """
    try:
        parts = urlsplit(issuer)
        host = parts.hostname
    except ValueError:
        raise ConfigurationError(f"server.issuer '{issuer}' is not a URL.") from None
    if parts.scheme not in ("https", "http") or not host or parts.query or parts.fragment or parts.username:
        raise ConfigurationError(
            f"server.issuer '{issuer}' is not an issuer. Write its URL, as in https://login.example.com/realms/features"
        )
    if not _is_protected(issuer):
        raise ConfigurationError(
            f"server.issuer '{issuer}' is plain http: whoever is on the way could hand out keys. Write https://…"
        )
    return issuer


def _is_protected(url: str) -> bool:
    parts = urlsplit(url)
    return bool(parts.hostname) and (
        parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))
    )


def fetched_keys(issuer: str) -> object:
    """The JWKS of a foreign issuer, found by OpenID discovery or by RFC 8414.

    Raises:
        OSError, ValueError: it cannot be fetched, or names another issuer or an unprotected place.
    """
    metadata = _metadata(issuer)
    if metadata.get("issuer") != issuer:
        raise ValueError(f"{issuer} says that it is another issuer; server.issuer has to be exactly what it says")
    place = metadata.get("jwks_uri")
    if not isinstance(place, str) or not _is_protected(place):
        raise ValueError(f"the jwks_uri of {issuer} is missing or not https")
    return _fetched(place)


def _metadata(issuer: str) -> Mapping[str, Any]:
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")
    root = f"{parts.scheme}://{parts.netloc}"
    places = (
        f"{root}{path}/.well-known/openid-configuration",
        f"{root}/.well-known/oauth-authorization-server{path}",
    )
    for place in places:
        try:
            found = _fetched(place)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 404 or place == places[-1]:
                raise
            continue
        if isinstance(found, Mapping):
            return found
    raise ValueError(f"{issuer} has no metadata")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could lead a request that was made inside the network anywhere in it."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


def _fetched(url: str) -> object:
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 (see `_is_protected`)
    with _opener.open(request, timeout=_SECONDS_TO_ANSWER) as answer:
        data = answer.read(_LARGEST_ANSWER + 1)
    if len(data) > _LARGEST_ANSWER:
        raise ValueError(f"{url} answers with more than {_LARGEST_ANSWER} bytes")
    found: object = json.loads(data)
    return found
