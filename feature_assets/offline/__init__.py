"""The offline store: each view's history as a Delta table.

- `place`: where a table lies, fsync, errors in our words
- `table`: opening, making and widening it; what is declared against what is stored
- `files`: data files with bounds
- `commits`: the one way to commit
- `pushes`: rows added to what is there, each once; `positions`: by what numbers; `erasures`: but of nobody who is erased
- `changes`: replace, drop, erase, compact
- `reading`: scan, latest; `pinned`: all of it at one version
- `upkeep`: vacuum
- `damage`: what is broken
- `foreign`: Delta tables that others write
- `store`: `OfflineStore`, which puts these together
"""

from feature_assets.offline.commits import CommitInfo, next_publication
from feature_assets.offline.foreign import scan_table
from feature_assets.offline.pinned import Pinned
from feature_assets.offline.positions import InJournal, Moved, Overtaken, Reached, stream_journal
from feature_assets.offline.pushes import KnownBy, Sorted, comparable, no_pushed_rows
from feature_assets.offline.store import Commit, OfflineState, OfflineStore

__all__ = [
    "Commit",
    "CommitInfo",
    "InJournal",
    "KnownBy",
    "Moved",
    "OfflineState",
    "OfflineStore",
    "Overtaken",
    "Pinned",
    "Reached",
    "Sorted",
    "comparable",
    "next_publication",
    "no_pushed_rows",
    "scan_table",
    "stream_journal",
]
