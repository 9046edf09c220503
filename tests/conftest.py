"""What every test shares: a clean environment and Hypothesis profiles.

`HYPOTHESIS_PROFILE=quick` is for a first look, `thorough` for a night; `ci` is what `make test` runs.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before anything is imported that reads them: a test sees nothing of its user's platform, and reaches nothing outside.
# What begins with FEATURE_ASSETS_TEST_ is meant for the tests.
for name in list(os.environ):
    if name.startswith(("FEATURE_ASSETS_", "DAGSTER_")) and not name.startswith("FEATURE_ASSETS_TEST_"):
        del os.environ[name]
os.environ["DAGSTER_DISABLE_TELEMETRY"] = "yes"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"

# A shell has what runs in its background ignore Ctrl-C, and so would each process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Whoever of the tests imports it first: its assertions tell what they compared.
pytest.register_assert_rewrite("feature_assets.testing")

# No deadline: on a shared machine it fails tests for what others do. Not derandomized: each run looks somewhere new, and
# the printed blob brings a failure back.
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=False,
    print_blob=True,
    max_examples=60,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("quick", settings.get_profile("ci"), max_examples=10, stateful_step_count=15)
settings.register_profile("thorough", settings.get_profile("ci"), max_examples=2_000, stateful_step_count=100)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Coroutine tests run on asyncio, as the server does."""
    return "asyncio"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    if os.name == "nt" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small file system can only be mounted by root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)
