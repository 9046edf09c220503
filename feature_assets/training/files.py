"""Rows written as files: in a folder or bucket, of a Delta table, or of a saved set.

What has to be written is data. Whoever has the rows writes stretches of them, this process or workers of an engine that
spreads, and gives back names and statistics; whoever asked puts those together, and no row passes through it twice. A
stretch that is written again, since whoever began it was taken for dead, has the same name and the same rows.
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar
from uuid import uuid4

import polars as pl
from polars.io.plugins import register_io_source

from feature_assets.drafts import drafted_folder
from feature_assets.errors import FeatureAssetsError, RequestError, StoreError, StoreFull, StoreUnavailable
from feature_assets.objects import Objects, open_objects
from feature_assets.spec import Spec
from feature_assets.training.digests import Blocks, Digester
from feature_assets.training.manifest import Kind, StoredFile

Told_co = TypeVar("Told_co", covariant=True)


class Writing(Protocol[Told_co]):
    """Writes a stretch of rows; a `Spec`, so that it can be handed to a worker. `TOLD` is what `write` gives back."""

    TOLD: ClassVar[Any]

    def write(self, first: int, pieces: Iterator[pl.DataFrame]) -> Told_co:
        """Write rows that follow one another, from row `first` on; one piece at least. Safe to do twice."""


class ParquetFiles(Spec, frozen=True, kw_only=True, tag="parquet"):
    """Parquet files of a folder or below a URL, whose names are in the order of their rows.

    `options` are those of `polars.LazyFrame.sink_parquet`.
    """

    TOLD: ClassVar[Any] = int

    place: str
    options: dict[str, Any]

    def write(self, first: int, pieces: Iterator[pl.DataFrame]) -> int:
        """How many rows were written."""
        rows = 0

        def counted() -> Iterator[pl.DataFrame]:
            nonlocal rows
            for piece in pieces:
                rows += piece.height
                yield piece

        _sunk(self.place, _part(first), counted(), self.options)
        return rows


class SavedStretch(Spec, frozen=True):
    """Files of a saved set with rows that follow one another, and the digests of these."""

    rows: int
    files: tuple[StoredFile, ...]
    blocks: Blocks


class SavedFiles(Spec, frozen=True, kw_only=True, tag="saved"):
    """Files of a saved set, two for each piece: the spine's columns, and the features."""

    TOLD: ClassVar[Any] = SavedStretch

    place: str
    options: dict[str, str]
    folder: str
    spine: tuple[str, ...]

    def write(self, first: int, pieces: Iterator[pl.DataFrame]) -> SavedStretch:
        """The files. `first` is where a block of digests begins."""
        objects, files = open_objects(self.place, self.options), list[StoredFile]()
        digester: Digester | None = None
        for piece in pieces:
            digester = digester or Digester(piece.schema)
            place = f"{first + digester.rows:012d}.parquet"
            digester.update(piece)
            files.append(_put(objects, f"{self.folder}/spine-{place}", "spine", piece.select(self.spine)))
            files.append(_put(objects, f"{self.folder}/features-{place}", "features", piece.drop(self.spine)))
        if digester is None:
            raise AssertionError("a stretch has a piece")
        return SavedStretch(digester.rows, tuple(files), digester.blocks())


def _put(objects: Objects, path: str, kind: Kind, part: pl.DataFrame) -> StoredFile:
    written = io.BytesIO()
    part.write_parquet(written, statistics=False)
    data = written.getvalue()
    objects.put(path, data)
    return StoredFile(path, kind, part.height, hashlib.sha256(data).hexdigest())


class TableStretch(Spec, frozen=True):
    """A data file of a Delta table that no commit names yet; `bounds` as a Delta log has them."""

    path: str
    rows: int
    bytes: int
    bounds: str


class TableFiles(Spec, frozen=True, kw_only=True, tag="delta"):
    """Data files of a Delta table, whose names begin with a token that no others have."""

    TOLD: ClassVar[Any] = TableStretch

    uri: str
    options: dict[str, str]
    token: str

    def write(self, first: int, pieces: Iterator[pl.DataFrame]) -> TableStretch:
        # Delta is loaded by whoever writes it.
        from feature_assets.offline.foreign import Bounds, bounded

        bounds, path = Bounds(), f"part-{first:012d}-{self.token}.parquet"
        size = _sunk(self.uri, path, bounded(pieces, bounds), {"storage_options": self.options or None})
        return TableStretch(path, bounds.rows, size, bounds.told())


