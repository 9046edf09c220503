"""The registry as it is published: the features in it, its snapshots, what changed between them, and the way back.

Whoever knows only some views is shown the registry as if there were no others, of every snapshot.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from fastapi import FastAPI, Header, Query
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from feature_assets.access import KNOW, PUBLISH, Principal
from feature_assets.config import ServerSettings
from feature_assets.errors import RegistryConflict, RequestError, UnknownName
from feature_assets.registry import Entry, Registry, RegistryStore, plan
from feature_assets.registry.narrowing import narrowed
from feature_assets.registry.snapshot import ListedFeature
from feature_assets.server import documentation as pages
from feature_assets.server.limits import read_body
from feature_assets.server.problems import Problem
from feature_assets.server.routing import Callers, as_json
from feature_assets.server.serving import Serving
from feature_assets.server.wire import decoded
from feature_assets.spec import canonical_json

log = logging.getLogger(__name__)

_TAGS: Final[list[str | Enum]] = ["registry"]


class FeatureSearch(BaseModel):
    """Which features are looked for. All that is given must hold."""

    text: str | None = Field(None, max_length=200, description="In the reference, the description or the tags.")
    view: str | None = Field(None, max_length=200)
    entity: str | None = Field(None, max_length=200)
    owner: str | None = Field(None, max_length=200, description="One of the view's owners, or its code location.")
    type: str | None = Field(None, max_length=200, description="As in `Float64` or `List[Int64]`.")
    tags: list[Annotated[str, Field(pattern=r"^[^:]+:", max_length=400)]] = Field(
        [], max_length=20, description="As `team:risk`; may be repeated."
    )
    page: int = Field(1, ge=1, le=1_000_000)
    limit: int = Field(50, ge=1, le=500)

    def wants(self, one: ListedFeature, owners: tuple[str, ...]) -> bool:
        """Whether this is one of them."""
        tags = [tag.partition(":")[::2] for tag in self.tags]
        return (
            self.view in (None, one.view)
            and (self.entity is None or self.entity in one.entities)
            and (self.owner is None or self.owner in (*owners, one.owner))
            and self.type in (None, str(one.field.type))
            and all(one.field.tags.get(name) == value for name, value in tags)
            and (self.text is None or self.text.casefold() in _words(one))
        )


def _words(one: ListedFeature) -> str:
    tags = " ".join(f"{name}:{value}" for name, value in one.field.tags.items())
    return f"{one.reference} {one.field.description} {tags}".casefold()


class Rollback(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/registry/rollback."""

    to: str | int = 1
    message: Annotated[str, msgspec.Meta(max_length=1_000)] = ""


_rollback = msgspec.json.Decoder(Rollback)


class _Shown(NamedTuple):
    """One snapshot as somebody may know it."""

    digest: str
    registry: Registry
    whole: bool

    @property
    def headers(self) -> dict[str, str]:
        return {"x-feature-registry": self.digest}


class Snapshots:
    """The published registry, read for one caller at a time."""

    def __init__(self, serving: Serving, store: RegistryStore) -> None:
        self._serving, self.store = serving, store

    def shown(self, principal: Principal, to: str | None = None) -> _Shown:
        """A snapshot, by its digest or how that begins; the one in force if none is named.

        Raises:
            UnknownName: there is none.
        """
        if to is None:
            current = self._serving.current
            digest, registry = current.digest, current.registry
        else:
            digest = self._digest(to)
            registry = self.store.snapshot(digest)
        known = narrowed(registry, partial(principal.grant.allows, KNOW))
        return _Shown(digest, known, known is registry)

    def _digest(self, to: str) -> str:
        try:
            digest = self.store.found(to)
        except RequestError:
            digest = ""
        if not self.store.has(digest):
            raise UnknownName(f"There is no snapshot '{to}'. See: GET /v1/registry/history")
        return digest

    def before(self) -> str:
        """The digest of the snapshot that was in force before.

        Raises:
            UnknownName: there was none.
        """
        entry = next(iter(self.store.history(1)), None)
        if entry is None or entry.previous is None:
            raise UnknownName("There was no snapshot before this one. Name two: ?from=…&to=…")
        return entry.previous


