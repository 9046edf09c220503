"""What a producer sends → rows of the views that take them: the fields of a source, and each view's transformation."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import polars as pl

from feature_assets.casting import NotCastable, lossless
from feature_assets.errors import ContractBroken, DeclarationError, TransformationRefused
from feature_assets.expressions import check_row_wise, from_data
from feature_assets.functions import load_function
from feature_assets.spec import Expressions, Function, StreamSource, TimePartitions, ViewSpec
from feature_assets.types import FeatureType, String

Transform = Callable[[pl.DataFrame], pl.DataFrame]

_FAILED = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


def fields_of(source: StreamSource, views: Iterable[ViewSpec]) -> dict[str, FeatureType]:
    """The fields of a row of the source, by the names that they have there, with their types.

    Without a schema they are the columns of the views, those by which partitions are told apart, and the event id.

    Raises:
        DeclarationError: two views give one field different types.
    """
    if source.schema:
        return {field.name: field.type for field in source.schema}
    back = {renamed: name for name, renamed in source.field_mapping.items()}
    found: dict[str, FeatureType] = {}
    for view in views:
        columns = {**dict.fromkeys(_dimensions(view), String), **view.types}
        for name, of in columns.items():
            field = back.get(name, name)
            if found.setdefault(field, of) != of:
                raise DeclarationError(
                    f"{_named(source)}: '{field}' is {found[field]} in one of its views and {of} in '{view.name}'. Give the "
                    "source a schema=, and the views a transform."
                )
    if source.event_id is not None:
        found.setdefault(source.event_id, String)
    return found


def optional_fields(source: StreamSource, views: Iterable[ViewSpec]) -> set[str]:
    """The fields that a row may lack: created timestamps are then the time at which it came."""
    back = {renamed: name for name, renamed in source.field_mapping.items()}
    created = {view.created_timestamp for view in views if view.stream is not None and view.stream.transform is None}
    return {back.get(name, name) for name in created if name is not None}


def _dimensions(view: ViewSpec) -> list[str]:
    """The columns beside its own by which the view's partitions are told apart."""
    return [name for name, each in view.partitions.items() if not isinstance(each, TimePartitions)]


def _named(source: StreamSource) -> str:
    return f"{type(source).__name__} '{source.name}'"


def check_stream(view: ViewSpec, source: StreamSource) -> None:
    """See that a view's stream side can be right.

    Raises:
        DeclarationError: it takes its rows from a source that lacks a column, or transforms what nobody has declared.
    """
    place = f"View '{view.name}'"
    how = view.stream.transform if view.stream is not None else None
    if how is not None and not source.schema:
        raise DeclarationError(
            f"{place} transforms the rows of {_named(source)}, which does not say what is in them. Give it schema=[Field(…)]."
        )
    renamed = {source.field_mapping.get(name, name): of for name, of in fields_of(source, [view]).items()}
    if isinstance(how, Expressions):
        _check_expressions(view, how, renamed)
    if how is None:
        wanted = {**dict.fromkeys(_dimensions(view), String), **view.types}
        for name, of in wanted.items():
            if name not in renamed and name != view.created_timestamp:
                raise DeclarationError(
                    f"{place} takes the rows of {_named(source)} as they are, and those have no '{name}' "
                    f"(they have: {', '.join(renamed)}). Add it to the schema, or make it with transform=."
                )
            _check_type(place, name, renamed.get(name, of).polars, of)


def _check_expressions(view: ViewSpec, how: Expressions, fields: Mapping[str, FeatureType]) -> None:
    frame = pl.DataFrame(schema={name: of.polars for name, of in fields.items()})
    types = {**dict.fromkeys(_dimensions(view), String), **view.types}
    for name in types:
        if name not in how.features and name not in fields and name != view.created_timestamp:
            raise DeclarationError(
                f"View '{view.name}': transform= makes no '{name}', and {', '.join(fields)} do not have it. Add an expression."
            )
    for name, stored in how.features.items():
        place = f"View '{view.name}', transform of '{name}'"
        if name not in types:
            raise DeclarationError(f"{place}: the view has no such column. It has: {', '.join(types)}.")
        check_row_wise(stored, place)
        try:
            dtype = frame.with_columns(from_data(stored, place).alias(name)).schema[name]
        except _FAILED as error:
            raise DeclarationError(f"{place} cannot be computed: {str(error).splitlines()[0]}") from error
        _check_type(place, name, dtype, types[name])


def _check_type(place: str, name: str, dtype: pl.DataType, of: FeatureType) -> None:
    try:
        lossless(pl.col(name), dtype, of)
    except NotCastable as error:
        raise DeclarationError(f"{place}: '{name}' is declared {of} and comes as {dtype}. {error}") from None


def is_row_wise(view: ViewSpec) -> bool:
    """Whether each row of the view is made of one row of the source, in the same order."""
    return view.stream is None or not isinstance(view.stream.transform, Function)


def compiled(view: ViewSpec, allowed_modules: Sequence[str]) -> Transform:
    """What makes rows of a view, not conformed yet, from rows of its source, renamed.

    It raises ContractBroken where a person's function or expression fails.

    Raises:
        TransformationRefused: a function is not in an allowed module, or is not the one that was registered.
    """
    how = view.stream.transform if view.stream is not None else None
    place = f"The transform of view '{view.name}'"
    if isinstance(how, Function):
        return _by_function(load_function(how, allowed_modules, place), place)
    if isinstance(how, Expressions):
        return _by_expressions(how, place)
    return lambda rows: rows


def _by_function(function: Callable[..., object], place: str) -> Transform:
    def transform(rows: pl.DataFrame) -> pl.DataFrame:
        try:
            returned = function(rows.lazy())
            found = returned.collect() if isinstance(returned, pl.LazyFrame) else returned
        # The function is somebody else's and may raise anything.
        except Exception as error:
            raise ContractBroken(f"{place} failed: {type(error).__name__}: {error}") from error
        if not isinstance(found, pl.DataFrame):
            raise ContractBroken(f"{place} returned {type(found).__name__}. Return a Polars LazyFrame or DataFrame.")
        return found

    return transform


def _by_expressions(how: Expressions, place: str) -> Transform:
    expressions = []
    for name, stored in how.features.items():
        try:
            check_row_wise(stored, f"{place}, '{name}'")
        except DeclarationError as error:
            raise TransformationRefused(str(error)) from None
        expressions.append(from_data(stored, place).alias(name))

    def transform(rows: pl.DataFrame) -> pl.DataFrame:
        try:
            return rows.with_columns(expressions)
        except _FAILED as error:
            raise ContractBroken(f"{place} cannot be computed: {error}") from error

    return transform
