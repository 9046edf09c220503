"""For tests of stores and of what is built on them: contracts to subclass, values to try, oracles to compare with.

Needs `pytest` and `hypothesis`. For readable failures tell pytest before anything is imported from here, in `conftest.py`:
`pytest.register_assert_rewrite("feature_assets.testing")`.
"""

from feature_assets.testing.online import OnlineStoreContract
from feature_assets.testing.online_model import (
    OnlineModel,
    minute,
    model_view,
    online_keys,
    online_machine,
    online_rows,
    online_tokens,
    stored_rows,
)
from feature_assets.testing.values import ALL_TYPES, KEY_TYPES, bits, optional, values

__all__ = [
    "ALL_TYPES",
    "KEY_TYPES",
    "OnlineModel",
    "OnlineStoreContract",
    "bits",
    "minute",
    "model_view",
    "online_keys",
    "online_machine",
    "online_rows",
    "online_tokens",
    "optional",
    "stored_rows",
    "values",
]
