"""What the URL of the store says: `dynamodb:features?region=eu-central-1&recovery=true`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import parse_qsl

from feature_assets.errors import ConfigurationError

_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_EXAMPLE = "dynamodb:features?region=eu-central-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where the tables lie and how they are made.

    `prefix` begins the name of every table. `region` and `endpoint` are else found by the usual AWS chain, as are the
    credentials. `consistent` reads see every write that was answered, and cost twice as much. With `expire` DynamoDB
    deletes what is past its view's ttl by two days. With `read_units` and `write_units` capacity is provisioned, else it
    is on demand. `recovery` asks for point-in-time recovery, `key` for encryption with that KMS key, `tags` are put on
    every table (`tags=team:risk,stage:prod`). `concurrency` bounds the calls that one process has under way for one
    publication, or for one lookup of more than a hundred keys; `lookups` the lookups that wait at once.
    """

    prefix: str
    region: str | None = None
    endpoint: str | None = None
    consistent: bool = False
    expire: bool = True
    read_units: int | None = None
    write_units: int | None = None
    recovery: bool = False
    key: str | None = None
    tags: Mapping[str, str]
    concurrency: int = 32
    lookups: int = 128

    @classmethod
    def of(cls, url: str) -> "Location":
        """What a URL says.

        Raises:
            ConfigurationError: there is no prefix, or an option is unknown or wrong.
        """
        prefix, _, query = url.removeprefix("dynamodb:").removeprefix("//").partition("?")
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(
                f"'{url}' has no prefix for the names of its tables. Write it behind the scheme, as in {_EXAMPLE}"
            )
        given = dict(parse_qsl(query, keep_blank_values=True))
        known = {field.name: field for field in fields(cls) if field.name != "prefix"}
        options: dict[str, Any] = {"tags": {}}
        for name, text in given.items():
            if name not in known:
                raise ConfigurationError(f"'{url}': '{name}' is no option. Known: {', '.join(known)}.")
            options[name] = _read(url, name, text)
        if (options.get("read_units") is None) != (options.get("write_units") is None):
            raise ConfigurationError(f"'{url}': provisioned capacity needs both read_units and write_units.")
        return cls(prefix=prefix, **options)


def _read(url: str, name: str, text: str) -> Any:
    if name in ("consistent", "expire", "recovery"):
        if text not in ("true", "false"):
            raise ConfigurationError(f"'{url}': {name} is true or false, and not '{text}'.")
        return text == "true"
    if name in ("read_units", "write_units", "concurrency", "lookups"):
        if not text.isdecimal() or not 0 < int(text) <= 40_000:
            raise ConfigurationError(f"'{url}': {name} is a number from 1 to 40000, and not '{text}'.")
        return int(text)
    if name == "tags":
        pairs = [pair.partition(":") for pair in text.split(",") if pair]
        if not all(tag and colon for tag, colon, _ in pairs):
            raise ConfigurationError(f"'{url}': tags are name:value, with commas between them.")
        return {tag: value for tag, _, value in pairs}
    if not text:
        raise ConfigurationError(f"'{url}': {name} is empty.")
    return text
