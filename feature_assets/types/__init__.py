"""The feature types: what each is in Polars, in Delta, in SQLite, in Python and in JSON, both ways.

Each type has one canonical Python value, and every other form encodes that value without loss:

    type            Python             Polars                 SQLite column        JSON
    Int8 … Int64    int                Int8 … Int64           INTEGER              number
    Float32/64      float              Float32/64             REAL (note 1)        number, "NaN", "Infinity", "-Infinity"
    String          str                String                 TEXT                 string
    Bool            bool               Boolean                INTEGER 0/1          true/false
    Bytes           bytes              Binary                 BLOB                 base64
    Date            date               Date                   TEXT, ISO 8601       "2013-02-08"
    Timestamp       datetime, UTC      Datetime(µs, UTC)      INTEGER, µs of 1970  "2013-02-08T07:00:00Z"
    Decimal(p, s)   Decimal            Decimal(p, s)          TEXT                 string
    UUID            str, lower case    String                 TEXT                 string
    Json            str, JSON text     String                 TEXT                 string
    List[T]         list               List(T)                TEXT, JSON           array
    Vector[n]       list of n floats   Array(Float32, n)      TEXT, JSON           array
    Struct({…})     dict               Struct                 TEXT, JSON           object
    Map[K, V]       dict               List(Struct(key, value)) TEXT, JSON         object, or [[key, value], …]

Note 1: SQLite turns NaN into NULL and -0.0 into 0.0, so these two alone are kept as the text 'NaN' and the blob '-0.0'.
"""

from feature_assets.types.base import FeatureType
from feature_assets.types.moments import EPOCH, microseconds, moment, rfc3339
from feature_assets.types.names import Decimal, List, Map, Struct, Vector, parse_type
from feature_assets.types.nested import ListType, MapType, NestedType, StructType, VectorType
from feature_assets.types.scalars import (
    UUID,
    Bool,
    Bytes,
    Date,
    DecimalType,
    Float32,
    Float64,
    Int8,
    Int16,
    Int32,
    Int64,
    Json,
    String,
    Timestamp,
)

__all__ = [
    "EPOCH",
    "UUID",
    "Bool",
    "Bytes",
    "Date",
    "Decimal",
    "DecimalType",
    "FeatureType",
    "Float32",
    "Float64",
    "Int8",
    "Int16",
    "Int32",
    "Int64",
    "Json",
    "List",
    "ListType",
    "Map",
    "MapType",
    "NestedType",
    "String",
    "Struct",
    "StructType",
    "Timestamp",
    "Vector",
    "VectorType",
    "microseconds",
    "moment",
    "parse_type",
    "rfc3339",
]
