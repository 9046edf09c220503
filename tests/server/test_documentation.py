"""The OpenAPI page comes whole from this server, under a policy that lets nothing else in."""

import re

import httpx
import pytest

pytestmark = pytest.mark.anyio


async def test_the_page_and_all_that_it_loads_come_from_here(http: httpx.AsyncClient) -> None:
    page = await http.get("/docs")
    assert page.status_code == 200
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    files = [one for one in loaded if not one.startswith("data:")]
    assert files == ["/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/docs/start.js"]
    for file in files:
        answer = await http.get(file)
        assert answer.status_code == 200, file
        assert answer.headers["content-type"].startswith("text/css" if file.endswith(".css") else "text/javascript")
        assert answer.headers["content-security-policy"] == page.headers["content-security-policy"]
    bundle = await http.get("/docs/swagger-ui-bundle.js")
    assert "SwaggerUIBundle" in bundle.text


async def test_the_policy_lets_nothing_else_in(http: httpx.AsyncClient) -> None:
    policy = (await http.get("/docs")).headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == "'self'"
    assert rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == "'none'"
    assert "<script>" not in (await http.get("/docs")).text


async def test_the_document_shows_the_flow_and_the_scopes_of_each_route(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    (scheme,) = document["components"]["securitySchemes"].values()
    flow = scheme["flows"]["clientCredentials"]
    assert flow["tokenUrl"].endswith("/oauth/token")
    assert "features:read" in flow["scopes"]
    ((_, scopes),) = document["paths"]["/get-online-features"]["post"]["security"][0].items()
    assert scopes == ["features:read"]
