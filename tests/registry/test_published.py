"""Publishing, history, rollback, polling, and what a damaged registry says."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_assets.checks import AllowedValues
from feature_assets.errors import (
    DeclarationError,
    NotPublished,
    RegistryConflict,
    RegistryUnreadable,
    RequestError,
    StoreUnavailable,
)
from feature_assets.objects import Objects, PutConflict, Stored, open_objects
from feature_assets.registry import Entry, Published, Registry, RegistryStore
from feature_assets.spec import Field, ViewProjection, canonical_json
from feature_assets.types import Float64, Int64
from tests.registry.declared import on_demand, service, source, view, whole


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def store(folder: Path) -> RegistryStore:
    return RegistryStore(folder)


def publish(store: RegistryStore, *objects: object, location: str = "one", **options: object) -> Published:
    return store.publish(Registry.of(objects), location=location, by="me", **options)  # type: ignore[arg-type]


def described(store: RegistryStore, *texts: str) -> list[Published]:
    """One publication for each text."""
    return [publish(store, view(description=text)) for text in texts]


class TestPublish:
    def test_what_is_published_is_read(self, store: RegistryStore) -> None:
        published = store.publish(whole(), location="flights", by="ada", message="first")
        read = store.read()
        assert read == published
        assert read.changed
        assert read.registry.views == whole().views
        assert (read.sequence, read.by, read.entry.location, read.entry.message) == (1, "ada", "flights", "first")
        assert read.published_at.tzinfo is not None
        assert read.registry.digest == read.digest
        assert read.registry.owner("weather") == "flights"
        assert store.snapshot(read.digest) == read.registry

    def test_before_anything_is_published(self, store: RegistryStore, folder: Path) -> None:
        with pytest.raises(NotPublished, match=f"No registry has been published at {folder}.*feature-assets apply"):
            store.read()
        assert store.history() == []
        assert not folder.exists()

    def test_the_same_again_is_nothing(self, store: RegistryStore, folder: Path) -> None:
        first = store.publish(whole(), location="one", by="ada")
        again = store.publish(whole(), location="one", by="bob")
        assert (again.changed, again.entry, again.etag) == (False, first.entry, first.etag)
        assert len(list((folder / "snapshots").iterdir())) == 1
        assert store.history() == [first.entry]

    def test_equal_content_has_equal_bytes_whoever_writes_it(self, store: RegistryStore) -> None:
        """Values that read back a little otherwise would have two publishers replace each other's form for ever."""
        publish(store, view(checks=(AllowedValues("temp", (1, 2)),)), source())
        publish(store, view("other"), location="two")
        assert not publish(store, view(checks=(AllowedValues("temp", (1, 2)),)), source()).changed

    def test_locations_merge_and_own_their_objects(self, store: RegistryStore) -> None:
        publish(store, view("a"))
        publish(store, view("b"), location="two")
        assert set(store.read().registry.views) == {"a", "b"}
        with pytest.raises(RegistryConflict, match="'a' belongs to code location 'one'"):
            publish(store, view("a"), view("b"), location="two")
        assert set(publish(store).registry.views) == {"b"}

    def test_what_another_location_needs_is_not_removed(self, store: RegistryStore) -> None:
        publish(store, view())
        publish(store, service(), location="two")
        with pytest.raises(DeclarationError, match=r"service 'delay' \(code location 'two'\).*'weather'"):
            publish(store)
        assert "weather" in store.read().registry.views

    def test_a_type_change_needs_a_version(self, store: RegistryStore) -> None:
        publish(store, view())
        changed = (Field("temp", Int64), Field("wind", Float64))
        with pytest.raises(DeclarationError, match=r"'temp' changed from Float64 to Int64.*version=2"):
            publish(store, view(features=changed))
        after = publish(store, view(features=changed, version=2), service("old", ViewProjection("weather", version=1)))
        assert after.registry.view("weather", 1) == view()
        with pytest.raises(DeclarationError, match="has no version 7"):
            publish(store, view(features=changed, version=3), service("s", ViewProjection("weather", version=7)))
        after = publish(store, view(features=changed, version=3), prune=True)
        assert after.registry.versions("weather") == (3,)

    def test_what_does_not_go_together_writes_nothing(self, store: RegistryStore) -> None:
        publish(store, view())
        with pytest.raises(DeclarationError):
            publish(store, on_demand("chill", sources=(ViewProjection("nowhere"),)))
        assert store.read().sequence == 1

    def test_what_is_no_data_is_refused(self, store: RegistryStore) -> None:
        with pytest.raises(DeclarationError, match="cannot be kept as data"):
            publish(store, view(checks=(AllowedValues("temp", (object(),)),)))

    def test_plan_writes_nothing_and_lists_what_would_be_refused(self, store: RegistryStore, folder: Path) -> None:
        assert [change.action for change in store.plan(whole(), location="one")] == ["added"] * 4
        assert not folder.exists()
        publish(store, view("other"), location="two")
        publish(store, view())
        changes = store.plan(Registry.of([view(features=(Field("temp", Int64),))]), location="one")
        assert [(change.name, change.breaking) for change in changes] == [
            ("weather:temp", True),
            ("weather:wind", True),
        ]
        assert store.merged(Registry.of([view()]), location="one").digest == store.read().digest


