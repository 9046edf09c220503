"""A view's history as it is at one Delta version, opened once."""

from datetime import datetime
from functools import cached_property

import polars as pl
from deltalake import DeltaTable

from feature_assets.offline.files import files_of
from feature_assets.offline.reading import rows_between, scanned
from feature_assets.spec import ViewSpec


class Pinned:
    """A view's history at one Delta version: what is committed later does not show.

    Attributes:
        view: whose history it is.
        rows: all of it, as of `OfflineStore.scan`.
        delta_version: the version.
    """

    def __init__(self, view: ViewSpec, table: DeltaTable) -> None:
        self.view, self.rows, self.delta_version = view, scanned(view, table), table.version()
        self._table = table

    @property
    def count(self) -> int:
        """How many rows there are."""
        return int(self._files["rows"].sum())

    def rows_between(self, since: datetime | None, until: datetime) -> int:
        """At most about how many rows have an event between two times, both included, by the bounds of the data files."""
        return rows_between(self._files, since, until)

    @cached_property
    def _files(self) -> pl.DataFrame:
        return files_of(self._table, bounds_of=self.view.event_timestamp)
