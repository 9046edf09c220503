"""Pushed rows: admitted, kept in a journal until they are in both stores, and published from there.

- `admission`: from what is pushed to rows of views, or to what is wrong with it; `plain`: where plainly nothing is
- `journal`: what makes an answer durable
- `pushes`: from a push to its answer
- `publishing`: from the journal to the stores
"""

from feature_assets.push.admission import Push, source_of
from feature_assets.push.publishing import drain_orphans, orphaned, publish_waiting
from feature_assets.push.pushes import Pushed, Pushes

__all__ = ["Push", "Pushed", "Pushes", "drain_orphans", "orphaned", "publish_waiting", "source_of"]
