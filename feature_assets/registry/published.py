"""The published registry: immutable snapshots, and one pointer that moves by compare-and-swap.

    latest.json              the pointer: the last entry of the history, with the digest of the snapshot in force
    snapshots/<sha256>.json  registries by the digest of their bytes; never changed
    history/<number>.json    the former entries; the pointer's own is filed here before the pointer moves on

Every step before the move of the pointer adds files that nobody reads yet, and the move itself is one conditional put:
a publisher that dies anywhere leaves the registry as before or as after.
"""

import hashlib
import logging
import random
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from feature_assets.errors import (
    DeclarationError,
    NotPublished,
    RegistryConflict,
    RegistryUnreadable,
    RequestError,
    StoreUnavailable,
)
from feature_assets.objects import Objects, PutConflict, open_objects
from feature_assets.registry.changes import Change, plan
from feature_assets.registry.consistency import check_registry
from feature_assets.registry.evolution import refuse_broken_versions
from feature_assets.registry.merge import merged
from feature_assets.registry.salvage import LATEST, SNAPSHOTS, no_way_back, whole_snapshots
from feature_assets.registry.snapshot import Registry, read_registry
from feature_assets.spec import Spec, canonical_json, from_json

log = logging.getLogger(__name__)

_HISTORY = "history"
_ATTEMPTS = 60
_LONGEST_WAIT = 0.5
_MEND = "Move the registry to a snapshot that is whole. Run: feature-assets registry rollback"


Action: TypeAlias = Literal["publish", "rollback"]


