"""Each command on a project as `init` makes it, over real stores: what it prints, for people and for machines."""

import base64
import json
import sqlite3
import sys
from collections.abc import Callable
from datetime import date, timedelta
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from feature_assets.cli.output import print_json
from feature_assets.cli.program import retrieval, starting
from feature_assets.historical import Progress
from tests.cli.conftest import Run, first_day

# The project of the fixtures takes seconds to make: one worker makes it once.
pytestmark = pytest.mark.xdist_group("cli")


def edit(folder: Path, before: str, after: str) -> None:
    file = folder / "definitions.py"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def one_customer(folder: Path) -> str:
    """A customer with orders in the last days."""
    return (folder / "data" / "orders.csv").read_text().splitlines()[-1].split(",")[1]


# init


def test_init_leaves_alone_what_is_there(run: Run, looking: Path) -> None:
    before = (looking / "definitions.py").read_bytes()
    refused = run("init", ".", code=1)
    assert "has definitions.py, feature_assets.toml" in refused.said
    assert "Try: feature-assets init" in refused.said
    assert (looking / "definitions.py").read_bytes() == before


def test_init_names_the_project_by_its_folder(run: Run, tmp_path: Path) -> None:
    run("init", str(tmp_path / "7 My-Shop"))
    assert 'location = "features_7_my_shop"' in (tmp_path / "7 My-Shop" / "feature_assets.toml").read_text()


def test_a_new_project_runs_dagster_as_this_repository_does(looking: Path) -> None:
    ours = Path(__file__).parents[2] / "dagster.yaml"
    assert (looking / "dagster.yaml").read_text() == ours.read_text()
    assert (looking / ".dagster" / "dagster.yaml").resolve() == looking / "dagster.yaml"


def test_the_example_data_is_the_same_for_the_same_day_and_ends_before_today() -> None:
    lines = list(starting.orders(date(2025, 1, 1)))
    assert lines == list(starting.orders(date(2025, 1, 1)))
    assert lines[0] == "order_id,customer_id,ordered_at,amount\n"
    assert {line.split(",")[2][:10] for line in lines[1:]} == {
        (date(2025, 1, 1) + timedelta(days=day)).isoformat() for day in range(30)
    }


# plan, apply


def test_plan_says_what_changes_and_what_it_means_for_data(run: Run, project: Path) -> None:
    assert "nothing to change" in run("plan").out
    edit(project, 'Field("spent_7d"', 'Field("kind", String), Field("spent_7d"')
    found = run("plan")
    assert "customer_orders:kind" in found.out
    assert "null until its partitions are materialised again" in " ".join(found.out.split())
    assert "1 added" in found.out
    (change,) = [one for one in run("plan", "--json").rows if one["kind"] == "feature"]
    assert change["action"] == "added"
    assert change["breaking"] is False
    run("plan", "--check", code=1)


def test_apply_asks_before_it_breaks_something(run: Run, project: Path) -> None:
    edit(project, ", customer_value])", "])")
    refused = run("apply", code=1)
    assert "Nothing was published: 1 change may break what others use" in refused.said
    assert "Try: feature-assets apply --yes" in refused.said
    assert "customer_value" in run("registry", "list").out
    applied = run("apply", "--yes", "--json", "--message", "gone").rows
    assert applied["changed"] is True
    assert applied["sequence"] == 2
    assert "customer_value" not in run("registry", "list").out


def test_apply_again_changes_nothing(run: Run, looking: Path) -> None:
    assert run("apply", "--json").rows["changed"] is False


# materialize, backfill


def test_materialize_says_what_was_published(run: Run, project: Path) -> None:
    day = first_day(project)
    (row,) = run("materialize", "customer_orders", "--partition", day, "--json").rows
    assert (row["first"], row["last"], row["count"]) == (day, day, 1)
    assert row["rows"] > 0
    assert row["delta_version"] >= 1
    assert day in run("materialize", "customer_orders", "-p", day).out


