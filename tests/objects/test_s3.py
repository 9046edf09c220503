"""A bucket over HTTP, as it should be and as some are; and the registry on it."""

from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest

from feature_assets.errors import NotPublished, RequestError, StoreUnavailable, StoreUnsafe
from feature_assets.historical import budget
from feature_assets.objects import open_objects
from feature_assets.offline import OfflineStore
from feature_assets.registry import Registry, RegistryStore
from feature_assets.spec import Field, ViewSpec
from feature_assets.training import TrainingSets
from feature_assets.training.files import ParquetFiles, whole_folder
from feature_assets.types import Float64, Int64, String
from tests.historical.engines import SPREADING, spreading
from tests.historical.world import HOUR, NOON, World, spine, view
from tests.offline.tables import replace

pytestmark = pytest.mark.xdist_group("s3")


def declared(name: str, description: str = "") -> Registry:
    features = (Field("value", Float64),)
    return Registry.of([ViewSpec(name=name, features=features, event_timestamp="at", description=description)])


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_a_store_that_ignores_a_condition_is_refused_by_name_of_the_header(s3, header: str) -> None:
    s3.spoil(f"ignore-{header.lower()}")
    bucket = s3.bucket()
    objects = open_objects(f"{bucket}/registry", s3.options)
    with pytest.raises(StoreUnsafe, match=f"^{bucket}/registry ignores the header {header}: .*Use a store with"):
        objects.probe()
    assert list(objects.list("probe")) == []
    with pytest.raises(StoreUnsafe):
        RegistryStore(objects).publish(declared("v"), location="a", by="me")
    with pytest.raises(NotPublished):
        RegistryStore(objects).read()
    offline = OfflineStore(f"{bucket}/offline", storage_options=s3.options)
    with pytest.raises(StoreUnsafe, match=f"^{bucket}/offline ignores the header {header}: "):
        replace(offline, {"p": [("k", 0, None, 1)]})
    assert list(open_objects(f"{bucket}/offline", s3.options).list("")) == []


def test_a_store_without_conditional_writes_is_refused(s3) -> None:
    objects = open_objects(s3.bucket(), {**s3.options, "aws_conditional_put": "disabled"})
    with pytest.raises(StoreUnsafe, match="do not switch them off"):
        objects.probe()


def test_options_that_only_delta_knows_are_passed_over(s3) -> None:
    options = {**s3.options, "AWS_S3_ALLOW_UNSAFE_RENAME": "false", "timeout": "5s"}
    open_objects(s3.bucket(), options).probe()


def test_a_409_is_sent_again(s3) -> None:
    objects = open_objects(s3.bucket(), s3.options)
    s3.spoil("conflict-once")
    etag = objects.put("a", b"1", if_absent=True)
    s3.spoil("conflict-once")
    objects.put("a", b"2", if_match=etag)
    stored = objects.get("a")
    assert stored is not None
    assert stored.data == b"2"


def test_a_missing_bucket_is_named(s3) -> None:
    objects = open_objects("s3://nowhere/registry", s3.options)
    for attempt in (lambda: objects.get("x"), lambda: objects.put("x", b"", if_absent=True), lambda: objects.list("x")):
        with pytest.raises(StoreUnavailable, match="there is no bucket at s3://nowhere/registry"):
            attempt()


def test_an_unreachable_store_is_named() -> None:
    options = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "hush"}
    with pytest.raises(StoreUnavailable, match="s3://bucket") as caught:
        open_objects("s3://bucket", {**options, "AWS_ALLOW_HTTP": "true"}).get("x")
    assert "hush" not in str(caught.value)
    with pytest.raises(StoreUnavailable, match="AWS_ALLOW_HTTP=true"):
        open_objects("s3://bucket", options).get("x")


