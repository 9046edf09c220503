"""Lost answers, full disks, missing fsyncs, and damage that a person has to be told of."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from feature_assets.errors import StoreFull, StoreUnsafe
from feature_assets.offline import OfflineStore, table
from feature_assets.offline.commits import application
from tests.offline.tables import WEATHER, Row, data_files, frame, held, log_entries, replace


def _checkpoint_next(store: OfflineStore) -> Path:
    """Have delta-rs write a checkpoint with the next commit; the place where it will."""
    made = DeltaTable(store.uri(WEATHER))
    made.alter.set_table_properties({"delta.checkpointInterval": "1"})
    return Path(store.uri(WEATHER)) / "_delta_log" / f"{made.version() + 1:020d}.checkpoint.parquet"


def test_a_commit_that_landed_and_was_told_to_have_failed_is_a_success(store: OfflineStore) -> None:
    """delta-rs commits, then cannot write its checkpoint, and raises."""
    replace(store, {"p": [("k", 0, None, 1)]})
    blocked = _checkpoint_next(store)
    (blocked / "in the way").mkdir(parents=True)
    version = store.version(WEATHER)
    commit = replace(store, {"p": [("k", 0, None, 2)]}, run_id="once")
    shutil.rmtree(blocked)
    assert commit.version == version + 1
    assert [one.metadata.get("run_id") for one in store.commits(WEATHER)].count("once") == 1
    assert DeltaTable(store.uri(WEATHER)).transaction_version(application("p")) == commit.publication
    assert held(store) == {"p": [("k", 0, None, 2)]}


class LosingS3:
    """A running S3 that loses answers when told to."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self.put("offline-bucket")
        options = {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        self.store = OfflineStore("s3://offline-bucket/offline", storage_options=options | keys)

    def put(self, path: str) -> None:
        request = urllib.request.Request(f"{self._endpoint}/{path}", method="PUT")  # noqa: S310 (loopback)
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310


@pytest.fixture(scope="module")
def s3() -> Iterator[LosingS3]:
    command = [sys.executable, "-m", "tests.offline.losing_s3"]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        yield LosingS3(f"http://127.0.0.1:{int(server.stdout.readline())}")
        server.kill()


@pytest.mark.parametrize("fault", ["lose/500", "lose/503", "lose/drop", "refuse/409", "refuse/500"])
def test_in_a_bucket_each_write_is_one_commit_whatever_the_answer_to_it(s3: LosingS3, fault: str) -> None:
    replace(s3.store, {"ü/%": [("k", 0, None, 1)], "other": []})
    version = s3.store.version(WEATHER)
    s3.put(f"_{fault}/1")
    commit = replace(s3.store, {"ü/%": [("k", 0, None, 2)]}, run_id=fault)
    assert commit.version == s3.store.version(WEATHER) == version + 1
    assert [one.metadata.get("run_id") for one in s3.store.commits(WEATHER)].count(fault) == 1
    assert held(s3.store) == {"ü/%": [("k", 0, None, 2)]}
    assert s3.store.check(WEATHER) == []


def _noise(count: int) -> pl.DataFrame:
    rows = pl.select(pl.int_range(count).alias("n"))
    return frame({"p": [("k", 0, None, 1)]}).join(rows, how="cross").with_columns(
        pl.col("n").hash(1).reinterpret(signed=True).alias("temp"),
        pl.col("n").hash(2).cast(pl.String).alias("origin"),
    ).drop("n")  # fmt: skip


def test_a_full_disk_is_named_and_what_was_published_stays(small_disk: Path) -> None:
    store = OfflineStore(str(small_disk / "offline"))
    before: dict[str, list[Row]] = {"p": [("k", 0, None, 1)]}
    replace(store, before)
    free = shutil.disk_usage(small_disk).free
    with pytest.raises(
        StoreFull, match=r"No room is left for the Delta table of view 'weather'.*feature-assets vacuum"
    ):
        store.replace(WEATHER, _noise(200_000), ["p"], metadata={})
    assert held(store) == before
    assert shutil.disk_usage(small_disk).free == free, "what was half written is gone"
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 1024)
    with pytest.raises(StoreFull):
        replace(store, {"p": [("k", 0, None, 2)]})
    assert held(store) == before
    assert store.check(WEATHER) == []
    filler.unlink()
    replace(store, {"p": [("k", 0, None, 2)]})
    assert held(store) == {"p": [("k", 0, None, 2)]}


