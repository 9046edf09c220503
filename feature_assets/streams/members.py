"""Who shares the shards of a log that has no groups of its own: each member shows that it lives, and all work out the same.

A member writes an object of its own from time to time, and one whose object has not changed for a while is gone. Each shard
belongs to the member for which a hash of both is the greatest, so that little changes hands as members come and go. Clocks
are not compared. For a moment two may take themselves for the owner of a shard; the tables refuse the second one.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final
from uuid import uuid4

from feature_assets.errors import StoreError
from feature_assets.objects import Objects

log = logging.getLogger(__name__)

_BEAT: Final = 2.0
_GONE: Final = 10.0


class Members:
    """One member among those that keep their objects in a folder.

    Args:
        beat: how often it shows that it lives, in seconds.
        gone: after how many seconds without a sign another one counts as gone.
        clock: what seconds are told by.
    """

    def __init__(
        self,
        objects: Objects,
        folder: str,
        *,
        beat: float = _BEAT,
        gone: float = _GONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects, self._folder, self._clock = objects, folder, clock
        self._beat, self._gone = beat, gone
        self.id = uuid4().hex
        self._count = 0
        self._next = clock()
        self._seen: dict[str, tuple[bytes, float]] = {}
        self.living: frozenset[str] = frozenset({self.id})

    @property
    def due(self) -> float:
        """When it is to show that it lives, by the clock."""
        return self._next

    def meet(self) -> None:
        """Show that this one lives, and look who else does, if that is due.

        While the objects cannot be reached the members are those of before.
        """
        now = self._clock()
        if now < self._next:
            return
        self._next = now + self._beat
        try:
            self._show()
            self._look(now)
        except StoreError as error:
            log.warning("members not seen folder=%s error=%s: %s", self._folder, type(error).__name__, error)
        self.living = frozenset({self.id, *(one for one, (_, at) in self._seen.items() if now - at < self._gone)})

    def _show(self) -> None:
        self._count += 1
        self._objects.put(self._path(self.id), json.dumps({"count": self._count}).encode())

    def _look(self, now: float) -> None:
        paths = {path.rpartition("/")[2]: path for path in self._objects.list(self._folder)}
        paths.pop(self.id, None)
        for one in self._seen.keys() - paths.keys():
            del self._seen[one]
        for one, path in paths.items():
            found = self._objects.get(path)
            if found is None:
                self._seen.pop(one, None)
                continue
            known = self._seen.get(one)
            if known is None or known[0] != found.data:
                self._seen[one] = found.data, now
            elif now - known[1] > 10 * self._gone:
                # It did not live to remove it, and who was merely asleep writes it again.
                self._objects.delete(path)

    def mine(self, shards: Iterable[str]) -> set[str]:
        """Those of these shards that belong to this member."""
        return {one for one in shards if max(self.living, key=lambda member: _weight(member, one)) == self.id}

    def leave(self) -> None:
        """Be gone at once."""
        try:
            self._objects.delete(self._path(self.id))
        except StoreError as error:
            log.info("member's object left behind folder=%s error=%s", self._folder, type(error).__name__)

    def _path(self, member: str) -> str:
        return f"{self._folder}/{member}"


def _weight(member: str, shard: str) -> bytes:
    return hashlib.sha256(f"{member}/{shard}".encode()).digest()