class Entry(Spec, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """One move of the pointer: which snapshot came into force, when and by whom. `previous` was in force before.

    `withdrawn` is what a rollback, or several in a row, took out of force: nothing should publish it again by itself.
    Fields of a newer release are passed over: whether its snapshot can be read, the snapshot says.
    """

    sequence: int
    digest: str
    previous: str | None = None
    withdrawn: str | None = None
    published_at: datetime
    action: Action = "publish"
    by: str
    location: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Published:
    """The registry in force. `etag` is for `RegistryStore.poll`; `changed` is False where a publisher found all as it is."""

    registry: Registry
    entry: Entry
    etag: str
    changed: bool = True

    @property
    def digest(self) -> str:
        """SHA-256 of the snapshot, in hexadecimal."""
        return self.entry.digest

    @property
    def sequence(self) -> int:
        """The number of the entry in the history."""
        return self.entry.sequence

    @property
    def published_at(self) -> datetime:
        """When it was put in force (UTC)."""
        return self.entry.published_at

    @property
    def by(self) -> str:
        """Who put it in force."""
        return self.entry.by


class _Pointer(NamedTuple):
    """`latest.json` as it was read. Without an etag there is none, without an entry it is damaged."""

    data: bytes
    etag: str | None
    entry: Entry | None


class RegistryStore:
    """The registry on a folder or bucket. Reading needs no right to write."""

    def __init__(self, place: str | Path | Objects, options: Mapping[str, str] | None = None) -> None:
        self._objects = place if isinstance(place, Objects) else open_objects(place, options)
        self._probed = False
        self.place = self._objects.place

    def read(self) -> Published:
        """The registry in force.

        Raises:
            NotPublished: there is none yet.
            RegistryUnreadable: what is there is damaged, or of a newer release.
        """
        pointer = self._pointer()
        if pointer.etag is None:
            raise NotPublished.at(self.place)
        entry = self._readable(pointer)
        return Published(self.snapshot(entry.digest), entry, pointer.etag)

    def poll(self, etag: str) -> Published | None:
        """The registry in force, or None while the pointer is the one with this etag. Raises as `read` does."""
        return self.read() if self._objects.changed(LATEST, etag) else None

    def snapshot(self, digest: str) -> Registry:
        """The registry with that digest, in force or not.

        Raises:
            RegistryUnreadable: it is not there, damaged, or of a newer release.
        """
        path = _snapshot_path(digest)
        stored = self._objects.get(path) if re.fullmatch(r"[0-9a-f]{64}", digest) else None
        if stored is None:
            raise RegistryUnreadable(f"{self.place}/{path} is not there. {_MEND}")
        if hashlib.sha256(stored.data).hexdigest() != digest:
            raise RegistryUnreadable(f"{self.place}/{path} is damaged: its content is not what its name says. {_MEND}")
        return read_registry(stored.data, f"{self.place}/{path}")

    def has(self, digest: str) -> bool:
        """Whether there is a snapshot with that digest, whole or not."""
        return bool(re.fullmatch(r"[0-9a-f]{64}", digest)) and self._objects.get(_snapshot_path(digest)) is not None

    def history(self, limit: int = 100) -> list[Entry]:
        """The moves of the pointer, the last one first. A damaged one is left out, and logged."""
        latest = self._pointer().entry
        return [*([latest] if latest else []), *self._filed(latest, limit)][:limit]

    def merged(self, derived: Registry, *, location: str, adopt: Collection[str] = (), prune: bool = False) -> Registry:
        """The registry that `publish` would put in force; nothing is written, and nothing is checked.

        Raises:
            RegistryConflict, RegistryUnreadable: as `publish` does.
        """
        return merged(self._in_force(self._pointer()), _as_stored(derived), location, adopt=adopt, prune=prune)

    def plan(
        self, derived: Registry, *, location: str, adopt: Collection[str] = (), prune: bool = False
    ) -> list[Change]:
        """What `publish` would change, and what that means for data; nothing is written.

        A change that `publish` would refuse for want of a new version is listed too.

        Raises:
            RegistryConflict, RegistryUnreadable: as `publish` does.
        """
        before = self._in_force(self._pointer())
        return plan(before, merged(before, _as_stored(derived), location, adopt=adopt, prune=prune))

    def publish(
        self,
        derived: Registry,
        *,
        location: str,
        by: str,
        message: str = "",
        adopt: Collection[str] = (),
        prune: bool = False,
    ) -> Published:
        """Put in force what one code location derives from its code, beside what the others own.

        Objects of this location that are no longer derived go. A view whose version changed keeps its other versions,
        with `prune` only those that a service or on-demand view asks for. What the locations in `adopt` own may be
        declared here and changes hands. Where nothing differs nothing is written, and `changed` is False.

        Raises:
            DeclarationError: the parts do not go together, or a view changed what needs a new version.
            RegistryConflict: another location owns an object of that name, or others kept winning the race.
            RegistryUnreadable: what is published is damaged, or of a newer release.
            StoreUnsafe: the store ignores conditional writes.
        """
        stored = _as_stored(derived)

        def following(pointer: _Pointer) -> Registry:
            return self._following(pointer, stored, location, adopt, prune=prune)

        return self._advance("publish", following, partial(Entry, by=by, location=location, message=message))

    def check(self, derived: Registry, *, location: str, adopt: Collection[str] = (), prune: bool = False) -> None:
        """Raises what `publish` would raise as things are now; nothing is written."""
        self._following(self._pointer(), _as_stored(derived), location, adopt, prune=prune)

    def _following(
        self, pointer: _Pointer, derived: Registry, location: str, adopt: Collection[str], *, prune: bool
    ) -> Registry:
        before = self._in_force(pointer)
        after = merged(before, derived, location, adopt=adopt, prune=prune)
        refuse_broken_versions(before, after)
        check_registry(after)
        return after

    def rollback(self, to: str | int = 1, *, by: str, message: str = "", expected: str | None = None) -> Published:
        """Put an earlier snapshot in force again, as a new entry of the history.

        `to` is its digest or how that begins, or how many entries to go back: 1 undoes the last move, so a second
        rollback by 1 undoes the first. With `expected`, the digest of the snapshot that is to be in force until now,
        nothing is done if it is another one. This mends a damaged `latest.json` too.

        Raises:
            RequestError: the history has no such entry.
            RegistryConflict: what is in force is not what was expected.
            RegistryUnreadable: that snapshot is damaged, or of a newer release.
        """
        registry = self.snapshot(self.found(to))

        def following(pointer: _Pointer) -> Registry:
            in_force = pointer.entry.digest if pointer.entry else None
            if expected is not None and in_force != expected:
                raise RegistryConflict(
                    f"{(in_force or 'no readable snapshot')[:64]} is in force, and not {expected}. Look at it, and try again."
                )
            return registry

        return self._advance("rollback", following, partial(Entry, by=by, message=message))

    def _advance(
        self, action: Action, following: Callable[[_Pointer], Registry], stamp: Callable[..., Entry]
    ) -> Published:
        """Move the pointer to the registry that follows it, looking again each time that another publisher was first."""
        self._probe()
        for attempt in range(_ATTEMPTS):
            _wait(attempt)
            pointer = self._pointer()
            registry = following(pointer)
            if pointer.entry and pointer.etag and pointer.entry.digest == registry.digest:
                return Published(registry, pointer.entry, pointer.etag, changed=False)
            entry = self._entry_after(pointer, registry, action, stamp)
            self._keep(registry)
            etag = self._move(pointer, entry)
            if etag is not None:
                log.info(
                    "registry %s sequence=%d digest=%s location=%s",
                    entry.action,
                    entry.sequence,
                    entry.digest,
                    entry.location,
                )
                return Published(registry, entry, etag)
        raise RegistryConflict(f"Other publishers to {self.place} were first {_ATTEMPTS} times. Publish again.")

    def _entry_after(self, pointer: _Pointer, registry: Registry, action: Action, stamp: Callable[..., Entry]) -> Entry:
        former = pointer.entry
        return stamp(
            action=action,
            sequence=former.sequence + 1 if former else self._number_after_damage(),
            digest=registry.digest,
            previous=former.digest if former else None,
            withdrawn=(former.withdrawn or former.digest) if former and action == "rollback" else None,
            published_at=datetime.now(UTC),
        )

    def _probe(self) -> None:
        if not self._probed:
            self._objects.probe()
            self._probed = True

    def _pointer(self) -> _Pointer:
        stored = self._objects.get(LATEST)
        if stored is None:
            return _Pointer(b"", None, None)
        return _Pointer(stored.data, stored.etag, _entry(stored.data))

    def _readable(self, pointer: _Pointer) -> Entry:
        if pointer.entry is None:
            raise RegistryUnreadable(f"{self.place}/{LATEST} is damaged. {_MEND}")
        return pointer.entry

    def _in_force(self, pointer: _Pointer) -> Registry:
        if pointer.etag is not None:
            return self.snapshot(self._readable(pointer).digest)
        if self._objects.list(_HISTORY):
            raise RegistryUnreadable(f"{self.place}/{LATEST} is gone, and the registry has a history. {_MEND}")
        return Registry()

    def _number_after_damage(self) -> int:
        filed = self._filed(None, limit=1)
        # One is left out for the entry that was damaged or is gone.
        return filed[0].sequence + 2 if filed else 1

    def _keep(self, registry: Registry) -> None:
        """Have the snapshot in the store, whole. One that was rolled back to was read from there just now."""
        path, data = _snapshot_path(registry.digest), canonical_json(registry)
        if hashlib.sha256(data).hexdigest() != registry.digest:
            return
        try:
            self._objects.put(path, data, if_absent=True)
        except PutConflict:
            stored = self._objects.get(path)
            if stored is None or stored.data != data:
                self._objects.put(path, data)

    def _move(self, pointer: _Pointer, entry: Entry) -> str | None:
        """Move the pointer from where it was read; its new etag, or None if another publisher moved it first."""
        data = canonical_json(entry)
        if pointer.entry:
            self._file(pointer.entry.sequence, pointer.data)
        try:
            return self._objects.put(LATEST, data, if_match=pointer.etag, if_absent=pointer.etag is None)
        except PutConflict:
            return self._landed(entry, data)
        except StoreUnavailable:
            etag = self._landed(entry, data)
            if etag is None:
                raise
            return etag

    def _landed(self, entry: Entry, data: bytes) -> str | None:
        """The etag of our entry if it was written after all and only the answer was lost, which a client may have met
        by sending it again and being refused for what it had done itself.
        """
        stored = self._objects.get(LATEST)
        if stored is not None and stored.data == data:
            return stored.etag
        filed = self._objects.get(_history_path(entry.sequence))
        # The next publisher was already there: no etag that is in force, so that a poll with it finds the next one.
        return "" if filed is not None and filed.data == data else None

    def _file(self, sequence: int, data: bytes) -> None:
        try:
            self._objects.put(_history_path(sequence), data, if_absent=True)
        except PutConflict:
            log.debug("history entry %d is filed already", sequence)

    def _filed(self, latest: Entry | None, limit: int) -> list[Entry]:
        """The entries before the latest, the last one first."""
        paths = [
            path
            for path in reversed(self._objects.list(_HISTORY))
            if latest is None or int(PurePosixPath(path).stem) < latest.sequence
        ]
        found = ((path, self._objects.get(path)) for path in paths[:limit])
        entries = [(path, _entry(stored.data) if stored else None) for path, stored in found]
        for path, entry in entries:
            if entry is None:
                log.warning("history entry is damaged place=%s path=%s", self.place, path)
        return [entry for _, entry in entries if entry is not None]

    def found(self, to: str | int) -> str:
        """The digest of the snapshot that a person means; see `rollback`.

        Raises:
            NotPublished: there is no history yet.
            RequestError: the history has no such entry.
        """
        if isinstance(to, int):
            pointer = self._pointer()
            filed = self._filed(pointer.entry, to) if to > 0 else []
            if pointer.etag is None and not filed:
                raise NotPublished.at(self.place)
            if len(filed) < to or not filed:
                raise no_way_back(self._objects, pointer.entry.digest if pointer.entry else None, to)
            return filed[to - 1].digest
        if re.fullmatch(r"[0-9a-f]{64}", to):
            return to
        known = {entry.digest for entry in self.history(limit=10_000)}
        if self._pointer().entry is None:
            known.update(whole_snapshots(self._objects))
        digests = {digest for digest in known if to and digest.startswith(to)}
        if len(digests) != 1:
            raise RequestError(
                f"{len(digests) or 'No'} snapshots of {self.place} begin with '{to}'. See: feature-assets registry history"
            )
        return digests.pop()


def _as_stored(derived: Registry) -> Registry:
    """The registry as it reads back, so that what another location writes of it later has the same bytes."""
    try:
        return from_json(canonical_json(derived), Registry)
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        raise DeclarationError(f"A declaration cannot be kept as data: {error}. Use plain values in it.") from error


def _entry(data: bytes) -> Entry | None:
    try:
        return from_json(data, Entry)
    except (msgspec.DecodeError, RecursionError):
        return None


def _snapshot_path(digest: str) -> str:
    return f"{SNAPSHOTS}/{digest}.json"


def _history_path(sequence: int) -> str:
    return f"{_HISTORY}/{sequence:012d}.json"


def _wait(attempt: int) -> None:
    if attempt:
        time.sleep(random.uniform(0, min(_LONGEST_WAIT, 0.005 * 2.0**attempt)))
