"""Dagster's own commands on the example platform, in processes of their own, as a person types them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.nyc_flights.views import airport_weather
from feature_assets.offline import OfflineStore

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The stores and Dagster's storage in a folder of their own."""
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    return {
        "DAGSTER_HOME": str(home),
        "FEATURE_ASSETS_OFFLINE": str(tmp_path / "offline"),
        "FEATURE_ASSETS_ONLINE": f"sqlite:{tmp_path / 'online.db'}",
        "FEATURE_ASSETS_REGISTRY": str(tmp_path / "registry"),
        "FEATURE_ASSETS_DURABILITY": "process",
    }


def command(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=ROOT,
        env={**os.environ, **environment, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def partitions(environment: dict[str, str]) -> dict[str, int]:
    """The rows of each partition of `airport_weather`, offline."""
    state = OfflineStore(environment["FEATURE_ASSETS_OFFLINE"]).state(airport_weather.spec)
    assert state is not None
    return dict(state.rows_by_partition)


def test_dagster_asset_materialize(environment: dict[str, str]) -> None:
    materialize = ("dagster", "asset", "materialize", "-f", "definitions.py", "--select", "airport_weather")
    one = command(environment, *materialize, "--partition", "2013-02-08")
    assert one.returncode == 0, one.stderr[-2000:]
    several = command(environment, *materialize, "--partition-range", "2013-02-09...2013-02-10")
    assert several.returncode == 0, several.stderr[-2000:]
    assert partitions(environment) == dict.fromkeys(("2013-02-08", "2013-02-09", "2013-02-10"), 72)


def test_dg_launch(environment: dict[str, str]) -> None:
    launched = command(environment, "dg", "launch", "--assets", "airport_weather", "--partition", "2013-02-08")
    assert launched.returncode == 0, launched.stderr[-2000:]
    assert partitions(environment) == {"2013-02-08": 72}
