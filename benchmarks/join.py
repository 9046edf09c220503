"""The point-in-time join against `join_asof` by hand on the same Parquet files, and Feast: 3 views × 10 features, or the flights.

    python -m benchmarks.join [--rows 1_000_000] [--spine 100_000] [--entities 10_000] [--created] [--repeats 5]
                              [--feast duckdb,dask]
    python -m benchmarks.join --flights

All answers are compared cell by cell. Peak memory is that of a process of its own that does nothing else. Feast is that of
`FEAST_PYTHON`, or of `.venv-feast`, where it has DuckDB too (`pip install 'feast[duckdb]'`); its processes run once each. Its
default store, dask, takes minutes, and of the flights all memory there is.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import polars as pl

from benchmarks.join_cases import flights, generated, history, registry_of
from benchmarks.peer import feast_python, run_by
from benchmarks.timing import compare
from feature_assets.historical import historical_features
from feature_assets.offline import OfflineStore
from feature_assets.spec import ViewSpec

MARK_SECONDS, MARK_MEMORY = 1.15, 1.1


def ours(folder: Path) -> pl.DataFrame:
    registry = registry_of(folder)
    asked = [f"{name}:*" for name in registry.views]
    return historical_features(
        registry, OfflineStore(str(folder / "offline")), folder / "spine.parquet", asked
    ).collect()


def by_hand(folder: Path) -> pl.DataFrame:
    rows = pl.scan_parquet(folder / "spine.parquet").with_row_index("row").sort("event_timestamp")
    for view in registry_of(folder).views.values():
        rows = _joined_as_known(rows, folder, view) if view.created_timestamp else _joined(rows, folder, view)
    return rows.sort("row").drop("row").collect(engine="streaming")


def _joined(rows: pl.LazyFrame, folder: Path, view: ViewSpec) -> pl.LazyFrame:
    keys = list(view.join_keys)
    found = history(folder, view).select(*keys, *_features(view), event_timestamp=view.event_timestamp)
    return rows.join_asof(
        found.sort("event_timestamp"), on="event_timestamp", by=keys, tolerance=view.ttl, check_sortedness=False
    )


def _joined_as_known(rows: pl.LazyFrame, folder: Path, view: ViewSpec) -> pl.LazyFrame:
    """Each row's latest event among those known by then: the ones that rank highest when they become known."""
    (key,) = view.join_keys
    names = _features(view)
    found = history(folder, view).select(key, "at", "made", *names).sort("at", "made").with_row_index("rank")
    known = found.with_columns(known=pl.max_horizontal("at", "made")).sort("known", maintain_order=True)
    best = known.filter(pl.col("rank") == pl.col("rank").cum_max().over(key))
    joined = rows.join_asof(best, left_on="event_timestamp", right_on="known", by=key, check_sortedness=False)
    fresh = pl.col("at") >= pl.col("event_timestamp") - view.ttl
    return joined.with_columns(pl.when(fresh).then(pl.col(names))).drop("at", "made", "rank", "known", strict=False)


def _features(view: ViewSpec) -> list[str]:
    return [field.name for field in view.features]


WAYS: dict[str, Callable[[Path], pl.DataFrame]] = {"ours": ours, "limit": by_hand}


def in_a_process_of_its_own(way: str, folder: Path) -> tuple[float, int]:
    """Seconds, and peak memory in bytes."""
    command = [sys.executable, "-m", "benchmarks.join", "--measure", way, str(folder)]
    seconds, peak = subprocess.check_output(command, text=True).split()
    return float(seconds), int(peak)


def measure(way: str, folder: Path) -> None:
    start = time.perf_counter()
    WAYS[way](folder)
    seconds = time.perf_counter() - start
    # Linux hands the parent's peak (ru_maxrss) down to a child; this one starts anew with the program.
    status = Path("/proc/self/status").read_text()
    print(seconds, 1024 * int(status.split("VmHWM:")[1].split()[0]))


def beside_feast(folder: Path, stores: list[str]) -> None:
    """What Feast takes for the same, with each of these offline stores, and how much of its answer is another."""
    if (python := feast_python("duckdb, ibis")) is None:
        print("\nFeast with DuckDB is not installed here, and is left out.")
        return
    place, declared = folder / "feast", {}
    place.mkdir()
    for view in registry_of(folder).views.values():
        types = {name: str(of) for name, of in view.types.items()}
        declared[view.name] = {
            "keys": list(view.join_keys),
            "features": {name: types[name] for name in _features(view)},
            "types": {name: types[name] for name in view.join_keys},
            "time": view.event_timestamp,
            "ttl": view.ttl.total_seconds() if view.ttl else 0,
        }
        columns = (*view.join_keys, view.event_timestamp, *_features(view))
        history(folder, view).select(columns).sink_parquet(place / f"{view.name}.parquet")
    (place / "views.json").write_bytes(orjson.dumps(declared))
    expected = ours(folder)
    print("\nFeast")
    for store in stores:
        try:
            seconds, peak = run_by(python, "feast_join.py", place, store, folder / "spine.parquet").split()
        except AssertionError as error:
            print(f"  {store:6}  fails: {str(error).strip().splitlines()[-1]}")
            continue
        found = differing(expected, pl.read_parquet(place / "answer.parquet", columns=expected.columns).sort("label"))
        print(f"  {store:6}  {float(seconds):>7,.2f} s  {int(peak) / 2**20:>7,.0f} MB  {found}")


def differing(expected: pl.DataFrame, answer: pl.DataFrame) -> str:
    if answer.height != expected.height:
        return f"{answer.height:,} of {expected.height:,} rows"
    values = expected.columns[expected.columns.index("label") + 1 :]
    cells = sum(int(answer[name].cast(expected[name].dtype).ne_missing(expected[name]).sum()) for name in values)
    return f"{cells:,} of {expected.height * len(values):,} cells are others" if cells else "the same answer"


def run(folder: Path, options: argparse.Namespace) -> None:
    if options.flights:
        flights(folder)
        title = "join, the flights of 2013: 5 views for every departure"
    else:
        generated(folder, options.rows, options.spine, options.entities, created=options.created)
        title = f"join, 3 views × 10 features × {options.rows:,} rows, spine {options.spine:,}"
    ways = {label: lambda way=way: way(folder) for label, way in WAYS.items()}
    compare(title, ways, options.repeats, mark=MARK_SECONDS)
    peaks = {way: min(in_a_process_of_its_own(way, folder)[1] for _ in range(3)) for way in WAYS}
    ratio = peaks["ours"] / peaks["limit"]
    verdict = "within" if ratio <= MARK_MEMORY else "OVER"
    print(f"\npeak memory  [{verdict} the mark: {ratio:.2f} of {MARK_MEMORY:g}]")
    for way, peak in peaks.items():
        print(f"  {way:5}  {peak / 2**20:>7,.0f} MB")
    if options.feast and not options.created:
        beside_feast(folder, options.feast.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flights", action="store_true", help="the real flights instead of generated rows")
    parser.add_argument("--rows", type=int, default=1_000_000, help="history rows of each view")
    parser.add_argument("--spine", type=int, default=100_000)
    parser.add_argument("--entities", type=int, default=10_000)
    parser.add_argument("--created", action="store_true", help="views with a created timestamp")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--feast", default="duckdb", help="its offline stores; an empty text leaves Feast out")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options)


if __name__ == "__main__":
    main()
