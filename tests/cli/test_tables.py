"""Tables of the online store that are otherwise than its URL says now: found, and brought to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aws_server import aws_server
from tests.cli.conftest import Run

SAYS = "is otherwise than the URL of the online store says: it "


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_server() as found:
        yield found


@pytest.fixture
def on_dynamodb(project: Path, endpoint: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> str:
    """The shop online in DynamoDB; the URL of the store."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    url = f"dynamodb:shop?region=us-east-1&endpoint={endpoint}"
    monkeypatch.setenv("FEATURE_ASSETS_ONLINE", url)
    run("reconcile")
    return url


def test_tables_follow_the_url(on_dynamodb: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "All is well." in run("doctor").out
    assert "as the URL of the online store says" in run("reconcile", "--tables").out
    monkeypatch.setenv(
        "FEATURE_ASSETS_ONLINE", f"{on_dynamodb}&read_units=7&write_units=3&recovery=true&tags=team:ours"
    )
    problems = [row for row in run("doctor", "--json", code=1).rows if row["state"] == "problem"]
    assert [row["what"] for row in problems] == ["online store"] * 2
    assert {row["mend"] for row in problems} == {"feature-assets reconcile --tables"}
    should = "is paid on demand, and should have 7 read and 3 write units; has no tags team=ours; has no point-in-time recovery"
    assert [row["found"].partition(SAYS)[::2] for row in problems] == [
        ("Table shop.catalogue ", f"{should}."),
        ("Table shop.customer_orders.v1 ", f"{should}."),
    ]
    for words, heading in ((["--dry-run"], "would change"), ([], "was changed")):
        shown = run("reconcile", "--tables", *words).out
        assert heading in shown
        assert shown.count("has no point-in-time recovery") == 2
    assert run("reconcile", "--tables", "--json").rows == []
    assert "All is well." in run("doctor").out


def test_tables_of_sqlite_are_made_without_options(run: Run, looking: Path) -> None:
    assert "online.db has no options that tables are made with" in run("reconcile", "--tables", code=1).said


def test_tables_are_those_of_all_views(run: Run, looking: Path) -> None:
    assert "--tables is for all of them" in run("reconcile", "customer_orders", "--tables", code=1).said
