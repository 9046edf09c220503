"""A certified OpenID provider (npm's oidc-provider) in a process of its own, where node is installed."""

import json
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from filelock import FileLock
from joserfc.jwk import RSAKey

VERSION = "9.13.3"
AUDIENCE = "features"
SCOPES = "features:read features:push registry:read"
CLIENTS = {
    "reader": ("reader's secret", "features:read"),
    "writer": ("writer's secret", SCOPES),
    "server": ("planted s%cr+t:", "registry:read"),
}
"""Each with its secret, and the scopes that it may ask for."""

_SECONDS_TO_INSTALL = 180


def installed(folder: Path) -> Path:
    """The program, in a folder with what it needs; installed there once by npm. Skips the test where that cannot be."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("oidc-provider needs node and npm")
    folder = folder / VERSION
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / "node_modules" / "oidc-provider").is_dir():
            command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", f"oidc-provider@{VERSION}"]
            try:
                subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=_SECONDS_TO_INSTALL)
            except (subprocess.SubprocessError, OSError) as error:
                shutil.rmtree(folder / "node_modules", ignore_errors=True)
                pytest.skip(f"oidc-provider cannot be installed: {type(error).__name__}")
        shutil.copy(Path(__file__).with_name("provider.mjs"), folder)
    return folder / "provider.mjs"


class OidcProvider:
    """The issuer at `url`. `keys` are names; the first one signs. It may be stopped, and started with others."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self._keys: dict[str, RSAKey] = {}
        self._process: subprocess.Popen[str] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, keys: Sequence[str] = ("first",)) -> None:
        self.stop()
        given = {
            "issuer": self.url,
            "port": self.port,
            "audience": AUDIENCE,
            "scopes": SCOPES,
            "clients": [(client, *rest) for client, rest in CLIENTS.items()],
            "jwks": {"keys": [self._private(name) for name in keys]},
        }
        command = ["node", str(self._program), json.dumps(given)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "oidc-provider did not start"

    def stop(self) -> None:
        if self._process is not None:
            assert self._process.stdout is not None
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._process = None

    def _private(self, name: str) -> dict[str, Any]:
        if name not in self._keys:
            self._keys[name] = RSAKey.generate_key(2048)
        return {**self._keys[name].as_dict(private=True), "kid": name, "alg": "RS256", "use": "sig"}

    def asked(self, client: str, scope: str, resource: str = "urn:features") -> httpx.Response:
        """The answer to a client that asks for a token."""
        form = {"grant_type": "client_credentials", "scope": scope, "resource": resource}
        return httpx.post(f"{self.url}/token", data=form, auth=(client, CLIENTS[client][0]))

    def token(self, client: str, scope: str, resource: str = "urn:features") -> str:
        answer = self.asked(client, scope, resource)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def revoke(self, client: str, token: str) -> None:
        auth = (client, CLIENTS[client][0])
        assert httpx.post(f"{self.url}/token/revocation", data={"token": token}, auth=auth).status_code == 200
