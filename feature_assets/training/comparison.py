"""What two saved training sets differ in: what was asked and of what, columns, and rows."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
import polars as pl

from feature_assets.spec import Spec
from feature_assets.training.batches import rebatched
from feature_assets.training.digests import Digester
from feature_assets.training.manifest import Manifest, Question
from feature_assets.training.saved import TrainingSets

EXAMPLES: Final = 5
"""So many rows that differ are shown."""

_ROWS: Final = 100_000
_SPINE, _VALUES, _NUMBER = "spine", "values", "number"


class Changed(Spec, frozen=True):
    """Something that is one thing in the first set and another in the second; None where it is not there."""

    what: str
    before: str | None
    after: str | None


class ColumnChange(Spec, frozen=True, kw_only=True):
    """A column that is not the same in both: its dtypes, None where it is missing, and in how many rows values differ.

    `rows` is None where rows cannot be told one by one: the spines differ, or the column or its dtype.
    """

    name: str
    before: str | None
    after: str | None
    rows: int | None = None


class RowChanges(Spec, frozen=True, kw_only=True):
    """Rows by the columns that both spines have: only in the first, only in the second, in both with other features."""

    removed: int
    added: int
    changed: int


class RowExample(Spec, frozen=True, kw_only=True):
    """A row that differs: the spine's columns, and of the features that changed what they were and are."""

    row: dict[str, Any]
    before: dict[str, Any]
    after: dict[str, Any]