def add_to(app: FastAPI, serving: Serving, callers: Callers, limits: ServerSettings) -> None:
    """Add the routes."""
    snapshots = Snapshots(serving, serving.registry_store)
    _add_features(app, snapshots, callers)
    _add_snapshot(app, snapshots, callers)
    _add_history(app, snapshots, callers)
    _add_diff(app, snapshots, callers)
    _add_rollback(app, snapshots, callers, limits, serving.refresh)


def _add_features(app: FastAPI, snapshots: Snapshots, callers: Callers) -> None:
    @app.get(
        "/v1/features",
        tags=_TAGS,
        summary="Search features",
        responses={200: {"model": pages.FeaturesFound}, **pages.refusals(400, 401, 403, 404, 422, 429, 500, 503)},
    )
    def search_features(
        asked: Annotated[FeatureSearch, Query()], principal: Annotated[Any, callers.who_may(KNOW)]
    ) -> Response:
        """By views, features as declared."""
        shown = snapshots.shown(principal)
        registry = shown.registry
        owners = {view.name: view.owners for view in (*registry.views.values(), *registry.on_demand.values())}
        found = [one for one in registry.features() if asked.wants(one, owners[one.view])]
        start = (asked.page - 1) * asked.limit
        page = [_feature(registry, one, owners[one.view]) for one in found[start : start + asked.limit]]
        return as_json(
            {"features": page, "total": len(found), "page": asked.page, "limit": asked.limit}, headers=shown.headers
        )


def _feature(registry: Registry, one: ListedFeature, owners: tuple[str, ...]) -> dict[str, Any]:
    view = registry.views.get(one.view)
    services = [
        name
        for name, service in sorted(registry.services.items())
        if any(
            each.view == one.view and (each.features is None or one.field.name in each.features)
            for each in service.features
        )
    ]
    return {
        "feature": one.reference,
        "view": one.view,
        "version": one.version,
        "name": one.field.name,
        "type": str(one.field.type),
        "description": one.field.description,
        "tags": one.field.tags,
        "default": one.field.default,
        "pii": one.field.pii,
        "entities": list(one.entities),
        "join_keys": {name: str(of) for name, of in one.join_keys.items()},
        "ttl_seconds": view.ttl.total_seconds() if view and view.ttl else None,
        "online": view.online if view else True,
        "services": services,
        "owners": list(owners),
        "location": one.owner,
    }


def _add_snapshot(app: FastAPI, snapshots: Snapshots, callers: Callers) -> None:
    @app.get(
        "/v1/registry",
        tags=_TAGS,
        summary="A registry snapshot",
        responses={
            200: {
                "model": pages.RegistrySnapshot,
                "headers": {"ETag": {"description": "For If-None-Match, and for a rollback.", "schema": pages.TEXT}},
            },
            304: {"description": "It is the one that If-None-Match names."},
            **pages.refusals(400, 401, 403, 404, 422, 429, 500, 503),
        },
    )
    def get_registry(
        principal: Annotated[Any, callers.who_may(KNOW)],
        digest: Annotated[str | None, Query(max_length=64, description="Its digest or how it begins.")] = None,
        if_none_match: Annotated[str | None, Header(max_length=1_000)] = None,
    ) -> Response:
        """The one in force, if no other is named: the same JSON that `feature-assets registry show --json` prints."""
        shown = snapshots.shown(principal, digest)
        body = canonical_json(shown.registry)
        # The digest names the stored bytes. A part of them needs a name of its own.
        tag = f'"{shown.digest if shown.whole else hashlib.sha256(body).hexdigest()}"'
        headers = {**shown.headers, "etag": tag, "cache-control": "private, no-cache"}
        if if_none_match is not None and tag in _tags(if_none_match):
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type="application/json")


def _tags(header: str) -> set[str]:
    """The entity tags in a header, weak ones as strong ones."""
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}