def test_materialize_takes_contiguous_partitions_together(run: Run, project: Path) -> None:
    start = date.fromisoformat(first_day(project))
    days = [(start + timedelta(days=one)).isoformat() for one in (1, 2, 3, 8)]
    rows = run("materialize", "customer_orders", *(word for day in days for word in ("-p", day)), "--json").rows
    assert [(row["first"], row["last"]) for row in rows] == [(days[0], days[2]), (days[3], days[3])]


@pytest.mark.parametrize(
    "words,message,mend",
    [
        (["customer_orders"], "it was not said which to materialise", "materialize customer_orders --latest"),
        (["customer_orders", "-p", "2013-02-30"], "'2013-02-30' is not a partition of customer_orders (daily, ", "-p"),
        (["customer_order", "--latest"], "Did you mean 'customer_orders'?", ""),
        (["customer_value"], "cannot be materialised: it only names features of views", ""),
        (["basket_context"], "cannot be materialised: it is computed when asked for", ""),
        (["orders"], "cannot be materialised: somebody else writes it", ""),
    ],
)
def test_materialize_refuses_what_it_cannot_do(
    run: Run, looking: Path, words: list[str], message: str, mend: str
) -> None:
    refused = run("materialize", *words, code=1)
    assert message in refused.said
    assert mend.replace("-p", "--partition") in refused.said
    assert "Traceback" not in refused.err


def test_materialize_takes_one_way_of_saying_which(run: Run, looking: Path) -> None:
    refused = run("materialize", "customer_orders", "--latest", "--all", code=2)
    assert "give one of --partition, --from with --to, --latest and --all" in refused.said


def test_a_failed_run_is_told_in_the_words_of_the_view(run: Run, project: Path) -> None:
    edit(project, 'InRange("orders_7d", minimum=1)', 'InRange("orders_7d", minimum=1000)')
    refused = run("materialize", "customer_orders", "--latest", code=1)
    assert "Error: customer_orders: nothing was published, for 1 of 2 checks failed" in refused.said
    assert len(refused.err.strip().splitlines()) <= 4
    assert refused.out == ""


def test_an_error_in_an_asset_function_is_told_with_its_place(run: Run, project: Path) -> None:
    edit(project, "    window = context.partition_time_window\n", "    window = context.nothing_of_the_kind\n")
    refused = run("materialize", "customer_orders", "--latest", code=1)
    assert "AttributeError" in refused.said
    assert "(definitions.py, line " in refused.said
    assert "Traceback" not in refused.err


def test_what_an_asset_function_prints_is_no_result(run: Run, project: Path) -> None:
    edit(project, "    window = context", '    print("a word aside")\n    window = context')
    assert len(run("materialize", "customer_orders", "--latest", "--json").rows) == 1


def test_backfill_goes_on_where_it_stopped(run: Run, project: Path) -> None:
    start = date.fromisoformat(first_day(project))
    bad = (start + timedelta(days=4)).isoformat()
    end = (start + timedelta(days=6)).isoformat()
    for folder in (".dagster", ".feature_assets"):
        _remove(project / folder, keep="dagster.yaml")
    edit(
        project, "    week = ", f'    if context.partition_key == "{bad}":\n        raise ValueError("no")\n    week = '
    )
    words = ["backfill", "customer_orders", start.isoformat(), end]
    refused = run(*words, "--per-partition", code=1)
    assert f"4 of 7 runs succeeded; {bad} failed: ValueError: no" in refused.said
    assert f"Try: feature-assets {' '.join(words)} --missing-only" in refused.said
    assert "[5/7]" in refused.said
    refused = run(*words, "--per-partition", "--missing-only", "--keep-going", code=1)
    assert "2 of 3 runs succeeded" in refused.said
    edit(project, f'if context.partition_key == "{bad}"', "if False")
    rows = run(*words, "--missing-only", "--json")
    assert [(row["first"], row["last"]) for row in rows.rows] == [(bad, bad)]
    assert run(*words, "--missing-only", "--json").rows == []
    assert "Nothing is missing" in run(*words, "--missing-only").said


