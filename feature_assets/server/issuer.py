"""The embedded issuer: keys and clients in one folder, for a laptop and for tests.

    key.json        the private key that signs, ES256; made at first start
    former.json     the public halves of keys that signed before; each goes when no token of it can be left
    clients.json    the clients, each with its scopes and a digest of its secret

All are readable by their owner alone. Any number of processes may use the folder at once; a client that is added or
removed, and a key that is replaced, counts from the next token on.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
from filelock import FileLock
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from feature_assets.access import Scope, checked_scopes
from feature_assets.errors import ConfigurationError, UnknownName

IDENTIFIER = "http://127.0.0.1:6566"
"""The `iss` of its tokens: the address of a server that nobody configured. It serves loopback only, so that one will do."""

DEFAULT_AUDIENCE = "feature-assets"

_ALGORITHM = "ES256"
_KEY = "key.json"
_FORMER = "former.json"
_CLIENTS = "clients.json"
_LOCK = ".lock"
_CREATED = "created_at"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LONGEST_LIFE = timedelta(hours=24)
# A token may have been signed by somebody who had read the key just before it was replaced, and clocks differ.
_LATEST_END = _LONGEST_LIFE + timedelta(minutes=2)
_CLAIM = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]{0,99}")
_LARGEST_CLAIMS = 8_192
_LISTS = ("roles", "groups")
_OWN_CLAIMS = frozenset({"iss", "aud", "sub", "client_id", "scope", "iat", "exp", "nbf", "jti"})


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """Who may ask for tokens, for which scopes, and what the tokens say of it besides: `roles`, `groups` and claims of
    one value. Of the secret only a salted digest is kept.
    """

    client_id: str
    name: str
    scopes: tuple[str, ...]
    claims: dict[str, Any] = {}
    created_at: datetime
    salt: str
    secret_digest: str

    def has_secret(self, secret: str) -> bool:
        """Whether this is the secret; takes as long for a wrong one as for the right one."""
        return hmac.compare_digest(_digest(self.salt, secret), self.secret_digest)


def _digest(salt: str, secret: str) -> str:
    # A slow hash protects secrets that can be guessed. These are 256 bits from the operating system: no one guesses
    # them at any speed, and with argon2 each request for a token would cost the server 50 ms that anybody may ask for.
    return hashlib.sha256(f"{salt}:{secret}".encode("utf-8", "replace")).hexdigest()


# Compared with where there is no such client, so that the time taken does not tell which clients there are.
_NOBODY = Client(
    client_id="", name="", scopes=(), created_at=datetime(1970, 1, 1, tzinfo=UTC), salt="", secret_digest="0" * 64
)


class KeyInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A key by its id. One that signs has no `until`; a former one checks tokens until then."""

    kid: str
    created_at: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class _SigningKey:
    key: ECKey
    kid: str
    created_at: datetime | None


class _FormerKey(KeyInfo, frozen=True, kw_only=True):
    """With the key itself, its public half."""

    until: datetime
    jwk: dict[str, str]


