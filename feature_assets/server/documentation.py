"""The OpenAPI page: what the routes take and give, and how to get a token. Served on loopback only.

The page and all that it loads come from this server, so that it works without a network and under a content security
policy that lets nothing else in.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from feature_assets.errors import ConfigurationError

DESCRIPTION: Final = """\
The latest values of features, for model services. It speaks the JSON of Feast's feature server where Feast has the route.

Every route but `/health` and the metadata below `/.well-known/` needs an access token, sent as
`Authorization: Bearer …`. What a token may read follows from its scopes: `features:read` covers all views,
`features:read:driver_stats` one, `features:read:driver_*` those whose names start so. Views can ask for more: that a
policy names one of the token's roles, groups or its client, and that join keys equal a claim of it. Refusals are
[problem documents](https://www.rfc-editor.org/rfc/rfc9457).
"""


class Projection(BaseModel):
    """Features of one view, perhaps under another name and looked up by other columns."""

    model_config = ConfigDict(extra="forbid")

    view: str
    features: list[str] | None = Field(None, description="All of the view's, if left out.")
    version: int | None = None
    alias: str | None = Field(None, description="The view's name in the answer.")
    join_key_map: dict[str, str] = Field({}, description="From a join key of the view to the column that holds it.")


_REFERENCES: Final[dict[str, Any]] = {"required": ["features"], "properties": {"features": {"type": "array"}}}
_SERVICE: Final[dict[str, Any]] = {
    "required": ["feature_service"],
    "properties": {"feature_service": {"type": "string"}},
}
_EITHER: Final[list[Any]] = [
    {**_REFERENCES, "not": _SERVICE},
    {**_SERVICE, "not": _REFERENCES},
]
"""Features or a service, and not both; null is as good as nothing."""

Reference = Annotated[str, Field(min_length=1, max_length=400)]


class OnlineQuestion(BaseModel):
    """Features, or a feature service, and the entities to read them for. Other fields are passed over."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": _EITHER,
            "examples": [
                {
                    "features": ["airport_weather:temp", "airport_weather:wind_speed"],
                    "entities": {"origin": ["JFK", "LGA"]},
                    "full_feature_names": False,
                },
                {"feature_service": "departure_delay", "entities": {"origin": ["JFK"]}},
            ],
        }
    )

    features: list[Reference | Projection] | None = Field(
        None,
        min_length=1,
        description="References: `view:feature`, `view@v2:feature` or `view:*`, or projections. Either these or a service.",
    )
    feature_service: Reference | None = Field(None, description="The name of a feature service.")
    entities: dict[str, list[Any]] = Field(
        description="By column: the join keys, and the request fields of on-demand views. A value for each row in each."
    )
    full_feature_names: bool = Field(False, description="Call the answers `view__feature`.")
    include_types: bool = Field(False, description="Say in the metadata of which type each column is.")


class HistoricalQuestion(BaseModel):
    """Features, or a feature service, and the rows to find them for."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "oneOf": _EITHER,
            "examples": [
                {
                    "features": ["airport_weather:temp"],
                    "spine": {"origin": ["JFK"], "event_timestamp": ["2013-02-08T07:00:00Z"]},
                }
            ],
        },
    )

    features: list[Reference | Projection] | None = Field(
        None, min_length=1, description="As online. Either these or a service."
    )
    feature_service: Reference | None = Field(None, description="The name of a feature service.")
    spine: dict[str, list[Any]] | list[dict[str, Any]] | None = Field(None, description="Columns, or rows.")
    full_feature_names: bool = Field(False, description="Call the answers `view__feature`.")
    created_cutoff: bool = Field(True, description="Leave out rows that were created after the spine row's time.")
    since: str | None = Field(None, description="Instead of a spine: from this time on.")
    until: str | None = Field(None, description="Instead of a spine: before this time.")
    timestamp_column: str | None = Field(
        None, description="The spine's column of times: `event_timestamp`, or its only datetime column, if left out."
    )


class OnlineColumn(BaseModel):
    """One join key or feature, with an item for each row."""

    values: list[Any] = Field(description="Each in the JSON form of its type; null where it is not PRESENT.")
    statuses: list[str] = Field(description="PRESENT, NOT_FOUND, NULL_VALUE, OUTSIDE_MAX_AGE or MASKED.")
    event_timestamps: list[str] = Field(
        description="When the value became true, in UTC; 1970-01-01T00:00:00Z where there is none."
    )


class ViewMetadata(BaseModel):
    """A view that was read."""

    name: str
    version: int


class ColumnMetadata(BaseModel):
    """A column of the answer: its type, and the view that it was read from."""

    name: str
    type: str
    view: str | None = Field(description="None for join keys and what is computed on demand.")


class OnlineMetadata(BaseModel):
    """What the columns are: `results[i]` belongs to `feature_names[i]`."""

    feature_names: list[str] = Field(description="Join keys first, then the features in the order asked for.")
    feature_view_metadata: list[ViewMetadata]
    columns: list[ColumnMetadata] | None = Field(None, description="With `include_types`.")
    entities: dict[str, str] | None = Field(None, description="With `include_types`: of what `entities` needs.")


class OnlineAnswer(BaseModel):
    """The values by column."""

    results: list[OnlineColumn]
    metadata: OnlineMetadata


class ProblemDocument(BaseModel):
    """A refusal: what is wrong, where, and how to mend it."""

    type: str = Field(description="The reason, by a stable name: `urn:feature-assets:problem:…`.")
    title: str
    status: int
    detail: str
    pointer: str | None = Field(None, description="A JSON pointer to what is wrong in the body.")
    request_id: str | None = Field(None, description="The answer's `X-Request-Id`, and that of the server's log.")


class TokenForm(BaseModel):
    """A request for a token; the client's id and secret stand here or in the Authorization header (Basic)."""

    grant_type: str = Field(description="`client_credentials`")
    scope: str | None = Field(
        None, description="The scopes wanted, with spaces between them; all of the client's if left out."
    )
    client_id: str | None = None
    client_secret: str | None = None


