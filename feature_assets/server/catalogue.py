"""What is published, in the shape of Feast's registry server: everything below /api/v1.

Each caller sees the part of the registry that its token may know, as if there were no more. The registry is derived from
the asset graph, so that it is read here and never written.
"""

from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, FastAPI, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from feature_assets.access import KNOW, Principal
from feature_assets.config import Settings
from feature_assets.errors import UnknownName
from feature_assets.registry.narrowing import narrowed, views_behind
from feature_assets.server import documentation as pages
from feature_assets.server.descriptions import Described, Json, Listed, Relation, indirect, relations
from feature_assets.server.routing import Callers, ProblemRoute, as_json
from feature_assets.server.serving import Serving, Snapshot
from feature_assets.training import TrainingSets
from feature_assets.training.manifest import Manifest
from feature_assets.types import rfc3339

PREFIX: Final = "/api/v1"
"""Where Feast's registry server has its routes."""

NOT_WRITTEN: Final = (
    "The registry is derived from the asset graph and is not written here. Change the definitions and run: "
    "feature-assets apply"
)

_PER_PAGE: Final = 50
_SIMILAR: Final = 0.75

Kind = Literal["entity", "dataSource", "featureView", "featureService", "feature", "savedDataset"]


class CatalogueRoute(ProblemRoute):
    """A route that refuses as Feast's registry server does."""

    dialect = "feast registry"


