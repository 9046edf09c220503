"""A spine in any form gives one answer; what cannot be a spine is refused with what to do about it."""

import gc
import json
import subprocess
import sys
import tempfile
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal as PyDecimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from feature_assets.errors import MissingJoinKey, RequestError, TableMissing, UnknownView, WrongType
from feature_assets.spec import Field, FileSource, ViewProjection
from feature_assets.types import UUID, Bool, Bytes, Date, Decimal, Int8, Int64, String, Timestamp
from tests.historical.world import HOUR, NOON, World, spine, view

STATS = view("stats", {"driver": Int64}, [Field("trips", Int64)])
NAMED = view("named", {"name": String}, [Field("age", Int64)])
DAY = view("day", {}, [Field("holiday", Int64)])
OTHER = view("other", {"driver": Int64}, [Field("rank", Int64)])
ROWS = pl.DataFrame({"driver": [1, 2, None, 9], "event_timestamp": [NOON, NOON - HOUR, NOON, NOON]})
TRIPS = [7, None, None, None]


@pytest.fixture
def world(tmp_path):
    here = World(tmp_path, STATS, NAMED, DAY, OTHER)
    here.publish(STATS, [{"driver": 1, "at": NOON, "trips": 7}, {"driver": 2, "at": NOON, "trips": 8}])
    return here


def trips(world, given, **options):
    return world.ask(given, ["stats:trips"], **options).collect()["trips"].to_list()


FORMS = {
    "frame": lambda rows, folder: rows,
    "lazy frame": lambda rows, folder: rows.lazy(),
    "pandas": lambda rows, folder: rows.to_pandas(),
    "arrow table": lambda rows, folder: rows.to_arrow(),
    "arrow reader": lambda rows, folder: pa.Table.to_reader(rows.to_arrow()),
    "parquet": lambda rows, folder: rows.write_parquet(folder / "x.parquet") or folder / "x.parquet",
    "glob": lambda rows, folder: rows.write_parquet(folder / "x.parquet") or str(folder / "*.parquet"),
    "csv": lambda rows, folder: rows.write_csv(folder / "x.csv") or str(folder / "x.csv"),
    "json lines": lambda rows, folder: rows.write_ndjson(folder / "x.jsonl") or folder / "x.jsonl",
    "arrow file": lambda rows, folder: rows.write_ipc(folder / "x.arrow") or folder / "x.arrow",
    "delta": lambda rows, folder: rows.write_delta(str(folder / "x")) or str(folder / "x"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_spine_may_come_as(world, tmp_path, form):
    folder = tmp_path / "spine"
    folder.mkdir()
    given = FORMS[form](ROWS, folder)
    answer = world.ask(given, ["stats:trips"]).collect()
    assert answer["trips"].to_list() == TRIPS
    assert answer["driver"].to_list() == ROWS["driver"].to_list()
    if form != "arrow reader":
        batches = list(world.ask(given, ["stats:trips"]).batches(3))
        assert pl.concat(batches).equals(answer)


def test_a_spine_may_be_a_query_over_given_tables_and_views(world):
    query = "SELECT o.driver, o.event_timestamp, s.trips AS later FROM orders o JOIN stats s ON s.driver = o.driver ORDER BY 1"
    answer = world.ask(query, ["stats:trips"], tables={"orders": ROWS}).collect()
    assert answer.select("driver", "later", "trips").rows() == [(1, 7, 7), (2, 8, None)]
    assert trips(
        world, "with x as (select * from stats) select driver, at as event_timestamp from x order by driver"
    ) == [7, 8]
    with pytest.raises(RequestError, match=r"cannot be run: .*orders.*Tables found: stats.*tables="):
        world.ask("SELECT * FROM stats, orders", ["stats:trips"])


def test_a_source_is_a_spine_and_a_table_of_queries(tmp_path):
    ROWS.write_parquet(tmp_path / "orders.parquet")
    orders = FileSource(name="orders", path=str(tmp_path / "orders.parquet"))
    here = World(tmp_path, STATS, orders)
    here.publish(STATS, [{"driver": 1, "at": NOON, "trips": 7}])
    assert trips(here, orders) == TRIPS
    assert trips(here, "SELECT * FROM orders WHERE driver < 9 ORDER BY driver") == [7, None]
    renamed = FileSource(name="orders", path=orders.path, field_mapping={"driver": "pilot"})
    by_pilot = ViewProjection("stats", join_key_map={"driver": "pilot"})
    assert here.ask(renamed, [by_pilot]).columns == ["pilot", "event_timestamp", "trips"]


@pytest.mark.parametrize("dtype", [pl.Int8, pl.Int32, pl.UInt64, pl.Float64])
def test_other_numbers_stand_for_an_integer_key(world, dtype):
    """Pandas makes floats of integers with gaps."""
    assert trips(world, ROWS.with_columns(pl.col("driver").cast(dtype))) == TRIPS


def test_a_number_that_the_key_cannot_hold_equals_no_key(tmp_path):
    tiny = view("tiny", {"k": Int8}, [Field("x", Int64)])
    here = World(tmp_path, tiny)
    here.publish(tiny, [{"k": 1, "at": NOON, "x": 1}, {"k": -128, "at": NOON, "x": 2}])
    asked = spine([NOON] * 3, k=[1, 128, -128])
    assert here.ask(asked, ["tiny:x"]).collect()["x"].to_list() == [1, None, 2]


@pytest.mark.parametrize("wrong", [1.5, float("nan"), 2.0**53 + 2], ids=str)
def test_a_float_that_is_not_exactly_an_integer_is_refused(world, wrong):
    asked = spine([NOON] * 2, driver=[1.0, wrong])
    with pytest.raises(WrongType, match=r"'driver' is Float64 and is looked up as Int64; .* \(row 1\).*cast\(pl.Int64"):
        world.ask(asked, ["stats:trips"]).collect()


@pytest.mark.parametrize(
    "column",
    [pl.Series(["1"]), pl.Series([True]), pl.Series([NOON]), pl.Series([[1]])],
    ids=lambda each: str(each.dtype),
)
def test_a_key_of_another_kind_is_refused_before_anything_is_read(world, column):
    with pytest.raises(
        WrongType, match=r"Spine column 'driver' is .* looked up as Int64\. Convert it on purpose: .cast"
    ):
        world.ask(spine(driver=column), ["stats:trips"])


def test_a_key_column_of_nothing_but_nulls_matches_nothing(world):
    assert trips(world, spine([NOON] * 2, driver=[None, None])) == [None, None]


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical, pl.Enum(["x", "y"])], ids=str)
def test_categories_stand_for_text(world, dtype):
    world.publish(NAMED, [{"name": "x", "at": NOON, "age": 3}])
    asked = spine([NOON] * 3, name=pl.Series(["x", "y", None], dtype=dtype))
    answer = world.ask(asked, ["named:age"]).collect()
    assert answer["age"].to_list() == [3, None, None]
    assert answer.schema["name"] == asked.schema["name"]


