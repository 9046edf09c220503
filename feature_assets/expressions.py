"""Polars expressions as data: text that can be stored, compared and read back without running anybody's code.

Polars keeps a Python function inside an expression as a pickle, and runs whatever the pickle says when it reads the
expression. So only operations that are known to hold none are written or read: the list is here, not there.
"""

import json
from collections.abc import Iterator
from typing import Any

import polars as pl

from feature_assets.errors import DeclarationError, TransformationRefused

# Each node of Polars' tree, and where in it other expressions stand.
_NODES: dict[str, tuple[str, ...]] = {
    "Agg": (),
    "Alias": (),
    "BinaryExpr": ("left", "right"),
    "Cast": ("expr",),
    "Column": (),
    "Element": (),
    "Eval": ("expr", "evaluation"),
    "Explode": ("input",),
    "Field": (),
    "Filter": ("input", "by"),
    "Function": ("input",),
    "Gather": ("expr", "idx"),
    "KeepName": (),
    "Len": (),
    "Literal": (),
    "Over": ("function", "partition_by", "order_by"),
    "RenameAlias": ("expr",),
    "Rolling": ("function", "index_column"),
    "Selector": (),
    "Slice": ("input", "offset", "length"),
    "Sort": ("expr",),
    "SortBy": ("expr", "by"),
    "StructEval": ("expr", "evaluation"),
    "Ternary": ("predicate", "truthy", "falsy"),
}
_ACROSS_ROWS = {"Agg", "Explode", "Filter", "Gather", "Len", "Over", "Rolling", "Slice", "Sort", "SortBy"}


def _names(group: str, names: str) -> set[str]:
    return {f"{group}.{name}" if group else name for name in names.split()}


_ROW_WISE = (
    _names(
        "",
        "Abs AsStruct Atan2 Ceil Clip Coalesce Exp FillNull Floor Log Log1p LowerBound MaxHorizontal MeanHorizontal "
        "MinHorizontal Negate Reinterpret RepeatBy Replace ReplaceStrict Round RoundSF Sign SumHorizontal ToPhysical "
        "Truncate UpperBound Bin.Breaks",
    )
    | _names("FillNullWithStrategy", "Zero One")
    | _names("Pow", "Cbrt Generic Sqrt")
    | _names(
        "Trigonometry",
        "ArcCos ArcCosh ArcSin ArcSinh ArcTan ArcTanh Cos Cosh Cot Degrees Radians Sin Sinh Tan Tanh",
    )
    | _names("Bitwise", "CountOnes CountZeros LeadingOnes LeadingZeros TrailingOnes TrailingZeros")
    | _names(
        "Boolean",
        "AllHorizontal AnyHorizontal IsBetween IsClose IsEmpty IsFinite IsIn IsInfinite IsNan IsNotNan IsNotNull "
        "IsNull Not",
    )
    | _names(
        "StringExpr",
        "Base64Decode Base64Encode ConcatHorizontal Contains ContainsAny CountMatches EndsWith EscapeRegex Extract "
        "ExtractAll ExtractGroups ExtractMany Find FindMany Format Head HexDecode HexEncode JsonDecode JsonPathMatch "
        "LenBytes LenChars Lowercase Normalize PadEnd PadStart Replace ReplaceMany Reverse Slice Split SplitExact "
        "SplitN SplitRegex StartsWith StripChars StripCharsEnd StripCharsStart StripPrefix StripSuffix Strptime Tail "
        "Titlecase ToDecimal ToInteger Uppercase ZFill",
    )
    | _names("BinaryExpr", "Base64Decode Base64Encode Contains EndsWith Get Head HexDecode HexEncode Reinterpret Size")
    | _names("BinaryExpr", "Slice StartsWith Tail")
    | _names(
        "TemporalExpr",
        "BaseUtcOffset CastTimeUnit Century Combine ConvertTimeZone DSTOffset Date DatetimeFunction Day DaysInMonth "
        "Duration Hour IsLeapYear IsoYear Microsecond Millennium Millisecond Minute Month MonthEnd MonthStart "
        "Nanosecond OffsetBy OrdinalDay Quarter Replace ReplaceTimeZone Round Second Time TimeStamp ToString TotalDays "
        "TotalHours TotalMicroseconds TotalMilliseconds TotalMinutes TotalNanoseconds TotalSeconds Truncate Week "
        "WeekDay Year",
    )
    | _names("Business", "AddBusinessDay BusinessDayCount IsBusinessDay")
    | _names(
        "ListExpr",
        "ArgMax ArgMin Concat Contains CountMatches Diff DropNulls Gather GatherEvery Get Join Length Max Mean Median "
        "Min SetOperation Shift Slice Sort Std Sum ToArray ToMap ToStruct Var",
    )
    | _names(
        "ArrayExpr",
        "ArgMax ArgMin Concat Contains CountMatches Dot Get Join Length Max Mean Median Min Shift Slice Sort Std Sum "
        "ToList ToStruct Var",
    )
    | _names("StructExpr", "FieldByName JsonEncode PrefixFields RenameFields SelectFields SuffixFields")
    | _names("Range", "DateRanges DatetimeRanges IntRanges LinearSpaces TimeRanges")
    | _names("Categorical", "EndsWith LenBytes LenChars Slice StartsWith")
)
# These take the whole column where a list of values is meant, unless the values stand in the expression.
_LISTED_VALUES = {"Boolean.IsIn", "Replace", "ReplaceStrict"} | _names(
    "StringExpr", "ContainsAny ExtractMany FindMany ReplaceMany"
)

