"""The dashboard, the alert rules and the page on metrics name what the server and consumers have, and all of it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from feature_assets.server.metrics import METRICS as OF_THE_SERVER
from feature_assets.streams.metrics import METRICS as OF_CONSUMERS

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "feature-assets.json").read_text())
RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "feature-assets.yml").read_text())
PAGE = (ROOT / "docs" / "reference" / "metrics.md").read_text()
METRICS: dict[str, Any] = {**OF_THE_SERVER, **{metric.name: metric for metric in OF_CONSUMERS}}
NOT_SHOWN = {"feature_assets_audit_lost_total"}
"""What has an alert and no panel."""


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from strings(each)
    elif isinstance(value, str):
        yield value


def expressions(document: Any) -> list[str]:
    return [text for text in strings(document) if "feature_assets_" in text]


def used(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric of an expression, with the labels that are asked of it."""
    for name, selector in re.findall(r"(feature_assets_\w+)(?:\{([^}]*)\})?", expression):
        yield name, set(re.findall(r"(\w+)\s*[=!]", selector))


def metric_of(series: str) -> str:
    """The metric that a series belongs to: a histogram has several."""
    for name, metric in METRICS.items():
        parts = (
            {f"{name}{suffix}" for suffix in ("_bucket", "_sum", "_count")} if metric.kind == "histogram" else {name}
        )
        if series in parts:
            return name
    raise AssertionError(f"{series} is no series of the server or of consumers")


ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize(
    "expression",
    [*expressions(DASHBOARD), *(rule["expr"] for rule in ALERTS)],
    ids=lambda text: " ".join(text.split())[:90],
)
def test_series_and_labels_are_those_that_there_are(expression: str) -> None:
    found = list(used(expression))
    assert found
    for series, labels in found:
        known = {*METRICS[metric_of(series)].labels, "job", "le"}
        assert labels <= known, f"{series} has no label {labels - known}"
    grouped = {name for names in re.findall(r"by \(([^)]*)\)", expression) for name in re.split(r",\s*", names)}
    known = {label for series, _ in found for label in METRICS[metric_of(series)].labels} | {"job", "le"}
    assert grouped <= known


def test_every_metric_has_a_panel() -> None:
    shown = {metric_of(series) for panel in PANELS for text in expressions(panel) for series, _ in used(text)}
    assert shown | NOT_SHOWN == set(METRICS)
    alerted = {metric_of(series) for rule in ALERTS for series, _ in used(rule["expr"])}
    assert alerted >= NOT_SHOWN


def test_every_metric_is_documented_as_it_is() -> None:
    rows = re.findall(r"^\| `(feature_assets_\w+)` \| (\w+) \|([^|]*)\|", PAGE, re.MULTILINE)
    documented = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert documented == {name: (metric.kind, metric.labels) for name, metric in METRICS.items()}


def test_panels_lie_side_by_side_and_have_titles_of_their_own() -> None:
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, f"'{panel['title']}' lies upon another panel"
        taken |= cells


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert {"summary", "description"} <= rule["annotations"].keys()
    assert rule["for"]