class TokenAnswer(BaseModel):
    """An access token (RFC 6749)."""

    access_token: str
    token_type: str
    expires_in: int = Field(description="Seconds.")
    scope: str


class TokenError(BaseModel):
    """Why there is no token (RFC 6749)."""

    error: str
    error_description: str


TOKEN_FORM: Final = {
    "required": True,
    "content": {"application/x-www-form-urlencoded": {"schema": TokenForm.model_json_schema()}},
}


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


class IncrementRequest(BaseModel):
    """What to materialise: all that is not materialised and begins by `end_ts`."""

    end_ts: str = Field(description="ISO 8601; UTC if it names no zone.")
    feature_views: list[str] | None = Field(None, description="All, if left out.")
    version: str | int | None = Field(None, description="To be sure of the version that is made.")


class MaterializeRequest(BaseModel):
    """What to materialise: the partitions that have a moment of the window, its ends included."""

    start_ts: str | None = Field(None, description="ISO 8601; UTC if it names no zone.")
    end_ts: str | None = Field(None, description="As well.")
    feature_views: list[str] | None = Field(None, description="All, if left out.")
    disable_event_timestamp: bool = Field(False, description="Every partition there is, whatever its time.")
    version: str | int | None = Field(None, description="To be sure of the version that is made.")


class MaterializeRun(BaseModel):
    """What Dagster has started for one view."""

    feature_view: str
    kind: str = Field(description="`run` or `backfill`.")
    id: str


class Materialized(BaseModel):
    """What was started. A view with nothing to do has no run."""

    status: str = Field(description="`succeeded`, or `accepted` while it goes on.")
    feature_views: list[str]
    runs: list[MaterializeRun]


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


class RegistryError(BaseModel):
    """A refusal in the form of Feast's registry server."""

    status_code: int
    detail: str
    error_type: str


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


TEXT: Final = {"type": "string"}


def _schema(of: type[BaseModel]) -> dict[str, Any]:
    """The schema by itself; what it refers to other routes have in the document already."""
    schema = of.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return schema


def json_request(of: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """The body of a request that FastAPI does not read itself, for OpenAPI."""
    return {"required": required, "content": {"application/json": {"schema": _schema(of)}}}


def _without_spine(schema: dict[str, Any]) -> dict[str, Any]:
    """The question beside a spine that is a part of its own."""
    left = {name: of for name, of in schema["properties"].items() if name != "spine"}
    return {name: of for name, of in schema.items() if name != "examples"} | {"properties": left}


HISTORICAL_REQUEST: Final = {
    "required": True,
    "content": {
        "application/json": {"schema": _schema(HistoricalQuestion)},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["question"],
                "properties": {
                    "question": _without_spine(_schema(HistoricalQuestion)),
                    "spine": {"type": "string", "contentMediaType": "application/octet-stream"},
                },
                "additionalProperties": False,
            },
            "encoding": {
                "question": {"contentType": "application/json"},
                "spine": {"contentType": "application/vnd.apache.parquet, application/vnd.apache.arrow.stream"},
            },
        },
    },
}

