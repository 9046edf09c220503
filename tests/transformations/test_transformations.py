"""On-demand views: exactly the declared features, the same for one row as for many."""

import math
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_assets.errors import ContractBroken, DeclarationError, TransformationRefused
from feature_assets.functions import function_digest, import_path
from feature_assets.references import OnDemandRead, Output, ReadPlan, ViewRead
from feature_assets.spec import (
    Entity,
    Expressions,
    Field,
    Function,
    OnDemandViewSpec,
    RequestSource,
    ViewProjection,
    ViewSpec,
    canonical_json,
    from_json,
)
from feature_assets.transformations import (
    OnDemand,
    check_declaration,
    compile_transformation,
    declared_expressions,
    declared_function,
    evaluate_on_demand,
)
from feature_assets.types import (
    Bool,
    Date,
    Float32,
    Float64,
    Int8,
    Int64,
    Json,
    List,
    Map,
    String,
    Struct,
    Timestamp,
    Vector,
)

INPUTS = {"temp": Float64, "count": Int64, "label": String, "weights": Map[String, Float64]}
HERE = [__name__]


def on_demand(features, transformation, *, name="derived", **more) -> OnDemandViewSpec:
    fields = tuple(Field(name, of) for name, of in features.items())
    return OnDemandViewSpec(
        name=name, sources=(ViewProjection("weather"),), features=fields, transformation=transformation, **more
    )


def by_expressions(**features):
    """The transformation of one view: name=(type, expression)."""
    expressions = declared_expressions("derived", {name: one for name, (_, one) in features.items()})
    return compile_transformation(
        on_demand({name: of for name, (of, _) in features.items()}, expressions), inputs=INPUTS
    )


def by_function(function, mode="frame", **features):
    spec = on_demand(features, Function(import_path(function), function_digest(function), mode))
    return compile_transformation(spec, HERE, inputs=INPUTS)


def frame(**columns) -> pl.DataFrame:
    rows = len(next(iter(columns.values())))
    return pl.DataFrame(
        [of.to_frame(name, columns.get(name, [None] * rows)) for name, of in INPUTS.items()],
    )


def as_frame(inputs: pl.DataFrame) -> pl.DataFrame:
    return inputs.select("temp", warm=pl.col("temp") > 70, size=pl.col("count").cast(pl.Int8))


def as_lazy(inputs: pl.DataFrame) -> pl.LazyFrame:
    return inputs.lazy().select(warm=pl.col("temp") > 70)


def as_columns(inputs: pl.DataFrame) -> dict[str, object]:
    return {"warm": inputs["temp"] > 70, "size": [1] * inputs.height}


def as_row(row: dict[str, object]) -> dict[str, object]:
    return {"warm": row["temp"] is not None and row["temp"] > 70, "heaviest": max(row["weights"] or {}, default=None)}


def too_short(inputs: pl.DataFrame) -> pl.DataFrame:
    return inputs.select(warm=pl.col("temp").drop_nulls() > 70)


def not_all(inputs: pl.DataFrame) -> pl.DataFrame:
    return inputs.select("temp")


def no_frame(_inputs: pl.DataFrame) -> object:
    return 3


def failing(inputs):
    raise KeyError("nothing")


def wrong_row(row):
    return {"warm": "yes"}


def no_row(row):
    return None


def test_expressions_give_the_declared_features_in_the_declared_types():
    computed = by_expressions(
        celsius=(Float64, (pl.col("temp") - 32) / 1.8),
        temp=(Float64, pl.col("temp") * 0),
        constant=(Int64, pl.lit(7)),
        nothing=(String, pl.lit(None)),
    ).evaluate(frame(temp=[32.0, None, math.nan]))
    assert computed.schema == {"celsius": pl.Float64, "temp": pl.Float64, "constant": pl.Int64, "nothing": pl.String}
    assert computed["celsius"].equals(pl.Series([0.0, None, math.nan]), null_equal=True)
    assert computed["constant"].to_list() == [7, 7, 7]
    assert computed["nothing"].to_list() == [None, None, None]


@pytest.mark.parametrize("function", [as_frame, as_columns])
def test_a_frame_function_may_return_a_frame_or_columns(function):
    computed = by_function(function, warm=Bool, size=Int8).evaluate(frame(temp=[80.0, 20.0, None], count=[1, 1, 1]))
    assert computed.schema == {"warm": pl.Boolean, "size": pl.Int8}
    assert computed.rows() == [(True, 1), (False, 1), (None, 1)]


def test_a_frame_function_may_be_lazy():
    assert by_function(as_lazy, warm=Bool).evaluate(frame(temp=[80.0])).rows() == [(True,)]


def test_a_row_function_sees_canonical_values():
    rows = frame(temp=[80.0, None], weights=[{"a": 1.0, "b": 2.0}, None])
    assert by_function(as_row, "row", warm=Bool, heaviest=String).evaluate(rows).rows() == [(True, "b"), (False, None)]


@pytest.mark.parametrize("function", [as_frame, failing])
def test_no_rows_are_computed_without_calling_anything(function):
    computed = by_function(function, warm=Bool, size=Int8).evaluate(frame(temp=[]))
    assert computed.schema == {"warm": pl.Boolean, "size": pl.Int8}
    assert computed.height == 0


