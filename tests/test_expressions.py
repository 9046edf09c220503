"""Expressions are data: none that holds code is written or read, and the row-wise ones are what they are called."""

import json
import pickle
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest

from feature_assets.errors import DeclarationError, TransformationRefused
from feature_assets.expressions import check_row_wise, from_data, to_data

number, other, real, text, moment, day = (pl.col(name) for name in ("number", "other", "real", "text", "moment", "day"))
numbers, record, raw, vector, flag = (pl.col(name) for name in ("numbers", "record", "raw", "vector", "flag"))

ROW_WISE = [
    number + other * 2 - number // other,
    number / other,
    number**2,
    -number,
    number.abs(),
    real.sqrt(),
    real.exp(),
    real.log(),
    real.log10(),
    real.sin(),
    real.round(1),
    real.floor(),
    number.clip(1, other),
    number.fill_null(0),
    number.fill_null(other),
    number.fill_null(strategy="zero"),
    real.fill_nan(None),
    number.is_in([1, 3]),
    number.is_in(pl.Series([1, 3])),
    number.is_between(1, other),
    number.eq_missing(other),
    real.is_close(0.1),
    number.replace({1: 10}),
    number.replace_strict({1: 10}, default=None),
    number.replace_strict({1: 10}, default=other),
    number.cast(pl.String),
    number.bin_intervals([1, 2], labels=["low", "middle", "high"]),
    number.repeat_by(2),
    number.reinterpret(signed=False),
    flag & ~flag | flag,
    pl.when(flag).then(number).otherwise(other),
    pl.when(number > 1).then(pl.lit("big")),
    pl.lit(1.5),
    pl.lit(datetime(2020, 1, 1, tzinfo=UTC)),
    pl.lit([1, 2]),
    pl.sum_horizontal("number", "other"),
    pl.max_horizontal("number", "other"),
    pl.any_horizontal(number > 1, flag),
    pl.coalesce("number", "other"),
    pl.concat_str("text", "text"),
    pl.concat_list("number", "other"),
    pl.format("{}-{}", "number", "text"),
    pl.struct("number", doubled=other * 2),
    pl.datetime(2020, 1, number),
    pl.duration(days="number"),
    pl.int_ranges(0, number),
    text.str.to_uppercase(),
    text.str.contains("a"),
    text.str.contains_any(["a", "b"]),
    text.str.replace_all("a", "b"),
    text.str.len_chars(),
    text.str.slice(0, 1),
    text.str.split(","),
    text.str.to_date("%Y", strict=False),
    text.str.to_integer(strict=False),
    text.str.pad_start(5),
    moment.dt.hour(),
    moment.dt.truncate("1h"),
    moment.dt.offset_by("1d"),
    moment.dt.strftime("%Y"),
    moment.dt.convert_time_zone("Europe/Berlin"),
    (moment - pl.lit(datetime(2020, 1, 1, tzinfo=UTC))).dt.total_seconds(),
    day.dt.add_business_days(1, roll="forward"),
    pl.business_day_count("day", day, holidays=[date(2020, 1, 1)]),
    numbers.list.sum(),
    numbers.list.len(),
    numbers.list.get(0, null_on_oob=True),
    numbers.list.sort(),
    numbers.list.contains(number),
    numbers.list.set_union(numbers),
    numbers.list.reverse(),
    numbers.list.eval(pl.element().rank()),
    numbers.list.eval(pl.element() / pl.element().sum()),
    numbers.list.filter(pl.element() > 1),
    vector.arr.sum(),
    vector.arr.dot(vector),
    vector.arr.get(0),
    vector.arr.to_list(),
    record.struct.field("x"),
    record.struct.with_fields(pl.field("x") * 2),
    record.struct.json_encode(),
    raw.bin.size(),
    raw.bin.encode("hex"),
    number.alias("renamed").name.prefix("still_"),
]

