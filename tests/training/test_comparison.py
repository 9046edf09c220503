"""What two saved sets differ in, and what a vacuum leaves for them."""

import math
from datetime import timedelta

import polars as pl
import pytest

from feature_assets.errors import NotReproducible, StoreUnsafe, UnknownTrainingSet
from feature_assets.registry import Registry
from feature_assets.spec import Field
from feature_assets.training import NeededVersions, comparison, differences
from feature_assets.types import Float64, Int64, List, String, Struct
from tests.historical.world import HOUR, NOON, World, spine, view

STATS = view(
    "stats",
    {"driver": String},
    [Field("mean", Float64), Field("tags", List[String]), Field("at_most", Struct({"x": Float64}))],
)
TRIPS = view("trips", {"driver": String}, [Field("count", Int64)])
ASKED = spine([NOON + n * HOUR for n in range(6)], driver=list("abcabc"), label=pl.Series(range(6), dtype=pl.Int64))
ODD = "a b/%20ü"
ROWS = [
    {"driver": "a", "at": NOON, "mean": 1.0, "tags": ["x"], "at_most": {"x": 1.0}},
    {"driver": "b", "at": NOON, "mean": 0.0, "tags": [], "at_most": None},
]


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "_ROWS", 4)
    here = World(tmp_path, STATS, TRIPS)
    here.publish(STATS, ROWS, partition=ODD)
    here.publish(TRIPS, [{"driver": "a", "at": NOON, "count": 1}])
    here.ask(ASKED, ["stats:*", "trips:count"]).save("first")
    return here


def published(here, **changed):
    here.publish(STATS, [{**row, **(changed if row["driver"] == "b" else {})} for row in ROWS], partition=ODD)


def test_a_set_and_its_rebuild_are_equal(world):
    world.rebuild("first").save("again")
    found = differences(world.sets, "first", "again")
    assert found.equal
    assert (found.views, found.asked, found.columns, found.libraries, found.examples) == ((),) * 5


def test_the_views_columns_and_rows_that_changed_are_told(world):
    published(world, mean=5.0, tags=["y", None])
    world.ask(ASKED, ["stats:*", "trips:count"]).save("second")
    found = differences(world.sets, "first", "second")
    assert not found.equal
    assert [(one.what, one.before, one.after) for one in found.views] == [("stats@v1", "1", "2")]
    assert found.asked == ()
    assert [(one.name, one.rows) for one in found.columns] == [("mean", 2), ("tags", 2)]
    assert (found.rows.changed, found.rows.added, found.rows.removed) == (2, 0, 0)
    assert [one.row["label"] for one in found.examples] == [1, 4]
    assert found.examples[0].before == {"mean": 0.0, "tags": []}
    assert found.examples[0].after == {"mean": 5.0, "tags": ["y", None]}


@pytest.mark.parametrize("value, rows", [(-0.0, 2), (math.nan, 2), (None, 2), (0.0, 0)])
def test_every_bit_of_a_number_counts(world, value, rows):
    published(world, mean=value)
    world.ask(ASKED, ["stats:*", "trips:count"]).save("second")
    assert [one.rows for one in differences(world.sets, "first", "second").columns] == [rows] * bool(rows)


def test_the_question_and_the_registry_are_compared(world):
    newer = view("stats", {"driver": String}, list(STATS.features), version=2)
    world.published.publish(Registry.of([newer, TRIPS]), location="tests", by="tests")
    world.registry = world.published.read().registry
    world.publish(newer, ROWS)
    world.ask(ASKED, ["trips:count", "stats@v2:mean"], created_cutoff=False).save("second")
    found = differences(world.sets, "first", "second")
    assert {one.what for one in found.views} == {"stats@v1", "stats@v2"}
    assert {one.what: (one.before, one.after) for one in found.asked if one.what != "registry"} == {
        "created cutoff": ("True", "False"),
        "features of stats": ("all", None),
        "features of stats@v2": (None, "mean"),
    }
    assert "registry" in {one.what for one in found.asked}
    assert [(one.name, one.after) for one in found.columns] == [("tags", None), ("at_most", None)]


def test_rows_of_another_spine_are_told_by_what_they_are(world):
    published(world, mean=5.0)
    other = pl.concat([ASKED.slice(1, 4), ASKED.slice(4, 1), ASKED.slice(0, 1).with_columns(label=pl.lit(9, pl.Int64))])
    world.ask(other, ["stats:*", "trips:count"]).save("second")
    rows = differences(world.sets, "first", "second").rows
    # Rows 0 and 5 are gone, row 4 is there twice and 9 is new; 1 and 4 have another mean.
    assert (rows.removed, rows.added, rows.changed) == (2, 2, 2)


def test_a_set_that_is_not_there_is_unknown(world):
    with pytest.raises(UnknownTrainingSet, match="Did you mean 'first'"):
        differences(world.sets, "first", "frist")


def vacuum(here, **options):
    return here.offline.vacuum(STATS, older_than=timedelta(0), **options)


def test_a_vacuum_keeps_what_saved_sets_need_and_nothing_else(world):
    published(world, mean=2.0)
    published(world, mean=3.0)
    needed = NeededVersions.of(world.sets)
    assert needed.versions(STATS) == [1]
    old = vacuum(world)
    assert len(old) == 2
    lost = world.offline.needing(STATS, needed.versions(STATS), old)
    assert needed.sets(STATS, lost) == ["first"]
    removed = vacuum(world, keep_versions=needed.versions(STATS), dry_run=False)
    assert len(removed) == 1
    assert world.rebuild("first").manifest.result == world.sets.manifest("first").result
    assert vacuum(world, keep_versions=needed.versions(STATS)) == []
    assert vacuum(world, dry_run=False) == [path for path in old if path not in removed]
    with pytest.raises(NotReproducible, match="have been vacuumed"):
        world.rebuild("first")


def test_what_no_set_needs_any_more_goes(world):
    published(world, mean=2.0)
    world.sets.delete("first")
    needed = NeededVersions.of(world.sets)
    assert needed.versions(STATS) == []
    assert len(vacuum(world, keep_versions=needed.versions(STATS), dry_run=False)) == 1


def test_a_version_that_the_table_never_had_is_no_matter(world):
    published(world, mean=2.0)
    assert len(vacuum(world, keep_versions=[99], dry_run=False)) == 1
    assert world.offline.needing(STATS, [99], []) == []


def test_what_sets_need_is_not_guessed_where_a_manifest_is_damaged(world):
    (world.folder / "training/sets/first/manifest.json").write_text("{")
    with pytest.raises(StoreUnsafe, match="is no manifest"):
        NeededVersions.of(world.sets)
