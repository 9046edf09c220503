"""The audit log: a line for each decision, before the deed where it changes something, and nothing in it that is secret."""

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from feature_assets.errors import ConfigurationError
from tests.server.conftest import Platform, basic, bearer, client_of, fill, served

PATH = "/get-online-features"
QUESTION = {"features": ["weather:wind", "weather:temp"], "entities": {"origin": ["JFK", "planted-key"]}}
REQUIRED = {
    "time", "event", "request_id", "iss", "sub", "client_id", "method", "path", "action", "views", "features", "masked",
    "keys", "decision", "rule", "registry", "status", "ms",
}  # fmt: skip


@pytest.fixture
def audited(tmp_path) -> Platform:
    made = Platform(tmp_path, audit="logs/audit.jsonl")
    fill(made)
    return made


def lines(platform: Platform) -> list[dict[str, Any]]:
    """What was written until the server ended."""
    found = [json.loads(line) for line in log_of(platform).read_text().splitlines()]
    assert all(one.keys() == REQUIRED for one in found)
    return found


def log_of(platform: Platform) -> Path:
    return platform.settings.root / "logs" / "audit.jsonl"


async def test_each_decision_has_a_line(audited):
    client_id, secret = audited.issuer.add_client("scorer", ["features:read:weather"])
    async with client_of(audited.app()) as http:
        grant = {"grant_type": "client_credentials"}
        token = (await http.post("/oauth/token", data=grant, headers=basic(client_id, secret))).json()["access_token"]
        assert (await http.post("/oauth/token", data=grant, headers=basic(client_id, "wrong"))).status_code == 401
        answer = await http.post(PATH, json=QUESTION, headers=bearer(token))
        assert answer.status_code == 200
        secret_view = {"features": ["secret_plans:plan"], "entities": {"origin": ["JFK"]}}
        assert (await http.post(PATH, json=secret_view, headers=bearer(token))).status_code == 404
        assert (await http.get("/v1/registry/history", headers=bearer(token))).status_code == 403
        assert (await http.post(PATH, json=QUESTION, headers=bearer("planted.token.x"))).status_code == 401
        assert (await http.post(PATH, json=QUESTION)).status_code == 401
        personal = {"features": ["driver_stats:email"], "entities": {"driver_id": [1]}}
        reader = bearer(audited.token("features:read"))
        assert (await http.post(PATH, json=personal, headers=reader)).status_code == 200
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/nowhere")).status_code == 404
    issued, wrong, read, hidden, history, invalid, nobody, masked = lines(audited)
    assert (issued["action"], issued["decision"], issued["client_id"]) == ("token", "allowed", client_id)
    assert (wrong["decision"], wrong["rule"]) == ("refused", "invalid_client")
    assert {name: read[name] for name in ("iss", "sub", "client_id", "action", "views", "features", "keys")} == {
        "iss": audited.issuer.identifier,
        "sub": client_id,
        "client_id": client_id,
        "action": "features:read",
        "views": ["weather"],
        "features": 2,
        "keys": 2,
    }
    assert (read["decision"], read["rule"]) == ("allowed", "scope features:read:weather")
    assert read["request_id"] == answer.headers["x-request-id"]
    assert read["registry"] == answer.headers["x-feature-registry"]
    assert (hidden["decision"], hidden["rule"], hidden["views"]) == (
        "refused",
        "no scope features:read",
        ["secret_plans"],
    )
    assert (history["action"], history["decision"], history["status"]) == ("registry:read", "refused", 403)
    assert (invalid["decision"], invalid["rule"], invalid["sub"]) == ("refused", "unauthenticated", None)
    assert (nobody["decision"], nobody["status"]) == ("refused", 401)
    assert (masked["decision"], masked["masked"]) == ("allowed", 1)
    text = log_of(audited).read_text()
    assert not any(planted in text for planted in ("planted", secret, token, "a@b.example", "JFK"))
    assert stat.S_IMODE(log_of(audited).stat().st_mode) == 0o600
    audited.store.close()


async def test_what_is_answered_at_once_has_a_line_too(audited):
    headers = [(b"authorization", f"Bearer {audited.token()}".encode())]
    body = json.dumps(QUESTION).encode()
    app = audited.app()
    async with client_of(app) as http:
        await http.post(PATH, content=body, headers=headers)
        assert app.gate.at_once[b"POST", PATH.encode()](headers, body, []) is not None
    first, second = lines(audited)
    assert {**first, "time": 0, "ms": 0, "request_id": 0} == {**second, "time": 0, "ms": 0, "request_id": 0}
    audited.store.close()


async def test_who_asks_too_often_has_lines(tmp_path):
    platform = Platform(tmp_path, audit="logs/audit.jsonl", requests_per_second=0.01, burst=1)
    fill(platform)
    async with client_of(platform.app()) as http:
        for _ in range(2):
            await http.post(PATH, json=QUESTION, headers=bearer(platform.token()))
    allowed, refused = lines(platform)
    assert allowed["decision"] == "allowed"
    assert (refused["decision"], refused["rule"], refused["sub"]) == ("refused", "too-many-requests", "tester")
    platform.store.close()


