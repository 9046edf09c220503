"""On-demand features, computed when they are asked for. Training and serving share this one evaluator.

A transformation is Polars expressions, stored as data, or a function by import path. Either way one row has to get the
value that it would get in any batch: expressions are checked for that, a function has to see to it itself.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import polars as pl

from feature_assets.casting import NotCastable, lossless
from feature_assets.errors import ContractBroken, DeclarationError, TransformationRefused, WrongType
from feature_assets.expressions import check_row_wise, from_data, to_data
from feature_assets.functions import function_digest, import_path, load_function
from feature_assets.references import OnDemandRead, ReadPlan
from feature_assets.spec import Expressions, Field, Function, OnDemandViewSpec
from feature_assets.types import FeatureType

__all__ = [
    "OnDemand",
    "Transformation",
    "check_declaration",
    "check_row_wise",
    "compile_transformation",
    "declared_expressions",
    "declared_function",
    "evaluate_on_demand",
    "function_digest",
    "import_path",
]

_Results = Mapping[str, pl.Series]
_FAILED = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


def declared_expressions(view: str, features: Mapping[str, pl.Expr]) -> Expressions:
    """Expressions as a transformation that can be stored.

    Raises:
        DeclarationError: one of them calls Python, or its value for a row depends on other rows.
    """
    stored = {}
    for name, expression in features.items():
        place = f"On-demand view '{view}', feature '{name}'"
        if not isinstance(expression, pl.Expr):
            raise DeclarationError(
                f"{place}: {expression!r} is not a Polars expression. Write it as in pl.col('temp') * 2."
            )
        stored[name] = to_data(expression, place)
        check_row_wise(stored[name], place)
    return Expressions(stored)


def declared_function(function: Callable[..., Any], *, mode: Literal["frame", "row"] = "frame") -> Function:
    """A function as a transformation that can be stored: its import path and the digest of its source.

    Raises:
        DeclarationError: another process could not import it, or it has no source to compare.
    """
    return Function(import_path(function), function_digest(function), mode)


class Transformation:
    """One on-demand view, ready to compute. Made by `compile_transformation`."""

    __slots__ = ("_compute", "_features", "_place")

    def __init__(self, place: str, features: Sequence[Field], compute: Callable[[pl.DataFrame], _Results]) -> None:
        self._place, self._compute = place, compute
        self._features = [(field, _needs_no_look(field.type)) for field in features]

    def evaluate(self, inputs: pl.DataFrame) -> pl.DataFrame:
        """The features, for the same rows in the same order, in their declared dtypes.

        Args:
            inputs: a column for each name that the transformation sees, as conformed columns.

        Raises:
            ContractBroken: the transformation failed, gave another number of rows, or a value that is not of the
                declared type.
        """
        if inputs.height == 0:
            return pl.DataFrame(schema={field.name: field.type.polars for field, _ in self._features})
        results = self._compute(inputs)
        columns = []
        for field, no_look in self._features:
            column = results[field.name]
            if len(column) != inputs.height:
                raise ContractBroken(
                    f"{self._place}: feature '{field.name}' came with {len(column)} values for {inputs.height} rows. "
                    "Return one value a row, in the order of the rows."
                )
            if not no_look or column.dtype != field.type.polars:
                column = _as_declared(column, field, self._place)
            columns.append(column.alias(field.name))
        return pl.DataFrame(columns)


def compile_transformation(
    spec: OnDemandViewSpec,
    allowed_modules: Sequence[str] = (),
    *,
    inputs: Mapping[str, FeatureType],
    features: Sequence[Field] | None = None,
) -> Transformation:
    """The transformation of an on-demand view, checked and loaded.

    Args:
        spec: the view.
        allowed_modules: modules or packages that a function may be loaded from.
        inputs: the type of each name that the transformation sees.
        features: those to compute, in this order; all of them by default.

    Raises:
        TransformationRefused: a function is not in an allowed module, cannot be imported or is not the one that was
            registered; an expression is not readable as data, or looks at other rows.
    """
    place = f"On-demand view '{spec.name}'"
    wanted = spec.features if features is None else tuple(features)
    how = spec.transformation
    if isinstance(how, Expressions):
        return Transformation(place, wanted, _by_expressions(how, wanted, place))
    function = load_function(how, allowed_modules, place)
    place = f"{place}, {how.path}"
    if how.mode == "row":
        return Transformation(place, wanted, _by_rows(function, wanted, inputs, place))
    return Transformation(place, wanted, _by_frame(function, wanted, place))


def check_declaration(spec: OnDemandViewSpec, inputs: Mapping[str, FeatureType]) -> None:
    """Refuses expressions that could not be evaluated on such inputs, or have another type than declared.

    A function is not called, so that of a function nothing is known before it runs.

    Raises:
        DeclarationError: naming the feature.
    """
    if not isinstance(spec.transformation, Expressions):
        return
    # Computed on no rows: the schema alone would let `.dt.hour()` of a text pass.
    frame = pl.DataFrame(schema={name: of.polars for name, of in inputs.items()})
    for field in spec.features:
        place = f"On-demand view '{spec.name}', feature '{field.name}'"
        expression = from_data(spec.transformation.features[field.name], place)
        if unknown := [name for name in expression.meta.root_names() if name not in inputs]:
            raise DeclarationError(f"{place} reads '{unknown[0]}', which is no input of the view: {', '.join(inputs)}.")
        try:
            dtype = frame.with_columns(expression.alias(field.name)).schema[field.name]
        except _FAILED as error:
            raise DeclarationError(f"{place} cannot be computed from its inputs: {error}") from error
        try:
            lossless(pl.col(field.name), dtype, field.type)
        except NotCastable as error:
            raise DeclarationError(f"{place} is declared {field.type} and computed as {dtype}. {error}") from None


class OnDemand:
    """The on-demand views of one plan, compiled.

    `inputs` are the columns that a frame has to have, with their types: features of views and request fields.
    `outputs` are the columns that `evaluate` adds.
    """

    __slots__ = ("_steps", "inputs", "outputs")

    def __init__(self, plan: ReadPlan, allowed_modules: Sequence[str] = ()) -> None:
        """Raises what `compile_transformation` raises."""
        types = plan.types()
        self.outputs = {read.column(field.name): field.type for read in plan.on_demand for field in read.features}
        self._steps = [(read, _looked_at(read), _compiled(read, types, allowed_modules)) for read in plan.on_demand]
        needed = dict.fromkeys(column for _, inputs, _ in self._steps for _, column in inputs)
        self.inputs = {column: types[column] for column in needed if column not in self.outputs}

    def evaluate(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with the features of all the views added, under their qualified names; rows as they were.

        Raises:
            ContractBroken: see `Transformation.evaluate`.
        """
        for read, inputs, transformation in self._steps:
            # Columns are taken out and renamed one by one: a `select` costs more than most transformations do.
            seen = pl.DataFrame([frame.get_column(column).alias(name) for name, column in inputs])
            computed = transformation.evaluate(seen)
            frame = frame.hstack([column.alias(read.column(column.name)) for column in computed.iter_columns()])
        return frame


