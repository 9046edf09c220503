"""Parts of a spine answered by whoever runs them, in whatever order and how often."""

import json
import os
import subprocess
import sys
from datetime import timedelta

import polars as pl
import pytest

from feature_assets.errors import ConfigurationError, RequestError, StoreError, StoreUnavailable, WrongType
from feature_assets.historical import budget
from feature_assets.joins import run_by
from feature_assets.spec import Field, OnDemandViewSpec, RequestSource, ViewProjection
from feature_assets.training import training_set
from feature_assets.transformations import declared_expressions
from feature_assets.types import Float64, Int64, String
from tests.historical.world import HOUR, NOON, World, spine, view

MINUTE = timedelta(minutes=1)
STATS = view("stats", {"driver": String}, [Field("trips", Int64)])
SCALED = OnDemandViewSpec(
    name="scaled",
    sources=(ViewProjection("stats"),),
    request=(RequestSource("asked", (Field("factor", Float64),)),),
    features=(Field("product", Float64),),
    transformation=declared_expressions("scaled", {"product": pl.col("trips") * pl.col("factor")}),
)
ASKED = ["stats:trips", "scaled:product"]
TEXT = "test"


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "LEAST", 0)
    here = World(tmp_path, STATS, SCALED)
    here.publish(STATS, [{"driver": f"d{n % 7}", "at": NOON + n * MINUTE, "trips": n} for n in range(300)])
    return here


