"""N4 over HTTP: the issuer is gone, its tokens are good for a while, and a thousand made-up ones cost it nothing."""

import asyncio
import secrets
import time

import httpx
import pytest

from tests.acceptance.running import serving, tell
from tests.server.conftest import Platform, bearer, fill
from tests.server.issuers import AUDIENCE, ForeignIssuer

pytestmark = pytest.mark.quick

QUESTION = {"features": ["weather:wind"], "entities": {"origin": ["JFK"]}}
MADE_UP, CONNECTIONS = 1_000, 8


async def test_known_keys_count_and_made_up_ones_are_refused_without_asking(tmp_path):
    with ForeignIssuer() as issuer:
        platform = Platform(tmp_path, issuer=issuer.url, audience=AUDIENCE)
        fill(platform)
        known = issuer.token()
        later = issuer.token(jti="later")
        made_up = [issuer.token(header={"kid": secrets.token_hex(8)}) for _ in range(MADE_UP)]
        with serving(platform) as running:
            async with httpx.AsyncClient(base_url=running.url, timeout=60) as http:

                async def ask(token: str) -> httpx.Response:
                    return await http.post("/get-online-features", json=QUESTION, headers=bearer(token))

                assert (await ask(known)).status_code == 200
                issuer.down = True
                before, begun = len(issuer.requests), time.monotonic()
                waiting = iter(made_up)

                async def one_after_another() -> list[httpx.Response]:
                    return [await ask(token) for token in waiting]

                found = [
                    one
                    for each in await asyncio.gather(*[one_after_another() for _ in range(CONNECTIONS)])
                    for one in each
                ]
                seconds = time.monotonic() - begun
                assert (await ask(known)).status_code == (await ask(later)).status_code == 200
            fetched = len(issuer.requests) - before
        platform.store.close()
    assert len(found) == MADE_UP
    assert {one.status_code for one in found} == {401}
    assert all('error="invalid_token"' in one.headers["www-authenticate"] for one in found)
    assert fetched <= 2
    tell(
        "N4", made_up_tokens=len(found), refused=len(found), answers_5xx=0, fetches=fetched, in_seconds=f"{seconds:.1f}"
    )
