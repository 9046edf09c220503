"""Rows written as files by several at once, and put together: Parquet folders, Delta tables, digests."""

import json
from datetime import UTC, date, datetime
from decimal import Decimal

import deltalake
import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from feature_assets.errors import RequestError, StoreFull, StoreUnavailable
from feature_assets.offline import foreign
from feature_assets.spec import Field
from feature_assets.training import TrainingSets, differences, digests, training_set
from feature_assets.training.digests import Digester, Digests
from feature_assets.training.files import ParquetFiles, TableFiles, stretches, whole_folder
from feature_assets.types import Int64, String, Vector
from tests.historical.world import HOUR, NOON, World, spine, view

STATS = view("stats", {"driver": String}, [Field("trips", Int64), Field("way", Vector[2])])
ASKED = spine([NOON + n * HOUR for n in range(10)], driver=list("abcabcabca"), label=range(10))


@pytest.fixture
def world(tmp_path):
    here = World(tmp_path, STATS)
    here.publish(
        STATS, [{"driver": name, "at": NOON, "trips": n, "way": [float(n), -0.0]} for n, name in enumerate("ab")]
    )
    return here


@pytest.fixture
def asked(world):
    return world.ask(ASKED, ["stats:*"])


# Stretches


@pytest.mark.parametrize("sizes", [[], [0], [7], [3, 0, 4], [1] * 7, [2, 5]], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8])
def test_stretches_are_the_rows_in_order(sizes, rows):
    numbers = iter(range(100))
    pieces = (pl.DataFrame({"n": [next(numbers) for _ in range(size)]}, schema={"n": pl.Int64}) for size in sizes)
    found = [(first, pl.concat(stretch)["n"].to_list()) for first, stretch in stretches(pieces, rows)]
    assert [n for _, stretch in found for n in stretch] == list(range(sum(sizes)))
    assert [first for first, _ in found] == list(range(0, sum(sizes) or len(sizes), rows))
    assert all(len(stretch) == rows for _, stretch in found[:-1])


# Digests


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 8, 9])
def test_a_frame_has_one_digest_whoever_digests_which_blocks(monkeypatch, rows):
    monkeypatch.setattr(digests, "BLOCK_ROWS", 4)
    frame = pl.DataFrame({"a": range(rows), "b": [["x", None]] * rows}, schema={"a": pl.Int64, "b": pl.List(pl.String)})

    def digested(some, step):
        digester = Digester(frame.schema, 4)
        for piece in some.iter_slices(step):
            digester.update(piece)
        return digester

    whole = digested(frame, 100).result()
    for step in (1, 3, 4):
        assert digested(frame, step).result() == whole
    for length in (4, 8):
        parts = [digested(some, 3) for some in frame.iter_slices(length)] or [digested(frame, 1)]
        assert Digests.of_stretches((part.rows, part.blocks()) for part in parts) == whole
    if rows:
        other = digested(frame.with_columns(a=pl.col("a") + (pl.col("a") == rows - 1)), 100).result()
        assert (other.columns["a"] != whole.columns["a"], other.columns["b"]) == (True, whole.columns["b"])


def test_sets_that_were_digested_as_a_whole_are_rebuilt_and_compared(world, asked, monkeypatch):
    """As releases did that had no blocks: their manifests say nothing of any."""
    asked.save("new")
    path = world.folder / "training" / "sets" / "old" / "manifest.json"
    manifest = world.sets.manifest("new")
    digester = Digester(asked.schema, 0)
    digester.update(asked.collect())
    whole = digester.result()
    stored = json.loads((path.parent.parent / "new" / "manifest.json").read_text())
    stored |= {
        "name": "old",
        "result": {"rows": whole.rows, "columns": whole.columns},
        "spine": {"rows": whole.rows, "columns": {name: whole.columns[name] for name in manifest.spine.columns}},
    }
    path.parent.mkdir()
    path.write_text(json.dumps(stored))
    assert world.rebuild("old").manifest.result == world.sets.manifest("old").result
    assert world.rebuild("old").manifest.result.block_rows == 0
    assert differences(world.sets, "old", "new").equal
    assert differences(world.sets, "new", "old").equal


