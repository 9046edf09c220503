"""The one way in: conform → checks → Delta commit → online upsert → ledger.

Offline is the truth. After the commit the latest row of each key is sent online, where the later row wins; what the
replaced partitions had published before and no longer do is taken back by `settlement`. Materialised rows go all this way
in `publish`. Pushed rows are `admitted` when they come, wait in a journal, and go the rest of the way in `append`; so do
those of a stream, which are their own journal.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import polars as pl

from feature_assets.checks import CheckResult, RowCheck, Unique, run_checks
from feature_assets.conform import Conformed, PartitionSlice, conformed
from feature_assets.errors import ChecksFailed, StoreFull
from feature_assets.offline import Commit, InJournal, KnownBy, Moved, OfflineStore, Sorted, stream_journal
from feature_assets.online.protocol import AppliedPublication, Metered, OnlineStore, check_sizes
from feature_assets.settlement import (
    Reflected,
    finish_stream,
    journal_entry,
    key_frame,
    latest_rows,
    latest_tokens,
    no_rows,
    reflect,
    reflect_pushes,
    settle,
    taken_back,
)
from feature_assets.shapes import Shape, shapes
from feature_assets.spec import PARTITION, PUBLICATION, SEQUENCE, ViewSpec
from feature_assets.types import FeatureType, ListType, MapType, StructType, VectorType

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Publication:
    """What one publication did.

    `number` orders it among all publications of the view version. `total` counts the rows that the view has now in all
    partitions. `rows_by_partition` and `data_versions` have every partition, those without rows too; a data version is
    a digest of the rows, whatever their order. `keys` counts distinct join keys; `written`, `kept` and `retracted` count
    online rows. `shapes` has a histogram of each numeric feature. `units` are the read and write units that the online
    store consumed, where it has a price; beside other publications in the same process theirs are among them. Times are
    UTC; `seconds` is wall time by step.
    """

    view: str
    version: int
    partitions: tuple[str, ...]
    number: int
    delta_version: int
    rows: int
    total: int
    duplicates: int
    dropped: tuple[str, ...]
    first_event: datetime | None
    last_event: datetime | None
    nulls: Mapping[str, int]
    rows_by_partition: Mapping[str, int]
    data_versions: Mapping[str, str]
    checks: tuple[CheckResult, ...]
    shapes: Mapping[str, Shape]
    keys: int = 0
    written: int = 0
    kept: int = 0
    retracted: int = 0
    units: tuple[float, float] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


class _Clock:
    """Wall seconds from one lap to the next."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now


def publish(
    view: ViewSpec,
    frame: Any,
    slices: Sequence[PartitionSlice],
    *,
    offline: OfflineStore,
    online: OnlineStore | None,
    run_id: str = "",
    now: datetime | None = None,
    on_checks: Callable[[Sequence[CheckResult]], None] = lambda results: None,
) -> Publication:
    """Replace partitions of a view by these rows, offline and online.

    Args:
        view: the view; its version decides the tables.
        frame: what the asset function returned (see `conformed`).
        slices: the partitions to replace, each exactly once; partitions without rows become empty.
        offline, online: where to; `online` None, or a view with `online=False`, leaves the online store alone.
        run_id: recorded in the Delta commit.
        now: the present, for tests (UTC).
        on_checks: called with all check results before anything is published, whether they passed or not.

    Raises:
        ContractBroken: the rows are not what the view declares; nothing was published.
        DeclarationError: the view has more columns than the online store takes; nothing was published.
        ChecksFailed: a check of error severity failed; nothing was published, the message says where the rows are.
        PublicationConflict: others kept replacing the same partitions; nothing was published.
        StoreError: a store failed. If Delta had committed, `reconcile` finishes the online half.
    """
    now = now or datetime.now(UTC)
    clock = _Clock()
    with conformed(view, frame, slices, now=now) as rows:
        check_sizes(view, rows.rows, online)
        clock.lap("conform")
        results = _check(view, rows, slices, now, offline, run_id)
        on_checks(results)
        _stop_if_failed(view, results, f"in {view.name}() or its sources")
        clock.lap("checks")
        keys = [one.key for one in slices]
        commit = offline.replace(view, rows.rows, keys, metadata={"run_id": run_id, "code_version": view.code_version})
        clock.lap("offline")
        publication = _described(view, rows, keys, commit, results)
        clock.lap("describe")
        if online is not None and view.online:
            latest = latest_rows(view, rows.rows.select(view.columns)).with_columns(
                pl.lit(commit.publication, pl.Int64).alias(PUBLICATION)
            )
            publication = _to_online(publication, view, latest, commit, offline, online)
            clock.lap("online")
    log.info(
        "published view=%s version=%d partitions=%d rows=%d delta_version=%d written=%d kept=%d retracted=%d seconds=%.3f",
        *(view.name, view.version, len(keys), publication.rows, commit.version),
        *(publication.written, publication.kept, publication.retracted, sum(clock.laps.values())),
    )
    return replace(publication, seconds=clock.laps)


