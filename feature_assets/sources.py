"""Rows from outside the asset graph: files, Delta tables, SQL queries, cut to a window of time.

The window is pushed down to where the rows are, so that no more is read than may be needed, and is then applied exactly.
Times without a zone are UTC.
"""

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import polars as pl

from feature_assets.errors import (
    ConfigurationError,
    ContractBroken,
    DeclarationError,
    FeatureAssetsError,
    StoreUnavailable,
)
from feature_assets.offline import scan_table
from feature_assets.spec import BatchSource, DeltaSource, FileSource, SqlSource

Window = tuple[datetime, datetime]

# What connectorx connects to by itself; it keeps declared types, of an empty result too. The rest goes through ADBC, and a
# URI that names its driver ("postgresql+psycopg://") through SQLAlchemy.
_CONNECTORX = {
    *("postgres", "postgresql", "redshift", "mysql", "mssql", "sqlite"),
    *("oracle", "bigquery", "clickhouse", "trino"),
}
_UTC = pl.Datetime("us", "UTC")
_WITHOUT = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M")
_YEAR_FIRST = r"^\s*\d{4}[-/]"
_WITH_OFFSET = tuple(f"{shape}%#z" for shape in _WITHOUT)


def read_source(
    source: BatchSource, window: Window | None = None, *, storage_options: Mapping[str, str] | None = None
) -> pl.LazyFrame:
    """The rows of a source, its columns renamed by `field_mapping`.

    Args:
        source: where they come from.
        window: start (included) and end (excluded) of the timestamps to read; naive ones are UTC. Only a source with a
            `timestamp_field` is cut. Rows whose time is null belong to no window.
        storage_options: of the object store, for a URL.

    Raises:
        StoreUnavailable: the file, table or database is not there or does not answer.
        ConfigurationError: the environment variable or the driver of a database is missing.
        DeclarationError: the source has no such column, or its time is none.
    """
    rows, schema = _read(source, window, dict(storage_options or {}))
    _check_columns(source, schema)
    if source.timestamp_field is not None:
        rows = _cut(source, rows, schema[source.timestamp_field], window)
    return rows.rename(source.field_mapping)


def _opened(source: BatchSource, window: Window | None, options: dict[str, str]) -> pl.LazyFrame:
    if isinstance(source, FileSource):
        return _files(source, options)
    if isinstance(source, DeltaSource):
        try:
            return scan_table(source.path, options)
        except StoreUnavailable as error:
            raise StoreUnavailable(
                f"{_named(source)}: {error}. Check its path; it is now {_place(source.path)}."
            ) from error
    return _query(source, window).lazy()


def _named(source: BatchSource) -> str:
    return f"{type(source).__name__} '{source.name}'"


def _place(path: str) -> str:
    return path if "://" in path else str(Path(path).absolute())


def _files(source: FileSource, options: dict[str, str]) -> pl.LazyFrame:
    if source.format == "csv":
        return scan_csv(source.path, options)
    if source.format == "jsonl":
        return pl.scan_ndjson(source.path, storage_options=options or None)
    return pl.scan_parquet(source.path, storage_options=options or None)


def scan_csv(path: str, options: dict[str, str], texts: Mapping[str, pl.DataType] | None = None) -> pl.LazyFrame:
    """CSV files with a header. Dates and times are read as such where the year comes first, and stay text else.

    Polars takes 02/08/2013 for the second of August, whoever wrote it.

    Args:
        path: a file, a URL or a glob.
        options: of the object store, for a URL.
        texts: columns that are text whatever they look like.
    """
    given = dict(texts or {})
    rows = pl.scan_csv(path, try_parse_dates=True, schema_overrides=given, storage_options=options or None)
    dated = [
        name for name, dtype in rows.collect_schema().items() if dtype == pl.Date or isinstance(dtype, pl.Datetime)
    ]
    if not dated:
        return rows
    # As many rows as Polars looked at to find them.
    written = pl.scan_csv(path, infer_schema=False, storage_options=options or None).head(100)
    first = written.select(pl.col(dated).drop_nulls().first().str.contains(_YEAR_FIRST)).collect()
    odd: dict[str, pl.DataType] = {name: pl.String() for name in dated if not first[name].item()}
    if not odd:
        return rows
    return pl.scan_csv(path, try_parse_dates=True, schema_overrides=given | odd, storage_options=options or None)


