"""Sources outside the asset graph: what is read, cut to which window, and what is said when something is missing."""

import sqlite3
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets import sources
from feature_assets.errors import ConfigurationError, ContractBroken, DeclarationError, StoreUnavailable
from feature_assets.sources import read_source
from feature_assets.spec import AnySource, DeltaSource, FileSource, SqlSource

START = datetime(2024, 3, 10, tzinfo=UTC)
DAY = (START, START + timedelta(days=1))
MOMENTS = [
    START - timedelta(microseconds=1),
    START,
    START + timedelta(hours=12),
    DAY[1] - timedelta(microseconds=1),
    DAY[1],
]
ROWS = pl.DataFrame({"station": list("abcde"), "at": MOMENTS, "temp": [1, 2, 3, 4, 5]})


def _parquet(folder: Path, rows: pl.DataFrame) -> AnySource:
    rows.write_parquet(folder / "rows.parquet")
    return FileSource(name="weather", path=str(folder / "rows.parquet"), timestamp_field="at")


def _csv(folder: Path, rows: pl.DataFrame) -> AnySource:
    rows.write_csv(folder / "rows.csv")
    return FileSource(name="weather", path=str(folder / "rows.csv"), format="csv", timestamp_field="at")


def _jsonl(folder: Path, rows: pl.DataFrame) -> AnySource:
    """Written by Python: each time with as many digits as it has."""
    texts = [moment.isoformat() for moment in rows["at"]]
    rows.with_columns(pl.Series("at", texts)).write_ndjson(folder / "rows.jsonl")
    return FileSource(name="weather", path=str(folder / "rows.jsonl"), format="jsonl", timestamp_field="at")


def _delta(folder: Path, rows: pl.DataFrame) -> AnySource:
    write_deltalake(folder / "table", rows)
    return DeltaSource(name="weather", path=str(folder / "table"), timestamp_field="at")


def _sqlite(folder: Path, rows: pl.DataFrame) -> AnySource:
    connection = sqlite3.connect(folder / "rows.db")
    connection.execute("CREATE TABLE weather (station TEXT, at TIMESTAMP, temp INTEGER)")
    texts = rows["at"].dt.strftime("%Y-%m-%d %H:%M:%S%.6f").to_list()
    connection.executemany(
        "INSERT INTO weather VALUES (?, ?, ?)", zip(rows["station"], texts, rows["temp"], strict=True)
    )
    connection.commit()
    connection.close()
    return SqlSource(name="weather", query="SELECT * FROM weather;", connection="WAREHOUSE_URI", timestamp_field="at")


def _changed(source: AnySource, **change: Any) -> AnySource:
    return type(source)(**{name: getattr(source, name) for name in source.__struct_fields__} | change)


KINDS = [_parquet, _csv, _jsonl, _delta, _sqlite]


@pytest.fixture
def warehouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_URI", f"sqlite://{tmp_path}/rows.db")


@pytest.mark.usefixtures("warehouse")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zone", [UTC, None], ids=["zoned", "naive"])
def test_the_start_of_a_window_is_in_it_and_its_end_is_not(
    tmp_path: Path, kind: Callable[[Path, pl.DataFrame], AnySource], zone: Any
) -> None:
    rows = ROWS if zone else ROWS.with_columns(pl.col("at").dt.replace_time_zone(None))
    source = kind(tmp_path, rows)
    found = read_source(source, DAY).collect().sort("station")
    assert found.schema["at"] == pl.Datetime("us", "UTC")
    assert found["at"].to_list() == MOMENTS[1:4]
    assert found["temp"].to_list() == [2, 3, 4]
    assert read_source(source, tuple(moment.replace(tzinfo=None) for moment in DAY)).collect().height == 3  # type: ignore[arg-type]
    whole = read_source(source).collect()
    assert whole.height == 5
    assert whole.schema["at"] == pl.Datetime("us", "UTC"), "with or without a window"


