"""`docs/feast.md` has a word on everything that a person knows from Feast 0.67, be it that there is nothing like it."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "feast.md").read_text()

OBJECTS = """
    Project Entity Field FeatureView BatchFeatureView StreamFeatureView OnDemandFeatureView LabelView FeatureService
    Aggregation SavedDataset ValidationReference LoggingConfig Permission RoleBasedPolicy GroupBasedPolicy
    NamespaceBasedPolicy CombinedGroupNamespacePolicy AllowAll ConnectionRef FileSource PushSource KafkaSource
    KinesisSource RequestSource RetrievalJob FeastVectorStore FeastRagRetriever DocEmbedder TextChunker
    MultiModalEmbedder EmbeddingProvider
"""
PARAMETERS = """
    join_keys value_type description tags owner dtype vector_index vector_length vector_search_metric source sink_source
    schema entities ttl online offline org mode enable_validation version enabled state with_name with_join_key_map
    with_projection udf udf_string feature_transformation batch_engine aggregations stream_engine enable_tiling
    tiling_hop_size input_schema write_to_online_store singleton track_metrics labeler_field conflict_policy
    reference_feature_view logging_config precompute_online time_window slide_interval storage sample_rate name_patterns
    actions required_tags timestamp_field created_timestamp_column field_mapping date_partition_column
    timestamp_field_type path file_format s3_endpoint_override entity_df features full_feature_names start_date end_date
    filter_by_created_timestamp include_feature_view_version_metadata run_async force
"""
METHODS = """
    apply plan teardown get_historical_features to_df to_feast_df to_arrow to_tensor to_ray_dataset to_sql persist
    to_remote_storage metadata get_online_features get_online_features_async retrieve_online_documents
    retrieve_online_documents_v2 openai_search push push_async write_to_online_store update_online_store
    write_to_offline_store materialize materialize_incremental precompute_feature_service create_saved_dataset
    get_saved_dataset create_dataset_from_retrieval retrieve_dataset_data write_logged_features validate_logged_features
    refresh_registry list_feature_views get_feature_view delete_feature_view
"""
COMMANDS = """
    init apply plan teardown materialize materialize-incremental get-historical-features get-online-features serve
    serve_offline serve_registry serve_transformations serve_lineage listen ui mcp monitor validate permissions
    feature-views list-versions enable disable set-state entities data-sources feature-services on-demand-feature-views
    stream-feature-views label-views saved-datasets validation-references features projects registry-dump delete
    configuration endpoint version demo-notebooks dbt mlflow
"""
OPTIONS = """
    --chdir --log-level --feature-store-yaml --template --minimal --skip-source-validation
    --skip-feature-view-validation --no-promote --views --disable-event-timestamp --host --port --workers --key --cert
    --keep-alive-timeout --max-requests --registry_ttl_sec
"""
TYPES = """
    Bytes String Int32 Int64 Float32 Float64 Bool UnixTimestamp Array Set Map ScalarMap Struct Json Uuid TimeUuid Decimal
    ZonedTimestamp PdfBytes ImageBytes
"""


ROWS = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| ")]
NAMED = {word for row in ROWS for span in re.findall(r"`([^`]+)`", row) for word in re.findall(r"[\w-]+", span)}


@pytest.mark.parametrize(
    "name", dict.fromkeys(f"{OBJECTS} {PARAMETERS} {METHODS} {COMMANDS} {OPTIONS} {TYPES}".split())
)
def test_every_name_of_feast_has_a_row(name: str) -> None:
    assert name in NAMED