ACROSS_ROWS = [
    number.sum(),
    number.mean(),
    number.std(),
    number - number.mean(),
    number.first(),
    number.count(),
    number.n_unique(),
    number.quantile(0.5),
    number.shift(1),
    number.diff(),
    number.rank(),
    number.cum_sum(),
    number.rolling_mean(2),
    number.rolling_mean_by("moment", "1h"),
    number.sum().rolling("moment", period="1h"),
    number.ewm_mean(com=1),
    number.sort(),
    number.sort_by("other"),
    number.reverse(),
    number.unique(),
    number.is_duplicated(),
    number.is_first_distinct(),
    number.over("other"),
    number.sum().over("other"),
    number.fill_null(strategy="forward"),
    number.fill_null(strategy="mean"),
    number.interpolate(),
    number.is_in("other"),
    number.is_in(other.implode()),
    number.replace(other, number),
    number.filter(flag),
    number.drop_nulls(),
    number.head(1),
    number.get(0),
    number.bin_quantiles([0.5], labels=["low", "high"]),
    number.cumulative_eval(pl.element().sum()),
    numbers.explode(),
    numbers.list.eval(pl.element()).list.sum().max(),
    text.str.to_datetime(),
    text.str.join(","),
    text.str.contains_any(other),
    flag.any(),
    pl.len(),
    pl.int_range(pl.len()),
    pl.corr("number", "other"),
    pl.lit(pl.Series([1, 2, 3, 4])),
    pl.when(flag).then(number.max()).otherwise(0),
    pl.struct(number.max()),
    pl.business_day_count("day", day.max()),
    number.hash(),
]

CODE = [
    pytest.param(lambda: number.map_elements(abs, return_dtype=pl.Int64), id="map_elements"),
    pytest.param(lambda: number.map_batches(abs), id="map_batches"),
    pytest.param(lambda: number.rolling_map(sum, 2), id="rolling_map"),
    pytest.param(lambda: number.name.map(str.upper), id="name.map"),
    pytest.param(lambda: record.name.map_fields(str.upper), id="name.map_fields"),
    pytest.param(lambda: pl.fold(pl.lit(0), lambda x, y: x + y, ["number"]), id="fold"),
    pytest.param(lambda: pl.reduce(lambda x, y: x + y, ["number"]), id="reduce"),
    pytest.param(lambda: pl.cum_fold(pl.lit(0), lambda x, y: x + y, ["number"]), id="cum_fold"),
    pytest.param(lambda: pl.cum_reduce(lambda x, y: x + y, ["number"]), id="cum_reduce"),
    pytest.param(lambda: pl.map_groups(["number"], abs, return_dtype=pl.Int64), id="map_groups"),
    pytest.param(number.inspect, id="inspect"),
    pytest.param(lambda: number.cast(pl.dtype_of(other.map_batches(abs))), id="dtype_of"),
    pytest.param(lambda: numbers.list.eval(pl.element().map_elements(abs)), id="in list.eval"),
    pytest.param(lambda: pl.when(flag).then(number.map_batches(abs)), id="in when"),
    pytest.param(lambda: number.sort_by(other.map_batches(abs)), id="in sort_by"),
    pytest.param(lambda: number.over("other", order_by=other.map_batches(abs)), id="in over"),
    pytest.param(lambda: number.quantile(other.map_batches(abs)), id="in quantile"),
    pytest.param(lambda: number.sum().alias("x") + number.map_batches(abs).max(), id="in an aggregation"),
]

FRAME = pl.DataFrame(
    {
        "number": [1, None, 3, 1],
        "other": [2, 2, None, 4],
        "real": [0.1, None, float("nan"), -0.0],
        "text": ["a", "1,2", None, "é"],
        "moment": [
            datetime(2020, 1, 1, 5, tzinfo=UTC),
            None,
            datetime(2021, 3, 4, 5, 6, 7, tzinfo=UTC),
            datetime(1969, 1, 1, tzinfo=UTC),
        ],
        "day": [date(2020, 1, 1), date(2020, 1, 4), date(2020, 1, 6), date(1960, 1, 1)],
        "numbers": [[1, 2], [], None, [3, None]],
        "record": [{"x": 1}, None, {"x": None}, {"x": 3}],
        "raw": [b"a", b"", None, b"\x00\x01\x02\x03"],
        "vector": [[1.0, 2.0], [3.0, 4.0], None, [0.0, -0.0]],
        "flag": [True, None, False, True],
    },
    schema_overrides={"moment": pl.Datetime("us", "UTC"), "vector": pl.Array(pl.Float32, 2)},
)


