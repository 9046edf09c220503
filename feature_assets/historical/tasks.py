"""A question answered by other processes: parts of the spine as files, a task for each, answers as files.

A task is data: what was asked, of which registry and Delta versions, and where the part lies. Whoever runs it reads the
histories itself, as far as the part's times reach, and writes its answer beside the part. Once all parts are answered,
tasks of a second kind write the result, each a stretch of rows that follow one another in the spine, which it reads from
the answers. Nothing is sent but names of files and what is told of them. A task that was begun by a worker that died is
run again by another and writes the same files.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
import polars as pl

from feature_assets.errors import FeatureAssetsError, RequestError, StoreError
from feature_assets.historical.answer import Answer, pin
from feature_assets.historical.budget import Budget
from feature_assets.historical.parts import Parts, numbered, room
from feature_assets.historical.scratch import Scratch
from feature_assets.historical.spine import Spine
from feature_assets.joins import Run, engine_named
from feature_assets.offline import OfflineStore
from feature_assets.references import resolve
from feature_assets.registry import Registry
from feature_assets.spec import Spec, canonical_json, from_json
from feature_assets.training import AnyWriting, Question, Writing

_JOB: Final = "job.json"
_LEAST_GROUP: Final = 4_096
T = TypeVar("T")


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


class Join(Spec, frozen=True, kw_only=True, tag="join"):
    """Answer one part: rows of some files of the scratch folder, which carry their numbers in a column of that name."""

    scratch: str
    options: dict[str, str]
    files: tuple[str, ...]
    offset: int
    length: int
    number: str
    answer: str
    group: int


class Write(Spec, frozen=True, kw_only=True, tag="write"):
    """Write the rows of these numbers, which are in these answers, so many at a time."""

    scratch: str
    options: dict[str, str]
    answers: tuple[str, ...]
    number: str
    first: int
    length: int
    piece: int
    writing: AnyWriting


class Joined(Spec, frozen=True, kw_only=True):
    """An answer: how many rows, and the least and the greatest of their numbers."""

    name: str
    rows: int
    first: int
    last: int


class Done(Spec, frozen=True, kw_only=True):
    """What became of the task at that place: what it gave, or the class and words of an error of the platform."""

    place: int
    told: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    message: str = ""


class _Task(Spec, frozen=True):
    place: int
    work: Join | Write


def work(text: str) -> str:
    """Do a task."""
    task = from_json(text.encode(), _Task)
    try:
        told = _join(task.work) if isinstance(task.work, Join) else _write(task.work)
        done = Done(place=task.place, told=msgspec.Raw(msgspec.json.encode(told)))
    except FeatureAssetsError as error:
        done = Done(place=task.place, error=type(error).__name__, message=str(error))
    return msgspec.json.encode(done).decode()


def _join(task: Join) -> Joined:
    scratch = Scratch(task.scratch, task.options)
    job = from_json(scratch.get(_JOB), Job)
    asked, offline = job.question, OfflineStore(job.offline, storage_options=task.options)
    plan = resolve(job.registry, asked.features, full_feature_names=asked.full_feature_names)
    rows = scratch.scan(task.files).slice(task.offset, task.length).collect(engine="streaming")
    answer = Answer(
        plan,
        Spine(rows.drop(task.number), asked.timestamp_column),
        pin([read.view for read in plan.reads], offline, asked.tables),
        created_cutoff=asked.created_cutoff,
        open_engine=engine_named("polars"),
        allowed_modules=job.functions,
    )
    joined = answer.join(rows.drop(task.number), Budget(job.memory_limit).held).with_columns(rows[task.number])
    scratch.write(task.answer, joined.sort(task.number), group=task.group)
    first, last = joined.select(first=pl.col(task.number).min(), last=pl.col(task.number).max()).row(0)
    return Joined(name=task.answer, rows=joined.height, first=first, last=last)


def _write(task: Write) -> object:
    scratch, rows = Scratch(task.scratch, task.options), range(task.first, task.first + task.length)
    return task.writing.write(task.first, numbered(scratch, task.answers, task.number, rows, task.piece))


@dataclass(frozen=True, slots=True)
class _Answers:
    scratch: Scratch
    number: str
    joined: Sequence[Joined]

    def among(self, rows: range) -> tuple[str, ...]:
        """Those that may have some of these rows."""
        return tuple(one.name for one in self.joined if one.first < rows.stop and one.last >= rows.start)


class Spread:
    """Answers the parts of a spine by tasks.

    Args:
        job: what they have in common.
        options: of the object store with the histories, and with the scratch folder if that is in one.
        run: runs them.
        scratch: a folder that every worker reaches by the same path, or a URL; the temporary folder if None.
    """

    def __init__(self, job: Job, options: Mapping[str, str], run: Run, scratch: str | None) -> None:
        self._job, self._options, self._run, self._scratch = job, dict(options), run, scratch

    def answers(self, parts: Parts) -> Iterator[pl.DataFrame]:
        """The answer to all rows, in the spine's order."""
        with self._joined(parts) as found:
            yield from parts.in_order(found.scratch, [one.name for one in found.joined], found.number)

    def written(self, parts: Parts, writing: Writing[T], rows: int) -> list[T]:
        """What writing the answer in stretches of so many rows gave, in the spine's order.

        Raises:
            RequestError: what has to be written cannot be told to a worker.
        """
        with self._joined(parts) as found:
            tasks = []
            for first in range(0, parts.height, rows):
                length = min(rows, parts.height - first)
                tasks.append(
                    Write(
                        scratch=found.scratch.place,
                        options=self._options,
                        answers=found.among(range(first, first + length)),
                        number=found.number,
                        first=first,
                        length=length,
                        piece=parts.piece,
                        writing=writing,  # type: ignore[arg-type]
                    )
                )
            told = self._done(tasks, parts, "writing")
            return [msgspec.json.decode(one, type=writing.TOLD) for one in told]

    @contextmanager
    def _joined(self, parts: Parts) -> Iterator[_Answers]:
        with room(), Scratch.made(self._scratch, self._options) as scratch:
            scratch.put(_JOB, canonical_json(self._job))
            filed = parts.filed(scratch)
            tasks = [
                Join(
                    scratch=scratch.place,
                    options=self._options,
                    files=tuple(one.names),
                    offset=one.offset,
                    length=one.length,
                    number=filed.number,
                    answer=f"answer-{place:06d}.parquet",
                    # Who takes a stretch of the spine takes some row groups of each answer, if they are apart by time.
                    group=max(_LEAST_GROUP, one.length // len(filed.slices)),
                )
                for place, one in enumerate(filed.slices)
            ]
            told = self._done(tasks, parts, "joining")
            yield _Answers(scratch, filed.number, [msgspec.json.decode(one, type=Joined) for one in told])

    def _done(self, tasks: Sequence[Join | Write], parts: Parts, stage: str) -> list[msgspec.Raw]:
        """What the tasks gave, in their order."""
        told: dict[int, msgspec.Raw] = {}
        texts = [_text(_Task(place, task)) for place, task in enumerate(tasks)]
        for text in self._run(work, texts):
            done = msgspec.json.decode(text.encode(), type=Done)
            if done.error:
                raise _ERRORS.get(done.error, StoreError)(done.message)
            told[done.place] = done.told
            parts.tell(stage, sum(tasks[place].length for place in told))
        if len(told) < len(tasks):
            raise StoreError(f"Of {len(tasks)} tasks {len(tasks) - len(told)} have no answer. Repeat the request.")
        return [told[place] for place in range(len(tasks))]


def _text(task: _Task) -> str:
    try:
        return msgspec.json.encode(task).decode()
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"Workers cannot be told how to write: {error}. Give options that are numbers and texts."
        ) from error
