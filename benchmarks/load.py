"""Load on an HTTP server by wrk, which takes little of the processors that the server needs (`apt install wrk`)."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Load(NamedTuple):
    """What a round gave: answers a second, milliseconds, and microseconds of the server's processor for each answer."""

    rate: float
    p50: float
    p99: float
    cpu: float
    count: int


def is_installed() -> bool:
    return shutil.which("wrk") is not None


def load(
    url: str, process: int, body: bytes, headers: Mapping[str, str], *, connections: int, seconds: int, folder: Path
) -> Load:
    """Post the same again and again. `process` is the server's, whose children count with it; a failure is an error."""
    script = folder / "post.lua"
    lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    script.write_text("\n".join(['wrk.method = "POST"', f"wrk.body = [[{body.decode()}]]", *lines]))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency", "-s", str(script)]
    before = processor_seconds(process)
    found = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    taken = processor_seconds(process) - before
    assert "Non-2xx" not in found, found
    assert "Socket errors" not in found, found
    rate = re.search(r"Requests/sec:\s+([\d.]+)", found)
    count = re.search(r"(\d+) requests in", found)
    assert rate, found
    assert count, found
    number = int(count[1])
    assert number, found
    return Load(float(rate[1]), _milliseconds(found, "50%"), _milliseconds(found, "99%"), taken / number * 1e6, number)


def processor_seconds(process: int) -> float:
    """What a process and its children have used so far: a busy machine spoils rates, and this much less."""
    own = Path(f"/proc/{process}")
    user, system = (own / "stat").read_text().rpartition(")")[2].split()[11:13]
    children = (own / "task" / str(process) / "children").read_text().split()
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") + sum(processor_seconds(int(one)) for one in children)


def _milliseconds(text: str, label: str) -> float:
    found = re.search(rf"{label}\s+([\d.]+)(us|ms|s)", text)
    assert found, text
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]
