"""What the platform asks of a folder or a bucket: objects by path, and writes that happen only if nobody else wrote."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple
from uuid import uuid4

from feature_assets.errors import StoreError, StoreUnsafe

log = logging.getLogger(__name__)

PROBE_FOLDER = "probe"
"""The reserved folder that `Objects.probe` writes to."""


class Stored(NamedTuple):
    """An object as it was at one moment: its bytes, and the opaque tag that tells this content from any other.

    Equal bytes may have equal tags: what is swapped by tag has to differ each time, as by a number in it.
    """

    data: bytes
    etag: str


class PutConflict(StoreError):
    """The condition of a conditional put did not hold: nothing was written."""


class Objects(ABC):
    """Objects under one root. A path is relative, has `/` between its parts, and no part starts with a dot.

    A reader sees an object whole, as before a put or as after it. When a put returns, its bytes are durable.
    Every method raises StoreUnavailable where the store cannot be reached or refuses.
    """

    place: str
    """Where this is, for messages: without credentials."""

    @abstractmethod
    def get(self, path: str) -> Stored | None:
        """The object; None where there is none."""

    @abstractmethod
    def changed(self, path: str, etag: str) -> bool:
        """Whether the object is now another than the one with this tag, or gone. Cheaper than `get`."""

    @abstractmethod
    def put(self, path: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """Write the object and give its new tag.

        With `if_match` only while the object still has that tag, with `if_absent` only where there is none: of any
        number of writers with the same condition one succeeds.

        Raises:
            PutConflict: the condition does not hold. After a lost answer that may be the doing of this very put: who
                needs to know reads the object again.
            StoreFull: no room is left.
        """

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove the object; it may be gone already."""

    @abstractmethod
    def list(self, folder: str) -> Sequence[str]:
        """The paths of all objects below the folder, sorted; none for a folder that is not there. "" lists them all."""

    def probe(self) -> None:
        """Write, overwrite and remove a small object to see that the store honours conditional writes.

        Raises:
            StoreUnsafe: it does not. The message names the header that it ignores.
        """
        path = f"{PROBE_FOLDER}/{uuid4().hex}"
        try:
            self._probe(path)
        finally:
            try:
                self.delete(path)
            except StoreError:
                log.warning("probe object left behind place=%s path=%s", self.place, path)

    def _probe(self, path: str) -> None:
        first = self.put(path, b"1", if_absent=True)
        if self._is_written(path, b"2", if_absent=True):
            raise StoreUnsafe(_ignores("If-None-Match", self.place))
        try:
            self.put(path, b"3", if_match=first)
        except PutConflict as error:
            raise StoreUnsafe(
                f"{self.place} refuses a conditional write (If-Match) whose condition holds, so nothing can be "
                f"published to it. {_MEND}"
            ) from error
        if self._is_written(path, b"4", if_match=first):
            raise StoreUnsafe(_ignores("If-Match", self.place))

    def _is_written(self, path: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> bool:
        try:
            self.put(path, data, if_match=if_match, if_absent=if_absent)
        except PutConflict:
            return False
        return True


_MEND = (
    "Use a store with conditional writes: a local folder, Amazon S3, Google Cloud Storage, Azure Blob Storage, MinIO."
)


def _ignores(header: str, place: str) -> str:
    return f"{place} ignores the header {header}: two publishers at once would overwrite each other's work unnoticed. {_MEND}"