def _remove(folder: Path, *, keep: str) -> None:
    import shutil

    for child in folder.iterdir():
        if child.name != keep:
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()


def test_backfill_takes_no_more_partitions_into_a_run_than_it_is_told(run: Run, project: Path) -> None:
    start = date.fromisoformat(first_day(project))
    end = (start + timedelta(days=4)).isoformat()
    rows = run("backfill", "customer_orders", start.isoformat(), end, "--per-run", "2", "--json").rows
    assert [row["count"] for row in rows] == [2, 2, 1]


def test_without_a_home_dagster_keeps_no_history_and_it_is_said(run: Run, project: Path) -> None:
    _remove(project / ".dagster", keep="")
    (project / ".dagster").rmdir()
    done = run("materialize", "customer_orders", "--latest", "--json")
    assert "Dagster's history of this run is not kept" in done.said
    assert len(done.rows) == 1


# registry, features


def test_registry_list_has_every_kind(run: Run, looking: Path) -> None:
    rows = run("registry", "list", "--json").rows
    assert [(row["kind"], row["name"]) for row in rows] == [
        ("view", "customer_orders"),
        ("on-demand", "basket_context"),
        ("service", "customer_value"),
        ("source", "orders"),
        ("entity", "customer"),
    ]
    assert all(row["name"] in run("registry", "list").out for row in rows)
    assert [row["name"] for row in run("registry", "list", "--kind", "service", "--json").rows] == ["customer_value"]
    assert "is none of view" in run("registry", "list", "--kind", "table", code=2).said


@pytest.mark.parametrize("name", ["customer_orders", "basket_context", "customer_value", "orders", "customer"])
def test_registry_show_has_everything_of_one_thing(run: Run, looking: Path, name: str) -> None:
    assert name in run("registry", "show", name).out
    assert run("registry", "show", name, "--json").rows["name"] == name


def test_registry_show_of_what_is_not_there_offers_the_nearest(run: Run, looking: Path) -> None:
    assert "Try: feature-assets registry show customer_value" in run("registry", "show", "customer_valeu", code=1).said


def test_registry_rollback_and_history(run: Run, project: Path) -> None:
    first = run("registry", "history", "--json").rows[0]["digest"]
    edit(project, 'description="Who buys."', 'description="Whoever buys."')
    run("apply", "--message", "other words")
    assert "Nothing was changed" in run("registry", "rollback", code=1).said
    assert run("registry", "rollback", "--yes", "--json").rows["digest"] == first
    moves = run("registry", "history", "--json").rows
    assert [(move["number"], move["action"], move["message"]) for move in moves] == [
        (3, "rollback", ""),
        (2, "publish", "other words"),
        (1, "publish", ""),
    ]
    assert first[:12] in run("registry", "show").out
    second = moves[1]["digest"]
    assert "Whoever buys." in run("registry", "show", "customer", "--snapshot", second[:10]).out
    run("registry", "rollback", second[:10], "--yes")
    assert "'ffff'" in run("registry", "rollback", "ffff", "--yes", code=1).said


def test_features_are_found_and_shown(run: Run, looking: Path) -> None:
    every = run("features", "list", "--json").rows
    assert [row["feature"] for row in every] == [
        "basket_context:basket_ratio",
        "customer_orders:last_amount",
        "customer_orders:orders_7d",
        "customer_orders:spent_7d",
    ]
    assert run("features", "list", "--search", "EUROS", "--view", "customer_orders", "--json").rows == [
        every[1],
        every[3],
    ]
    assert run("features", "list", "--search", "nothing", "--json").rows == []
    shown = run("features", "show", "customer_orders:spent_7d", "--json").rows
    assert shown["services"] == ["customer_value"]
    assert shown["join_keys"] == {"customer_id": "String"}
    assert "30 d" in run("features", "show", "customer_orders:spent_7d").out
    assert "no feature 'spend'" in run("features", "show", "customer_orders:spend", code=1).said


