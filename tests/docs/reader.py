"""A reader who does all that a page says, in a folder of their own, and compares what comes out with what it shows."""

import io
import json
import linecache
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from feature_assets import Settings
from feature_assets.objects import open_objects
from feature_assets.online import open_online_store
from tests.docs.pages import ROOT, Block, Page
from tests.environment import become

_FILE = re.compile(r"# (?P<name>[\w./-]+\.\w+)(?P<more> \(continued\))?")
_ASSIGNED = re.compile(r"(?:export )?(?P<name>[A-Z_]+)=(?P<value>\S.*)")
_NEEDS_A_SHELL = re.compile(r"[|><&;]|\$\(")
_SERVER, _BUCKETS, _BROKER = "127.0.0.1:6566", "127.0.0.1:9000", "127.0.0.1:9092"
_METRICS = "--metrics-port 9108"


class Reader:
    """Follows one page. What blocks leave behind, the next ones find: files, variables, names, a running server."""

    def __init__(self, page: Page, folder: Path, *, s3: str = "", kafka: str = "") -> None:
        """`s3` is the address of the S3 that the page has at 127.0.0.1:9000, `kafka` of the broker at 127.0.0.1:9092."""
        self.page, self.folder = page, folder
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.printed: str | None = None
        self.port = _free_port()
        self._addresses = {
            _SERVER: f"127.0.0.1:{self.port}",
            _BUCKETS: s3 or _BUCKETS,
            _BROKER: kafka or _BROKER,
            _METRICS: f"--metrics-port {self.port}",
        }
        self.environment = {
            **os.environ,
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "PATH": f"{_programs(folder.parent / 'bin')}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "FEATURE_ASSETS_SERVER__PORT": str(self.port),
        }
        self._running: list[subprocess.Popen[bytes]] = []
        self._do: dict[str, Callable[[Block], None]] = {
            "python": self._python,
            "output": self._output,
            "console": self._console,
            "toml": self._toml,
            "diff": self._diff,
            "json": lambda block: json.loads(block.text),
            "yaml": lambda block: yaml.safe_load(block.text),
            "text": lambda block: None,
            "mermaid": lambda block: None,
        }

    def read(self, block: Block) -> None:
        """Do what the block says."""
        assert block.language in self._do, f"{self._place(block)}: nobody knows how to run '{block.language}'"
        with self._at_work():
            self._do[block.language](block)

    def leave(self) -> None:
        """End what still runs."""
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.wait(timeout=20)
        self._running.clear()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """In the page's folder and environment, as a process of its own would be: nothing known of earlier ones."""
        before, place, path = dict(os.environ), Path.cwd(), list(sys.path)
        bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        self._forget()
        become(self.environment)
        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder))
        try:
            yield
        finally:
            os.chdir(place)
            become(before)
            sys.path[:] = path
            sys.dont_write_bytecode = bytecode
            self._forget()

    def _forget(self) -> None:
        from feature_assets.assets import resources

        resources._settings.cache_clear()
        resources._online.cache_clear()
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(f"{self.folder}{os.sep}"):
                del sys.modules[name]

    def _place(self, block: Block, line: int = 0) -> str:
        return f"{self.page.name}:{block.line + line}"

    def _written(self, block: Block) -> bool:
        """Whether the block is a file, whose name stands in its first line; it is written."""
        first, _, _ = block.text.partition("\n")
        found = _FILE.fullmatch(first)
        if not found:
            return False
        path = self.folder / found["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if found["more"]:
            with path.open("a", encoding="utf-8") as file:
                file.write("\n\n" + block.text.partition("\n")[2].lstrip("\n"))
        else:
            path.write_text(block.text, encoding="utf-8")
        return True

    def _python(self, block: Block) -> None:
        text = self._here(block.text)
        code = compile(text, f"<{self._place(block)}>", "exec")
        if self._written(block):
            return
        # Views are versioned by the source of their function, which is looked up by the name of the file.
        linecache.cache[code.co_filename] = (
            len(text),
            None,
            text.splitlines(keepends=True),
            code.co_filename,
        )
        out = io.StringIO()
        with redirect_stdout(out):
            exec(code, self.names)  # noqa: S102 (this is what a reader does with it)
        self.printed = out.getvalue()

    def _output(self, block: Block) -> None:
        assert self.printed is not None, f"{self._place(block)}: there is no Python block before this output"
        self._compare(block.text, self.printed, self._place(block))

    def _toml(self, block: Block) -> None:
        """The block is read as settings, and the stores that they name are opened, which asks nobody anything."""
        place = self.folder / "feature_assets.toml" if self._written(block) else self.folder / ".shown.toml"
        place.write_text(self._here(block.text), encoding="utf-8")
        # The environment of the tests would win over what the page shows.
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("FEATURE_ASSETS_SERVER__PORT")
            settings = Settings.load(place)
            for store in (settings.offline, settings.registry, settings.training):
                open_objects(settings.place(store), settings.storage())
            open_online_store(settings.online_url)

    def _here(self, text: str) -> str:
        """The text with the addresses that servers have in this test."""
        for shown, real in self._addresses.items():
            text = text.replace(shown, real)
        return text

    def _diff(self, block: Block) -> None:
        """A change of a file, whose name stands in the first line: where the old lines stand, the new ones are put."""
        name, *lines = self._here(block.text).splitlines()
        path = self.folder / name.removeprefix(" ").removeprefix("# ")
        old = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
        new = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "-")
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, (
            f"{self._place(block)}: {text.count(old)} places in {path.name} are like this:\n{old}"
        )
        path.write_text(text.replace(old, new), encoding="utf-8")

    def _console(self, block: Block) -> None:
        for command, expected, line in _commands(block.text, self._place(block)):
            place = self._place(block, line)
            assigned = _ASSIGNED.fullmatch(command)
            if assigned:
                self.environment[assigned["name"]] = self._assigned(assigned["value"], place)
            elif command.endswith(" &"):
                self._serve(command.removesuffix(" &"), place)
            else:
                self._typed(command, expected, place)

    def _assigned(self, value: str, place: str) -> str:
        if value.startswith("$(") and value.endswith(")"):
            code, out = self._run(value[2:-1])
            assert code == 0, f"{place}: {value} failed:\n{out}"
            return out.strip()
        return _expanded(shlex.split(value)[0], {**self.environment, "PWD": str(self.folder)})

    def _typed(self, command: str, expected: str, place: str) -> None:
        code, out = self._run(command)
        meant_to_fail = bool(re.search(r"^(Error:|\d+ problems?\.)", expected, re.MULTILINE))
        assert (code != 0) == meant_to_fail, f"{place}: `{command}` ended with {code}:\n{out}"
        if expected:
            self._compare(expected, out, place)

    def _run(self, command: str) -> tuple[int, str]:
        """The exit code, and all that was printed."""
        words = shlex.split(command)
        if words[0] == "feature-assets" and not _NEEDS_A_SHELL.search(command):
            return self._in_process([_expanded(word, self.environment) for word in words[1:]])
        if words[0] == "cd":
            self.folder = (self.folder / words[1]).resolve()
            return int(not self.folder.is_dir()), ""
        if words[0] == "curl" and not shutil.which("curl"):
            pytest.skip("curl is not installed; the rest of the page was not run")
        command = self._here(command)
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            check=False,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout

    def _in_process(self, arguments: list[str]) -> tuple[int, str]:
        from feature_assets import cli

        out = io.StringIO()
        with self._at_work(), redirect_stdout(out), redirect_stderr(out):
            code = cli.run(arguments)
        return code, out.getvalue()

    def _serve(self, command: str, place: str) -> None:
        """Start a server; one that runs is stopped first, as there is one port."""
        self.leave()
        log = self.folder / ".server.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                shlex.split(self._here(command)), cwd=self.folder, env=self.environment, stdout=file, stderr=file
            )
        self._running.append(process)
        for _ in range(600):
            assert process.poll() is None, f"{place}: `{command}` ended with {process.returncode}:\n{log.read_text()}"
            # It listens when it has read the registry. Whether over TLS is not asked.
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
                return
            time.sleep(0.05)
        raise AssertionError(f"{place}: `{command}` does not answer:\n{log.read_text()}")

    def _compare(self, expected: str, found: str, place: str) -> None:
        expected = self._here(expected)
        assert alike(expected, found), (
            f"{place} shows\n\n{textwrap.indent(expected, '    ')}\nand what comes out is\n\n"
            f"{textwrap.indent(found, '    ')}"
        )


