"""A5: what `feature-assets init` makes is closed, and nothing that is secret is written where others look."""

import contextlib
import json
import os
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from feature_assets.server.oauth import TOKEN_PATH
from tests.acceptance.running import Running, command_line, free_port, started
from tests.server.conftest import basic, bearer
from tests.server.issuers import AUDIENCE, ForeignIssuer

pytestmark = [
    pytest.mark.quick,
    pytest.mark.xdist_group("fresh install"),
    pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the system does not tell where a process listens"),
]

PHONE = "+49-30-planted-phone"
PLANTED = {
    "FEATURE_ASSETS_STORAGE_OPTIONS": json.dumps({"aws_secret_access_key": "planted-storage"}),
    "FEATURE_ASSETS_SERVER__DAGSTER_HEADERS": json.dumps({"authorization": "planted-dagster"}),
}
ROOT = Path(__file__).parents[2]


class Project(NamedTuple):
    """A fresh project, with a personal feature added to its view; `said` is all that its commands printed."""

    folder: Path
    said: list[str]

    def run(self, *words: str, environment: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        own = {"DAGSTER_HOME": str(self.folder / ".dagster"), "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        return subprocess.run(
            command_line(*words),
            cwd=self.folder,
            env={**os.environ, **own, **PLANTED, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )

    def done(self, *words: str) -> str:
        found = self.run(*words)
        assert found.returncode == 0, found.stdout + found.stderr
        self.said.append(found.stdout + found.stderr)
        return found.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    folder = tmp_path_factory.mktemp("fresh") / "shop"
    folder.mkdir()
    made = Project(folder, [])
    made.done("init")
    definitions = folder / "definitions.py"
    text = definitions.read_text()
    for before, after in (
        (
            'Field("spent_7d", Float64, description="What they came to, in euros"),',
            'Field("spent_7d", Float64), Field("phone", String, pii="phone"),',
        ),
        ("spent_7d=pl.col", f'phone=pl.lit("{PHONE}"), spent_7d=pl.col'),
    ):
        assert text.count(before) == 1
        text = text.replace(before, after)
    definitions.write_text(text)
    made.done("apply")
    made.done("materialize", "customer_orders", "--all")
    return made


def listening_at(pid: int) -> set[tuple[str, int]]:
    """The addresses in hexadecimal, and the ports, at which a process takes connections."""
    sockets = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            sockets.add(file.readlink().as_posix())
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            address, port = local.split(":")
            if state == "0A" and f"socket:[{inode}]" in sockets:
                found.add((address, int(port, 16)))
    return found


LOOPBACK, EVERYWHERE = "0100007F", "00000000"


def test_a_fresh_server_is_reached_from_this_machine_only(project):
    with started(project.folder) as running:
        assert listening_at(running.pid) == {(LOOPBACK, running.port)}
        assert httpx.get(f"{running.url}/docs").status_code == 200
        assert httpx.post(f"{running.url}/get-online-features", json={}).status_code == 401
    keys = project.folder / ".feature_assets" / "auth"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in keys.rglob("*") if file.is_file()} == {0o600}


SERVER = "FEATURE_ASSETS_SERVER__"
REFUSED: dict[str, tuple[list[str], dict[str, str], str]] = {
    "everywhere without an issuer": (["--host", "0.0.0.0"], {}, "server.issuer and server.audience are not set"),
    "everywhere without an audience": (
        ["--host", "0.0.0.0"],
        {f"{SERVER}ISSUER": "https://login.example.com"},
        "server.audience is not set",
    ),
    "everywhere without an issuer but an audience": (
        ["--host", "::"],
        {f"{SERVER}AUDIENCE": "features"},
        "server.issuer is not set",
    ),
    "an issuer without TLS": (
        [],
        {f"{SERVER}ISSUER": "http://login.example.com", f"{SERVER}AUDIENCE": "features"},
        "https",
    ),
    "a certificate without its key": (["--tls-certificate", "server.pem"], {}, "tls_key"),
}


@pytest.mark.parametrize(("options", "environment", "words"), REFUSED.values(), ids=REFUSED)
def test_what_would_open_it_is_refused(options, environment, words, project):
    found = project.run("serve", "--port", str(free_port()), *options, environment=environment)
    assert found.returncode not in (0, None)
    assert words in " ".join(found.stderr.split())
    assert "Traceback" not in found.stderr


def test_beyond_this_machine_it_shows_no_page_and_says_what_is_missing(project):
    with ForeignIssuer() as issuer:
        environment = {f"{SERVER}ISSUER": issuer.url, f"{SERVER}AUDIENCE": AUDIENCE}
        with started(project.folder, "--host", "0.0.0.0", environment=environment) as running:
            assert listening_at(running.pid) == {(EVERYWHERE, running.port)}
            for path in ("/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"):
                assert httpx.get(f"{running.url}{path}").status_code == 404, path
            answer = httpx.get(f"{running.url}/v1/features")
            assert answer.status_code == 401
            assert not {"server", "x-powered-by", "access-control-allow-origin"} & set(answer.headers)
            said = running.log.read_text()
    assert said.count("WARNING feature_assets.server.process without TLS") == 1
    assert said.count("WARNING feature_assets.server.process nothing will tell who asked for what") == 1


def ask_in_every_way(running: Running, client: str, secret: str, admin: str) -> list[str]:
    """Questions good and bad that bring secrets with them; the tokens that were used."""
    with httpx.Client(base_url=running.url, timeout=60) as http:
        form = {"grant_type": "client_credentials"}
        granted = http.post(TOKEN_PATH, data=form, headers=basic(client, secret))
        assert granted.status_code == 200, granted.text
        token = granted.json()["access_token"]
        good = {"features": ["customer_orders:phone"], "entities": {"customer_id": ["c000"]}}
        answer = http.post("/get-online-features", json=good, headers=bearer(token))
        assert (answer.status_code, answer.json()["results"][1]["statuses"]) == (200, ["MASKED"])
        seen = http.post("/get-online-features", json=good, headers=bearer(admin))
        assert seen.json()["results"][1]["values"] == [PHONE]
        wrong = [
            http.post(TOKEN_PATH, data=form, headers=basic(client, "planted-guess")),
            http.post(TOKEN_PATH, data=form | {"client_id": client, "client_secret": "planted-guess"}),
            http.post("/get-online-features", json=good, headers=bearer(f"{token}x")),
            http.post("/get-online-features", json=good, headers={"authorization": f"Basic {token}"}),
            http.post("/get-online-features", json=good, headers={"x-token": token}, params={"access_token": token}),
            http.post("/get-online-features", json={**good, "features": [token]}, headers=bearer(token)),
            http.post("/get-online-features", json={**good, "feature_service": token}, headers=bearer(token)),
            http.post(
                "/get-online-features", json={**good, "entities": {"customer_id": [[token]]}}, headers=bearer(token)
            ),
            http.post("/get-online-features", content=f'{{"features": ["{token}', headers=bearer(token)),
            http.post("/push", json={"push_source_name": "x", "df": {"phone": [PHONE]}}, headers=bearer(admin)),
            http.post("/write-to-online-store", json={"feature_view_name": token, "df": {}}, headers=bearer(admin)),
            http.post(
                "/materialize",
                json={"start_ts": "2013-01-01T00:00:00Z", "end_ts": "2013-01-02T00:00:00Z"},
                headers=bearer(admin),
            ),
            http.get("/metrics", headers=bearer(token)),
            http.get(f"/v1/{token}", headers=bearer(token)),
        ]
        statuses = [one.status_code for one in wrong]
        assert all(400 <= status < 500 or status in (502, 503) for status in statuses), statuses
        spine = {"customer_id": ["c000"], "event_timestamp": ["2030-01-01T00:00:00Z"]}
        history = {"features": ["customer_orders:phone"], "spine": spine}
        assert http.post("/v1/historical-features", json=history, headers=bearer(admin)).status_code == 200
    return [token, admin]


def texts(folder: Path, leave_out: set[str]) -> Iterator[tuple[Path, bytes]]:
    """Every file, a database as its statements: in the file a value may be in two pieces."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file() or leave_out & set(path.relative_to(folder).parts):
            continue
        data = path.read_bytes()
        yield path, data
        if data.startswith(b"SQLite format 3\x00"):
            with contextlib.closing(sqlite3.connect(path)) as connection:
                yield path, "\n".join(connection.iterdump()).encode()


def test_no_secret_is_in_a_log_or_in_what_dagster_keeps(project):
    added = project.run("auth", "client", "add", "scoring", "--scope", "features:read", "--json")
    client = json.loads(added.stdout)
    scopes = ["features:read", "features:push", "features:history", "features:materialize", "pii:read", "admin"]
    admin = project.run("auth", "token", *(word for scope in scopes for word in ("--scope", scope))).stdout.strip()
    environment = {
        **PLANTED,
        f"{SERVER}DAGSTER_URL": f"http://127.0.0.1:{free_port()}",
        f"{SERVER}AUDIT": "logs/audit.jsonl",
    }
    for form in ("text", "json"):
        with started(project.folder, environment={**environment, f"{SERVER}LOG": form}) as running:
            tokens = ask_in_every_way(running, client["client_id"], client["client_secret"], admin)
            time.sleep(0.5)
    for words in (["auth", "client", "list"], ["auth", "key", "list"], ["doctor"], ["verify"], ["permissions", "list"]):
        project.said.append(str(project.run(*words)))
    keys = [json.loads(file.read_text()) for file in (project.folder / ".feature_assets" / "auth").rglob("*.json")]
    secrets = {
        "client secret": client["client_secret"],
        **{f"token {number}": token for number, token in enumerate(tokens)},
        **{f"signature {number}": token.rpartition(".")[2] for number, token in enumerate(tokens)},
        **{f"private key {number}": one for number, one in enumerate(private_parts(keys))},
        "planted": "planted-",
        "phone": PHONE,
    }
    assert any(name.startswith("private key") for name in secrets)
    # The tables hold what they are for; everything else tells of it.
    tables = list(texts(project.folder / ".feature_assets", {"auth"}))
    assert any(PHONE.encode() in data for path, data in tables if path.name == "online.db")
    places = list(
        texts(project.folder, {"auth", "offline", "online.db", "online.db-wal", "definitions.py", "__pycache__"})
    )
    assert {"server.log", "audit.jsonl"} <= {path.name for path, _ in places}
    assert any(".dagster" in path.parts and data.startswith(b"SQLite") for path, data in places)
    assert any(b"customer_orders" in data for path, data in places if ".dagster" in path.parts)
    found = {
        (name, path.relative_to(project.folder).as_posix())
        for name, secret in secrets.items()
        for path, data in places
        if secret.encode() in data
    }
    assert not found
    printed = "\n".join(project.said)
    assert [name for name, secret in secrets.items() if secret in printed] == []


def private_parts(found: Any) -> Iterator[str]:
    """Every `d` of a JWK, however deep it lies."""
    if isinstance(found, dict):
        if isinstance(found.get("d"), str):
            yield found["d"]
        found = list(found.values())
    if isinstance(found, list):
        for one in found:
            yield from private_parts(one)
