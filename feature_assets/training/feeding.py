"""A training set fed to what learns from it: NumPy arrays (and with them JAX), PyTorch, Ray Data.

None of these is a dependency: what is used has to be installed.
"""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, Protocol

import polars as pl

from feature_assets.errors import ConfigurationError, RequestError
from feature_assets.training.batches import Shard, dealt, mixed, rebatched, shares

Arrays = dict[str, Any]
"""Each column as a NumPy array."""

PIECE_ROWS: Final = 65_536
"""So many rows are made at a time at least, whatever the size of a batch."""


class Rows(Protocol):
    """A training set."""

    @property
    def schema(self) -> pl.Schema:
        """Its columns."""

    def batches(self, rows: int | None = None) -> Iterator[pl.DataFrame]:
        """Its rows, so many at a time."""

    @property
    def portions(self) -> tuple[int, ...]:
        """How many rows each part has that can be read by itself."""

    def portion(self, number: int) -> pl.DataFrame:
        """The rows of one."""


def numpy_batches(
    training: Rows,
    rows: int,
    *,
    columns: Sequence[str] | None = None,
    shuffle: int = 0,
    seed: int = 0,
    shard: Shard,
    drop_last: bool = False,
) -> Iterator[Arrays]:
    """See `TrainingSet.numpy_batches`."""
    if rows < 1 or shuffle < 0:
        raise RequestError(
            f"A batch of {rows} rows out of a buffer of {shuffle} is none. Give 1 or more, and 0 or more."
        )
    if find_spec("numpy") is None:
        raise ConfigurationError("numpy_batches() needs NumPy. Install it: pip install numpy")
    taken = numbers(training.schema, columns)
    return _arrays(training, rows, taken, shuffle, seed, shard, drop_last=drop_last)


def _arrays(
    training: Rows,
    rows: int,
    columns: Sequence[str],
    shuffle: int,
    seed: int,
    shard: Shard,
    *,
    drop_last: bool,
) -> Iterator[Arrays]:
    frames: Iterator[pl.DataFrame] = (
        piece.select(columns) for piece in _shared(training, max(rows, PIECE_ROWS), shard)
    )
    frames = mixed(frames, shuffle, seed) if shuffle else frames
    for frame in rebatched(frames, rows):
        if frame.height == rows or (frame.height and not drop_last):
            yield {name: _array(frame.get_column(name)) for name in columns}


def _shared(training: Rows, rows: int, shard: Shard) -> Iterator[pl.DataFrame]:
    """The rows of a shard, so many at a time at most."""
    if shard.of == 1 or not training.portions:
        yield from dealt(training.batches(rows), shard)
        return
    yield training.schema.to_frame()
    for stretch in shares(training.portions, shard):
        yield from training.portion(stretch.portion).slice(stretch.first, stretch.rows).iter_slices(rows)


def numbers(schema: pl.Schema, asked: Sequence[str] | None) -> list[str]:
    """The columns that can be arrays of numbers: all such, or those that are asked for.

    Raises:
        RequestError: one is not there, or holds no numbers.
    """
    able = [name for name, dtype in schema.items() if _is_number(dtype)]
    if asked is None:
        return able
    for name in asked:
        if name not in schema:
            raise RequestError(f"The training set has no column '{name}' (it has: {', '.join(schema)}).")
        if name not in able:
            raise RequestError(
                f"Column '{name}' is {schema[name]} and makes no array of numbers. Encode it first, or take batches() instead."
            )
    return list(asked)


def _is_number(dtype: pl.DataType) -> bool:
    if isinstance(dtype, pl.Array):
        return _is_number(dtype.inner) if isinstance(dtype.inner, pl.DataType) else _is_number(dtype.inner())
    plain = dtype.is_integer() or dtype.is_float() or dtype == pl.Boolean()
    return plain or isinstance(dtype, pl.Datetime | pl.Date | pl.Duration)


def _array(column: pl.Series) -> Any:
    dtype = column.dtype
    if isinstance(dtype, pl.Datetime | pl.Date | pl.Duration):
        column = column.to_physical()
    nulls = column.null_count()
    if isinstance(dtype, pl.Array):
        nulls += column.drop_nulls().explode().null_count()
    if nulls and not dtype.is_float():
        raise RequestError(
            f"Column '{column.name}' is {dtype} and null in {nulls} of {column.len()} rows of a batch, and an array has no "
            "nulls. Declare a default, or fill the nulls and use batches()."
        )
    # Whoever trains may write into it.
    return column.to_numpy(writable=True)


def torch_dataset(training: Rows, rows: int, shard: Shard, options: dict[str, Any]) -> Any:
    """See `TrainingSet.to_torch`."""
    try:
        torch, data = import_module("torch"), import_module("torch.utils.data")
    except ImportError as error:
        raise ConfigurationError("to_torch() needs PyTorch. Install it: pip install torch") from error
    numbers(training.schema, options.get("columns"))

    class FeatureRows(data.IterableDataset):  # type: ignore[misc, name-defined]
        """Batches of a training set as tensors, shared between the workers of a `DataLoader`."""

        def __init__(self) -> None:
            super().__init__()
            self.epoch = 0

        def set_epoch(self, epoch: int) -> None:
            """Have the rows of the next epoch in another order."""
            self.epoch = epoch

        def __iter__(self) -> Iterator[dict[str, Any]]:
            worker = data.get_worker_info()
            own = shard if worker is None else shard.within(worker.id, worker.num_workers)
            seed = options["seed"] + self.epoch
            for arrays in numpy_batches(training, rows, **{**options, "seed": seed}, shard=own):
                yield {name: torch.from_numpy(array) for name, array in arrays.items()}

        def __reduce__(self) -> Any:
            # A worker that was spawned reads the saved rows itself.
            return _again, (training, rows, shard, options, self.epoch)

    return FeatureRows()


def _again(training: Rows, rows: int, shard: Shard, options: dict[str, Any], epoch: int) -> Any:
    dataset = torch_dataset(training, rows, shard, options)
    dataset.set_epoch(epoch)
    return dataset


def ray_dataset(training: Rows) -> Any:
    """See `TrainingSet.to_ray_dataset`."""
    # Nothing that Ray reports about its users leaves this machine from here.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray, data = import_module("ray"), import_module("ray.data")
    except ImportError as error:
        raise ConfigurationError("to_ray_dataset() needs Ray. Install it: pip install 'ray[data]'") from error
    if not training.portions:
        # Each piece is let go of once Ray has it, which moves to disk what does not fit.
        return data.from_arrow_refs([ray.put(piece.to_arrow()) for piece in training.batches()])
    block, source = import_module("ray.data.block"), import_module("ray.data.datasource")
    some = training.portion(0).head(PIECE_ROWS)
    width = int(some.estimated_size() / max(1, some.height))

    class FeatureRows(source.Datasource):  # type: ignore[misc, name-defined]
        """The files of a saved set."""

        def estimate_inmemory_data_size(self) -> int:
            return width * sum(training.portions)

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            return [
                source.ReadTask(
                    partial(_portion, training, number),
                    block.BlockMetadata(num_rows=rows, size_bytes=width * rows, input_files=None, exec_stats=None),
                )
                for number, rows in enumerate(training.portions)
            ]

    return data.read_datasource(FeatureRows())


def _portion(training: Rows, number: int) -> Iterator[Any]:
    yield training.portion(number).to_arrow()
