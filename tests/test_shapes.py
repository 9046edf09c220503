"""A histogram in one line, whatever floats there are."""

from datetime import UTC, datetime

import polars as pl
import pytest

from feature_assets.shapes import Shape, shapes
from feature_assets.spec import Field, ViewSpec
from feature_assets.types import Float64, String

VIEW = ViewSpec(
    name="v",
    features=(Field("x", Float64), Field("note", String), Field("pay", Float64, pii="salary")),
    event_timestamp="at",
)

CASES = {
    "spread": ([0.0, 1.0, 1.0, 2.0], Shape("0", "▅▁▁▁▁▁▁▁█▁▁▁▁▁▁▅", "2")),
    "one value": ([3.5, 3.5, None], Shape("3.5", "", "3.5")),
    "nothing finite": ([float("nan"), float("inf"), None], Shape()),
    "the largest": ([-1.7e308, 1.7e308], Shape("-1.7e+308", "█▁▁▁▁▁▁▁▁▁▁▁▁▁▁█", "1.7e+308")),
    "the smallest": ([0.0, 5e-324], Shape("0", "█▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁", "4.941e-324")),
}


@pytest.mark.parametrize("values, expected", CASES.values(), ids=CASES)
def test_a_shape_is_a_line(values: list[float | None], expected: Shape) -> None:
    rows = pl.DataFrame({"x": pl.Series(values, dtype=pl.Float64), "at": datetime(2024, 1, 1, tzinfo=UTC)})
    frame = rows.with_columns(note=pl.lit("a"), pay=pl.lit(1.0))
    assert shapes(VIEW, frame.lazy(), frame.height) == {"x": expected}


def test_a_sample_is_taken_from_all_rows() -> None:
    rows = pl.DataFrame({"x": pl.int_range(100_000, eager=True).cast(pl.Float64)}).lazy()
    shape = shapes(VIEW, rows.with_columns(pay=1.0), 100_000)["x"]
    assert (shape.least, shape.bars, shape.greatest) == ("0", "█" * 16, "1e+05")