KEYS = [
    (Bool, [True, False]),
    (Bytes, [b"\0", b"\0\0"]),
    (Date, [date(2013, 2, 8), date(1, 1, 1)]),
    (Timestamp, [NOON, NOON + timedelta(microseconds=1)]),
    (Decimal(12, 3), [PyDecimal("1.500"), PyDecimal("-0.001")]),
    (UUID, ["00000000-0000-4000-8000-0000000000aa", "00000000-0000-4000-8000-0000000000ab"]),
    (String, ["", "\0"]),
    (Int64, [2**63 - 1, -(2**63)]),
]


@pytest.mark.parametrize("of, values", KEYS, ids=lambda each: str(each) if not isinstance(each, list) else "")
def test_every_type_that_can_be_a_key_is_looked_up(tmp_path, of, values):
    typed = view("typed", {"k": of, "more": String}, [Field("x", Int64)])
    here = World(tmp_path, typed)
    here.publish(typed, [{"k": value, "more": "m", "at": NOON, "x": n} for n, value in enumerate(values)])
    asked = spine([NOON] * 4, k=pl.Series([*values, values[0], None], dtype=of.polars), more=["m", "m", "n", "m"])
    assert here.ask(asked, ["typed:x"]).collect()["x"].to_list() == [0, 1, None, None]


