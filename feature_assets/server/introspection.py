"""Tokens that only their issuer can read: it is asked about each (RFC 7662), and its answer is kept for a short while.

How long it is kept is how long a revoked token goes on. When the issuer cannot be asked, nobody is let in.
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

from feature_assets.errors import StoreUnavailable, Unauthenticated

log = logging.getLogger(__name__)

_REFUSALS_KEPT: Final = 10_000

Claims = Mapping[str, Any]


class Introspection:
    """Asks at `ask` about each token once at a time, and about one that it refused not again for `seconds`.

    What was found good, whoever asks keeps for as long.
    """

    def __init__(
        self,
        ask: Callable[[str], Awaitable[Claims]],
        *,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self._ask, self._clock = ask, clock
        self._asking: dict[bytes, asyncio.Task[Claims]] = {}
        self._refused: OrderedDict[bytes, float] = OrderedDict()

    async def claims(self, token: str) -> Claims:
        """What the issuer says of a token that is active.

        Raises:
            Unauthenticated: it is not active, or not one that is sent as it is.
            StoreUnavailable: the issuer cannot be asked.
        """
        digest = hashlib.sha256(token.encode()).digest()
        if self._refused.get(digest, 0.0) > self._clock():
            raise Unauthenticated("The token is not active.")
        task = self._asking.get(digest)
        if task is None:
            task = self._asking[digest] = asyncio.create_task(self._asked(token))
            task.add_done_callback(partial(self._answered, digest))
        # Whoever goes away takes nobody else's answer along.
        found = await asyncio.shield(task)
        if not _is_access_token(found):
            self._refused[digest] = self._clock() + self.seconds
            while len(self._refused) > _REFUSALS_KEPT:
                self._refused.popitem(last=False)
            raise Unauthenticated("The token is not active.")
        return found

    def _answered(self, digest: bytes, task: "asyncio.Task[Claims]") -> None:
        del self._asking[digest]
        if not task.cancelled():
            # Those who waited for it have seen it; if all of them went away, nobody needs to.
            task.exception()

    async def _asked(self, token: str) -> Claims:
        try:
            return await self._ask(token)
        except (OSError, ValueError) as error:
            # Why is no business of whoever sent the token.
            log.warning("the issuer cannot be asked about tokens error=%s: %s", type(error).__name__, error)
            raise StoreUnavailable(
                "The issuer of tokens cannot be asked, so that this one cannot be checked."
            ) from error


def _is_access_token(found: Claims) -> bool:
    """Whether it is one, and active. Issuers know refresh tokens too, and tokens that need a proof beside them."""
    kind, use = found.get("token_type"), found.get("token_use", "access_token")
    return found.get("active") is True and isinstance(kind, str) and kind.lower() == "bearer" and use == "access_token"
