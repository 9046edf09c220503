"""What a person types or keeps in a file, as entity rows of the declared types."""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_assets.cli.failures import Mistake
from feature_assets.errors import RequestError, WrongType

if TYPE_CHECKING:
    from datetime import datetime

    import polars as pl

    from feature_assets.types import FeatureType


def _pairs(typed: list[str] | None) -> list[str] | None:
    for pair in typed or ():
        name, equals, _ = pair.partition("=")
        if not equals or not name.strip():
            raise typer.BadParameter(f"'{pair}' is not NAME=VALUE, as in origin=JFK")
    return typed


Pairs = Annotated[
    list[str] | None,
    typer.Option(
        "--entity",
        "-e",
        callback=_pairs,
        metavar="NAME=VALUE",
        help="A join key or request value. Repeat a name for several rows; one value counts for all of them.",
        show_default=False,
    ),
]
RowsFile = Annotated[
    Path | None,
    typer.Option(
        "--rows",
        metavar="FILE",
        help="Rows from a .json, .jsonl, .csv or .parquet file; - reads JSON from stdin.",
        show_default=False,
    ),
]


def columns_typed(
    pairs: Sequence[str] | None, file: Path | None, types: "Mapping[str, FeatureType]"
) -> dict[str, list[Any]]:
    """The columns that were typed as NAME=VALUE, or that the file holds, of these types.

    Raises:
        RequestError: a name or value is not what is needed, or columns differ in length.
    """
    return values_typed(columns_given(pairs, file, types), types)


def values_typed(columns: Mapping[str, list[Any]], types: "Mapping[str, FeatureType]") -> dict[str, list[Any]]:
    """The values of `columns_given` as values of these types.

    Raises:
        WrongType: one is none.
    """
    return {name: [_value(types[name], name, one) for one in values] for name, values in columns.items()}


def columns_given(
    pairs: Sequence[str] | None, file: Path | None, types: "Mapping[str, FeatureType]"
) -> dict[str, list[Any]]:
    """The same as it was typed, or as the file holds it, of whatever type.

    Raises:
        RequestError: a name is not what is needed, or columns differ in length.
    """
    if pairs and file is not None:
        raise Mistake("Give the rows either as --entity name=value or as --rows file, not both.")
    texts = _from_file(file) if file is not None else _from_pairs(pairs or ())
    unknown = [name for name in texts if name not in types]
    if unknown and file is None:
        raise RequestError(f"'{unknown[0]}' is none of the names that are needed ({_needed(types)}).")
    # A file may have more columns than this question needs.
    columns = {name: values for name, values in texts.items() if name in types}
    length = max(map(len, columns.values()), default=0)
    for name, values in columns.items():
        if len(values) not in (1, length):
            raise RequestError(
                f"'{name}' was given {len(values)} times and another name {length} times. "
                "Give each name once, or once for every row."
            )
    return {name: values if len(values) == length else values * length for name, values in columns.items()}


def rows_typed(columns: Mapping[str, list[Any]], types: "Mapping[str, FeatureType]") -> "pl.DataFrame":
    """The rows of `columns_given` of which each value is one of its type, each row once."""
    import polars as pl

    rows = []
    for row in zip(*columns.values(), strict=True):
        with suppress(WrongType):
            rows.append([_value(types[name], name, value) for name, value in zip(columns, row, strict=True)])
    found = zip(*rows, strict=True) if rows else [()] * len(columns)
    return pl.DataFrame(
        [types[name].to_frame(name, list(of)) for name, of in zip(columns, found, strict=True)]
    ).unique()


def columns_read(file: Path, types: "Mapping[str, FeatureType]") -> dict[str, list[Any]]:
    """The columns of a file, those of these names as values of their types and all others as they are.

    Raises:
        WrongType: naming the column and the row.
    """
    found = _from_file(file)
    return {name: _column(types[name], name, values) if name in types else values for name, values in found.items()}


def _column(of: "FeatureType", name: str, values: Sequence[Any]) -> list[Any]:
    read = []
    for at, value in enumerate(values):
        try:
            read.append(_value(of, name, value))
        except WrongType as error:
            raise WrongType(f"Row {at}, {error}") from None
    return read


def moment(option: str, text: str | None) -> "datetime | None":
    """The time that was typed for an option; a naive one is UTC.

    Raises:
        WrongType: it is none.
    """
    from feature_assets.types import Timestamp

    try:
        found: datetime | None = Timestamp.parse(text)
    except WrongType as error:
        raise WrongType(f"{option}: {str(error).removeprefix('str ')}.") from None
    return found


def missing(given: Mapping[str, Any], types: "Mapping[str, FeatureType]") -> list[str]:
    """The needed names that were not given."""
    return [name for name in types if name not in given]


def _needed(types: "Mapping[str, FeatureType]") -> str:
    return ", ".join(f"{name} {of}" for name, of in types.items()) or "none"


def _from_pairs(pairs: Sequence[str]) -> dict[str, list[Any]]:
    texts: dict[str, list[Any]] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        texts.setdefault(name.strip(), []).append(value)
    return texts


def _value(of: "FeatureType", name: str, given: Any) -> Any:
    """A value as its type has it: text as it stands if the type reads it, else as JSON: 12.5, true, [1, 2]."""
    try:
        return of.parse(given)
    except WrongType as error:
        if isinstance(given, str):
            try:
                return of.parse(json.loads(given))
            except (ValueError, WrongType):
                pass
        raise WrongType(f"'{name}': {str(error).removeprefix('str ')}.") from None


def _from_file(file: Path) -> dict[str, list[Any]]:
    if str(file) == "-":
        return _from_json(sys.stdin.read(), "stdin")
    if not file.is_file():
        raise Mistake(f"There is no file {file}.")
    if file.suffix in (".json", ".jsonl", ".ndjson"):
        return _from_json(file.read_text(), str(file))
    if file.suffix in (".csv", ".parquet"):
        return _from_table(file)
    raise Mistake(f"{file} is none of .json, .jsonl, .csv and .parquet.")


def _from_table(file: Path) -> dict[str, list[Any]]:
    import polars as pl

    try:
        # As text, so that the declared type reads it: 007 stays a name, and no number loses digits.
        frame = pl.read_csv(file, infer_schema=False) if file.suffix == ".csv" else pl.read_parquet(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise Mistake(f"{file} cannot be read: {error}") from error
    return frame.to_dict(as_series=False)


def _from_json(text: str, place: str) -> dict[str, list[Any]]:
    try:
        found = json.loads(text) if text.lstrip().startswith(("[", "{")) and not _is_lines(text) else _lines(text)
    except ValueError as error:
        raise Mistake(f"{place} is not JSON: {error}") from error
    rows = [found] if isinstance(found, dict) else found
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise Mistake(f'{place} has no rows. Write them as [{{"name": "value"}}], or one object per line.')
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _is_lines(text: str) -> bool:
    first, _, rest = text.strip().partition("\n")
    return first.rstrip().endswith("}") and rest.lstrip().startswith("{")


def _lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]
