"""Where things are kept and how the server behaves: `feature_assets.toml` and the environment, read into `Settings`.

The environment wins over the file: `FEATURE_ASSETS_ONLINE=sqlite:///tmp/online.db`, and for the server
`FEATURE_ASSETS_SERVER__PORT=8080`. `FEATURE_ASSETS_CONFIG` names another file.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AwareDatetime, BaseModel, ByteSize, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from feature_assets.errors import ConfigurationError
from feature_assets.profiles import with_profile

FILE_NAME = "feature_assets.toml"


class ServerSettings(BaseModel):
    """The feature server. Beyond loopback an issuer and an audience are required."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(6566, ge=0, le=65535)
    issuer: str | None = Field(None, description="A foreign OIDC issuer; without one the embedded issuer serves.")
    audience: str = "feature-assets"
    role_claims: tuple[str, ...] = Field(
        ("roles",), description="Dotted paths of the claims with roles, as resource_access.features.roles."
    )
    group_claims: tuple[str, ...] = Field(("groups",), description="Dotted paths of the claims with groups.")
    introspection_client: str | None = Field(
        None, description="The client as which the server asks the issuer about tokens that are no JWTs."
    )
    introspection_secret: SecretStr | None = None
    introspection_seconds: float = Field(30.0, gt=0, le=3600)
    registry_refresh_seconds: float = Field(2.0, gt=0)
    max_body_bytes: int = Field(1 << 20, gt=0)
    max_keys: int = Field(1_000, gt=0)
    max_features: int = Field(500, gt=0)
    max_views: int = Field(64, gt=0)
    requests_per_second: float | None = Field(None, gt=0, description="What one client may ask, in each process.")
    burst: float | None = Field(None, ge=1, description="What it may ask at once; a second's worth if not set.")
    total_requests_per_second: float | None = Field(None, gt=0, description="The same for all clients together.")
    max_spine_bytes: int = Field(256 << 20, gt=0, description="Of the file that comes with a historical request.")
    history_workers: int = Field(2, gt=0, description="Training sets that a server process computes at once.")
    history_seconds: float = Field(600.0, gt=0, description="How long one of them may take.")
    history_max_bytes: int = Field(4 << 30, gt=0, description="How large one of them may be.")
    history_max_memory_bytes: int = Field(4 << 30, gt=0, description="How much memory one of them may take.")
    dagster_url: str | None = Field(
        None, description="The Dagster webserver that materialises when asked to over HTTP."
    )
    dagster_headers: dict[str, SecretStr] = Field({}, description="What it wants to be sent, as a token.")
    materialize_seconds: float = Field(600.0, gt=0, description="How long a request waits for a materialisation.")
    body_timeout_seconds: float = Field(15.0, gt=0, description="How long a body may pause, or be too slow.")
    body_min_bytes_per_second: float = Field(
        16_384.0, gt=0, description="How fast a body has to come that takes longer than that."
    )
    tls_certificate: str | None = Field(None, description="File of the certificate for TLS and those above it, PEM.")
    tls_key: str | None = Field(None, description="File of its key, PEM, without a password.")
    log: Literal["text", "json"] = "text"
    audit: str | None = Field(None, description='A file for the audit log, or "stderr".')
    openapi: bool | None = Field(None, description="Whether to show what the routes are; on loopback only if not set.")
    token_lifetime_seconds: int = Field(3600, gt=0, le=86_400)
    feature_log_seconds: float = Field(5.0, gt=0, description="How often what services log is written.")
    feature_log_max_bytes: int = Field(64 << 20, gt=0, description="Of answers that wait for it; more are dropped.")
    metrics: Literal["admin", "loopback"] = Field(
        "admin", description="Who may see /metrics: a token with that scope, or besides it whoever is on this machine."
    )

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if (self.introspection_client is None) != (self.introspection_secret is None):
            raise ValueError("introspection_client and introspection_secret go together; set both, or neither")
        if self.introspection_client is not None and self.issuer is None:
            raise ValueError("introspection_client is known to a foreign issuer only; set issuer too")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together; set both, or neither")
        return self