def _check(
    view: ViewSpec, rows: Conformed, slices: Sequence[PartitionSlice], now: datetime, offline: OfflineStore, run_id: str
) -> tuple[CheckResult, ...]:
    end = max((one.end for one in slices if one.end is not None), default=None)
    results = run_checks(
        view.checks, rows.rows, event_timestamp=view.event_timestamp, end=end, now=now, personal=view.personal
    )
    run = run_id or f"{now:%Y%m%dT%H%M%S%f}"
    return tuple(
        _keep_failing(one, view, rows.rows, offline, f"{run}-{number}") if one.stops else one
        for number, one in enumerate(results)
    )


def _keep_failing(
    result: CheckResult, view: ViewSpec, rows: pl.LazyFrame, offline: OfflineStore, run: str
) -> CheckResult:
    if not isinstance(result.check, RowCheck):
        return result
    # What a check is called may be longer than the name of a file.
    place = f"{offline.root}/__rejected/{view.name}/v{view.version}/{run}-{result.check.label[:100]}.parquet"
    local = "://" not in place
    # Nobody erases anybody from these files: they say which rows failed, by key and time, and nothing personal of them.
    failing = rows.filter(result.check.failing()).drop(view.personal)
    try:
        failing.sink_parquet(place, mkdir=local, storage_options=dict(offline.storage_options) or None)
    except (pl.exceptions.PolarsError, OSError) as error:
        # That the check failed is what has to be told, with this on top.
        if local:
            Path(place).unlink(missing_ok=True)
        why = "no room is left" if StoreFull.is_told_by(error) else str(error).splitlines()[0]
        return msgspec.structs.replace(result, found=f"{result.found}, and they could not be kept at {place} ({why})")
    return msgspec.structs.replace(result, kept_at=place)


def _stop_if_failed(view: ViewSpec, results: Sequence[CheckResult], maker: str) -> None:
    failed = [one for one in results if one.stops]
    if not failed:
        return
    described = "; ".join(
        f"{one.check.label} ({one.check.asks}): {one.found}" + (f", kept at {one.kept_at}" if one.kept_at else "")
        for one in failed
    )
    raise ChecksFailed(
        f"{view.name}: nothing was published, for {len(failed)} of {len(results)} checks failed: {described}. "
        f"Mend the rows {maker}, or give the check severity='warn'."
    )


def _described(
    view: ViewSpec, rows: Conformed, partitions: Sequence[str], commit: Commit, results: tuple[CheckResult, ...]
) -> Publication:
    digests = {row[PARTITION]: row for row in _digests(view, rows.rows).iter_rows(named=True)}
    return Publication(
        view=view.name,
        version=view.version,
        partitions=tuple(partitions),
        number=commit.publication,
        delta_version=commit.version,
        rows=rows.count,
        total=commit.total,
        duplicates=rows.duplicates,
        dropped=rows.dropped,
        first_event=rows.first_event,
        last_event=rows.last_event,
        nulls=rows.nulls,
        rows_by_partition={key: digests[key]["rows"] if key in digests else 0 for key in partitions},
        data_versions={key: _data_version(digests.get(key)) for key in partitions},
        checks=results,
        shapes=shapes(view, rows.rows, rows.count),
    )


