"""Parts of a spine answered by whoever runs them, in whatever order and how often."""

import os
import subprocess
import sys
from datetime import timedelta

import polars as pl
import pytest

from feature_assets.errors import ConfigurationError, RequestError, StoreUnavailable, WrongType
from feature_assets.historical import budget, tasks
from feature_assets.joins import run_by
from feature_assets.spec import Field, OnDemandViewSpec, RequestSource, ViewProjection
from feature_assets.transformations import declared_expressions
from feature_assets.types import Float64, Int64, String
from tests.historical.world import NOON, World, spine, view

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


def test_a_task_is_data():
    assert tasks.Task.__struct_fields__ == ("job", "options", "files", "offset", "length", "number", "answer")
