"""An online store that counts what is read of it: around a real one, and opened by its URL as any other store."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feature_assets.online import open_online_store
from feature_assets.online.protocol import OnlineStore
from feature_assets.spec import ViewSpec

READS: Counter[str] = Counter()
"""How often each view was read, in this process."""


class Counting:
    """Passes everything on."""

    def __init__(self, store: OnlineStore) -> None:
        self._store = store

    def reader(self, view: ViewSpec, features: Sequence[str]) -> Any:
        reader = self._store.reader(view, features)

        def read(keys: Any) -> Any:
            READS[view.name] += 1
            return reader(keys)

        return read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def open_store(url: str) -> Any:
    """What the entry point names: `counting:/path/online.db`."""
    return Counting(open_online_store(f"sqlite:{url.partition(':')[2]}"))


def install(site: Path) -> Path:
    """A folder for `sys.path`, in which a package offers this store."""
    about = site / "counting-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[feature_assets.online]\ncounting = tests.access.counting:open_store\n")
    return site