_REFUSALS: Final = {
    400: "The body is no JSON, or broke off.",
    401: "There is no valid token.",
    403: "The token does not allow this.",
    404: "Something of that name is not there, or not for this token.",
    406: "It is not to be had in the form that Accept asks for.",
    408: "The body came too slowly.",
    409: "Something else is under way.",
    412: "It is not as you took it to be.",
    413: "The body is too large.",
    415: "The body is of a kind that is not read here.",
    422: "The question cannot be answered as it was asked.",
    424: "What it depends on failed.",
    428: "Say what you take to be in force.",
    429: "Too many requests at once.",
    500: "The server failed.",
    503: "It cannot be answered now.",
    507: "No room is left to keep it.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem documents that a route may answer with, for OpenAPI."""
    schema = {"$ref": "#/components/schemas/ProblemDocument"}
    return {
        status: {"description": _REFUSALS[status], "content": {"application/problem+json": {"schema": schema}}}
        for status in _with_quota(statuses)
    }


def _with_quota(statuses: Sequence[int]) -> Sequence[int]:
    """Whoever has to say who they are may be told that they ask too often."""
    return sorted({*statuses, 429}) if 401 in statuses else statuses


def registry_refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same for the routes that refuse as Feast's registry server does."""
    return {status: {"description": _REFUSALS[status], "model": RegistryError} for status in _with_quota(statuses)}


def describe_problems(app: FastAPI) -> None:
    """Add to the OpenAPI document the one schema that no route returns as its answer."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        document["components"]["schemas"].setdefault("ProblemDocument", ProblemDocument.model_json_schema())
        return document

    app.openapi = openapi  # type: ignore[method-assign]


_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>Feature Assets</title>
  <link rel="icon" href="data:,">
  <link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
  <div id="page"></div>
  <script src="/docs/swagger-ui-bundle.js"></script>
  <script src="/docs/start.js"></script>
</body>
</html>
"""

_START: Final = """\
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#page",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  tryItOutEnabled: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
});
"""


def serve_page(app: FastAPI) -> None:
    """Add the page at /docs."""
    assets = _assets()
    headers = {
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }

    async def page(_: Request) -> Response:
        return HTMLResponse(_PAGE, headers=headers)

    async def start(_: Request) -> Response:
        return Response(_START, media_type="text/javascript", headers=headers)

    async def style(_: Request) -> Response:
        return FileResponse(assets / "swagger-ui.css", media_type="text/css", headers=headers)

    async def script(_: Request) -> Response:
        return FileResponse(assets / "swagger-ui-bundle.js", media_type="text/javascript", headers=headers)

    app.add_route("/docs", page, methods=["GET"], include_in_schema=False)
    app.add_route("/docs/start.js", start, methods=["GET"], include_in_schema=False)
    app.add_route("/docs/swagger-ui.css", style, methods=["GET"], include_in_schema=False)
    app.add_route("/docs/swagger-ui-bundle.js", script, methods=["GET"], include_in_schema=False)


def _assets() -> Path:
    """The folder with Swagger UI. The package that ships it is not imported: it would bring an application of its own."""
    found = find_spec("fastapi_offline")
    if found is None or found.origin is None:
        raise ConfigurationError(
            "The package fastapi-offline, which has the files of the OpenAPI page, is not installed. "
            "Install it: pip install fastapi-offline"
        )
    return Path(found.origin).with_name("static")


class PushRequest(BaseModel):
    """Rows for every view that takes those of a push source. Other fields are passed over."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "push_source_name": "trips",
                    "df": {"driver_id": [7], "ended": ["2024-05-01T09:30:00Z"], "km": [12.5]},
                    "to": "online_and_offline",
                }
            ]
        }
    )

    push_source_name: str = Field(description="The name of the source.")
    df: dict[str, list[Any]] = Field(description="The fields by name, with a value for each row in each.")
    to: Literal["online", "offline", "online_and_offline"] = Field(
        "online", description="Feast's choice; each of them means both stores here."
    )
    event_id: str | None = Field(None, description="The same push sent again with the same id changes nothing.")
    receipt: bool = Field(False, description="Answer with what GET /v1/pushes is asked for.")


class WriteRequest(BaseModel):
    """Rows of one view. Other fields are passed over."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "feature_view_name": "trip_stats",
                    "df": {"driver_id": [7], "event_timestamp": ["2024-05-01T09:30:00Z"], "km": [12.5]},
                }
            ]
        }
    )

    feature_view_name: str = Field(description="The name of a view with a push source.")
    df: dict[str, list[Any]] = Field(
        description="Join keys, features, `event_timestamp` and perhaps `created`, with a value for each row in each."
    )
    event_id: str | None = Field(None, description="The same rows sent again with the same id change nothing.")
    receipt: bool = Field(False, description="Answer with what GET /v1/pushes is asked for.")


class Receipt(BaseModel):
    """What a push was taken as."""

    rows: int = Field(description="How many rows were taken.")
    views: list[str] = Field(description="The views that take them.")
    journal: str = Field(description="Where they are until they are in both stores.")
    sequence: int = Field(description="Their number there.")


class Published(BaseModel):
    """Whether pushed rows are in both stores."""

    published: bool


def receipt_schema() -> dict[str, Any]:
    """Of the answer to a push, where there is one."""
    return {"anyOf": [Receipt.model_json_schema(), {"type": "null"}]}