class StreamSettings(BaseModel):
    """Consumers of streams. A batch is published when it has so many rows or bytes, or its first record is so old."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(20_000, gt=0, description="What a batch has at most.")
    bytes: int = Field(16 << 20, gt=0, description="The same in bytes of keys, values and headers.")
    seconds: float = Field(0.5, ge=0, description="How long a batch gathers records.")
    on_lost: Literal["stop", "skip"] = Field(
        "stop", description="Whether to go on where a stream no longer has what was to be read next."
    )
    dead_letter_bytes: int = Field(64 << 10, ge=0, description="What is kept of the value of a record that is no row.")
    dead_letter_days: int = Field(30, gt=0, description="How long such records are kept.")
    connections: dict[str, dict[str, SecretStr]] = Field(
        {}, description="What leads to a log, by the name that sources call it; of Kafka the properties of librdkafka."
    )


def checked(server: ServerSettings, given: Mapping[str, Any]) -> ServerSettings:
    """The settings with some of them given otherwise.

    Raises:
        ConfigurationError: they do not go together so.
    """
    changed = server.model_copy(update=dict(given))
    try:
        ServerSettings.model_validate(changed.model_dump())
    except ValidationError as error:
        raise ConfigurationError(" ".join(f"{one['msg']}." for one in error.errors(include_url=False))) from error
    return changed


class Settings(BaseSettings):
    """Where the platform keeps things. Relative paths are relative to the file that names them."""

    model_config = SettingsConfigDict(
        env_prefix="FEATURE_ASSETS_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    root: Path = Field(default_factory=Path.cwd, description="What relative paths start from.")
    offline: str = Field(".feature_assets/offline", description="Folder or object-store URL of the Delta tables.")
    online: str = Field("sqlite:.feature_assets/online.db", description="URL of the online store.")
    registry: str = Field(".feature_assets/registry", description="Folder or object-store URL of the registry.")
    training: str = Field(".feature_assets/training", description="Folder or object-store URL of saved training sets.")
    memory_limit: ByteSize | None = Field(
        None,
        ge=100_000_000,
        description="How much memory joining a training set may take, as '4GB'; as it needs if not set.",
    )
    ray_address: str | None = Field(None, description="The Ray cluster of engine='daft-ray'; the one here if not set.")
    scratch: str | None = Field(
        None,
        description="Folder or URL of what is joined for an engine, the same for all hosts; the temporary one if not set.",
    )
    push: str = Field(".feature_assets/push", description="Local folder of the journals of pushed rows.")
    push_interval_seconds: float = Field(
        0.5, ge=0, description="How long a view that is pushed to all the time gathers rows for one commit."
    )
    push_backlog_bytes: int = Field(
        1 << 30, gt=0, description="How much may wait in a journal while a store is away; then pushes are refused."
    )
    schema_registry: str | None = Field(None, description="URL of the schema registry that has the schemas of streams.")
    schema_registry_options: dict[str, SecretStr] = Field(
        {}, description="What its client needs beside, as basic.auth.user.info."
    )
    secrets: str = Field(".feature_assets/auth", description="Folder of the embedded issuer's keys and clients.")
    location: str = Field("default", description="The code location that owns what this project publishes.")
    definitions: str = Field("definitions.py", description="The file or module with the Dagster definitions.")
    functions: tuple[str, ...] = Field((), description="Modules that on-demand functions may be loaded from.")
    storage_options: dict[str, SecretStr] = Field(
        {}, description="Options of the object store, as region and endpoint."
    )
    durability: Literal["power-loss", "process"] = Field(
        "power-loss",
        description="What an acknowledged write survives; 'process' saves the fsyncs of local Delta tables.",
    )
    present: AwareDatetime | None = Field(
        None, description="The moment that ttl counts from, instead of the clock's: for a replay of old data."
    )
    server: ServerSettings = ServerSettings()
    stream: StreamSettings = StreamSettings()

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """The settings of the nearest `feature_assets.toml`, from here upward, and of the environment.

        Raises:
            ConfigurationError: the file is missing though named, or a setting is unknown or wrong.
        """
        named = path or os.environ.get("FEATURE_ASSETS_CONFIG")
        file = Path(named).resolve() if named else nearest_file(Path.cwd())
        if named and file is not None and not file.is_file():
            raise ConfigurationError(f"The configuration file {file} is not there. Run: feature-assets init")
        reader = _reader(cls, file)
        try:
            return reader(**({"root": file.parent} if file else {}))  # type: ignore[no-any-return]
        except (ValidationError, ValueError) as error:
            raise ConfigurationError(_explained(error, file)) from error

    def place(self, location: str) -> str:
        """An absolute path, or the URL as it is, for a setting that may be either."""
        if "://" in location:
            return location
        return str((self.root / Path(location).expanduser()).resolve())

    @property
    def online_url(self) -> str:
        """The online store's URL with an absolute path."""
        scheme, _, rest = self.online.partition(":")
        if scheme != "sqlite":
            return self.online
        return f"sqlite:{self.place(urlsplit(self.online).path if rest.startswith('//') else rest)}"

    def storage(self) -> dict[str, str]:
        """The options of the object store in clear, for its client only; with those of the AWS profile in use.

        Raises:
            ConfigurationError: the profile is not there, or its credentials cannot be had.
        """
        given = {name: value.get_secret_value() for name, value in self.storage_options.items()}
        return with_profile(given, (self.offline, self.registry, self.training))


def nearest_file(start: Path) -> Path | None:
    """The `feature_assets.toml` of that folder, or of the nearest one above it."""
    return next((folder / FILE_NAME for folder in (start, *start.parents) if (folder / FILE_NAME).is_file()), None)


def _reader(cls: type[Settings], file: Path | None) -> Any:
    class Reader(cls):  # type: ignore[misc, valid-type]
        """`Settings` that also read the file: pydantic-settings fixes the sources per class."""

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **sources: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            toml = (TomlConfigSettingsSource(settings_cls, file),) if file else ()
            return (sources["env_settings"], *toml, init_settings)

    return Reader


_ROOMS: Mapping[str, type[BaseModel]] = {"server": ServerSettings, "stream": StreamSettings}


def _explained(error: Exception, file: Path | None) -> str:
    if isinstance(error, tomllib.TOMLDecodeError):
        return f"{file} is not TOML: {error}."
    if isinstance(error, UnicodeDecodeError):
        return f"{file} is not TOML: it is not text in UTF-8."
    if not isinstance(error, ValidationError):
        return f"{file or 'the environment'}: {error}"
    lines = []
    for found in error.errors(include_url=False, include_input=False):
        parts = [str(part) for part in found["loc"]]
        name, variable = ".".join(parts), f"FEATURE_ASSETS_{'__'.join(parts)}".upper()
        # The environment wins over the file, so a variable that is set is the one that is wrong.
        place = variable if variable in os.environ else f"{file or 'the environment'}: '{name}'"
        if found["type"] == "extra_forbidden":
            known = _ROOMS.get(parts[0], Settings)
            lines.append(f"{place} is not a setting. Known: {', '.join(sorted(known.model_fields))}.")
        else:
            lines.append(f"{place}: {found['msg']}.")
    return " ".join(lines)
