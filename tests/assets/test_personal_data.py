"""Personal data goes into the stores and nowhere else: not into Dagster, messages, logs or kept rows."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from dagster._serdes import serialize_value

from feature_assets import AllowedValues, Entity, Expression, Field, InRange, Int64, NotNull, String
from feature_assets.assets import FeatureAssets, feature_view

PHONE, SALARY = "+49-30-planted", 987_654_321
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
CHECKS = (
    AllowedValues("phone", ("none",)),
    InRange("salary", maximum=10),
    NotNull("nickname"),
    Expression(pl.col("phone").str.len_chars() < 3, name="short_phone"),
)


def people(salary: Any, *, severity: Any) -> dg.AssetsDefinition:
    @feature_view(
        name="people",
        entities=[Entity("person", {"person": String})],
        schema=[
            Field("phone", String, pii="phone"),
            Field("salary", Int64, pii="income"),
            Field("nickname", String, pii="name"),
            Field("visits", Int64),
        ],
        event_timestamp="at",
        checks=[
            type(one)(**{name: getattr(one, name) for name in one.__struct_fields__} | {"severity": severity})
            for one in CHECKS
        ],
    )
    def declared() -> pl.DataFrame:
        return pl.DataFrame(
            {"person": ["p1"], "at": [NOON], "phone": [PHONE], "salary": [salary], "nickname": [None], "visits": [41]},
            schema_overrides={"nickname": pl.String},
        )

    return declared


def told(instance: dg.DagsterInstance) -> str:
    """All that Dagster has stored of all runs."""
    return "\n".join(
        serialize_value(entry) for run in instance.get_runs() for entry in (run, *instance.all_logs(run.run_id))
    )


@pytest.mark.parametrize(
    ("salary", "severity", "published"),
    [(SALARY, "warn", True), (SALARY, "error", False), (SALARY + 0.5, "warn", False)],
    ids=["reported", "stopped", "not conform"],
)
def test_personal_data_is_shown_nowhere(
    salary: Any,
    severity: str,
    *,
    published: bool,
    stores: FeatureAssets,
    instance: dg.DagsterInstance,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.DEBUG)
    view = people(salary, severity=severity)
    done = dg.materialize([view], resources={"feature_assets": stores}, instance=instance, raise_on_error=False)
    assert done.success == published
    spoken = capfd.readouterr()
    shown = [told(instance), caplog.text, spoken.out, spoken.err]
    assert "people" in shown[0]
    for text in shown:
        assert "planted" not in text
        assert "987654" not in text.replace(",", "").replace("_", "")
    kept = [pl.read_parquet(path) for path in tmp_path.rglob("__rejected/**/*.parquet")]
    assert len(kept) == (len(CHECKS) if severity == "error" else 0)
    for rows in kept:
        assert rows.select("person", "visits").rows() == [("p1", 41)]
        assert not {"phone", "salary", "nickname"} & set(rows.columns)
