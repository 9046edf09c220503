"""What people get wrong on their first day, and what they are told: the mistake, and the next thing to type."""

from datetime import date, timedelta
from pathlib import Path

import pytest

from tests.cli.conftest import Run, first_day

pytestmark = pytest.mark.xdist_group("cli")


@pytest.mark.parametrize(
    "words,message,attempt",
    [
        (
            ["get", "online", "customer_orders", "-e", "customer_id=c007"],
            "'customer_orders' is a view and no feature service. Ask for 'customer_orders:*', or for some of it, as in",
            "",
        ),
        (
            ["features", "show", "basket_context"],
            "Ask for 'basket_context:*', or for some of it, as in 'basket_context:basket_ratio'.",
            "",
        ),
        (
            ["features", "list", "--view", "customer_order"],
            "There is no feature view 'customer_order' in the published registry. Did you mean 'customer_orders'?",
            "feature-assets registry list --kind view",
        ),
        (
            ["features", "list", "--entity", "custmer"],
            "There is no entity 'custmer' in the published registry. Did you mean 'customer'?",
            "feature-assets registry list --kind entity",
        ),
        (
            ["get", "online", "customer_value", "-e", "customer_id=c007"],
            "To look up customer_value, basket_value (Float64) is needed.",
            "feature-assets get online customer_value --entity customer_id=c007 --entity basket_value=…",
        ),
        (
            ["get", "historical", "customer_orders:*", "--since", "2026-13-01"],
            "--since: '2026-13-01' is not a Timestamp: write it as 2013-02-08T07:00:00Z.",
            "",
        ),
        (
            ["get", "historical", "customer_orders:*", "--since", "2026-11-02", "--until", "2026-11-01"],
            "The range of time is empty: it begins with 2026-11-02 00:00:00Z and ends before 2026-11-01 00:00:00Z. Swap them.",
            "",
        ),
        (
            ["materialize", "customer_value", "--latest"],
            "'customer_value' cannot be materialised: it only names features of views.",
            "feature-assets registry show customer_value",
        ),
        (
            ["materialize", "basket_context", "--latest"],
            "'basket_context' cannot be materialised: it is computed when asked for.",
            "feature-assets registry show basket_context",
        ),
        (
            ["materialize", "customer_order", "--latest"],
            "There is no feature view 'customer_order' in the definitions. Did you mean 'customer_orders'?",
            "feature-assets plan",
        ),
        (
            ["registry", "rollback"],
            "does not go back 1.",
            "feature-assets registry history",
        ),
    ],
)
def test_a_mistake_is_told_with_the_next_thing_to_type(
    run: Run, looking: Path, words: list[str], message: str, attempt: str
) -> None:
    refused = run(*words, code=1)
    assert message in refused.said
    assert refused.out == ""
    assert refused.said.endswith(f"Try: {attempt}") if attempt else "Try:" not in refused.said


def test_ends_of_a_span_that_are_swapped_are_swapped_back(run: Run, looking: Path) -> None:
    end = first_day(looking)
    start = (date.fromisoformat(end) + timedelta(days=3)).isoformat()
    refused = run("materialize", "customer_orders", "--from", start, "--to", end, code=1)
    assert refused.said.endswith(f"Try: feature-assets materialize customer_orders --from {end} --to {start}")
    refused = run("backfill", "customer_orders", start, end, code=1)
    assert refused.said.endswith(f"Try: feature-assets backfill customer_orders {end} {start}")


def test_names_that_collide_are_told_apart_by_the_view(run: Run, project: Path) -> None:
    """The service can be looked at, and asked with the option that the shell has for it."""
    code = (project / "definitions.py").read_text()
    twice = """
twice = FeatureService(
    "twice", [customer_orders, customer_orders.with_name("friend").with_join_key_map({"customer_id": "friend_id"})]
)
"""
    start = code.index("defs = feature_definitions(")
    changed = code[:start] + twice + code[start:].replace("customer_value]", "customer_value, twice]")
    (project / "definitions.py").write_text(changed)
    run("apply", "--yes")
    shown = run("registry", "show", "twice").out
    assert "customer_orders__spent_7d" in shown
    assert "friend__spent_7d" in shown
    keys = ["-e", "customer_id=c007", "-e", "friend_id=c008"]
    refused = run("get", "online", "twice", *keys, code=1)
    assert "would be the name of both customer_orders:" in refused.said
    assert "full_feature_names" not in refused.said
    assert refused.said.endswith(f"Try: feature-assets get online twice {' '.join(keys)} --full-names")
    assert "friend__spent_7d" in run("get", "online", "twice", *keys, "--full-names").out


@pytest.mark.parametrize(
    "output,message",
    [
        ("rows.xls", "rows.xls is none of .parquet, .delta, .csv, .jsonl, .ndjson, .arrow, and no folder/."),
        ("nowhere/rows.csv", "There is no folder nowhere to write rows.csv to."),
    ],
)
@pytest.mark.parametrize("words", [("get", "historical", "nothing:*"), ("training", "show", "nothing")])
def test_where_rows_cannot_be_written_is_said_before_anything_is_read(
    run: Run, looking: Path, output: str, message: str, words: tuple[str, ...]
) -> None:
    spine = ("--spine", "nothing.csv") if words[0] == "get" else ()
    refused = run(*words, *spine, "--output", output, code=1)
    assert message in refused.said


