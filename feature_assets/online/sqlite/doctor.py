"""What is wrong with an online file, in words."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from feature_assets.online.sqlite.catalogue import LEDGER, VIEWS, view_versions
from feature_assets.online.sqlite.tables import table_name

_LARGE_WAL = 1 << 30


def found_problems(connection: sqlite3.Connection, path: Path) -> list[str]:
    """Each with its mend; reads the whole file."""
    return [*_damage(connection, path), *_settings(connection, path), *_catalogue(connection, path)]


def _damage(connection: sqlite3.Connection, path: Path) -> Iterator[str]:
    for (found,) in connection.execute("PRAGMA integrity_check(10)"):
        if found != "ok":
            yield f"{path} is damaged: {found}. Move it away and rebuild it: feature-assets reconcile"


def _settings(connection: sqlite3.Connection, path: Path) -> Iterator[str]:
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    if mode != "wal":
        yield (
            f"{path} is in journal mode '{mode}', in which readers wait for writers. "
            f"Run: sqlite-utils enable-wal {path}"
        )
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size > _LARGE_WAL:
        yield (
            f"{wal} has grown to {wal.stat().st_size >> 20} MiB: a reader keeps an old state of the file open. "
            f"Find it with: fuser {path}"
        )


def _catalogue(connection: sqlite3.Connection, path: Path) -> Iterator[str]:
    """Tables that are recorded and gone, or there and not recorded, as after changes by hand."""
    found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    recorded = {table_name(view, version): (view, version) for view, version in view_versions(connection)}
    for name in sorted(recorded.keys() - found):
        view, version = recorded[name]
        yield f"{path} has lost the table of view '{view}' (version {version}). Run: feature-assets reconcile {view}"
    for name in sorted(found - recorded.keys() - {VIEWS, LEDGER}):
        if name.startswith("sqlite_"):
            continue
        yield f"{path} has a table '{name}' that is no view's. Remove it: sqlite-utils drop-table {path} {name}"