class TestPoll:
    def test_poll_gives_the_next_registry_once(self, store: RegistryStore) -> None:
        first = described(store, "a")[0]
        assert store.poll(first.etag) is None
        second = described(store, "b")[0]
        polled = store.poll(first.etag)
        assert polled == second
        assert store.poll(second.etag) is None

    def test_a_registry_that_is_gone_is_told(self, store: RegistryStore, folder: Path) -> None:
        first = described(store, "a")[0]
        (folder / "latest.json").unlink()
        with pytest.raises(NotPublished):
            store.poll(first.etag)


class TestHistory:
    def test_history_is_whole_and_newest_first(self, store: RegistryStore) -> None:
        published = described(store, "a", "b", "c", "d")
        history = store.history()
        assert history == [one.entry for one in reversed(published)]
        assert [one.previous for one in history] == [one.digest for one in history[1:]] + [None]
        assert store.history(limit=2) == history[:2]

    def test_rollback_is_a_new_entry_with_the_old_snapshot(self, store: RegistryStore) -> None:
        a, b, c = described(store, "a", "b", "c")
        back = store.rollback(by="ada", message="c was wrong")
        assert (back.digest, back.sequence, back.entry.action) == (b.digest, 4, "rollback")
        assert (back.entry.previous, back.entry.withdrawn) == (c.digest, c.digest)
        assert store.read().registry.view("weather").description == "b"
        further = store.rollback(3, by="ada")
        assert (further.digest, further.entry.withdrawn) == (a.digest, c.digest)
        assert [one.sequence for one in store.history()] == [5, 4, 3, 2, 1]
        assert described(store, "c")[0].entry.withdrawn is None

    def test_a_second_rollback_undoes_the_first(self, store: RegistryStore) -> None:
        _, b = described(store, "a", "b")
        store.rollback(by="ada")
        assert store.rollback(by="ada").digest == b.digest

    def test_rollback_by_digest_or_how_it_begins(self, store: RegistryStore) -> None:
        a, b, _ = described(store, "a", "b", "c")
        assert store.rollback(a.digest, by="ada").digest == a.digest
        assert store.rollback(b.digest[:10], by="ada").digest == b.digest
        assert not store.rollback(b.digest, by="ada").changed

    @pytest.mark.parametrize("to", [0, -1, 3, "zz", "", "0" * 63])
    def test_rollback_to_nowhere_names_the_command(self, store: RegistryStore, to: int | str) -> None:
        described(store, "a", "b", "c")
        with pytest.raises(RequestError, match="feature-assets registry history"):
            store.rollback(to, by="ada")
        with pytest.raises(RegistryUnreadable, match="is not there"):
            store.rollback("0" * 64, by="ada")


