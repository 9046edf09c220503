"""Rows for what learns: each once over workers and ranks, in an order that a seed decides, as arrays that lose nothing."""

import pickle
import sys
from itertools import accumulate, chain
from types import ModuleType, SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from feature_assets.errors import ConfigurationError, RequestError
from feature_assets.spec import Field
from feature_assets.training import training_set
from feature_assets.training.batches import Shard, dealt, mixed, rebatched, shares
from feature_assets.types import Bool, Float64, Int64, String, Vector
from tests.historical.world import HOUR, NOON, World, spine, view

STATS = view(
    "stats",
    {"driver": String},
    [
        Field("mean", Float64),
        Field("trips", Int64, default=0),
        Field("on", Bool, default=False),
        Field("way", Vector[2]),
    ],
)
COUNT = 1_000


@pytest.fixture
def world(tmp_path):
    here = World(tmp_path, STATS)
    rows = [
        {"driver": name, "at": NOON, "mean": n + 0.5, "trips": n, "on": n > 0, "way": [n, -n]}
        for n, name in enumerate("ab")
    ]
    here.publish(STATS, rows)
    return here


@pytest.fixture
def saved(world):
    asked = spine(
        [NOON + HOUR] * COUNT, driver=["a", "b"] * (COUNT // 2), label=pl.Series(range(COUNT), dtype=pl.Int64)
    )
    world.ask(asked, ["stats:mean", "stats:trips", "stats:on", "stats:way"]).save("rows")
    return world.sets.load("rows")


def frames(sizes):
    start = 0
    for size in sizes:
        yield pl.DataFrame({"n": pl.Series(range(start, start + size), dtype=pl.Int64)})
        start += size


sizes = st.lists(st.integers(0, 7), min_size=1, max_size=8)


@given(sizes, st.integers(1, 5), st.integers(1, 4))
def test_each_row_is_in_one_shard_of_a_shard(pieces, ranks, workers):
    found = []
    for rank in range(ranks):
        for worker in range(workers):
            own = Shard.checked(rank, ranks).within(worker, workers)
            found.append(pl.concat(dealt(frames(pieces), own))["n"].to_list())
    assert sorted(chain(*found)) == list(range(sum(pieces)))
    assert max(map(len, found)) - min(map(len, found)) <= 1


@given(sizes, st.integers(1, 5), st.integers(1, 4))
def test_each_row_of_a_portion_is_in_one_shard_of_a_shard(portions, ranks, workers):
    starts = list(accumulate(portions, initial=0))
    found = []
    for rank in range(ranks):
        for worker in range(workers):
            own = shares(portions, Shard.checked(rank, ranks).within(worker, workers))
            found.append(
                [
                    row
                    for each in own
                    for row in range(starts[each.portion] + each.first, starts[each.portion] + each.first + each.rows)
                ]
            )
            assert all(
                each.first + each.rows <= portions[each.portion] for each in shares(portions, Shard(rank, ranks))
            )
    assert sorted(chain(*found)) == list(range(sum(portions)))
    assert max(map(len, found)) - min(map(len, found)) <= 1


@given(st.integers(1, 9), st.integers(1, 60))
def test_a_portion_is_read_by_one_shard_or_by_those_that_divide_what_is_left(of, count):
    portions = [10] * count
    read = [{each.portion for each in shares(portions, Shard(number, of))} for number in range(of)]
    assert sum(map(len, read)) <= count + of, "each shard begins at most one portion that another one ends"
    if count >= of:
        assert all(min(each) < of for each in read), "everybody has some of the beginning"


@given(sizes, st.integers(1, 9), st.integers(0, 2**40), st.integers(1, 5))
def test_mixed_rows_are_the_same_rows_in_an_order_of_the_seed(pieces, buffer, seed, rows):
    once, again = (list(rebatched(mixed(frames(pieces), buffer, seed), rows)) for _ in range(2))
    assert [each["n"].to_list() for each in once] == [each["n"].to_list() for each in again]
    assert sorted(pl.concat(once)["n"].to_list()) == list(range(sum(pieces)))
    assert all(each.height == rows for each in once[:-1])


def test_rows_are_mixed_with_those_around_them_and_seeds_differ():
    first, second = (pl.concat(mixed(frames([100] * 5), 200, seed))["n"].to_list() for seed in (1, 2))
    assert first != second
    assert first != list(range(500))
    assert sum(abs(place - number) for place, number in enumerate(first)) / 500 > 30


@pytest.mark.parametrize("number, of", [(-1, 2), (2, 2), (0, 0)])
def test_a_shard_that_is_not_there_is_refused(number, of):
    with pytest.raises(RequestError, match=f"There is no shard {number} of {of}"):
        Shard.checked(number, of)


def test_arrays_have_the_values_of_the_rows(saved):
    frame = saved.collect()
    batches = list(saved.numpy_batches(300))
    assert [len(each["mean"]) for each in batches] == [300, 300, 300, 100]
    assert list(batches[0]) == ["label", "event_timestamp", "mean", "trips", "on", "way"]
    joined = {name: np.concatenate([each[name] for each in batches]) for name in batches[0]}
    assert joined["mean"].dtype == np.float64
    assert joined["mean"].tolist() == frame["mean"].to_list()
    assert joined["on"].tolist() == frame["on"].to_list()
    assert joined["way"].tolist() == [list(each) for each in frame["way"]]
    assert joined["event_timestamp"].tolist() == frame["event_timestamp"].to_physical().to_list()
    assert len(list(saved.numpy_batches(300, drop_last=True))) == 3
    batches[0]["mean"][0] = 7.0


def test_a_null_float_is_nan_and_any_other_null_is_refused(world):
    asked = world.ask(spine([NOON] * 2, driver=["a", "nobody"]), ["stats:mean", "stats:way"])
    (batch,) = asked.numpy_batches(5, columns=["mean"])
    assert np.isnan(batch["mean"]).tolist() == [False, True]
    with pytest.raises(RequestError, match=r"Column 'way' is Array.* null in 1 of 2 rows"):
        list(asked.numpy_batches(5, columns=["way"]))


@pytest.mark.parametrize("column, told", [("driver", "makes no array"), ("nothing", "has no column 'nothing'")])
def test_a_column_that_is_no_numbers_is_refused_at_once(saved, column, told):
    with pytest.raises(RequestError, match=told):
        saved.numpy_batches(5, columns=[column])


def test_a_batch_of_nothing_is_refused(saved):
    with pytest.raises(RequestError, match="A batch of 0 rows"):
        saved.numpy_batches(0)


@pytest.fixture
def in_files(world, monkeypatch):
    """A saved set of as many files as can be."""
    monkeypatch.setattr(training_set, "PIECE_BYTES", 0)
    rows = 150_000
    asked = spine([NOON + HOUR] * rows, driver=["a", "b"] * (rows // 2), label=pl.Series(range(rows), dtype=pl.Int64))
    world.ask(asked, ["stats:mean", "stats:way"]).save("files")
    return world.sets.load("files")


def test_a_shard_reads_its_own_files_only(in_files, monkeypatch):
    assert sum(in_files.portions) == 150_000
    assert len(in_files.portions) > 2
    assert_frame_equal(
        pl.concat(in_files.portion(number) for number in range(len(in_files.portions))), in_files.collect()
    )
    found, read = [], []
    for rank in range(2):
        again = in_files._sets.load("files")
        monkeypatch.setattr(
            again._source, "portion", lambda number, real=again._source.portion: read.append(number) or real(number)
        )
        found.append(
            np.concatenate([batch["label"] for batch in again.numpy_batches(999, columns=["label"], shard=(rank, 2))])
        )
    assert [len(each) for each in found] == [75_000, 75_000]
    assert sorted(np.concatenate(found).tolist()) == list(range(150_000))
    assert len(read) <= len(in_files.portions) + 4, "one for each file, for the schema, and for what both divide"


def test_a_portion_that_is_not_there_is_told(world, saved):
    assert world.ask(spine([NOON], driver=["a"]), ["stats:mean"]).portions == ()
    for number in (-1, 1):
        with pytest.raises(RequestError, match=f"no portion {number} of 1"):
            saved.portion(number)


class IterableDataset:
    """What PyTorch's is to whoever makes one."""


@pytest.fixture
def torch(monkeypatch):
    """As much of PyTorch as a dataset touches."""
    found = ModuleType("torch")
    data = ModuleType("torch.utils.data")
    worker = SimpleNamespace(now=None)
    data.IterableDataset, data.get_worker_info = IterableDataset, lambda: worker.now
    found.from_numpy, found.utils = np.copy, SimpleNamespace(data=data)
    for name, module in {"torch": found, "torch.utils": found.utils, "torch.utils.data": data}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return worker


def labels(dataset):
    return [int(label) for batch in dataset for label in batch["label"]]


def test_workers_and_ranks_share_the_rows_and_each_is_one_of_theirs(saved, torch):
    found = []
    for rank in range(2):
        dataset = saved.to_torch(64, shuffle=100, seed=3, shard=(rank, 2), columns=["label"])
        for worker in range(3):
            torch.now = SimpleNamespace(id=worker, num_workers=3)
            found += labels(pickle.loads(pickle.dumps(dataset)))  # noqa: S301 (its own)
    assert sorted(found) == list(range(COUNT))
    assert found != sorted(found)


def test_an_epoch_has_an_order_of_its_own(saved, torch):
    dataset = saved.to_torch(64, shuffle=500, columns=["label"])
    assert isinstance(dataset, IterableDataset)
    first = labels(dataset)
    assert labels(dataset) == first
    dataset.set_epoch(1)
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301 (its own)
    assert labels(again) == labels(dataset) != first
    assert sorted(labels(dataset)) == sorted(first)


def test_a_set_that_is_not_saved_goes_to_no_other_process(world, torch):
    asked = world.ask(spine([NOON], driver=["a"]), ["stats:mean"])
    assert [batch["mean"].tolist() for batch in asked.to_torch(5)] == [[0.5]]
    with pytest.raises(RequestError, match=r"Save it, and hand over store\.training_set"):
        pickle.dumps(asked.to_torch(5))


@pytest.mark.parametrize(
    "library, way", [("torch", lambda one: one.to_torch(5)), ("ray", lambda one: one.to_ray_dataset())]
)
def test_what_is_missing_is_asked_for(saved, monkeypatch, library, way):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigurationError, match="Install it: pip install"):
        way(saved)


def test_jax_takes_the_arrays_where_it_is_installed(saved):
    jax = pytest.importorskip("jax")
    (arrays,) = saved.numpy_batches(COUNT, columns=["label", "mean", "way"])
    taken = jax.device_put(arrays)
    assert taken["label"].tolist() == list(range(COUNT))
    assert taken["way"].shape == (COUNT, 2)
    assert float(jax.numpy.sum(taken["mean"])) == arrays["mean"].sum()


def test_real_torch_loads_the_rows_where_it_is_installed(saved):
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(saved.to_torch(64, columns=["label", "mean"]), batch_size=None)
    assert torch.cat([batch["label"] for batch in loader]).tolist() == list(range(COUNT))
