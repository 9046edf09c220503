"""The online store on SQLite, for one machine: `sqlite:/path/to/online.db`."""

from feature_assets.online.sqlite.store import SqliteOnlineStore, open_store

__all__ = ["SqliteOnlineStore", "open_store"]
