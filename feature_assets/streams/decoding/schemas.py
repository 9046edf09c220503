"""Schemas by id, from a schema registry that speaks the REST interface of Confluent's."""

import time
from collections.abc import Callable
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, SchemaRegistryError

from feature_assets.config import Settings
from feature_assets.errors import ConfigurationError, StoreUnavailable
from feature_assets.streams.decoding.framing import FoundSchema, Unreadable

_SECONDS: Final = 10
_UNKNOWN_FOR: Final = 30.0
_REMEMBERED: Final = 1_000
_REFERENCES: Final = 64
_NOT_FOUND: Final = 404


class SchemaRegistry:
    """Asks for schemas. What an id means never changes, so what was found is kept; what was not is asked again later."""

    def __init__(self, settings: Settings) -> None:
        self._place = settings.schema_registry or ""
        if not self._place:
            raise ConfigurationError(
                "Values are framed for a schema registry, and none is set. Set schema_registry to its URL "
                "(FEATURE_ASSETS_SCHEMA_REGISTRY), or give the format a schema."
            )
        if any("@" in urlsplit(url).netloc for url in self._place.split(",")):
            raise ConfigurationError(
                "schema_registry has a user in its URL, which messages repeat. Set it as basic.auth.user.info in "
                "schema_registry_options, as user:password."
            )
        options = {name: value.get_secret_value() for name, value in settings.schema_registry_options.items()}
        waits = {"timeout": _SECONDS, "max.retries": 1, "retries.wait.ms": 100}
        self._options = {"url": self._place, **waits, **options}
        try:
            SchemaRegistryClient(self._options).close()
        except (ValueError, TypeError, OSError) as error:
            raise ConfigurationError(f"schema_registry or schema_registry_options: {error}.") from error
        self._found: dict[int, FoundSchema] = {}
        self._unknown: dict[int, float] = {}

    def schema(self, of: int) -> FoundSchema:
        """The schema with that id.

        Raises:
            Unreadable: the registry has none.
            StoreUnavailable: it cannot be asked now.
        """
        found = self._found.get(of)
        if found is not None:
            return found
        if time.monotonic() - self._unknown.get(of, -_UNKNOWN_FOR) < _UNKNOWN_FOR:
            raise Unreadable(self._no_such(of))
        schema = self._asked(f"schema {of}", lambda client: client.get_schema(of))
        if schema is None:
            if len(self._unknown) >= _REMEMBERED:
                self._unknown.clear()
            self._unknown[of] = time.monotonic()
            raise Unreadable(self._no_such(of))
        texts: dict[str, str] = {}
        self._refer(of, schema, texts)
        found = self._found[of] = FoundSchema(str(schema.schema_type).upper(), str(schema.schema_str), texts)
        return found

    def _refer(self, of: int, schema: Schema, texts: dict[str, str]) -> None:
        for one in schema.references or ():
            name, subject, version = str(one.name), str(one.subject), int(one.version or 1)
            if name in texts:
                continue
            if len(texts) >= _REFERENCES:
                raise Unreadable(f"Schema {of} refers to more than {_REFERENCES} others. Register it in one piece.")
            found = self._asked(f"'{subject}'", partial(_version, subject, version))
            if found is None:
                raise Unreadable(
                    f"Schema {of} refers to '{subject}', version {version}, which the schema registry lacks."
                )
            texts[name] = str(found.schema_str)
            self._refer(of, found, texts)

    def _no_such(self, of: int) -> str:
        return (
            f"The schema registry at {self._place} has no schema {of}, which it names. Write it with a serializer that "
            "registers its schema there."
        )

    def _asked(self, what: str, ask: Callable[[SchemaRegistryClient], Schema]) -> Schema | None:
        try:
            # Ids are asked for once, so that a connection that is kept would be one to close.
            with SchemaRegistryClient(self._options) as client:
                return ask(client)
        except SchemaRegistryError as error:
            if error.http_status_code == _NOT_FOUND:
                return None
            raise self._away(what, f"HTTP {error.http_status_code}: {error.error_message}") from error
        # Its client raises whatever the HTTP library of the day does, and what an answer that is no JSON leads to.
        except Exception as error:
            raise self._away(what, f"{type(error).__name__}: {error}") from error

    def _away(self, what: str, why: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"The schema registry at {self._place} cannot be asked for {what} ({why}). See that it runs, and that "
            "schema_registry_options has the credentials."
        )


def _version(subject: str, version: int, client: SchemaRegistryClient) -> Schema:
    return client.get_version(subject, version).schema