def evaluate_on_demand(plan: ReadPlan, frame: pl.DataFrame, allowed_modules: Sequence[str] = ()) -> pl.DataFrame:
    """The frame with the on-demand features of the plan added; see `OnDemand`."""
    return OnDemand(plan, allowed_modules).evaluate(frame)


def _looked_at(read: OnDemandRead) -> tuple[tuple[str, str], ...]:
    """The inputs that the transformation looks at, as far as that is known; at least one, which says how many rows."""
    how = read.spec.transformation
    if not isinstance(how, Expressions):
        return read.inputs
    stored = [how.features[field.name] for field in read.features]
    if any('"Selector"' in text for text in stored):
        return read.inputs
    names = {name for text in stored for name in from_data(text, read.name).meta.root_names()}
    return tuple(pair for pair in read.inputs if pair[0] in names) or read.inputs[:1]


def _compiled(read: OnDemandRead, types: Mapping[str, FeatureType], allowed_modules: Sequence[str]) -> Transformation:
    inputs = {seen: types[column] for seen, column in read.inputs}
    return compile_transformation(read.spec, allowed_modules, inputs=inputs, features=read.features)


def _by_expressions(how: Expressions, features: Sequence[Field], place: str) -> Callable[[pl.DataFrame], _Results]:
    expressions = []
    for field in features:
        stored, there = how.features[field.name], f"{place}, feature '{field.name}'"
        expression = from_data(stored, there)
        try:
            check_row_wise(stored, there)
        except DeclarationError as error:
            raise TransformationRefused(str(error)) from None
        expressions.append(expression.alias(field.name))

    def compute(inputs: pl.DataFrame) -> _Results:
        try:
            # Not `select`: a literal alone has to get as many rows as there are.
            computed = inputs.with_columns(expressions)
        except _FAILED as error:
            raise ContractBroken(f"{place} cannot be computed: {error}") from error
        return {field.name: computed.get_column(field.name) for field in features}

    return compute