async def test_no_name_does_more_than_be_shown(audited):
    """A terminal that shows the log is told nothing by it, and each line stays one line."""
    odd = "\x1b[2J\n\x07\x9b31m\u2028\u202e\x7f\r"
    async with client_of(audited.app()) as http:
        asked = {"features": [f"{odd}:x"], "entities": {"origin": ["JFK"]}}
        assert (await http.post(PATH, json=asked, headers=bearer(audited.token()))).status_code in (404, 422)
        service = {"feature_service": odd, "entities": {"origin": ["JFK"]}}
        assert (await http.post(PATH, json=service, headers=bearer(audited.token()))).status_code == 404
        asked = {"features": ["weather:wind"], "entities": {"origin": ["JFK"]}}
        # A path of its own: below it lie those of the registry.
        await http.get("/api/v1/feature_views/%1b%5b2J%0a%c2%9b", headers=bearer(audited.token("registry:read")))
    text = log_of(audited).read_bytes()
    assert all(byte == 10 or 32 <= byte < 127 for byte in text)
    assert len(lines(audited)) >= 3
    audited.store.close()


async def test_what_changes_something_is_written_before_it_is_done(audited):
    token = bearer(audited.token("registry:write", "registry:read"))
    async with client_of(audited.app()) as http:
        answer = await http.post("/v1/registry/rollback", json={}, headers=token)
        assert answer.status_code == 428
        (line,) = lines(audited)
        assert (line["action"], line["decision"], line["status"]) == ("registry:write", "allowed", 0)
    assert len(lines(audited)) == 1
    audited.store.close()


async def test_without_the_log_nothing_is_changed_and_reads_are_counted(tmp_path):
    """/dev/full takes nothing, as a full disk does."""
    platform = Platform(tmp_path, audit="/dev/full")
    fill(platform)
    platform.objects.pop()
    second = platform.publish()
    app = platform.app()
    async with client_of(app) as http:
        token = bearer(platform.token("registry:write", "features:read"))
        asked = await http.post("/v1/registry/rollback", json={}, headers={**token, "if-match": "*"})
        assert (asked.status_code, asked.json()["type"]) == (503, "urn:feature-assets:problem:audit-unavailable")
        for _ in range(3):
            assert (await http.post(PATH, json=QUESTION, headers=token)).status_code == 200
    assert platform.registry.read().digest == second
    assert app.gate.watchers[1].lost == 4
    platform.store.close()


async def test_a_log_that_was_moved_away_is_begun_anew(audited):
    token = bearer(audited.token())
    app = audited.app()
    async with client_of(app) as http:
        await http.post(PATH, json=QUESTION, headers=token)
        app.gate.watchers[1].close()
        moved = log_of(audited).rename(audited.settings.root / "logs" / "audit.1")
        await http.post(PATH, json=QUESTION, headers=token)
    assert len(moved.read_text().splitlines()) == 1
    assert len(lines(audited)) == 1
    audited.store.close()


def test_a_log_that_cannot_be_written_is_found_at_the_start(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(ConfigurationError, match=r"audit.jsonl cannot be written to"):
        Platform(tmp_path, audit="logs/audit.jsonl").app()
    (tmp_path / "shared.jsonl").touch()
    (tmp_path / "shared.jsonl").chmod(0o666)
    with pytest.raises(ConfigurationError, match=r"chmod 600 .*shared.jsonl"):
        Platform(tmp_path, audit="shared.jsonl").app()


def test_half_a_line_harms_no_other_one(tmp_path):
    """A disk that is full in the middle of a line, and then is not."""
    program = f"""
import resource, signal
from feature_assets.server import journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = journal.AppendedFile({str(tmp_path / "log")!r})
file.write(b'{{"n":1}}\\n')
resource.setrlimit(resource.RLIMIT_FSIZE, (12, resource.RLIM_INFINITY))
for _ in range(2):
    try:
        file.write(b'{{"n":2}}\\n')
    except OSError:
        pass
    else:
        raise SystemExit('it was written')
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
file.write(b'{{"n":3}}\\n')
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert (tmp_path / "log").read_bytes() == b'{"n":1}\n{"n"\n{"n":3}\n'


def test_several_processes_write_whole_lines_until_their_end(tmp_path):
    platform = Platform(tmp_path, audit="logs/audit.jsonl", log="json")
    fill(platform)
    log = Path(tmp_path / "server.log")
    token = platform.token()
    with served(platform, log, workers=2) as (host, port):
        for _ in range(6):
            with httpx.Client(base_url=f"http://{host}:{port}") as http:
                for _ in range(25):
                    assert http.post(PATH, json=QUESTION, headers=bearer(token)).status_code == 200
    # Ended right after the last answer: what waited has been written.
    assert len(lines(platform)) == 150
    assert len({line["request_id"] for line in lines(platform)}) == 150
    requests = [json.loads(line) for line in log.read_text().splitlines()]
    assert {one["event"] for one in requests} == {"log", "request"}
    assert sum(one["event"] == "request" and one["path"] == PATH for one in requests) == 150
    assert token not in log.read_text()
    platform.store.close()
