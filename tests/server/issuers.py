"""A foreign issuer: a real HTTP server with discovery and keys, and every kind of token that it never should have made."""

import base64
import hmac
import json
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, quote_plus

from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc import jws
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

AUDIENCE = "features"


def weak_key() -> Key:
    """An RSA key of 1024 bits, which joserfc would rather not make."""
    with warnings.catch_warnings(action="ignore"):
        return RSAKey.import_key(rsa.generate_private_key(65_537, 1024))  # noqa: S505 (that is the point)


def b64(data: bytes | str) -> str:
    return base64.urlsafe_b64encode(data if isinstance(data, bytes) else data.encode()).rstrip(b"=").decode()


INTROSPECTOR = ("feature server", "s%cr+t:ü")
"""Who may introspect, with letters that have to be escaped."""


@cache
def _made_keys() -> Mapping[str, Key]:
    """Made once: each RSA key takes a good part of a second."""
    return {
        "rsa": RSAKey.generate_key(2048),
        "ec": ECKey.generate_key("P-256"),
        "ed": OKPKey.generate_key("Ed25519"),
        "p384": ECKey.generate_key("P-384"),
        "weak": weak_key(),
        "oct": OctKey.generate_key(256),
        "enc": RSAKey.generate_key(2048),
        "ops": ECKey.generate_key("P-256"),
        "only256": RSAKey.generate_key(2048),
    }


