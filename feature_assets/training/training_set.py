"""`TrainingSet`: rows with features, taken in one piece or in many."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar, runtime_checkable
from uuid import uuid4

import polars as pl

from feature_assets.drafts import drafted
from feature_assets.errors import ConfigurationError, RequestError
from feature_assets.training.batches import Shard
from feature_assets.training.digests import BLOCK_ROWS, Digester, Digests
from feature_assets.training.files import (
    ParquetFiles,
    TableFiles,
    Writing,
    scanned,
    streamed,
    stretches,
    whole_folder,
)
from feature_assets.training.manifest import Manifest, Question, libraries, schema_text

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from feature_assets.training.feeding import Arrays


PIECE_BYTES: Final = 512 << 20
"""About how much memory one piece takes where no number of rows is asked for."""

_STRETCHES: Final = 4
"""A file that is written for others, or by a worker, has a stretch of rows of so large a part of `PIECE_BYTES`."""

_NESTED_BYTES, _TEXT_BYTES, _PLAIN_BYTES = 128, 40, 8


class Source(Protocol):
    """Where the rows come from: the same ones in the same order each time."""

    @property
    def schema(self) -> pl.Schema:
        """Columns and dtypes; known before anything is read."""

    @property
    def spine_columns(self) -> tuple[str, ...]:
        """The columns that came with the spine; they stand first."""

    @property
    def usual_rows(self) -> int:
        """How many rows to take at a time where nobody says."""

    def pieces(self, rows: int | None) -> Iterator[pl.DataFrame]:
        """All rows in their order, about so many at a time; None gives them in one frame."""


T = TypeVar("T")


@runtime_checkable
class SpreadSource(Protocol):
    """A source whose rows workers may write."""

    def written(self, writing: Writing[T], rows: int) -> list[T] | None:
        """What writing stretches of so many rows gave, in the rows' order; None if the rows have to be taken here."""


@runtime_checkable
class PortionedSource(Protocol):
    """A source of which some rows can be read without the others."""

    @property
    def portions(self) -> tuple[int, ...]:
        """How many rows each portion has, in the rows' order."""

    def portion(self, number: int) -> pl.DataFrame:
        """The rows of one."""


class Keeper(Protocol):
    """Where sets are kept under names: `TrainingSets`."""

    def save(self, name: str, training_set: "TrainingSet", *, overwrite: bool = False) -> Manifest:
        """See `TrainingSet.save`."""


