"""Scans cut as asked, the latest row of each key, and reading earlier versions."""

import os
import pickle
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets.errors import ConfigurationError, MissingJoinKey, NotReproducible, RequestError, StoreUnavailable
from feature_assets.offline import OfflineStore
from feature_assets.spec import PARTITION, PUBLICATION, Field, ViewSpec
from feature_assets.types import Int64
from tests.offline.tables import START, WEATHER, Row, at, data_files, frame, held, replace

DAYS: dict[str, list[Row]] = {
    f"day{day}": [("a", day * 1440 + minute, None, minute) for minute in (0, 719, 1439)] for day in range(5)
}


def test_both_bounds_are_included_and_naive_ones_are_utc(store: OfflineStore) -> None:
    replace(store, DAYS)
    for zone in (START.tzinfo, None):
        bounds = {"since": at(719).replace(tzinfo=zone), "until": at(1440).replace(tzinfo=zone)}
        found = store.scan(WEATHER, **bounds).sort("observed_at").collect()  # type: ignore[arg-type]
        assert found["observed_at"].to_list() == [at(719), at(1439), at(1440)]


def test_features_and_partitions_are_chosen(store: OfflineStore) -> None:
    replace(store, DAYS)
    found = store.scan(WEATHER, features=["temp"], partitions=["day1", "day3", "not there"]).collect()
    assert found.columns == ["origin", "observed_at", "reported_at", "temp", PUBLICATION, PARTITION]
    assert set(found[PARTITION]) == {"day1", "day3"}
    assert store.scan(WEATHER, features=[], partitions=[]).collect().columns == [
        *found.columns[:3],
        PUBLICATION,
        PARTITION,
    ]


@pytest.mark.parametrize(
    "cut",
    [
        lambda store: store.scan(WEATHER, partitions=["day1"]),
        lambda store: store.scan(WEATHER, since=at(1440), until=at(2 * 1440 - 1)),
        lambda store: store.scan(WEATHER).filter(pl.col("observed_at").is_between(at(1440), at(1500))),
        lambda store: store.scan(WEATHER).filter(pl.col(PARTITION) == "day1"),
    ],
    ids=["partitions", "since and until", "a filter on the time", "a filter on the partition"],
)
def test_files_that_cannot_matter_are_not_opened(store: OfflineStore, cut: object) -> None:
    replace(store, DAYS)
    for file in data_files(store):
        if "day1" not in str(file):
            file.unlink()
    assert set(cut(store).collect()[PARTITION]) == {"day1"}  # type: ignore[operator]


def test_a_scan_stays_at_its_version(store: OfflineStore) -> None:
    replace(store, {"p": [("a", 0, None, 1)]})
    before = store.scan(WEATHER)
    sent = pickle.dumps(store.scan(WEATHER))
    replace(store, {"p": [("a", 0, None, 2)]})
    assert before.collect()["temp"].to_list() == [1]
    assert pickle.loads(sent).collect()["temp"].to_list() == [1]  # noqa: S301 (our own)


latest_rows = st.dictionaries(
    st.sampled_from(["p", "q", "r"]),
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 2), st.none() | st.integers(0, 1), st.integers(0, 9)),
        max_size=4,
    ),
    min_size=1,
)


@given(st.lists(latest_rows, min_size=1, max_size=3), st.sampled_from([None, ["a"], ["b", "none"], []]))
@settings(max_examples=20, deadline=None)
def test_latest_is_the_greatest_by_event_created_and_publication(
    tmp_path_factory: pytest.TempPathFactory, published: list[dict[str, list[Row]]], keys: list[str] | None
) -> None:
    store = OfflineStore(str(tmp_path_factory.mktemp("latest")), durability="process")
    standing: dict[str, tuple[int, list[Row]]] = {}
    for number, rows in enumerate(published):
        distinct = {name: list({row[:3]: row for row in of}.values()) for name, of in rows.items()}
        replace(store, distinct)
        standing |= {name: (number, of) for name, of in distinct.items()}
    best: dict[str, tuple[object, int]] = {}
    for number, rows_of in standing.values():
        for origin, minutes, delay, temp in rows_of:
            rank = (minutes, -1 if delay is None else delay, number)
            if (keys is None or origin in keys) and (origin not in best or rank > best[origin][0]):  # type: ignore[operator]
                best[origin] = (rank, temp or 0)
    # One publication may hold a row twice, in two partitions; either is the latest then.
    frame_of_keys = None if keys is None else pl.DataFrame({"origin": keys}, schema={"origin": pl.String})
    found = store.latest(WEATHER, keys=frame_of_keys).collect(engine="streaming")
    assert sorted(found["origin"]) == sorted(best)
    for row in found.iter_rows(named=True):
        (minutes, delay, _), _ = best[row["origin"]]  # type: ignore[misc]
        assert row["observed_at"] == at(minutes)  # type: ignore[has-type]
        assert row["reported_at"] == (None if delay < 0 else at(minutes + delay))  # type: ignore[has-type]
        assert (
            row[PUBLICATION]
            == store.scan(WEATHER)
            .filter(
                pl.col("origin") == row["origin"],
                pl.col("observed_at") == row["observed_at"],
                pl.col("reported_at").eq_missing(row["reported_at"]),
            )
            .collect()[PUBLICATION]
            .max()
        )


