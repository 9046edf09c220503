"""Feature views as Dagster assets: everything here needs Dagster, nothing below does."""

from feature_assets.assets.composed import FeatureService, OnDemandFeatureView, on_demand_feature_view
from feature_assets.assets.feature_view import FeatureView, feature_view
from feature_assets.assets.metadata import registry_from_graph
from feature_assets.assets.operations import feature_definitions
from feature_assets.assets.resources import FeatureAssets
from feature_assets.assets.stream_view import StreamFeatureView, stream_feature_view
from feature_assets.assets.training_set import training_set

__all__ = [
    "FeatureAssets",
    "FeatureService",
    "FeatureView",
    "OnDemandFeatureView",
    "StreamFeatureView",
    "feature_definitions",
    "feature_view",
    "on_demand_feature_view",
    "registry_from_graph",
    "stream_feature_view",
    "training_set",
]
