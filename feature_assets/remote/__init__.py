"""The feature server's client: a `FeatureStore` whose stores are on the other side of HTTP.

- `connection`: requests with tokens, retries and a deadline
- `tokens`: where tokens come from, and when a new one is needed
- `refusals`: what the server refuses, as the errors that a local store raises
- `pushes`: rows as JSON, and receipts
- `store`: the questions themselves
"""

from feature_assets.remote.store import RemoteFeatureStore

__all__ = ["RemoteFeatureStore"]
