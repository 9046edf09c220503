"""What an asset function returned is made exactly what the view declares, or refused with the mend."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal as PyDecimal
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from feature_assets.conform import PartitionSlice, conformed
from feature_assets.errors import ContractBroken
from feature_assets.spec import PARTITION, Entity, Field, ViewSpec
from feature_assets.types import (
    UUID,
    Bool,
    Date,
    Decimal,
    FeatureType,
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

NOW = datetime(2024, 6, 1, tzinfo=UTC)
DAY = PartitionSlice("2024-03-01", datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 3, 2, tzinfo=UTC))
NEXT = PartitionSlice("2024-03-02", datetime(2024, 3, 2, tzinfo=UTC), datetime(2024, 3, 3, tzinfo=UTC))


def view(of: FeatureType = Int64, **more: Any) -> ViewSpec:
    driver = Entity("driver", join_keys={"driver_id": Int64})
    return ViewSpec(name="trips", entities=(driver,), features=(Field("value", of),), event_timestamp="at", **more)


def frame(values: Any = (1, 2), **columns: Any) -> pl.DataFrame:
    series = values if isinstance(values, pl.Series) else pl.Series(list(values), strict=False)
    count = len(series)
    at = pl.Series([datetime(2024, 3, 1, hour) for hour in range(count)], dtype=pl.Datetime("us"))
    return pl.DataFrame({"driver_id": list(range(count)), "at": at, "value": series} | columns)


def conform(rows: Any, of: FeatureType = Int64, *slices: PartitionSlice, **more: Any) -> pl.DataFrame:
    with conformed(view(of, **more), rows, slices or [DAY], now=NOW) as found:
        return found.rows.collect()


@pytest.mark.parametrize(
    "given",
    [
        frame(),
        frame().lazy(),
        frame().to_arrow(),
        pa.RecordBatchReader.from_batches(frame().to_arrow().schema, frame().to_arrow().to_batches()),
    ],
    ids=["DataFrame", "LazyFrame", "Table", "RecordBatchReader"],
)
def test_every_kind_of_frame_is_taken(given: Any) -> None:
    rows = conform(given)
    assert rows.columns == ["driver_id", "at", "value", PARTITION]
    assert rows.schema["at"] == pl.Datetime("us", "UTC")
    assert rows[PARTITION].to_list() == ["2024-03-01"] * 2


LOSSLESS = {
    "int32 to int64": (pl.Series([1, None], dtype=pl.Int32), Int64, [1, None]),
    "int64 to int8": (pl.Series([-128, 127]), Int8, [-128, 127]),
    "whole floats to int": (pl.Series([1.0, None]), Int64, [1, None]),
    "int to float": (pl.Series([2**53]), Float64, [float(2**53)]),
    "float64 to float32": (pl.Series([0.5, float("inf")]), Float32, [0.5, float("inf")]),
    "all null": (pl.Series([None, None]), Json, [None, None]),
    "categorical to string": (pl.Series(["a"], dtype=pl.Categorical), String, ["a"]),
    "date to timestamp": (pl.Series([date(2024, 3, 1)]), Timestamp, [datetime(2024, 3, 1, tzinfo=UTC)]),
    "nanoseconds": (
        pl.Series([datetime(2024, 3, 1)], dtype=pl.Datetime("ns")),
        Timestamp,
        [datetime(2024, 3, 1, tzinfo=UTC)],
    ),
    "another zone": (
        pl.Series([datetime(2024, 3, 1)]).dt.replace_time_zone("Europe/Berlin"),
        Timestamp,
        [datetime(2024, 2, 29, 23, tzinfo=UTC)],
    ),
    "decimal to narrower": (pl.Series(["1.50"]).cast(pl.Decimal(10, 2)), Decimal(5, 1), [PyDecimal("1.5")]),
    "list of ints": (pl.Series([[1, None], []], dtype=pl.List(pl.Int32)), List[Int64], [[1, None], []]),
    "list to vector": (pl.Series([[1.0, 2.0], None]), Vector[2], [[1.0, 2.0], None]),
    "struct": (pl.Series([{"x": 1}]), Struct({"x": Float64}), [{"x": 1.0}]),
}


@pytest.mark.parametrize("given, of, expected", LOSSLESS.values(), ids=LOSSLESS)
def test_a_cast_that_loses_nothing_is_made(given: pl.Series, of: FeatureType, expected: list[Any]) -> None:
    rows = conform(frame(given), of)
    assert rows.schema["value"] == of.polars
    assert of.from_frame(rows["value"]) == expected


LOSSY = {
    "fraction to int": (pl.Series([0.7, 2.0]), Int64, "not losslessly a Int64 in 1 of 2 rows .*value=0.7"),
    "NaN to int": (pl.Series([float("nan")]), Int64, "in 1 of 1 rows"),
    "too wide": (pl.Series([128]), Int8, "not losslessly a Int8"),
    "2**53 + 1 to float": (pl.Series([2**53 + 1]), Float64, "not losslessly a Float64"),
    "0.1 to float32": (pl.Series([0.1]), Float32, "not losslessly a Float32"),
    "text to int": (pl.Series(["12"]), Int64, r"declared Int64 and came as String.*\.cast\(pl\.Int64\)"),
    "int to text": (pl.Series([12]), String, "declared String and came as Int64"),
    "bool to int": (pl.Series([True]), Int64, "came as Boolean"),
    "int to bool": (pl.Series([1]), Bool, "came as Int64"),
    "float to decimal": (pl.Series([1.5]), Decimal(4, 1), r"round it on purpose"),
    "timestamp to date": (pl.Series([datetime(2024, 3, 1)]), Date, "came as Datetime"),
    "odd nanoseconds": (
        pl.Series([1_709_251_200_000_000_001]).cast(pl.Datetime("ns")),
        Timestamp,
        "whole microseconds",
    ),
    "no JSON": (pl.Series(["{"]), Json, "is not JSON text"),
    "no UUID": (pl.Series(["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"]), UUID, "UUID in lower case"),
    "wrong length": (pl.Series([[1.0]]), Vector[2], "is not 2 Float32 numbers"),
    "null in a vector": (pl.Series([[1.0, None]]), Vector[2], "is not 2 Float32 numbers"),
    "key twice": (
        pl.Series([[{"key": "a", "value": 1}, {"key": "a", "value": 2}]]),
        Map[String, Int64],
        r"not losslessly a Map\[String, Int64\]",
    ),
}


@pytest.mark.parametrize("given, of, message", LOSSY.values(), ids=LOSSY)
def test_a_cast_that_would_lose_something_is_refused(given: pl.Series, of: FeatureType, message: str) -> None:
    with pytest.raises(ContractBroken, match=f"trips, partition 2024-03-01: 'value'.*{message}"):
        conform(frame(given), of)


BROKEN = {
    "null key": (
        {"driver_id": [0, None]},
        r"'driver_id' is null in 1 of 2 rows \(first: driver_id=None, row 1\). Drop",
    ),
    "null time": (
        {"at": pl.Series([None, datetime(2024, 3, 1)], dtype=pl.Datetime("us"))},
        r"'at' is null in 1 of 2 rows \(first: driver_id=0, row 0\). Drop those rows in trips\(\), or give them a time",
    ),
    "before the partition": (
        {"at": [datetime(2024, 2, 29, 23, 59, 59, 999999), datetime(2024, 3, 1)]},
        "'at' lies outside 2024-03-01 00:00:00 ≤ t < 2024-03-02 00:00:00 UTC in 1 of 2 rows",
    ),
    "at the partition's end": ({"at": [datetime(2024, 3, 1), datetime(2024, 3, 2)]}, "'at' lies outside .* in 1 of 2"),
    "in the future": (
        {"at": [NOW + timedelta(minutes=5, microseconds=1)] * 2},
        r"'at' is later than now \(2024-06-01 00:00:00 UTC\) by more than 0:05:00 in 2 of 2 rows.*max_future=",
    ),
}


@pytest.mark.parametrize("columns, message", BROKEN.values(), ids=BROKEN)
def test_rows_that_break_the_contract_are_named(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractBroken, match=f"trips, partition 2024-03-01: {message}"):
        conform(frame().with_columns(**{name: pl.Series(values) for name, values in columns.items()}))


def test_a_missing_column_is_named_with_those_that_are_there() -> None:
    with pytest.raises(
        ContractBroken, match=r"no column 'value', which the view declares \(they have: driver_id, at\)"
    ):
        conform(frame().drop("value"))


def test_something_else_than_a_frame_is_refused() -> None:
    with pytest.raises(ContractBroken, match=r"trips\(\) returned dict. Return a Polars DataFrame"):
        conform({"value": [1]})


def test_undeclared_columns_are_dropped_and_named() -> None:
    with conformed(view(), frame(note=["x", "y"]), [DAY], now=NOW) as found:
        assert found.dropped == ("note",)
        assert "note" not in found.rows.collect_schema()


def test_of_two_rows_with_one_key_and_time_the_last_stays() -> None:
    twice = pl.concat([frame([1]), frame([2]), frame([3])])
    with conformed(view(), twice.lazy(), [DAY], now=NOW) as found:
        assert (found.count, found.duplicates) == (1, 2)
        assert found.rows.collect()["value"].to_list() == [3]


def test_rows_of_one_time_with_different_created_times_all_stay() -> None:
    created = pl.Series([datetime(2024, 3, 1, 5), None, datetime(2024, 3, 1, 6)], dtype=pl.Datetime("us"))
    rows = pl.concat([frame([1]), frame([2]), frame([3])]).with_columns(known_at=created)
    assert conform(rows, created_timestamp="known_at").height == 3


def test_no_rows_are_fine_and_have_the_declared_types() -> None:
    rows = conform(frame().clear())
    assert rows.height == 0
    assert rows.schema["value"] == pl.Int64


def test_rows_of_a_range_find_their_partition_whatever_the_order() -> None:
    both = pl.concat([frame().with_columns(pl.col("at") + timedelta(days=1)), frame()])
    assert conform(both, Int64, NEXT, DAY)[PARTITION].to_list() == ["2024-03-02"] * 2 + ["2024-03-01"] * 2


def test_a_gap_between_the_partitions_of_a_range_takes_no_rows() -> None:
    later = PartitionSlice("2024-03-05", datetime(2024, 3, 5, tzinfo=UTC), datetime(2024, 3, 6, tzinfo=UTC))
    with pytest.raises(ContractBroken, match="lies outside"):
        conform(frame().with_columns(pl.col("at") + timedelta(days=2)), Int64, DAY, later)


def _regional(*regions: str) -> list[PartitionSlice]:
    return [PartitionSlice(f"{region}|{DAY.key}", DAY.start, DAY.end, {"region": region}) for region in regions]


def test_several_partitions_of_a_dimension_are_told_apart_by_its_column() -> None:
    rows = conform(frame(region=["eu", "us"]), Int64, *_regional("us", "eu"))
    assert rows[PARTITION].to_list() == ["eu|2024-03-01", "us|2024-03-01"]
    assert "region" not in rows.columns


def test_one_partition_of_a_dimension_needs_no_column() -> None:
    assert conform(frame(), Int64, *_regional("us"))[PARTITION].to_list() == ["us|2024-03-01"] * 2


def test_several_partitions_of_a_dimension_without_its_column_are_refused() -> None:
    with pytest.raises(ContractBroken, match=r"several partitions of dimension 'region' .* no column 'region'"):
        conform(frame(), Int64, *_regional("eu", "us"))


def test_a_row_of_another_region_is_outside() -> None:
    with pytest.raises(ContractBroken, match=r"'at' lies outside .* UTC with 'region' 'eu', 'us' in 1 of 2 rows"):
        conform(frame(region=["eu", "mars"]), Int64, *_regional("eu", "us"))


def test_what_nobody_declared_may_be_of_any_type_and_is_not_computed() -> None:
    def never(series: pl.Series) -> pl.Series:
        raise AssertionError("computed")

    rows = frame().with_columns(odd=pl.Series([object(), object()], dtype=pl.Object)).lazy()
    rows = rows.with_columns(dear=pl.col("value").map_batches(never, return_dtype=pl.Int64))
    with conformed(view(), rows, [DAY], now=NOW) as found:
        assert found.rows.collect().height == 2
        assert found.dropped == ("odd", "dear")


def test_an_arrow_map_is_a_map() -> None:
    pairs = pa.array([[("a", 1), ("b", 2)], None], pa.map_(pa.string(), pa.int64()))
    rows = frame().to_arrow().set_column(2, "value", pairs)
    expected = [[{"key": "a", "value": 1}, {"key": "b", "value": 2}], None]
    assert conform(rows, Map[String, Int64])["value"].to_list() == expected


def test_nanoseconds_read_as_milliseconds_are_named() -> None:
    nanoseconds = pl.Series([1_709_251_200_000_000_000] * 2).cast(pl.Datetime("ms"))
    with pytest.raises(ContractBroken, match=r"'at' is not a time in whole microseconds .* in 2 of 2 rows"):
        conform(frame().with_columns(at=nanoseconds))
