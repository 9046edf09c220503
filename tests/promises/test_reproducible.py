"""Promise 6: a saved training set is rebuilt bit for bit, or the rebuild says exactly what is no longer there."""

import json
import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets.errors import NotReproducible, UnknownTrainingSet
from feature_assets.registry import Registry
from feature_assets.spec import Field, OnDemandViewSpec, ServiceSpec, ViewProjection
from feature_assets.training import Manifest, TrainingSet
from feature_assets.training.digests import Digester
from feature_assets.transformations import declared_expressions
from feature_assets.types import Float32, Float64, Int64, List, String, Struct, Vector
from tests.historical.world import HOUR, NOON, World, spine, view

STATS = view("stats", {"driver": String}, [Field("mean", Float64), Field("trips", Int64)], created_timestamp="made")
ROUTE = view("route", {"start": String, "stop": String}, [Field("way", Vector[2]), Field("tags", List[String])])
TWICE = OnDemandViewSpec(
    name="twice",
    sources=(ViewProjection("stats", ("mean",)),),
    features=(Field("double", Float64),),
    transformation=declared_expressions("twice", {"double": pl.col("mean") * 2}),
)
MODEL = ServiceSpec(name="model", features=(ViewProjection("stats"), ViewProjection("route"), ViewProjection("twice")))
SPINE = spine(
    [NOON, NOON, None, NOON + HOUR],
    driver=["a", "b", "a", None],
    start=["x", "x", "y", "x"],
    stop=["y", None, "x", "y"],
    label=pl.Series([math.nan, -0.0, None, 1.0]),
    kind=pl.Series(["p", "q", "p", None], dtype=pl.Enum(["p", "q"])),
)


def platform(folder: Path) -> World:
    here = World(folder, STATS, ROUTE, TWICE, MODEL)
    here.publish(
        STATS,
        [
            {"driver": "a", "at": NOON - HOUR, "made": NOON, "mean": -0.0, "trips": 1},
            {"driver": "b", "at": NOON, "made": NOON, "mean": math.nan, "trips": None},
        ],
    )
    here.publish(ROUTE, [{"start": "x", "stop": "y", "at": NOON, "way": [1.0, math.nan], "tags": ["", None]}])
    return here


def saved(here: World, **options: object) -> TrainingSet:
    asked = here.ask(SPINE, "model", **options)
    asked.save("today")
    return asked


def bits(frame: pl.DataFrame) -> Manifest:
    digester = Digester(frame.schema)
    digester.update(frame)
    return digester.result()


def test_it_is_rebuilt_bit_for_bit_after_everything_has_changed(tmp_path: Path) -> None:
    here = platform(tmp_path)
    was = saved(here).collect()
    here.publish(STATS, [{"driver": "a", "at": NOON, "made": NOON, "mean": 5.0, "trips": 5}])
    here.publish(ROUTE, [])
    here.offline.compact(here.registry.view("stats"))
    changed = view("stats", {"driver": String}, [Field("mean", Float64)], created_timestamp="made", version=2)
    here.published.publish(Registry.of([changed]), location="tests", by="tests", prune=True)
    rebuilt = here.rebuild("today")
    assert rebuilt.collect().schema == was.schema
    assert bits(rebuilt.collect()) == bits(was)
    assert bits(here.sets.load("today").collect()) == bits(was)