@pytest.mark.parametrize("expression", ROW_WISE, ids=str)
def test_a_row_wise_expression_gives_one_row_what_it_gives_a_batch(expression: pl.Expr):
    stored = to_data(expression, "here")
    check_row_wise(stored, "here")
    expression = from_data(stored, "here").alias("out")
    for frame in (FRAME, FRAME.reverse(), pl.concat([FRAME[:1], FRAME])):
        together = frame.with_columns(expression)["out"]
        apart = pl.concat([frame[row : row + 1].with_columns(expression)["out"] for row in range(frame.height)])
        assert together.equals(apart, null_equal=True, check_dtypes=True)


@pytest.mark.parametrize("expression", ACROSS_ROWS, ids=str)
def test_an_expression_that_looks_at_other_rows_is_refused(expression: pl.Expr):
    stored = to_data(expression, "view 'v'")
    assert from_data(stored, "view 'v'").meta.eq(expression)
    with pytest.raises(DeclarationError, match=r"^view 'v': the expression uses .* other rows"):
        check_row_wise(stored, "view 'v'")


@pytest.mark.parametrize("make", CODE)
def test_an_expression_that_calls_python_is_neither_written_nor_read(make):
    expression = make()
    with pytest.raises(DeclarationError, match="declare a function by import path"):
        to_data(expression, "view 'v'")
    with pytest.raises(TransformationRefused, match="it was not loaded"):
        from_data(expression.meta.serialize(format="json"), "view 'v'")


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_a_pickle_in_a_stored_expression_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fold = json.loads(pl.fold(pl.lit(0), lambda x, y: x + y, ["number"]).meta.serialize(format="json"))
    options = fold["Function"]["function"]["FoldHorizontal"]
    options["callback"] = options["callback"][:3] + list(pickle.dumps(Payload()))
    hidden = [
        fold,
        {"Alias": [fold, "x"]},
        {"BinaryExpr": [fold, "Plus", {"Column": "x"}]},
        {"Agg": {"Min": [fold, False]}},
        {"Agg": {"Quantile": {"expr": {"Column": "x"}, "quantile": fold, "method": "Nearest"}}},
        {"Cast": {"expr": {"Column": "x"}, "dtype": {"OfExpr": fold}, "options": "Strict"}},
        {"Function": {"input": [{"Column": "x"}], "function": {"StringExpr": {"JsonDecode": {"OfExpr": fold}}}}},
        {"Function": [[fold], "Abs"]},
    ]
    for tree in hidden:
        with pytest.raises(TransformationRefused):
            from_data(json.dumps(tree), "view 'v'")
    twice = json.dumps({"Alias": ["@", "x"]}).replace('{"Alias"', f'{{"Alias": [{json.dumps(fold)}, "x"], "Alias"')
    with pytest.raises(TransformationRefused):
        from_data(twice, "view 'v'")
    assert not Path("executed").exists()
    # The proof that the payload is a real one.
    pl.Expr.deserialize(json.dumps(fold).encode(), format="json")
    assert Path("executed").exists()


@pytest.mark.parametrize("stored", ["", "{}", "[]", "null", '"x"', "3", '{"Nope": 1}', '{"Column": 1}', "[" * 10_000])
def test_what_is_no_expression_is_refused(stored: str):
    with pytest.raises(TransformationRefused, match="view 'v'"):
        from_data(stored, "view 'v'")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_literal_that_json_cannot_hold_is_refused_when_declared(value: float):
    with pytest.raises(DeclarationError, match="is_infinite"):
        to_data(real == value, "view 'v'")