def test_a_span_without_rows_says_so(run: Run, looking: Path) -> None:
    found = run("get", "historical", "customer_orders:*", "--since", "2001-01-01", "--until", "2001-01-02")
    assert found.said == "There are no rows."
    assert found.out == ""
    assert (
        run("get", "historical", "customer_orders:*", "--since", "2001-01-01", "--until", "2001-01-02", "--json").rows
        == []
    )


@pytest.mark.parametrize(
    "text,message",
    [
        ("offline = [", "is not TOML: Invalid value (at end of document)."),
        ("offline = \xff", "is not TOML: it is not text in UTF-8."),
        ('durability = "fast"', "'durability': Input should be 'power-loss' or 'process'."),
    ],
)
def test_settings_that_cannot_be_read_are_one_problem(run: Run, project: Path, text: str, message: str) -> None:
    file = project / "feature_assets.toml"
    file.write_text(text, encoding="latin-1")
    refused = run("plan", code=1)
    assert f"{file}: {message}" in refused.said or f"{file} {message}" in refused.said
    found = run("doctor", "--json", code=1).rows
    assert [one["what"] for one in found if one["state"] == "problem"] == ["settings"]
    assert "1 problem." in run("doctor", code=1).out


def test_a_wrong_variable_is_named(run: Run, looking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURE_ASSETS_DURABILITY", "fast")
    monkeypatch.setenv("FEATURE_ASSETS_SERVER__PORT", "many")
    said = run("plan", code=1).said
    assert "FEATURE_ASSETS_DURABILITY: Input should be 'power-loss' or 'process'." in said
    assert "FEATURE_ASSETS_SERVER__PORT: Input should be a valid integer" in said


@pytest.mark.parametrize(
    "words", [("verify",), ("features", "list"), ("get", "online", "a:b", "-e", "c=d"), ("registry", "rollback")]
)
def test_outside_of_a_project_it_is_said_that_there_is_none(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = run(*words, code=1)
    assert f"There is no feature_assets.toml in {tmp_path} or above it" in refused.said
    assert refused.said.endswith("Try: feature-assets init")
    assert not (tmp_path / ".feature_assets").exists()


def test_a_file_that_is_not_there_is_told_with_its_source(run: Run, project: Path) -> None:
    (project / "data" / "orders.csv").unlink()
    refused = run("materialize", "customer_orders", "--latest", code=1)
    assert f"FileSource 'orders': there is no file at {project}/data/orders.csv." in refused.said


def test_a_registry_whose_snapshot_is_gone_is_rolled_back(run: Run, project: Path) -> None:
    code = (project / "definitions.py").read_text()
    (project / "definitions.py").write_text(code.replace("Who buys.", "Who buys, and who may."))
    gone = run("apply", "--json").rows["digest"]
    (project / ".feature_assets" / "registry" / "snapshots" / f"{gone}.json").unlink()
    refused = run("registry", "list", code=1)
    assert f"{gone}.json is not there. Move the registry to a snapshot that is whole." in refused.said
    assert refused.said.endswith("Try: feature-assets registry rollback")
    assert "is in force again" in run("registry", "rollback", "--yes").out
    assert "customer_orders" in run("registry", "list").out


def test_a_registry_that_was_published_once_and_damaged_names_the_way_out(run: Run, project: Path) -> None:
    digest = run("registry", "history", "--json").rows[0]["digest"]
    (project / ".feature_assets" / "registry" / "latest.json").write_text("{bad")
    for words in (("registry", "history"), ("apply",), ("registry", "list")):
        refused = run(*words, code=1)
        assert "latest.json is damaged" in refused.said
        assert refused.said.endswith("Try: feature-assets registry rollback")
    refused = run("registry", "rollback", code=1)
    assert refused.said.endswith(f"Try: feature-assets registry rollback {digest[:12]}")
    assert "is in force again" in run("registry", "rollback", digest[:12], "--yes").out
    assert run("registry", "history", "--json").rows[0]["digest"] == digest


def test_nobody_is_asked_to_agree_to_what_is_refused_in_any_case(run: Run, project: Path) -> None:
    code = (project / "definitions.py").read_text()
    changed = code.replace('Field("orders_7d", Int64', 'Field("orders_7d", Float64').replace(
        "default=0)", "default=0.0)"
    )
    (project / "definitions.py").write_text(changed)
    refused = run("apply", code=1)
    assert "version=2" in refused.said
    assert "--yes" not in refused.said
    assert "breaking" in refused.out + refused.err
    assert run("apply", "--yes", code=1).said.endswith(refused.said[-60:])


def test_names_stay_whole_on_a_narrow_terminal(run: Run, looking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("registry", "list").out.splitlines()
    for name in ("customer_orders", "basket_context", "customer_value", "customer_id"):
        assert any(name in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert "location" not in lines[0]
    monkeypatch.setenv("COLUMNS", "140")
    assert "location" in run("registry", "list").out.splitlines()[0]
