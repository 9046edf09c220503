"""Which rows a later one replaces, against a loop over them."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_assets import Entity, Field, Int64, String
from feature_assets.duplicates import superseded, without
from feature_assets.settlement import latest_rows
from feature_assets.spec import ViewSpec

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
SCHEMA = {"name": pl.String, "at": pl.Datetime("us", "UTC"), "known": pl.Datetime("us", "UTC"), "value": pl.Int64}
moments = st.integers(0, 3).map(lambda hour: NOON + timedelta(hours=hour))
rows_of = st.lists(st.tuples(st.sampled_from("abc"), moments, st.none() | moments, st.integers(0, 9)), max_size=30)


@given(rows_of, st.sampled_from([1, 3, 1_000]))
def test_of_equal_rows_the_last_stays(rows: list[tuple[object, ...]], at_once: int) -> None:
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row").lazy()
    last = {row[:3]: position for position, row in enumerate(rows)}
    found = superseded(frame, ["name", "at", "known"], len(rows), at_once=at_once)
    assert sorted(found["__row"]) == sorted(set(range(len(rows))) - set(last.values()))
    assert without(frame, found).collect().rows() == [rows[position] for position in sorted(last.values())]


@pytest.mark.parametrize("keys", [["name"], []], ids=["by name", "without keys"])
@pytest.mark.parametrize("created", [None, "known"])
@given(rows=rows_of)
def test_the_latest_row_of_each_key(keys: list[str], created: str | None, rows: list[tuple[object, ...]]) -> None:
    view = ViewSpec(
        name="v",
        entities=[Entity("one", {"name": String})] if keys else [],  # type: ignore[arg-type]
        features=(Field("value", Int64),),
        event_timestamp="at",
        created_timestamp=created,
    )
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    frame = frame.unique([*keys, "at", *([created] if created else [])], keep="last", maintain_order=True)
    latest: dict[object, tuple[object, ...]] = {}
    for row in sorted(
        frame.iter_rows(), key=lambda row: (row[1], (created and row[2]) or datetime.min.replace(tzinfo=UTC))
    ):
        latest[row[0] if keys else None] = row
    assert sorted(latest_rows(view, frame.lazy()).iter_rows()) == sorted(latest.values())