_OTHER_FUNCTIONS = (
    _names(
        "",
        "Append ApproxNUnique ApproxQuantile ArgMax ArgMin ArgSort ArgUnique ArgWhere Bin Correlation "
        "CumCount CumMax CumMin CumProd CumSum Cut Diff DropNans DropNulls Entropy EwmMean EwmStd EwmVar "
        "ExtendConstant FillNullWithStrategy Hash Hist IndexOf Interpolate InterpolateBy Kurtosis MaxBy MinBy "
        "Mode NullCount PctChange PeakMax PeakMin Product QCut Quantile RLE RLEID Rank Repeat Reshape Reverse "
        "RollingExpr RollingExprBy SearchSorted SetSortedFlag Shift ShiftAndFill Skew TopK TopKBy Unique "
        "UniqueCounts ValueCounts",
    )
    | _names("FillNullWithStrategy", "Backward Forward Max MaxBound Mean Min MinBound")
    | _names("Bitwise", "And Or Xor")
    | _names("Boolean", "All Any HasNulls IsDuplicated IsFirstDistinct IsLastDistinct IsSorted IsUnique")
    | _names("Range", "DateRange DatetimeRange IntRange LinearSpace TimeRange")
    | _names("StringExpr", "ConcatVertical")
    | _names("ArrayExpr", "Explode")
)
_SAFE = _ROW_WISE | _OTHER_FUNCTIONS
_NOT_IN_OPTIONS = (_NODES.keys() - {"Literal"}) | {"OfExpr", "Map", "callback"}
_GROUPS = {name.partition(".")[0] for name in _SAFE if "." in name} - {"Bin"}


def to_data(expression: pl.Expr, place: str) -> str:
    """The expression as canonical JSON.

    Args:
        expression: made of Polars' own operations only.
        place: what the expression belongs to, for the message.

    Raises:
        DeclarationError: it calls a Python function (`map_elements`, `fold`, `name.map`, …), which is code and not
            data, or Polars cannot write it down.
    """
    try:
        tree = json.loads(expression.meta.serialize(format="json"))
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise DeclarationError(f"{place}: the expression cannot be stored as data: {error}") from error
    if foreign := _foreign(tree):
        raise DeclarationError(
            f"{place}: the expression uses '{foreign}', which calls Python or is not known to be data only. "
            "Write it with other Polars operations, or declare a function by import path."
        )
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    try:
        pl.Expr.deserialize(text.encode(), format="json")
    except pl.exceptions.PolarsError as error:
        raise DeclarationError(
            f"{place}: Polars cannot read the expression back once it is stored. A NaN or infinity written in it is one "
            "cause: use .is_nan(), .is_infinite(), or pl.lit('NaN').cast(pl.Float64)."
        ) from error
    return text


def from_data(text: str, place: str) -> pl.Expr:
    """The expression that `to_data` wrote.

    Raises:
        TransformationRefused: it is not one, was written by a Polars that this one cannot read, or might hold code.
    """
    try:
        tree = json.loads(text)
        # Checked before Polars reads it: Polars would unpickle a Python function, and with it run anything.
        if foreign := _foreign(tree):
            raise TransformationRefused(
                f"{place}: the stored expression uses '{foreign}', which may hold code; it was not loaded."
            )
        # What was checked is what is read: of a key that stands twice, another reader might take the other.
        return pl.Expr.deserialize(json.dumps(tree).encode(), format="json")
    except (pl.exceptions.PolarsError, ValueError, RecursionError) as error:
        raise TransformationRefused(
            f"{place}: Polars {pl.__version__} cannot read the stored expression: {error}"
        ) from error


def check_row_wise(expression: pl.Expr | str, place: str) -> None:
    """Refuses an expression whose value for one row may depend on the other rows of its batch.

    Serving computes one row at a time and training many; only what looks at its own row is the same in both.

    Args:
        expression: itself, or as `to_data` gave it.
        place: what it belongs to, for the message.

    Raises:
        DeclarationError: it aggregates, sorts, shifts, looks values up in a whole column, or is random.
    """
    text = expression if isinstance(expression, str) else expression.meta.serialize(format="json")
    if across := next(_across_rows(json.loads(text)), None):
        raise DeclarationError(
            f"{place}: the expression uses '{across}', whose value for one row may depend on the other rows, and serving "
            "has one row where training has many. Compute that in a feature view; on lists use .list or .arr instead."
        )


