"""What a person meets at a prompt: a new project by its own README, and the server."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date, timedelta
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import first_day

# The projects of the fixtures take seconds to make: one worker makes them once.
pytestmark = pytest.mark.xdist_group("cli processes")

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "feature_assets.cli"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "FEATURE_ASSETS_DURABILITY": "process"}


def typed(line: str, folder: Path) -> str:
    """Run one line of a shell; what it printed on stdout."""
    words = shlex.split(line, comments=True)
    assert words[0] == "feature-assets"
    done = subprocess.run(
        [*PROGRAM, *words[1:]], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


def test_a_new_project_does_what_its_readme_says(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    typed("feature-assets init shop", tmp_path)
    block = (folder / "README.md").read_text().split("```bash\n")[1].split("```")[0]
    said = {line.split()[1]: typed(line, folder) for line in block.strip().splitlines()}
    assert list(said) == ["plan", "apply", "materialize", "get", "verify"]
    assert "4 added" in said["plan"]
    assert "✓ Published" in said["apply"]
    assert "30" in said["materialize"]
    assert "basket_ratio" in said["get"]
    assert "equal" in said["verify"]
    assert (folder / ".dagster" / "history").is_dir()


def test_dagster_finds_the_project_by_its_workspace(shop: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"],
        cwd=shop,
        env={**environment(), "DAGSTER_HOME": str(shop / ".dagster")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Validation successful for code location shop" in done.stderr + done.stdout


@contextmanager
def server(folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen([*PROGRAM, "serve", "--port", str(port)], cwd=folder, env=environment()) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(400):
                with suppress(httpx.TransportError):
                    if httpx.get(f"{url}/health").is_success:
                        break
                assert process.poll() is None
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()


def test_the_server_takes_the_tokens_that_are_made_here(shop: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(shop, folder, symlinks=True)
    token = typed("feature-assets auth token --scope features:read", folder).strip()
    question = {"features": ["customer_orders:orders_7d"], "entities": {"customer_id": ["nobody"]}}
    with server(folder) as url:
        assert httpx.post(f"{url}/get-online-features", json=question).status_code == 401
        answer = httpx.post(
            f"{url}/get-online-features", json=question, headers={"Authorization": f"Bearer {token}"}
        ).raise_for_status()
    assert answer.json()["results"][-1]["statuses"] == ["NOT_FOUND"]


def test_ctrl_c_says_how_to_go_on(shop: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(shop, folder, symlinks=True)
    file = folder / "definitions.py"
    wait = "    import pathlib, time\n    pathlib.Path('begun').touch()\n    time.sleep(60)\n    window ="
    file.write_text(file.read_text().replace("    window =", wait))
    words = ["backfill", "customer_orders", first_day(folder), "--per-partition"]
    with subprocess.Popen(
        [*PROGRAM, *words], cwd=folder, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        while not (folder / "begun").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    # All of it was there before, so that nothing is missing: what was not done yet is named.
    last = date.fromisoformat(first_day(folder)) + timedelta(days=29)
    attempt = f"feature-assets backfill customer_orders {first_day(folder)} {last} --per-partition"
    assert err == f"Stopped.\nTry:   {attempt}\n"


def test_a_process_ends_with_1_and_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "plan"], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["Error", "Try"]


def test_ctrl_c_leaves_a_file_as_it_was(shop: Path, tmp_path: Path) -> None:
    folder = with_cents(
        shop, tmp_path, "import pathlib, time\n    pathlib.Path('begun').touch()\n    time.sleep(60)\n    "
    )
    (folder / "rows.csv").write_text("before")
    words = ["get", "historical", "cents:last_cents", "--since", first_day(folder), "--output", "rows.csv"]
    with subprocess.Popen(
        [*PROGRAM, *words], cwd=folder, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        while not (folder / "begun").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "Stopped.\n")
    assert (folder / "rows.csv").read_text() == "before"
    assert not list(folder.glob(".rows*"))


def test_ctrl_c_while_commands_are_loaded_is_no_traceback() -> None:
    stopped = """
import sys
class Stop:
    def find_spec(self, name, *_):
        if name == "feature_assets.cli.program":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Stop())
from feature_assets.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", stopped], env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_while_workers_are_started_is_the_parents_to_hear(looking: Path) -> None:
    """A terminal sends it to every process; one that still loads would show where it was torn out."""
    words = ["serve", "--port", "0", "--workers", "2"]
    with subprocess.Popen(
        [*PROGRAM, *words], cwd=looking, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        said = [next(line for line in process.stderr if "Started parent process" in line)]
        time.sleep(0.4)
        os.killpg(process.pid, signal.SIGINT)
        said += process.stderr.readlines()
    assert process.returncode == 0
    assert "Traceback" not in "".join(said)


def test_the_installed_command_finds_functions_in_the_project(shop: Path, tmp_path: Path) -> None:
    """It starts with its own folder on the path, not with the one that it is called in."""
    folder = with_cents(shop, tmp_path)
    program = [sys.executable, "-P", "-m", "feature_assets.cli"]
    for words in (["plan"], ["get", "online", "cents:last_cents", "--entity", "customer_id=c1", "--json"]):
        done = subprocess.run(
            [*program, *words], cwd=folder, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "last_cents" in done.stdout


def with_cents(shop: Path, tmp_path: Path, first: str = "") -> Path:
    """The shop, published with a function on demand that lies in its folder and does this first."""
    folder = tmp_path / "shop"
    shutil.copytree(shop, folder, symlinks=True)
    (folder / "cents.py").write_text(
        f"def in_cents(inputs):\n    {first}return {{'last_cents': round(100 * (inputs['last_amount'] or 0))}}\n"
    )
    definitions = folder / "definitions.py"
    declared = (
        "from cents import in_cents\n\ncents = OnDemandFeatureView('cents', sources=[customer_orders[['last_amount']]], "
        "schema=[Field('last_cents', Int64)], function=in_cents, mode='row')\n\n"
    )
    text = definitions.read_text().replace("customer_value])", "customer_value, cents])")
    definitions.write_text(text.replace("defs = feature", declared + "defs = feature"))
    settings = folder / "feature_assets.toml"
    settings.write_text('functions = ["cents"]\n' + settings.read_text())
    done = subprocess.run(
        [*PROGRAM, "apply"], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


INTERRUPTED = """
import sqlite3
import sys

import sqlalchemy

from feature_assets.cli.runs import quiet_dagster


class Interrupted(sqlite3.Connection):
    def close(self):
        raise KeyboardInterrupt


if sys.argv[1] == "quiet":
    quiet_dagster()
pool = {"poolclass": sqlalchemy.NullPool, "connect_args": {"factory": Interrupted}}
try:
    with sqlalchemy.create_engine("sqlite://", **pool).connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.parametrize("how", ["quiet", "as it is"])
def test_a_connection_that_ctrl_c_meets_while_it_is_closed_prints_no_traceback(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, how], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout == "stopped\n"
    assert ("Traceback" in done.stderr) is (how == "as it is")
