"""Online stores: the latest row of each key, found by a URL.

The scheme names the module here that opens the store (`sqlite:` → `feature_assets.online.sqlite`), or else an entry
point of the group `feature_assets.online`. Either offers `open_store(url)`.
"""

import pkgutil
import re
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import cast

from feature_assets.errors import ConfigurationError
from feature_assets.online.protocol import OnlineStore

ENTRY_POINTS = "feature_assets.online"

_SCHEME = re.compile(r"([a-z][a-z0-9]*):.")


def open_online_store(url: str) -> OnlineStore:
    """The online store at a URL, as in `sqlite:/var/lib/features/online.db`. Nothing is created yet.

    Raises:
        ConfigurationError: no store goes by that scheme, or the rest of the URL does not suit it.
        StoreUnavailable: the store cannot be reached.
    """
    found = _SCHEME.match(url)
    if not found:
        raise ConfigurationError(
            f"'{url}' is not the URL of an online store. Write its scheme first, as in sqlite:/var/lib/features/online.db"
        )
    opener = _own(found[1]) or _foreign(found[1])
    if opener is None:
        raise ConfigurationError(
            f"No online store goes by the scheme '{found[1]}'. Known: {', '.join(known_schemes())}. "
            f"A package adds one by an entry point of the group '{ENTRY_POINTS}'."
        )
    return opener(url)


def known_schemes() -> list[str]:
    """The schemes that `open_online_store` takes in this installation."""
    own = {module.name for module in pkgutil.iter_modules(__path__)} - {"protocol"}
    return sorted(own | {point.name for point in entry_points(group=ENTRY_POINTS)})


def _own(scheme: str) -> Callable[[str], OnlineStore] | None:
    name = f"{__name__}.{scheme}"
    return getattr(import_module(name), "open_store", None) if find_spec(name) else None


def _foreign(scheme: str) -> Callable[[str], OnlineStore] | None:
    points = entry_points(group=ENTRY_POINTS, name=scheme)
    return cast(Callable[[str], OnlineStore], next(iter(points)).load()) if points else None