def _data_version(digest: Mapping[str, int] | None) -> str:
    if digest is None:
        return "empty"
    return f"{digest['rows']:x}-{digest['hash1'] % 2**64:016x}{digest['hash2'] % 2**64:016x}"


def _digests(view: ViewSpec, rows: pl.LazyFrame) -> pl.DataFrame:
    """Per partition its row count and two sums of row hashes, which do not depend on the order of rows."""
    nested = {
        one.name: one.type
        for one in view.features
        if isinstance(one.type, ListType | VectorType | StructType | MapType)
    }
    # Polars has no hash of nested values; their canonical text stands for them.
    columns = [
        pl.col(name).map_batches(_texts(nested[name]), return_dtype=pl.String, is_elementwise=True)
        if name in nested
        else pl.col(name)
        for name in view.columns
    ]
    # The sums wrap; two seeds make an accident as unlikely as one in 2**128.
    sums = [pl.struct(columns).hash(seed).reinterpret(signed=True).sum().alias(f"hash{seed}") for seed in (1, 2)]
    hashed = rows.group_by(PARTITION).agg(pl.len().alias("rows"), *sums)
    return hashed.collect(engine="streaming")


def _texts(of: FeatureType) -> Callable[[pl.Series], pl.Series]:
    return lambda series: pl.Series(series.name, of.to_sqlite(series), dtype=pl.String)


def _to_online(
    publication: Publication,
    view: ViewSpec,
    latest: pl.DataFrame,
    commit: Commit,
    offline: OfflineStore,
    online: OnlineStore,
) -> Publication:
    before = _units(online)
    online.prepare(view)
    lost = key_frame(view, latest.clear())
    if commit.base is not None:
        former = offline.scan(view, at=commit.base, features=[], partitions=publication.partitions)
        lost = taken_back(view, latest_tokens(view, former), latest)
    done = reflect(view, commit, latest, lost, offline, online)
    return replace(
        publication,
        keys=latest.height,
        written=done.written,
        kept=done.kept,
        retracted=done.retracted,
        units=_consumed(online, before),
    )


def _units(online: OnlineStore) -> tuple[float, float] | None:
    return online.units() if isinstance(online, Metered) else None


def _consumed(online: OnlineStore, before: tuple[float, float] | None) -> tuple[float, float] | None:
    now = _units(online)
    return None if now is None or before is None else (now[0] - before[0], now[1] - before[1])


def admitted_checks(view: ViewSpec, rows: Conformed, now: datetime, *, maker: str) -> None:
    """Ask pushed rows what each row can be asked; what a whole materialisation is asked, a push is not.

    `maker` says in words where the rows can be mended.

    Raises:
        ChecksFailed: a check of error severity failed.
    """
    checks = [one for one in view.checks if isinstance(one, RowCheck) and not isinstance(one, Unique)]
    if not checks:
        return
    results = run_checks(
        checks, rows.rows, event_timestamp=view.event_timestamp, end=None, now=now, personal=view.personal
    )
    for one in results:
        if not one.passed and not one.stops:
            log.warning(
                "check warns of pushed rows view=%s check=%s failing=%d", view.name, one.check.label, one.failing
            )
    _stop_if_failed(view, results, maker)


class Appended(NamedTuple):
    """What became of pushed rows: `known` were there already. Counts of online rows are as in `Publication`."""

    partitions: tuple[str, ...] = ()
    delta_version: int | None = None
    fresh: int = 0
    known: int = 0
    written: int = 0
    kept: int = 0
    retracted: int = 0


