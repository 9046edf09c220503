"""What holds for objects wherever they are kept, and what a folder adds."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from feature_assets.errors import ConfigurationError, StoreUnavailable
from feature_assets.objects import Objects, PutConflict, open_objects
from feature_assets.objects.folder import Folder


@pytest.fixture(params=["folder", "memory", pytest.param("s3", marks=pytest.mark.xdist_group("s3"))])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "folder":
        return open_objects(tmp_path / "objects")
    if request.param == "memory":
        return open_objects("memory://")
    s3 = request.getfixturevalue("s3")
    return open_objects(f"{s3.bucket()}/some/folder", s3.options)


def test_what_was_put_is_got(objects: Objects) -> None:
    etag = objects.put("a/b.json", b"\x00one")
    assert objects.get("a/b.json") == (b"\x00one", etag)
    assert objects.get("a/c.json") is None
    assert objects.put("a/b.json", b"two") != etag
    stored = objects.get("a/b.json")
    assert stored is not None
    assert stored.data == b"two"


def test_put_if_absent_writes_once(objects: Objects) -> None:
    objects.put("a", b"1", if_absent=True)
    with pytest.raises(PutConflict):
        objects.put("a", b"2", if_absent=True)
    stored = objects.get("a")
    assert stored is not None
    assert stored.data == b"1"


def test_put_if_match_needs_the_tag_of_the_present_content(objects: Objects) -> None:
    first = objects.put("a", b"1")
    second = objects.put("a", b"2", if_match=first)
    with pytest.raises(PutConflict):
        objects.put("a", b"3", if_match=first)
    with pytest.raises(PutConflict):
        objects.put("gone", b"3", if_match=first)
    assert objects.get("a") == (b"2", second)


def test_changed_compares_tags(objects: Objects) -> None:
    first = objects.put("a", b"1")
    assert not objects.changed("a", first)
    objects.put("a", b"2")
    assert objects.changed("a", first)
    objects.delete("a")
    assert objects.changed("a", first)


def test_list_is_sorted_and_below_the_folder(objects: Objects) -> None:
    for path in ("f/2", "f/10", "f/sub/1", "fg/1", "other"):
        objects.put(path, b"")
    assert list(objects.list("f")) == ["f/10", "f/2", "f/sub/1"]
    assert set(objects.list("f")) <= set(objects.list(""))
    assert not [path for path in objects.list("") if path.startswith(".")]
    assert list(objects.list("nowhere")) == []


def test_delete_may_be_repeated(objects: Objects) -> None:
    objects.put("f/a", b"")
    objects.delete("f/a")
    objects.delete("f/a")
    assert objects.get("f/a") is None


def test_probe_accepts_and_cleans_up(objects: Objects) -> None:
    objects.probe()
    assert list(objects.list("probe")) == []


def test_of_twelve_writers_with_one_condition_one_wins(objects: Objects) -> None:
    for condition in ({"if_absent": True}, {"if_match": objects.put("b", b"start")}):
        path = "a" if "if_absent" in condition else "b"
        barrier = threading.Barrier(12)

        def write(
            number: int, path: str = path, condition: dict = condition, barrier: threading.Barrier = barrier
        ) -> bool:
            barrier.wait()
            try:
                objects.put(path, str(number).encode(), **condition)
            except PutConflict:
                return False
            return True

        with ThreadPoolExecutor(12) as pool:
            won = list(pool.map(write, range(12)))
        assert won.count(True) == 1
        stored = objects.get(path)
        assert stored is not None
        assert stored.data == str(won.index(True)).encode()


class TestFolder:
    def test_readers_never_see_half_a_file(self, tmp_path: Path) -> None:
        objects = open_objects(tmp_path)
        contents = {b"a" * 1_000_000, b"b" * 10}
        done = threading.Event()

        def write() -> None:
            for _ in range(15):
                for content in contents:
                    objects.put("x", content)
            done.set()

        objects.put("x", b"b" * 10)
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            while not done.is_set():
                stored = objects.get("x")
                assert stored is not None
                assert stored.data in contents
            writing.result()

    def test_file_and_folders_are_synced_before_put_returns(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[str] = []
        fsync = os.fsync

        def spy(descriptor: int) -> None:
            synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", spy)
        open_objects(tmp_path / "new").put("sub/x", b"1")
        assert any("/.drafts/" in path for path in synced)
        assert {str(tmp_path), str(tmp_path / "new"), str(tmp_path / "new" / "sub")} <= set(synced)

    def test_a_lock_file_left_behind_locks_nothing(self, tmp_path: Path) -> None:
        (tmp_path / ".lock").write_text("4242")
        open_objects(tmp_path).put("x", b"1", if_absent=True)
        assert list(open_objects(tmp_path).list("x")) == []

    def test_drafts_of_killed_writers_are_swept(self, tmp_path: Path) -> None:
        objects = open_objects(tmp_path)
        objects.put("x", b"1")
        old, young = tmp_path / ".drafts" / "old", tmp_path / ".drafts" / "young"
        old.write_bytes(b"")
        young.write_bytes(b"")
        two_hours_ago = time.time() - 7200
        os.utime(old, (two_hours_ago, two_hours_ago))
        objects.put("x", b"2")
        assert not old.exists()
        assert young.exists()

    @pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", ".lock", ""])
    def test_no_path_leads_outside(self, tmp_path: Path, path: str) -> None:
        with pytest.raises(ValueError, match="is not the path of an object"):
            open_objects(tmp_path / "objects").put(path, b"")

    def test_a_file_in_place_of_the_folder_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreUnavailable, match="Check that it is a folder"):
            open_objects(tmp_path / "file").put("x", b"")

    def test_no_room_is_told_and_what_was_there_stays(self, tmp_path: Path) -> None:
        script = f"""