@pytest.mark.usefixtures("warehouse")
@pytest.mark.parametrize("kind", KINDS)
def test_columns_get_the_names_of_the_view(tmp_path: Path, kind: Callable[[Path, pl.DataFrame], AnySource]) -> None:
    source = kind(tmp_path, ROWS)
    mapped = _changed(source, field_mapping={"at": "observed_at", "station": "origin"})
    found = read_source(mapped, DAY).collect()
    assert found.columns == ["origin", "observed_at", "temp"]
    assert found.height == 3


TIMES: dict[str, tuple[list[Any], pl.DataType]] = {
    "milliseconds": (MOMENTS, pl.Datetime("ms", "UTC")),
    "nanoseconds": (MOMENTS, pl.Datetime("ns", "UTC")),
    "another zone": (MOMENTS, pl.Datetime("us", "America/New_York")),
    "naive": ([moment.replace(tzinfo=None) for moment in MOMENTS], pl.Datetime("us")),
    "dates": (
        [date(2024, 3, 9), date(2024, 3, 10), date(2024, 3, 10), date(2024, 3, 10), date(2024, 3, 11)],
        pl.Date(),
    ),
    "text": ([f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z" for moment in MOMENTS], pl.String()),
    "text in another zone": (
        [moment.astimezone(timezone(timedelta(hours=-5))).isoformat() for moment in MOMENTS],
        pl.String(),
    ),
    "text of many shapes": (
        ["2024-03-09T23:59Z", "2024-03-10", "2024-03-10 12:00", "2024-03-10T23:59:59.5", "2024-03-11T00:00:00+00:00"],
        pl.String(),
    ),
}


@pytest.mark.parametrize("kind", TIMES)
def test_times_of_any_kind_are_read_as_utc(tmp_path: Path, kind: str) -> None:
    times, dtype = TIMES[kind]
    column = pl.Series("at", times, strict=False) if dtype == pl.String() else pl.Series("at", times).cast(dtype)
    source = _parquet(tmp_path, pl.DataFrame([ROWS["station"], column]))
    found = read_source(source, DAY).collect().sort("station")
    assert found["station"].to_list() == ["b", "c", "d"]
    assert str(found.schema["at"].time_zone) == "UTC"  # type: ignore[attr-defined]


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),
    st.integers(1, 10**11),
    st.sampled_from(["text", "time", "zoned text"]),
)
@settings(max_examples=40, deadline=None)
def test_what_a_database_is_asked_for_leaves_no_row_of_the_window_out(
    tmp_path_factory: pytest.TempPathFactory, start: datetime, length: int, stored: str
) -> None:
    """At every edge of the window: a microsecond before and after each, in the shapes in which SQLite's users keep times."""
    start = start.replace(tzinfo=UTC)
    end = start + timedelta(microseconds=length)
    moments = sorted({edge + timedelta(microseconds=off) for edge in (start, end) for off in (-1, 0, 1)})
    offset = timezone(timedelta(hours=14)) if stored == "zoned text" else UTC
    texts = [moment.astimezone(offset).isoformat(sep="T" if length % 2 else " ") for moment in moments]
    if stored == "time":
        texts = [text.removesuffix("+00:00") for text in texts]
    folder = tmp_path_factory.mktemp("db")
    connection = sqlite3.connect(folder / "rows.db")
    connection.execute(f"CREATE TABLE t (at {'TIMESTAMP' if stored == 'time' else 'TEXT'})")
    connection.executemany("INSERT INTO t VALUES (?)", [(text,) for text in texts])
    connection.commit()
    connection.close()
    source = SqlSource(name="t", query="SELECT * FROM t", connection="EDGES_URI", timestamp_field="at")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EDGES_URI", f"sqlite://{folder}/rows.db")
        found = read_source(source, (start, end)).collect()["at"].sort().to_list()
    assert found == [moment for moment in moments if start <= moment < end]


