"""Access tokens: who is asking, and what their token allows (RFC 9068, RFC 6750).

Stricter than the standard where leniency has been a way in: a token is refused unless it is of the one type, signed
with one of four algorithms by a key of our own choosing, for us, from the configured issuer, and short-lived. A token
that was found good is remembered by its digest, so that checking it again costs next to nothing.
"""

import base64
import hashlib
import json
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NoReturn

from joserfc.jwk import Key
from joserfc.jws import JWSRegistry, deserialize_compact

from feature_assets.access import Claim, Grant, Principal
from feature_assets.errors import StoreUnavailable, Unauthenticated
from feature_assets.server.introspection import Introspection
from feature_assets.server.keys import ALGORITHMS, KeyCache

LEEWAY: Final = 30
"""Seconds by which the issuer's clock and ours may differ."""

LONGEST_LIFE: Final = 24 * 3600

_LARGEST_TOKEN = 16_384
_LARGEST_HEADER = 2_048
_LARGEST_CLAIM = 512
_MOST_NAMES = 1_000
_DEEPEST_CLAIM = 8
_LARGEST_NUMBER = 2**63
_LATEST_TIME = 2**53
_REMEMBERED = 10_000

_ALLOWED: Final = frozenset(name for names in ALGORITHMS.values() for name in names)
_TYPES: Final = frozenset({"at+jwt", "application/at+jwt"})
# Each of these would have us take the key from the token itself, or read the token in another way than it says.
_REFUSED_HEADERS: Final = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip", "enc"})
_OPAQUE: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_BASE64URL: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


