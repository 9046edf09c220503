"""A training set in every form that it is taken in, and kept under a name."""

import sys
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest

from feature_assets.errors import (
    ConfigurationError,
    ContractBroken,
    RequestError,
    StoreUnavailable,
    StoreUnsafe,
    UnknownTrainingSet,
)
from feature_assets.historical import historical_features
from feature_assets.spec import Field, Function, OnDemandViewSpec, ViewProjection
from feature_assets.training import training_set
from feature_assets.types import Int64, String
from tests.historical.world import HOUR, NOON, World, spine, view

STATS = view("stats", {"driver": String}, [Field("trips", Int64)])
ASKED = spine([NOON + n * HOUR for n in range(10)], driver=list("abcabcabca"), label=range(10))


@pytest.fixture
def world(tmp_path):
    here = World(tmp_path, STATS)
    here.publish(STATS, [{"driver": name, "at": NOON, "trips": n} for n, name in enumerate("ab")])
    return here


@pytest.fixture
def asked(world):
    return world.ask(ASKED, ["stats:trips"])


EXPECTED = [0, 1, None] * 3 + [0]


def test_every_form_has_the_same_rows(asked, tmp_path):
    frame = asked.collect()
    assert frame["trips"].to_list() == EXPECTED
    assert asked.lazy().collect().equals(frame)
    assert pl.DataFrame(asked.to_arrow()).equals(frame)
    assert pl.from_pandas(asked.to_pandas())["trips"].to_list() == EXPECTED
    asked.write_parquet(tmp_path / "x.parquet")
    assert pl.read_parquet(tmp_path / "x.parquet").equals(frame)


def test_every_form_has_them_without_all_in_memory_too(world, tmp_path):
    frame = world.ask(ASKED, ["stats:trips"]).collect()
    world.ask(ASKED, ["stats:trips"]).write_parquet(tmp_path / "x.parquet")
    assert pl.read_parquet(tmp_path / "x.parquet").equals(frame)
    lazy = world.ask(ASKED.lazy(), ["stats:trips"]).lazy()
    assert lazy.collect_schema() == frame.schema
    assert lazy.select("trips", "label").filter(pl.col("label") > 7).collect().rows() == [(None, 8), (0, 9)]
    assert lazy.head(2).collect().equals(frame.head(2))


@pytest.mark.parametrize("rows", [1, 3, 10, 11])
@pytest.mark.parametrize("form", [pl.DataFrame.lazy, pl.DataFrame.clone], ids=["lazy", "held"])
def test_batches_are_the_rows_in_order(world, rows, form):
    asked = world.ask(form(ASKED), ["stats:trips"])
    batches = list(asked.batches(rows))
    assert pl.concat(batches).equals(asked.collect())
    assert pl.concat(asked.batches(rows)).equals(asked.collect())
    assert all(batch.height >= min(rows, 10) or batch is batches[-1] for batch in batches)


def test_a_batch_has_a_row_at_least(asked):
    with pytest.raises(RequestError, match="A batch of 0 rows is none"):
        asked.batches(0)


@pytest.mark.parametrize("form", [pl.DataFrame.lazy, pl.DataFrame.clone], ids=["lazy", "held"])
def test_no_rows_are_one_empty_batch(world, form):
    asked = world.ask(form(ASKED.clear()), ["stats:trips"])
    assert [batch.height for batch in asked.batches(5)] == [0]
    assert asked.collect().schema == asked.schema
    assert asked.save("none").result.rows == 0
    assert world.rebuild("none").collect().schema == asked.schema


def test_pieces_are_as_large_as_memory_allows(world, monkeypatch):
    monkeypatch.setattr(training_set, "PIECE_BYTES", 0)
    many = pl.concat([ASKED] * 2500)
    asked = world.ask(many, ["stats:trips"])
    assert [batch.height for batch in asked.batches()] == [10_000, 10_000, 5_000]
    assert asked.save("many").files[-1].path.endswith("features-000000020000.parquet")
    assert world.sets.load("many").collect().equals(asked.collect())
    assert [batch.height for batch in world.sets.load("many").batches(6_000)] == [6_000, 4_000, 6_000, 4_000, 5_000]
    assert world.rebuild("many").manifest.result == asked.manifest.result


def test_what_is_published_meanwhile_does_not_show(world, asked):
    world.publish(STATS, [{"driver": "a", "at": NOON, "trips": 100}])
    assert asked.collect()["trips"].to_list() == EXPECTED
    assert world.ask(ASKED, ["stats:trips"]).collect()["trips"].to_list()[0] == 100


def test_the_schema_is_known_before_anything_is_read(asked):
    assert asked.columns == ["driver", "label", "event_timestamp", "trips"]
    assert asked.spine_columns == ("driver", "label", "event_timestamp")
    assert asked.schema == asked.collect().schema
    assert repr(asked) == "TrainingSet(driver, label, event_timestamp, trips; Delta versions: stats@v1 at 1)"


