"""Delta tables that are not the platform's own: read as sources, and written for others to read."""

from collections.abc import Mapping
from typing import Literal

import polars as pl
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from feature_assets.errors import RequestError, StoreFull, StoreUnavailable
from feature_assets.offline.place import reason_of


def scan_table(uri: str, storage_options: Mapping[str, str]) -> pl.LazyFrame:
    """Any Delta table as it is now; the frame stays at that version.

    Raises:
        StoreUnavailable: there is no table, or it cannot be read.
    """
    try:
        table = DeltaTable(uri, storage_options=dict(storage_options) or None)
    except TableNotFoundError as error:
        raise StoreUnavailable(f"there is no Delta table at {uri}") from error
    except (DeltaError, OSError) as error:
        raise StoreUnavailable(f"the Delta table at {uri} cannot be read: {reason_of(error)}") from error
    return pl.scan_delta(table, version=table.version())


def write_table(
    uri: str, rows: pl.LazyFrame, *, mode: Literal["error", "append", "overwrite"], storage_options: Mapping[str, str]
) -> None:
    """Stream rows into a Delta table in one commit, in their order from file to file.

    Raises:
        RequestError: there is a table already, or it does not take the rows.
        StoreUnavailable, StoreFull: it cannot be written.
    """
    batches = rows.collect_batches(maintain_order=True, lazy=True, engine="streaming")
    try:
        write_deltalake(uri, batches, mode=mode, storage_options=dict(storage_options) or None)
    except OSError as error:
        if StoreFull.is_told_by(error):
            raise StoreFull(f"No room is left for the Delta table at {uri} ({reason_of(error)}).") from error
        raise StoreUnavailable(f"the Delta table at {uri} cannot be written: {reason_of(error)}") from error
    except DeltaError as error:
        raise RequestError(
            f"The Delta table at {uri} does not take the rows: {reason_of(error)}. "
            "mode='append' adds to one that is there, mode='overwrite' takes its place."
        ) from error
