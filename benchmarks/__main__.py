"""Every benchmark, one after the other: `make benchmark`. Nothing is asserted about speed."""

import subprocess
import sys

SCRIPTS = (
    "import_time",
    "fill",
    "publish",
    "backfill",
    "lookup",
    "join",
    "registry",
    "server_start",
    "http",
    "push",
    "stream",
)


def main() -> None:
    for script in SCRIPTS:
        subprocess.run([sys.executable, "-m", f"benchmarks.{script}"], check=False)


if __name__ == "__main__":
    main()
