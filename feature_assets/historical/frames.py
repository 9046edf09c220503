"""Whatever a person brings as rows: a frame of any library, files, a Delta table, a source, a query over all of these."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

import polars as pl

from feature_assets.errors import RequestError
from feature_assets.historical.spine import Frame
from feature_assets.offline import OfflineStore, scan_table
from feature_assets.registry import Registry
from feature_assets.sources import read_source, scan_csv
from feature_assets.spec import PARTITION, PUBLICATION, BatchSource, DeltaSource, FileSource, SqlSource
from feature_assets.types import FeatureType

_SQL: Final = re.compile(r"\s*(select|with)\s", re.IGNORECASE)


class Frames:
    """Reads what was given, and knows what a query may name: tables given with it, then what `named` finds.

    `types` says which columns are text: CSV does not say that "007" is one.
    """

    def __init__(
        self,
        tables: Mapping[str, Frame],
        types: Mapping[str, FeatureType],
        *,
        named: Callable[[str], pl.LazyFrame | None] = lambda _: None,
        storage_options: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._tables, self._elsewhere, self._options = tables, named, storage_options
        self._texts = {name: pl.String() for name, of in types.items() if of.polars == pl.String()}

    def read(self, given: Frame) -> pl.DataFrame | pl.LazyFrame:
        """The rows, lazy where they can be read again.

        Raises:
            RequestError: it is nothing with rows, is not there, or the query cannot be run.
            StoreUnavailable: a table or database does not answer.
        """
        if isinstance(given, pl.DataFrame | pl.LazyFrame):
            return given
        if isinstance(given, str) and _SQL.match(given):
            return self._queried(given)
        if isinstance(given, str | Path):
            return self._scanned(given)
        if isinstance(given, FileSource | DeltaSource | SqlSource):
            return read_source(given, storage_options=self._options)
        if type(given).__module__.partition(".")[0] == "pandas":
            return pl.from_pandas(given)
        if hasattr(given, "__arrow_c_stream__"):
            return pl.DataFrame(given)
        raise RequestError(
            f"A spine cannot be a {type(given).__name__}. Give a Polars or pandas frame, an Arrow table, a path or a query."
        )

    def _scanned(self, path: str | Path) -> pl.LazyFrame:
        remote = "://" in str(path)
        text = str(path) if remote else str(Path(path).expanduser())
        if not remote and "*" not in text and not Path(text).exists():
            raise RequestError(f"The spine {text} is not there. A query starts with SELECT or WITH.")
        options = dict(self._options) if remote else None
        match Path(urlsplit(text).path if remote else text).suffix.lower():
            case ".parquet" | ".pq":
                return pl.scan_parquet(text, storage_options=options)
            case ".csv":
                return scan_csv(text, options or {}, self._texts)
            case ".jsonl" | ".ndjson":
                return pl.scan_ndjson(text, storage_options=options)
            case ".arrow" | ".ipc":
                return pl.scan_ipc(text, storage_options=options)
        if remote or (Path(text) / "_delta_log").is_dir():
            return scan_table(text, options or {})
        raise RequestError(
            f"The spine {text} is of no known kind. Name a .parquet, .csv, .jsonl or .arrow file, or a Delta table."
        )

    def _queried(self, query: str) -> pl.LazyFrame:
        words = dict.fromkeys(re.findall(r"[A-Za-z_]\w*", query))
        frames = {word: frame for word in words if (frame := self._named(word)) is not None}
        try:
            found = pl.SQLContext(frames, eager=False).execute(query)
            found.collect_schema()
        except pl.exceptions.PolarsError as error:
            known = ", ".join(frames) or "none of the names in it"
            raise RequestError(
                f"The spine's query cannot be run: {error}. Tables found: {known}. "
                "Name views, sources, or frames given as tables={'name': frame}."
            ) from error
        return found

    def _named(self, name: str) -> pl.LazyFrame | None:
        return self.read(self._tables[name]).lazy() if name in self._tables else self._elsewhere(name)


def published(registry: Registry, offline: OfflineStore) -> Callable[[str], pl.LazyFrame | None]:
    """What is published under a name: the whole history of a view, or the rows of a source."""

    def named(name: str) -> pl.LazyFrame | None:
        if name in registry.views:
            return offline.scan(registry.views[name]).drop(PUBLICATION, PARTITION)
        source = registry.sources.get(name)
        if isinstance(source, BatchSource):
            return read_source(source, storage_options=offline.storage_options)
        return None

    return named
