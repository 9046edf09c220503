"""A histogram in one line, whatever floats there are."""

from datetime import UTC, datetime

import polars as pl
import pytest

from feature_assets.shapes import shapes
from feature_assets.spec import Field, ViewSpec
from feature_assets.types import Float64, String

VIEW = ViewSpec(
    name="v",
    features=(Field("x", Float64), Field("note", String), Field("pay", Float64, pii="salary")),
    event_timestamp="at",
)

CASES = {
    "spread": ([0.0, 1.0, 1.0, 2.0], "0 ▅▁▁▁▁▁▁▁█▁▁▁▁▁▁▅ 2"),
    "one value": ([3.5, 3.5, None], "3.5"),
    "nothing finite": ([float("nan"), float("inf"), None], ""),
    "the largest": ([-1.7e308, 1.7e308], "-1.7e+308 █▁▁▁▁▁▁▁▁▁▁▁▁▁▁█ 1.7e+308"),
    "the smallest": ([0.0, 5e-324], "0 █▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁ 4.941e-324"),
}


@pytest.mark.parametrize("values, expected", CASES.values(), ids=CASES)
def test_a_shape_is_a_line(values: list[float | None], expected: str) -> None:
    rows = pl.DataFrame({"x": pl.Series(values, dtype=pl.Float64), "at": datetime(2024, 1, 1, tzinfo=UTC)})
    frame = rows.with_columns(note=pl.lit("a"), pay=pl.lit(1.0))
    assert shapes(VIEW, frame.lazy()) == {"x": expected}