@pytest.mark.parametrize(
    "function, mode, why",
    [
        (too_short, "frame", "feature 'warm' came with 1 values for 2 rows"),
        (not_all, "frame", r"did not return feature 'warm' \(it returned: temp\)"),
        (no_frame, "frame", "returned int, which is no frame"),
        (failing, "frame", "failed: KeyError: 'nothing'"),
        (failing, "row", "failed: KeyError: 'nothing'"),
        (wrong_row, "row", "feature 'warm': str 'yes' is not a Bool"),
        (no_row, "row", "returned NoneType. Return a dict"),
    ],
)
def test_an_error_of_the_function_names_view_and_function(function, mode, why):
    with pytest.raises(ContractBroken, match=rf"^On-demand view 'derived', {__name__}:{function.__name__}.*{why}"):
        by_function(function, mode, warm=Bool).evaluate(frame(temp=[80.0, None]))


@pytest.mark.parametrize(
    "of, expression, why",
    [
        (Int8, pl.col("count") * 1000, r"1000 \(row 0, 2 such rows\) is not losslessly a Int8"),
        (Int64, pl.col("temp"), r"0.5 \(row 0, 1 such rows\) is not losslessly a Int64"),
        (Float32, pl.col("temp") + 0.1, "is not losslessly a Float32"),
        (String, pl.col("count"), "is declared String and came as Int64. Convert it on purpose"),
        (Json, pl.col("label"), "is not JSON text"),
        (Date, pl.col("count").cast(pl.Date) + pl.duration(days=10_000_000), "is declared Date, and"),
        (Vector[2], pl.concat_list("temp", "temp", "temp"), "is not 2 Float32 numbers"),
    ],
)
def test_a_value_that_is_not_of_the_declared_type_is_refused(of, expression, why):
    with pytest.raises(ContractBroken, match=f"^On-demand view 'derived': feature 'x'.*{why}"):
        by_expressions(x=(of, expression)).evaluate(frame(temp=[0.5, 1.0], count=[1, 2], label=["{", "[]"]))


@pytest.mark.parametrize(
    "of, expression, expected",
    [
        (Float64, pl.col("count"), [1.0, None]),
        (Int8, pl.col("count"), [1, None]),
        (Timestamp, pl.lit(datetime(2020, 1, 1)).dt.cast_time_unit("ns"), [datetime(2020, 1, 1, tzinfo=UTC)] * 2),
        (Vector[2], pl.concat_list("temp", "temp").list.to_array(2), [[0.5, 0.5], None]),
        (List[Int64], pl.concat_list("count", "count"), [[1, 1], [None, None]]),
        (Struct({"a": Int8}), pl.struct(a="count"), [{"a": 1}, {"a": None}]),
    ],
)
def test_a_value_that_loses_nothing_is_cast(of, expression, expected):
    if isinstance(of, type(Vector[2])):
        expression = pl.when(pl.col("temp").is_not_null()).then(expression)
    computed = by_expressions(x=(of, expression)).evaluate(frame(temp=[0.5, None], count=[1, None]))
    assert computed.schema == {"x": of.polars}
    assert of.from_frame(computed["x"]) == expected


def test_an_expression_that_fails_on_the_values_says_where():
    parse = by_expressions(x=(Date, pl.col("label").str.to_date("%Y-%m-%d")))
    with pytest.raises(ContractBroken, match=r"^On-demand view 'derived' cannot be computed: conversion from"):
        parse.evaluate(frame(label=["yesterday"]))


@pytest.mark.parametrize("expression", [pl.col("temp").mean(), pl.col("temp").shift(), pl.col("temp").cum_sum()])
def test_what_depends_on_other_rows_is_refused_when_declared_and_when_stored_by_another(expression):
    with pytest.raises(DeclarationError, match=r"On-demand view 'derived', feature 'x': .* other rows"):
        declared_expressions("derived", {"x": expression})
    stored = Expressions({"x": expression.meta.serialize(format="json")})
    with pytest.raises(TransformationRefused, match="other rows"):
        compile_transformation(on_demand({"x": Float64}, stored), inputs=INPUTS)


def test_what_is_no_expression_is_refused():
    with pytest.raises(DeclarationError, match="'temp' is not a Polars expression"):
        declared_expressions("derived", {"x": "temp"})


@pytest.mark.parametrize(
    "of, expression, why",
    [
        (Float64, pl.col("humidity"), "reads 'humidity', which is no input of the view: temp, count"),
        (String, pl.col("count") + 1, "is declared String and computed as Int64"),
        (Int64, pl.col("label").dt.hour(), "cannot be computed from its inputs"),
    ],
)
def test_an_expression_is_checked_against_its_inputs_without_any_rows(of, expression, why):
    spec = on_demand({"x": of}, declared_expressions("derived", {"x": expression}))
    with pytest.raises(DeclarationError, match=why):
        check_declaration(spec, INPUTS)