class ForeignIssuer:
    """`requests` are the paths that were asked for, `opaque` what it says of tokens that only it can read."""

    def __init__(self) -> None:
        self.keys = dict(_made_keys())
        self.extra = {
            "enc": {"use": "enc"},
            "ops": {"key_ops": ["sign"]},
            "only256": {"alg": "RS256", "use": "sig"},
        }
        self.requests: list[str] = []
        self.opaque: dict[str, Any] = {}
        self.down = False
        self.lasting = 0.0
        self.metadata: dict[str, Any] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/realm"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def jwks(self) -> dict[str, Any]:
        public = {
            name: key.as_dict(private=isinstance(key, OctKey)) | {"kid": name} | self.extra.get(name, {})
            for name, key in self.keys.items()
        }
        return {
            "keys": [*public.values(), {"kty": "AKP", "kid": "new"}, {"kty": "EC", "kid": "broken", "crv": "P-256"}]
        }

    def _handler(issuer) -> type[BaseHTTPRequestHandler]:  # noqa: N805 (the handler has a self of its own)
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests.append(self.path)
                root = issuer.url.removesuffix("/realm")
                answers: Mapping[str, Any] = {
                    "/realm/.well-known/openid-configuration": {
                        "issuer": issuer.url,
                        "jwks_uri": f"{root}/keys",
                        "introspection_endpoint": f"{root}/introspect",
                        **issuer.metadata,
                    },
                    "/keys": issuer.jwks(),
                }
                found = None if issuer.down else answers.get(self.path)
                self.send_response(503 if issuer.down else 200 if found is not None else 404)
                self.end_headers()
                self.wfile.write(json.dumps(found).encode())

            def do_POST(self) -> None:
                issuer.requests.append(self.path)
                time.sleep(issuer.lasting)
                form = dict(parse_qsl(self.rfile.read(int(self.headers["content-length"])).decode()))
                login = ":".join(map(quote_plus, INTROSPECTOR))
                allowed = self.headers["authorization"] == f"Basic {base64.b64encode(login.encode()).decode()}"
                allowed = allowed or (form.get("client_id"), form.get("client_secret")) == INTROSPECTOR
                self.send_response(503 if issuer.down else 200 if allowed else 401)
                self.end_headers()
                self.wfile.write(json.dumps(issuer.opaque.get(form["token"], {"active": False})).encode())

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def opaque_token(self, **more: Any) -> str:
        """A token that only this issuer can read; `more` is what it says of it, None leaves something out."""
        token = f"opaque_{len(self.opaque)}"
        said = {"active": True, "token_type": "Bearer", **self.claims(jti=None, sub=None), **more}
        self.opaque[token] = {name: value for name, value in said.items() if value is not None}
        return token

    def claims(self, **more: Any) -> dict[str, Any]:
        """What a good token says; None leaves a claim out."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "user-1",
            "client_id": "scorer",
            "jti": "1",
            "iat": now,
            "exp": now + 600,
            "scope": "features:read",
        }
        return {name: value for name, value in (claims | more).items() if value is not None}

    def token(
        self,
        claims: Mapping[str, Any] | bytes | None = None,
        *,
        key: str | Key | bytes = "ec",
        alg: str = "ES256",
        header: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> str:
        """A token; `more` are claims, and what is None in `header` is left out."""
        signer = self.keys[key] if isinstance(key, str) else key
        head = {"alg": alg, "typ": "at+jwt", "kid": key if isinstance(key, str) else "ec"} | dict(header or {})
        payload = claims if isinstance(claims, bytes) else json.dumps(claims or self.claims(**more)).encode()
        return signed(
            json.dumps({name: value for name, value in head.items() if value is not None}), payload, signer, alg
        )


def signed(head: str, payload: bytes, key: Key | bytes, alg: str) -> str:
    """A compact JWS of just these bytes, whatever they are; bytes as a key sign with HS256."""
    body = f"{b64(head)}.{b64(payload)}"
    if isinstance(key, bytes):
        signature = hmac.digest(key, body.encode(), "sha256")
    else:
        signature = jws.JWSRegistry.algorithms[alg].sign(body.encode(), key)
    return f"{body}.{b64(signature)}"


Made = Callable[[ForeignIssuer], str | bytes]


def _nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


def _tampered(issuer: ForeignIssuer) -> str:
    head, _, signature = issuer.token().split(".")
    return ".".join([head, b64(json.dumps(issuer.claims(sub="admin"))), signature])


def _embedded_key(issuer: ForeignIssuer) -> str:
    mine = ECKey.generate_key("P-256")
    return issuer.token(key=mine, header={"jwk": mine.as_dict(private=False)})


def _with_pem(issuer: ForeignIssuer) -> str:
    return issuer.token(key=issuer.keys["rsa"].as_pem(private=False), alg="HS256", header={"kid": "rsa"})


def _with_jwk(issuer: ForeignIssuer) -> str:
    secret = json.dumps(issuer.keys["rsa"].as_dict(private=False)).encode()
    return issuer.token(key=secret, alg="HS256", header={"kid": "rsa"})


def _other_bits(issuer: ForeignIssuer) -> str:
    """The last letter of 64 bytes in base64 holds four bits that say nothing."""
    token = issuer.token()
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + letters[letters.index(token[-1]) ^ 1]


def _unsigned(alg: str) -> Made:
    head = json.dumps({"alg": alg, "typ": "at+jwt", "kid": "ec"})
    return lambda issuer: f"{b64(head)}.{b64(json.dumps(issuer.claims()))}."


def _raw(change: Callable[[str, str], str]) -> Made:
    """A token whose claims are changed as text, and then signed."""
    return lambda issuer: issuer.token(change(json.dumps(issuer.claims()), issuer.url).encode())


_HOUR = 3600
_DAY = 24 * _HOUR


def _now(seconds: float) -> int:
    return int(time.time() + seconds)


GOOD: dict[str, Made] = {
    "RS256": lambda i: i.token(key="rsa", alg="RS256"),
    "PS256": lambda i: i.token(key="rsa", alg="PS256"),
    "ES256": lambda i: i.token(),
    "EdDSA": lambda i: i.token(key="ed", alg="EdDSA"),
    "long type": lambda i: i.token(header={"typ": "application/at+jwt"}),
    "type in capitals": lambda i: i.token(header={"typ": "AT+JWT"}),
    "several audiences": lambda i: i.token(aud=["other", AUDIENCE]),
    "issued 20 s ahead": lambda i: i.token(iat=_now(20)),
    "expired 20 s ago": lambda i: i.token(iat=_now(-600), exp=_now(-20)),
    "valid in 20 s": lambda i: i.token(nbf=_now(20)),
    "fractions of seconds": lambda i: i.token(iat=time.time(), exp=time.time() + 60.5),
    "a whole day": lambda i: i.token(iat=_now(0), exp=_now(_DAY)),
    "other claims": lambda i: i.token(roles=["a"], deep={"x": [1, {"y": None}]}, email="ä@b"),
    "thumbprint of a certificate": lambda i: i.token(header={"x5t": "abc", "x5t#S256": "def"}),
    "a key for this algorithm alone": lambda i: i.token(key="only256", alg="RS256"),
    "other scopes beside": lambda i: i.token(scope="openid profile features:read features:unknown"),
}

OPAQUE_GOOD: dict[str, dict[str, Any]] = {
    "as it is": {},
    "with a subject": {"sub": "user-1"},
    "several audiences": {"aud": ["other", AUDIENCE]},
    "no issuer": {"iss": None},
    "no end": {"exp": None},
    "type in lower case": {"token_type": "bearer"},
    "its use": {"token_use": "access_token"},
}

OPAQUE_BAD: dict[str, dict[str, Any]] = {
    "not active": {"active": False},
    "active as text": {"active": "true"},
    "active as a number": {"active": 1},
    "active left out": {"active": None},
    "no audience": {"aud": None},
    "another audience": {"aud": "other"},
    "another issuer": {"iss": "http://127.0.0.1:1/realm"},
    "another type": {"token_type": "DPoP"},
    "no type": {"token_type": None},
    "a refresh token": {"token_use": "refresh_token"},
    "bound to a key": {"cnf": {"jkt": "abc"}},
    "expired": {"exp": 1_000},
    "exp as text": {"exp": "never"},
    "not valid yet": {"nbf": 2**40},
    "no client": {"client_id": None},
    "a client of two lines": {"client_id": "a\nb"},
    "scopes as a list": {"scope": ["features:read"]},
}

BAD: dict[str, Made] = {
    "no type": lambda i: i.token(header={"typ": None}),
    "empty type": lambda i: i.token(header={"typ": ""}),
    "type JWT": lambda i: i.token(header={"typ": "JWT"}),
    "type of another kind": lambda i: i.token(header={"typ": ["at+jwt"]}),
    "an ID token": lambda i: i.token(header={"typ": "JWT"}, nonce="n", client_id=None),
    "type id_token": lambda i: i.token(header={"typ": "id_token"}),
    "type with a NUL": lambda i: i.token(header={"typ": "at+jwt\0"}),
    "a logout token": lambda i: i.token(header={"typ": "logout+jwt"}),
    "alg none": _unsigned("none"),
    "alg nOnE": _unsigned("nOnE"),
    "alg none with a signature": lambda i: signed(
        json.dumps({"alg": "none", "typ": "at+jwt", "kid": "ec"}),
        json.dumps(i.claims()).encode(),
        i.keys["ec"],
        "ES256",
    ),
    "no alg": lambda i: i.token(header={"alg": None}),
    "alg of another kind": lambda i: i.token(header={"alg": ["ES256"]}),
    "alg in lower case": lambda i: i.token(header={"alg": "es256"}),
    "HS256 with the public key as PEM": _with_pem,
    "HS256 with the public key as JWK": _with_jwk,
    "HS256 with a published key": lambda i: i.token(key="oct", alg="HS256"),
    "HS512 with a published key": lambda i: i.token(key="oct", alg="HS512"),
    "RS384": lambda i: i.token(key="rsa", alg="RS384"),
    "RS512": lambda i: i.token(key="rsa", alg="RS512"),
    "PS512": lambda i: i.token(key="rsa", alg="PS512"),
    "ES384": lambda i: i.token(key="p384", alg="ES384"),
    "RS256 with the id of an EC key": lambda i: i.token(key=i.keys["rsa"], alg="RS256", header={"kid": "ec"}),
    "PS256 with a key for RS256": lambda i: i.token(key="only256", alg="PS256"),
    "a foreign key with a known id": lambda i: i.token(key=ECKey.generate_key("P-256")),
    "an unknown key id": lambda i: i.token(header={"kid": "nobody"}),
    "no key id": lambda i: i.token(header={"kid": None}),
    "an empty key id": lambda i: i.token(header={"kid": ""}),
    "a key id of another kind": lambda i: i.token(header={"kid": 5}),
    "a key id with a NUL": lambda i: i.token(header={"kid": "ec\0"}),
    "a key id that is a path": lambda i: i.token(header={"kid": "../../etc/passwd"}),
    "its own key": _embedded_key,
    "jku": lambda i: i.token(header={"jku": "http://127.0.0.1:1/keys"}),
    "x5u": lambda i: i.token(header={"x5u": "http://127.0.0.1:1/keys"}),
    "x5c": lambda i: i.token(header={"x5c": ["MIIB"]}),
    "crit": lambda i: i.token(header={"crit": ["exp"], "exp": 1}),
    "b64": lambda i: i.token(header={"b64": False, "crit": ["b64"]}),
    "zip": lambda i: i.token(header={"zip": "DEF"}),
    "a key for encryption": lambda i: i.token(key="enc", alg="RS256"),
    "a key that may not verify": lambda i: i.token(key="ops"),
    "a weak RSA key": lambda i: i.token(key="weak", alg="RS256"),
    "no audience": lambda i: i.token(aud=None),
    "another audience": lambda i: i.token(aud="other"),
    "part of the audience": lambda i: i.token(aud=AUDIENCE[:-1]),
    "more than the audience": lambda i: i.token(aud=f"{AUDIENCE}-admin"),
    "audience in capitals": lambda i: i.token(aud=AUDIENCE.upper()),
    "an empty list of audiences": lambda i: i.token(aud=[]),
    "audiences of other kinds": lambda i: i.token(aud=[AUDIENCE, 5]),
    "an audience that is an object": lambda i: i.token(aud={AUDIENCE: 1}),
    "no issuer": lambda i: i.token(iss=None),
    "another issuer": lambda i: i.token(iss="http://127.0.0.1:1/realm"),
    "the issuer with a slash": lambda i: i.token(iss=f"{i.url}/"),
    "a list of issuers": lambda i: i.token(iss=[i.url]),
    "no exp": lambda i: i.token(exp=None),
    "expired": lambda i: i.token(iat=_now(-600), exp=_now(-40)),
    "exp as text": lambda i: i.token(exp=str(_now(600))),
    "exp true": lambda i: i.token(exp=True),
    "exp NaN": _raw(lambda text, _: text.replace('"exp": ', '"exp": NaN, "x": ')),
    "exp Infinity": _raw(lambda text, _: text.replace('"exp": ', '"exp": Infinity, "x": ')),
    "exp 1e308": lambda i: i.token(exp=1e308),
    "exp 1e999": _raw(lambda text, _: text.replace('"exp": ', '"exp": 1e999, "x": ')),
    "exp negative": lambda i: i.token(exp=-1),
    "exp of 5000 digits": _raw(lambda text, _: text.replace('"exp": ', f'"exp": {"9" * 5000}, "x": ')),
    "exp an object": lambda i: i.token(exp={"at": 1}),
    "no iat": lambda i: i.token(iat=None),
    "issued in two minutes": lambda i: i.token(iat=_now(120)),
    "iat as text": lambda i: i.token(iat=str(_now(0))),
    "valid in two minutes": lambda i: i.token(nbf=_now(120)),
    "nbf as text": lambda i: i.token(nbf="now"),
    "nbf an empty list": lambda i: i.token(nbf=[]),
    "longer than a day": lambda i: i.token(iat=_now(0), exp=_now(_DAY + 60)),
    "older than a day": lambda i: i.token(iat=_now(-2 * _DAY), exp=_now(600)),
    "expires before it is issued": lambda i: i.token(iat=_now(20), exp=_now(0)),
    "no subject": lambda i: i.token(sub=None),
    "an empty subject": lambda i: i.token(sub=""),
    "a subject of another kind": lambda i: i.token(sub=["a"]),
    "a subject with a NUL": lambda i: i.token(sub="admin\0"),
    "a subject that clears the screen": lambda i: i.token(sub="\x1b[2J"),
    "a client that turns letters round": lambda i: i.token(client_id="\u202eresu"),
    "a subject of two lines": lambda i: i.token(sub="a\nstatus=200"),
    "half a surrogate pair": _raw(lambda text, _: text.replace("user-1", "\\ud800")),
    "a subject of 10,000 letters": lambda i: i.token(sub="a" * 10_000),
    "bound to a key": lambda i: i.token(cnf={"jkt": "abc"}),
    "no client": lambda i: i.token(client_id=None),
    "no jti": lambda i: i.token(jti=None),
    "scopes as a list": lambda i: i.token(scope=["features:read"]),
    "scopes as a number": lambda i: i.token(scope=5),
    "scopes as an object": lambda i: i.token(scope={"features:read": True}),
    "roles as a number": lambda i: i.token(roles=5),
    "roles as an object": lambda i: i.token(roles={"risk": True}),
    "a role that is none": lambda i: i.token(roles=["risk", ""]),
    "a line break in a role": lambda i: i.token(roles=["risk\nadmin"]),
    "a role of 600 letters": lambda i: i.token(roles=["a" * 600]),
    "2,000 roles": lambda i: i.token(roles=["r"] * 2_000),
    "groups in groups": lambda i: i.token(groups=[["a"]]),
    "a claim twice": _raw(lambda text, url: text[:-1] + f', "iss": "{url}"}}'),
    "a header twice": lambda i: signed(
        '{"alg":"ES256","alg":"ES256","typ":"at+jwt","kid":"ec"}',
        json.dumps(i.claims()).encode(),
        i.keys["ec"],
        "ES256",
    ),
    "claims in a list": lambda i: i.token(b"[]"),
    "claims that are text": lambda i: i.token(b'"features:read"'),
    "claims that are no JSON": lambda i: i.token(b"{iss: 1}"),
    "claims in UTF-16": lambda i: i.token(json.dumps(i.claims()).encode("utf-16")),
    "claims after a BOM": lambda i: i.token(b"\xef\xbb\xbf" + json.dumps(i.claims()).encode()),
    "claims 2,000 deep": lambda i: i.token(_nested(2_000)),
    "claims 5,000 deep": lambda i: i.token(_nested(5_000)),
    "claims 5,000 lists deep": lambda i: i.token(b"[" * 5_000 + b"]" * 5_000),
    "no claims": lambda i: i.token(b"{}"),
    "a header that is a list": lambda i: signed("[]", json.dumps(i.claims()).encode(), i.keys["ec"], "ES256"),
    "a header 300 deep": lambda i: signed(
        _nested(300).decode(), json.dumps(i.claims()).encode(), i.keys["ec"], "ES256"
    ),
    "a header of 4 kB": lambda i: i.token(header={"x": "a" * 4_000}),
    "claims of 20 kB": lambda i: i.token(x="a" * 20_000),
    "no signature": lambda i: i.token().rpartition(".")[0] + ".",
    "half a signature": lambda i: i.token()[:-40],
    "other claims than were signed": _tampered,
    "a signature of zeros": lambda i: i.token().rpartition(".")[0] + "." + b64(bytes(64)),
    "a signature with a letter more": lambda i: i.token() + "A",
    "padded": lambda i: i.token() + "==",
    "claims with a letter more": lambda i: "A.".join(i.token().rsplit(".", 1)),
    "a header with a letter more": lambda i: i.token().replace(".", "A.", 1),
    "base64 with + and /": lambda i: i.token().replace("-", "+").replace("_", "/") + "+/",
    "the same bits written otherwise": _other_bits,
    "a space within": lambda i: i.token().replace(".", ". ", 1),
    "two parts": lambda i: i.token().rpartition(".")[0],
    "four parts": lambda i: i.token() + ".e30",
    "five parts": lambda i: i.token() + ".e30.e30",
    "not base64": lambda i: "not.a.token",
    "dots": lambda i: "...",
    "letters of other scripts": lambda i: "ключ.é.ü".encode(),
    "JSON": lambda i: json.dumps({"payload": "e30", "signatures": []}),
    "1 MB": lambda i: "A" * 1_000_000,
}
