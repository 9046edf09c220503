"""What `definitions.py` amounts to: a changed key, partition, owner or feature shows here, and so in review."""

import json
import os
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from definitions import defs
from feature_assets.assets import registry_from_graph
from feature_assets.spec import to_builtins

SNAPSHOTS = Path(__file__).parent / "snapshots"


def matches_snapshot(name: str, found: Any) -> bool:
    """Compare with the file; `UPDATE_SNAPSHOTS=1` writes it anew."""
    path = SNAPSHOTS / name
    text = json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text, f"{name} differs; if that is meant: UPDATE_SNAPSHOTS=1 make test"
    return True


def test_the_asset_graph_is_as_it_was() -> None:
    graph = defs.resolve_asset_graph()
    found = {}
    for key in sorted(graph.get_all_asset_keys()):
        node = graph.get(key)
        found[key.to_user_string()] = {
            "parents": sorted(parent.to_user_string() for parent in node.parent_keys),
            "partitions": str(node.partitions_def) if node.partitions_def else None,
            "group": node.group_name,
            "owners": sorted(node.owners),
            "kinds": sorted(node.kinds),
            "checks": sorted(check.name for check in node.check_keys),
            "materialised": node.is_materializable,
        }
    assert matches_snapshot("asset_graph.json", found)


def test_the_registry_is_as_it_was() -> None:
    registry = registry_from_graph(defs.resolve_asset_graph())
    found = to_builtins(registry)
    for view in found["views"].values():
        # It changes with every edit of a function, which the reviewer sees anyway.
        view.pop("code_version")
    assert matches_snapshot("registry.json", found)


def test_sensors_jobs_and_schedules_are_there() -> None:
    repository = defs.get_repository_def()
    assert {sensor.name for sensor in repository.sensor_defs} == {"publish_registry", "reconcile_online_store"}
    assert {schedule.name for schedule in repository.schedule_defs} == {"nightly_schedule"}
    assert {job.name for job in repository.get_all_jobs()} >= {
        "nightly",
        "maintain_stores",
        "reconcile_online_store_job",
    }


def test_the_shipped_instance_frees_what_a_dead_host_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = Path(__file__).parent.parent / "dagster.yaml"
    (tmp_path / "dagster.yaml").write_text(shipped.read_text())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_max_runtime_seconds > 0
        assert instance.run_retries_enabled
        assert not instance.run_retries_retry_on_asset_or_op_failure
        assert not instance.telemetry_enabled
