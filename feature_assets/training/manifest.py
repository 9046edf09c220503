"""What a training set was made of: enough to make it again, and to say what differs if it does not come out alike."""

import platform
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, TypeAlias

import msgspec
import polars as pl

from feature_assets.errors import StoreUnsafe
from feature_assets.spec import Spec, ViewProjection, ViewSpec, from_json
from feature_assets.training.digests import Digests

FORMAT = 1

Kind: TypeAlias = Literal["spine", "features"]

_LIBRARIES = ("feature-assets", "polars", "deltalake")


def table_label(view: ViewSpec) -> str:
    """What a manifest calls the view's table."""
    return f"{view.name}@v{view.version}"


class Question(Spec, frozen=True, kw_only=True, omit_defaults=False):
    """What was asked, of which registry snapshot, at which Delta version of each view ("view@v1")."""

    registry: str
    features: tuple[ViewProjection, ...]
    full_feature_names: bool = False
    created_cutoff: bool = True
    engine: str = "polars"
    timestamp_column: str
    tables: dict[str, int]


class StoredFile(Spec, frozen=True):
    """One Parquet file of a saved set: some rows of the spine's columns, or of the features."""

    path: str
    kind: Kind
    rows: int
    sha256: str


class Manifest(Spec, frozen=True, kw_only=True, omit_defaults=False):
    """What a training set was made of, and digests of what it was.

    `spine` digests the spine's columns and `result` all columns. `files` has what was saved, none of a set that was not.
    """

    format: int = FORMAT
    name: str = ""
    created_at: datetime
    question: Question
    spine: Digests
    result: Digests
    schema: dict[str, str]
    libraries: dict[str, str]
    files: tuple[StoredFile, ...] = ()


def libraries() -> dict[str, str]:
    """The versions of what computes."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def schema_text(schema: pl.Schema) -> dict[str, str]:
    """Each column with its dtype in words, as a manifest has them."""
    return {name: str(dtype) for name, dtype in schema.items()}


def written(manifest: Manifest) -> bytes:
    """The manifest as JSON that a person can read. Not the canonical JSON, which sorts: columns have an order."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2)


def read_manifest(data: bytes, place: str) -> Manifest:
    """What `written` wrote.

    Raises:
        StoreUnsafe: it is damaged, or of a newer release.
    """
    try:
        manifest = from_json(data, Manifest)
    except msgspec.DecodeError as error:
        raise StoreUnsafe(
            f"{place} is no manifest that this release reads: {error}. Restore it from a backup."
        ) from error
    if manifest.format != FORMAT:
        raise StoreUnsafe(f"{place} has format {manifest.format}; this release reads {FORMAT}. Upgrade feature-assets.")
    return manifest
