"""A disk that is full: a named error, nothing half published, readers that go on, and all well once there is room again."""

import contextlib
import resource
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from feature_assets import ChecksFailed, Entity, FeatureStore, Field, Settings
from feature_assets.checks import InRange, Unique
from feature_assets.conform import PartitionSlice
from feature_assets.errors import StoreFull
from feature_assets.publication import Publication, publish
from feature_assets.registry import Registry, RegistryStore
from feature_assets.settlement import pending, verify
from feature_assets.spec import ViewSpec
from feature_assets.types import Int64

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
VIEW = ViewSpec(
    name="trips",
    entities=(Entity("driver", join_keys={"driver": Int64}),),
    features=(Field("mark", Int64), Field("noise", Int64)),
    event_timestamp="at",
    checks=(InRange("mark", maximum=99), Unique(("driver", "at", "mark", "noise"))),
)
KEYS = {"driver": [0, 1]}


def rows(count: int, mark: int) -> pl.DataFrame:
    number = pl.int_range(count, eager=False)
    return pl.select(
        number.alias("driver"),
        pl.lit(NOON).alias("at"),
        pl.lit(mark, pl.Int64).alias("mark"),
        (number * 2_654_435_761 % 10**12).alias("noise"),
    )


def published(store: FeatureStore, frame: pl.DataFrame | pl.LazyFrame) -> Publication:
    return publish(VIEW, frame, [PartitionSlice()], offline=store.offline, online=store.online, now=NOON)


def opened(folder: Path) -> FeatureStore:
    settings = Settings(root=folder, offline="offline", online="sqlite:online.db", registry="registry", present=NOON)
    RegistryStore(folder / "registry").publish(Registry.of([VIEW]), location="tests", by="tests")
    return FeatureStore(settings)


@pytest.fixture
def store(small_disk: Path) -> Iterator[FeatureStore]:
    with opened(small_disk) as store:
        published(store, rows(2, mark=1))
        yield store


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 1024)
    yield
    filler.unlink()


def test_nothing_is_half_published_and_readers_go_on(store: FeatureStore, small_disk: Path) -> None:
    """Sizes of which some do not fit into Delta, and some into Delta and not into the online store."""
    other = small_disk / "other"
    other.write_bytes(b"\0" * 900_000)
    for count in (400_000, 100_000, 40_000, 20_000, 10_000):
        with contextlib.suppress(StoreFull):
            published(store, rows(count, mark=2))
        assert store.get_online_features(["trips:mark"], KEYS)["mark"] in ([1, 1], [2, 2])
        if not pending(VIEW, store.offline, store.online):
            assert verify(VIEW, store.offline, store.online).total == 0
    other.unlink()
    published(store, rows(3, mark=3))
    assert verify(VIEW, store.offline, store.online).total == 0
    assert pending(VIEW, store.offline, store.online) == ()
    assert store.get_online_features(["trips:mark"], KEYS)["mark"] == [3, 3]


def test_a_disk_that_former_versions_filled_is_freed_by_vacuum(store: FeatureStore, small_disk: Path) -> None:
    for mark in range(12):
        published(store, rows(2_000, mark=mark))
    with filled(small_disk):
        with pytest.raises(StoreFull, match="remove what no version needs: feature-assets vacuum"):
            published(store, rows(2, mark=9))
        assert len(store.offline.vacuum(VIEW, older_than=timedelta(0), dry_run=False)) == 12
        published(store, rows(2_000, mark=9))
    assert store.get_online_features(["trips:mark"], KEYS)["mark"] == [9, 9]


def test_everything_that_writes_names_what_is_full_and_works_again_afterwards(
    store: FeatureStore, small_disk: Path
) -> None:
    spine = rows(2, mark=0).select("driver", event_timestamp="at")
    asked = store.get_historical_features(spine, ["trips:mark"])
    registry = RegistryStore(small_disk / "registry")
    more = Registry.of([VIEW, ViewSpec(name="more", features=(Field("x", Int64),), event_timestamp="at")])
    with filled(small_disk):
        with pytest.raises(
            StoreFull, match=r"No room is left for the Delta table of view 'trips'.*feature-assets vacuum"
        ):
            published(store, rows(2, mark=2))
        with pytest.raises(StoreFull, match=r"No room is left in .*registry"):
            registry.publish(more, location="tests", by="tests")
        with pytest.raises(StoreFull, match=r"No room is left in .*training"):
            asked.save("kept")
        assert store.get_online_features(["trips:mark"], KEYS)["mark"] == [1, 1]
        assert asked.collect()["mark"].to_list() == [1, 1]
        assert store.training_sets() == []
        assert registry.read().registry.views.keys() == {"trips"}
    published(store, rows(2, mark=2))
    registry.publish(more, location="tests", by="tests")
    asked.save("kept")
    assert store.rebuild("kept").collect().equals(asked.collect())
    assert store.get_online_features(["trips:mark"], KEYS)["mark"] == [2, 2]


def test_rows_that_fail_a_check_and_cannot_be_kept_still_fail_it(store: FeatureStore, small_disk: Path) -> None:
    with (
        filled(small_disk),
        pytest.raises(ChecksFailed, match=r"2 of 2 rows fail, .* not be kept at .*\(no room is left"),
    ):
        published(store, rows(2, mark=100))
    assert list((small_disk / "offline" / "__rejected").rglob("*.parquet")) == []
    with pytest.raises(ChecksFailed, match=r"2 of 2 rows fail, kept at .*-0-in_range_mark\.parquet"):
        published(store, rows(2, mark=100))
    assert len(list((small_disk / "offline" / "__rejected").rglob("*.parquet"))) == 1


def test_a_temporary_folder_that_is_full_is_named(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as store:
        published(store, rows(2, mark=1))
        monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
        with pytest.raises(
            StoreFull, match=r"temporary folder .* the rows to be checked; nothing was published.*TMPDIR="
        ):
            published(store, rows(1_000_000, mark=2).lazy())
        spine = rows(1_000_000, mark=2).rename({"at": "event_timestamp", "mark": "label"}).lazy()
        with pytest.raises(StoreFull, match=r"temporary folder .* for the spine\. .*TMPDIR="):
            next(store.get_historical_features(spine, ["trips:mark"]).batches(1000))
        assert verify(VIEW, store.offline, store.online).total == 0


def test_a_limit_on_the_size_of_files_is_a_full_disk_too(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        published(store, rows(2, mark=1))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(StoreFull, match="No room is left for the Delta table"):
                published(store, rows(100_000, mark=2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert verify(VIEW, store.offline, store.online).total == 0
        assert published(store, rows(3, mark=2)).written == 3