def test_uuids_are_alike_in_either_case_and_without_hyphens(tmp_path):
    typed = view("typed", {"k": UUID}, [Field("x", Int64)])
    here = World(tmp_path, typed)
    here.publish(typed, [{"k": "00000000-0000-4000-8000-0000000000aa", "at": NOON, "x": 1}])
    asked = spine([NOON] * 3, k=["00000000-0000-4000-8000-0000000000AA", "000000000000400080000000000000aa", "aa"])
    answer = here.ask(asked, ["typed:x"]).collect()
    assert answer["x"].to_list() == [1, 1, None]
    assert answer["k"].to_list() == asked["k"].to_list()


def test_csv_keys_that_look_like_numbers_stay_the_text_that_they_are(world, tmp_path):
    world.publish(NAMED, [{"name": "007", "at": NOON, "age": 40}])
    path = tmp_path / "spine.csv"
    path.write_text("name,event_timestamp\n007,2013-02-08T12:00:00Z\n7,2013-02-08T12:00:00Z\n")
    assert world.ask(path, ["named:age"]).collect()["age"].to_list() == [40, None]
    path.write_text("nome,event_timestamp\n007,2013-02-08T12:00:00Z\n")
    with pytest.raises(MissingJoinKey, match=r"by 'name', which the spine lacks \(it has: event_timestamp, nome\)"):
        world.ask(path, ["named:age"])


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_times_of_every_unit_and_zone(world, unit, zone):
    column = (
        pl.col("event_timestamp").dt.convert_time_zone(zone)
        if zone
        else pl.col("event_timestamp").dt.replace_time_zone(None)
    )
    asked = ROWS.with_columns(column.cast(pl.Datetime(unit, zone)))
    answer = world.ask(asked, ["stats:trips"]).collect()
    assert answer["trips"].to_list() == TRIPS
    assert answer.schema["event_timestamp"] == pl.Datetime(unit, zone)


def test_dates_and_texts_are_times(world):
    world.publish(STATS, [{"driver": 1, "at": datetime(2013, 2, 8, tzinfo=UTC), "trips": 7}])
    dated = pl.DataFrame({"driver": [1, 1], "event_timestamp": [date(2013, 2, 8), date(2013, 2, 7)]})
    assert trips(world, dated) == [7, None]
    texts = ["2013-02-08T01:00:00+01:00", "2013-02-08T00:59:59.999999+01:00", None]
    assert trips(world, pl.DataFrame({"driver": [1] * 3, "event_timestamp": texts})) == [7, None, None]
    with pytest.raises(RequestError, match=r"'event_timestamp' is text, and 'noon' \(row 1\) is not read as a time"):
        trips(world, pl.DataFrame({"driver": [1, 1], "event_timestamp": ["2013-02-08T00:00:00Z", "noon"]}))


@pytest.mark.parametrize("written", ["02/08/2013", "02/08/2013 07:00", "08.02.2013", "08-02-2013"])
def test_a_date_of_which_nobody_knows_the_month_is_refused(world, tmp_path, written):
    """Polars reads the second of August, half a year after the eighth of February that an American meant."""
    refused = rf"'event_timestamp' is text, and '{written}' \(row 0\) is not read as a time. Write all as 2013-02-08T"
    asked = pl.DataFrame({"driver": [1], "event_timestamp": [written]})
    with pytest.raises(RequestError, match=refused):
        trips(world, asked)
    asked.write_csv(tmp_path / "spine.csv")
    with pytest.raises(RequestError, match=refused):
        trips(world, tmp_path / "spine.csv")


@pytest.mark.parametrize("dtype", [pl.Datetime("ms"), pl.Datetime("us"), pl.Datetime("us", "UTC"), pl.Date], ids=str)
@pytest.mark.parametrize("far", [2**31 - 1, -(2**31)])
def test_a_time_that_no_calendar_has_is_refused(world, dtype, far):
    ticks = pl.Series([None, far], dtype=pl.Int32) if dtype == pl.Date else pl.Series([None, far * 2**30])
    asked = pl.DataFrame({"driver": [1, 1], "event_timestamp": ticks.cast(dtype)})
    with pytest.raises(RequestError, match=r"before year 1 or after year 9999 in row 1"):
        trips(world, asked)


