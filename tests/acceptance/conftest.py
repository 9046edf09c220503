"""What takes minutes, or programs of others: `make acceptance` runs it, `make test` passes it over."""

import os
from pathlib import Path

import pytest

ASKED_FOR = "ACCEPTANCE"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get(ASKED_FOR):
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="asked for by: make acceptance"))
