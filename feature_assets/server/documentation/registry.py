"""Registry snapshots, their history, and the search for features."""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field


class RegistrySnapshot(BaseModel):
    """All that is declared: views, on-demand views, services and sources by name."""

    model_config = ConfigDict(extra="allow")

    format: int
    views: dict[str, Any]
    superseded: dict[str, Any]
    on_demand: dict[str, Any]
    services: dict[str, Any]
    sources: dict[str, Any]
    owners: dict[str, str]


class RegistryEntry(BaseModel):
    """One move of the registry: which snapshot came into force, when and by whom."""

    sequence: int
    digest: str
    previous: str | None = None
    withdrawn: str | None = None
    published_at: str
    action: str = "publish"
    by: str
    location: str = ""
    message: str = ""


class RegistryHistory(BaseModel):
    """The moves, the last one first."""

    entries: list[RegistryEntry]


class RegistryChange(BaseModel):
    """One difference, and what it means for data."""

    action: str
    kind: str
    name: str
    detail: str
    meaning: str
    breaking: bool


class RegistryDiff(BaseModel):
    """What lies between two snapshots."""

    from_: str = Field(alias="from")
    to: str
    changes: list[RegistryChange]


IF_MATCH: Final = {
    "name": "If-Match",
    "in": "header",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
    "description": "The ETag of what is to be in force until now, or `*`.",
}


class RollbackRequest(BaseModel):
    """Where to go back to."""

    model_config = ConfigDict(extra="forbid")

    to: str | int = Field(1, description="A digest or how it begins, or how many moves to go back.")
    message: str = Field("", max_length=1_000, description="Why, for the history.")


class RolledBack(RegistryEntry):
    """The new entry of the history."""

    changed: bool = Field(description="False where it was in force already.")


class FeatureFound(BaseModel):
    """One feature: what it is, how it is looked up, who uses it."""

    feature: str = Field(description="As it is asked for: `view:feature`.")
    view: str
    version: int | None = Field(description="None for what is computed on demand.")
    name: str
    type: str
    description: str
    tags: dict[str, str]
    default: Any
    pii: str | None
    entities: list[str]
    join_keys: dict[str, str]
    ttl_seconds: float | None
    online: bool
    services: list[str]
    owners: list[str]
    location: str


class FeaturesFound(BaseModel):
    """A page of features."""

    features: list[FeatureFound]
    total: int
    page: int
    limit: int