def test_latest_of_a_view_without_entities_is_one_row(store: OfflineStore) -> None:
    view = ViewSpec(name="rate", features=(Field("value", Int64),), event_timestamp="at")
    rows = pl.DataFrame({"at": [at(0), at(5), at(3)], "value": [0, 5, 3], PARTITION: ["p", "p", "q"]})
    store.replace(view, rows.cast({"at": pl.Datetime("us", "UTC")}), ["p", "q"], metadata={})
    assert store.latest(view).collect()["value"].to_list() == [5]
    assert store.latest(view, keys=pl.DataFrame({"__key": [0]})).collect()["value"].to_list() == [5]


def test_keys_of_another_type_are_refused_and_not_merely_not_found(store: OfflineStore) -> None:
    replace(store, {"p": [("1", 0, None, 1)]})
    with pytest.raises(RequestError, match="key column 'origin' is Int64, not String; rows would be missed"):
        store.latest(WEATHER, keys=pl.DataFrame({"origin": [1]}))
    with pytest.raises(MissingJoinKey, match="looked up by 'origin'"):
        store.latest(WEATHER, keys=pl.DataFrame({"dest": ["1"]}))


def test_every_version_can_be_read_until_it_is_vacuumed(store: OfflineStore) -> None:
    for temp in range(4):
        replace(store, {"p": [("a", 0, None, temp)], "q": []} if temp == 0 else {"p": [("a", 0, None, temp)]})
    assert [held(store, version)["p"][0][3] for version in (1, 2, 3, 4)] == [0, 1, 2, 3]
    assert held(store, 0) == {}
    assert len(store.vacuum(WEATHER, older_than=timedelta(hours=1), dry_run=False)) == 0
    removed = store.vacuum(WEATHER, older_than=timedelta(0), dry_run=True)
    assert len(removed) == 3
    assert held(store, 1)["p"] == [("a", 0, None, 0)], "a dry run removes nothing"
    assert store.vacuum(WEATHER, older_than=timedelta(0), dry_run=False) == removed
    assert held(store)["p"] == [("a", 0, None, 3)]
    for version in (1, 2, 3):
        with pytest.raises(NotReproducible, match=f"Version {version} of .* not whole any more: 1 of its 2 data files"):
            store.scan(WEATHER, at=version)
    assert store.scan(WEATHER, at=1, partitions=["q"]).collect().is_empty(), "what is asked for is all there"
    assert store.check(WEATHER) == []


def test_vacuum_leaves_what_may_be_a_commit_under_way(store: OfflineStore) -> None:
    replace(store, {"p": [("a", 0, None, 1)]})
    stray = Path(store.uri(WEATHER)) / f"{PARTITION}=p" / "stray.parquet"
    frame({}).write_parquet(stray)
    assert store.vacuum(WEATHER, older_than=timedelta(0), dry_run=False) == []
    os.utime(stray, (1, 1))
    assert store.vacuum(WEATHER, older_than=timedelta(0), dry_run=False) == [f"{PARTITION}=p/stray.parquet"]
    assert not stray.exists()
    with pytest.raises(RequestError, match="older_than is -1 day"):
        store.vacuum(WEATHER, older_than=timedelta(days=-1))


def test_a_version_that_never_was_is_said_to_be_so(store: OfflineStore) -> None:
    replace(store, {"p": []})
    with pytest.raises(NotReproducible, match=r"Version 9 of .* cannot be read; the table is at version 1"):
        store.scan(WEATHER, at=9)


def test_a_root_that_is_no_store_is_explained() -> None:
    with pytest.raises(ConfigurationError, match="no object store for foo://"):
        OfflineStore("foo://bucket").state(WEATHER)
    dead = OfflineStore(
        "s3://bucket/offline",
        storage_options={
            "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "x",
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "hush",
            "max_retries": "0",
        },
    )
    with pytest.raises(StoreUnavailable, match="Cannot reach the Delta table of view 'weather'") as refused:
        dead.state(WEATHER)
    assert "\x1b" not in str(refused.value)
    assert "hush" not in str(refused.value)


def test_relative_roots_and_file_urls_are_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    replace(OfflineStore("here"), {"p": [("a", 0, None, 1)]})
    assert held(OfflineStore(f"file://{tmp_path}/here")) == {"p": [("a", 0, None, 1)]}


def test_nothing_is_printed(store: OfflineStore, capfd: pytest.CaptureFixture[str]) -> None:
    replace(store, {"p": [("a", 0, None, 1)]})
    held(store)
    assert capfd.readouterr() == ("", "")
