"""A publisher is killed after its Delta commit: before it is online, or in the middle. What is served, and what mends it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from feature_assets.online.dynamodb import catalogue
from feature_assets.settlement import pending, reconcile, verify
from tests.aws_server import aws_server
from tests.promises.published import CASES, Platform

DAYS = CASES["days"].partitions
KEYS = ("a", "b", "ab", "")

# Kills itself before the call of that name and number, which is the first that it does not live to make.
PUBLISHER = """
import os, signal, sys
from pathlib import Path
from tests.promises.published import CASES, Platform
folder, url, where, name, number = sys.argv[1:]
here, left = Platform(CASES["days"], Path(folder), url), [int(number)]
of = type(here.online) if where == "store" else type(here.online._calls)
real = getattr(of, "write" if where == "store" else "call")

def dies(self, *arguments, **options):
    if where == "store" or (arguments[0] == name and options.get("TableName", "").endswith(".v1")):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *arguments, **options)

setattr(of, "write" if where == "store" else "call", dies)
here.publish({CASES["days"].partitions[0]: [((key,), 60, None, 2) for key in ("a", "b", "ab")]})
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_server() as found:
        yield found


@pytest.fixture(params=["sqlite", "dynamodb"])
def here(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    url = f"sqlite:{tmp_path / 'online.db'}"
    if request.param == "dynamodb":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        endpoint = request.getfixturevalue("endpoint")
        url = f"dynamodb:t{uuid4().hex[:10]}?region=us-east-1&endpoint={endpoint}&consistent=true&concurrency=1"
    platform = Platform(CASES["days"], tmp_path, url)
    # Of every key there is a row; the second publication has no row of the last one.
    platform.publish({DAYS[0]: [((key,), 0, None, 1) for key in KEYS]})
    yield platform
    platform.online.close()


def killed(here: Platform, where: str, name: str = "", number: int = 0) -> None:
    words = [sys.executable, "-c", PUBLISHER, str(here.folder), here.online_url, where, name, str(number)]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], env=os.environ.copy(), check=False)
    assert done.returncode == -signal.SIGKILL


def served(here: Platform) -> dict[str, int | None]:
    reader = here.online.reader(here.view, ["temp"])
    return dict(zip(KEYS, reader([(key,) for key in KEYS])[1][0], strict=True))


def is_mended_by_one_reconcile(here: Platform) -> None:
    assert pending(here.view, here.offline, here.online) == (DAYS[0],)
    assert verify(here.view, here.offline, here.online).total > 0
    assert reconcile(here.view, here.offline, here.online).pending == (DAYS[0],)
    assert verify(here.view, here.offline, here.online).total == 0
    assert served(here) == {"a": 2, "b": 2, "ab": 2, "": None}


def test_killed_before_it_is_online_the_former_rows_are_served(here: Platform) -> None:
    killed(here, "store")
    assert served(here) == dict.fromkeys(KEYS, 1)
    assert {row["temp"] for row in here.offline.scan(here.view).collect().iter_rows(named=True)} == {2}
    is_mended_by_one_reconcile(here)
    assert pending(here.view, here.offline, here.online) == ()


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("here", ["dynamodb"], indirect=True)
def test_killed_between_two_rows_each_row_is_a_whole_one(
    here: Platform, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(here, "calls", "put_item", number)
    assert sorted(served(here).values()) == [1] * (4 - number) + [2] * number
    is_mended_by_one_reconcile(here)
    assert pending(here.view, here.offline, here.online) == (DAYS[0],), "nobody knows yet that its writer is dead"
    monkeypatch.setattr(catalogue, "SECONDS_TO_EXPIRE", -1.0)
    reconcile(here.view, here.offline, here.online)
    assert pending(here.view, here.offline, here.online) == ()
    assert verify(here.view, here.offline, here.online).total == 0


@pytest.mark.parametrize("here", ["dynamodb"], indirect=True)
def test_killed_while_rows_are_taken_back_the_gap_shows_and_is_closed(
    here: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(here, "calls", "delete_item", 0)
    assert served(here) == {"a": 2, "b": 2, "ab": 2, "": 1}
    monkeypatch.setattr(catalogue, "SECONDS_TO_EXPIRE", -1.0)
    is_mended_by_one_reconcile(here)
    assert pending(here.view, here.offline, here.online) == ()
