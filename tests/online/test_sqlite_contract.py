"""The online store on SQLite keeps the contract of all online stores."""

from pathlib import Path

from feature_assets.testing import OnlineStoreContract


class TestSqlite(OnlineStoreContract):
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:{tmp_path}/online/store.db"
