"""A question answered by other processes: parts of the spine as files, a task for each, answers as files.

A task is data: what was asked, of which registry and Delta versions, and where the part lies. Whoever runs it reads the
histories itself, as far as the part's times reach, and writes its answer beside the part; nothing is sent but names of
files. A task that was begun by a worker that died is run again by another and writes the same file.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

import polars as pl

from feature_assets.errors import FeatureAssetsError, StoreError
from feature_assets.historical.answer import Answer, pin
from feature_assets.historical.budget import Budget
from feature_assets.historical.parts import Parts, room
from feature_assets.historical.spine import Spine
from feature_assets.joins import Run, engine_named
from feature_assets.offline import OfflineStore
from feature_assets.references import resolve
from feature_assets.registry import Registry
from feature_assets.spec import Spec, canonical_json, from_json
from feature_assets.training import Question


def _kinds(kind: type[FeatureAssetsError]) -> Iterator[type[FeatureAssetsError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _kinds(each)


_ERRORS: Final = {kind.__name__: kind for kind in _kinds(FeatureAssetsError)}


class Job(Spec, frozen=True, kw_only=True):
    """What all tasks of a question have in common."""

    registry: Registry
    question: Question
    offline: str
    functions: tuple[str, ...]
    memory_limit: int


class Task(Spec, frozen=True, kw_only=True):
    """One part: rows of some files from an offset on, which carry their numbers in a column of that name."""

    job: str
    options: dict[str, str]
    files: tuple[str, ...]
    offset: int
    length: int
    number: str
    answer: str


class Done(Spec, frozen=True, kw_only=True):
    """What became of a task: so many rows, or the class and words of an error of the platform."""

    rows: int = 0
    error: str = ""
    message: str = ""


def work(text: str) -> str:
    """Join one part, and write its answer."""
    task = from_json(text.encode(), Task)
    try:
        done = Done(rows=_joined(task))
    except FeatureAssetsError as error:
        done = Done(error=type(error).__name__, message=str(error))
    return canonical_json(done).decode()


def _joined(task: Task) -> int:
    job = from_json(Path(task.job).read_bytes(), Job)
    asked, offline = job.question, OfflineStore(job.offline, storage_options=task.options)
    plan = resolve(job.registry, asked.features, full_feature_names=asked.full_feature_names)
    part = pl.scan_parquet(list(task.files), glob=False, hive_partitioning=False).slice(task.offset, task.length)
    rows = part.collect(engine="streaming")
    answer = Answer(
        plan,
        Spine(rows.drop(task.number), asked.timestamp_column),
        pin([read.view for read in plan.reads], offline, asked.tables),
        created_cutoff=asked.created_cutoff,
        open_engine=engine_named("polars"),
        allowed_modules=job.functions,
    )
    joined = answer.join(rows.drop(task.number), Budget(job.memory_limit).held).with_columns(rows[task.number])
    # Another worker may be at the same task, if this one was taken for dead.
    draft = Path(f"{task.answer}.{uuid4().hex}")
    joined.sort(task.number).write_parquet(draft, compression="lz4")
    draft.replace(task.answer)
    return joined.height


class Spread:
    """Answers the parts of a spine by tasks.

    Args:
        job: what they have in common.
        options: of the object store with the histories.
        run: runs them.
        scratch: a folder that every worker reaches by the same path; the temporary folder if None.
    """

    def __init__(self, job: Job, options: dict[str, str], run: Run, scratch: str | None) -> None:
        self._job, self._options, self._run, self._scratch = job, options, run, scratch

    def __call__(self, parts: Parts) -> Iterator[pl.DataFrame]:
        with tempfile.TemporaryDirectory(prefix="feature-assets-", dir=self._scratch) as name, room():
            folder = Path(name)
            job = folder / "job.json"
            job.write_bytes(canonical_json(self._job))
            filed = parts.filed(folder)
            answers = [folder / f"answer-{place:06d}.parquet" for place in range(len(filed.slices))]
            tasks = [
                Task(
                    job=str(job),
                    options=self._options,
                    files=tuple(map(str, one.paths)),
                    offset=one.offset,
                    length=one.length,
                    number=filed.number,
                    answer=str(answer),
                )
                for one, answer in zip(filed.slices, answers, strict=True)
            ]
            self._ran(tasks, parts)
            yield from parts.in_order(answers, filed.number)

    def _ran(self, tasks: Sequence[Task], parts: Parts) -> None:
        rows = 0
        for text in self._run(work, [canonical_json(task).decode() for task in tasks]):
            done = from_json(text.encode(), Done)
            if done.error:
                raise _ERRORS.get(done.error, StoreError)(done.message)
            rows += done.rows
            parts.tell("joining", rows)
