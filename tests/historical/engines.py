"""The engine that spreads in tests: `daft`, or what acceptance tests have them run on.

`FEATURE_ASSETS_TEST_ENGINE=daft-ray` and `FEATURE_ASSETS_TEST_RAY=<address>` name it: a process has one way to run Daft.
"""

import os
from typing import Any, Final

ENGINE_VARIABLE: Final = "FEATURE_ASSETS_TEST_ENGINE"
ADDRESS_VARIABLE: Final = "FEATURE_ASSETS_TEST_RAY"

SPREADING: Final = os.environ.get(ENGINE_VARIABLE, "daft")


def spreading(engine: str = SPREADING) -> dict[str, Any]:
    """The options of `historical_features` for that engine."""
    return {"engine": engine, "address": os.environ.get(ADDRESS_VARIABLE)}