def test_pandas_is_asked_for_where_it_is_missing(asked, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigurationError, match=r"to_pandas\(\) needs pandas\. Install it: pip install pandas"):
        asked.to_pandas()


def fails(frame):
    return frame.select("nothing")


def test_errors_are_the_platforms_own_whatever_way_the_rows_are_taken(tmp_path):
    from feature_assets.functions import function_digest

    broken = OnDemandViewSpec(
        name="broken",
        sources=(ViewProjection("stats"),),
        features=(Field("x", Int64),),
        transformation=Function(f"{__name__}:fails", function_digest(fails)),
    )
    here = World(tmp_path, STATS, broken)
    here.publish(STATS, [{"driver": "a", "at": NOON, "trips": 1}])
    asked = here.ask(ASKED, ["broken:x"], allowed_modules=[__name__])
    (tmp_path / "x").write_bytes(b"before")
    for taken in (
        asked.collect,
        lambda: list(asked.batches()),
        lambda: asked.write_parquet(tmp_path / "x"),
        lambda: asked.save("x"),
    ):
        with pytest.raises(ContractBroken, match=r"'broken'.* failed: ColumnNotFoundError"):
            taken()
    # What was there stays, and nothing is beside it.
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir() if path.is_file()] == [("x", b"before")]
    assert here.sets.names() == []


def test_a_file_is_written_where_a_link_leads(asked, tmp_path):
    target, link = tmp_path / "rows.parquet", tmp_path / "link.parquet"
    link.symlink_to(target)
    asked.write_parquet(link)
    assert link.is_symlink()
    assert pl.read_parquet(target).equals(asked.collect())


def test_a_history_that_cannot_be_read_is_named(world, tmp_path):
    asked = world.ask(ASKED, ["stats:trips"])
    for file in (tmp_path / "offline").rglob("*.parquet"):
        file.unlink()
    with pytest.raises(
        StoreUnavailable, match=r"history of view 'stats' \(version 1, Delta version 1\) cannot be read"
    ):
        asked.collect()


# Saved sets


def test_a_name_is_taken_once(world, asked):
    asked.save("mine")
    world.publish(STATS, [])
    later = world.ask(ASKED, ["stats:trips"])
    with pytest.raises(RequestError, match=r"There is a training set 'mine' at .* already"):
        later.save("mine")
    assert world.sets.load("mine").collect()["trips"].to_list() == EXPECTED
    before = set(world.folder.rglob("training/sets/mine/*/*"))
    later.save("mine", overwrite=True)
    assert world.sets.load("mine").collect()["trips"].to_list() == [None] * 10
    assert not before & set(world.folder.rglob("training/sets/mine/*/*"))


def test_of_many_that_save_under_one_name_one_succeeds(world):
    def saving(number):
        try:
            return world.ask(ASKED.with_columns(number=pl.lit(number)), ["stats:trips"]).save("mine")
        except RequestError:
            return None

    with ThreadPoolExecutor(4) as threads:
        manifests = [each for each in threads.map(saving, range(4)) if each]
    assert manifests == [world.sets.manifest("mine")]
    assert len(list(world.folder.rglob("training/sets/mine/*/*"))) == len(manifests[0].files)


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".x", "a b", "x" * 101])
def test_a_name_that_cannot_be_one_is_refused(asked, name):
    with pytest.raises(RequestError, match="cannot be the name of a training set"):
        asked.save(name)


def test_saved_sets_are_listed_loaded_and_deleted(world, asked):
    assert world.sets.names() == []
    asked.save("b")
    world.ask(ASKED.head(1), ["stats:trips"]).save("a")
    assert world.sets.names() == ["a", "b"]
    loaded = world.sets.load("b")
    assert loaded.manifest == asked.manifest
    assert (loaded.schema, loaded.spine_columns) == (asked.schema, asked.spine_columns)
    assert loaded.lazy().collect().equals(asked.collect())
    world.sets.delete("b")
    assert world.sets.names() == ["a"]
    with pytest.raises(UnknownTrainingSet):
        world.sets.load("b")
    assert len(list(world.folder.rglob("training/sets/*/*/*.parquet"))) == 2


def test_a_damaged_file_is_found_out_when_it_is_read(world, asked):
    asked.save("mine")
    (file,) = world.folder.rglob("training/sets/mine/*/features-*.parquet")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreUnsafe, match=r"features-000000000000.parquet is not what was saved"):
        world.sets.load("mine").collect()


def test_a_damaged_manifest_is_found_out(world, asked):
    asked.save("mine")
    path = world.folder / "training" / "sets" / "mine" / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(StoreUnsafe, match=r"has format 2; this release reads 1\. Upgrade"):
        world.sets.load("mine")
    path.write_text("{")
    with pytest.raises(StoreUnsafe, match=r"manifest.json is no manifest"):
        world.sets.load("mine")


def test_without_a_place_nothing_is_saved(world):
    asked = historical_features(world.registry, world.offline, ASKED, ["stats:trips"])
    with pytest.raises(ConfigurationError, match="There is no place to save training sets in"):
        asked.save("mine")
