"""Every value of every type comes back from Delta with each of its bits."""

import tempfile
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets.offline import OfflineStore
from feature_assets.spec import PARTITION, Entity, Field, ViewSpec
from feature_assets.types import List, Map, String, Struct, Timestamp, Vector
from tests.values import ALL_TYPES, KEY_TYPES, bits, values

NESTED_VECTORS = (List[Vector[2]], Struct({"v": Vector[2]}), Map[String, Vector[2]])
FEATURES = {f"f{number}": of for number, of in enumerate((*ALL_TYPES, *NESTED_VECTORS))}
KEYS = {f"k{number}": of for number, of in enumerate(KEY_TYPES)}

EVERYTHING = ViewSpec(
    name="everything",
    entities=(Entity("all", join_keys=KEYS),),
    features=tuple(Field(name, of) for name, of in FEATURES.items()),
    event_timestamp="at",
    created_timestamp="made",
)

rows = st.lists(
    st.fixed_dictionaries(
        {
            **{name: values(of) for name, of in KEYS.items()},
            "at": values(Timestamp),
            "made": st.none() | values(Timestamp),
            **{name: st.none() | values(of) for name, of in FEATURES.items()},
        }
    ),
    min_size=1,
    max_size=4,
)


def _conformed(given_rows: list[dict[str, Any]]) -> pl.DataFrame:
    columns = [of.to_frame(name, [row[name] for row in given_rows]) for name, of in EVERYTHING.types.items()]
    return pl.DataFrame([*columns, pl.Series(PARTITION, ["p"] * len(given_rows), pl.String)])


def _canonical(frame: pl.DataFrame) -> list[Any]:
    types = EVERYTHING.types
    columns = [types[name].from_frame(frame[name]) for name in types]
    return sorted(repr([bits(value) for value in row]) for row in zip(*columns, strict=True))


@given(rows)
@settings(max_examples=25, deadline=None)
def test_every_value_of_every_type_comes_back(given_rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = OfflineStore(folder, durability="process")
        conformed = _conformed(given_rows)
        expected = _canonical(conformed)
        store.replace(EVERYTHING, conformed, ["p"], metadata={})
        found = store.scan(EVERYTHING)
        assert dict(found.collect_schema()) == dict(conformed.schema) | {"__publication": pl.Int64()}
        assert _canonical(found.collect()) == expected
        # Keys of every type are found by their values.
        newest = store.latest(EVERYTHING, keys=conformed.select(list(KEYS)))
        assert newest.collect().height == conformed.select(list(KEYS)).n_unique()
        # A rewrite reads what is stored and stores what was read.
        store.erase(EVERYTHING, conformed.head(1).select(list(KEYS)), metadata={})
        left = conformed.join(conformed.head(1).select(list(KEYS)), on=list(KEYS), how="anti")
        assert _canonical(store.scan(EVERYTHING).collect()) == _canonical(left)
        # Each value can be asked for: no bound that is kept of a file leaves it out.
        for name in (*KEYS, "at"):
            for value in left[name]:
                assert (
                    not store.scan(EVERYTHING)
                    .filter(pl.col(name) == pl.lit(value, left.schema[name]))
                    .collect()
                    .is_empty()
                )


@given(rows)
@settings(max_examples=5, deadline=None)
def test_other_readers_of_delta_see_the_same_values(given_rows: list[dict[str, Any]]) -> None:
    """delta-rs' own reader, built on another engine, stands for them all."""
    with tempfile.TemporaryDirectory() as folder:
        store = OfflineStore(folder, durability="process")
        store.replace(EVERYTHING, _conformed(given_rows), ["p"], metadata={})
        theirs = pl.DataFrame(DeltaTable(store.uri(EVERYTHING)).scan().read_all())
        assert _canonical(theirs.cast({name: of.polars for name, of in EVERYTHING.types.items()})) == _canonical(
            store.scan(EVERYTHING).collect()
        )


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1, 1, 1, 0, 0, 0, 1, UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC),
        datetime(2024, 2, 29, 12, 0, 0, 123_456, UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC),
    ],
)
def test_a_time_between_two_milliseconds_is_found(store: OfflineStore, moment: datetime) -> None:
    """Delta keeps the bounds of a file in milliseconds."""
    view = ViewSpec(
        name="v", entities=(Entity("e", join_keys={"k": String}),), features=(Field("f", String),), event_timestamp="at"
    )
    frame = pl.DataFrame({"k": ["k"], "at": [moment], "f": ["x"], PARTITION: ["p"]}).cast(
        {"at": pl.Datetime("us", "UTC")}
    )
    store.replace(view, frame, ["p"], metadata={})
    assert store.scan(view, since=moment, until=moment).collect().height == 1
    assert store.scan(view, since=moment).filter(pl.col("at") == moment).collect().height == 1