def append(
    view: ViewSpec,
    rows: pl.DataFrame,
    *,
    numbered: InJournal | Moved,
    offline: OfflineStore,
    online: OnlineStore | None,
) -> Appended:
    """Add pushed rows, or those of a stream, to the partitions that they belong to, offline and online, each exactly once.

    May be repeated after any failure, by another process too.

    Args:
        rows: what was admitted: the columns of the view, `__partition`, `__event` and `__sequence`, in the order in which
            it was acknowledged, or stands in the stream; of a stream there may be none.
        numbered: the journal that numbers them, or from where to where in a stream they lead.

    Raises:
        Overtaken: another consumer of the stream was first; nothing was added.
        PublicationConflict: others kept pushing to the view; nothing is lost, repeat it.
        StoreError: a store failed; nothing is lost, repeat it.
    """
    clock = _Clock()
    entries = _entries(numbered)
    served = online if view.online else None
    seen = {} if served is None else _seen(view, entries, served)
    known_by: KnownBy = "position" if isinstance(numbered, Moved) else "content"
    metadata = {"code_version": view.code_version}
    commit, found = offline.append(view, rows, numbered=numbered, metadata=metadata, known_by=known_by)
    partitions = tuple(found.fresh[PARTITION].unique().sort())
    known = rows.height - found.fresh.height
    told = Appended(partitions, commit.version if commit else None, found.fresh.height, known)
    clock.lap("offline")
    if served is not None:
        done = _brought_online(view, rows, numbered, (commit, found), seen, offline, served)
        told = told._replace(written=done.written, kept=done.kept, retracted=done.retracted)
        clock.lap("online")
    log.info(
        "appended view=%s version=%d partitions=%d rows=%d known=%d delta_version=%s written=%d kept=%d retracted=%d "
        "seconds=%.3f",
        *(view.name, view.version, len(partitions), told.fresh, told.known, told.delta_version),
        *(told.written, told.kept, told.retracted, sum(clock.laps.values())),
    )
    return told


def _brought_online(
    view: ViewSpec,
    rows: pl.DataFrame,
    numbered: InJournal | Moved,
    landed: tuple[Commit | None, Sorted],
    seen: Mapping[str, int],
    offline: OfflineStore,
    online: OnlineStore,
) -> Reflected:
    """What was appended, and what an earlier attempt has put into Delta and did not live to bring online."""
    (commit, found), entries, retracted = landed, _entries(numbered), 0
    if isinstance(numbered, Moved):
        if commit is None:
            return Reflected(0, 0, finish_stream(view, numbered.source, list(numbered.after), offline, online))
        number = commit.publication
    else:
        # It may have been taken back since.
        late = found.recovered.filter(pl.col(SEQUENCE) > seen.get(entries[0], 0))
        retracted = 0 if late.is_empty() else settle(view, _keys_of(view, late), offline, online)
        number = int(rows[SEQUENCE].max() or 0)  # type: ignore[arg-type]
    applied = AppliedPublication(
        publication=number,
        delta_version=commit.version if commit else offline.version(view),
        partitions=dict.fromkeys(entries, found.fresh.height),
        seen={name: seen.get(name, 0) for name in found.fresh[PARTITION].unique()},
    )
    latest = latest_rows(view, found.fresh.lazy().select(*view.columns, PUBLICATION), more=(PUBLICATION,))
    done = reflect_pushes(view, applied, latest, offline, online)
    return replace(done, retracted=done.retracted + retracted)


def _entries(numbered: InJournal | Moved) -> list[str]:
    """The ledger's entries of what numbers rows: of the journal, or of each shard."""
    if isinstance(numbered, InJournal):
        return [journal_entry(numbered.journal)]
    return [journal_entry(stream_journal(numbered.source, shard)) for shard in numbered.after]


def _seen(view: ViewSpec, entries: Sequence[str], online: OnlineStore) -> dict[str, int]:
    """What the ledger has; it gets those of the entries that it lacks.

    Whoever reconciles has to know that there are such journals before Delta has rows of them.
    """
    online.prepare(view)
    seen = {name: each.publication for name, each in online.ledger(view).entries.items()}
    if new := [entry for entry in entries if entry not in seen]:
        online.write(view, no_rows(view), AppliedPublication(0, 0, dict.fromkeys(new, 0)))
    return seen


def _keys_of(view: ViewSpec, rows: pl.DataFrame) -> pl.DataFrame:
    return key_frame(view, rows.unique(list(view.join_keys)) if view.join_keys else rows.head(1))
