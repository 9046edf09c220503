"""Features as they were known at the times of a spine.

- `frames`: what a person brings as rows
- `spine`: rows with times and keys
- `rows`: a spine made of histories
- `admission`: what of all this is open to a principal
- `budget`: how much memory joining may take
- `parts`: a spine joined part by part within it, answered in its own order
- `answer`: the question with all that decides its answer, computed piece by piece
- `tasks`: parts of a spine answered by other processes, and the result written by them
- `scratch`: where those parts lie meanwhile
- `rebuild`: a saved training set once more, bit for bit
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType

from feature_assets.access import Access, Principal
from feature_assets.errors import RequestError
from feature_assets.historical.admission import Admitted, admit, admit_saved, admitted, check_brought, own_rows
from feature_assets.historical.answer import Answer, pin
from feature_assets.historical.budget import Budget
from feature_assets.historical.budget import memory_limit as bytes_of
from feature_assets.historical.frames import Frames, published
from feature_assets.historical.parts import Progress
from feature_assets.historical.rebuild import rebuild
from feature_assets.historical.rows import every_row
from feature_assets.historical.spine import Frame, read_spine
from feature_assets.historical.tasks import Job, Spread
from feature_assets.joins import engine_named, run_by
from feature_assets.offline import OfflineStore
from feature_assets.references import Features, listed, projections, resolve
from feature_assets.registry import Registry
from feature_assets.training import Question, TrainingSet, TrainingSets

_TASK_BYTES = 1_000_000_000
"""About how much memory a task takes that is run elsewhere, if nobody says."""

__all__ = ["Progress", "admit_saved", "historical_features", "rebuild"]


def historical_features(
    registry: Registry,
    offline: OfflineStore,
    spine: Frame | None,
    features: Features,
    *,
    full_feature_names: bool = False,
    created_cutoff: bool = True,
    since: datetime | str | None = None,
    until: datetime | str | None = None,
    timestamp_column: str | None = None,
    tables: Mapping[str, Frame] = MappingProxyType({}),
    engine: str = "polars",
    memory_limit: int | str | None = None,
    progress: Callable[[Progress], None] | None = None,
    address: str | None = None,
    scratch: str | None = None,
    allowed_modules: Sequence[str] = (),
    sets: TrainingSets | None = None,
    access: Access | None = None,
    principal: Principal | None = None,
) -> TrainingSet:
    """The spine's rows, in its order, each with the features as they were known at its time.

    The question is checked and the Delta version of every view fixed here; rows are read when the training set is.

    Args:
        registry, offline: what is declared, and where its history is.
        spine: a Polars, pandas or Arrow frame; a path or URL of Parquet, CSV, JSON lines, Arrow or Delta; a source; a
            query ("SELECT …") over `tables`, views and sources; or None for every key and time at which one of the views
            has a row from `since` on and before `until`. It is read once, when rows are first asked for. Times finer
            than a microsecond are cut off, naive ones are UTC; a row without a time or key stays, and gets no features.
        features: a service, references or projections; the answer has them in this order behind the spine's columns.
        full_feature_names: features are called `view__feature`.
        created_cutoff: leave out rows that were created after the spine row's time.
        timestamp_column: the spine's column of times; by default `event_timestamp`, else its only datetime column.
        tables: frames that the query names.
        engine: what joins: "polars" in this process, "daft" in parts on all processors of this machine, "daft-ray" on a Ray
            cluster, each task of which keeps to the memory limit (1 GB if there is none).
        address, scratch: of the Ray cluster, the one here or a new one if None; and a folder that all its hosts have under
            one path, or a URL of the object store that the histories are in; the temporary folder if None.
        memory_limit: about how much memory joining may take, in bytes or as "4GB"; what does not fit is joined part by
            part, by way of the temporary folder.
        progress: is told how far it is, whenever rows are made.
        allowed_modules: modules that on-demand functions may be loaded from.
        sets: where `TrainingSet.save` keeps sets.
        access, principal: who asks, and what decides about it; everything is open without. Personal data that the
            principal may not see is left out; the spine has to be rows, and all of them open to it. Without a spine
            there are its own rows alone.

    Raises:
        Forbidden: the principal may not have this answered.
        UnknownView, UnknownFeature, UnknownService: the registry has nothing of that name.
        MissingJoinKey: the spine lacks a join key.
        WrongType: a spine column is of another type than what it is looked up as.
        NameCollision: two columns of the answer would have one name.
        TableMissing: a view was never materialised.
        RequestError: the question cannot be answered as it was asked.
    """
    if spine is not None and (since is not None or until is not None):
        raise RequestError("since= and until= stand in for a spine; filter the spine itself instead.")
    asked = _asked(registry, listed(features), access, principal, spine, full_feature_names=full_feature_names)
    open_engine, limit, run = engine_named(engine), bytes_of(memory_limit), run_by(engine, address)
    if run is not None:
        limit = limit or _TASK_BYTES
    plan, pinned = asked.plan, pin([read.view for read in asked.plan.reads], offline)
    if spine is None:
        own = own_rows(asked.decision) if asked.decision is not None else []
        held = None if limit is None else Budget(limit).held
        rows = every_row(plan, pinned, since=since, until=until, only=own, held=held)
    else:
        types = {**plan.join_keys, **{name: field.type for name, field in plan.request.items()}}
        named = published(registry, offline)
        frame = Frames(tables, types, named=named, storage_options=offline.storage_options).read(spine)
        rows = read_spine(frame, plan, timestamp_column=timestamp_column)
        if asked.decision is not None:
            admit(rows, plan, asked.decision)
    question = Question(
        registry=registry.digest,
        features=tuple(asked.features),
        full_feature_names=full_feature_names,
        created_cutoff=created_cutoff,
        engine=engine,
        timestamp_column=rows.timestamp,
        tables={label: each.delta_version for label, each in pinned.items()},
    )
    spread = None
    if run is not None and limit is not None:
        job = Job(
            registry=registry,
            question=question,
            offline=offline.root,
            functions=tuple(allowed_modules),
            memory_limit=limit,
        )
        spread = Spread(job, dict(offline.storage_options), run, scratch)
    answer = Answer(
        plan,
        rows,
        pinned,
        created_cutoff=created_cutoff,
        open_engine=open_engine,
        allowed_modules=allowed_modules,
        memory_limit=limit,
        progress=progress or (lambda _: None),
        spread=spread,
    )
    return TrainingSet(answer, question, sets)


def _asked(
    registry: Registry,
    features: Features,
    access: Access | None,
    principal: Principal | None,
    spine: Frame | None,
    *,
    full_feature_names: bool,
) -> Admitted:
    """What is to be read, as far as whoever asks may have it."""
    if access is None or principal is None:
        plan = resolve(registry, features, full_feature_names=full_feature_names)
        return Admitted(plan, projections(registry, features), None)
    check_brought(spine)
    return admitted(registry, access, principal, features, full_feature_names=full_feature_names)
