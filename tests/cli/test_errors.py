"""A person's mistake is one line and the next thing to type; a traceback is for --debug."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from feature_assets.cli import failures
from feature_assets.errors import NotPublished, RequestError, TableMissing
from tests.cli.conftest import Run

pytestmark = pytest.mark.xdist_group("cli")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "error,line,attempt",
    [
        (NotPublished.at("/x"), "No registry has been published at /x.", "feature-assets apply"),
        (
            TableMissing.of("v", 1, "offline"),
            "View 'v' (version 1) has no table in the offline store: it was never materialised.",
            "feature-assets materialize v --latest",
        ),
        (RequestError("Plain words."), "Plain words.", ""),
        (RequestError("Name it. See: feature-assets registry history"), "Name it.", "feature-assets registry history"),
        (failures.Mistake("Wrong.", attempt="feature-assets plan"), "Wrong.", "feature-assets plan"),
    ],
)
def test_the_mend_of_a_message_is_the_next_thing_to_type(error: Exception, line: str, attempt: str) -> None:
    assert failures.told(error) == (line, attempt)


@pytest.mark.parametrize(
    "words,message,attempt",
    [
        (["plan", "--jsn"], "No such option: --jsn", "feature-assets plan --help"),
        (["plans"], "No such command 'plans'. Did you mean 'plan'?", "feature-assets --help"),
        (["registry", "lst"], "No such command 'lst'. Did you mean 'list'?", "feature-assets registry --help"),
        (["materialize"], "Missing argument 'VIEW'.", "feature-assets materialize --help"),
        (["get", "online", "x", "--entity", "y"], "'y' is not NAME=VALUE", "feature-assets get online --help"),
        (["plan", "--debug"], "No such option: --debug", "feature-assets --debug plan"),
        (["plan", "--config", "a.toml"], "No such option: --config", "feature-assets --config a.toml plan"),
    ],
)
def test_a_command_typed_wrongly_ends_with_2(
    run: Run, looking: Path, words: list[str], message: str, attempt: str
) -> None:
    refused = run(*words, code=2)
    assert message in refused.said
    assert refused.said.endswith(f"Try: {attempt}")
    assert refused.out == ""


def test_an_error_on_a_pipe_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = run("verify", code=1).err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["Error", "Try"]
    assert lines[1] == "Try:   feature-assets init"


def test_debug_shows_the_traceback(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotPublished):
        run("--debug", "verify")


@pytest.mark.parametrize(
    "text,message",
    [
        (
            "import nothing_of_the_kind",
            "ModuleNotFoundError: No module named 'nothing_of_the_kind' (definitions.py, line 1)",
        ),
        ("x = 1\ndefs = (", "SyntaxError: '(' was never closed (definitions.py, line 2)"),
        ("x = {}['y']", "KeyError: 'y' (definitions.py, line 1)"),
        ("x = 1", "has no Dagster Definitions. Add: defs = feature_definitions(assets=[…])"),
        ("import sys\nsys.exit('no')", "SystemExit: no (definitions.py, line 2)"),
        (
            "from feature_assets import Entity\nEntity('a', {})",
            "Entity 'a' has no join keys. Name each with its type: join_keys={'a_id': String}. (definitions.py, line 2)",
        ),
        (
            "import dagster as dg\na = dg.Definitions()\nb = dg.Definitions()",
            "has 2 Definitions. Call the one to use 'defs'.",
        ),
    ],
)
def test_definitions_that_cannot_be_loaded_are_told_with_their_place(
    run: Run, project: Path, text: str, message: str
) -> None:
    (project / "definitions.py").write_text(text + "\n")
    refused = run("plan", code=1)
    assert message in refused.said
    assert "Traceback" not in refused.err


def test_without_definitions_it_is_said_how_to_start(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused = run("plan", code=1)
    assert f"There is no definitions.py in {tmp_path}" in refused.said
    assert refused.said.endswith("Try: feature-assets init")


def test_definitions_may_be_a_module(run: Run, project: Path) -> None:
    (project / "shop").mkdir()
    (project / "shop" / "__init__.py").write_text("")
    (project / "shop" / "platform.py").write_text((project / "definitions.py").read_text())
    settings = project / "feature_assets.toml"
    settings.write_text(settings.read_text().replace('"definitions.py"', '"shop.platform"'))
    assert run("plan", "--json").rows == []
    settings.write_text(settings.read_text().replace('"shop.platform"', '"shopp"'))
    assert f"There is no module 'shopp' below {project}" in run("plan", code=1).said


def test_other_settings_are_found_from_anywhere(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    config = str(project / "feature_assets.toml")
    assert run("--config", config, "materialize", "customer_orders", "--latest", "--json").rows[0]["rows"] > 0
    assert "is not there" in run("--config", "/nowhere.toml", "plan", code=1).said


def test_a_setting_that_is_none_is_named(run: Run, project: Path) -> None:
    settings = project / "feature_assets.toml"
    settings.write_text('onlin = "sqlite:x.db"\n')
    assert "'onlin' is not a setting. Known: " in run("verify", code=1).said


def test_definitions_over_other_stores_are_refused_before_anything_runs(run: Run, project: Path) -> None:
    (project / "other.toml").write_text('online = "sqlite:other.db"\n')
    text = (project / "definitions.py").read_text()
    (project / "definitions.py").write_text(text.replace("customer_value])", 'customer_value], config="other.toml")'))
    refused = run("materialize", "customer_orders", "--latest", code=1)
    assert "The definitions keep 'online' at" in refused.said
    assert not (project / "other.db").exists()


def test_who_has_read_enough_may_close_the_pipe(looking: Path) -> None:
    command = f"{sys.executable} -m feature_assets.cli features list --json | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=looking,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[\n"
    assert done.stderr == ""
