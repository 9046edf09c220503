"""Training sets kept under a name in a folder or bucket.

<name>/manifest.json                   written last, and only if there is none: a set is there whole or not at all
<name>/<id>/spine-<row>.parquet …      the spine's columns from that row on, from which the set can be made again
<name>/<id>/features-<row>.parquet …   the features of the same rows
"""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from uuid import uuid4

import msgspec
import polars as pl

from feature_assets.errors import RequestError, StoreError, StoreUnsafe, UnknownTrainingSet
from feature_assets.objects import PutConflict, open_objects
from feature_assets.training.digests import Digests
from feature_assets.training.files import SavedFiles
from feature_assets.training.manifest import Kind, Manifest, StoredFile, read_manifest, written
from feature_assets.training.training_set import TrainingSet, usual_rows

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_ROOT = "sets"
_MANIFEST = "manifest.json"


def set_of_partition(name: str, partition: str | None = None) -> str:
    """What a set is saved as that an asset makes: under its name, and for each partition with the key behind.

    A key with characters that no name has, or too many of them, is told by its digest as well.
    """
    if partition is None:
        return name
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", partition)[:40]
    if plain == partition:
        return f"{name}.{partition}"
    return f"{name}.{plain}.{hashlib.sha256(partition.encode()).hexdigest()[:12]}"


class TrainingSets:
    """The saved training sets of one place."""

    def __init__(self, place: str | Path, options: Mapping[str, str] | None = None) -> None:
        self._objects = open_objects(place, options)
        self.place = self._objects.place
        self._options = dict(options or {})

    def __reduce__(self) -> tuple[type["TrainingSets"], tuple[str, dict[str, str]]]:
        return TrainingSets, (self.place, self._options)

    def names(self) -> list[str]:
        """The names of all saved sets, sorted."""
        found = (path.split("/") for path in self._objects.list(_ROOT))
        return sorted(parts[1] for parts in found if parts[2:] == [_MANIFEST])

    def manifest(self, name: str) -> Manifest:
        """What the saved set was made of.

        Raises:
            UnknownTrainingSet: there is none of that name.
            StoreUnsafe: the manifest is damaged.
        """
        path = _manifest_path(name)
        stored = self._objects.get(path) if _NAME.fullmatch(name) else None
        if stored is None:
            raise UnknownTrainingSet.among(name, self.names())
        return read_manifest(stored.data, f"{self.place}/{path}")

    def load(self, name: str) -> TrainingSet:
        """The saved rows as they were; `rebuild` is what makes them again.

        Raises as `manifest`, and on reading:
            StoreUnsafe: a file is gone or damaged.
        """
        manifest = self.manifest(name)
        return TrainingSet(_Stored(self, manifest), manifest.question, self, manifest)

    def save(self, name: str, training_set: TrainingSet, *, overwrite: bool = False) -> Manifest:
        """See `TrainingSet.save`. Of two that save under one name at once, one fails."""
        if not _NAME.fullmatch(name):
            raise RequestError(f"'{name}' cannot be the name of a training set: use letters, digits, '_', '-' and '.'.")
        path = _manifest_path(name)
        former = self._objects.get(path)
        if former is not None and not overwrite:
            raise self._taken(name)
        folder = f"{_ROOT}/{name}/{uuid4().hex[:12]}"
        writing = SavedFiles(
            place=self.place, options=self._options, folder=folder, spine=tuple(training_set.spine_columns)
        )
        try:
            stretches = training_set.written(writing)
            digests = Digests.of_stretches((each.rows, each.blocks) for each in stretches)
            files = tuple(file for each in stretches for file in each.files)
            manifest = msgspec.structs.replace(training_set.described(digests), name=name, files=files)
            etag = former.etag if former else None
            self._objects.put(path, written(manifest), if_match=etag, if_absent=former is None)
        # Whoever stops it with Ctrl-C is not to find half a set either.
        except BaseException as error:
            with suppress(StoreError):
                self._discard(self._objects.list(folder))
            if isinstance(error, PutConflict):
                raise self._taken(name) from error
            raise
        if former is not None:
            self._discard(file.path for file in read_manifest(former.data, f"{self.place}/{path}").files)
        return manifest

    def delete(self, name: str) -> None:
        """Forget the saved set. Raises as `manifest`."""
        files = self.manifest(name).files
        self._objects.delete(_manifest_path(name))
        self._discard(file.path for file in files)

    def rows(self, manifest: Manifest, kind: Kind) -> Iterator[pl.DataFrame]:
        """The saved pieces of the spine, or of the features.

        Raises:
            StoreUnsafe: a file is gone or damaged.
        """
        for file in manifest.files:
            if file.kind == kind:
                yield self.read(file)

    def read(self, file: StoredFile) -> pl.DataFrame:
        """The rows of one file. Raises as `rows`."""
        return pl.read_parquet(io.BytesIO(self._read(file)))

    def _read(self, file: StoredFile) -> bytes:
        stored = self._objects.get(file.path)
        if stored is None:
            raise StoreUnsafe(f"{self.place}/{file.path} is gone. Restore it from a backup.")
        if hashlib.sha256(stored.data).hexdigest() != file.sha256:
            raise StoreUnsafe(f"{self.place}/{file.path} is not what was saved. Restore it from a backup.")
        return stored.data

    def _discard(self, paths: Iterable[str]) -> None:
        for path in paths:
            # What stays behind is named by no manifest: it costs room and nothing else.
            with suppress(StoreError):
                self._objects.delete(path)

    def _taken(self, name: str) -> RequestError:
        return RequestError(f"There is a training set '{name}' at {self.place} already. Save under another name.")


def _manifest_path(name: str) -> str:
    return f"{_ROOT}/{name}/{_MANIFEST}"


class _Stored:
    """The rows of a saved set."""

    def __init__(self, sets: TrainingSets, manifest: Manifest) -> None:
        self._sets, self._manifest = sets, manifest

    @cached_property
    def schema(self) -> pl.Schema:
        return self.portion(0).schema

    @property
    def spine_columns(self) -> tuple[str, ...]:
        return tuple(self._manifest.spine.columns)

    @property
    def usual_rows(self) -> int:
        return usual_rows(self.schema)

    @cached_property
    def portions(self) -> tuple[int, ...]:
        return tuple(spine.rows for spine, _ in self._files)

    def portion(self, number: int) -> pl.DataFrame:
        spine, features = self._files[number]
        return self._sets.read(spine).hstack(self._sets.read(features))

    def pieces(self, rows: int | None) -> Iterator[pl.DataFrame]:
        pieces = (self.portion(number) for number in range(len(self._files)))
        if rows is None:
            yield pl.concat(pieces)
            return
        for piece in pieces:
            yield from piece.iter_slices(rows) if piece.height > rows else [piece]

    @cached_property
    def _files(self) -> list[tuple[StoredFile, StoredFile]]:
        kinds = ("spine", "features")
        spines, features = ([file for file in self._manifest.files if file.kind == kind] for kind in kinds)
        return list(zip(spines, features, strict=True))
