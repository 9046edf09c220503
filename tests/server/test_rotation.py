"""The embedded issuer's keys are replaced: nothing that counts is refused, and nothing that should not count goes on."""

import asyncio
import json
import re
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from feature_assets.errors import ConfigurationError
from feature_assets.server.issuer import Issuer
from tests.server.conftest import Platform, basic, bearer, client_of, fill, served

PATH = "/get-online-features"
QUESTION = {"features": ["weather:wind"], "entities": {"origin": ["JFK"]}}


@pytest.fixture
def rotating(tmp_path) -> Platform:
    made = Platform(tmp_path)
    fill(made)
    return made


def kids(issuer: Issuer) -> set[str]:
    return {key["kid"] for key in issuer.public_keys()["keys"]}


def test_former_keys_are_kept_for_a_day_and_their_private_halves_are_not(tmp_path):
    issuer = Issuer.open(tmp_path)
    (first,) = kids(issuer)
    second = issuer.rotate_key()
    third = issuer.rotate_key()
    assert kids(issuer) == {first, second, third}
    signing, *former = issuer.signing_keys()
    assert (signing.kid, signing.until) == (third, None)
    assert {one.kid for one in former} == {first, second}
    for one in former:
        assert one.until is not None
        assert timedelta(hours=24) < one.until - datetime.now(UTC) < timedelta(hours=24, minutes=3)
    path = tmp_path / "former.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not re.search(r'"d"\s*:', path.read_text())
    assert json.loads((tmp_path / "key.json").read_text())["kid"] == third
    assert all("d" not in key and "created_at" not in key for key in issuer.public_keys()["keys"])


def test_a_former_key_goes_when_its_last_token_has_ended(tmp_path):
    issuer = Issuer.open(tmp_path)
    (first,) = kids(issuer)
    issuer.rotate_key()
    path = tmp_path / "former.json"
    (stored,) = json.loads(path.read_text())
    stored["until"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    path.write_text(json.dumps([stored]))
    assert first not in kids(issuer)
    issuer.rotate_key()
    assert first not in path.read_text()


def test_at_once_leaves_no_former_key(tmp_path):
    issuer = Issuer.open(tmp_path)
    issuer.rotate_key()
    new = issuer.rotate_key(at_once=True)
    assert kids(issuer) == {new}


def test_many_processes_replace_it_at_once_and_none_is_lost(tmp_path):
    issuer = Issuer.open(tmp_path)
    (first,) = kids(issuer)
    program = (
        "import sys; from feature_assets.server.issuer import Issuer; print(Issuer.open(sys.argv[1]).rotate_key())"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    made = {process.communicate(timeout=60)[0].strip() for process in running}
    assert kids(issuer) == {first, *made}


def test_damaged_former_keys_say_so(tmp_path):
    issuer = Issuer.open(tmp_path)
    issuer.rotate_key()
    (tmp_path / "former.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"former.json is damaged: .* Remove it"):
        issuer.public_keys()


async def test_no_token_is_refused_while_keys_are_replaced(rotating):
    """Tokens of every age, those too that are made in the moment of the change."""
    client = rotating.issuer.add_client("scorer", ["features:read"])
    tokens = []
    async with client_of(rotating.app()) as http:

        async def ask() -> None:
            grant = await http.post("/oauth/token", data={"grant_type": "client_credentials"}, headers=basic(*client))
            tokens.append(grant.json()["access_token"])
            for token in tokens:
                answer = await http.post(PATH, json=QUESTION, headers=bearer(token))
                assert answer.status_code == 200, answer.text

        for _ in range(6):
            await asyncio.gather(ask(), asyncio.to_thread(rotating.issuer.rotate_key))
    assert len({json.loads(_decoded(token))["kid"] for token in tokens}) > 3
    rotating.store.close()


def _decoded(token: str) -> bytes:
    import base64

    head = token.split(".", maxsplit=1)[0]
    return base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))


async def test_servers_notice_by_themselves(rotating, tmp_path):
    """Two processes that both have answered with the former key, so that they remember it."""
    with served(rotating, Path(tmp_path / "server.log"), workers=2) as (host, port):

        async def asked(token: str) -> set[int]:
            # Each connection may reach another process.
            found = set()
            for _ in range(8):
                async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as http:
                    found.add((await http.post(PATH, json=QUESTION, headers=bearer(token))).status_code)
            return found

        before = rotating.token()
        assert await asked(before) == {200}
        rotating.issuer.rotate_key()
        assert await asked(rotating.token()) == {200}
        assert await asked(before) == {200}
        rotating.issuer.rotate_key(at_once=True)
        assert await asked(rotating.token()) == {200}
        for _ in range(60):
            if await asked(before) == {401}:
                break
            await asyncio.sleep(0.25)
        assert await asked(before) == {401}
    rotating.store.close()