def _read(source: BatchSource, window: Window | None, options: dict[str, str]) -> tuple[pl.LazyFrame, pl.Schema]:
    try:
        # A CSV file is looked for already when it is opened.
        rows = _opened(source, window, options)
        return rows, rows.collect_schema()
    except FeatureAssetsError:
        raise
    except (pl.exceptions.PolarsError, OSError) as error:
        path = source.path if isinstance(source, FileSource | DeltaSource) else ""
        if isinstance(error, FileNotFoundError) or "paths were empty" in str(error):
            raise StoreUnavailable(
                f"{_named(source)}: there is no file at {_place(path)}. Put it there, or change the source's path "
                "(a relative one starts at the current folder)."
            ) from error
        kind = f"as {source.format}" if isinstance(source, FileSource) else "as it is"
        raise StoreUnavailable(
            f"{_named(source)}: {_place(path)} cannot be read {kind}: {_one_line(error)}. Check its path and format."
        ) from error


def _check_columns(source: BatchSource, schema: pl.Schema) -> None:
    named = [*source.field_mapping, *([source.timestamp_field] if source.timestamp_field is not None else [])]
    for name in named:
        if name not in schema:
            near = get_close_matches(name, list(schema), n=1)
            mend = f"Did you mean '{near[0]}'?" if near else f"It has: {', '.join(schema)}."
            told = "timestamp_field" if name == source.timestamp_field else "field_mapping"
            raise DeclarationError(f"{_named(source)}: {told} names '{name}', which its rows do not have. {mend}")
    for old, new in source.field_mapping.items():
        if new in schema and new not in source.field_mapping:
            raise DeclarationError(
                f"{_named(source)}: field_mapping renames '{old}' to '{new}', which is another column already. "
                "Give it another name, or rename that column too."
            )


def _cut(source: BatchSource, rows: pl.LazyFrame, dtype: pl.DataType, window: Window | None) -> pl.LazyFrame:
    name = source.timestamp_field or ""
    if window is not None and isinstance(dtype, pl.Datetime):
        # In the column's own type, so that the filter reaches the statistics of the files.
        start, end = (_literal(moment, dtype) for moment in window)
        rows = rows.filter(pl.col(name) >= start, pl.col(name) < end)
    rows = rows.with_columns(_as_utc(source, name, dtype))
    if window is not None and not isinstance(dtype, pl.Datetime):
        start, end = (pl.lit(_aware(moment), _UTC) for moment in window)
        rows = rows.filter(pl.col(name) >= start, pl.col(name) < end)
    return rows


