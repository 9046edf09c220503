"""A saved training set, made again from its manifest: the same to the bit, or an error that says what is gone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from polars.io.plugins import register_io_source

from feature_assets.errors import (
    FeatureAssetsError,
    NotReproducible,
    RegistryError,
    StoreError,
    TransformationRefused,
)
from feature_assets.historical.answer import Answer, pin
from feature_assets.historical.budget import memory_limit as bytes_of
from feature_assets.historical.parts import Progress
from feature_assets.historical.spine import Spine
from feature_assets.joins import engine_named
from feature_assets.offline import OfflineStore, Pinned
from feature_assets.references import resolve
from feature_assets.registry import Registry
from feature_assets.training import Manifest, TrainingSet, TrainingSets
from feature_assets.training.manifest import libraries, schema_text


def rebuild(
    name: str,
    *,
    sets: TrainingSets,
    snapshot: Callable[[str], Registry],
    offline: OfflineStore,
    allowed_modules: Sequence[str] = (),
    memory_limit: int | str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TrainingSet:
    """The saved training set, joined anew from its saved spine and compared with what it was.

    Args:
        sets: where it was saved.
        snapshot: the registry with a digest, as `RegistryStore.snapshot` gives it.
        offline: where the history is.
        allowed_modules: modules that on-demand functions may be loaded from.
        memory_limit, progress: as of `historical_features`.

    Raises:
        UnknownTrainingSet: there is none of that name.
        NotReproducible: naming everything that is no longer there, or the columns that come out otherwise.
    """
    manifest = sets.manifest(name)
    gone: list[str] = []
    spine = _spine(sets, manifest, gone)
    question = _Asked(manifest, snapshot, offline, allowed_modules)
    answer = question.again(spine, gone, limit=bytes_of(memory_limit), progress=progress or (lambda _: None))
    if answer is None:
        raise _not_reproducible(name, gone)
    rebuilt = TrainingSet(answer, manifest.question, sets, block_rows=manifest.result.block_rows)
    with _collecting(gone):
        gone += _differences(manifest, rebuilt)
    if gone:
        raise _not_reproducible(name, gone)
    return rebuilt


def _spine(sets: TrainingSets, manifest: Manifest, gone: list[str]) -> Spine | None:
    """The saved spine, whose files are read twice: to see that they are all there, and a piece at a time."""
    found: list[Spine] = []
    with _collecting(gone):
        pieces = (piece.schema for piece in sets.rows(manifest, "spine"))
        schema = next(pieces)
        for _ in pieces:
            pass
        rows = register_io_source(lambda *_: sets.rows(manifest, "spine"), schema=schema)
        found.append(Spine(rows, manifest.question.timestamp_column))
    return found[0] if found else None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A saved question, and where its answer comes from."""

    manifest: Manifest
    snapshot: Callable[[str], Registry]
    offline: OfflineStore
    allowed_modules: Sequence[str]

    def again(
        self, spine: Spine | None, gone: list[str], *, limit: int | None, progress: Callable[[Progress], None]
    ) -> Answer | None:
        """The question asked again; None, with the reasons among those of `gone`, if it cannot be."""
        question, answer = self.manifest.question, None
        with _collecting(gone):
            registry = self.snapshot(question.registry)
            plan = resolve(registry, question.features, full_feature_names=question.full_feature_names)
            pinned: dict[str, Pinned] = {}
            for read in plan.reads:
                with _collecting(gone):
                    pinned.update(pin([read.view], self.offline, question.tables))
            if spine is not None and not gone:
                answer = Answer(
                    plan,
                    spine,
                    pinned,
                    created_cutoff=question.created_cutoff,
                    open_engine=engine_named(question.engine),
                    allowed_modules=self.allowed_modules,
                    memory_limit=limit,
                    progress=progress,
                )
        return answer


def _differences(manifest: Manifest, rebuilt: TrainingSet) -> list[str]:
    was, now = manifest.result, rebuilt.manifest.result
    odd = [name for name, digest in was.columns.items() if now.columns.get(name) != digest]
    dtypes = schema_text(rebuilt.schema)
    odd += [name for name, dtype in manifest.schema.items() if dtypes.get(name) != dtype and name not in odd]
    if now.rows == was.rows and not odd:
        return []
    found = [
        f"{'column' if len(odd) == 1 else 'columns'} {', '.join(odd) or 'none'} of {len(was.columns)} came out otherwise"
    ]
    present = libraries()
    changed = [
        f"{each} {old} → {present.get(each)}" for each, old in manifest.libraries.items() if present.get(each) != old
    ]
    found.append(
        f"libraries have changed since: {', '.join(changed)}"
        if changed
        else "libraries are the same, so a history or an on-demand function's surroundings must have changed"
    )
    return found


@contextmanager
def _collecting(gone: list[str]) -> Iterator[None]:
    """What says that something is not there any more goes to the list, to be told together."""
    try:
        yield
    except (NotReproducible, RegistryError, StoreError, TransformationRefused, FileNotFoundError) as error:
        gone.append(str(error).rstrip("."))


def _not_reproducible(name: str, gone: Sequence[str]) -> FeatureAssetsError:
    return NotReproducible(
        f"Training set '{name}' cannot be rebuilt: {'; '.join(gone)}. "
        f"As far as its files are there, its rows are still read as they were saved: store.training_set('{name}')."
    )
