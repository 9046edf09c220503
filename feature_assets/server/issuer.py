"""The embedded issuer: keys and clients in one folder, for a laptop and for tests.

    key.json        the private key that signs, ES256; made at first start
    clients.json    the clients, each with its scopes and a digest of its secret

Both are readable by their owner alone. Any number of processes may use the folder at once; a client that is added or
removed counts from the next token on.
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
_CLIENTS = "clients.json"
_LOCK = ".lock"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LONGEST_LIFE = timedelta(hours=24)
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
        issuer._key()
        return issuer

    def public_keys(self) -> dict[str, Any]:
        """The JWKS by which its tokens are checked. Raises as `open` does."""
        return {"keys": [self._key().as_dict(private=False)]}

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
                created_at=datetime.now(UTC).replace(microsecond=0),
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
        key = self._key()
        return jwt.encode({"alg": _ALGORITHM, "typ": "at+jwt", "kid": key.kid}, claims, key, algorithms=[_ALGORITHM])

    def _key(self) -> ECKey:
        """The signing key, read anew: another process may have been told to replace it."""
        path = self.folder / _KEY
        try:
            if not path.exists():
                _make_private(self.folder)
                with FileLock(self.folder / _LOCK, mode=0o600):
                    if not path.exists():
                        _write(path, json.dumps(_new_key().as_dict(private=True)).encode())
            return _read_key(path)
        except OSError as error:
            raise ConfigurationError(f"{self.folder} cannot hold the issuer's keys: {error.strerror}.") from error

    def _read_clients(self) -> dict[str, Client]:
        path = self.folder / _CLIENTS
        try:
            _refuse_if_shared(path)
            return msgspec.json.decode(path.read_bytes(), type=dict[str, Client])
        except FileNotFoundError:
            return {}
        except msgspec.MsgspecError as error:
            raise ConfigurationError(f"{path} is damaged: {error}. Remove it and add the clients again.") from error

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Client]]:
        with FileLock(self.folder / _LOCK, mode=0o600):
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


def _read_key(path: Path) -> ECKey:
    _refuse_if_shared(path)
    try:
        stored: Mapping[str, Any] = json.loads(path.read_bytes())
        key = ECKey.import_key(dict(stored))
        if not key.is_private or not key.kid or key.curve_name != "P-256":
            raise ValueError("it is no private P-256 key")
    except (JoseError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{path} is damaged: {error}. Remove it, and a new key is made; tokens that were signed with it end."
        ) from error
    return key


def _make_private(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if stat.S_IMODE(folder.stat().st_mode) & 0o022:
        raise ConfigurationError(
            f"Others may write into {folder}, where the issuer's keys are. Run: chmod 700 {folder}"
        )


def _refuse_if_shared(path: Path) -> None:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigurationError(f"Others may read {path}, which holds secrets. Run: chmod 600 {path}")


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