def _foreign(tree: Any) -> str | None:
    """The first operation that is not known to be data only."""
    try:
        return next((name for name in _operations(tree) if name not in _SAFE and name not in _NODES), None)
    except (LookupError, TypeError, ValueError, AttributeError):
        return "a form that Polars does not write"


def _operations(tree: Any) -> Iterator[str]:
    """Every operation of the tree by name, as `Cast` or `StringExpr.Contains`."""
    if isinstance(tree, list):
        for item in tree:
            yield from _operations(item)
    elif isinstance(tree, str):
        yield tree
    elif tree is not None:
        node, inside = _only(tree)
        yield node
        if node == "Function":
            yield from _function(inside)
        elif node == "Cast" and "Literal" not in inside["dtype"]:
            yield "dtype_of"
        elif node == "RenameAlias" and not _renames_by_data(inside["function"]):
            yield "name.map"
        for part in _parts(node, inside):
            yield from _operations(part)


def _only(tree: dict[str, Any]) -> tuple[str, Any]:
    """The one key of an object, which names a variant, and what it holds."""
    ((name, inside),) = tree.items()
    return name, inside


def _renames_by_data(function: Any) -> bool:
    return isinstance(function, str) or {"Prefix", "Suffix", "Replace"}.issuperset(function)


def _parts(node: str, inside: Any) -> list[Any]:
    """The expressions inside a node."""
    if node == "Agg":
        _, of = _only(inside)
        options = of if isinstance(of, list) else of.values() if isinstance(of, dict) and not _is_node(of) else [of]
        # What is neither text nor a number or flag can only be an expression.
        return [one for one in options if isinstance(one, dict | list)]
    if node in ("Alias", "KeepName"):
        return [inside[0] if node == "Alias" else inside]
    # By position Polars would read the same node from a list; it never writes one, and here it is refused.
    parts = [inside[name] for name in _NODES.get(node, ())]
    if node == "Over":
        parts[2] = inside["order_by"] and inside["order_by"][0]
    return parts


def _is_node(tree: dict[str, Any]) -> bool:
    return len(tree) == 1 and _NODES.keys() >= tree.keys()


def _function(inside: Any) -> Iterator[str]:
    name, options = _function_name(inside["function"])
    yield name
    # Options may name a dtype by an expression, and those of a rolling window may hold a Python function.
    waiting = [options]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield from (f"{name} with {key}" for key in found if key in _NOT_IN_OPTIONS)
            waiting.extend(found.values())
        elif isinstance(found, list):
            waiting.extend(item for item in found if isinstance(item, dict | list))


def _function_name(function: Any) -> tuple[str, Any]:
    """The name of a function with its group, and the options that it has."""
    if isinstance(function, str):
        return function, None
    name, options = _only(function)
    if name == "Bin" and "Breaks" in options["method"].get("Intervals", {}).get("spec", ()):
        return "Bin.Breaks", options
    if name not in _GROUPS:
        return name, options
    member, options = (options, None) if isinstance(options, str) else _only(options)
    return f"{name}.{member}", options


def _across_rows(tree: Any) -> Iterator[str]:
    """Every operation whose value for one row is not a function of that row."""
    if isinstance(tree, list):
        for item in tree:
            yield from _across_rows(item)
    elif tree == "Len":
        yield "len"
    elif isinstance(tree, dict):
        node, inside = _only(tree)
        if node in _ACROSS_ROWS:
            yield _only(inside)[0].lower() if node == "Agg" else node
        elif node == "Literal" and "Series" in inside:
            yield "a Series"
        elif node == "Function":
            yield from _function_across_rows(inside)
        elif node == "Eval":
            yield from _eval_across_rows(inside)
        else:
            for part in _parts(node, inside):
                yield from _across_rows(part)


def _function_across_rows(inside: Any) -> Iterator[str]:
    name, options = _function_name(inside["function"])
    inputs = inside["input"]
    if name not in _ROW_WISE:
        yield name
    elif name in _LISTED_VALUES:
        if any("Literal" not in values for values in inputs[1:3]):
            yield f"{name} of another column"
        inputs = inputs[:1]
    elif name == "StringExpr.Strptime" and options[1]["format"] is None:
        yield "StringExpr.Strptime without a format"
    elif name.startswith("Business."):
        # The holidays are a Series of their own, the same for every row.
        inputs = [one for one in inputs if "Literal" not in one]
    yield from _across_rows(inputs)


def _eval_across_rows(inside: Any) -> Iterator[str]:
    """What is evaluated on a list sees the list of one row only, so that anything is allowed in there."""
    if isinstance(inside["variant"], dict) and "Cumulative" in inside["variant"]:
        yield "cumulative_eval"
    yield from _across_rows(inside["expr"])