class TokenValidator:
    """Checks the tokens of one issuer for one audience. `role_claims` and `group_claims` are the dotted paths of the
    claims that hold roles and groups, as `roles` or `resource_access.features.roles`. With `introspection` those tokens
    count too that are no JWTs.
    """

    def __init__(
        self,
        issuer: str,
        audience: str,
        keys: KeyCache,
        *,
        role_claims: Sequence[str] = ("roles",),
        group_claims: Sequence[str] = ("groups",),
        introspection: Introspection | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.issuer, self.audience = issuer, audience
        self._role_claims, self._group_claims = tuple(role_claims), tuple(group_claims)
        self._keys, self._introspection, self._clock = keys, introspection, clock
        self._remembered: OrderedDict[bytes, Principal] = OrderedDict()
        self._version = keys.version

    def remembered(self, token: bytes) -> Principal | None:
        """Who that token speaks for, if it was found good before and still is."""
        self._forget_if_keys_changed()
        digest = hashlib.sha256(token).digest()
        found = self._remembered.get(digest)
        if found is None:
            return None
        if found.ends <= self._clock():
            del self._remembered[digest]
            return None
        self._remembered.move_to_end(digest)
        return found

    async def validated(self, token: bytes) -> Principal:
        """Who that token speaks for.

        Raises:
            Unauthenticated: the token is not good; the message says why, without quoting it.
            StoreUnavailable: the issuer's keys cannot be had, or it cannot be asked about the token.
        """
        found = self.remembered(token)
        if found is None:
            try:
                found = await self._checked(token)
            except (Unauthenticated, StoreUnavailable):
                raise
            except Exception as error:
                # Whatever a token does to those who read it, it is refused.
                raise Unauthenticated("The token is malformed.") from error
            self._forget_if_keys_changed()
            self._remembered[hashlib.sha256(token).digest()] = found
            while len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        return found

    def _forget_if_keys_changed(self) -> None:
        """The one that a token was checked with may have been removed."""
        if self._version != self._keys.version:
            self._remembered.clear()
            self._version = self._keys.version

    async def _checked(self, token: bytes) -> Principal:
        if self._introspection is not None and token.count(b".") != 2:
            return await self._introspected(self._introspection, token)
        header = _header(token)
        key = await self._keys.key(header["kid"], header["alg"])
        # From here on nothing is waited for: the key is the issuer's when the token is remembered.
        if key is None:
            _refuse("The token is signed with a key that its issuer does not have.")
        claims = _verified_claims(token, key, header["alg"])
        if claims.get("iss") != self.issuer:
            _refuse("The token is from another issuer.")
        now = self._clock()
        ends = _checked_times(claims, now)
        _text(claims, "jti")
        # An issuer that cannot be reached any more may have taken the key back.
        return self._principal(claims, min(ends, now + self._keys.good_for))

    async def _introspected(self, introspection: Introspection, token: bytes) -> Principal:
        text = token.decode("ascii")
        if len(text) > _LARGEST_TOKEN or not _OPAQUE.fullmatch(text):
            _refuse("The token is malformed.")
        claims = await introspection.claims(text)
        if claims.get("iss", self.issuer) != self.issuer:
            _refuse("The token is from another issuer.")
        now = self._clock()
        ends = now + introspection.seconds
        if "exp" in claims:
            ends = min(ends, _time(claims, "exp"))
        if ends <= now:
            _refuse("The token has expired.")
        if "nbf" in claims and _time(claims, "nbf") > now + LEEWAY:
            _refuse("The token is not valid yet.")
        # Where a client asks for itself, some issuers name no subject. RFC 9068 says what it is.
        return self._principal({"sub": claims.get("client_id"), **claims}, ends)

    def _principal(self, claims: Mapping[str, Any], ends: float) -> Principal:
        if self.audience not in _audiences(claims.get("aud")):
            _refuse("The token is for another audience.")
        if "cnf" in claims:
            # Whoever holds it has to prove that (DPoP, mutual TLS). Nobody is asked to here, so a stolen one would do.
            _refuse("The token is bound to a key, which is not supported here.")
        subject, client_id = (_text(claims, name) for name in ("sub", "client_id"))
        scope = claims.get("scope", "")
        if not isinstance(scope, str):
            _refuse("The token's 'scope' is not a string.")
        roles, groups = names_in(claims, self._role_claims), names_in(claims, self._group_claims)
        return Principal(
            self.issuer, subject, client_id, Grant.of(scope), ends, roles, groups, MappingProxyType(values_in(claims))
        )


def _refuse(why: str) -> NoReturn:
    raise Unauthenticated(why)


def _header(token: bytes) -> dict[str, Any]:
    if len(token) > _LARGEST_TOKEN:
        _refuse(f"The token is longer than {_LARGEST_TOKEN} bytes.")
    segments = token.decode("ascii").split(".")
    if len(segments) != 3 or not all(segments):
        _refuse("The token is not a signed JWT.")
    if len(segments[0]) > _LARGEST_HEADER:
        _refuse("The token's header is too long.")
    # base64 decoders skip what they do not know, so that one token could be written in many ways.
    if not all(_BASE64URL.issuperset(segment) for segment in segments):
        _refuse("The token is not base64url.")
    header = _object(base64.urlsafe_b64decode(segments[0] + "=" * (-len(segments[0]) % 4)), "header")
    if not _REFUSED_HEADERS.isdisjoint(header):
        _refuse("The token's header asks for what is not supported.")
    if not isinstance(header.get("typ"), str) or header["typ"].lower() not in _TYPES:
        _refuse("The token is not an access token: its type is not at+jwt.")
    if not isinstance(header.get("alg"), str) or header["alg"] not in _ALLOWED:
        _refuse("The token is not signed with an allowed algorithm.")
    if not isinstance(header.get("kid"), str) or not header["kid"]:
        _refuse("The token does not say which key signed it.")
    return header


class _Registry(JWSRegistry):
    """Just the algorithm that the key was chosen for; joserfc warns of EdDSA, which RFC 9864 renames."""

    max_header_length = _LARGEST_HEADER

    def get_alg(self, name: str) -> Any:
        if self.allowed is None or name not in self.allowed:
            _refuse("The token is not signed with an allowed algorithm.")
        return self.algorithms[name]


_REGISTRIES: Final = {name: _Registry(algorithms=[name], strict_check_header=False) for name in _ALLOWED}


def _verified_claims(token: bytes, key: Key, algorithm: str) -> dict[str, Any]:
    found = deserialize_compact(token, key, registry=_REGISTRIES[algorithm])
    return _object(found.payload or b"", "payload")


def _object(data: bytes, part: str) -> dict[str, Any]:
    found = json.loads(data.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_no_constant)
    if not isinstance(found, dict):
        _refuse(f"The token's {part} is not an object.")
    return found


def _distinct(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers of one name that stands twice may each take another of its values."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            _refuse("The token names something twice.")
        found[name] = value
    return found


def _no_constant(_name: str) -> NoReturn:
    _refuse("The token holds a number that is none.")


def _audiences(claim: object) -> list[str]:
    audiences = [claim] if isinstance(claim, str) else claim
    if not isinstance(audiences, list) or not all(isinstance(one, str) for one in audiences):
        _refuse("The token names no audience.")
    return audiences


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    # What is printable goes into a log line as it is: no line breaks, no halves of surrogate pairs.
    if not _is_name(value):
        _refuse(f"The token lacks '{name}'.")
    return str(value)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LARGEST_CLAIM and value.isprintable()


def names_in(claims: Mapping[str, Any], paths: Iterable[str]) -> frozenset[str]:
    """The names that these claims list, each claim a list of them or a single one; none where there is no such claim."""
    found: set[str] = set()
    for path in paths:
        for listed in _at(claims, path):
            names = [listed] if isinstance(listed, str) else listed
            if not isinstance(names, list) or len(names) > _MOST_NAMES or not all(map(_is_name, names)):
                _refuse(f"The token's '{path}' is not a list of names.")
            found.update(names)
    return frozenset(found)


def _at(claims: Mapping[str, Any], path: str) -> Iterator[Any]:
    """What lies at a dotted path. A name may have dots itself, as the URLs that some issuers call their claims by."""
    if path in claims:
        yield claims[path]
    for end, letter in enumerate(path):
        within = claims.get(path[:end]) if letter == "." else None
        if isinstance(within, dict):
            yield from _at(within, path[end + 1 :])


def values_in(claims: Mapping[str, Any], before: str = "", depth: int = 1) -> dict[str, Claim]:
    """The claims that are one value, by dotted path. Where two have the same path there is no telling which is meant."""
    found: dict[str, Claim] = {}
    ambiguous: set[str] = set()
    for name, value in claims.items():
        path = before + name
        if isinstance(value, dict):
            values = values_in(value, f"{path}.", depth + 1) if depth < _DEEPEST_CLAIM else {}
        elif (isinstance(value, int) and abs(value) < _LARGEST_NUMBER) or _is_name(value):
            values = {path: value}
        else:
            continue
        ambiguous.update(values.keys() & found.keys())
        found.update(values)
    return {path: value for path, value in found.items() if path not in ambiguous}


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(f"The token lacks '{name}'.")
    if not math.isfinite(value) or not 0 <= value <= _LATEST_TIME:
        _refuse(f"The token's '{name}' is no time.")
    return value


def _checked_times(claims: Mapping[str, Any], now: float) -> float:
    """Until when the token is good."""
    issued, expires = _time(claims, "iat"), _time(claims, "exp")
    if issued > now + LEEWAY or ("nbf" in claims and _time(claims, "nbf") > now + LEEWAY):
        _refuse("The token is not valid yet.")
    if expires <= now - LEEWAY:
        _refuse("The token has expired.")
    if not 0 < expires - issued <= LONGEST_LIFE:
        _refuse(f"The token lives longer than {LONGEST_LIFE // 3600} hours.")
    return expires + LEEWAY
