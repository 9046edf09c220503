"""`permissions`: what a person is told of who may do what, and that it is what the server decides."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run

ACTS = ["read", "history", "push", "materialize", "pii", "describe"]


@pytest.fixture
def policed(run: Run, project: Path) -> Path:
    """The shop with a policy, a row filter and personal data on its view, and two clients."""
    definitions = project / "definitions.py"
    text = definitions.read_text().replace(
        "    ttl=timedelta(days=30),\n",
        "    ttl=timedelta(days=30),\n"
        '    access={"read": ["role:shop_*", "client:scoring-*"], "push": [], "pii": ["group:privacy"]},\n'
        '    row_filter={"customer_id": "customer"},\n',
        1,
    )
    text = re.sub(r'(Field\("last_amount", Float64)', r'\1, pii="spending"', text)
    definitions.write_text(text)
    run("apply", "--yes")
    run("auth", "client", "add", "scoring", "-s", "features:read", "--claim", "customer=c001")
    everything = [
        word for act in ("features:read", "features:history", "pii:read", "registry:read") for word in ("-s", act)
    ]
    run(
        "auth",
        "client",
        "add",
        "office",
        *everything,
        "--role",
        "shop_eu",
        "--group",
        "privacy",
        "--claim",
        "customer=c002",
    )
    return project


def client(run: Run, name: str) -> str:
    return next(one["client_id"] for one in run("auth", "client", "list", "--json").rows if one["name"] == name)


def test_every_view_is_listed_with_whom_it_names(run: Run, policed: Path) -> None:
    rows = {row["view"]: row for row in run("permissions", "list", "--json").rows}
    assert rows["customer_orders"] == {
        "view": "customer_orders",
        "read": ["client:scoring-*", "role:shop_*"],
        "push": [],
        "materialize": [],
        "pii": ["group:privacy"],
        "personal": ["last_amount"],
        "row_filter": {"customer_id": "customer"},
        "made_from": [],
    }
    # Made from what is personal, it is personal; who sees it is said where it comes from.
    assert rows["basket_context"]["personal"] == ["basket_ratio"]
    assert rows["basket_context"]["made_from"] == ["customer_orders"]
    assert rows["basket_context"]["read"] is None
    shown = run("permissions", "list").out
    for words in ("by scope", "nobody", "client:scoring-*, role:shop_*", "customer_id = claim customer"):
        assert words in shown


def decided(run: Run, *words: str) -> dict[str, str]:
    return {row["act"]: row["allowed"] for row in run("permissions", "check", *words, "customer_orders", "--json").rows}


def test_what_a_client_would_be_allowed(run: Run, policed: Path) -> None:
    assert decided(run, client(run, "office")) == dict(
        zip(ACTS, ["own rows", "own rows", "no", "no", "yes", "yes"], strict=True)
    )
    assert decided(run, client(run, "scoring")) == dict(
        zip(ACTS, ["masked, own rows", "no", "no", "no", "no", "no"], strict=True)
    )
    shown = " ".join(run("permissions", "check", client(run, "scoring"), "customer_orders").out.split())
    assert "read policy of customer_orders: client:scoring-*" in shown
    assert "without last_amount" in shown
    everywhere = run("permissions", "check", client(run, "office")).out
    assert "basket_context" in everywhere
    assert "customer_orders" in everywhere


def test_what_scopes_would_allow(run: Run, policed: Path) -> None:
    def asked(*words: str) -> dict[str, Any]:
        return run("permissions", "check", *words, "customer_orders", "--json").rows[0]

    assert asked("features:read")["allowed"] == "no"
    assert asked("features:read")["rule"] == "read policy of customer_orders names client:scoring-*, role:shop_*"
    assert asked("features:read", "--role", "shop_us")["why"].startswith("View 'customer_orders' is open for one's own")
    found = asked("features:read pii:read", "--client", "scoring-1", "--claim", "customer=c001")
    assert (found["allowed"], found["masked"]) == ("masked, own rows", ["customer_orders__last_amount"])
    assert found["own_rows"] == {"customer_id": "c001"}
    named = asked(
        "features:read:customer_* pii:read", "--role", "shop_us", "--group", "privacy", "--claim", "customer=c001"
    )
    assert (named["allowed"], named["masked"]) == ("own rows", [])


def test_who_can(run: Run, policed: Path) -> None:
    found = run("permissions", "who-can", "customer_orders", "--json").rows
    assert {need["act"]: need["policy"] for need in found["needs"]} == {
        "read": "client:scoring-* or role:shop_*",
        "history": "client:scoring-* or role:shop_*",
        "push": "nobody",
        "materialize": "nobody",
        "pii": "group:privacy",
        "describe": "",
    }
    assert {row["client"].partition("-")[0]: row["read"] for row in found["clients"]} == {
        "office": "own rows",
        "scoring": "masked, own rows",
    }
    composed = run("permissions", "who-can", "basket_context").out
    assert "role:shop_* (customer_orders)" in composed
    assert "materialize" not in composed
    assert "access: pii" in run("registry", "show", "customer_orders").out


def test_what_is_decided_here_is_what_the_server_decides(run: Run, policed: Path) -> None:
    """The same token, over HTTP."""
    import asyncio

    import httpx

    from feature_assets.config import Settings
    from feature_assets.server.app import create_app

    token = run("auth", "token", "-s", "features:read", "--client", client(run, "scoring")).out.strip()
    app = create_app(Settings.load())

    async def ask(customer: str) -> httpx.Response:
        question = {"features": ["customer_orders:*"], "entities": {"customer_id": [customer]}}
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:6566") as http,
        ):
            headers = {"authorization": f"Bearer {token}"}
            return await http.post("/get-online-features", json=question, headers=headers)

    own = asyncio.run(ask("c001"))
    assert own.status_code == 200
    assert json.dumps(own.json()).count('"MASKED"') == 1


def test_mistakes_are_told_with_what_there_is(run: Run, policed: Path) -> None:
    assert (
        "neither a scope nor a client of the embedded issuer (clients: office-"
        in run("permissions", "check", "somebody", code=1).said
    )
    assert "'features:raed' is not a scope" in run("permissions", "check", "features:raed", code=1).said
    for words in (("check", "features:read", "customer_order"), ("who-can", "customer_order")):
        assert "Did you mean 'customer_orders'" in run("permissions", *words, code=1).said


def test_without_an_embedded_issuer_there_are_no_clients_to_show(run: Run, project: Path) -> None:
    """And none is made by looking."""
    assert "has no clients" in run("permissions", "who-can", "customer_orders").out
    assert not (project / ".feature_assets" / "auth").exists()
    settings = project / "feature_assets.toml"
    settings.write_text(settings.read_text() + '\nissuer = "https://login.example.com"\naudience = "a"\n')
    assert "Clients are those of https://login.example.com" in run("permissions", "who-can", "customer_orders").said
