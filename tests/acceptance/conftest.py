"""The checks of `docs/reliability.md` that print figures.

`make acceptance` runs them. `make test` passes over what takes minutes, or programs of others, and runs what is marked
`quick`.
"""

import os
from pathlib import Path

import pytest

ASKED_FOR = "ACCEPTANCE"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get(ASKED_FOR):
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.get_closest_marker("quick") is None:
            item.add_marker(pytest.mark.skip(reason="asked for by: make acceptance"))
