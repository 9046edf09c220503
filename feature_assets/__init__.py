"""Feature Assets: a feature platform whose unit is the Dagster asset.

What stands here is all that a user may rely on. Errors load at once and everything else on first touch, so that a
training container, a model service and the command line's help pay only for what they use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from feature_assets.errors import (
    ChecksFailed,
    ConfigurationError,
    ContractBroken,
    DeclarationError,
    FeatureAssetsError,
    Forbidden,
    MissingJoinKey,
    NameCollision,
    NotPublished,
    NotReproducible,
    PublicationConflict,
    RegistryConflict,
    RegistryError,
    RegistryUnreadable,
    RequestError,
    StoreError,
    StoreFull,
    StoreUnavailable,
    StoreUnsafe,
    TableMissing,
    TransformationRefused,
    Unauthenticated,
    UnknownFeature,
    UnknownName,
    UnknownService,
    UnknownTrainingSet,
    UnknownView,
    WrongType,
)

if TYPE_CHECKING:
    from feature_assets.access import Principal
    from feature_assets.assets import (
        FeatureAssets,
        FeatureService,
        FeatureView,
        OnDemandFeatureView,
        feature_definitions,
        feature_view,
        on_demand_feature_view,
    )
    from feature_assets.checks import AllowedValues, Expression, Fresh, InRange, NotNull, RowCount, Unique
    from feature_assets.config import Settings
    from feature_assets.lookup import OnlineResponse
    from feature_assets.spec import DeltaSource, Entity, Field, FileSource, RequestSource, SqlSource, ViewProjection
    from feature_assets.store import FeatureStore
    from feature_assets.training import TrainingSet
    from feature_assets.types import (
        UUID,
        Bool,
        Bytes,
        Date,
        Decimal,
        Float32,
        Float64,
        Int8,
        Int16,
        Int32,
        Int64,
        Json,
        List,
        Map,
        String,
        Struct,
        Timestamp,
        Vector,
    )

__all__ = [
    "UUID",
    "AllowedValues",
    "Bool",
    "Bytes",
    "ChecksFailed",
    "ConfigurationError",
    "ContractBroken",
    "Date",
    "Decimal",
    "DeclarationError",
    "DeltaSource",
    "Entity",
    "Expression",
    "FeatureAssets",
    "FeatureAssetsError",
    "FeatureService",
    "FeatureStore",
    "FeatureView",
    "Field",
    "FileSource",
    "Float32",
    "Float64",
    "Forbidden",
    "Fresh",
    "InRange",
    "Int8",
    "Int16",
    "Int32",
    "Int64",
    "Json",
    "List",
    "Map",
    "MissingJoinKey",
    "NameCollision",
    "NotNull",
    "NotPublished",
    "NotReproducible",
    "OnDemandFeatureView",
    "OnlineResponse",
    "Principal",
    "PublicationConflict",
    "RegistryConflict",
    "RegistryError",
    "RegistryUnreadable",
    "RequestError",
    "RequestSource",
    "RowCount",
    "Settings",
    "SqlSource",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
    "StoreUnsafe",
    "String",
    "Struct",
    "TableMissing",
    "Timestamp",
    "TrainingSet",
    "TransformationRefused",
    "Unauthenticated",
    "Unique",
    "UnknownFeature",
    "UnknownName",
    "UnknownService",
    "UnknownTrainingSet",
    "UnknownView",
    "Vector",
    "ViewProjection",
    "WrongType",
    "feature_definitions",
    "feature_view",
    "on_demand_feature_view",
]

_ON_FIRST_TOUCH = {
    "AllowedValues": "feature_assets.checks",
    "Bool": "feature_assets.types",
    "Bytes": "feature_assets.types",
    "Date": "feature_assets.types",
    "Decimal": "feature_assets.types",
    "DeltaSource": "feature_assets.spec",
    "Entity": "feature_assets.spec",
    "Expression": "feature_assets.checks",
    "FeatureAssets": "feature_assets.assets",
    "FeatureService": "feature_assets.assets",
    "FeatureStore": "feature_assets.store",
    "FeatureView": "feature_assets.assets",
    "Field": "feature_assets.spec",
    "FileSource": "feature_assets.spec",
    "Float32": "feature_assets.types",
    "Float64": "feature_assets.types",
    "Fresh": "feature_assets.checks",
    "InRange": "feature_assets.checks",
    "Int16": "feature_assets.types",
    "Int32": "feature_assets.types",
    "Int64": "feature_assets.types",
    "Int8": "feature_assets.types",
    "Json": "feature_assets.types",
    "List": "feature_assets.types",
    "Map": "feature_assets.types",
    "NotNull": "feature_assets.checks",
    "OnDemandFeatureView": "feature_assets.assets",
    "OnlineResponse": "feature_assets.lookup",
    "Principal": "feature_assets.access",
    "RequestSource": "feature_assets.spec",
    "RowCount": "feature_assets.checks",
    "Settings": "feature_assets.config",
    "SqlSource": "feature_assets.spec",
    "String": "feature_assets.types",
    "Struct": "feature_assets.types",
    "Timestamp": "feature_assets.types",
    "TrainingSet": "feature_assets.training",
    "UUID": "feature_assets.types",
    "Unique": "feature_assets.checks",
    "Vector": "feature_assets.types",
    "ViewProjection": "feature_assets.spec",
    "feature_definitions": "feature_assets.assets",
    "feature_view": "feature_assets.assets",
    "on_demand_feature_view": "feature_assets.assets",
}


def __getattr__(name: str) -> object:
    if name in _ON_FIRST_TOUCH:
        value: object = getattr(import_module(_ON_FIRST_TOUCH[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"feature_assets has no public name '{name}'")


def __dir__() -> list[str]:
    return __all__
