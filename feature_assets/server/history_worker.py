"""One training set, in a process of its own: `python -m feature_assets.server.history_worker`.

The server starts it for each historical request, so that it can be stopped at any moment, gives back its memory and holds
up no lookup. The job comes on standard input, of which the rest stays open as long as the server lives; what became of it
is written beside the rows.
"""

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, Self

import msgspec
import polars as pl

from feature_assets.access import Grant, Principal
from feature_assets.config import Settings
from feature_assets.errors import FeatureAssetsError, Forbidden, RequestError, StoreFull, WrongType
from feature_assets.functions import make_importable
from feature_assets.references import ReadPlan, resolve
from feature_assets.spec import ViewProjection, canonical_json
from feature_assets.store import FeatureStore
from feature_assets.training import TrainingSet
from feature_assets.types import FeatureType

QUESTION: Final = "feature_assets.question"
SPINE: Final = "feature_assets.spine"
"""The keys under which a file of rows says in its metadata what it is the answer to, and which columns came with the spine."""

PARQUET: Final = "application/vnd.apache.parquet"
ARROW: Final = "application/vnd.apache.arrow.stream"

_PRIORITY: Final = 5
_NO_END: Final = 2.0**53
_ROWS_PER_GROUP: Final = 100_000


class HistoricalQuestion(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The body of POST /v1/historical-features, or the part `question` of it."""

    features: msgspec.Raw = msgspec.Raw(b"null")
    feature_service: str | None = None
    spine: dict[str, list[Any]] | list[dict[str, Any]] | None = None
    full_feature_names: bool = False
    created_cutoff: bool = True
    since: str | None = None
    until: str | None = None
    timestamp_column: str | None = None


class Asker(msgspec.Struct):
    """A principal as JSON."""

    issuer: str
    subject: str
    client_id: str
    scope: str
    ends: float
    roles: list[str]
    groups: list[str]
    claims: dict[str, str | int | bool]

    @classmethod
    def of(cls, principal: Principal) -> Self:
        return cls(
            issuer=principal.issuer,
            subject=principal.subject,
            client_id=principal.client_id,
            scope=" ".join(map(str, principal.grant.scopes)),
            ends=min(principal.ends, _NO_END),
            roles=sorted(principal.roles),
            groups=sorted(principal.groups),
            claims=dict(principal.claims),
        )

    @property
    def principal(self) -> Principal:
        return Principal(
            issuer=self.issuer,
            subject=self.subject,
            client_id=self.client_id,
            grant=Grant.of(self.scope),
            ends=self.ends,
            roles=frozenset(self.roles),
            groups=frozenset(self.groups),
            claims=self.claims,
        )


class Job(msgspec.Struct):
    """What the worker is to do. Without a file the spine is the question's, and without that there is none."""

    settings: dict[str, Any]
    asker: Asker
    question: HistoricalQuestion
    features: str | list[str | ViewProjection]
    folder: str
    file: Literal["", "parquet", "arrow"]
    answer: Literal["parquet", "arrow"]

    @property
    def spine(self) -> Path:
        return Path(self.folder) / "spine"

    @property
    def rows(self) -> Path:
        return Path(self.folder) / "rows"

    @property
    def outcome(self) -> Path:
        return Path(self.folder) / "outcome.json"


class Outcome(msgspec.Struct):
    """What became of it: the digest of the registry that answered, or the class and the words of an error; `rule` is what
    refused whoever asks.
    """

    registry: str = ""
    error: str = ""
    message: str = ""
    rule: str = ""


def run(job: Job) -> Outcome:
    """Compute the rows and write them.

    Raises:
        FeatureAssetsError: the question cannot be answered.
    """
    question = job.question
    settings = Settings(**job.settings)
    if settings.functions:
        make_importable(settings.root)
    with FeatureStore(settings, principal=job.asker.principal) as store:
        store.refresh()
        found = store.get_historical_features(
            _spine(job, store),
            job.features,
            full_feature_names=question.full_feature_names,
            created_cutoff=question.created_cutoff,
            since=question.since,
            until=question.until,
            timestamp_column=question.timestamp_column,
        )
        _write(found, job)
        return Outcome(registry=found.question.registry)


def _spine(job: Job, store: FeatureStore) -> "pl.DataFrame | pl.LazyFrame | None":
    try:
        if job.file == "parquet":
            frame = pl.scan_parquet(job.spine, glob=False)
            frame.collect_schema()
            return frame
        if job.file == "arrow":
            return pl.read_ipc_stream(job.spine)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise RequestError(f"The spine cannot be read as {job.file}: {str(error).splitlines()[0][:200]}.") from error
    if job.question.spine is None:
        return None
    plan = resolve(store.registry, job.features, full_feature_names=job.question.full_feature_names)
    return frame_of(job.question.spine, plan)


def frame_of(spine: "dict[str, list[Any]] | list[dict[str, Any]]", plan: ReadPlan) -> pl.DataFrame:
    """Rows or columns of JSON as a frame: join keys and request fields of their types, the others of what they look like.

    Raises:
        RequestError: columns differ in length, or a column is of no one kind.
        WrongType: a value is not of its type.
    """
    columns = _columns(spine)
    if len(set(map(len, columns.values()))) > 1:
        lengths = ", ".join(f"'{name}' {len(values)}" for name, values in columns.items())
        raise RequestError(f"The columns of the spine differ in length: {lengths}. Give a value per row in each.")
    types = {**plan.join_keys, **{name: field.type for name, field in plan.request.items()}}
    return pl.DataFrame([_series(name, values, types.get(name)) for name, values in columns.items()])


def _columns(spine: "dict[str, list[Any]] | list[dict[str, Any]]") -> dict[str, list[Any]]:
    if isinstance(spine, dict):
        return spine
    names = dict.fromkeys(name for row in spine for name in row)
    return {name: [row.get(name) for row in spine] for name in names}


def _series(name: str, values: list[Any], of: FeatureType | None) -> pl.Series:
    if of is None:
        try:
            return pl.Series(name, values, strict=True)
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
            raise RequestError(
                f"Spine column '{name}' has values of different kinds. Give them all in one form, or leave it out."
            ) from None
    parsed = []
    for row, value in enumerate(values):
        try:
            parsed.append(of.parse(value))
        except WrongType as error:
            raise WrongType(f"Spine column '{name}', row {row}: {error}.") from None
    return of.to_frame(name, parsed)


def _write(found: TrainingSet, job: Job) -> None:
    told = {QUESTION: canonical_json(found.question).decode(), SPINE: canonical_json(found.spine_columns).decode()}
    try:
        if job.answer == "parquet":
            # Written in one stream, so that what is read of it first is there first.
            found.write_parquet(job.rows, row_group_size=_ROWS_PER_GROUP, metadata=told)
        else:
            _write_arrow(found, job.rows, told)
    except OSError as error:
        if isinstance(error, FeatureAssetsError):
            raise
        raise StoreFull(f"The rows cannot be kept until they are sent: {error.strerror}.") from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError) as error:
        if isinstance(error, FeatureAssetsError):
            raise
        raise RequestError(
            f"The rows cannot be written as {job.answer}: {str(error).splitlines()[0][:200]}. A column of the spine is of a "
            "kind that has no place there; leave it out."
        ) from error


