"""Objects in a bucket: S3, Google Cloud Storage, Azure, or the memory of this process, through obstore."""

import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PreconditionError,
    UnknownConfigurationKeyError,
)
from obstore.store import from_url

from feature_assets.errors import ConfigurationError, StoreError, StoreUnavailable, StoreUnsafe
from feature_assets.objects.protocol import Objects, PutConflict, Stored

_RETRIES: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=20)}
_TIMEOUTS = {"connect_timeout": "5s", "timeout": "20s"}
_CONFLICT = "ConditionalRequestConflict"
_CONFLICT_ATTEMPTS = 6
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")

# Options of the HTTP client. obstore takes them apart from the store's own, and panics on one that is in the wrong place.
_CLIENT_OPTIONS = {
    *("allow_http", "allow_invalid_certificates", "root_certificate"),
    *("connect_timeout", "read_timeout", "timeout", "pool_idle_timeout", "pool_max_idle_per_host"),
    *(
        "http1_only",
        "http2_only",
        "http2_keep_alive_interval",
        "http2_keep_alive_timeout",
        "http2_keep_alive_while_idle",
    ),
    *(
        "proxy_url",
        "proxy_ca_certificate",
        "proxy_excludes",
        "randomize_addresses",
        "default_content_type",
        "user_agent",
    ),
}
# The storage options are shared with the offline store; these are known to Delta alone.
_DELTA_OPTIONS = {
    *("aws_s3_allow_unsafe_rename", "allow_unsafe_rename", "mount_allow_unsafe_rename"),
    *("aws_s3_locking_provider", "delta_dynamo_table_name", "max_retries", "retry_timeout"),
}


class Bucket(Objects):
    """Objects below a bucket's URL. A tag is the store's ETag, with its version where it has one.

    Amazon S3 and Azure compare the ETag in a conditional put, Google Cloud Storage the version.
    """

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self.place = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
        self._store = _opened(url, self.place, options)

    def get(self, path: str) -> Stored | None:
        with self._errors("read", path):
            try:
                answer = obstore.get(self._store, path)
                return Stored(bytes(answer.bytes()), _tag(answer.meta))
            except FileNotFoundError as error:
                _forgive_unless_bucket(error)
                return None

    def changed(self, path: str, etag: str) -> bool:
        with self._errors("look at", path):
            try:
                return _tag(obstore.head(self._store, path)) != etag
            except FileNotFoundError as error:
                _forgive_unless_bucket(error)
                return True

    def put(self, path: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        mode: Any = "create" if if_absent else "overwrite" if if_match is None else _version(if_match)
        with self._errors("write", path):
            for attempt in range(_CONFLICT_ATTEMPTS):
                time.sleep(random.uniform(0, 0.05 * 2**attempt) if attempt else 0)
                try:
                    return _tag(obstore.put(self._store, path, data, mode=mode, use_multipart=False))
                except BaseError as error:
                    # 409: two conditional writes met and S3 refused one without looking at its condition. It is to be
                    # sent again (S3 user guide, "Conditional writes"); obstore calls it AlreadyExists or Generic.
                    if _CONFLICT not in str(error):
                        raise
            raise StoreUnavailable(f"{self.place}: writes to {path} met {_CONFLICT_ATTEMPTS} times. Try again.")

    def delete(self, path: str) -> None:
        with self._errors("delete", path):
            try:
                obstore.delete(self._store, path)
            except FileNotFoundError as error:
                _forgive_unless_bucket(error)

    def list(self, folder: str) -> Sequence[str]:
        with self._errors("list", folder):
            return sorted(meta["path"] for batch in obstore.list(self._store, prefix=folder) for meta in batch)

    @contextmanager
    def _errors(self, action: str, path: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except (AlreadyExistsError, PreconditionError) as error:
            raise PutConflict(f"{self.place}: {path} was changed by another writer.") from error
        except (NotSupportedError, NotImplementedError) as error:
            raise StoreUnsafe(
                f"{self.place} has no conditional writes: {_reason(error)}. "
                "Use a store that has them, and do not switch them off in the storage options."
            ) from error
        except (BaseError, OSError) as error:
            if isinstance(error, FileNotFoundError) or any(code in str(error) for code in _NO_BUCKET):
                raise StoreUnavailable(
                    f"Cannot {action} {path}: there is no bucket at {self.place}. Create it."
                ) from error
            raise StoreUnavailable(
                f"Cannot {action} {path} in {self.place}: {_reason(error)}. Check the address and the credentials."
            ) from error


def _opened(url: str, place: str, options: Mapping[str, str]) -> Any:
    config, client = _sorted_out(options)
    if urlsplit(url).scheme == "memory":
        return from_url("memory:///")
    try:
        return from_url(url, config=config, client_options=client, retry_config=_RETRIES)
    except UnknownConfigurationKeyError as error:
        raise ConfigurationError(f"Storage option for {place}: {_reason(error)}. Remove it or correct it.") from error
    except (BaseError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"Cannot open {place}: {_reason(error)}. "
            "Give a folder, s3://bucket/folder, gs://bucket/folder or az://container/folder."
        ) from error


def _sorted_out(options: Mapping[str, str]) -> tuple[Any, Any]:
    """The store's options, and those of its HTTP client."""
    config: dict[str, str] = {}
    client: dict[str, str] = dict(_TIMEOUTS)
    # The offline store's client reads this one from the environment; obstore reads all others of the kind, and not it.
    if allowed := os.environ.get("AWS_ALLOW_HTTP"):
        client["allow_http"] = allowed
    for name, value in options.items():
        key = name.lower()
        bare = key.removeprefix("aws_").removeprefix("google_").removeprefix("azure_")
        if bare in _CLIENT_OPTIONS:
            client[bare] = value
        elif key not in _DELTA_OPTIONS:
            config[key] = value
    return config, client


def _forgive_unless_bucket(error: FileNotFoundError) -> None:
    """A missing object is an answer; a missing bucket is a mistake, where the store tells the two apart."""
    if any(code in str(error) for code in _NO_BUCKET):
        raise error


def _tag(meta: Any) -> str:
    return f"{meta['e_tag'] or ''} {meta['version'] or ''}".rstrip()


def _version(tag: str) -> dict[str, str]:
    etag, _, version = tag.partition(" ")
    return {name: value for name, value in (("e_tag", etag), ("version", version)) if value}


def _reason(error: Exception) -> str:
    """The first part of an obstore message: below it stands the same again as a Rust structure."""
    text = " ".join(str(error).partition("Debug source")[0].split())
    hint = " (a plain http:// endpoint needs the option AWS_ALLOW_HTTP=true)" if "builder error" in text else ""
    return text.rstrip(". ")[:400] + hint
