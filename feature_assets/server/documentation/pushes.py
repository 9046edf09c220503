"""Pushed rows, and what becomes of them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


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
