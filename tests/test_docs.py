"""Every example in the README and the docs is run, every link leads somewhere, every list is complete.

A page's blocks are done in their order, in a folder of the page's own: see `tests/docs/reader.py`.
"""

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

import feature_assets
from feature_assets.config import ServerSettings, Settings, StreamSettings
from tests.cli.test_help import commands
from tests.docs.pages import ROOT, Page, pages
from tests.docs.reader import Reader, alike, tutorial_project
from tests.streams.broker import running

PAGES = pages()
MOST_NOT_RUN = 8
"""Blocks that are shown and not run. A number that grows says that the docs promise more than anybody checks."""


def _first_cells() -> list[str]:
    """The first cells of all tables in the reference of Python names."""
    text = (ROOT / "docs" / "reference" / "python.md").read_text()
    return re.findall(r"^\| (`.*?`[^|]*) \|", text, re.MULTILINE)


@pytest.fixture(scope="session")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of the tutorial, which the how-to pages continue."""
    return tutorial_project(tmp_path_factory.mktemp("tutorial"))


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 with a bucket."""
    command = [sys.executable, "-m", "tests.objects.s3_server"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        address = f"127.0.0.1:{int(server.stdout.readline())}"
        urlopen(Request(f"http://{address}/features", method="PUT"), timeout=20).close()
        yield address
        server.kill()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker with a topic."""
    with running(tmp_path_factory.mktemp("kafka")) as broker:
        broker.make("trips")
        yield broker.properties["bootstrap.servers"]


@pytest.fixture
def folder(page: Page, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder that the page works in."""
    made = tmp_path / "flights"
    if page.project:
        shutil.copytree(request.getfixturevalue(page.project), made, symlinks=True)
    else:
        made.mkdir()
    return made


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples(page: Page, folder: Path, request: pytest.FixtureRequest) -> None:
    needed = {name: request.getfixturevalue(name) for name in ("s3", "kafka") if getattr(page, f"needs_{name}")}
    reader = Reader(page, folder, **needed)
    try:
        for block in page.blocks:
            if not block.not_run:
                reader.read(block)
    finally:
        reader.leave()


def test_few_blocks_are_not_run() -> None:
    not_run = [f"{page.name}:{block.line}: {block.not_run}" for page in PAGES for block in page.blocks if block.not_run]
    assert len(not_run) <= MOST_NOT_RUN, "\n".join(not_run)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Page) -> None:
    for link in page.links:
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.path.parent / target).resolve() if target else page.path
        assert path.exists(), f"{page.name} leads to {link}, which is not there"
        if anchor:
            assert anchor in Page(path).anchors, f"{page.name} leads to {link}; {path.name} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_named_in_sentences_are_there(page: Page) -> None:
    known = dict(commands())
    for typed in re.findall(r"`feature-assets ([^`\n]+)`", page.text):
        path: tuple[str, ...] = ()
        for word in typed.split():
            path = (*path, word) if (*path, word) in known else path
        options = {option for at in ((), path) for one in known[at].params for option in one.opts}
        assert path or typed.startswith("-"), f"{page.name}: there is no command `feature-assets {typed}`"
        assert set(re.findall(r"--[\w-]+", typed)) <= options, f"{page.name}: `feature-assets {typed}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_can_be_found(page: Page) -> None:
    if page.path in (ROOT / "README.md", ROOT / "docs" / "index.md"):
        return
    index = ROOT / "docs" / "index.md"
    found = {(index.parent / link.partition("#")[0]).resolve() for link in Page(index).links}
    assert page.path in found, f"docs/index.md does not name {page.name}"


def test_public_names_are_listed() -> None:
    """`docs/reference/python.md` names what `feature_assets` offers."""
    listed = [name for cell in _first_cells() for name in re.findall(r"`(\w+)(?:\(.*\))?`", cell)]
    parameters = set(inspect.signature(feature_assets.feature_view).parameters)
    assert sorted(set(listed) - parameters) == sorted(feature_assets.__all__)


@pytest.mark.parametrize(
    "shown", [call for cell in _first_cells() for call in re.findall(r"`(\w[\w.]*\(.*?\))`", cell)]
)
def test_what_a_public_name_takes_is_as_it_is_listed(shown: str) -> None:
    name, _, parameters = shown.partition("(")
    thing = feature_assets
    for part in name.split("."):
        thing = getattr(thing, part)
    scope: dict[str, Any] = {"timedelta": timedelta, "JsonFormat": feature_assets.JsonFormat}
    exec(f"def listed({parameters}: ...", scope)  # noqa: S102 (to read it as Python reads it)
    listed = inspect.signature(scope["listed"])
    assert _plain(listed) == _plain(inspect.signature(thing))


def _plain(signature: inspect.Signature) -> list[tuple[str, str, str]]:
    """Names, kinds and defaults; a default that is made anew each time stands as `{}`."""
    return [
        (one.name, one.kind.name, "{}" if str(one.default) == "<factory>" else repr(one.default))
        for one in signature.parameters.values()
        if one.name != "self"
    ]


def test_the_parameters_of_a_view_are_listed() -> None:
    text = (ROOT / "docs" / "reference" / "python.md").read_text()
    table = text.partition("Parameters of `feature_view`:")[2].partition("##")[0]
    listed = re.findall(r"^\| `\**(\w+)`", table, re.MULTILINE)
    assert listed == list(inspect.signature(feature_assets.feature_view).parameters)


def test_settings_are_listed_with_default_and_variable() -> None:
    """`docs/reference/configuration.md` is in step with `config.py`."""
    text = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    rows = {
        cells[0].strip("` "): (cells[1].strip("` "), cells[2].strip("` "))
        for line in text.splitlines()
        if line.startswith("| `") and len(cells := line.strip("|").split(" | ")) == 4
    }
    assert rows == {name: (default, variable) for name, default, variable in _settings()}


def _settings() -> Iterator[tuple[str, str, str]]:
    """Every setting, its default as TOML, its variable."""
    for name, field in Settings.model_fields.items():
        if name in ("server", "stream"):
            continue
        default = "the file's folder" if name == "root" else _toml(field.default)
        yield name, default, f"FEATURE_ASSETS_{name.upper()}"
    for room, settings in (("server", ServerSettings), ("stream", StreamSettings)):
        for name, field in settings.model_fields.items():
            yield f"{room}.{name}", _toml(field.default), f"FEATURE_ASSETS_{room.upper()}__{name.upper()}"


def _toml(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return f'"{value}"'
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(
    "expected, found, same",
    [
        ("a  b\n", "a b\n", True),
        ("in … s\n", "in 0.4 s\n", True),
        ("in … s\n", "in 0.4 s\nmore\n", False),
        ("first\n…\nlast\n", "first\nx\ny\nlast\n", True),
        ("first\n…\nlast\n", "first\nlast\n", True),
        ("── a\n", "───── a\n", True),
        ("1 row\n", "2 rows\n", False),
        ("a long\nline\n", "a long line\n", True),
        ("a longline\n", "a long\nline\n", False),
        ("…\n", "", True),
    ],
)
def test_output_is_compared_as_a_person_would(expected: str, found: str, same: bool) -> None:
    assert alike(expected, found) is same