def _write_arrow(found: TrainingSet, path: Path, told: dict[str, str]) -> None:
    import pyarrow as pa

    schema = found.schema.to_frame().to_arrow().schema.with_metadata(told)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for piece in found.batches():
            writer.write_table(piece.to_arrow().cast(schema), max_chunksize=_ROWS_PER_GROUP)


def _end_with_the_server() -> None:
    """The server holds the other end of standard input: when it is gone, so is who asked."""
    # Not through sys.stdin, which Python closes when it ends: it aborts where a thread is reading.
    while os.read(sys.stdin.fileno(), 65_536):
        continue
    os._exit(1)


def main() -> None:
    # What a function prints that is loaded for an on-demand view belongs to the log.
    os.dup2(2, 1)
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    with suppress(OSError):
        os.nice(_PRIORITY)
    try:
        outcome = run(job)
    except Forbidden as error:
        rule = "" if error.decision is None else error.decision.rule
        outcome = Outcome(error=Forbidden.__name__, message=str(error), rule=rule)
    except FeatureAssetsError as error:
        outcome = Outcome(error=type(error).__name__, message=str(error))
    except pl.exceptions.PanicException:
        outcome = Outcome(error=RequestError.__name__, message="The spine cannot be read.")
    new = job.outcome.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(outcome))
    new.replace(job.outcome)


if __name__ == "__main__":
    main()