def test_what_can_be_computed_passes_the_check():
    check_declaration(on_demand({"x": Int8}, declared_expressions("d", {"x": pl.col("count")})), INPUTS)
    check_declaration(on_demand({"x": Int8}, declared_function(as_row, mode="row")), INPUTS)


def test_a_declaration_survives_its_json():
    spec = on_demand({"x": Float64}, declared_expressions("derived", {"x": pl.col("temp") * 2}))
    read = from_json(canonical_json(spec), OnDemandViewSpec)
    computed = compile_transformation(read, inputs=INPUTS).evaluate(frame(temp=[1.5]))
    assert computed["x"].to_list() == [3.0]


# One plan: an on-demand view on another one, on a view, and on the request.

STATION = Entity("station", {"station": String})
WEATHER = ViewSpec(
    name="weather", entities=(STATION,), features=(Field("temp", Float64), Field("count", Int64)), event_timestamp="at"
)
FIRST = OnDemandViewSpec(
    name="first",
    sources=(ViewProjection("weather"),),
    request=(RequestSource("asked", (Field("threshold", Float64),)),),
    features=(Field("above", Float64), Field("hot", Bool)),
    transformation=declared_expressions(
        "first", {"above": pl.col("temp") - pl.col("threshold"), "hot": pl.col("temp") > pl.col("threshold")}
    ),
)


def margin(row: dict[str, float | None]) -> dict[str, float | None]:
    above = row["above"]
    return {"margin": None if above is None else math.sqrt(abs(above)) + (row["count"] or 0)}


SECOND = OnDemandViewSpec(
    name="second",
    sources=(ViewProjection("first", ("above",)), ViewProjection("weather", ("count",))),
    features=(Field("margin", Float64),),
    transformation=declared_function(margin, mode="row"),
)
PLAN = ReadPlan(
    reads=(ViewRead(WEATHER, "weather", (("station", "station"),), WEATHER.features),),
    on_demand=(
        OnDemandRead(
            FIRST,
            "first",
            (("temp", "weather__temp"), ("count", "weather__count"), ("threshold", "threshold")),
            FIRST.features,
        ),
        OnDemandRead(SECOND, "second", (("above", "first__above"), ("count", "weather__count")), SECOND.features),
    ),
    outputs=(Output("margin", "second__margin", SECOND.features[0], "second"),),
    join_keys={"station": String},
    request={"threshold": Field("threshold", Float64)},
)
ROWS = st.lists(
    st.tuples(
        st.none() | st.floats(),
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | st.floats(),
        st.text(max_size=2),
    ),
    min_size=1,
    max_size=8,
)


def test_on_demand_views_build_on_one_another():
    given_frame = pl.DataFrame(
        {"weather__temp": [10.0, None], "weather__count": [2, 3], "threshold": [6.0, 1.0], "kept": ["a", "b"]}
    )
    on_demand = OnDemand(PLAN, HERE)
    assert on_demand.inputs == {"weather__temp": Float64, "threshold": Float64, "weather__count": Int64}
    assert on_demand.outputs == {"first__above": Float64, "first__hot": Bool, "second__margin": Float64}
    found = on_demand.evaluate(given_frame)
    assert found.drop(on_demand.outputs).equals(given_frame)
    assert found.select(*on_demand.outputs).rows() == [(4.0, True, 4.0), (None, None, None)]


@pytest.mark.parametrize(
    "expression, looked_at, expected",
    [
        (pl.col("count") + 1, {"weather__count"}, 3.0),
        (pl.lit(3), {"weather__temp"}, 3.0),
        (pl.sum_horizontal(pl.all()), {"weather__temp", "weather__count", "threshold"}, 6.5),
    ],
    ids=["one", "none", "all"],
)
def test_only_inputs_that_expressions_look_at_are_asked_for(expression, looked_at, expected):
    spec = on_demand({"x": Float64}, declared_expressions("derived", {"x": expression}))
    read = OnDemandRead(spec, "derived", PLAN.on_demand[0].inputs, spec.features)
    plan = ReadPlan(PLAN.reads, (read,), (), PLAN.join_keys, PLAN.request)
    compiled = OnDemand(plan)
    assert compiled.inputs.keys() == looked_at
    frame = pl.DataFrame({"weather__temp": [0.5], "weather__count": [2], "threshold": [4.0]})
    assert compiled.evaluate(frame)["derived__x"].to_list() == [expected]


@given(ROWS)
def test_a_batch_gives_bit_for_bit_what_one_row_at_a_time_gives(rows):
    frame = pl.DataFrame(
        rows,
        schema={
            "weather__temp": pl.Float64,
            "weather__count": pl.Int64,
            "threshold": pl.Float64,
            "weather__label": pl.String,
        },
        orient="row",
    )
    together = evaluate_on_demand(PLAN, frame, HERE)
    apart = pl.concat([evaluate_on_demand(PLAN, frame[row : row + 1], HERE) for row in range(frame.height)])
    assert bits(together) == bits(apart)


def bits(frame: pl.DataFrame) -> list[tuple[object, ...]]:
    floats = [name for name, dtype in frame.schema.items() if dtype == pl.Float64]
    return frame.with_columns(pl.col(floats).reinterpret(dtype=pl.UInt64) if floats else []).rows()