# get, training


def test_get_online_gives_each_value_with_time_and_reason(run: Run, looking: Path) -> None:
    customer = one_customer(looking)
    words = ["-e", f"customer_id={customer}", "-e", "customer_id=nobody", "-e", "basket_value=25"]
    here, nobody = run("get", "online", "customer_value", *words, "--json").rows
    assert here["entity"] == {"customer_id": customer, "basket_value": 25.0}
    assert here["features"]["last_amount"]["status"] == "PRESENT"
    assert here["features"]["last_amount"]["event_timestamp"].endswith("Z")
    ratio = 25.0 / here["features"]["last_amount"]["value"]
    assert here["features"]["basket_ratio"]["value"] == ratio
    assert nobody["features"]["spent_7d"] == {"value": None, "status": "NOT_FOUND", "event_timestamp": None}
    assert nobody["features"]["orders_7d"]["value"] == 0
    printed = run("get", "online", "customer_value", *words).out
    assert f"customer_id {customer}" in printed
    assert "not found" in printed


@pytest.mark.parametrize(
    "name,text",
    [
        ("rows.json", '[{"customer_id": "nobody"}, {"customer_id": "someone"}]'),
        ("rows.jsonl", '{"customer_id": "nobody"}\n{"customer_id": "someone"}\n'),
        ("rows.csv", "customer_id,what\nnobody,1\nsomeone,2\n"),
    ],
)
def test_get_online_takes_rows_from_a_file(run: Run, looking: Path, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    rows = run("get", "online", "customer_orders:*", "--rows", str(tmp_path / name), "--json").rows
    assert [row["entity"]["customer_id"] for row in rows] == ["nobody", "someone"]


@pytest.mark.parametrize(
    "words,message",
    [
        (["-e", "customer_id=c1"], "basket_value (Float64) is needed"),
        (["-e", "customer_id=c1", "-e", "basket_value=lots"], "'basket_value': 'lots' is not a Float64"),
        (["-e", "customer_id=c1", "-e", "name=c1"], "'name' is none of the names that are needed (customer_id String,"),
        (["--rows", "nowhere.json"], "There is no file nowhere.json"),
        (
            ["-e", "customer_id=1", "-e", "customer_id=2", *["-e", "basket_value=1"] * 3],
            "was given 2 times and another",
        ),
    ],
)
def test_get_online_says_what_is_missing_or_wrong(run: Run, looking: Path, words: list[str], message: str) -> None:
    assert message in run("get", "online", "customer_value", *words, code=1).said


def test_get_online_offers_the_whole_command_for_what_is_missing(run: Run, looking: Path) -> None:
    refused = run("get", "online", "customer_value", "-e", "customer_id=c 1", code=1)
    assert (
        "Try: feature-assets get online customer_value --entity 'customer_id=c 1' --entity basket_value=…"
        in refused.said
    )


@pytest.fixture
def spine(looking: Path, tmp_path: Path) -> Path:
    lines = (looking / "data" / "orders.csv").read_text().splitlines()[-3:]
    rows = [line.split(",") for line in lines]
    file = tmp_path / "spine.parquet"
    pl.DataFrame(
        {
            "customer_id": [*(row[1] for row in rows), "nobody"],
            "event_timestamp": [*(row[2] for row in rows), rows[0][2]],
            "basket_value": [1.0, 2.0, 3.0, 4.0],
        }
    ).with_columns(pl.col("event_timestamp").str.to_datetime(time_zone="UTC", time_unit="us")).write_parquet(file)
    return file


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl", "arrow"])
def test_get_historical_writes_every_format(run: Run, spine: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"rows.{suffix}"
    words = ["get", "historical", "customer_value", "--spine", str(spine), "--output", str(output)]
    assert run(*words, "--json").rows == {"output": str(output), "rows": 4}
    read = {"parquet": pl.read_parquet, "csv": pl.read_csv, "jsonl": pl.read_ndjson, "arrow": pl.read_ipc}[suffix]
    frame: Any = read(output)
    assert frame["orders_7d"].to_list()[-1] == 0
    assert frame["last_amount"].null_count() == 1


def test_get_historical_shows_rows_and_says_what_it_needs(run: Run, spine: Path) -> None:
    words = ["get", "historical", "customer_value", "--spine", str(spine)]
    assert "nobody" in run(*words).out
    assert len(run(*words, "--json").rows) == 4
    assert "It was not said for which rows" in run("get", "historical", "customer_value", code=1).said
    assert "is not there" in run("get", "historical", "customer_value", "-s", "nowhere.parquet", code=1).said
    assert "none of .parquet" in run(*words, "--output", "rows.xlsx", code=1).said


def test_get_historical_spreads_the_rows_and_writes_a_folder_of_files(run: Run, spine: Path, tmp_path: Path) -> None:
    pytest.importorskip("daft")
    words = ["get", "historical", "customer_value", "--spine", str(spine)]
    told = [*words, "--engine", "daft", "--memory-limit", "4GB", "--output", f"{tmp_path}/rows/"]
    assert run(*told, "--json").rows == {"output": f"{tmp_path}/rows/", "rows": 4}
    run(*words, "--output", f"{tmp_path}/rows.parquet")
    assert pl.read_parquet(f"{tmp_path}/rows/").equals(pl.read_parquet(f"{tmp_path}/rows.parquet"))
    assert "There is something at" in run(*told, code=1).said
    assert "Known: polars, daft, daft-ray" in run(*words, "--engine", "dask", code=1).said
    assert "no folder/" in run(*words, "--output", "rows", code=1).said


@pytest.mark.parametrize(
    "stage, words",
    [
        ("joining", "1,000 of 3,000 rows"),
        ("ordering", "1,000 of 3,000 rows, bringing them into order"),
        ("writing", "1,000 of 3,000 rows, writing them in order"),
    ],
)
def test_how_far_a_training_set_is_is_told_in_words(stage: str, words: str) -> None:
    told: list[str] = []
    joining = retrieval.Joining()
    joining.tell = told.append
    joining(Progress(stage, 1_000, 3_000))
    assert told == [words]


def test_json_has_the_words_of_the_server_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    print_json([{"a": float("nan"), "b": (float("-inf"), b"\x00"), "c": 0.5}])
    assert json.loads(capsys.readouterr().out) == [{"a": "NaN", "b": ["-Infinity", "AA=="], "c": 0.5}]


def test_training_sets_are_saved_listed_shown_rebuilt_and_deleted(run: Run, project: Path, spine: Path) -> None:
    words = ["training", "save", "first", "customer_value", "--spine", str(spine)]
    assert run(*words, "--json").rows["result"]["rows"] == 4
    assert "There is a training set 'first'" in run(*words, code=1).said
    (listed,) = run("training", "list", "--json").rows
    assert (listed["name"], listed["rows"]) == ("first", 4)
    assert "customer_orders@v1=" in run("training", "show", "first").out
    run("training", "show", "first", "--output", str(project / "saved.parquet"))
    run("training", "rebuild", "first", "--output", str(project / "rebuilt.parquet"))
    assert pl.read_parquet(project / "saved.parquet").equals(pl.read_parquet(project / "rebuilt.parquet"))
    rebuilt = run("training", "rebuild", "first", "--json").rows
    assert (rebuilt["equal"], rebuilt["digest"]) == (True, listed["digest"])
    assert "Did you mean 'first'" in run("training", "show", "fist", code=1).said
    assert "Nothing was deleted" in run("training", "delete", "first", code=1).said
    run("training", "delete", "first", "--yes")
    assert run("training", "list", "--json").rows == []


# verify, reconcile, erase


def tamper(folder: Path) -> None:
    """Change online rows behind the store's back: one is gone, one is older."""
    connection = sqlite3.connect(folder / ".feature_assets" / "online.db")
    (table,) = [
        name
        for (name,) in connection.execute("select name from sqlite_master where type='table'")
        if "customer" in name
    ]
    with connection:
        connection.execute(f"delete from {table} where rowid in (select rowid from {table} limit 1)")
        connection.execute(f"update {table} set spent_7d = 0.5 where rowid in (select rowid from {table} limit 1)")
    connection.close()


def test_verify_finds_what_differs_and_reconcile_mends_it(run: Run, project: Path) -> None:
    assert run("verify", "--json").rows[0]["state"] == "equal"
    assert "equal" in run("verify").out
    tamper(project)
    differs = run("verify", code=1)
    assert "differs" in differs.out
    assert "is missing online" in differs.out
    assert "differs in spent_7d" in differs.out
    assert "feature-assets reconcile --force customer_orders" in differs.said
    (row,) = run("verify", "customer_orders", "--json", code=1).rows
    assert (row["missing"], row["different"], row["extra"], row["differences"]) == (1, 1, 0, 2)
    assert "Nothing was pending" in run("reconcile").out
    (mended,) = run("reconcile", "--force", "--json").rows
    assert mended["changed"] >= 1


def test_reconcile_finishes_what_was_left(run: Run, project: Path) -> None:
    (project / ".feature_assets" / "online.db").unlink()
    for left in project.glob(".feature_assets/online.db-*"):
        left.unlink()
    assert len(run("reconcile", "--dry-run", "--json").rows[0]["pending"]) == 30
    assert "and 25 more" in run("reconcile", "--dry-run").out
    (done,) = run("reconcile", "--json").rows
    assert done["changed"] > 10
    assert run("verify", "--json").rows[0]["differences"] == 0


def test_erase_forgets_in_both_stores_and_asks_first(run: Run, project: Path) -> None:
    customer = one_customer(project)
    words = ["erase", "--entity", f"customer_id={customer}"]
    refused = run(*words, code=1)
    assert "Nothing was erased" in refused.said
    assert f"Try: feature-assets erase --entity customer_id={customer} --yes" in refused.said
    (row,) = run(*words, "--yes", "--vacuum", "--json").rows
    assert row["view"] == "customer_orders"
    assert row["offline_rows"] > 0
    assert row["online_rows"] == 1
    assert run(*words, "--yes", "--json").rows == []
    found = run("get", "online", "customer_orders:spent_7d", "-e", f"customer_id={customer}", "--json").rows
    assert found[0]["features"]["spent_7d"]["status"] == "NOT_FOUND"
    assert run("verify", "--json").rows[0]["differences"] == 0
    assert not any(customer.encode() in file.read_bytes() for file in project.rglob("*.parquet"))


def test_vacuum_removes_what_nobody_needs(run: Run, project: Path) -> None:
    run("materialize", "customer_orders", "--latest")
    (row,) = run("vacuum", "--older-than", "0", "--dry-run", "--json").rows
    assert row["removed"] >= 1
    assert str(row["removed"]) in run("vacuum", "customer_orders", "--older-than", "0").out
    before = run("vacuum", "--dry-run", "--json").rows[0]["files"]
    assert run("vacuum", "--older-than", "0", "--compact", "--json").rows[0]["files"] <= before
    assert run("verify", "--json").rows[0]["differences"] == 0


def test_vacuum_keeps_what_training_sets_need_until_it_is_told_to_give_them_up(
    run: Run, project: Path, spine: Path
) -> None:
    run("training", "save", "old", "customer_orders:orders_7d", "--spine", str(spine))
    run("materialize", "customer_orders", "--latest")
    run("training", "save", "new", "customer_orders:orders_7d", "--spine", str(spine))
    found = run("training", "diff", "old", "new", "--json").rows
    assert [view["what"] for view in found["views"]] == ["customer_orders@v1"]
    assert "old and new have the same rows" in run("training", "diff", "old", "new").out
    (row,) = run("vacuum", "--older-than", "0", "--json").rows
    assert (row["kept_for"], row["given_up"]) == (["old"], [])
    assert "old" in run("vacuum", "--older-than", "0").out
    run("training", "rebuild", "old")
    (row,) = run("vacuum", "--older-than", "0", "--give-up-sets", "--json").rows
    assert (row["removed"] >= 1, row["kept_for"], row["given_up"]) == (True, [], ["old"])
    assert "have been vacuumed" in run("training", "rebuild", "old", code=1).said
    for name in ("old", "new"):
        run("training", "delete", name, "--yes")


def test_sets_with_other_rows_are_told_apart(run: Run, project: Path, spine: Path) -> None:
    for name, feature in (("money", "spent_7d"), ("count", "orders_7d")):
        run("training", "save", name, f"customer_orders:{feature}", "--spine", str(spine))
    told = run("training", "diff", "money", "count", code=1).out
    assert "spent_7d" in told
    assert "0 rows changed, 0 added, 0 removed" in told
    assert "Did you mean 'money'" in run("training", "diff", "money", "mony", code=1).said
    for name in ("money", "count"):
        run("training", "delete", name, "--yes")


def test_erase_needs_somebody_to_forget(run: Run, looking: Path) -> None:
    assert "Say whom to forget" in run("erase", code=1).said
    assert "'name' is none of the names" in run("erase", "-e", "name=x", code=1).said


# doctor, auth, demo


def test_doctor_finds_all_well(run: Run, looking: Path) -> None:
    assert "All is well." in run("doctor").out
    rows = run("doctor", "--json").rows
    assert {row["state"] for row in rows} <= {"ok", "note"}
    assert {row["what"] for row in rows} >= {
        "settings",
        "definitions",
        "registry",
        "published as declared",
        "offline store",
        "online store",
        "dagster",
        "versions",
    }


def test_doctor_names_each_problem_with_its_mend(run: Run, project: Path) -> None:
    (project / "definitions.py").write_text("import nothing_of_the_kind\n")
    log = next(project.glob(".feature_assets/offline/customer_orders/v1/_delta_log/*.json"))
    log.write_bytes(log.read_bytes()[:50])
    (project / ".feature_assets" / "online.db").write_bytes(b"no database at all" * 300)
    done = run("doctor", "--json", code=1)
    problems = {row["what"] for row in done.rows if row["state"] == "problem"}
    assert problems >= {"definitions", "offline store", "online store"}
    assert "problems." in run("doctor", code=1).out


def _emptied(log: list[Path]) -> str:
    log[-1].write_bytes(b"")
    return f"{log[-1].name} is empty"


def _cut(log: list[Path]) -> str:
    log[-1].write_bytes(log[-1].read_bytes()[:60])
    return f"{log[-1].name} is cut off"


def _holed(log: list[Path]) -> str:
    log[0].unlink()
    return f"{log[0].name} is missing"


def _shortened(log: list[Path]) -> str:
    log[-1].unlink()
    return "its log lost its end"


@pytest.mark.parametrize("damage", [_emptied, _cut, _holed, _shortened])
def test_doctor_says_what_is_damaged_also_where_delta_would_not_notice(
    run: Run, project: Path, damage: Callable[[list[Path]], str]
) -> None:
    found = damage(sorted(project.glob(".feature_assets/offline/customer_orders/v1/_delta_log/*.json")))
    problems = [row["found"] for row in run("doctor", "--json", code=1).rows if row["state"] == "problem"]
    assert any(found in problem for problem in problems), problems
    assert not any("feature-assets doctor" in problem for problem in problems), "that is what was just run"


def test_clients_come_and_go(run: Run, project: Path) -> None:
    added = run("auth", "client", "add", "scoring", "--scope", "features:read", "--json").rows
    assert len(added["client_secret"]) > 30
    (listed,) = run("auth", "client", "list", "--json").rows
    assert (listed["client_id"], listed["scopes"]) == (added["client_id"], ["features:read"])
    assert added["client_secret"] not in json.dumps(listed)
    assert added["client_id"] in run("auth", "client", "list").out
    claims = ("--role", "risk", "--role", "fraud", "--claim", "tenant=acme", "--claim", "level=3")
    given = run("auth", "client", "add", "acme", "-s", "features:read", *claims, "--json").rows
    assert given["claims"] == {"roles": ["risk", "fraud"], "tenant": "acme", "level": 3}
    assert "roles=risk,fraud" in run("auth", "client", "list").out
    token = run("auth", "token", "-s", "features:read", "--client", given["client_id"], "--claim", "level=4").out
    said = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert (said["roles"], said["tenant"], said["level"]) == (["risk", "fraud"], "acme", 4)
    assert "'--claim tenant' names no" in run("auth", "token", "-s", "admin", "--claim", "tenant", code=1).said
    run("auth", "client", "remove", given["client_id"], "--yes")
    assert "'bogus' is not a scope" in run("auth", "client", "add", "x", "--scope", "bogus", code=1).said
    assert "Nothing was removed" in run("auth", "client", "remove", added["client_id"], code=1).said
    run("auth", "client", "remove", added["client_id"], "--yes")
    assert run("auth", "client", "list", "--json").rows == []
    assert "There is no client" in run("auth", "client", "remove", "nobody", "--yes", code=1).said
    assert "cannot be shown again" in run("auth", "client", "add", "other", "-s", "features:read").said


def test_keys_are_listed_and_replaced(run: Run, project: Path) -> None:
    (first,) = run("auth", "key", "list", "--json").rows
    assert first["signs"]
    assert first["created_at"]
    assert "Tokens are signed with" in run("auth", "key", "rotate").out
    signing, former = run("auth", "key", "list", "--json").rows
    assert (signing["signs"], former["signs"], former["key_id"]) == (True, False, first["key_id"])
    assert former["checks_until"]
    assert signing["key_id"] in run("auth", "key", "list").out
    assert "Nothing was changed" in run("auth", "key", "rotate", "--at-once", code=1).said
    assert "within 5 seconds" in run("auth", "key", "rotate", "--at-once", "--yes").said
    assert len(run("auth", "key", "list", "--json").rows) == 1


def test_a_token_is_made_for_the_server_here(run: Run, project: Path) -> None:
    made = run("auth", "token", "--scope", "features:read", "--lifetime", "60", "--json").rows
    assert made["expires_in"] == 60
    assert made["access_token"].count(".") == 2
    assert run("auth", "token", "-s", "features:read").out.count(".") == 2
    settings = project / "feature_assets.toml"
    settings.write_text(settings.read_text() + '\nissuer = "https://login.example.com"\naudience = "a"\n')
    assert "come from https://login.example.com" in run("auth", "token", "-s", "features:read", code=1).said


def test_serve_opens_to_nobody_else_without_an_issuer(run: Run, looking: Path) -> None:
    assert "opens the server to others" in run("serve", "--host", "0.0.0.0", code=1).said


def test_the_demo_is_run_where_it_is(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, called = "examples.nyc_flights.demo", []
    example = module_from_spec(ModuleSpec(name, None))
    example.main = lambda: called.append(True)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, example)
    run("demo")
    assert called == [True]
    monkeypatch.setitem(sys.modules, name, None)
    assert "Try: feature-assets init shop" in run("demo", code=1).said