@pytest.mark.parametrize(
    ("dtype", "scheme", "condition"),
    [
        (pl.Datetime("us"), "postgresql", """ WHERE "at" >= '2024-03-10T00:00:00' AND "at" < '2024-03-11T00:00:01'"""),
        (pl.Datetime("us", "UTC"), "postgresql", """ WHERE "at" >= '2024-03-10T00:00:00+00:00' AND "at" < '2024-03-11T00:00:01+00:00'"""),
        (pl.Datetime("us"), "mysql", " WHERE `at` >= '2024-03-10T00:00:00' AND `at` < '2024-03-11T00:00:01'"),
        (pl.Date(), "mssql", """ WHERE "at" >= '2024-03-10' AND "at" <= '2024-03-11'"""),
        (pl.String(), "postgresql", """ WHERE "at" >= '2024-03-09' AND "at" < '2024-03-13'"""),
        (pl.Int64(), "postgresql", ""),
    ],
    ids=str,
)  # fmt: skip
def test_the_window_is_pushed_down_in_the_words_of_the_database(
    dtype: pl.DataType, scheme: str, condition: str
) -> None:
    assert sources._pushed_down("at", dtype, DAY, scheme) == condition


@pytest.mark.usefixtures("warehouse")
def test_a_database_returns_the_window_only(tmp_path: Path) -> None:
    far = ROWS.with_columns(pl.col("at") - timedelta(days=400))
    source = _sqlite(tmp_path, pl.concat([ROWS, far]))
    assert isinstance(source, SqlSource)
    assert sources._query(source, DAY).height == 5
    assert sources._query(source, None).height == 10


def test_globs_read_all_their_files(tmp_path: Path) -> None:
    for number in range(3):
        ROWS.write_parquet(tmp_path / f"part-{number}.parquet")
    source = FileSource(name="weather", path=f"{tmp_path}/part-*.parquet", timestamp_field="at")
    assert read_source(source, DAY).collect().height == 9


def test_only_the_row_groups_of_the_window_are_read(tmp_path: Path) -> None:
    """A file whose other row groups are spoilt is still read where it matters."""
    many = pl.DataFrame({"at": [START + timedelta(days=day) for day in range(100)], "temp": range(100)})
    path = tmp_path / "rows.parquet"
    many.write_parquet(path, row_group_size=10, compression="uncompressed")
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36
    path.write_bytes(data)
    source = FileSource(name="weather", path=str(path), timestamp_field="at")
    window = (START + timedelta(days=55), START + timedelta(days=58))
    assert read_source(source, window).collect()["temp"].to_list() == [55, 56, 57]


def test_rows_without_a_time_belong_to_no_window(tmp_path: Path) -> None:
    rows = ROWS.with_columns(pl.when(pl.col("station") != "c").then("at"))
    source = _parquet(tmp_path, rows)
    assert read_source(source, DAY).collect()["station"].to_list() == ["b", "d"]
    assert read_source(source).collect().height == 5


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("path", ["missing.{}", "missing-*.{}"])
def test_a_missing_file_is_named_with_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = FileSource(name="weather", path=path.format(suffix), format=suffix)  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable) as told:
        read_source(source)
    assert f"FileSource 'weather': there is no file at {tmp_path}/{path.format(suffix)}. Put it there" in str(
        told.value
    )


def test_a_file_of_another_format_is_said_to_be_so(tmp_path: Path) -> None:
    ROWS.write_csv(tmp_path / "rows.csv")
    with pytest.raises(StoreUnavailable, match=r"rows\.csv cannot be read as parquet: .*Check its path and format"):
        read_source(FileSource(name="weather", path=str(tmp_path / "rows.csv")))


def test_a_missing_delta_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        StoreUnavailable, match=r"DeltaSource 'weather': there is no Delta table at .*/none. Check its path"
    ):
        read_source(DeltaSource(name="weather", path=str(tmp_path / "none")))


