"""What is asked to be materialised, and what was started."""

from pydantic import BaseModel, Field


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