def _add_history(app: FastAPI, snapshots: Snapshots, callers: Callers) -> None:
    @app.get(
        "/v1/registry/history",
        tags=_TAGS,
        summary="What was in force, the last one first",
        responses={200: {"model": pages.RegistryHistory}, **pages.refusals(400, 401, 403, 422, 429, 500, 503)},
    )
    def get_history(
        principal: Annotated[Any, callers.who_may(KNOW)], limit: Annotated[int, Query(ge=1, le=1_000)] = 100
    ) -> Response:
        """Messages may name any view: who may not know all of them gets none."""
        entries = [_told(entry) for entry in snapshots.store.history(limit)]
        if not principal.grant.everywhere(KNOW):
            entries = [{**entry, "message": ""} for entry in entries]
        return as_json({"entries": entries})


def _told(entry: Entry) -> dict[str, Any]:
    """All that an entry says, also where that is nothing."""
    return {name: getattr(entry, name) for name in entry.__struct_fields__}


def _add_diff(app: FastAPI, snapshots: Snapshots, callers: Callers) -> None:
    @app.get(
        "/v1/registry/diff",
        tags=_TAGS,
        summary="What lies between two snapshots, and what it means for data",
        responses={200: {"model": pages.RegistryDiff}, **pages.refusals(400, 401, 403, 404, 422, 429, 500, 503)},
    )
    def get_diff(
        principal: Annotated[Any, callers.who_may(KNOW)],
        first: Annotated[
            str | None,
            Query(alias="from", max_length=64, description="A digest or how it begins; else the one before."),
        ] = None,
        last: Annotated[
            str | None, Query(alias="to", max_length=64, description="As well; else the one in force.")
        ] = None,
    ) -> Response:
        after = snapshots.shown(principal, last)
        before = snapshots.shown(principal, snapshots.before() if first is None else first)
        changes = [msgspec.to_builtins(change) for change in plan(before.registry, after.registry)]
        return as_json({"from": before.digest, "to": after.digest, "changes": changes})


def _add_rollback(
    app: FastAPI, snapshots: Snapshots, callers: Callers, limits: ServerSettings, refresh: Callable[[], bool]
) -> None:
    @app.post(
        "/v1/registry/rollback",
        tags=_TAGS,
        summary="Put an earlier snapshot in force again",
        responses={
            200: {"model": pages.RolledBack},
            **pages.refusals(400, 401, 403, 404, 408, 412, 413, 422, 428, 429, 500, 503),
        },
        openapi_extra={
            "requestBody": pages.json_request(pages.RollbackRequest, required=False),
            "parameters": [pages.IF_MATCH],
        },
    )
    async def roll_back(
        request: Request,
        principal: Annotated[Any, callers.who_may(PUBLISH, everywhere=True)],
    ) -> Response:
        """If-Match is required, so that nobody takes back what somebody else has published meanwhile."""
        body = await read_body(request.scope, request.receive, largest=limits.max_body_bytes)
        asked = decoded(body or b"{}", _rollback)
        if_match = request.headers.get("if-match")
        if not if_match:
            raise Problem(
                428,
                "precondition-required",
                "Say what you take to be in force: If-Match, with the ETag of GET /v1/registry.",
            )
        expected = None if if_match == "*" else if_match.strip('"')
        done = partial(
            snapshots.store.rollback, asked.to, by=principal.client_id, message=asked.message, expected=expected
        )
        try:
            published = await asyncio.to_thread(done)
        except RequestError:
            # Where the registry is kept is no business of whoever asks.
            raise UnknownName(f"The history has no such snapshot: {asked.to}. See: GET /v1/registry/history") from None
        except RegistryConflict as error:
            raise Problem(412, "other-in-force", str(error)) from None
        log.info(
            "registry rolled back by=%s digest=%s sequence=%d",
            principal.client_id,
            published.digest,
            published.sequence,
        )
        await asyncio.to_thread(refresh)
        return as_json({**_told(published.entry), "changed": published.changed})
