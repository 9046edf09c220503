"""A small platform on real stores in a folder of its own."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from feature_assets.assets import FeatureAssets


@pytest.fixture
def stores(tmp_path: Path) -> FeatureAssets:
    """The resource over a fresh folder."""
    config = tmp_path / "feature_assets.toml"
    config.write_text('durability = "process"\nlocation = "tests"\n')
    return FeatureAssets(config=str(config))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made