AnyWriting = ParquetFiles | SavedFiles | TableFiles


_PART = re.compile(r"part-\d{12,}\.parquet")


def _part(first: int) -> str:
    return f"part-{first:012d}.parquet"


def stretches(pieces: Iterator[pl.DataFrame], rows: int) -> Iterator[tuple[int, Iterator[pl.DataFrame]]]:
    """The rows in stretches of so many, each with the number of its first row; one at least, and none empty but that.

    Nothing is held but the piece that is at hand: a stretch is to be taken up before the next is asked for.
    """
    at_hand: pl.DataFrame | None = next(pieces, None)
    first = 0

    def stretch() -> Iterator[pl.DataFrame]:
        nonlocal at_hand, first
        left = rows
        while at_hand is not None and (left or not at_hand.height):
            piece = at_hand.head(left)
            rest = at_hand.slice(piece.height)
            left, first = left - piece.height, first + piece.height
            at_hand = rest if rest.height else next(pieces, None)
            yield piece

    while at_hand is not None:
        yield first, stretch()


@contextmanager
def whole_folder(place: str, options: Mapping[str, str]) -> Iterator[str]:
    """Where files are written to that are there together in the end: a folder that is new or empty, or below a URL.

    A folder is there when all are. Below a URL files appear one by one; if it fails, those that did are removed.

    Raises:
        RequestError: something is there already.
        StoreError: the object store does not answer.
    """
    if "://" not in place:
        target = Path(place)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise _taken(place)
        with drafted_folder(target) as draft:
            yield str(draft)
        return
    objects = open_objects(place.rstrip("/"), options)
    if objects.list(""):
        raise _taken(place)
    try:
        yield place.rstrip("/")
    # Whoever stops it with Ctrl-C is not to find half of the rows either.
    except BaseException:
        with suppress(StoreError):
            for path in objects.list(""):
                if _PART.fullmatch(path):
                    objects.delete(path)
        raise


def _taken(place: str) -> RequestError:
    return RequestError(
        f"There is something at {place} already. Name a folder that is new or empty, or remove what is there."
    )


def _sunk(place: str, name: str, pieces: Iterator[pl.DataFrame], options: Mapping[str, Any]) -> int:
    """Write the pieces to one file, which is there whole or not at all; how many bytes it has."""
    first, sizes = next(pieces), list[int]()
    local = "://" not in place
    draft = f"{place}/{f'.{name}.{uuid4().hex}' if local else name}"
    try:
        with streamed(first.schema, lambda: chain([first], pieces)) as rows:
            rows.sink_parquet(
                draft,
                sinked_paths_callback=lambda sunk: sizes.extend(one.num_bytes for one in sunk.paths),
                **options,
            )
        if local:
            Path(draft).replace(f"{place}/{name}")
    except FeatureAssetsError:
        raise
    except (pl.exceptions.PolarsError, OSError) as error:
        if StoreFull.is_told_by(error):
            raise StoreFull(
                f"No room is left in {place} for the rows ({error}). Free some, and write them again."
            ) from error
        raise StoreUnavailable(f"{place} cannot be written to: {error}") from error
    finally:
        if local:
            Path(draft).unlink(missing_ok=True)
    return sum(sizes)


@contextmanager
def streamed(schema: pl.Schema, pieces: Callable[[], Iterator[pl.DataFrame]]) -> Iterator[pl.LazyFrame]:
    """The rows to be written piece by piece; what goes wrong in making them is raised as it is."""
    failed: list[FeatureAssetsError] = []

    def watched() -> Iterator[pl.DataFrame]:
        try:
            yield from pieces()
        except FeatureAssetsError as error:
            failed.append(error)
            raise

    try:
        yield scanned(schema, watched)
    except Exception as error:
        # Libraries tell an error of their source as text only.
        if failed and error is not failed[0]:
            raise failed[0] from None
        raise


def scanned(schema: pl.Schema, pieces: Callable[[], Iterator[pl.DataFrame]]) -> pl.LazyFrame:
    """The pieces as a lazy frame."""

    def source(
        columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, batch: int | None
    ) -> Iterator[pl.DataFrame]:
        for piece in pieces():
            taken = piece if rows is None else piece.head(rows)
            rows = None if rows is None else rows - taken.height
            taken = taken if predicate is None else taken.filter(predicate)
            yield taken if columns is None else taken.select(columns)
            if rows == 0:
                return

    return register_io_source(source, schema=schema)
