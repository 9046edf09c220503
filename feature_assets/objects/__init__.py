"""Objects by path on a folder or a bucket, with writes that happen only if nobody else wrote."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from feature_assets.objects.folder import Folder
from feature_assets.objects.protocol import Objects, PutConflict, Stored

__all__ = ["Objects", "PutConflict", "Stored", "open_objects"]


def open_objects(place: str | Path, options: Mapping[str, str] | None = None) -> Objects:
    """The objects of a folder (a path or `file://`) or below a bucket's URL (`s3://`, `gs://`, `az://`, `memory://`).

    Nothing is written or asked until it is used. `options` are those of the bucket's client, as region and endpoint;
    without them it reads the environment.

    Raises:
        ConfigurationError: no store is of that kind, or an option is not known to it.
    """
    url = urlsplit(str(place))
    if "://" not in str(place):
        return Folder(Path(place).expanduser())
    if url.scheme == "file":
        return Folder(Path(unquote(url.path)))
    # obstore is a native library that a folder does not need.
    from feature_assets.objects.bucket import Bucket

    return Bucket(str(place), options or {})
