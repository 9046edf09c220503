"""A training set under a memory limit: joined part by part, with the rows of one that is joined whole."""

import json
from datetime import timedelta
from itertools import pairwise

import polars as pl
import pytest

from feature_assets.errors import RequestError, StoreError, WrongType
from feature_assets.historical import Progress, budget, historical_features, parts
from feature_assets.historical.budget import memory_limit
from feature_assets.spec import Field
from feature_assets.types import Int64, String
from tests.historical.world import HOUR, NOON, World, spine, view

MINUTE = timedelta(minutes=1)
STATS = view("stats", {"driver": String}, [Field("trips", Int64)], ttl=HOUR)
CITY = view("city", {}, [Field("rain", Int64)])
SMALL = 50_000


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(budget, "LEAST", 0)


@pytest.fixture
def world(tmp_path, small):
    here = World(tmp_path, STATS, CITY)
    here.publish(STATS, [{"driver": f"d{n % 7}", "at": NOON + n * MINUTE, "trips": n} for n in range(600)])
    here.publish(CITY, [{"at": NOON + n * HOUR, "rain": n} for n in range(10)])
    return here


def asked_at(minutes):
    return spine([NOON + n * MINUTE for n in minutes], driver=[f"d{n % 7}" for n in minutes], label=list(minutes))


def joined(world, asked, limit=SMALL):
    told: list[Progress] = []
    features = ["stats:trips", "city:rain"]
    found = world.ask(asked, features, memory_limit=limit, progress=told.append)
    rows = pl.concat(found.batches())
    assert rows.equals(world.ask(asked, features).collect())
    return rows, told


@pytest.mark.parametrize("form", [pl.DataFrame.lazy, pl.DataFrame.clone], ids=["lazy", "held"])
def test_rows_that_are_in_order_of_time_stay_where_they_are(world, form):
    _, told = joined(world, form(asked_at(range(600))))
    assert len(told) > 5
    assert {each.stage for each in told} == {"joining"}
    assert [each.done for each in told] == sorted(each.done for each in told)


@pytest.mark.parametrize("form", [pl.DataFrame.lazy, pl.DataFrame.clone], ids=["lazy", "held"])
def test_rows_in_no_order_are_parted_by_time_and_brought_back(world, form):
    minutes = [n * 367 % 600 for n in range(600)]
    rows, told = joined(world, form(asked_at(minutes)))
    assert rows["label"].to_list() == minutes
    assert [each.stage for each in told] == sorted(each.stage for each in told)
    assert {each.stage for each in told} == {"joining", "ordering"}
    assert told[-1] == Progress("ordering", 600, 600)


def test_rows_of_one_time_or_of_none_are_parted_all_the_same(world):
    late = spine([NOON + HOUR, None] * 300, driver=["d1", "d2"] * 300, label=range(600))
    joined(world, late)


def test_columns_of_the_spine_may_have_any_name(world):
    minutes = [n * 367 % 600 for n in range(600)]
    odd = asked_at(minutes).with_columns(__number=pl.lit(1), __part=pl.lit("x"), __time=pl.lit(2.0))
    rows, told = joined(world, odd)
    assert told[-1].stage == "ordering"
    assert rows.columns[:6] == odd.columns


def test_rows_that_turn_out_longer_than_the_first_are_fewer_at_a_time(world):
    texts = ["x"] * 5_000 + ["x" * 1_000] * 2_500
    asked = spine([NOON] * 7_500, driver=["d1"] * 7_500, text=texts)
    _, told = joined(world, asked, limit=1_000_000)
    steps = [after.done - before.done for before, after in pairwise(told)]
    assert steps[-1] < steps[0] / 3


def test_without_a_spine_every_row_is_found_span_by_span(world):
    options = {"since": NOON - HOUR, "until": NOON + 100 * HOUR}
    found = world.ask(None, ["stats:trips"], memory_limit=SMALL, **options)
    assert pl.concat(found.batches()).equals(world.ask(None, ["stats:trips"], **options).collect())
    nothing = world.ask(None, ["stats:trips"], memory_limit=SMALL, since=NOON - 2 * HOUR, until=NOON - HOUR)
    assert nothing.collect().is_empty()


def test_it_is_saved_and_rebuilt_bit_for_bit_whatever_the_limit(world, tmp_path):
    asked = asked_at([n * 367 % 600 for n in range(600)])
    few = world.ask(asked, ["stats:trips", "city:rain"], memory_limit=SMALL).save("few")
    whole = world.ask(asked, ["stats:trips", "city:rain"]).save("whole")
    assert few.result == whole.result
    assert len(few.files) > len(whole.files)
    for name in ("few", "whole"):
        assert world.rebuild(name).manifest.result == whole.result
        assert world.rebuild(name, memory_limit=SMALL).manifest.result == whole.result