class Page(BaseModel):
    """Which part of a list. Without page and limit it is the whole list."""

    page: int | None = Field(None, ge=1, le=1_000_000, description="From 1 on.")
    limit: int | None = Field(None, ge=1, le=100, description="Objects of a page; 50 if only a page is given.")
    sort_by: Literal["name", "project", "description"] | None = Field(
        None, description="As they are listed, if left out."
    )
    sort_order: Literal["asc", "desc"] = "asc"

    def cut(self, listed: Sequence[Listed], *, always: bool = False) -> tuple[list[Listed], Json]:
        """The objects of the page, and what Feast tells of pages."""
        key = self.sort_by
        if key is not None:
            listed = sorted(listed, key=lambda one: str(getattr(one, key)), reverse=self.sort_order == "desc")
        return self.window(listed, always=always)

    def window(self, listed: Sequence[Any], *, always: bool = False) -> tuple[list[Any], Json]:
        """The same in the order that is given."""
        whole = self.page is None and self.limit is None and not always
        page, limit = (1, len(listed) or 1) if whole else (self.page or 1, self.limit or _PER_PAGE)
        start, pages_ = (page - 1) * limit, -(-len(listed) // limit)
        found = {"page": page, "limit": limit, "totalCount": len(listed), "totalPages": pages_}
        found |= {"hasNext": start + limit < len(listed), "hasPrevious": page > 1}
        return list(listed[start : start + limit]), found


class Listing(Page):
    """What of a collection is wanted."""

    project: str | None = Field(None, max_length=200, description="Only what this code location declares.")
    tags: list[Annotated[str, Field(pattern=r"^[^:]+:", max_length=400)]] = Field(
        [], max_length=20, description="Only what has this tag, as `team:risk`; may be repeated, and all must be there."
    )
    include_relationships: bool = Field(default=False, description="What each goes into, and is made of.")

    def of(self, listed: Iterable[Listed]) -> list[Listed]:
        """Those that are wanted, of all pages."""
        tags = [tag.partition(":")[::2] for tag in self.tags]
        return [
            one
            for one in listed
            if self.project in (None, one.project) and all(one.tags.get(name) == value for name, value in tags)
        ]


class FeatureListing(Listing):
    """What of the features is wanted."""

    feature_view: str | None = Field(None, max_length=200)
    name: str | None = Field(None, max_length=200)

    def of(self, listed: Iterable[Listed]) -> list[Listed]:
        """Those that are wanted, of all pages."""
        return [
            one
            for one in super().of(listed)
            if self.name in (None, one.name) and self.feature_view in (None, one.body["featureView"])
        ]


class LineageOf(Page):
    """Which relations are wanted."""

    project: str | None = Field(None, max_length=200, description="Only what this code location declares.")
    filter_object_type: Kind | None = None
    filter_object_name: str | None = Field(None, max_length=200)

    def of(self, found: Iterable[Relation]) -> list[Relation]:
        """The relations that have such an object at one of their ends."""
        kind, name = self.filter_object_type, self.filter_object_name
        return [one for one in found if any(kind in (None, end[0]) and name in (None, end[1]) for end in one)]


class Search(Page):
    """What is searched for."""

    query: str = Field("", max_length=200)
    projects: list[str] = Field([], max_length=100)
    tags: list[Annotated[str, Field(pattern=r"^[^:]+:", max_length=400)]] = Field([], max_length=20)
    sort_by: Literal["match_score", "name", "type"] = "match_score"  # type: ignore[assignment]
    sort_order: Literal["asc", "desc"] = "desc"


class Catalogue:
    """The registry as one caller may know it."""

    def __init__(self, snapshot: Snapshot, principal: Principal, settings: Settings) -> None:
        self.registry = narrowed(snapshot.registry, lambda view: principal.grant.allows(KNOW, view))
        self.described = Described(self.registry, snapshot.published_at)
        self.headers = {"x-feature-registry": snapshot.digest}
        self._settings = settings

    def listed(self, collection: str, project: str | None = None) -> list[Listed]:
        """All objects of a collection."""
        found = self.saved_datasets() if collection == "saved_datasets" else getattr(self.described, collection)()
        return [one for one in found if project in (None, one.project)]

    def saved_datasets(self) -> list[Listed]:
        """Saved training sets of views that may be known, by name."""
        sets = TrainingSets(self._settings.place(self._settings.training), self._settings.storage())
        return [found for name in sets.names() if (found := self._saved(name, sets.manifest(name))) is not None]

    def _saved(self, name: str, manifest: Manifest) -> Listed | None:
        features = manifest.question.features
        known = {*self.registry.views, *self.registry.on_demand}
        if not views_behind(self.registry, features) <= known:
            return None
        at = rfc3339(manifest.created_at)
        spec = {
            "name": name,
            "features": [f"{one.view}:{feature}" for one in features for feature in one.features or ("*",)],
            "joinKeys": [column for column in manifest.spine.columns if column != manifest.question.timestamp_column],
            "fullFeatureNames": manifest.question.full_feature_names,
            "registry": manifest.question.registry,
            "tables": manifest.question.tables,
        }
        body = {"spec": spec, "meta": {"createdTimestamp": at, "lastUpdatedTimestamp": at}}
        return Listed("savedDataset", name, self.registry.owner(features[0].view), "", {}, body)

    def relations(self, project: str | None = None) -> list[Relation]:
        """What goes into what, one step each."""
        found = relations(self.registry)
        if project is None:
            return found
        ours = {(one.kind, one.name) for room in _COLLECTIONS for one in self.listed(room, project)}
        return [one for one in found if one.target in ours]

    def require(self, project: str | None) -> None:
        """Refuse a code location that is not there, or is not known.

        Raises:
            UnknownName: it is not.
        """
        names = [one["spec"]["name"] for one in self.described.projects()]
        if project not in (None, *names):
            raise UnknownName.of("project", str(project), names)


_COLLECTIONS: Final[dict[str, tuple[str, type[Listing]]]] = {
    "entities": ("entities", Listing),
    "data_sources": ("dataSources", Listing),
    "feature_views": ("featureViews", Listing),
    "feature_services": ("featureServices", Listing),
    "saved_datasets": ("savedDatasets", Listing),
    "features": ("features", FeatureListing),
}


def add_to(app: FastAPI, serving: Serving, callers: Callers, settings: Settings) -> None:
    """Add the routes."""
    router = APIRouter(
        prefix=PREFIX,
        route_class=CatalogueRoute,
        tags=["registry, as Feast has it"],
        responses=pages.registry_refusals(400, 401, 403, 404, 422, 429, 500, 503),
    )

    def catalogue(principal: Principal) -> Catalogue:
        return Catalogue(serving.current, principal, settings)

    for collection in _COLLECTIONS:
        _add_collection(router, collection, catalogue, callers)
    _add_feature(router, catalogue, callers)
    _add_projects(router, catalogue, callers)
    _add_lineage(router, catalogue, callers)
    _add_search(router, catalogue, callers)
    app.include_router(router)


Open = Callable[[Principal], Catalogue]


def _add_collection(router: APIRouter, collection: str, catalogue: Open, callers: Callers) -> None:
    key, wanted = _COLLECTIONS[collection]

    def list_(asked: Annotated[Any, Query()], principal: Annotated[Any, callers.who_may(KNOW)]) -> Response:
        of = catalogue(principal)
        of.require(asked.project)
        page, found = asked.cut(asked.of(of.listed(collection)))
        return _answer(of, key, page, found, [one.body for one in page], related=asked.include_relationships)

    def list_all(asked: Annotated[Any, Query()], principal: Annotated[Any, callers.who_may(KNOW)]) -> Response:
        of = catalogue(principal)
        page, found = asked.cut(asked.of(of.listed(collection)), always=True)
        bodies = [{**one.body, "project": one.project} for one in page]
        return _answer(of, key, page, found, bodies, related=asked.include_relationships)

    for function in (list_, list_all):
        function.__annotations__["asked"] = Annotated[wanted, Query()]
    what = collection.replace("_", " ")
    answers: Any = {200: {"model": pages.registry_list(key)}}
    router.get(f"/{collection}", name=f"list_{collection}", summary=f"List {what}", responses=answers)(list_)
    router.get(f"/{collection}/all", name=f"list_all_{collection}", summary=f"List {what}, with their projects",
               responses=answers)(list_all)  # fmt: skip
    if collection != "features":
        _add_one(router, collection, catalogue, callers)


def _add_one(router: APIRouter, collection: str, catalogue: Open, callers: Callers) -> None:
    what = collection.replace("_", " ").removesuffix("s").replace("entitie", "entity")

    @router.get(
        f"/{collection}/{{name}}",
        name=f"get_{collection}",
        summary=f"Show one {what}",
        responses={200: {"model": pages.RegistryObject}},
    )
    def get(
        name: str,
        principal: Annotated[Any, callers.who_may(KNOW)],
        project: str | None = None,
        include_relationships: bool = False,  # noqa: FBT001, FBT002 (a query parameter)
    ) -> Response:
        of = catalogue(principal)
        of.require(project)
        known = {one.name: one for one in of.listed(collection, project)}
        if name not in known:
            raise UnknownName.of(what, name, list(known))
        return _one(of, known[name], related=include_relationships)


def _add_feature(router: APIRouter, catalogue: Open, callers: Callers) -> None:
    @router.get(
        "/features/{feature_view}/{name}",
        summary="Show one feature",
        responses={200: {"model": pages.RegistryObject}},
    )
    def get_feature(
        feature_view: str,
        name: str,
        principal: Annotated[Any, callers.who_may(KNOW)],
        project: str | None = None,
        include_relationships: bool = False,  # noqa: FBT001, FBT002 (a query parameter)
    ) -> Response:
        of = catalogue(principal)
        of.require(project)
        known = {(one.body["featureView"], one.name): one for one in of.listed("features", project)}
        if (feature_view, name) not in known:
            raise UnknownName.of("feature", f"{feature_view}:{name}", [":".join(one) for one in known])
        return _one(of, known[feature_view, name], related=include_relationships)


def _add_projects(router: APIRouter, catalogue: Open, callers: Callers) -> None:
    @router.get("/projects", summary="List code locations", responses={200: {"model": pages.registry_list("projects")}})
    def list_projects(asked: Annotated[Page, Query()], principal: Annotated[Any, callers.who_may(KNOW)]) -> Response:
        of = catalogue(principal)
        found, page = asked.window(of.described.projects())
        return as_json({"projects": found, "pagination": page}, headers=of.headers)

    @router.get("/projects/{name}", summary="Show one code location", responses={200: {"model": pages.RegistryObject}})
    def get_project(name: str, principal: Annotated[Any, callers.who_may(KNOW)]) -> Response:
        of = catalogue(principal)
        known = {one["spec"]["name"]: one for one in of.described.projects()}
        if name not in known:
            raise UnknownName.of("project", name, list(known))
        return as_json(known[name], headers=of.headers)


def _add_lineage(router: APIRouter, catalogue: Open, callers: Callers) -> None:
    answers: Any = {200: {"model": pages.Lineage}}

    def lineage(asked: LineageOf, principal: Principal) -> tuple[Catalogue, list[Relation], list[Relation]]:
        of = catalogue(principal)
        of.require(asked.project)
        direct = of.relations(asked.project)
        return of, asked.of(direct), asked.of(indirect(direct))

    @router.get("/lineage/registry", summary="What goes into what", responses=answers)
    def get_lineage(asked: Annotated[LineageOf, Query()], principal: Annotated[Any, callers.who_may(KNOW)]) -> Response:
        of, direct, by_way = lineage(asked, principal)
        found, page = asked.window(direct)
        more, more_page = asked.window(by_way)
        answer = {
            "relationships": [one.body() for one in found],
            "indirect_relationships": [one.body() for one in more],
            "relationships_pagination": page,
            "indirect_relationships_pagination": more_page,
        }
        return as_json(answer, headers=of.headers)

    @router.get("/lineage/registry/all", summary="What goes into what, of all code locations", responses=answers)
    def get_lineage_all(
        asked: Annotated[LineageOf, Query()], principal: Annotated[Any, callers.who_may(KNOW)]
    ) -> Response:
        of, direct, by_way = lineage(asked, principal)
        places = {(one.kind, one.name): one.project for room in _COLLECTIONS for one in of.listed(room)}

        def placed(found: Iterable[Relation]) -> list[Json]:
            return [{**one.body(), "project": places.get(one.target, "")} for one in found]

        answer = {"relationships": placed(direct), "indirect_relationships": placed(by_way)}
        return as_json(answer, headers=of.headers)

    @router.get(
        "/lineage/objects/{object_type}/{object_name}",
        summary="What one object goes into and is made of",
        responses={200: {"model": pages.Relationships}},
    )
    def get_object_lineage(
        object_type: Kind,
        object_name: str,
        asked: Annotated[Page, Query()],
        principal: Annotated[Any, callers.who_may(KNOW)],
        include_indirect: bool = False,  # noqa: FBT001, FBT002 (a query parameter)
    ) -> Response:
        of = catalogue(principal)
        found, page = asked.window(_related(of, (object_type, object_name), by_way=include_indirect))
        answer = {"relationships": [one.body() for one in found], "pagination": page}
        return as_json(answer, headers=of.headers)

    _add_complete(router, catalogue, callers)


def _add_complete(router: APIRouter, catalogue: Open, callers: Callers) -> None:
    def whole(of: Catalogue, asked: Page, project: str | None, *, placed: bool = False) -> Json:
        objects, shown = {}, {}
        for collection, (key, _) in _COLLECTIONS.items():
            page, shown[key] = asked.cut(of.listed(collection, project))
            objects[key] = [{**one.body, "project": one.project} if placed else one.body for one in page]
        direct = of.relations(project)
        both = {"relationships": direct, "indirectRelationships": indirect(direct)}
        told = {key: [one.body() for one in found] for key, found in both.items()}
        return {"project": project or "", "objects": objects, **told, "pagination": shown}

    @router.get("/lineage/complete", summary="All objects and relations", responses={200: {"model": pages.Complete}})
    def get_complete(
        asked: Annotated[Page, Query()], principal: Annotated[Any, callers.who_may(KNOW)], project: str | None = None
    ) -> Response:
        of = catalogue(principal)
        of.require(project)
        return as_json(whole(of, asked, project), headers=of.headers)

    @router.get(
        "/lineage/complete/all",
        summary="All objects and relations, by code location",
        responses={200: {"model": pages.CompleteAll}},
    )
    def get_complete_all(principal: Annotated[Any, callers.who_may(KNOW)]) -> Response:
        of = catalogue(principal)
        names = [one["spec"]["name"] for one in of.described.projects()]
        return as_json({"projects": [whole(of, Page(), name, placed=True) for name in names]}, headers=of.headers)


def _add_search(router: APIRouter, catalogue: Open, callers: Callers) -> None:
    @router.get("/search", summary="Search names, descriptions and tags", responses={200: {"model": pages.Found}})
    def search(asked: Annotated[Search, Query()], principal: Annotated[Any, callers.who_may(KNOW)]) -> Response:
        of = catalogue(principal)
        names = [one["spec"]["name"] for one in of.described.projects()]
        searched = [name for name in names if not asked.projects or name in asked.projects]
        unknown = [name for name in asked.projects if name not in names]
        wanted = Listing(tags=asked.tags)
        listed = [one for room in _COLLECTIONS for one in wanted.of(of.listed(room)) if one.project in searched]
        found = [hit for one in listed if (hit := _hit(one, asked.query)) is not None]
        found.sort(key=lambda hit: hit["name"])
        found.sort(key=lambda hit: hit[asked.sort_by], reverse=asked.sort_order == "desc")
        page, shown = asked.window(found, always=True)
        answer = {
            "query": asked.query,
            "projects_searched": searched,
            "results": page,
            "pagination": shown,
            "errors": [f"Following projects do not exist: {', '.join(unknown)}"] if unknown else [],
        }
        return as_json(answer, headers=of.headers)


def _hit(one: Listed, query: str) -> Json | None:
    """The object as a search shows it, if it is like what was searched for."""
    wanted = query.casefold()
    matched = {name: value for name, value in one.tags.items() if wanted in f"{name}={value}".casefold()}
    similar = SequenceMatcher(None, wanted, one.name.casefold()).ratio()
    if wanted in one.name.casefold():
        score = 100.0
    elif wanted in one.description.casefold():
        score = 80.0
    elif matched:
        score = 60.0
    elif similar >= _SIMILAR:
        score = round(similar * 100, 1)
    else:
        return None
    shown = {"type": one.kind, "name": one.name, "description": one.description, "project": one.project}
    more = {"featureView": one.body["featureView"]} if one.kind == "feature" else {}
    return shown | more | {"matched_tags": matched, "match_score": score}


def _answer(
    of: Catalogue, key: str, page: Sequence[Listed], pagination: Json, bodies: Sequence[Json], *, related: bool
) -> Response:
    answer: Json = {key: list(bodies), "pagination": pagination}
    if related:
        answer["relationships"] = {
            one.name: [relation.body() for relation in _related(of, (one.kind, one.name), by_way=True)] for one in page
        }
    return as_json(answer, headers=of.headers)


def _one(of: Catalogue, one: Listed, *, related: bool) -> Response:
    more = {"relationships": [each.body() for each in _related(of, (one.kind, one.name), by_way=True)]}
    return as_json({**one.body, **(more if related else {})}, headers=of.headers)


def _related(of: Catalogue, end: tuple[str, str], *, by_way: bool) -> list[Relation]:
    direct = relations(of.registry)
    return [one for one in (*direct, *(indirect(direct) if by_way else ())) if end in one]