def _literal(moment: datetime, dtype: pl.Datetime) -> pl.Expr:
    literal = pl.lit(_aware(moment), _UTC).dt.cast_time_unit(dtype.time_unit)
    if dtype.time_zone is None:
        return literal.dt.replace_time_zone(None)
    return literal.dt.convert_time_zone(dtype.time_zone)


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _as_utc(source: BatchSource, name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if isinstance(dtype, pl.Datetime):
        return column.dt.replace_time_zone("UTC") if dtype.time_zone is None else column.dt.convert_time_zone("UTC")
    if dtype == pl.Date():
        return column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if dtype == pl.String():
        return column.map_batches(lambda texts: _parsed(source, texts), return_dtype=_UTC, is_elementwise=True)
    if dtype == pl.Null():
        return column.cast(_UTC)
    raise DeclarationError(
        f"{_named(source)}: timestamp_field '{name}' is {dtype}, which is no time. Leave timestamp_field out and convert "
        f"it in the asset function, as in pl.from_epoch('{name}', time_unit='s')."
    )


def _parsed(source: BatchSource, texts: pl.Series) -> pl.Series:
    """ISO 8601 in any of its usual shapes; a file may mix them, as Python's isoformat does."""
    column = pl.col(texts.name)
    readings = [column.str.to_datetime(shape, time_unit="us", time_zone="UTC", strict=False) for shape in _WITH_OFFSET]
    naive = [column.str.to_datetime(shape, time_unit="us", strict=False) for shape in _WITHOUT]
    naive.append(column.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")))
    readings += [reading.dt.replace_time_zone("UTC") for reading in naive]
    found = texts.to_frame().select(pl.coalesce(readings).alias(texts.name)).to_series()
    if found.null_count() > texts.null_count():
        odd = texts.filter(found.is_null() & texts.is_not_null())[0]
        raise ContractBroken(
            f"{_named(source)}: {odd!r} in '{texts.name}' is no time. Write times as 2013-02-08T07:00:00Z, or leave "
            "timestamp_field out and convert them in the asset function."
        )
    return found


def _query(source: SqlSource, window: Window | None) -> pl.DataFrame:
    uri = os.environ.get(source.connection)
    if not uri:
        raise ConfigurationError(
            f"{_named(source)}: its connection URI is read from the environment variable {source.connection}, which is "
            f"not set. Set it: export {source.connection}='postgresql://user:password@host/database'"
        )
    scheme = urlsplit(uri).scheme.lower()
    if not scheme:
        raise ConfigurationError(
            f"{_named(source)}: what the environment variable {source.connection} holds is not a URI. Write it as "
            "'postgresql://user:password@host/database'."
        )
    if scheme == "sqlite":
        _refuse_missing_file(source, uri)
    query = source.query.strip().rstrip(";")
    if window is None or source.timestamp_field is None:
        return _rows(source, uri, query)
    schema = _rows(source, uri, f"SELECT * FROM ({query}) AS source_rows WHERE 1 = 0").schema  # noqa: S608 (the project's own)
    _check_columns(source, schema)
    condition = _pushed_down(source.timestamp_field, schema[source.timestamp_field], window, scheme.partition("+")[0])
    return _rows(source, uri, f"SELECT * FROM ({query}) AS source_rows{condition}")  # noqa: S608


def _pushed_down(name: str, dtype: pl.DataType, window: Window, scheme: str) -> str:
    """A condition that holds for every row of the window and for few others; empty where none is safe.

    Literals are text in whole seconds, which databases read as their column's type; the exact cut comes later.
    """
    column = f"`{name}`" if scheme == "mysql" else '"' + name.replace('"', '""') + '"'
    start, end = (_aware(moment) for moment in window)
    if scheme == "sqlite" or dtype == pl.String():
        # Compared as text. Only the date is sure to be written the same way, and an offset moves it by a day at most.
        day = timedelta(days=1)
        within = f"{column} >= '{start - day:%Y-%m-%d}' AND {column} < '{end + 2 * day:%Y-%m-%d}'"
        return f" WHERE (typeof({column}) <> 'text' OR ({within}))" if scheme == "sqlite" else f" WHERE {within}"
    if dtype == pl.Date():
        return f" WHERE {column} >= '{start:%Y-%m-%d}' AND {column} <= '{end:%Y-%m-%d}'"
    if isinstance(dtype, pl.Datetime):
        offset = "+00:00" if dtype.time_zone is not None else ""
        later = end.replace(microsecond=0) + timedelta(seconds=1)
        return (
            f" WHERE {column} >= '{start:%Y-%m-%dT%H:%M:%S}{offset}' AND {column} < '{later:%Y-%m-%dT%H:%M:%S}{offset}'"
        )
    return ""


def _rows(source: SqlSource, uri: str, query: str) -> pl.DataFrame:
    scheme = urlsplit(uri).scheme.lower()
    try:
        if "+" in scheme:
            return _through_sqlalchemy(uri, query)
        return pl.read_database_uri(query, uri, engine="connectorx" if scheme in _CONNECTORX else "adbc")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{_named(source)}: the driver for {scheme} is not installed ({_without_secrets(uri, error)}). "
            "Install it: pip install 'feature-assets[sql]', or the package of that name."
        ) from error
    # Each driver has errors of its own, with no common class.
    except Exception as error:
        raise StoreUnavailable(
            f"{_named(source)}: the database at {source.connection} did not answer the query: "
            f"{_without_secrets(uri, error)}. Check the query, and the URI in {source.connection}."
        ) from error


def _through_sqlalchemy(uri: str, query: str) -> pl.DataFrame:
    from sqlalchemy import create_engine, text

    engine = create_engine(uri)
    try:
        with engine.connect() as connection:
            return pl.read_database(text(query), connection)
    finally:
        engine.dispose()


def _refuse_missing_file(source: SqlSource, uri: str) -> None:
    """SQLite makes an empty database where there is none, and would say that it has no such table."""
    path = Path(unquote(uri.partition("://")[2].partition("?")[0]))
    if not path.is_file():
        raise StoreUnavailable(
            f"{_named(source)}: there is no database at {path}, where the URI in {source.connection} leads. "
            "Write an absolute path: sqlite:///home/me/my.db"
        )


def _without_secrets(uri: str, error: Exception) -> str:
    told, parts = _one_line(error), urlsplit(uri)
    for secret in (uri, parts.password, unquote(parts.password or "")):
        told = told.replace(secret, "…") if secret else told
    return told


def _one_line(error: Any) -> str:
    return re.sub(r"\s+", " ", str(error))[:300].rstrip(". ")
