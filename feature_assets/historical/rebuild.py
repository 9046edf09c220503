"""A saved training set, made again from its manifest: the same to the bit, or an error that says what is gone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import polars as pl

from feature_assets.errors import (
    FeatureAssetsError,
    NotReproducible,
    RegistryError,
    StoreError,
    TransformationRefused,
)
from feature_assets.historical.answer import Answer, Pinned, pin
from feature_assets.historical.spine import Spine
from feature_assets.joins import engine_named
from feature_assets.offline import OfflineStore
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
) -> TrainingSet:
    """The saved training set, joined anew from its saved spine and compared with what it was.

    Args:
        sets: where it was saved.
        snapshot: the registry with a digest, as `RegistryStore.snapshot` gives it.
        offline: where the history is.
        allowed_modules: modules that on-demand functions may be loaded from.

    Raises:
        UnknownTrainingSet: there is none of that name.
        NotReproducible: naming everything that is no longer there, or the columns that come out otherwise.
    """
    manifest = sets.manifest(name)
    gone: list[str] = []
    spine = _spine(sets, manifest, gone)
    answer = _answer(manifest, spine, snapshot, offline, allowed_modules, gone)
    if answer is None:
        raise _not_reproducible(name, gone)
    rebuilt = TrainingSet(answer, manifest.question, sets)
    with _collecting(gone):
        gone += _differences(manifest, rebuilt)
    if gone:
        raise _not_reproducible(name, gone)
    return rebuilt


def _spine(sets: TrainingSets, manifest: Manifest, gone: list[str]) -> pl.DataFrame | None:
    pieces: list[pl.DataFrame] = []
    with _collecting(gone):
        pieces.extend(sets.rows(manifest, "spine"))
    return pl.concat(pieces) if pieces else None


def _answer(
    manifest: Manifest,
    spine: pl.DataFrame | None,
    snapshot: Callable[[str], Registry],
    offline: OfflineStore,
    allowed_modules: Sequence[str],
    gone: list[str],
) -> Answer | None:
    """The question asked again; None, with the reasons among those of `gone`, if it cannot be."""
    question, answer = manifest.question, None
    with _collecting(gone):
        registry = snapshot(question.registry)
        plan = resolve(registry, question.features, full_feature_names=question.full_feature_names)
        pinned: dict[str, Pinned] = {}
        for read in plan.reads:
            with _collecting(gone):
                pinned.update(pin([read.view], offline, question.tables))
        if spine is not None and not gone:
            answer = Answer(
                plan,
                Spine(spine, question.timestamp_column),
                pinned,
                created_cutoff=question.created_cutoff,
                open_engine=engine_named(question.engine),
                allowed_modules=allowed_modules,
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