_ONE_WRITE = """
import sys
from feature_assets.offline import OfflineStore
from tests.offline.tables import replace
store = OfflineStore(sys.argv[1], durability=sys.argv[2])
replace(store, {"p": [("k", 0, None, 1)], "empty": []})
print("ACKNOWLEDGED", flush=True)
"""


def _traced(root: Path, durability: str) -> str:
    trace = root.with_suffix(".trace")
    command = ["strace", "-f", "-y", "-qq", "-e", "trace=fsync,fdatasync,linkat,link,rename,renameat,renameat2,write"]
    script = [sys.executable, "-c", _ONE_WRITE, str(root), durability]
    subprocess.run(
        [*command, "-o", str(trace), *script],
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    return trace.read_text(errors="replace")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace tells which files are forced to disk")
def test_a_write_is_acknowledged_once_every_file_is_on_the_disk_and_data_before_the_log(tmp_path: Path) -> None:
    root = tmp_path / "offline"
    trace = _traced(root, "power-loss")
    acknowledged = trace.index("ACKNOWLEDGED")
    synced = [
        (match.start(), match[1])
        for match in re.finditer(r"(?:fsync|fdatasync)\(\d+<([^>]*)>\)", trace)
        if match.start() < acknowledged
    ]
    table = root / "weather" / "v1"
    entry = table / "_delta_log" / f"{1:020d}.json"
    needed = [*table.glob("*/*.parquet"), *table.glob("__partition=*"), *table.glob("_delta_log/*.json")]
    needed += [table / "_delta_log", table, table.parent, root, root.parent]
    assert len(list(table.glob("*/*.parquet"))) == 2
    assert {str(path) for path in needed} <= {path for _, path in synced}
    named = trace.index(entry.name)
    for path in [*table.glob("*/*.parquet"), *table.glob("__partition=*")]:
        assert min(position for position, name in synced if name == str(path)) < named, (
            f"{path} before the log names it"
        )
    assert not re.search(r"(fsync|fdatasync)\(\d+<[^>]*offline", _traced(tmp_path / "quick-offline", "process"))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _overwrite(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


DAMAGE: dict[str, tuple[Callable[[OfflineStore], Path], Callable[[Path], None], str]] = {
    "last entry empty": (lambda store: log_entries(store)[-1], _empty, r"3\.json is empty.*never acknowledged"),
    "last entry cut": (lambda store: log_entries(store)[-1], _cut, r"3\.json is cut off.*never acknowledged"),
    "last entry zeroed": (lambda store: log_entries(store)[-1], _overwrite, r"3\.json is cut off"),
    "middle entry missing": (lambda store: log_entries(store)[2], Path.unlink, r"2\.json is missing"),
    "middle entry empty": (lambda store: log_entries(store)[2], _empty, r"2\.json is empty"),
    "middle entry cut": (lambda store: log_entries(store)[2], _cut, r"2\.json is cut off"),
    "first entry missing": (lambda store: log_entries(store)[0], Path.unlink, r"0\.json is missing"),
    "data file missing": (lambda store: data_files(store)[0], Path.unlink, r"\.parquet is missing"),
    "data file cut": (lambda store: data_files(store)[0], _cut, r"\.parquet has \d+ bytes, not \d+"),
    "data file empty": (lambda store: data_files(store)[0], _empty, r"\.parquet has 0 bytes, not \d+"),
    "data file zeroed": (lambda store: data_files(store)[0], _overwrite, r"\.parquet cannot be read"),
    "log gone": (
        lambda store: Path(store.uri(WEATHER)) / "_delta_log",
        shutil.rmtree,
        "log .* is gone",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_described(store: OfflineStore, kind: str) -> None:
    for day in range(3):
        replace(store, {f"day{day}": [("k", day, None, day)]})
    assert store.check(WEATHER) == []
    choose, spoil, message = DAMAGE[kind]
    spoil(choose(store))
    problems = store.check(WEATHER)
    assert problems
    assert re.search(message, problems[0]), problems


def test_a_log_that_lost_its_end_is_found_by_who_knows_how_far_it_went(store: OfflineStore) -> None:
    for day in range(3):
        replace(store, {"p": [("k", day, None, day)]})
    log_entries(store)[-1].unlink()
    assert store.check(WEATHER) == [], "it looks like an older table"
    assert re.search("is at version 2, and version 3 has been there", store.check(WEATHER, reached=3)[0])


@pytest.mark.parametrize("kind", ["last entry cut", "middle entry missing", "first entry missing"])
def test_a_damaged_log_is_an_error_of_ours(store: OfflineStore, kind: str) -> None:
    for day in range(3):
        replace(store, {"p": [("k", day, None, day)]})
    choose, spoil, _ = DAMAGE[kind]
    spoil(choose(store))
    with pytest.raises(
        StoreUnsafe, match=r"Cannot read the Delta table of view 'weather'.*feature-assets doctor"
    ) as told:
        store.scan(WEATHER)
    assert "<unknown>" not in str(told.value)


def test_a_table_without_its_log_is_not_made_anew(store: OfflineStore) -> None:
    replace(store, {"p": [("k", 0, None, 1)]})
    shutil.rmtree(Path(store.uri(WEATHER)) / "_delta_log")
    for act in (lambda: store.state(WEATHER), lambda: replace(store, {"p": []})):
        with pytest.raises(StoreUnsafe, match=r"The log of .* is gone, its data files are not"):
            act()


@pytest.mark.parametrize("spoil", [_cut, _empty, _overwrite, Path.unlink], ids=["cut", "empty", "zeroed", "missing"])
def test_a_torn_checkpoint_is_set_aside(store: OfflineStore, spoil: Callable[[Path], None]) -> None:
    """A power loss can leave one, and delta-rs reads nothing then; the log has all of it."""
    replace(store, {"p": [("k", 0, None, 1)]})
    checkpoint = _checkpoint_next(store)
    replace(store, {"q": [("k", 0, None, 2)]})
    spoil(checkpoint)
    assert held(store) == {"p": [("k", 0, None, 1)], "q": [("k", 0, None, 2)]}
    replace(store, {"q": []})
    assert store.check(WEATHER) == []


@pytest.mark.parametrize("missed", ["00000000000000000041.json", "00000000000000000039.checkpoint.parquet"])
def test_what_a_look_at_the_log_missed_is_found_by_the_next(
    missed: str, store: OfflineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever lists a folder that others write may see an entry and not the one before it, or a hint to what went since."""
    for turn in range(44):
        replace(store, {"p": [("a", turn, None, turn)]})
    entry = Path(store.uri(WEATHER)) / "_delta_log" / missed
    hidden, looks = entry.with_suffix(".hidden"), []

    def looked(*arguments: Any, **more: Any) -> DeltaTable:
        looks.append(missed)
        if len(looks) > 2:
            return DeltaTable(*arguments, **more)
        entry.rename(hidden)
        try:
            return DeltaTable(*arguments, **more)
        finally:
            hidden.rename(entry)

    monkeypatch.setattr(table, "DeltaTable", looked)
    assert store.version(WEATHER) == 44
    assert len(looks) == 3