@given(st.lists(st.sampled_from(["publish", "compact", "erase"]), max_size=4), st.booleans(), st.booleans())
@settings(max_examples=max(5, settings().max_examples // 6))
def test_whatever_is_published_later_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, later: list[str], cutoff: bool, full: bool
) -> None:
    here = platform(tmp_path_factory.mktemp("world"))
    was = saved(here, created_cutoff=cutoff, full_feature_names=full).collect()
    for number, what in enumerate(later):
        if what == "publish":
            here.publish(STATS, [{"driver": "a", "at": NOON - HOUR, "made": None, "mean": 5.0, "trips": number}])
        elif what == "compact":
            here.offline.compact(STATS)
        else:
            here.offline.erase(STATS, pl.DataFrame({"driver": ["a"]}), metadata={})
    assert bits(here.rebuild("today").collect()) == bits(was)


def test_the_manifest_says_what_it_was_made_of(tmp_path: Path) -> None:
    here = platform(tmp_path)
    here.publish(STATS, [{"driver": "a", "at": NOON, "made": NOON, "mean": 5.0, "trips": 5}], partition="more")
    asked = here.ask(SPINE, "model", created_cutoff=False)
    manifest = asked.save("today")
    assert manifest == asked.manifest == here.sets.manifest("today")
    assert manifest.question.registry == here.registry.digest
    assert manifest.question.tables == {
        "stats@v1": here.offline.version(STATS),
        "route@v1": here.offline.version(ROUTE),
    }
    assert manifest.question.features == MODEL.features
    assert manifest.question.created_cutoff is False
    assert (manifest.spine.rows, list(manifest.spine.columns)) == (4, SPINE.columns)
    assert list(manifest.result.columns) == asked.columns
    assert manifest.libraries["polars"] == pl.__version__
    again = here.ask(SPINE.reverse().reverse(), "model", created_cutoff=False).manifest
    assert (again.spine.digest, again.result.digest) == (manifest.spine.digest, manifest.result.digest)
    other = here.ask(SPINE.with_columns(label=-pl.col("label")), "model", created_cutoff=False).manifest
    assert other.spine.digest != manifest.spine.digest


def test_a_spine_of_any_dtype_comes_back_as_it_was(tmp_path: Path) -> None:
    here = platform(tmp_path)
    odd = spine([NOON, None], driver=["a", None]).with_columns(
        category=pl.Series(["z", "a"], dtype=pl.Categorical),
        empty=pl.Series([None, None]),
        nested=pl.Series([{"a": [1, None], "b": {"c": b"\0"}}, None]),
        long=pl.Series([2**100, None], dtype=pl.Int128),
        took=pl.Series([timedelta(microseconds=1), None]),
        clock=pl.Series([NOON.time(), None]),
        short=pl.Series([[1.0, 2.0], None], dtype=pl.Array(pl.Float32, 2)),
        unsigned=pl.Series([2**64 - 1, None], dtype=pl.UInt64),
        local=pl.Series([NOON, None]).cast(pl.Datetime("ns", "Asia/Kathmandu")),
        cents=pl.Series(["1.10", None]).cast(pl.Decimal(20, 2)),
    )
    was = here.ask(odd, ["stats:mean"])
    was.save("odd")
    assert here.rebuild("odd").collect().schema == was.collect().schema
    assert here.sets.load("odd").collect().equals(was.collect())
    staged = pl.concat(here.ask(odd.lazy(), ["stats:mean"]).batches(1))
    assert staged.schema == was.schema
    assert staged.equals(was.collect())


# What is gone


def vacuum(here: World) -> None:
    here.publish(STATS, [])
    here.publish(ROUTE, [])
    for each in (STATS, ROUTE):
        assert here.offline.vacuum(each, older_than=timedelta(0), dry_run=False)


def remove(pattern: str) -> Callable[[World], None]:
    def removing(here: World) -> None:
        found = list(here.folder.glob(pattern))
        assert found
        for each in found:
            each.unlink()

    return removing


def damage(pattern: str) -> Callable[[World], None]:
    def damaging(here: World) -> None:
        for each in here.folder.glob(pattern):
            each.write_bytes(each.read_bytes()[:-20] + bytes(20))

    return damaging


def drop_tables(here: World) -> None:
    for each in (here.folder / "offline" / "stats").rglob("*"):
        if each.is_file():
            each.unlink()
    for each in sorted((here.folder / "offline" / "stats").rglob("*"), reverse=True):
        each.rmdir()


@pytest.mark.parametrize(
    "loss, told",
    [
        (remove("registry/snapshots/*.json"), [r"registry/snapshots/[0-9a-f]{64}.json is not there"]),
        (remove("training/sets/today/*/spine-*.parquet"), [r"today/[0-9a-f]+/spine-000000000000.parquet is gone"]),
        (damage("training/sets/today/*/spine-*.parquet"), [r"spine-000000000000.parquet is not what was saved"]),
        (vacuum, [r"view 'stats'.*have been vacuumed", r"view 'route'.*have been vacuumed"]),
        (drop_tables, [r"View 'stats' \(version 1\) has no table"]),
        (remove("offline/stats/v1/_delta_log/*1.json"), [r"'stats'"]),
    ],
    ids=["registry", "spine", "damaged spine", "vacuum", "table", "log entry"],
)
def test_the_rebuild_says_what_is_gone(tmp_path: Path, loss: Callable[[World], None], told: list[str]) -> None:
    here = platform(tmp_path)
    saved(here)
    loss(here)
    with pytest.raises(NotReproducible, match=r"^Training set 'today' cannot be rebuilt: ") as raised:
        here.rebuild("today")
    for each in told:
        raised.match(each)


def test_several_losses_are_told_together(tmp_path: Path) -> None:
    here = platform(tmp_path)
    saved(here)
    vacuum(here)
    remove("training/sets/today/*/spine-*.parquet")(here)
    with pytest.raises(
        NotReproducible, match=r"spine-000000000000.parquet is gone.*'stats'.*vacuumed.*'route'.*vacuumed"
    ):
        here.rebuild("today")


def test_columns_that_come_out_otherwise_are_named(tmp_path: Path) -> None:
    """The table was dropped and made anew with as many versions, and other values."""
    here = platform(tmp_path)
    saved(here)
    drop_tables(here)
    here.publish(
        STATS,
        [
            {"driver": "a", "at": NOON - HOUR, "made": NOON, "mean": 0.0, "trips": 1},
            {"driver": "b", "at": NOON, "made": NOON, "mean": math.nan, "trips": None},
        ],
    )
    with pytest.raises(NotReproducible, match=r"columns mean, double of 11 came out otherwise; libraries are the same"):
        here.rebuild("today")


def test_other_libraries_are_named(tmp_path: Path) -> None:
    here = platform(tmp_path)
    saved(here)
    path = here.folder / "training" / "sets" / "today" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["libraries"]["polars"] = "1.0.0"
    manifest["result"]["columns"]["trips"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        NotReproducible, match=rf"column trips of 11 came out otherwise; .*polars 1\.0\.0 → {pl.__version__}"
    ):
        here.rebuild("today")


def test_a_set_that_was_never_saved_is_unknown(tmp_path: Path) -> None:
    here = platform(tmp_path)
    saved(here)
    with pytest.raises(UnknownTrainingSet, match=r"no saved training set 'todai'\. Did you mean 'today'"):
        here.rebuild("todai")


TYPES = [Float32, Float64, String, List[Float64], Struct({"x": Float64, "s": String}), Vector[2]]


@given(st.data(), st.lists(st.integers(0, 6), max_size=4))
def test_a_digest_depends_on_values_alone(data: st.DataObject, cuts: list[int]) -> None:
    numbers = st.none() | st.floats(width=32, allow_nan=False) | st.just(math.nan)
    texts = st.none() | st.text(max_size=3)
    columns = st.fixed_dictionaries(
        {
            "f": numbers,
            "s": texts,
            "l": st.none() | st.lists(numbers, max_size=2),
            "t": st.none() | st.fixed_dictionaries({"x": numbers, "s": texts}),
            "n": st.none() | st.lists(st.none() | st.lists(texts, max_size=2), max_size=2),
        }
    )
    schema = {
        "f": pl.Float64(),
        "s": pl.String(),
        "l": pl.List(pl.Float64),
        "t": pl.Struct({"x": pl.Float64, "s": pl.String}),
        "n": pl.List(pl.List(pl.String)),
    }
    rows = data.draw(st.lists(columns, max_size=6))
    frame = pl.DataFrame(rows, schema=schema)
    pieces, start = Digester(schema), 0
    for cut in [*sorted(cuts), 6]:
        pieces.update(frame.slice(start, max(0, cut - start)))
        start = max(start, cut)
    assert pieces.result() == bits(frame)
    other = data.draw(st.lists(columns, max_size=6))
    # As text, which tells -0.0 from 0.0 and knows one NaN; in which order a row names its columns is no value.
    same = json.dumps(other, sort_keys=True) == json.dumps(rows, sort_keys=True)
    assert (bits(pl.DataFrame(other, schema=schema)) == bits(frame)) is same
