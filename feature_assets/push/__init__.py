"""Pushed rows: admitted, kept in a journal until they are in both stores, and published from there.

- `journal`: what makes an answer durable
- `pushes`: from a push to its answer, and from the journal to the stores
"""

from feature_assets.push.pushes import Pushed, Pushes, drain_orphans, orphaned

__all__ = ["Pushed", "Pushes", "drain_orphans", "orphaned"]