# Parquet folders


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_a_folder_gets_files_in_the_order_of_the_rows(asked, tmp_path, there, monkeypatch):
    monkeypatch.setattr(training_set, "BLOCK_ROWS", 4)
    monkeypatch.setattr(training_set, "usual_rows", lambda _: 1)
    folder = tmp_path / "rows"
    if there:
        folder.mkdir()
    asked.write_parquet(folder if there else f"{folder}/", compression="snappy")
    assert [path.name for path in sorted(folder.iterdir())] == [f"part-{n:012d}.parquet" for n in (0, 4, 8)]
    assert pl.read_parquet(folder).equals(asked.collect())
    with pytest.raises(
        RequestError, match=r"There is something at .*rows.* already\. Name a folder that is new or empty"
    ):
        asked.write_parquet(folder)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_file_is_no_folder(asked, tmp_path):
    (tmp_path / "rows").write_bytes(b"before")
    with pytest.raises(RequestError, match="There is something at"):
        asked.write_parquet(f"{tmp_path}/rows/")
    assert (tmp_path / "rows").read_bytes() == b"before"


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    def stopped():
        with whole_folder(str(tmp_path / "rows"), {}) as place:
            ParquetFiles(place=place, options={}).write(0, iter([ASKED]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []


def test_drafts_of_who_was_killed_are_not_in_it(tmp_path):
    with whole_folder(str(tmp_path / "rows"), {}) as place:
        for _ in range(2):
            assert ParquetFiles(place=place, options={}).write(0, iter([ASKED])) == 10
        (tmp_path / place / ".part-000000000010.parquet.0").write_bytes(b"PAR1")
    assert [path.name for path in (tmp_path / "rows").iterdir()] == ["part-000000000000.parquet"]
    assert pl.read_parquet(tmp_path / "rows").equals(ASKED)


@pytest.mark.parametrize("form", ["folder", "table", "set"])
def test_a_disk_without_room_is_told_and_nothing_is_left_on_it(tmp_path, small_disk, form):
    here = World(tmp_path, STATS)
    here.sets = TrainingSets(small_disk / "sets")
    here.publish(STATS, [{"driver": "a", "at": NOON, "trips": 1, "way": [0.0, 0.0]}])
    rows = spine([NOON] * 300_000, driver=["a"] * 300_000, label=pl.Series(range(300_000)).hash() // 2)
    found = here.ask(rows, ["stats:trips"])
    writes = {
        "folder": lambda: found.write_parquet(f"{small_disk}/x/"),
        "table": lambda: found.write_delta(small_disk / "x"),
        "set": lambda: found.save("x"),
    }
    with pytest.raises(StoreFull, match="No room is left in"):
        writes[form]()
    assert [path for path in small_disk.rglob("*") if path.suffix == ".parquet" or path.name == "x"] in (
        [],
        [small_disk / "sets/sets/x"],
    )


# Delta tables

ODD = pl.DataFrame(
    {
        "u8": pl.Series([255, None], dtype=pl.UInt8),
        "u64": pl.Series([2**63 - 1, None], dtype=pl.UInt64),
        "text": ["ü😀\0", None],
        "long": ["x" * 100, "a"],
        "bytes": [b"\0", None],
        "flag": [True, None],
        "day": [date(1, 1, 1), date(9999, 12, 31)],
        "ms": pl.Series([-1, 1]).cast(pl.Datetime("ms")),
        "ns": pl.Series([1_999, None]).cast(pl.Datetime("ns", "UTC")),
        "zone": pl.Series([datetime(2013, 7, 1, tzinfo=UTC), None]).cast(pl.Datetime("us", "America/New_York")),
        "kind": pl.Series(["p", None], dtype=pl.Enum(["p", "q"])),
        "sort": pl.Series(["p", None], dtype=pl.Categorical),
        "price": pl.Series([Decimal("1.20"), None], dtype=pl.Decimal(10, 2)),
        "vector": pl.Series([[1.0, -0.0], None], dtype=pl.Array(pl.Float32, 2)),
        "nested": pl.Series([{"a": [{"b": 1}]}, None], dtype=pl.Struct({"a": pl.List(pl.Struct({"b": pl.UInt16}))})),
    }
)


def written(frame, place, *, parts=1, mode="error"):
    table = foreign.ForeignTable(str(place), frame.schema, mode=mode, storage_options={})
    files = []
    with table.made("token"):
        for number, part in enumerate(frame.iter_slices(frame.height // parts)):
            files.append(TableFiles(uri=str(place), options={}, token=f"{number}token").write(number, iter([part])))
    table.commit(files)
    return files


def test_a_delta_table_has_every_value_in_the_nearest_type_that_delta_has(tmp_path):
    written(ODD, tmp_path / "t", parts=2)
    back = pl.read_delta(str(tmp_path / "t"))
    assert back.schema == foreign.stored(ODD.schema)
    assert back.equals(foreign.as_stored(ODD))
    assert back["u8"].to_list() == [255, None]
    assert back["vector"].to_list() == [[1.0, -0.0], None]
    assert back["kind"].to_list() == ["p", None]
    assert back["ns"].dt.timestamp("us").to_list() == [1, None]
    assert back["zone"].dt.timestamp("us").to_list() == ODD["zone"].dt.timestamp("us").to_list()
    # What delta-rs reads itself.
    assert (
        pl.DataFrame(DeltaTable(str(tmp_path / "t")).to_pyarrow_table())
        .select("u8", "text")
        .equals(back.select("u8", "text"))
    )


@pytest.mark.parametrize("column, value", [("u64", 2**63 - 1), ("text", "ü😀\0"), ("day", date(1, 1, 1))])
def test_files_are_skipped_by_their_bounds_and_no_row_is_lost(tmp_path, column, value):
    written(ODD, tmp_path / "t", parts=2)
    found = pl.scan_delta(str(tmp_path / "t")).filter(
        pl.col(column) == pl.lit(value, dtype=foreign.stored(ODD.schema)[column])
    )
    assert found.collect().height == 1
    stored = pl.DataFrame(DeltaTable(str(tmp_path / "t")).get_add_actions(flatten=True))
    assert stored["num_records"].to_list() == [1, 1]
    assert sorted(stored["null_count.u8"]) == [0, 1]
    # A text that is too long for the log has no bounds there.
    assert stored["max.long"].null_count() == 1


@pytest.mark.parametrize(
    "values, told",
    [
        (pl.Series("x", [1], dtype=pl.Duration("us")), "'x' is Duration.*for which Delta has no type"),
        (pl.Series("x", [None]), "'x' is Null, for which Delta has no type"),
        (pl.Series("x", [[1]], dtype=pl.List(pl.Int128)), "'x' is Int128, for which Delta has no type"),
    ],
    ids=["duration", "null", "nested"],
)
def test_a_type_that_delta_lacks_is_refused_by_name(tmp_path, values, told):
    with pytest.raises(RequestError, match=told):
        foreign.ForeignTable(str(tmp_path / "t"), values.to_frame().schema, mode="error", storage_options={})
    assert not (tmp_path / "t").exists()


def test_a_number_that_delta_cannot_hold_is_refused_by_name(tmp_path):
    with pytest.raises(RequestError, match="'x' is UInt64, of which Delta has Int64"):
        written(pl.DataFrame({"x": pl.Series([2**64 - 1], dtype=pl.UInt64)}), tmp_path / "t")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_a_table_of_other_columns_is_refused_before_anything_is_joined(asked, tmp_path, mode):
    write_deltalake(tmp_path / "t", pl.DataFrame({"driver": [1]}))
    with pytest.raises(RequestError, match=r"driver is long there and string here; event_timestamp is missing there"):
        asked.write_delta(tmp_path / "t", mode=mode)
    write_deltalake(tmp_path / "p", pl.DataFrame({"driver": ["a"], "x": [1]}), partition_by=["driver"])
    with pytest.raises(RequestError, match="it is partitioned by driver"):
        asked.write_delta(tmp_path / "p", mode=mode)
    assert len(list((tmp_path / "t").glob("*.parquet"))) == 1


def test_a_commit_whose_answer_is_lost_is_known(asked, tmp_path, monkeypatch):
    made = foreign.create_table_with_add_actions

    def lost(*arguments, **options):
        made(*arguments, **options)
        raise OSError("connection reset")

    monkeypatch.setattr(foreign, "create_table_with_add_actions", lost)
    asked.write_delta(tmp_path / "t")
    assert pl.read_delta(str(tmp_path / "t")).height == 10


def test_what_is_not_committed_goes(asked, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError("no such host")

    monkeypatch.setattr(foreign, "create_table_with_add_actions", fails)
    with pytest.raises(StoreUnavailable, match="cannot be written: no such host"):
        asked.write_delta(tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_of_two_that_make_a_table_at_once_one_does(asked, tmp_path, monkeypatch):
    made = foreign.create_table_with_add_actions

    def late(*arguments, **options):
        write_deltalake(tmp_path / "t", pl.DataFrame({"x": [1]}))
        made(*arguments, **options)

    monkeypatch.setattr(foreign, "create_table_with_add_actions", late)
    with pytest.raises((RequestError, StoreUnavailable)):
        asked.write_delta(tmp_path / "t")
    assert pl.read_delta(str(tmp_path / "t")).to_dict(as_series=False) == {"x": [1]}
    assert len(list((tmp_path / "t").glob("*.parquet"))) == 1
    assert deltalake.DeltaTable(str(tmp_path / "t")).version() == 0
