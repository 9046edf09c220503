"""What is declared, as data: frozen structures that are equal by value and have one canonical JSON.

Nothing here knows Dagster, a store or a server. A structure is checked once, when it is made.
"""

from feature_assets.spec.base import LONGEST, Entity, Field, Spec
from feature_assets.spec.canonical import canonical_json, convert, digest, from_json, to_builtins
from feature_assets.spec.formats import AvroFormat, Format, JsonFormat, ProtobufFormat
from feature_assets.spec.partitions import (
    SINGLE,
    UNPARTITIONED,
    DynamicPartitions,
    Partitions,
    StaticPartitions,
    TimePartitions,
)
from feature_assets.spec.services import LoggingConfig, ServiceSpec
from feature_assets.spec.sources import (
    AnySource,
    BatchSource,
    DeltaSource,
    FileSource,
    KafkaSource,
    KinesisSource,
    LogSource,
    PushSource,
    RecordSource,
    RequestSource,
    SqlSource,
    StreamSource,
)
from feature_assets.spec.views import (
    EVENT_ID,
    PARTITION,
    PUBLICATION,
    SEQUENCE,
    Expressions,
    Function,
    OnDemandViewSpec,
    Stream,
    ViewProjection,
    ViewSpec,
)

__all__ = [
    "EVENT_ID",
    "LONGEST",
    "PARTITION",
    "PUBLICATION",
    "SEQUENCE",
    "SINGLE",
    "UNPARTITIONED",
    "AnySource",
    "AvroFormat",
    "BatchSource",
    "DeltaSource",
    "DynamicPartitions",
    "Entity",
    "Expressions",
    "Field",
    "FileSource",
    "Format",
    "Function",
    "JsonFormat",
    "KafkaSource",
    "KinesisSource",
    "LogSource",
    "LoggingConfig",
    "OnDemandViewSpec",
    "Partitions",
    "ProtobufFormat",
    "PushSource",
    "RecordSource",
    "RequestSource",
    "ServiceSpec",
    "Spec",
    "SqlSource",
    "StaticPartitions",
    "Stream",
    "StreamSource",
    "TimePartitions",
    "ViewProjection",
    "ViewSpec",
    "canonical_json",
    "convert",
    "digest",
    "from_json",
    "to_builtins",
]
