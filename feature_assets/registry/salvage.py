"""What there is of a registry whose pointer or snapshot is damaged."""

import hashlib
from pathlib import PurePosixPath
from typing import Final

from feature_assets.errors import RequestError
from feature_assets.objects import Objects

LATEST: Final = "latest.json"
SNAPSHOTS: Final = "snapshots"


def whole_snapshots(objects: Objects) -> list[str]:
    """The digests of all snapshots that are as they were written, in force ever or not."""
    stored = {PurePosixPath(path).stem: objects.get(path) for path in objects.list(SNAPSHOTS)}
    return [digest for digest, one in stored.items() if one and hashlib.sha256(one.data).hexdigest() == digest]


def no_way_back(objects: Objects, in_force: str | None, to: int) -> RequestError:
    """Why the history does not go back so far; where what is in force cannot be read either, what can be put in its place.

    Args:
        in_force: the digest of the snapshot that is in force, None where that is not known.
    """
    whole = whole_snapshots(objects)
    if in_force in whole:
        return RequestError(
            f"The history of {objects.place} does not go back {to}. See: feature-assets registry history"
        )
    if not whole:
        return RequestError(
            f"{objects.place} has no snapshot that is whole. Remove {LATEST} there, and publish from each code location. Run: "
            "feature-assets apply"
        )
    return RequestError(
        f"{objects.place} has no move before {LATEST} that could be undone. Snapshots that are whole: "
        f"{', '.join(digest[:12] for digest in whole)}. Put one in force. Run: feature-assets registry rollback {whole[0][:12]}"
    )