@pytest.mark.usefixtures("warehouse")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestamp_field": "att"}, "timestamp_field names 'att', which its rows do not have. Did you mean 'at'"),
        ({"field_mapping": {"zzz": "x"}}, "field_mapping names 'zzz', .* It has: station, at, temp"),
        ({"field_mapping": {"station": "temp"}}, "renames 'station' to 'temp', which is another column already"),
        ({"timestamp_field": "temp"}, "'temp' is Int.*, which is no time. .*pl.from_epoch"),
    ],
)
def test_columns_that_are_not_there_are_named(
    tmp_path: Path, kind: Callable[[Path, pl.DataFrame], AnySource], change: dict[str, Any], message: str
) -> None:
    source = kind(tmp_path, ROWS)
    changed = _changed(source, **change)
    for window in (None, DAY):
        with pytest.raises(DeclarationError, match=f"{type(source).__name__} 'weather': .*{message}"):
            read_source(changed, window)


def test_text_that_is_no_time_is_shown(tmp_path: Path) -> None:
    source = _parquet(tmp_path, pl.DataFrame({"at": ["2024-03-10T00:00:00Z", "10.3.2024"]}))
    with pytest.raises(
        (pl.exceptions.ComputeError, ContractBroken), match=r"'10\.3\.2024' in 'at' is no time\. Write times as"
    ):
        read_source(source, DAY).collect()


def test_csv_dates_are_dates_where_the_year_comes_first_and_text_else(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("day,at,us,n,t\n2024-03-10,2024-03-10T12:00:00Z,03/10/2024,1,12:00:00\n,,,,\n")
    rows = read_source(FileSource(name="x", path=str(tmp_path / "x.csv"), format="csv")).collect()
    assert rows.schema["day"] == pl.Date()
    assert rows.schema["at"] == pl.Datetime("us", "UTC")
    assert rows["us"].to_list() == ["03/10/2024", None]
    assert (rows.schema["n"], rows.schema["t"]) == (pl.Int64(), pl.Time())
    timed = FileSource(name="x", path=str(tmp_path / "x.csv"), format="csv", timestamp_field="us")
    with pytest.raises(
        (pl.exceptions.ComputeError, ContractBroken), match=r"'03/10/2024' in 'us' is no time\. Write times as"
    ):
        read_source(timed, DAY).collect()


def _sql(query: str = "SELECT 1 AS one") -> SqlSource:
    return SqlSource(name="orders", query=query, connection="WAREHOUSE_URI")


def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WAREHOUSE_URI", raising=False)
    with pytest.raises(
        ConfigurationError, match=r"environment variable WAREHOUSE_URI, which is not set. Set it: export"
    ):
        read_source(_sql())
    monkeypatch.setenv("WAREHOUSE_URI", "hunter2")
    with pytest.raises(ConfigurationError, match="WAREHOUSE_URI holds is not a URI") as told:
        read_source(_sql())
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(
    "uri", ["snowflake://me:hunter2@account/db", "postgresql+nodriver://me:hunter2@host/db", "foo://me:hunter2@host/db"]
)
def test_a_missing_driver_is_named_and_no_password(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("WAREHOUSE_URI", uri)
    with pytest.raises((ConfigurationError, StoreUnavailable)) as told:
        read_source(_sql())
    assert "SqlSource 'orders'" in str(told.value)
    assert "hunter2" not in str(told.value)


@pytest.mark.usefixtures("warehouse")
def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(
        StoreUnavailable, match=r"there is no database at .*rows.db, where the URI in WAREHOUSE_URI leads"
    ):
        read_source(_sql())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("warehouse")
def test_a_wrong_query_is_told_in_the_words_of_the_database(tmp_path: Path) -> None:
    _sqlite(tmp_path, ROWS)
    with pytest.raises(StoreUnavailable, match=r"no such column: nope.*Check the query, and the URI in WAREHOUSE_URI"):
        read_source(_sql("SELECT nope FROM weather"))


@pytest.mark.usefixtures("warehouse")
def test_sqlalchemy_serves_a_uri_that_names_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _sqlite(tmp_path, ROWS)
    monkeypatch.setenv("WAREHOUSE_URI", f"sqlite+pysqlite:///{tmp_path}/rows.db")
    assert read_source(source, DAY).collect()["temp"].sort().to_list() == [2, 3, 4]
