"""A platform of 1,000 views with 10 features each: load it, derive its registry, publish it, serve it, keep it in step.

    python -m benchmarks.graph [views] [repeats]

`benchmarks.graph_project` writes the code. The limit is as many plain Dagster assets, with the same partitions and checks
and nothing of ours. Each sample is a new process; those of ours and of the limit take turns. Seconds are of the processor:
what else a machine does changes them little. The mark of deriving and publishing is 5 s.
"""

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.graph_project import Kind, Size, write_project
from benchmarks.load import processor_seconds
from benchmarks.timing import as_installed

PUBLISH_MARK = 5.0
_KINDS: tuple[Kind, ...] = ("ours", "plain")


def measured(folder: Path) -> dict[str, float]:
    """In a process of its own: seconds of each step from the import of the definitions on."""
    import dagster as dg

    import feature_assets

    assert feature_assets.feature_view, "both kinds begin with everything imported"
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    seconds: dict[str, float] = {}

    def lap(name: str, work: Callable[[], Any]) -> Any:
        begun = time.process_time()
        found = work()
        seconds[name] = time.process_time() - begun
        return found

    defs: dg.Definitions = lap("import the definitions", lambda: __import__("definitions").defs)
    graph = lap("resolve the asset graph", defs.resolve_asset_graph)
    repository = lap("make the repository", defs.get_repository_def)
    lap("load all jobs", repository.load_all_definitions)
    if (folder / "platform_features" / "entities.py").exists():
        _ours(defs, graph, lap)
    return seconds


def _ours(defs: Any, graph: Any, lap: Callable[[str, Callable[[], Any]], Any]) -> None:
    import dagster as dg

    from feature_assets.assets import FeatureAssets, FeatureView, registry_from_graph

    stores = FeatureAssets()
    # A sensor's context makes an instance; what that loads is no part of a tick.
    with dg.DagsterInstance.ephemeral():
        pass
    registry = lap("derive the registry", lambda: registry_from_graph(graph))
    lap("plan", lambda: stores.registry().plan(registry, location="graph"))
    lap("publish, first", lambda: stores.registry().publish(registry, location="graph", by="bench"))
    lap("publish, unchanged", lambda: stores.registry().publish(registry, location="graph", by="bench"))
    repository = defs.get_repository_def()

    def tick(name: str) -> Any:
        context = dg.build_sensor_context(resources={"feature_assets": stores}, repository_def=repository)
        return repository.get_sensor_def(name).evaluate_tick(context)

    lap("tick of publish_registry", lambda: tick("publish_registry"))
    _materialised([one for one in graph.assets_defs if isinstance(one, FeatureView)], stores)
    for when in ("first", "next"):
        said = lap(f"tick of reconcile_online_store, {when}", lambda: tick("reconcile_online_store"))
        assert said.skip_message == "Every view is served as published.", said


def _materialised(views: Sequence[Any], stores: Any) -> None:
    """Ten rows in the first partition of each view, offline and online."""
    import polars as pl

    from feature_assets import Bool, Float64, Int64, String
    from feature_assets.assets.partitions import slices
    from feature_assets.publication import publish

    values = {Float64: 0.5, Int64: 1, String: "a", Bool: True}
    for view in views:
        first = slices(view.partitions_def, [view.partitions_def.get_first_partition_key()])
        given = {name: range(10) for name in view.spec.join_keys} | {view.spec.event_timestamp: [first[0].start] * 10}
        frame = pl.DataFrame({**given, **{one.name: [values[one.type]] * 10 for one in view.spec.features}})
        publish(view.spec, frame, first, offline=stores.offline(), online=stores.online())


def command(folder: Path, *words: str) -> float:
    """What a command in that folder, which has to succeed, takes with all that it starts."""
    begun = _of_children()
    process = [sys.executable, "-m", *words]
    done = subprocess.run(process, cwd=folder, env=_environment(folder), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return _of_children() - begun


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _environment(folder: Path) -> dict[str, str]:
    home = folder / ".dagster"
    home.mkdir(exist_ok=True)
    return {
        **as_installed(),
        "DAGSTER_HOME": str(home),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "PYTHONWARNINGS": "ignore",
    }


def in_process(folder: Path) -> dict[str, float]:
    """What `measured` says, in a process that nothing was loaded in before."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.graph", "--measure", str(folder)],
        env=_environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def server_start(folder: Path) -> float:
    """What `feature-assets serve` takes until it answers."""
    import httpx

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begun = time.perf_counter()
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "feature_assets.cli", "serve", "--port", str(port)],
            cwd=folder,
            env=_environment(folder),
            stdout=log,
            stderr=log,
        )
    try:
        while time.perf_counter() - begun < 120:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").is_success:
                    return processor_seconds(process.pid)
            except httpx.TransportError:
                assert process.poll() is None, (folder / "serve.log").read_text()
                time.sleep(0.01)
        raise AssertionError((folder / "serve.log").read_text())
    finally:
        process.terminate()
        process.wait(timeout=30)


def told(rows: Mapping[str, Mapping[str, list[float]]]) -> None:
    """A line for each step: the medians, and the ratio where both kinds have it."""
    width = max(map(len, rows))
    print(f"  {'':{width}}  {'ours':>9}  {'min':>9}  {'max':>9}  {'plain':>9}  {'ratio':>6}")
    for name, samples in rows.items():
        ours = samples["ours"]
        line = f"  {name:{width}}  {median(ours):>8.3f}s  {min(ours):>8.3f}s  {max(ours):>8.3f}s"
        if limit := samples.get("plain"):
            line += f"  {median(limit):>8.3f}s  {median(ours) / median(limit):>5.2f}x"
        print(line)


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measured(Path(sys.argv[2]))))
        return
    size = Size(views=int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    rows: dict[str, dict[str, list[float]]] = {}

    def note(name: str, kind: str, seconds: float) -> None:
        rows.setdefault(name, {}).setdefault(kind, []).append(seconds)

    with tempfile.TemporaryDirectory() as place:
        for turn in range(repeats):
            for kind in _KINDS if turn % 2 == 0 else _KINDS[::-1]:
                folder = Path(place) / f"{kind}_{turn}"
                write_project(folder, kind, size)
                # Once before, which compiles what is not compiled yet.
                command(folder, "compileall", "-q", ".")
                for name, seconds in in_process(folder).items():
                    note(name, kind, seconds)
                check = ("dagster", "definitions", "validate", "-f", "definitions.py")
                note("dagster definitions validate", kind, command(folder, *check))
                if kind == "ours":
                    (folder / "feature_assets.toml").write_text('location = "graph"\nregistry = "another"\n')
                    note("feature-assets plan", kind, command(folder, "feature_assets.cli", "plan"))
                    note("feature-assets apply", kind, command(folder, "feature_assets.cli", "apply", "--yes"))
                    note("feature-assets plan, applied", kind, command(folder, "feature_assets.cli", "plan"))
                    note("server start to first answer", kind, server_start(folder))
    print(
        f"\n{size.views:,} views × {size.features} features, {size.services} services, {size.on_demand} on-demand views"
    )
    told(rows)
    both = median(rows["derive the registry"]["ours"]) + median(rows["publish, first"]["ours"])
    verdict = "within" if both <= PUBLISH_MARK else "OVER"
    print(f"  derive and publish: {both:.2f} s, {verdict} the mark of {PUBLISH_MARK:g} s")


if __name__ == "__main__":
    main()
