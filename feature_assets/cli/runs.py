"""Dagster runs in this process: one per contiguous range of partitions, reported in words."""

import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import filelock
from dagster._core.errors import DagsterExecutionInterruptedError

from feature_assets.cli.event_log import BATCH, batched
from feature_assets.cli.output import warn
from feature_assets.cli.partitions import Target
from feature_assets.config import Settings
from feature_assets.errors import ConfigurationError, FeatureAssetsError

# What a function prints goes to the terminal at once. Dagster's capture would start two programs for each run, which
# print tracebacks of their own when Ctrl-C reaches them.
_NO_CAPTURE = {
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
}

_OURS = f"{FeatureAssetsError.__module__}."

HOME = ".dagster"
"""The folder in a project where Dagster keeps its history, unless DAGSTER_HOME names another."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run did.

    `failure` is empty where it succeeded; `stopped` says that a person ended it. `warnings` are checks that only warn.
    Units are those that the online store took, where it has a price.
    """

    partitions: tuple[str, ...]
    run_id: str
    seconds: float
    failure: str = ""
    stopped: bool = False
    rows: int | None = None
    keys: int | None = None
    delta_version: int | None = None
    online: str = ""
    read_units: float | None = None
    write_units: float | None = None
    warnings: tuple[str, ...] = field(default=())


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[tuple[dg.DagsterInstance, bool]]:
    """The instance that keeps the history of runs, and whether it lasts longer than this process.

    Raises:
        ConfigurationError: DAGSTER_HOME cannot be used.
    """
    home = os.environ.get("DAGSTER_HOME") or (str(settings.root / HOME) if (settings.root / HOME).is_dir() else "")
    if not home:
        with dg.DagsterInstance.ephemeral() as instance:
            yield instance, False
        return
    place = Path(home).expanduser().absolute()
    if not place.is_dir():
        raise ConfigurationError(f"Dagster's home {home} is not there. Make it, or unset DAGSTER_HOME.")
    os.environ["DAGSTER_HOME"] = str(place)
    # By itself Dagster stores event by event, of which a partition has three.
    os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", str(BATCH))
    try:
        # Two processes that make Dagster's databases at once leave them broken for good.
        with filelock.FileLock(place / ".opening", timeout=60, fallback_to_soft=False):
            instance = dg.DagsterInstance.local_temp(str(place), overrides={**_NO_CAPTURE, **batched(place)})
    # Dagster has no class of errors for settings, storage and schema together.
    except Exception as error:
        raise ConfigurationError(f"Dagster's home {home} cannot be used: {_first_line(error)}") from error
    with instance:
        yield instance, True


def tell_if_passing(settings: Settings, *, lasting: bool) -> None:
    """Say that nobody will find these runs in Dagster."""
    if not lasting:
        warn(
            f"Dagster's history of this run is not kept: DAGSTER_HOME is not set and there is no {HOME} in {settings.root}."
        )


def run_partitions(
    definitions: dg.Definitions,
    target: Target,
    keys: Sequence[str],
    instance: dg.DagsterInstance,
    *,
    root: Path,
    verbose: bool = False,
) -> Run:
    """Materialise these contiguous partitions of one asset (none: an asset without partitions) in one run.

    A failure is in the result, in the words of the error that stopped the run.
    """
    began = time.perf_counter()
    job = definitions.resolve_implicit_global_asset_job_def()
    options: dict[str, Any] = {}
    if len(keys) == 1:
        options["partition_key"] = keys[0]
    elif keys:
        options["tags"] = {
            "dagster/asset_partition_range_start": keys[0],
            "dagster/asset_partition_range_end": keys[-1],
        }
    if not definitions.loggers:
        level = "INFO" if verbose else "CRITICAL"
        options["run_config"] = {"loggers": {"console": {"config": {"log_level": level}}}}
    try:
        # What an asset function prints is no result of ours.
        with redirect_stdout(sys.stderr), _no_interrupt_lost() as lost:
            result = job.execute_in_process(
                asset_selection=[target.key], instance=instance, raise_on_error=False, **options
            )
    except (KeyboardInterrupt, DagsterExecutionInterruptedError):
        return Run(tuple(keys), "", time.perf_counter() - began, failure="stopped", stopped=True)
    except dg.DagsterError as error:
        return Run(tuple(keys), "", time.perf_counter() - began, failure=_first_line(error))
    seconds = time.perf_counter() - began
    if not result.success:
        failure = _failure(result, root)
        stopped = failure.startswith(DagsterExecutionInterruptedError.__name__)
        return Run(tuple(keys), result.run_id, seconds, failure, stopped, warnings=_warnings(result))
    return Run(
        tuple(keys), result.run_id, seconds, stopped=bool(lost), warnings=_warnings(result), **_published(result)
    )


@contextmanager
def _no_interrupt_lost() -> Iterator[list[str]]:
    """Notes a Ctrl-C that came at a moment when Python can raise nothing, as when an object is being destroyed.

    The run goes on then, and whoever started it stops after it.
    """
    lost: list[str] = []
    former = sys.unraisablehook

    def noted(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt | DagsterExecutionInterruptedError):
            lost.append(unraisable.exc_type.__name__)
        else:
            former(unraisable)

    sys.unraisablehook = noted
    try:
        yield lost
    finally:
        sys.unraisablehook = former


def _published(result: Any) -> dict[str, Any]:
    """The counts that a view reports with its materialisation; nothing for a plain asset."""
    for event in result.get_asset_materialization_events():
        metadata = {name: value.value for name, value in event.materialization.metadata.items()}
        if "delta_version" in metadata and "keys" in metadata:
            return {
                "rows": metadata["rows"],
                "keys": metadata["keys"],
                "delta_version": metadata["delta_version"],
                "online": metadata.get("online", ""),
                "read_units": metadata.get("online_read_units"),
                "write_units": metadata.get("online_write_units"),
            }
    return {}


def _warnings(result: Any) -> tuple[str, ...]:
    return tuple(
        f"check {one.check_name}: {one.description or 'did not pass'}"
        for one in result.get_asset_check_evaluations()
        if not one.passed and one.severity == dg.AssetCheckSeverity.WARN
    )


def _failure(result: Any, root: Path) -> str:
    """Why a run failed: what a view says itself, else the error of the asset function with its place."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data is not None and data.user_failure_data.description:
                return str(data.user_failure_data.description)
            if data.error is not None:
                return _explained(data.error, root)
    for event in result.all_events:
        if event.is_failure and event.message:
            return str(event.message)
    return "the run failed; --verbose shows what Dagster says"


def _explained(error: Any, root: Path) -> str:
    while error.cause is not None and not error.message.startswith(_OURS):
        error = error.cause
    words = " ".join(error.message.split()).removeprefix("dagster._core.errors.")
    if words.startswith(_OURS):
        # Our own messages say all; of others the kind and the place matter.
        return words.partition(": ")[2]
    own = [frame for frame in error.stack if f'"{root}' in frame and "site-packages" not in frame]
    if not own:
        return words
    file, _, rest = own[-1].strip().removeprefix('File "').partition('", ')
    return f"{words} ({Path(file).relative_to(root)}, {rest.splitlines()[0]})"


def _first_line(error: BaseException) -> str:
    lines = traceback.format_exception_only(type(error), error)[-1].strip().splitlines()
    return lines[0].rpartition(".")[2] if ": " not in lines[0] else lines[0].split(": ", 1)[1]


def quiet_dagster() -> None:
    """Keep Dagster's own log lines off the terminal, and the traceback of a connection that Ctrl-C met while it was closed."""
    for name in ("dagster", "sqlalchemy.pool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