class TrainingSet:
    """The spine's rows in the spine's order: its columns as they were, then the features in the order asked for.

    Nothing is read before it is asked for. The Delta version of each view was fixed when the set was made, so every
    method tells of the same rows, whatever is published meanwhile.
    """

    def __init__(
        self,
        source: Source,
        question: Question,
        sets: Keeper | None = None,
        manifest: Manifest | None = None,
        block_rows: int = BLOCK_ROWS,
    ) -> None:
        """`block_rows` is how many rows a block of its digests has, see `Digests`."""
        self._source, self._question, self._sets, self._manifest = source, question, sets, manifest
        self._block_rows = block_rows
        self._rows: pl.DataFrame | None = None

    @property
    def schema(self) -> pl.Schema:
        """Names and dtypes, known before anything is read."""
        return self._source.schema

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in their order."""
        return list(self.schema)

    @property
    def spine_columns(self) -> tuple[str, ...]:
        """The columns that came with the spine."""
        return self._source.spine_columns

    @property
    def question(self) -> Question:
        """What was asked, and of what."""
        return self._question

    def collect(self) -> pl.DataFrame:
        """All rows in memory; they are kept for the next time.

        Raises:
            RequestError: the spine cannot be read.
            ContractBroken: an on-demand transformation failed.
            StoreError: a history cannot be read.
        """
        if self._rows is None:
            (self._rows,) = self._source.pieces(None)
        return self._rows

    def lazy(self) -> pl.LazyFrame:
        """The rows as a lazy frame that computes them piece by piece."""
        return self.collect().lazy() if self._rows is not None else scanned(self.schema, self.batches)

    def to_pandas(self) -> "pd.DataFrame":
        """All rows as a pandas frame.

        Raises:
            ConfigurationError: pandas is not installed.
        """
        try:
            import pandas as pd  # noqa: F401 (only whether it is there)
        except ImportError as error:
            raise ConfigurationError("to_pandas() needs pandas. Install it: pip install pandas") from error
        return self.collect().to_pandas()

    def to_arrow(self) -> "pa.Table":
        """All rows as an Arrow table."""
        return self.collect().to_arrow()

    def batches(self, rows: int | None = None) -> Iterator[pl.DataFrame]:
        """The rows in order, about so many at a time: by default what takes 512 MB, or what the memory limit lets.

        Each batch reads the features of all views once, so that few large batches cost less than many small ones. Hand a
        batch to another library as it is: it exports Arrow.
        """
        if rows is not None and rows < 1:
            raise RequestError(f"A batch of {rows} rows is none. Give 1 or more.")
        size = rows or self._source.usual_rows
        if self._rows is not None:
            return iter([self._rows]) if self._rows.is_empty() else self._rows.iter_slices(size)
        return self._source.pieces(size) if rows else self._read(size)

    def numpy_batches(
        self,
        rows: int,
        *,
        columns: Sequence[str] | None = None,
        shuffle: int = 0,
        seed: int = 0,
        shard: tuple[int, int] = (0, 1),
        drop_last: bool = False,
    ) -> "Iterator[Arrays]":
        """The rows as arrays, so many at a time: a dict of column and array, which JAX takes as it is.

        Args:
            rows: how many rows a batch has; the last one has what is left, or is left out with `drop_last`.
            columns: which ones; by default all of numbers, booleans, times and vectors. Times are whole numbers in the
                column's unit since 1970. A null float is NaN.
            shuffle: how many rows are held to mix them with one another; 0 keeps the order.
            seed: the same seed gives the same order.
            shard: number and count of workers or ranks that share the rows; each row is in one of them.

        Raises:
            RequestError: a column is none of these, or has a null that is no float.
        """
        from feature_assets.training.feeding import numpy_batches

        own = Shard.checked(*shard)
        return numpy_batches(self, rows, columns=columns, shuffle=shuffle, seed=seed, shard=own, drop_last=drop_last)

    def to_torch(
        self,
        rows: int,
        *,
        columns: Sequence[str] | None = None,
        shuffle: int = 0,
        seed: int = 0,
        shard: tuple[int, int] = (0, 1),
        drop_last: bool = False,
    ) -> Any:
        """A PyTorch `IterableDataset` of the batches of `numpy_batches` as dicts of tensors.

        For `DataLoader(…, batch_size=None, num_workers=…, multiprocessing_context="spawn")`: its workers share the rows of
        `shard`, which is (rank, world size) where several processes train. `.set_epoch(n)` gives another order. Workers
        that are processes read a saved set, `store.training_set(name)`.

        Raises:
            ConfigurationError: PyTorch is not installed.
            RequestError: a column makes no tensor.
        """
        from feature_assets.training.feeding import torch_dataset

        options = {"columns": columns, "shuffle": shuffle, "seed": seed, "drop_last": drop_last}
        return torch_dataset(self, rows, Shard.checked(*shard), options)

    def to_ray_dataset(self) -> Any:
        """The rows as a Ray Dataset.

        Those of a saved set, `store.training_set(name)`, are read by Ray's workers when they are asked for, a task for each
        file; they need this package, and to reach where it is saved. Others are joined at once and pass through this
        process, a block for each batch. Ray keeps the order of rows where its `ExecutionOptions.preserve_order` says so.

        Raises:
            ConfigurationError: Ray is not installed.
        """
        from feature_assets.training.feeding import ray_dataset

        return ray_dataset(self)

    @property
    def portions(self) -> tuple[int, ...]:
        """How many rows each part of a saved set has that is read by itself; none of a set that is not saved."""
        return self._source.portions if isinstance(self._source, PortionedSource) else ()

    def portion(self, number: int) -> pl.DataFrame:
        """The rows of one of `portions`.

        Raises:
            RequestError: there is no such one.
            StoreUnsafe: a file is gone or damaged.
        """
        if not isinstance(self._source, PortionedSource) or not 0 <= number < len(self._source.portions):
            raise RequestError(f"There is no portion {number} of {len(self.portions)}. They count from 0.")
        if self._rows is not None:
            return self._rows.slice(sum(self._source.portions[:number]), self._source.portions[number])
        return self._source.portion(number)

    def __getstate__(self) -> dict[str, Any]:
        if self._manifest is None or not self._manifest.files:
            raise RequestError(
                "A training set that is not saved cannot be handed to another process, which would join it anew. Save it, and "
                "hand over store.training_set(name)."
            )
        return {**self.__dict__, "_rows": None}

    def _read(self, size: int) -> Iterator[pl.DataFrame]:
        """The pieces; if there is but one, it is small enough to be kept."""
        kept = None
        for number, piece in enumerate(self._source.pieces(size), 1):
            kept = piece if number == 1 else None
            yield piece
        self._rows = kept

    def write_parquet(self, path: str | Path, **options: Any) -> None:
        """Write the rows to a Parquet file, or to a folder of such. `options` are those of `polars.LazyFrame.sink_parquet`.

        A file is written batch by batch by this process; it is there whole at the end, or as it was before. What ends in
        "/", or is a folder, gets files of a stretch of rows each, whose names are in the rows' order; those of a set whose
        engine spreads it are written by its workers. Such a folder is new or empty before.

        Raises:
            RequestError: something is in the folder already, or an option cannot be handed to a worker.
        """
        place = str(path)
        if not place.endswith("/") and not Path(place).is_dir():
            self._write_file(place, options)
            return
        with whole_folder(place, dict(options.get("storage_options") or {})) as folder:
            self.written(ParquetFiles(place=folder, options=options))

    def _write_file(self, path: str, options: dict[str, Any]) -> None:
        with self._streamed() as rows:
            if "://" in path:
                rows.sink_parquet(path, **options)
                return
            with drafted(path) as draft:
                rows.sink_parquet(draft, **options)

    def write_delta(
        self,
        uri: str | Path,
        *,
        mode: Literal["error", "append", "overwrite"] = "error",
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        """Write the rows to a Delta table of their own in one commit, each data file with a stretch of them.

        The files of a set whose engine spreads it are written by its workers. A vector becomes a list, a category a text, an
        unsigned number the next larger signed one, a time one in microseconds; what Delta has no type for is refused.

        Args:
            uri: a folder or an object-store URL.
            mode: what to do if there is a table already.
            storage_options: of the object store.

        Raises:
            RequestError: there is a table already, or it does not take the rows.
            StoreUnavailable, StoreFull: it cannot be written.
        """
        # Delta is loaded by whoever writes it.
        from feature_assets.offline.foreign import ForeignTable

        place, options = str(uri) if "://" in str(uri) else str(Path(uri).resolve()), dict(storage_options or {})
        table = ForeignTable(place, self.schema, mode=mode, storage_options=options)
        token = uuid4().hex
        with table.made(token):
            files = self.written(TableFiles(uri=place, options=options, token=token))
        table.commit(files)

    def written(self, writing: Writing[T]) -> list[T]:
        """What writing the rows gave, stretch by stretch in their order: here, or where they were joined.

        A stretch begins where a block of digests does.
        """
        rows = max(1, usual_rows(self.schema) // _STRETCHES // BLOCK_ROWS) * BLOCK_ROWS
        if self._rows is None and isinstance(self._source, SpreadSource):
            told = self._source.written(writing, rows)
            if told is not None:
                return told
        return [writing.write(first, pieces) for first, pieces in stretches(self.batches(), rows)]

    @contextmanager
    def _streamed(self) -> Iterator[pl.LazyFrame]:
        if self._rows is not None:
            yield self._rows.lazy()
            return
        with streamed(self.schema, self.batches) as rows:
            yield rows

    @property
    def manifest(self) -> Manifest:
        """What the set is made of, with digests of its rows: all of them are read for it, once."""
        if self._manifest is None:
            digester = Digester(self.schema, self._block_rows)
            for piece in self.batches():
                digester.update(piece)
            self._manifest = self.described(digester.result())
        return self._manifest

    def save(self, name: str, *, overwrite: bool = False) -> Manifest:
        """Keep the rows and the manifest under a name; one that is taken only with `overwrite`.

        Raises:
            RequestError: the name is taken or cannot be one.
            ConfigurationError: there is no place for saved sets.
        """
        if self._sets is None:
            raise ConfigurationError(
                "There is no place to save training sets in. Name one: training = '…' in the settings."
            )
        self._manifest = self._sets.save(name, self, overwrite=overwrite)
        return self._manifest

    def described(self, result: Digests) -> Manifest:
        """The manifest for rows that were digested already."""
        return Manifest(
            created_at=datetime.now(UTC),
            question=self._question,
            spine=result.only(self.spine_columns),
            result=result,
            schema=schema_text(self.schema),
            libraries=libraries(),
        )

    def __repr__(self) -> str:
        tables = ", ".join(f"{label} at {version}" for label, version in self._question.tables.items())
        return f"TrainingSet({', '.join(self.columns)}; Delta versions: {tables or 'none'})"


def usual_rows(schema: pl.Schema) -> int:
    """How many rows of these columns take about `PIECE_BYTES`."""
    row = sum(
        _NESTED_BYTES if dtype.is_nested() else _TEXT_BYTES if dtype in (pl.String, pl.Binary) else _PLAIN_BYTES
        for dtype in schema.values()
    )
    return max(10_000, PIECE_BYTES // row)