import resource, signal
from feature_assets.errors import StoreFull
from feature_assets.objects import open_objects
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
objects = open_objects({str(tmp_path)!r})
objects.put("x", b"before")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    objects.put("x", b"after" * 1000)
except StoreFull as error:
    print(error)
"""
        answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        assert "No room is left" in answer
        assert (tmp_path / "x").read_bytes() == b"before"
        assert list((tmp_path / ".drafts").iterdir()) == []

    def test_file_url_and_home_are_folders(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        open_objects(f"file://{tmp_path}/with%20space").put("x", b"1")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert open_objects("~/with space").get("x") is not None


@pytest.mark.parametrize(
    "url, options, mend",
    [
        ("ftp://host/x", {}, "Give a folder, s3://bucket/folder"),
        ("s3://bucket", {"AWS_REGOIN": "x"}, "aws_regoin.*Remove it or correct it"),
    ],
)
def test_what_cannot_be_opened_says_what_can(url: str, options: dict[str, str], mend: str) -> None:
    with pytest.raises(ConfigurationError, match=mend):
        open_objects(url, options)


def test_opening_a_folder_loads_no_bucket_client() -> None:
    probe = "import sys; from feature_assets.objects import open_objects; open_objects('x'); print('obstore' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", probe], text=True) == "False\n"


def test_a_file_that_was_replaced_is_seen_however_soon(tmp_path: Path) -> None:
    """A look at its times is enough only where no second write can have the same ones."""
    folder = Folder(tmp_path)
    etag = folder.put("latest.json", b"00")
    for number in range(200):
        assert not folder.changed("latest.json", etag)
        new = folder.put("latest.json", b"%02d" % (number % 100))
        assert folder.changed("latest.json", etag) is (new != etag)
        etag = new
    time.sleep(2.1)  # From now on its times are believed.
    for _ in range(3):
        assert not folder.changed("latest.json", etag)
        assert folder.changed("latest.json", "another")
    folder.put("latest.json", b"zz")
    assert folder.changed("latest.json", etag)
    (tmp_path / "latest.json").unlink()
    assert folder.changed("latest.json", etag)