def _by_frame(
    function: Callable[..., Any], features: Sequence[Field], place: str
) -> Callable[[pl.DataFrame], _Results]:
    def compute(inputs: pl.DataFrame) -> _Results:
        returned = _called(function, inputs, place)
        try:
            frame = returned.collect() if isinstance(returned, pl.LazyFrame) else pl.DataFrame(returned)
        except (TypeError, ValueError, *_FAILED) as error:
            raise ContractBroken(
                f"{place} returned {type(returned).__name__}, which is no frame: {error}. "
                "Return a Polars DataFrame or a dict of columns."
            ) from error
        _require(features, frame.columns, place)
        return {field.name: frame.get_column(field.name) for field in features}

    return compute


def _by_rows(
    function: Callable[..., Any], features: Sequence[Field], inputs: Mapping[str, FeatureType], place: str
) -> Callable[[pl.DataFrame], _Results]:
    def compute(frame: pl.DataFrame) -> _Results:
        columns = [of.from_frame(frame.get_column(name)) for name, of in inputs.items()]
        rows = [_one_row(dict(zip(inputs, values, strict=True))) for values in zip(*columns, strict=True)]
        return {field.name: field.type.to_frame(field.name, [row[field.name] for row in rows]) for field in features}

    def _one_row(row: dict[str, Any]) -> dict[str, Any]:
        returned = _called(function, row, place)
        if not isinstance(returned, Mapping):
            raise ContractBroken(f"{place} returned {type(returned).__name__}. Return a dict with a value per feature.")
        _require(features, returned, place)
        return {field.name: _parsed(field, returned[field.name], place) for field in features}

    return compute


def _called(function: Callable[..., Any], argument: Any, place: str) -> Any:
    try:
        return function(argument)
    # The function is somebody else's and may raise anything.
    except Exception as error:
        raise ContractBroken(f"{place} failed: {type(error).__name__}: {error}") from error


def _require(features: Sequence[Field], given: Mapping[str, Any] | Sequence[str], place: str) -> None:
    for field in features:
        if field.name not in given:
            has = ", ".join(given) or "nothing"
            raise ContractBroken(f"{place} did not return feature '{field.name}' (it returned: {has}).")


def _parsed(field: Field, value: Any, place: str) -> Any:
    try:
        return field.type.parse(value)
    except WrongType as error:
        raise ContractBroken(f"{place}: feature '{field.name}': {error}.") from None


def _needs_no_look(of: FeatureType) -> bool:
    """Whether every value of the dtype is one of the type."""
    return lossless(pl.col("x"), of.polars, of).broken is None


def _as_declared(column: pl.Series, field: Field, place: str) -> pl.Series:
    try:
        cast = lossless(pl.col(column.name), column.dtype, field.type)
    except NotCastable as error:
        raise ContractBroken(
            f"{place}: feature '{field.name}' is declared {field.type} and came as {column.dtype}. {error}"
        ) from None
    broken = pl.lit(False) if cast.broken is None else cast.broken
    looked = pl.DataFrame([column]).select(value=cast.value, broken=broken)
    if looked.get_column("broken").any():
        rows = looked.get_column("broken").arg_true()
        raise ContractBroken(
            f"{place}: feature '{field.name}' is declared {field.type}, and {_shown(column, rows[0])} (row {rows[0]}, "
            f"{len(rows)} such rows) is not {cast.needs or f'a {field.type}'}. Round, clip or convert on purpose."
        )
    return looked.get_column("value")


def _shown(column: pl.Series, row: int) -> str:
    try:
        text = repr(column.slice(row, 1).to_list()[0])
    except (ValueError, OverflowError):
        # Polars knows dates that Python does not.
        text = column.slice(row, 1).cast(pl.String).item()
    return text if len(text) <= 60 else text[:57] + "…"