def garbage(path: Path) -> None:
    path.write_bytes(b"\x00\xffgarbage")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [garbage, truncated, gone])
class TestDamage:
    def test_of_the_pointer_is_told_and_mended_by_rollback(
        self, store: RegistryStore, folder: Path, damage: Callable[[Path], None]
    ) -> None:
        a, b, c = described(store, "a", "b", "c")
        damage(folder / "latest.json")
        if damage is not gone:
            with pytest.raises(RegistryUnreadable, match=r"latest.json is damaged. .*feature-assets registry rollback"):
                store.read()
        with pytest.raises(RegistryUnreadable, match="feature-assets registry rollback"):
            described(store, "d")
        assert [one.digest for one in store.history()] == [b.digest, a.digest]
        mended = store.rollback(by="ada")
        assert mended.digest == b.digest
        assert mended.sequence == 4
        assert store.read() == mended
        assert store.rollback(c.digest, by="ada").sequence == 5

    def test_of_the_snapshot_is_told_and_mended_by_publishing_it_again(
        self, store: RegistryStore, folder: Path, damage: Callable[[Path], None]
    ) -> None:
        _, b = described(store, "a", "b")
        damage(folder / "snapshots" / f"{b.digest}.json")
        with pytest.raises(RegistryUnreadable, match=rf"{b.digest}.json is .*feature-assets registry rollback"):
            store.read()
        with pytest.raises(RegistryUnreadable):
            store.poll("")
        store.rollback(by="ada")
        assert described(store, "b")[0].digest == b.digest
        assert store.read().registry == b.registry

    def test_of_the_history_is_left_out(
        self, store: RegistryStore, folder: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        described(store, "a", "b", "c")
        damage(folder / "history" / "000000000001.json")
        assert [one.sequence for one in store.history()] == [3, 2]
        assert ("is damaged" in caplog.text) == (damage is not gone)


@pytest.mark.parametrize("damage", [garbage, truncated])
class TestDamageOfWhatWasPublishedOnce:
    def test_of_the_pointer_leaves_the_snapshot_to_be_named(
        self, store: RegistryStore, folder: Path, damage: Callable[[Path], None]
    ) -> None:
        (a,) = described(store, "a")
        damage(folder / "latest.json")
        with pytest.raises(RequestError, match=rf"are whole: {a.digest[:12]}\..*registry rollback {a.digest[:12]}$"):
            store.rollback(by="ada")
        assert store.rollback(a.digest[:12], by="ada").digest == a.digest
        assert store.read().registry == a.registry

    def test_of_the_snapshot_leaves_publishing_from_nothing(
        self, store: RegistryStore, folder: Path, damage: Callable[[Path], None]
    ) -> None:
        (a,) = described(store, "a")
        damage(folder / "snapshots" / f"{a.digest}.json")
        with pytest.raises(
            RequestError, match=r"no snapshot that is whole. Remove latest.json .*feature-assets apply$"
        ):
            store.rollback(by="ada")
        (folder / "latest.json").unlink()
        assert described(store, "a")[0].digest == a.digest
        assert store.read().registry == a.registry


def test_a_prefix_means_what_was_in_force(store: RegistryStore, folder: Path) -> None:
    a, b = described(store, "a", "b")
    never = folder / "snapshots" / f"{'0' * 64}.json"
    never.write_bytes((folder / "snapshots" / f"{a.digest}.json").read_bytes())
    with pytest.raises(RequestError, match=r"No snapshots .* begin with '000'"):
        store.rollback("000", by="ada")
    assert store.rollback(a.digest[:12], by="ada").digest == a.digest != b.digest


def test_a_pointer_of_a_newer_release_is_followed(store: RegistryStore, folder: Path) -> None:
    published = described(store, "a")[0]
    pointer = json.loads((folder / "latest.json").read_bytes()) | {"signature": "…"}
    (folder / "latest.json").write_text(json.dumps(pointer))
    assert store.read().digest == published.digest


def test_a_digest_leads_nowhere_else(store: RegistryStore, folder: Path) -> None:
    described(store, "a")
    pointer = json.loads((folder / "latest.json").read_bytes()) | {"digest": "../../etc/passwd"}
    (folder / "latest.json").write_text(json.dumps(pointer))
    with pytest.raises(RegistryUnreadable, match="is not there"):
        store.read()


class LosesAnswers(Objects):
    """Objects whose puts of the pointer land, and whose answers do not; others may come in between."""

    def __init__(self, objects: Objects, error: Exception, then: Callable[[], object] = lambda: None) -> None:
        self._objects, self._error, self._then, self.place = objects, error, then, objects.place
        self.lost = 0

    def get(self, path: str) -> Stored | None:
        return self._objects.get(path)

    def changed(self, path: str, etag: str) -> bool:
        return self._objects.changed(path, etag)

    def put(self, path: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        etag = self._objects.put(path, data, if_match=if_match, if_absent=if_absent)
        if path == "latest.json" and not self.lost:
            self.lost += 1
            self._then()
            raise self._error
        return etag

    def delete(self, path: str) -> None:
        self._objects.delete(path)

    def list(self, folder: str) -> list[str]:
        return list(self._objects.list(folder))


@pytest.mark.parametrize("error", [PutConflict("refused for what it had done itself"), StoreUnavailable("timeout")])
class TestLostAnswer:
    def test_a_move_that_landed_is_recognised(self, folder: Path, error: Exception) -> None:
        objects = LosesAnswers(open_objects(folder), error)
        published = described(RegistryStore(objects), "a")[0]
        assert objects.lost
        assert RegistryStore(folder).read() == published

    def test_also_when_another_publisher_has_moved_on(self, folder: Path, error: Exception) -> None:
        store = RegistryStore(folder)
        objects = LosesAnswers(open_objects(folder), error, then=lambda: publish(store, view("b"), location="two"))
        published = publish(RegistryStore(objects), view("a"))
        assert (published.sequence, published.changed) == (1, True)
        polled = store.poll(published.etag)
        assert polled is not None
        assert polled.sequence == 2
        assert set(polled.registry.views) == {"a", "b"}


def test_a_move_that_did_not_land_is_an_error(folder: Path) -> None:
    class Away(LosesAnswers):
        def put(self, path: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
            if path == "latest.json":
                raise self._error
            return self._objects.put(path, data, if_match=if_match, if_absent=if_absent)

    with pytest.raises(StoreUnavailable, match="away"):
        described(RegistryStore(Away(open_objects(folder), StoreUnavailable("away"))), "a")


def test_who_never_wins_gives_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loses(LosesAnswers):
        def put(self, path: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
            if path == "latest.json":
                raise PutConflict("again")
            return self._objects.put(path, data, if_match=if_match, if_absent=if_absent)

    monkeypatch.setattr("feature_assets.registry.published._LONGEST_WAIT", 0.001)
    with pytest.raises(RegistryConflict, match=r"were first 60 times. Publish again"):
        described(RegistryStore(Loses(open_objects(folder), PutConflict(""))), "a")


def test_files_are_what_the_docs_say(store: RegistryStore, folder: Path) -> None:
    a, b = described(store, "a", "b")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.json"))
    assert files == [
        "history/000000000001.json",
        "latest.json",
        *sorted(f"snapshots/{one.digest}.json" for one in (a, b)),
    ]
    assert (folder / f"snapshots/{b.digest}.json").read_bytes() == canonical_json(b.registry)
    assert re.fullmatch(r"\{.*\}", (folder / "latest.json").read_text())
    assert isinstance(b.entry, Entry)
