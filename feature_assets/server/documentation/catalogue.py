"""What the routes in the shape of Feast's registry server answer."""

from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model


class RegistryObject(BaseModel):
    """An object as Feast's registry server describes it: most have `spec` and `meta`, sources and features do not."""

    model_config = ConfigDict(extra="allow")


class RegistryPage(BaseModel):
    """Which part of the whole this is."""

    page: int
    limit: int
    totalCount: int  # noqa: N815 (Feast's name, as those below)
    totalPages: int  # noqa: N815
    hasNext: bool  # noqa: N815
    hasPrevious: bool  # noqa: N815


class RelationEnd(BaseModel):
    """One of two things that belong together."""

    type: str
    name: str


class RegistryRelation(BaseModel):
    """`source` goes into `target`."""

    source: RelationEnd
    target: RelationEnd
    project: str | None = None


class Relationships(BaseModel):
    """What one object goes into and is made of."""

    relationships: list[RegistryRelation]
    pagination: RegistryPage


class Lineage(BaseModel):
    """What goes into what, in one step and in several."""

    relationships: list[RegistryRelation]
    indirect_relationships: list[RegistryRelation]
    relationships_pagination: RegistryPage | None = None
    indirect_relationships_pagination: RegistryPage | None = None


class Complete(BaseModel):
    """All objects by collection, and what goes into what."""

    project: str
    objects: dict[str, list[RegistryObject]]
    relationships: list[RegistryRelation]
    indirectRelationships: list[RegistryRelation]  # noqa: N815 (Feast's name)
    pagination: dict[str, RegistryPage]


class CompleteAll(BaseModel):
    """The same for each code location."""

    projects: list[Complete]


class Hit(BaseModel):
    """One object that a search found."""

    type: str
    name: str
    description: str
    project: str
    matched_tags: dict[str, str]
    match_score: float = Field(description="100 by name, 80 by description, 60 by tag, less where it is only similar.")
    featureView: str | None = None  # noqa: N815 (Feast's name)


class Found(BaseModel):
    """What a search found."""

    query: str
    projects_searched: list[str]
    results: list[Hit]
    pagination: RegistryPage
    errors: list[str]


@cache
def registry_list(key: str) -> type[BaseModel]:
    """A page of objects, with them under that key."""
    fields: dict[str, Any] = {
        key: (list[RegistryObject], ...),
        "pagination": (RegistryPage, ...),
        "relationships": (dict[str, list[RegistryRelation]] | None, None),
    }
    name = f"{key[0].upper()}{key[1:]}Listed"
    return create_model(name, __doc__="A page of a list.", **fields)
