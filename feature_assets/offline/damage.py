"""Looking for damage: what a crash of the machine, a failing disk or a careless hand did to a table.

delta-rs names some of it when it loads the table, some only when the file is read, and some never: a last log entry that
is empty or gone is, to it, merely an older table.
"""

import json
import re
from pathlib import Path

import polars as pl

from feature_assets.errors import NotReproducible, StoreError
from feature_assets.offline.files import files_of
from feature_assets.offline.place import LOG, Place, reason_of
from feature_assets.offline.table import is_whole_parquet, opened

_ENTRY = re.compile(r"(\d{20})\.json")
_AGAIN = "Materialise again what was published since, or restore the file from a backup"


def found(place: Place, reached: int | None) -> list[str]:
    """See `OfflineStore.check`."""
    problems = _log_damage(place.folder / LOG) if place.folder is not None else []
    try:
        table = opened(place)
    except (StoreError, NotReproducible) as error:
        return problems or [str(error)]
    if table is None:
        return problems
    if reached is not None and table.version() < reached:
        problems.append(
            f"{place.described} is at version {table.version()}, and version {reached} has been there: its log lost its "
            f"end. {_AGAIN}."
        )
    files = files_of(table)
    damaged = _file_damage(place.folder, files) if place.folder is not None else []
    return [*problems, *(damaged or _content_damage(place, files))]


def _log_damage(log: Path) -> list[str]:
    entries = sorted(int(match[1]) for one in log.glob("*.json") if (match := _ENTRY.fullmatch(one.name)))
    if not entries:
        return []
    problems = [
        f"{log / f'{version:020d}.json'} is missing. {_AGAIN}."
        for version in sorted(set(range(entries[-1])) - set(entries))
    ]
    for version in entries:
        entry = log / f"{version:020d}.json"
        if (reason := _unreadable(entry)) is not None:
            # With fsync a write is acknowledged only after its entry is on the disk, so a damaged last one never was.
            last = "If it was written as the power failed, it was never acknowledged: move it away. "
            problems.append(f"{entry} {reason}. {last if version == entries[-1] else ''}{_AGAIN}.")
    for checkpoint in log.glob("*.checkpoint*.parquet"):
        if not is_whole_parquet(checkpoint.read_bytes()):
            problems.append(f"{checkpoint} is cut off. The log has all that it says: it is set aside at the next read.")
    return problems


def _unreadable(entry: Path) -> str | None:
    text = entry.read_bytes()
    if not text.strip():
        return "is empty"
    try:
        for line in text.splitlines():
            json.loads(line)
    except ValueError:
        return "is cut off"
    return None


def _file_damage(folder: Path, files: pl.DataFrame) -> list[str]:
    problems = []
    for path, size in files.select("path", "bytes").iter_rows():
        file = folder / path
        if not file.exists():
            problems.append(f"{file} is missing. {_AGAIN}.")
        elif file.stat().st_size != size:
            problems.append(f"{file} has {file.stat().st_size} bytes, not {size}. {_AGAIN}.")
    return problems


def _content_damage(place: Place, files: pl.DataFrame) -> list[str]:
    """Files that do not hold as many rows as the log says; one look at all, then one by one if that fails."""
    paths = files["path"].to_list()
    if not paths or (_rows(place, paths) == files["rows"].sum()):
        return []
    problems = []
    for path, rows in files.select("path", "rows").iter_rows():
        held = _rows(place, [path])
        if held != rows:
            told = held if isinstance(held, str) else f"has {held} rows, not {rows}"
            problems.append(f"{place.uri}/{path} {told}. {_AGAIN}.")
    return problems


def _rows(place: Place, paths: list[str]) -> int | str:
    places = [f"{place.uri}/{path}" for path in paths]
    try:
        rows = pl.scan_parquet(
            places,
            glob=False,
            hive_partitioning=False,
            missing_columns="insert",
            extra_columns="ignore",
            storage_options=dict(place.options) or None,
        )
        return int(rows.select(pl.len()).collect(engine="streaming").item())
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        return f"cannot be read ({reason_of(error)})"
