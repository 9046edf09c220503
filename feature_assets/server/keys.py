"""The public keys of an issuer: fetched, sifted, kept for a while, and fetched again when one is missing.

A key that cannot check one of the allowed algorithms is as if it were not there: symmetric ones above all, since whoever
may check with such a key may sign with it too.
"""

import asyncio
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
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
        fetch: Callable[[], Awaitable[object]],
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
                keys = usable_keys(await self._fetch())
            except (OSError, ValueError) as error:
                log.warning("keys of the issuer cannot be fetched error=%s: %s", type(error).__name__, error)
                return
            if {name: key.as_dict() for name, key in keys.items()} != {
                name: key.as_dict() for name, key in self._keys.items()
            }:
                # Whoever remembers a token that a removed key had signed has to forget it.
                self._keys, self.version = keys, self.version + 1
                log.info("keys of the issuer fetched keys=%d", len({kid for kid, _ in keys}))
            self._fetched = self._clock()

    @property
    def good_for(self) -> float:
        """For how many seconds what was fetched last may be used, if nothing is fetched any more."""
        return max(0.0, self._stale - self._age(self._fetched))

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
    if not is_protected(issuer):
        raise ConfigurationError(
            f"server.issuer '{issuer}' is plain http: whoever is on the way could hand out keys. Write https://…"
        )
    return issuer


def is_protected(url: str) -> bool:
    """Whether nobody on the way can change what is said there: https, or this machine."""
    parts = urlsplit(url)
    return bool(parts.hostname) and (
        parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))
    )