class Differences(Spec, frozen=True, kw_only=True):
    """What the second training set has otherwise than the first; nothing anywhere if they are equal bit for bit.

    `views` has the Delta version of each view and version, "weather@v1"; `asked` everything else of the question;
    `libraries` what computed. `examples` are the first rows that differ, where both have the same spine.
    """

    first: str
    second: str
    views: tuple[Changed, ...] = ()
    asked: tuple[Changed, ...] = ()
    libraries: tuple[Changed, ...] = ()
    columns: tuple[ColumnChange, ...] = ()
    rows: RowChanges
    examples: tuple[RowExample, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether both have the same rows, bit for bit, whatever they were made of."""
        return not self.columns and not (self.rows.removed or self.rows.added or self.rows.changed)


def differences(sets: TrainingSets, first: str, second: str) -> Differences:
    """Compare two saved sets. Rows are read only where their digests differ, a piece at a time.

    Raises:
        UnknownTrainingSet: there is none of that name.
        StoreUnsafe: a file is gone or damaged.
    """
    one, other = _alike(sets, sets.manifest(first), sets.manifest(second))
    columns = {change.name: change for change in _columns(one, other)}
    rows, examples = RowChanges(removed=0, added=0, changed=0), list[RowExample]()
    if one.spine == other.spine:
        values = [name for name, each in columns.items() if each.before == each.after]
        counts, changed, examples = _row_by_row(sets, one, other, values)
        rows = RowChanges(removed=0, added=0, changed=changed)
        columns |= {
            name: ColumnChange(name=name, before=columns[name].before, after=columns[name].after, rows=count)
            for name, count in counts.items()
        }
    elif one.result != other.result:
        rows = _by_what_they_are(sets, one, other)
    return Differences(
        first=first,
        second=second,
        views=_changed(_versions(one.question), _versions(other.question)),
        asked=_changed(_question(one.question), _question(other.question)),
        libraries=_changed(one.libraries, other.libraries),
        columns=tuple(columns.values()),
        rows=rows,
        examples=tuple(examples),
    )


def _alike(sets: TrainingSets, one: Manifest, other: Manifest) -> tuple[Manifest, Manifest]:
    """The manifests with digests that were made in one way, so that they can be compared."""
    if one.result.block_rows == other.result.block_rows:
        return one, other
    return _digested_anew(sets, one), _digested_anew(sets, other)


def _digested_anew(sets: TrainingSets, manifest: Manifest) -> Manifest:
    rows = sets.load(manifest.name)
    digester = Digester(rows.schema)
    for piece in rows.batches(_ROWS):
        digester.update(piece)
    result = digester.result()
    return msgspec.structs.replace(manifest, result=result, spine=result.only(rows.spine_columns))


def _versions(question: Question) -> dict[str, str]:
    return {label: str(version) for label, version in question.tables.items()}


def _question(question: Question) -> dict[str, str]:
    said = {
        "registry": question.registry,
        "timestamp column": question.timestamp_column,
        "full feature names": str(question.full_feature_names),
        "created cutoff": str(question.created_cutoff),
        "engine": question.engine,
    }
    for each in question.features:
        view = each.view if each.version is None else f"{each.view}@v{each.version}"
        called = f"{view} as {each.alias}" if each.alias else view
        said[f"features of {called}"] = "all" if each.features is None else ", ".join(each.features)
    return said


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Changed, ...]:
    names = dict.fromkeys([*before, *after])
    return tuple(
        Changed(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
    )


def _columns(one: Manifest, other: Manifest) -> Iterator[ColumnChange]:
    for name in dict.fromkeys([*one.schema, *other.schema]):
        same = one.result.columns.get(name) == other.result.columns.get(name)
        before, after = one.schema.get(name), other.schema.get(name)
        # With other rows a column has another digest whatever is in it.
        if before != after or (not same and one.result.rows == other.result.rows):
            yield ColumnChange(name=name, before=before, after=after)


def _row_by_row(
    sets: TrainingSets, one: Manifest, other: Manifest, columns: list[str]
) -> tuple[dict[str, int], int, list[RowExample]]:
    """How often each column differs, in how many rows one of them does, and the first such rows."""
    counts, changed, examples = dict.fromkeys(columns, 0), 0, list[RowExample]()
    if not columns:
        return counts, changed, examples
    spine = list(one.spine.columns)
    for left, right in _side_by_side(sets, one, other):
        differs = pl.DataFrame({name: _differs(left[name], right[name]) for name in columns})
        for name in columns:
            counts[name] += int(differs[name].sum())
        rows = differs.select(pl.any_horizontal(pl.all())).to_series()
        changed += int(rows.sum())
        for place in rows.arg_true().head(EXAMPLES - len(examples)):
            odd = [name for name in columns if differs[name][place]]
            row, before, after = (
                part.row(place, named=True) for part in (left.select(spine), left.select(odd), right.select(odd))
            )
            examples.append(RowExample(row=row, before=before, after=after))
    return counts, changed, examples


def _side_by_side(sets: TrainingSets, one: Manifest, other: Manifest) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """The same rows of both, whatever pieces they were saved in."""
    left, right = (rebatched(sets.load(each.name).batches(_ROWS), _ROWS) for each in (one, other))
    yield from zip(left, right, strict=True)


def _differs(left: pl.Series, right: pl.Series) -> pl.Series:
    """Where two values are not the same; NaN is one value, and -0.0 is not 0.0."""
    differs = left.ne_missing(right)
    if left.dtype.is_float():
        signs = left.is_not_nan() & (left == 0) & ((1 / left) != (1 / right))
        differs |= signs.fill_null(value=False)
    return differs


def _by_what_they_are(sets: TrainingSets, one: Manifest, other: Manifest) -> RowChanges:
    """Rows told by a 64-bit hash of the columns that both spines have, and by how many of them came before."""
    spine = [name for name in one.spine.columns if one.schema[name] == other.schema.get(name)]
    values = [
        name
        for name in one.result.columns
        if name not in one.spine.columns and one.schema[name] == other.schema.get(name)
    ]
    left, right = (_hashed(sets, each, spine, values) for each in (one, other))
    both = left.join(right, on=[_SPINE, _NUMBER], how="inner")
    changed = int((both[_VALUES] != both[f"{_VALUES}_right"]).sum())
    return RowChanges(removed=left.height - both.height, added=right.height - both.height, changed=changed)


def _hashed(sets: TrainingSets, manifest: Manifest, spine: list[str], values: list[str]) -> pl.DataFrame:
    parts = [
        pl.DataFrame({_SPINE: _hash(piece, spine), _VALUES: _hash(piece, values)})
        for piece in sets.load(manifest.name).batches(_ROWS)
    ]
    return pl.concat(parts).with_columns(pl.int_range(pl.len()).over(_SPINE).alias(_NUMBER))


def _hash(piece: pl.DataFrame, names: list[str]) -> pl.Series:
    if not names:
        return pl.zeros(piece.height, pl.UInt64, eager=True)
    return piece.select(names).hash_rows()