def rows(minutes):
    return spine(
        [NOON + n * MINUTE for n in minutes],
        driver=[f"d{n % 7}" for n in minutes],
        factor=[float(n) for n in minutes],
        kind=pl.Series(["p", "q", None] * (len(minutes) // 3), dtype=pl.Enum(["p", "q"])),
    )


def backwards_and_twice(work, given):
    """Whoever is taken for dead may still be at it."""
    for task in reversed(given):
        work(task)
        yield work(task)


@pytest.fixture
def spread(world, monkeypatch):
    """The question, answered by tasks that this process runs."""

    def ask(asked, run=backwards_and_twice, **options):
        monkeypatch.setattr("feature_assets.historical.run_by", lambda *_: run)
        options = {"memory_limit": 30_000, "engine": "daft", **options}
        return world.ask(asked, ASKED, **options)

    return ask


@pytest.mark.parametrize("minutes", [range(300), [n * 187 % 300 for n in range(300)]], ids=["in order", "in none"])
@pytest.mark.parametrize("form", [pl.DataFrame.lazy, pl.DataFrame.clone], ids=["lazy", "held"])
def test_the_rows_are_those_of_one_process(world, spread, minutes, form):
    ran = []

    def run(work, given):
        ran.extend(given)
        return backwards_and_twice(work, given)

    found = spread(form(rows(minutes)), run)
    assert pl.concat(found.batches(70)).equals(world.ask(rows(minutes), ASKED).collect())
    assert len(ran) > 3
    assert all(len(task) < 1_000 for task in ran)


def test_a_spine_without_rows_needs_nobody(spread):
    def run(work, given):
        raise AssertionError("there is nothing to do")

    assert spread(rows([]), run).collect().columns == [
        "driver",
        "factor",
        "kind",
        "event_timestamp",
        "trips",
        "product",
    ]


def test_the_parts_lie_in_the_folder_that_is_named_and_go(world, spread, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    seen = []

    def run(work, given):
        seen.extend(scratch.rglob("part-*.parquet"))
        return map(work, given)

    spread(rows(range(300)), run, scratch=str(scratch)).collect()
    assert seen
    assert list(scratch.iterdir()) == []


def test_what_is_wrong_in_a_task_is_told_as_it_is(world, spread):
    whole = pl.when(pl.col("factor") == 299).then(2**53 + 1).otherwise(1)
    odd = rows(range(300)).with_columns(factor=whole.cast(pl.Int64))
    with pytest.raises(WrongType, match="factor"):
        spread(odd).collect()


def test_a_set_that_was_spread_is_rebuilt_in_one_process(world, spread):
    asked = rows([n * 187 % 300 for n in range(300)])
    manifest = spread(asked).save("spread")
    assert manifest.question.engine == "daft"
    assert world.rebuild("spread").manifest.result == manifest.result
    assert world.ask(asked, ASKED).manifest.result == manifest.result


LONG = 140_000
"""More rows than two blocks of digests have."""


@pytest.fixture(params=["in order", "in none"])
def long(request):
    minutes = pl.int_range(LONG, eager=True)
    minutes = minutes if request.param == "in order" else minutes * 187_987 % LONG
    return pl.DataFrame(
        {
            "label": range(LONG),
            "driver": ("d" + (minutes % 7).cast(pl.String)),
            "event_timestamp": pl.select(NOON + pl.duration(seconds=minutes)).to_series(),
            "factor": minutes.cast(pl.Float64),
        }
    )


@pytest.fixture
def short_stretches(monkeypatch):
    """A stretch is a block of digests."""
    monkeypatch.setattr(training_set, "PIECE_BYTES", 0)


@pytest.fixture
def asked_twice(world, spread, long, short_stretches):
    """The question spread and in one process, and what was run."""
    kinds = []

    def run(work, given):
        kinds.append(["writing" in task for task in given])
        return backwards_and_twice(work, given)

    return spread(long, run, memory_limit=10_000_000), world.ask(long, ASKED), kinds


def test_workers_write_the_files_each_a_stretch_of_the_spine(asked_twice, tmp_path):
    spread_set, alone, kinds = asked_twice
    spread_set.write_parquet(f"{tmp_path}/rows/")
    assert len(kinds[0]) > 2
    assert kinds[1:] == [[True] * 3]
    assert [path.name for path in sorted((tmp_path / "rows").iterdir())] == [
        f"part-{n * 65_536:012d}.parquet" for n in range(3)
    ]
    assert pl.read_parquet(tmp_path / "rows").equals(alone.collect())
    spread_set.write_delta(tmp_path / "table")
    table = pl.scan_parquet(sorted((tmp_path / "table").glob("*.parquet")), glob=False).collect()
    assert table["label"].to_list() == list(range(LONG))
    assert pl.read_delta(str(tmp_path / "table")).sort("label").equals(alone.collect())
    assert len(list((tmp_path / "table" / "_delta_log").glob("*.json"))) == 1


def test_workers_write_a_saved_set_that_one_process_would_save(world, asked_twice):
    spread_set, alone, kinds = asked_twice
    manifest = spread_set.save("spread")
    assert kinds[1:] == [[True] * 3]
    assert manifest.result == alone.save("alone").result
    assert world.sets.load("spread").collect().equals(alone.collect())
    assert world.rebuild("spread", memory_limit=2_000_000).manifest.result == manifest.result


def test_how_far_it_is_is_told_for_parts_and_for_stretches(spread, short_stretches, tmp_path):
    told = []
    many = pl.concat([rows(range(300))] * 500)
    spread(many, memory_limit=5_000_000, progress=told.append).write_parquet(f"{tmp_path}/rows/")
    for stage in ("joining", "writing"):
        done = [one.done for one in told if one.stage == stage]
        assert done == sorted(done)
        assert len(set(done)) >= 3
        assert done[-1] == many.height
    assert {(one.stage, one.rows) for one in told} == {("joining", many.height), ("writing", many.height)}


@pytest.mark.parametrize("form", ["folder", "table", "set"])
def test_what_a_worker_could_not_write_is_not_there(spread, form, tmp_path, short_stretches):
    """Neither what others wrote, nor what was begun."""

    def run(work, given):
        for number, task in enumerate(given):
            if "writing" in task and number == 1:
                raise StoreUnavailable("no worker is left")
            yield work(task)

    found = spread(pl.concat([rows(range(300))] * 500), run, memory_limit=5_000_000)
    writes = {
        "folder": lambda: found.write_parquet(f"{tmp_path}/x/"),
        "table": lambda: found.write_delta(tmp_path / "x"),
        "set": lambda: found.save("x"),
    }
    with pytest.raises(StoreUnavailable, match="no worker is left"):
        writes[form]()
    assert not (tmp_path / "x").exists()
    assert list(tmp_path.rglob("training/sets/x/*/*")) == []


def test_what_workers_cannot_be_told_is_refused(spread, tmp_path):
    with pytest.raises(RequestError, match="Workers cannot be told how to write"):
        spread(rows(range(300))).write_parquet(f"{tmp_path}/x/", metadata=lambda _: {})
    assert not (tmp_path / "x").exists()


def test_a_folder_that_a_worker_does_not_see_is_named(spread, tmp_path):
    def elsewhere(work, given):
        (folder,) = (tmp_path / "scratch").iterdir()
        (folder / "job.json").unlink()
        yield from map(work, given)

    (tmp_path / "scratch").mkdir()
    with pytest.raises(
        StoreError, match=r"job\.json is not there\. The folder scratch has to be the same for all hosts"
    ):
        spread(rows(range(300)), elsewhere, scratch=str(tmp_path / "scratch")).collect()


def test_a_scratch_folder_that_is_not_there_is_named(spread, tmp_path):
    with pytest.raises(StoreUnavailable, match=r"cannot be written to: .*nowhere.*Make it, or name another: scratch"):
        spread(rows(range(300)), scratch=str(tmp_path / "nowhere")).collect()


def test_a_task_without_an_answer_is_an_error(spread):
    with pytest.raises(StoreError, match=r"Of \d+ tasks 1 have no answer"):
        spread(rows(range(300)), lambda work, given: map(work, given[1:])).collect()


def test_a_task_opens_no_file_of_a_time_that_its_part_does_not_reach(tmp_path, monkeypatch):
    """While it runs, all other files of the history are away."""
    monkeypatch.setattr(budget, "LEAST", 0)
    fresh = view("fresh", {"driver": String}, [Field("trips", Int64)], ttl=10 * MINUTE)
    here = World(tmp_path, fresh)
    for hour in range(10):
        minutes = range(60 * hour, 60 * hour + 60)
        published = [{"driver": f"d{n % 7}", "at": NOON + n * MINUTE, "trips": n} for n in minutes]
        here.publish(fresh, published, partition=f"h{hour}")
    shuffled = [n * 187 % 600 for n in range(600)]
    asked = spine([NOON + n * MINUTE for n in shuffled], driver=[f"d{n % 7}" for n in shuffled])
    absent: list[int] = []

    def run(work, given):
        for text in given:
            task = json.loads(text)["work"]
            files = [f"{task['scratch']}/{name}" for name in task["files"]]
            part = pl.scan_parquet(files, glob=False).slice(task["offset"], task["length"]).collect()
            first, last = part["event_timestamp"].min() - 10 * MINUTE, part["event_timestamp"].max()
            reached = {(moment - NOON) // HOUR for moment in (first, last)}
            away = [n for n in range(10) if not min(reached) <= n <= max(reached)]
            folders = [tmp_path / "offline" / "fresh" / "v1" / f"__partition=h{n}" for n in away]
            for folder in folders:
                folder.rename(folder.with_name(f"away-{folder.name}"))
            yield work(text)
            for folder in folders:
                folder.with_name(f"away-{folder.name}").rename(folder)
            absent.append(len(away))

    monkeypatch.setattr("feature_assets.historical.run_by", lambda *_: run)
    found = here.ask(asked, ["fresh:trips"], engine="daft", memory_limit=40_000)
    assert found.collect()["trips"].to_list() == shuffled
    assert len(absent) > 4
    assert min(absent) >= 5


def test_without_daft_it_is_said_how_to_get_it(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "daft", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'feature-assets\[distributed\]'"):
        world.ask(rows(range(3)), ASKED, engine="daft")


def test_an_engine_that_nobody_knows_is_refused(world):
    with pytest.raises(RequestError, match=r"no join engine 'dask'\. Known: polars, daft, daft-ray"):
        world.ask(rows(range(3)), ASKED, engine="dask")
    assert run_by("polars", None) is None


def test_daft_runs_the_tasks(world):
    pytest.importorskip("daft")
    asked = rows([n * 187 % 300 for n in range(300)])
    found = world.ask(asked, ASKED, engine="daft", memory_limit=30_000)
    assert found.collect().equals(world.ask(asked, ASKED).collect())


def test_nothing_is_reported_about_who_uses_it(world):
    """In a process of its own: what is set stays set."""
    pytest.importorskip("daft")
    probe = (
        "import os; from feature_assets.joins import run_by; run_by('daft', None); import daft.scarf_telemetry as told; "
        "print(told.opted_out(), os.environ['RAY_USAGE_STATS_ENABLED'])"
    )
    plain = {name: value for name, value in os.environ.items() if name not in ("DO_NOT_TRACK", "SCARF_NO_ANALYTICS")}
    assert subprocess.check_output([sys.executable, "-c", probe], text=True, env=plain) == "True 0\n"


def broken(_: str) -> str:
    raise ValueError("no task")


def test_work_that_does_not_come_to_its_end_is_an_error():
    pytest.importorskip("daft")
    run = run_by("daft", None)
    with pytest.raises(StoreUnavailable, match=r"did not come to its end: (?s:.*)no task"):
        list(run(broken, ["x"]))
