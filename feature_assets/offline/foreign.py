"""Delta tables that others write, read as sources."""

from collections.abc import Mapping

import polars as pl
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from feature_assets.errors import StoreUnavailable
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