def tutorial_project(folder: Path) -> Path:
    """The project of the tutorial below the folder, as it is where the how-to pages take it up."""
    page = Page(ROOT / "docs" / "tutorial.md")
    until = page.text[: page.text.index("<!-- the how-to pages begin here -->")].count("\n")
    reader = Reader(page, folder)
    for block in page.blocks:
        if block.line < until and not block.not_run:
            reader.read(block)
    return reader.folder


def alike(expected: str, found: str) -> bool:
    """Whether the output is the one that is shown. `…` stands for anything in a line, alone in a line for any lines;
    how wide columns are, and where long lines are folded, is not compared.
    """
    pattern = ""
    for line in _plain(expected):
        if line == "…":
            pattern += r"(?:[^\n]*\n)*"
        else:
            pattern += re.escape(line).replace("…", r"[^\n]*") + r"[ \n]"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _plain(found))) is not None


def _plain(text: str) -> list[str]:
    lines = [re.sub(r"─+", "─", re.sub(r"\s+", " ", line)).strip() for line in text.strip().splitlines()]
    return [line for line in lines if line]


def _commands(text: str, place: str) -> Iterator[tuple[str, str, int]]:
    """Each command of a console block with the output that is shown for it, and the line that it stands in."""
    lines = text.splitlines()
    assert text.startswith("$ "), f"{place}: a console block starts with a command: $ …"
    starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    for start, following in zip(starts, [*starts[1:], len(lines)], strict=True):
        end = start + 1
        while lines[end - 1].endswith("\\"):
            end += 1
        parts = [line.removeprefix("$ ").removeprefix("> ").removesuffix("\\").strip() for line in lines[start:end]]
        command = re.sub(r"\s+#.*$", "", " ".join(parts))
        yield command, "\n".join(lines[end:following]), start


def _expanded(word: str, environment: dict[str, str]) -> str:
    return re.sub(r"\$\{?([A-Z_]+)\}?", lambda found: environment.get(found[1], ""), word)


def _programs(folder: Path) -> Path:
    """A folder with the programs that a reader has on the path."""
    folder.mkdir(exist_ok=True)
    for name, module in (("feature-assets", " -m feature_assets.cli"), ("python", ""), ("dagster", " -m dagster")):
        path = folder / name
        if not path.exists():
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n')
            path.chmod(0o755)
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