class Issuer:
    """Made by `Issuer.open`."""

    def __init__(self, folder: Path, audience: str) -> None:
        self.folder, self.audience, self.identifier = folder, audience, IDENTIFIER

    @classmethod
    def open(cls, folder: str | Path, *, audience: str = DEFAULT_AUDIENCE) -> "Issuer":
        """The issuer that lives in this folder; folder and key are made if they are not there.

        Args:
            folder: where keys and clients are kept.
            audience: the `aud` of its tokens, as the settings have it.

        Raises:
            ConfigurationError: others may read or write there, or the key is damaged.
        """
        issuer = cls(Path(folder).expanduser().absolute(), audience)
        issuer._signing()
        return issuer

    def public_keys(self) -> dict[str, Any]:
        """The JWKS by which its tokens are checked. Raises as `open` does."""
        # In this order: a key that is replaced meanwhile is then there twice, and not missing.
        signing = self._signing()
        former = [one.jwk for one in self._former() if one.kid != signing.kid]
        return {"keys": [signing.key.as_dict(private=False), *former]}

    def signing_keys(self) -> list[KeyInfo]:
        """The key that signs, and then those that only check, the latest first. Raises as `open` does."""
        signing = self._signing()
        former = sorted((one for one in self._former() if one.kid != signing.kid), key=lambda one: one.until)
        return [
            KeyInfo(kid=signing.kid, created_at=signing.created_at),
            *(KeyInfo(kid=one.kid, created_at=one.created_at, until=one.until) for one in reversed(former)),
        ]

    def rotate_key(self, *, at_once: bool = False) -> str:
        """Sign with a new key from now on; its id. Tokens of the former one go on until they end.

        Args:
            at_once: no token of any former key counts any more, as when one has become known.

        Raises:
            ConfigurationError: as `open` does.
        """
        self._signing()
        with self._locked():
            path = self.folder / _KEY
            signing = _signing_key(path, _read_private(path) or b"")
            former = [] if at_once else [one for one in self._former() if one.kid != signing.kid]
            if not at_once:
                public = {name: str(value) for name, value in signing.key.as_dict(private=False).items()}
                until = _now() + _LATEST_END
                former.append(_FormerKey(kid=signing.kid, created_at=signing.created_at, until=until, jwk=public))
            # The former key is among those that check before another one signs: no moment is without it.
            _write(self.folder / _FORMER, msgspec.json.format(msgspec.json.encode(former)))
            key = _new_key()
            _write(self.folder / _KEY, _encoded(key))
        return str(key.kid)

    def add_client(
        self, name: str, scopes: Iterable[str], claims: Mapping[str, Any] = MappingProxyType({})
    ) -> tuple[str, str]:
        """Add a client; its id, and its secret, which is not kept and cannot be shown again.

        Args:
            name: what its id begins with.
            scopes: what it may ask for.
            claims: what its tokens say besides, as {"roles": ["risk"], "tenant": "acme"}.

        Raises:
            ConfigurationError: the name, a scope or a claim is none.
        """
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"'{name}' cannot name a client. Use letters, digits, dots, dashes and underscores, 64 at most."
            )
        allowed, more = tuple(str(scope) for scope in checked_scopes(scopes)), _checked_claims(claims)
        secret, salt = secrets.token_urlsafe(32), secrets.token_hex(16)
        with self._changing() as clients:
            client = Client(
                client_id=f"{name}-{secrets.token_hex(4)}",
                name=name,
                scopes=allowed,
                claims=more,
                created_at=_now(),
                salt=salt,
                secret_digest=_digest(salt, secret),
            )
            clients[client.client_id] = client
        return client.client_id, secret

    def clients(self) -> list[Client]:
        """All clients, by id."""
        return sorted(self._read_clients().values(), key=lambda client: client.client_id)

    def remove_client(self, client_id: str) -> None:
        """Remove a client. Tokens that it has go on until they expire.

        Raises:
            UnknownName: there is none.
        """
        with self._changing() as clients:
            if clients.pop(client_id, None) is None:
                known = ", ".join(sorted(clients)) or "none"
                raise UnknownName(f"There is no client '{client_id}'. Clients: {known}.")

    def authenticated(self, client_id: str, secret: str) -> Client | None:
        """The client of that id if the secret is its own."""
        client = self._read_clients().get(client_id, _NOBODY)
        return client if client.has_secret(secret) and client is not _NOBODY else None

    def token(
        self,
        client_id: str,
        scopes: Iterable[str],
        lifetime: timedelta | float,
        claims: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """A signed access token (RFC 9068) in the name of that client, whether or not it is on the list.

        Args:
            client_id: who it is for; `sub` and `client_id` of the token.
            scopes: what it allows.
            lifetime: how long, as a timedelta or in seconds; 24 hours at most.
            claims: what it says besides, as of `add_client`.

        Raises:
            ConfigurationError: a scope or claim is none, or the lifetime is out of bounds.
        """
        life = lifetime if isinstance(lifetime, timedelta) else timedelta(seconds=lifetime)
        if not timedelta(0) < life <= _LONGEST_LIFE:
            raise ConfigurationError(f"A token lives up to {_LONGEST_LIFE}, and not {life}.")
        more = _checked_claims(claims)
        return self._signed(client_id, checked_scopes(scopes), int(life.total_seconds()) or 1, more)

    def _signed(self, client_id: str, scopes: Iterable[Scope], seconds: int, more: Mapping[str, Any]) -> str:
        now = int(time.time())
        claims = {
            **more,
            "iss": self.identifier,
            "aud": self.audience,
            "sub": client_id,
            "client_id": client_id,
            "scope": " ".join(map(str, scopes)),
            "iat": now,
            "exp": now + seconds,
            "jti": secrets.token_urlsafe(16),
        }
        key = self._signing().key
        return jwt.encode({"alg": _ALGORITHM, "typ": "at+jwt", "kid": key.kid}, claims, key, algorithms=[_ALGORITHM])

    def _signing(self) -> _SigningKey:
        """The signing key, read anew: another process may have been told to replace it."""
        path = self.folder / _KEY
        stored = _read_private(path)
        if stored is None:
            with self._locked():
                if not path.exists():
                    _write(path, _encoded(_new_key()))
            stored = _read_private(path)
        return _signing_key(path, stored or b"")

    def _former(self) -> list[_FormerKey]:
        path, now = self.folder / _FORMER, _now()
        try:
            stored = msgspec.json.decode(_read_private(path) or b"[]", type=list[_FormerKey])
        except msgspec.MsgspecError as error:
            raise ConfigurationError(
                f"{path} is damaged: {error}. Remove it; tokens that were signed with a former key end."
            ) from error
        return [one for one in stored if one.until > now]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among the processes that change the folder."""
        try:
            _make_private(self.folder)
            with FileLock(self.folder / _LOCK, mode=0o600):
                yield
        except OSError as error:
            raise ConfigurationError(f"{self.folder} cannot hold the issuer's keys: {error.strerror}.") from error

    def _read_clients(self) -> dict[str, Client]:
        path = self.folder / _CLIENTS
        try:
            return msgspec.json.decode(_read_private(path) or b"{}", type=dict[str, Client])
        except msgspec.MsgspecError as error:
            raise ConfigurationError(f"{path} is damaged: {error}. Remove it and add the clients again.") from error

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Client]]:
        with self._locked():
            clients = self._read_clients()
            yield clients
            _write(self.folder / _CLIENTS, msgspec.json.format(msgspec.json.encode(clients)))


def _checked_claims(claims: Mapping[str, Any]) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for name, value in claims.items():
        if name in _OWN_CLAIMS or not _CLAIM.fullmatch(name):
            raise ConfigurationError(
                f"'{name}' cannot be a claim of a client. Use letters, digits and _ . : / -, and none of the issuer's own: "
                f"{', '.join(sorted(_OWN_CLAIMS))}."
            )
        listed = name in _LISTS and isinstance(value, list | tuple)
        checked[name] = list(value) if listed else value
        for one in checked[name] if listed else [value]:
            if not isinstance(one, int) and not (isinstance(one, str) and one and one.isprintable()):
                raise ConfigurationError(
                    f"Claim '{name}' has {one!r}. Give printable text, a whole number, true or false."
                )
    if len(json.dumps(checked)) > _LARGEST_CLAIMS:
        raise ConfigurationError(f"The claims of one client are longer than {_LARGEST_CLAIMS} bytes. Give it fewer.")
    return checked


def _new_key() -> ECKey:
    key = ECKey.generate_key("P-256", {"use": "sig", "alg": _ALGORITHM}, private=True)
    key.ensure_kid()
    return key


def _encoded(key: ECKey) -> bytes:
    return json.dumps({**key.as_dict(private=True), _CREATED: _now().isoformat()}).encode()


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _signing_key(path: Path, data: bytes) -> _SigningKey:
    try:
        stored: dict[str, Any] = json.loads(data)
        created_at = datetime.fromisoformat(stored.pop(_CREATED)) if _CREATED in stored else None
        key = ECKey.import_key(stored)
        if not key.is_private or not key.kid or key.curve_name != "P-256":
            raise ValueError("it is no private P-256 key")
    except (JoseError, ValueError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{path} is damaged: {error}. Remove it, and a new key is made; tokens that were signed with it end."
        ) from error
    return _SigningKey(key, str(key.kid), created_at)


def _make_private(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if stat.S_IMODE(folder.stat().st_mode) & 0o022:
        raise ConfigurationError(
            f"Others may write into {folder}, where the issuer's keys are. Run: chmod 700 {folder}"
        )


def _read_private(path: Path) -> bytes | None:
    """What is in a file that holds secrets; None if it is not there."""
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigurationError(f"Others may read {path}, which holds secrets. Run: chmod 600 {path}")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error


def _write(path: Path, data: bytes) -> None:
    """Put the whole file in place at once, for its owner alone."""
    new = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        with suppress(FileNotFoundError):
            new.unlink()
