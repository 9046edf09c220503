"""The OpenAPI document and its page: what the routes take and give, and how to get a token."""

from feature_assets.server.documentation.bodies import (
    TEXT,
    describe_problems,
    json_request,
    refusals,
    registry_refusals,
)
from feature_assets.server.documentation.catalogue import (
    Complete,
    CompleteAll,
    Found,
    Lineage,
    RegistryObject,
    Relationships,
    registry_list,
)
from feature_assets.server.documentation.features import HISTORICAL_REQUEST, OnlineAnswer, OnlineQuestion
from feature_assets.server.documentation.page import DESCRIPTION, serve_page
from feature_assets.server.documentation.pushes import Published, PushRequest, WriteRequest, receipt_schema
from feature_assets.server.documentation.registry import (
    IF_MATCH,
    FeaturesFound,
    RegistryDiff,
    RegistryHistory,
    RegistrySnapshot,
    RollbackRequest,
    RolledBack,
)
from feature_assets.server.documentation.runs import IncrementRequest, Materialized, MaterializeRequest
from feature_assets.server.documentation.tokens import TOKEN_FORM, TokenAnswer, TokenError

__all__ = [
    "DESCRIPTION",
    "HISTORICAL_REQUEST",
    "IF_MATCH",
    "TEXT",
    "TOKEN_FORM",
    "Complete",
    "CompleteAll",
    "FeaturesFound",
    "Found",
    "IncrementRequest",
    "Lineage",
    "MaterializeRequest",
    "Materialized",
    "OnlineAnswer",
    "OnlineQuestion",
    "Published",
    "PushRequest",
    "RegistryDiff",
    "RegistryHistory",
    "RegistryObject",
    "RegistrySnapshot",
    "Relationships",
    "RollbackRequest",
    "RolledBack",
    "TokenAnswer",
    "TokenError",
    "WriteRequest",
    "describe_problems",
    "json_request",
    "receipt_schema",
    "refusals",
    "registry_list",
    "registry_refusals",
    "serve_page",
]
