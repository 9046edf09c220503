"""What `from feature_assets import FeatureStore` costs a container that starts, against `import polars` alone.

    python -m benchmarks.import_time

The mark is 2.5 times the limit. Each sample is a fresh interpreter.
"""

import subprocess
import sys
from collections.abc import Callable

from benchmarks.timing import as_installed, compare


def starting(statement: str) -> Callable[[], int]:
    return lambda: subprocess.run([sys.executable, "-c", statement], check=True, env=as_installed()).returncode


def main() -> None:
    ways = {
        "ours": starting("from feature_assets import FeatureStore"),
        "with settings": starting("from feature_assets import FeatureStore, Settings"),
        "limit": starting("import polars"),
        "interpreter": starting("pass"),
    }
    compare("import for retrieval", ways, 7, mark=2.5)


if __name__ == "__main__":
    main()
