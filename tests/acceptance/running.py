"""`feature-assets serve` as a person starts it, and what its processes take."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from feature_assets.config import FILE_NAME, Settings
from tests.server.conftest import Platform

MEGABYTE = 1 << 20


class Running(NamedTuple):
    """A server: where it answers, its process, the file of its log."""

    port: int
    pid: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def memory(self, name: str) -> int:
        """A size of the process in bytes, as `VmHWM` and `RssAnon` in /proc."""
        line = next(one for one in self._file("status").read_text().splitlines() if one.startswith(f"{name}:"))
        return int(line.split()[1]) * 1_024

    def forget_peak(self) -> None:
        """Have `VmHWM` begin anew with what the process has now."""
        self._file("clear_refs").write_text("5")

    def files(self) -> int:
        """How many files and sockets the process has open."""
        return len(list(self._file("fd").iterdir()))

    def _file(self, name: str) -> Path:
        return Path(f"/proc/{self.pid}/{name}")


def write_settings(settings: Settings) -> None:
    """The file of these settings in their folder."""
    given = settings.model_dump(mode="json", exclude_unset=True, exclude={"root", "server"})
    server = settings.server.model_dump(mode="json", exclude_unset=True)
    lines = [f"{name} = {json.dumps(value)}" for name, value in given.items()]
    lines += ["[server]", *(f"{name} = {json.dumps(value)}" for name, value in server.items())]
    (settings.root / FILE_NAME).write_text("\n".join([*lines, ""]))


async def ran(*words: str, folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """`feature-assets` in a folder: its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command_line(*words),
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


def command_line(*words: str) -> list[str]:
    """`feature-assets` with the Python that runs the tests."""
    return [sys.executable, "-m", "feature_assets.cli", *words]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def started(folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[Running]:
    """`feature-assets serve` in a folder with settings, until it answers; ended as Ctrl-C would."""
    port, log = free_port(), folder / "server.log"
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            command_line("serve", "--port", str(port), *options),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **(environment or {})},
            stdout=stderr,
            stderr=stderr,
        )
    try:
        answers(f"http://127.0.0.1:{port}/health", process, log)
        yield Running(port, process.pid, log)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) in (0, 130, -signal.SIGINT), log.read_text()


def answers(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(4_000):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).is_success:
                return
        assert process.poll() is None, log.read_text()
        time.sleep(0.025)
    raise AssertionError(log.read_text())


@contextlib.contextmanager
def serving(platform: Platform, *options: str) -> Iterator[Running]:
    """The same for a platform of the tests."""
    write_settings(platform.settings)
    with started(platform.settings.root, *options) as running:
        yield running


def tell(check: str, **figures: Any) -> None:
    """Print what was measured, in the words of `docs/reliability.md`."""
    said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())
    print(f"\n  {check}: {said}", flush=True)
