"""Bodies that any route may have: JSON that it reads itself, and refusals."""

from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel, Field


class ProblemDocument(BaseModel):
    """A refusal: what is wrong, where, and how to mend it."""

    type: str = Field(description="The reason, by a stable name: `urn:feature-assets:problem:…`.")
    title: str
    status: int
    detail: str
    pointer: str | None = Field(None, description="A JSON pointer to what is wrong in the body.")
    request_id: str | None = Field(None, description="The answer's `X-Request-Id`, and that of the server's log.")


TEXT: Final = {"type": "string"}


def schema_of(of: type[BaseModel]) -> dict[str, Any]:
    """The schema by itself; what it refers to other routes have in the document already."""
    schema = of.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return schema


def json_request(of: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """The body of a request that FastAPI does not read itself, for OpenAPI."""
    return {"required": required, "content": {"application/json": {"schema": schema_of(of)}}}


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


class RegistryError(BaseModel):
    """A refusal in the form of Feast's registry server."""

    status_code: int
    detail: str
    error_type: str


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
