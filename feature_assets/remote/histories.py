"""Training sets over HTTP: the spine goes up as a Parquet file, the rows come down as one and stay on disk."""

import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import polars as pl

from feature_assets.errors import RequestError, StoreUnavailable, WrongType
from feature_assets.references import Features
from feature_assets.remote.answers import asked, dumped
from feature_assets.spec import from_json
from feature_assets.training import Question, TrainingSet, usual_rows
from feature_assets.types import Timestamp, rfc3339

if TYPE_CHECKING:
    from feature_assets.historical.spine import Frame

PATH: Final = "/v1/historical-features"
PARQUET: Final = "application/vnd.apache.parquet"
_QUESTION: Final = "feature_assets.question"
_SPINE: Final = "feature_assets.spine"


class File:
    """A file that goes when nobody needs it any more."""

    def __init__(self) -> None:
        handle, name = tempfile.mkstemp(prefix="feature-assets-", suffix=".parquet")
        self.path, self._handle = Path(name), os.fdopen(handle, "rb")
        weakref.finalize(self, _removed, self.path, self._handle)

    def from_its_start(self) -> IO[bytes]:
        """The file, to be read by one reader at a time."""
        self._handle.seek(0)
        return self._handle


def _removed(path: Path, handle: IO[bytes]) -> None:
    handle.close()
    with suppress(FileNotFoundError):
        path.unlink()


def question(
    features: Features,
    *,
    full_feature_names: bool,
    created_cutoff: bool,
    since: datetime | str | None,
    until: datetime | str | None,
    timestamp_column: str | None,
) -> bytes:
    """The question of POST /v1/historical-features, without the spine."""
    body = asked(features) | {"full_feature_names": full_feature_names, "created_cutoff": created_cutoff}
    body |= {name: _moment(name, given) for name, given in (("since", since), ("until", until)) if given is not None}
    if timestamp_column is not None:
        body["timestamp_column"] = timestamp_column
    return dumped(body)


def _moment(name: str, given: datetime | str) -> str:
    try:
        return rfc3339(Timestamp.parse(given))
    except WrongType as error:
        raise WrongType(f"{name}= {error}.") from None


def brought(spine: "Frame", tables: "Mapping[str, Frame]") -> File:
    """The spine in a file.

    Raises:
        RequestError: it is nothing with rows, or cannot be read.
    """
    frame = _frame(spine, tables)
    file = File()
    try:
        frame.lazy().sink_parquet(file.path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RequestError(f"The spine cannot be read: {error}") from error
    return file


def _frame(spine: "Frame", tables: "Mapping[str, Frame]") -> pl.DataFrame | pl.LazyFrame:
    if isinstance(spine, pl.DataFrame | pl.LazyFrame):
        return spine
    # Paths and queries bring the readers of all kinds of tables along, which frames do without.
    from feature_assets.historical.frames import Frames

    return Frames(tables, {}).read(spine)


def training_set(file: File) -> TrainingSet:
    """The rows that came.

    Raises:
        StoreUnavailable: it is no such file.
    """
    try:
        told = pl.read_parquet_metadata(file.path)
        found, columns = from_json(told[_QUESTION], Question), from_json(told[_SPINE], list)
    except (pl.exceptions.PolarsError, OSError, KeyError, ValueError) as error:
        raise StoreUnavailable("The server's rows cannot be read. Is it a feature server of this release?") from error
    return TrainingSet(_Downloaded(file, tuple(columns)), found)


class _Downloaded:
    """The rows of a file."""

    def __init__(self, file: File, spine_columns: tuple[str, ...]) -> None:
        self._file, self._columns = file, spine_columns

    @cached_property
    def schema(self) -> pl.Schema:
        return self._rows.collect_schema()

    @property
    def spine_columns(self) -> tuple[str, ...]:
        return self._columns

    @property
    def _rows(self) -> pl.LazyFrame:
        return pl.scan_parquet(self._file.path, glob=False)

    @property
    def usual_rows(self) -> int:
        return usual_rows(self.schema)

    def pieces(self, rows: int | None) -> Iterator[pl.DataFrame]:
        if rows is None:
            yield self._rows.collect()
            return
        count: int = self._rows.select(pl.len()).collect().item()
        for offset in range(0, count or 1, rows):
            yield self._rows.slice(offset, rows).collect()


def form(body: bytes, file: File | None) -> Mapping[str, Any]:
    """What httpx takes for a request with this question, and a spine if there is one."""
    headers = {"accept": PARQUET}
    if file is None:
        return {"content": body, "headers": {**headers, "content-type": "application/json"}}
    parts = {"question": ("question", body, "application/json"), "spine": ("spine", file.from_its_start(), PARQUET)}
    return {"files": parts, "headers": headers}