class TestRegistryOnS3:
    def test_publish_poll_and_roll_back(self, s3) -> None:
        store = RegistryStore(f"{s3.bucket()}/registry", s3.options)
        first = store.publish(declared("v"), location="a", by="me")
        assert store.poll(first.etag) is None
        second = store.publish(declared("v", "changed"), location="a", by="me")
        polled = store.poll(first.etag)
        assert polled is not None
        assert polled.digest == second.digest
        assert store.rollback(by="me").digest == first.digest
        assert [entry.sequence for entry in store.history()] == [3, 2, 1]

    def test_a_lost_answer_is_no_second_publication(self, s3) -> None:
        place = f"{s3.bucket()}/registry"
        store = RegistryStore(place, s3.options)
        for number in (1, 2):
            s3.spoil("lose-answer-once")
            assert store.publish(declared("v", f"{number}"), location="a", by="me").sequence == number
        assert len(store.history()) == 2
        assert store.read().registry.view("v").description == "2"

    def test_publishers_at_once_lose_nothing(self, s3) -> None:
        place = f"{s3.bucket()}/registry"

        def publish(location: str) -> None:
            store = RegistryStore(place, s3.options)
            for number in range(4):
                store.publish(declared(location, f"{number}"), location=location, by=location)

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(publish, "abc"))
        published = RegistryStore(place, s3.options).read()
        assert published.sequence == 12
        assert {view.description for view in published.registry.views.values()} == {"3"}


@pytest.mark.parametrize("engine", ["polars", SPREADING])
def test_a_training_set_is_joined_and_kept_on_it_part_by_part(s3, tmp_path, monkeypatch, engine: str) -> None:
    """Spine, histories, parts of both, saved rows and the files that are written: all lie there."""
    pytest.importorskip("daft")
    monkeypatch.setattr(budget, "LEAST", 0)
    place, options = s3.bucket(), {"storage_options": s3.options}
    stats = view("stats", {"driver": String}, [Field("trips", Int64)])
    here = World(tmp_path, stats)
    here.offline = OfflineStore(f"{place}/offline", **options)
    here.sets = TrainingSets(f"{place}/training", s3.options)
    minutes = [n * 37 % 60 for n in range(60)]
    here.publish(stats, [{"driver": f"d{n % 7}", "at": NOON + n * HOUR, "trips": n} for n in range(60)])
    asked = spine([NOON + n * HOUR for n in minutes], driver=[f"d{n % 7}" for n in minutes])
    asked.write_parquet(f"{place}/spine.parquet", **options)
    asking = {"memory_limit": 10_000, "scratch": f"{place}/scratch", **spreading(engine)}
    found = here.ask(f"{place}/spine.parquet", ["stats:trips"], **asking)
    manifest = found.save("rows")
    assert len(manifest.files) > 4
    assert here.sets.load("rows").collect()["trips"].to_list() == minutes
    assert here.rebuild("rows").manifest.result == manifest.result
    found.write_delta(f"{place}/table", **options)
    assert pl.read_delta(f"{place}/table", **options)["trips"].to_list() == minutes
    found.write_parquet(f"{place}/rows/", **options)
    assert pl.read_parquet(f"{place}/rows/", **options)["trips"].to_list() == minutes
    with pytest.raises(RequestError, match="There is something at s3://"):
        found.write_parquet(f"{place}/rows/", **options)
    assert list(open_objects(f"{place}/scratch", s3.options).list("")) == []


def test_what_was_written_before_it_failed_goes_and_nothing_else(s3) -> None:
    place = f"{s3.bucket()}/rows"
    objects = open_objects(place, s3.options)

    def stopped() -> None:
        with whole_folder(f"{place}/", s3.options) as here:
            written = ParquetFiles(place=here, options={"storage_options": s3.options})
            assert written.write(0, iter([pl.DataFrame({"n": [1, 2]})])) == 2
            objects.put("theirs.txt", b"somebody else's")
            assert len(objects.list("")) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(objects.list("")) == ["theirs.txt"]
