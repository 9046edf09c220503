"""The Delta versions that saved training sets are made again from."""

from collections.abc import Iterable, Mapping

from feature_assets.spec import ViewSpec
from feature_assets.training.manifest import table_label
from feature_assets.training.saved import TrainingSets


class NeededVersions:
    """Of each table the versions that saved sets need, and which sets those are."""

    def __init__(self, tables: Mapping[str, Mapping[int, list[str]]]) -> None:
        self._tables = tables

    @classmethod
    def of(cls, sets: TrainingSets) -> "NeededVersions":
        """Those of all sets that are saved now.

        Raises:
            StoreUnsafe: a manifest is damaged, so that nobody can say what its set needs.
        """
        tables: dict[str, dict[int, list[str]]] = {}
        for name in sets.names():
            for label, version in sets.manifest(name).question.tables.items():
                tables.setdefault(label, {}).setdefault(version, []).append(name)
        return cls(tables)

    def versions(self, view: ViewSpec) -> list[int]:
        """The versions of the view's table that a set needs."""
        return sorted(self._table(view))

    def sets(self, view: ViewSpec, versions: Iterable[int]) -> list[str]:
        """The names of the sets that need one of these versions."""
        table = self._table(view)
        return sorted({name for version in versions for name in table.get(version, ())})

    def _table(self, view: ViewSpec) -> Mapping[int, list[str]]:
        return self._tables.get(table_label(view), {})
