"""Where the parts of a spine and their answers lie while workers are at them: a folder that all hosts have, or a bucket."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import polars as pl

from feature_assets.errors import StoreError, StoreFull, StoreUnavailable
from feature_assets.objects import open_objects


@dataclass(frozen=True, slots=True)
class Scratch:
    """One question's folder: a path, or a URL with the options of its object store."""

    place: str
    options: Mapping[str, str]

    @classmethod
    @contextmanager
    def made(cls, within: str | None, options: Mapping[str, str]) -> Iterator["Scratch"]:
        """A new one, in the temporary folder if None; it goes at the end with all that is in it.

        Raises:
            StoreError: it cannot be made.
        """
        if within is None or "://" not in within:
            try:
                folder = tempfile.mkdtemp(prefix="feature-assets-", dir=within)
            except OSError as error:
                if StoreFull.is_told_by(error):
                    raise
                raise StoreUnavailable(
                    f"The folder for what is joined cannot be written to: {error}. Make it, or name another: scratch = '…' in "
                    "the settings, or TMPDIR."
                ) from error
            try:
                yield cls(folder, {})
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return
        here = cls(f"{within.rstrip('/')}/feature-assets-{uuid4().hex}", options)
        try:
            yield here
        finally:
            # What stays behind costs room and nothing else.
            with suppress(StoreError):
                objects = open_objects(here.place, options)
                for path in objects.list(""):
                    objects.delete(path)

    def path(self, name: str) -> str:
        """Where the file of that name lies."""
        return f"{self.place}/{name}"

    def put(self, name: str, data: bytes) -> None:
        """Write a small file."""
        open_objects(self.place, self.options).put(name, data)

    def get(self, name: str) -> bytes:
        """Read a small file.

        Raises:
            StoreError: it is not there.
        """
        stored = open_objects(self.place, self.options).get(name)
        if stored is None:
            raise StoreError(
                f"{self.path(name)} is not there. The folder scratch has to be the same for all hosts: name a network file "
                "system, or a bucket."
            )
        return stored.data

    def scan(self, names: Sequence[str]) -> pl.LazyFrame:
        """The rows of some Parquet files."""
        paths = [self.path(name) for name in names]
        return pl.scan_parquet(paths, glob=False, hive_partitioning=False, storage_options=dict(self.options) or None)

    def write(self, name: str, rows: pl.DataFrame, *, group: int | None = None) -> None:
        """Write rows to a Parquet file, which is there whole or not at all: another worker may be at the same one."""
        options = dict(self.options) or None
        path = self.path(name)
        if "://" in self.place:
            rows.write_parquet(path, compression="lz4", row_group_size=group, storage_options=options)
            return
        draft = Path(f"{path}.{uuid4().hex}")
        rows.write_parquet(draft, compression="lz4", row_group_size=group)
        draft.replace(path)

    def remove(self, names: Sequence[str]) -> None:
        """Remove files."""
        if "://" not in self.place:
            for name in names:
                Path(self.path(name)).unlink()
            return
        objects = open_objects(self.place, self.options)
        for name in names:
            objects.delete(name)
