"""What is asked of features, and what is answered."""

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from feature_assets.server.documentation.bodies import schema_of


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


def _without_spine(schema: dict[str, Any]) -> dict[str, Any]:
    """The question beside a spine that is a part of its own."""
    left = {name: of for name, of in schema["properties"].items() if name != "spine"}
    return {name: of for name, of in schema.items() if name != "examples"} | {"properties": left}


HISTORICAL_REQUEST: Final = {
    "required": True,
    "content": {
        "application/json": {"schema": schema_of(HistoricalQuestion)},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["question"],
                "properties": {
                    "question": _without_spine(schema_of(HistoricalQuestion)),
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