def test_the_column_of_times(world):
    named = ROWS.rename({"event_timestamp": "asked_at"})
    assert trips(world, named) == TRIPS
    two = named.with_columns(other=pl.col("asked_at") - HOUR)
    with pytest.raises(
        RequestError, match=r"no column 'event_timestamp', and several datetime columns: asked_at, other"
    ):
        world.ask(two, ["stats:trips"])
    assert trips(world, two, timestamp_column="asked_at") == TRIPS
    assert trips(world, two.with_columns(event_timestamp=pl.lit(NOON)), timestamp_column="other") == [None] * 4
    with pytest.raises(RequestError, match=r"and no datetime column: driver\. Name it: timestamp_column="):
        world.ask(ROWS.select("driver"), ["stats:trips"])
    with pytest.raises(RequestError, match=r"no column 'when' \(it has: driver, asked_at\)"):
        world.ask(named, ["stats:trips"], timestamp_column="when")
    with pytest.raises(RequestError, match=r"'event_timestamp' is Int64, which is no time\. .*from_epoch"):
        world.ask(ROWS.with_columns(pl.col("event_timestamp").to_physical()), ["stats:trips"])


def test_a_missing_join_key_is_named_with_the_mend(world):
    with pytest.raises(
        MissingJoinKey, match=r"View 'stats' is looked up by 'driver', which the spine lacks.*with_join_key_map"
    ):
        world.ask(spine(pilot=[1]), ["stats:trips"])
    mapped = ViewProjection("stats", ("trips",), join_key_map={"driver": "pilot"})
    assert world.ask(spine(pilot=[1]), [mapped]).collect()["trips"].to_list() == [7]


@pytest.mark.parametrize(
    "given, message",
    [
        (17, r"cannot be a int\. Give a Polars or pandas frame, an Arrow table, a path or a query"),
        ("nowhere.parquet", r"nowhere.parquet is not there\. A query starts with SELECT or WITH"),
        (Path(__file__), r"of no known kind\. Name a .parquet, .csv"),
        (pl.DataFrame({"driver": [object()], "event_timestamp": [NOON]}), r"'driver' holds Python objects"),
        (ROWS.lazy().select(pl.col("nothing")), r"The spine cannot be read: .*nothing"),
    ],
    ids=["number", "missing file", "odd file", "objects", "broken plan"],
)
def test_what_cannot_be_a_spine_is_refused(world, given, message):
    with pytest.raises(RequestError, match=message):
        world.ask(given, ["stats:trips"])


def test_a_spine_is_read_once(world, tmp_path):
    path = tmp_path / "spine.parquet"
    ROWS.write_parquet(path)
    in_batches, whole = world.ask(path, ["stats:trips"]), world.ask(path, ["stats:trips"])
    next(in_batches.batches(2))
    whole.collect()
    ROWS.reverse().head(1).write_parquet(path)
    for asked in (in_batches, whole):
        assert pl.concat(asked.batches(3)).equals(ROWS.with_columns(trips=pl.Series(TRIPS)))
        assert asked.collect()["trips"].to_list() == TRIPS


def test_a_spine_whose_order_is_left_to_chance_is_one_spine(world):
    """`unique` and `group_by` give their rows in another order each time."""
    chance = pl.LazyFrame({"driver": range(1000)}).unique().with_columns(event_timestamp=pl.lit(NOON))
    asked = world.ask(chance, ["stats:trips"])
    for _ in range(2):
        found = pl.concat(asked.batches(300))
        assert found.height == 1000
        assert found.filter(pl.col("trips").is_not_null()).sort("driver").rows() == [(1, NOON, 7), (2, NOON, 8)]


