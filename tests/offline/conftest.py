"""A store in a folder of its own."""

from pathlib import Path

import pytest

from feature_assets.offline import OfflineStore


@pytest.fixture
def store(tmp_path: Path) -> OfflineStore:
    return OfflineStore(str(tmp_path / "offline"), durability="process")