def test_every_form_has_the_rows(world, tmp_path):
    asked = asked_at([n * 367 % 600 for n in range(600)]).lazy()
    frame = world.ask(asked, ["stats:trips"]).collect()

    def anew():
        return world.ask(asked, ["stats:trips"], memory_limit=SMALL)

    anew().write_parquet(tmp_path / "x.parquet")
    assert pl.read_parquet(tmp_path / "x.parquet").equals(frame)
    assert anew().collect().equals(frame)
    assert anew().lazy().collect().equals(frame)
    assert [each.height for each in anew().batches(250)] == [250, 250, 100]
    anew().write_delta(tmp_path / "table")
    assert pl.read_delta(str(tmp_path / "table")).sort("label").equals(frame.sort("label"))


def test_a_value_that_is_none_is_told_with_its_row_in_the_whole_spine(world):
    numbers = pl.Series([float(n) for n in range(599)] + [2.5])
    gate = view("gate", {"number": Int64})
    here = World(world.folder / "other", gate)
    here.publish(gate, [{"number": 1, "at": NOON, "gate_value": 1.0}])
    asked = spine([NOON] * 600, number=numbers)
    with pytest.raises(WrongType, match=r"2\.5 \(row 599\) is not exactly one"):
        next(here.ask(asked, ["gate:gate_value"], memory_limit=5_000).batches())


def test_nothing_stays_in_the_temporary_folder(world, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    batches = world.ask(asked_at([n * 367 % 600 for n in range(600)]), ["stats:trips"], memory_limit=SMALL).batches()
    next(batches)
    assert list((tmp_path / "temporary").iterdir())
    batches.close()
    assert not list((tmp_path / "temporary").iterdir())


def test_answers_that_vanish_are_an_error_and_no_shorter_answer(world, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    batches = world.ask(asked_at([n * 367 % 600 for n in range(600)]), ["stats:trips"], memory_limit=SMALL).batches()
    next(batches)
    (gone, *_) = tmp_path.glob("feature-assets-*/answer-*.parquet")
    gone.with_suffix(".else").write_bytes(gone.read_bytes())
    pl.read_parquet(gone).clear().write_parquet(gone)
    with pytest.raises(StoreError, match="no longer in the temporary folder"):
        list(batches)


@pytest.mark.parametrize(
    "given, size",
    [
        (None, None),
        (10**9, 10**9),
        ("4GB", 4 * 10**9),
        ("4 gib", 4 << 30),
        ("0.5G", 5 * 10**8),
        ("800000000", 8 * 10**8),
    ],
)
def test_a_limit_is_bytes_or_text(given, size):
    assert memory_limit(given) == size


@pytest.mark.parametrize(
    "given, told",
    [
        ("much", "'much' is no amount of memory"),
        (0, "less than reading and writing"),
        ("4 XB", "no amount"),
        (-1, "less"),
    ],
)
def test_another_is_refused_before_anything_is_read(given, told, tmp_path):
    here = World(tmp_path, STATS)
    here.publish(STATS, [])
    with pytest.raises(RequestError, match=told):
        historical_features(here.registry, here.offline, asked_at([1]), ["stats:trips"], memory_limit=given)


def test_a_delta_table_is_made_added_to_and_replaced(world, tmp_path):
    table = tmp_path / "rows"
    asked = world.ask(asked_at(range(3)), ["stats:trips"])
    asked.write_delta(table)
    with pytest.raises(RequestError, match=r"does not take the rows: there is one already\. mode='append' adds"):
        asked.write_delta(table)
    asked.write_delta(table, mode="append")
    assert pl.read_delta(str(table)).height == 6
    asked.write_delta(table, mode="overwrite")
    assert pl.read_delta(str(table)).equals(asked.collect())
    versions = sorted((table / "_delta_log").glob("*.json"))
    assert len(versions) == 3
    assert any("add" in json.loads(line) for line in versions[0].read_text().splitlines())


def test_what_goes_wrong_on_the_way_to_delta_is_told_as_it_is(world, tmp_path):
    asked = world.ask(pl.LazyFrame({"driver": ["a"], "event_timestamp": ["never"]}), ["stats:trips"])
    with pytest.raises(RequestError, match=r"'never' \(row 0\) is not read as a time"):
        asked.write_delta(tmp_path / "rows")
    assert not (tmp_path / "rows" / "_delta_log").exists()


def test_a_part_has_about_as_many_rows_as_another():
    spans = [parts._Span.of(pl.Series([NOON + n * MINUTE for n in range(step, 1000, 4)])) for step in range(4)]
    cuts = parts._cuts(spans)
    sizes = [pl.concat([span.quantiles for span in spans]).is_between(low, high).sum() for low, high in pairwise(cuts)]
    assert len(cuts) == 3
    assert max(sizes) < 1.1 * min(sizes)