def test_what_a_spine_is_kept_in_goes_with_it(world, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    asked = world.ask(ROWS.lazy(), ["stats:trips"])
    list(asked.batches(2))
    assert list(tmp_path.glob("feature-assets-*/spine.parquet"))
    del asked
    gc.collect()
    assert not list(tmp_path.glob("feature-assets-*"))


@pytest.mark.parametrize("taken", [lambda asked: asked.collect(), lambda asked: list(asked.batches(2))])
def test_a_spine_that_fails_while_it_is_read_is_refused(world, taken):
    broken = (
        ROWS.lazy().with_columns(pl.col("driver").cast(pl.String) + "x").with_columns(pl.col("driver").cast(pl.Int64))
    )
    with pytest.raises(RequestError, match=r"The spine cannot be read: conversion"):
        taken(world.ask(broken, ["stats:trips"]))


def test_without_a_spine_every_row_of_the_range_is_one(world):
    world.publish(STATS, [{"driver": driver, "at": NOON + n * HOUR, "trips": n} for n in range(4) for driver in (2, 1)])
    world.publish(OTHER, [{"driver": 1, "at": NOON + HOUR, "rank": 5}, {"driver": 3, "at": NOON + HOUR, "rank": 6}])
    answer = world.ask(None, ["stats:trips", "other:rank"], since=NOON + HOUR, until="2013-02-08T15:00:00Z").collect()
    assert answer.columns == ["driver", "event_timestamp", "trips", "rank"]
    at = [NOON + HOUR] * 3 + [NOON + 2 * HOUR] * 2
    assert answer.rows() == list(zip([1, 2, 3, 1, 2], at, [1, 1, None, 2, 2], [5, None, 6, 5, None], strict=True))


def test_without_a_spine_of_a_view_without_entities(world):
    world.publish(DAY, [{"at": NOON, "holiday": 1}, {"at": NOON + HOUR, "holiday": 0}])
    answer = world.ask(None, ["day:holiday"], until=NOON + HOUR).collect()
    assert answer.rows() == [(NOON, 1)]


def test_without_a_spine_there_must_be_a_range_and_one_set_of_keys(world):
    with pytest.raises(RequestError, match=r"There is no spine\. Give one, or .* since= and until="):
        world.ask(None, ["stats:trips"])
    world.publish(NAMED, [])
    with pytest.raises(RequestError, match=r"looked up by the same keys, and 'stats' is by 'driver', all together"):
        world.ask(None, ["stats:trips", "named:age"], since=NOON)
    with pytest.raises(RequestError, match=r"since= and until= stand in for a spine"):
        world.ask(ROWS, ["stats:trips"], since=NOON)
    with pytest.raises(WrongType, match=r"since= str 'soon' is not a Timestamp"):
        world.ask(None, ["stats:trips"], since="soon")


def test_a_view_that_was_never_materialised_is_named(world):
    with pytest.raises(TableMissing, match=r"View 'other' \(version 1\) has no table in the offline store"):
        world.ask(ROWS, ["other:rank"])
    with pytest.raises(UnknownView):
        world.ask(ROWS, ["nothing:rank"])


def test_a_view_without_entities_is_joined_on_time_alone(world):
    world.publish(DAY, [{"at": NOON, "holiday": 1}, {"at": NOON + HOUR, "holiday": 0}])
    asked = spine([NOON + HOUR, NOON, NOON - HOUR, None])
    assert world.ask(asked, ["day:holiday"]).collect()["holiday"].to_list() == [0, 1, None, None]


def test_files_and_columns_that_cannot_matter_are_not_read(tmp_path):
    """They are gone, and nobody notices."""
    hourly = view("hourly", {"driver": Int64}, [Field("x", Int64), Field("y", Int64)], ttl=HOUR)
    here = World(tmp_path, hourly)
    for day in range(5):
        at = NOON + timedelta(days=day)
        here.publish(hourly, [{"driver": 1, "at": at, "x": day, "y": day}], partition=f"day{day}")
    for day in (0, 1, 3, 4):
        for file in (tmp_path / "offline").rglob(f"__partition=day{day}/*.parquet"):
            file.unlink()
    asked = spine([NOON + timedelta(days=2), NOON + timedelta(days=2, hours=1)], driver=[1, 1])
    assert here.ask(asked, ["hourly:x"]).collect()["x"].to_list() == [2, 2]


def test_nobody_who_asks_needs_pandas_or_pyarrow(tmp_path):
    folder = tmp_path / "other"
    here = World(folder, STATS)
    here.publish(STATS, [{"driver": 1, "at": NOON, "trips": 7}])
    ROWS.write_parquet(tmp_path / "spine.parquet")
    probe = f"""
import sys, json
from pathlib import Path
from feature_assets.historical import historical_features
from feature_assets.offline import OfflineStore
from feature_assets.registry import RegistryStore
registry = RegistryStore({str(folder / "registry")!r}).read().registry
offline = OfflineStore({str(folder / "offline")!r})
rows = historical_features(registry, offline, {str(tmp_path / "spine.parquet")!r}, ["stats:trips"]).collect()
print(json.dumps([rows["trips"].to_list(), sorted({{"pandas", "dagster", "fastapi"}} & set(sys.modules))]))
"""
    assert json.loads(subprocess.check_output([sys.executable, "-c", probe], text=True)) == [TRIPS, []]
