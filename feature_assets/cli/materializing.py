"""`materialize` and `backfill`: compute partitions and publish them, through Dagster in this process."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_assets.cli.app import app, command
from feature_assets.cli.failures import Mistake, Stopped
from feature_assets.cli.output import AsJson, Column, note, notes, show, warn
from feature_assets.cli.project import Project

if TYPE_CHECKING:
    import dagster as dg

    from feature_assets.cli.partitions import Target
    from feature_assets.cli.runs import Run

_SECTION = "Compute"

View = Annotated[
    str, typer.Argument(metavar="VIEW", help="A view by its name, or any asset by its key.", show_default=False)
]

_COLUMNS = (
    Column("partitions", style="name"),
    Column("count", style="number"),
    Column("rows", style="number"),
    Column("keys", style="number"),
    Column("online"),
    Column("delta_version", "delta", style="number"),
    Column("read_units", "read units", style="number"),
    Column("write_units", "write units", style="number"),
    Column("seconds", style="number"),
)


@command(
    app,
    "materialize",
    section=_SECTION,
    examples=[
        "materialize customer_orders --latest",
        "materialize customer_orders --partition 2025-03-01",
        "materialize customer_orders --from 2025-03-01 --to 2025-03-31",
    ],
)
def materialize(
    ctx: typer.Context,
    view: View,
    partition: Annotated[
        list[str] | None,
        typer.Option("--partition", "-p", metavar="KEY", help="This partition; may be repeated.", show_default=False),
    ] = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="KEY", help="From this partition on.", show_default=False)
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", metavar="KEY", help="Up to this partition, included.", show_default=False)
    ] = None,
    latest: Annotated[bool, typer.Option("--latest", help="The last partition that is over.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Every partition up to now.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compute partitions of a view and publish them, offline and online.

    Each contiguous range is one Dagster run in this process. A partition that is materialised again is replaced as a
    whole. Where a view is divided by time and by something else, a time alone means all of the other.
    """
    if sum((bool(partition), first is not None or last is not None, latest, every)) > 1:
        raise typer.BadParameter("give one of --partition, --from with --to, --latest and --all")
    project = Project.of(ctx)
    with _session(project, view, "materialize {} --partition") as (target, instance):
        from feature_assets.cli.partitions import chosen, runs_of

        keys = chosen(target, instance, partitions=partition or (), first=first, last=last, latest=latest, every=every)
        words = [f"--partition {shlex.quote(key)}" for key in partition or ()]
        words += [f"--from {shlex.quote(first)}"] if first else []
        words += [f"--to {shlex.quote(last)}"] if last else []
        words += ["--latest"] * latest + ["--all"] * every
        again = " ".join([f"feature-assets materialize {target.name}", *words])
        runs = runs_of(target, keys, instance)
        _run_all(project, target, runs, instance, as_json=as_json, again=lambda unfinished: again)


@command(
    app,
    "backfill",
    section=_SECTION,
    examples=[
        "backfill customer_orders 2025-01-01 2025-12-31",
        "backfill customer_orders 2025-01-01 --missing-only --per-run 30",
    ],
)
def backfill(
    ctx: typer.Context,
    view: View,
    start: Annotated[str, typer.Argument(metavar="START", help="The first partition.", show_default=False)],
    end: Annotated[
        str | None,
        typer.Argument(metavar="END", help="The last one; the last that is over if left out.", show_default=False),
    ] = None,
    missing_only: Annotated[
        bool, typer.Option("--missing-only", help="Leave out what was materialised before.")
    ] = False,
    per_partition: Annotated[
        bool, typer.Option("--per-partition", help="One run per partition instead of one per range.")
    ] = False,
    per_run: Annotated[
        int | None,
        typer.Option(
            "--per-run", metavar="N", min=1, help="At most so many partitions in one run.", show_default=False
        ),
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Go on with the other runs after one failed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Materialise a span of partitions, one run per contiguous range, with progress.

    What is done stays done: after a failure or Ctrl-C the command that is shown then goes on. Which partitions are
    there already, for --missing-only, Dagster's history says; without one, the offline store does.
    """
    project = Project.of(ctx)
    with _session(project, view, "backfill {}") as (target, instance):
        from feature_assets.cli.partitions import chosen, last_over, runs_of

        if target.partitions_def is None:
            raise Mistake(f"{target.name} has no partitions.", attempt=f"feature-assets materialize {target.name}")
        keys = chosen(target, instance, first=start, last=end or last_over(target, instance, start))
        known = _materialised(project, target, instance)
        if missing_only:
            keys = [key for key in keys if key not in known]
        if not keys:
            show([], _COLUMNS, as_json=as_json, empty=f"Nothing is missing: all of {target.name} is materialised.")
            return
        runs = runs_of(target, keys, instance, per_run=1 if per_partition else per_run)
        options = [
            *(["--per-partition"] if per_partition else [f"--per-run {per_run}"] if per_run else []),
            *(["--keep-going"] if keep_going else []),
        ]
        span = [start, *([end] if end else [])]
        anew = not missing_only and not known.isdisjoint(keys)

        def again(unfinished: Sequence[str]) -> str:
            words = _rest(span, keys, unfinished) if anew else [*span, "--missing-only"]
            return " ".join([f"feature-assets backfill {target.name}", *map(shlex.quote, words), *options])

        _run_all(project, target, runs, instance, as_json=as_json, again=again, keep_going=keep_going)


def _rest(span: Sequence[str], keys: Sequence[str], unfinished: Sequence[str]) -> Sequence[str]:
    """The ends of what is left of a span whose partitions were there before, where nothing would count as missing."""
    return span if "|" in keys[0] else (unfinished[0], keys[-1])


def _materialised(project: Project, target: "Target", instance: "dg.DagsterInstance") -> set[str]:
    if not instance.is_ephemeral:
        return set(instance.get_materialized_partitions(target.key))
    spec = project.derived.views.get(target.name)
    state = project.offline.state(spec) if spec is not None else None
    return set(state.publications) if state is not None else set()


@contextmanager
def _session(project: Project, name: str, typed: str) -> "Iterator[tuple[Target, dg.DagsterInstance]]":
    """The asset of that name and Dagster's instance, with everything loaded that a run needs."""
    definitions = project.definitions
    from feature_assets.cli.loading import require_same_stores
    from feature_assets.cli.partitions import target_named
    from feature_assets.cli.runs import dagster_instance, quiet_dagster, tell_if_passing

    if not project.options.verbose:
        quiet_dagster()
    require_same_stores(definitions, project.settings)
    target = target_named(definitions.resolve_asset_graph(), name, typed=typed)
    # Relative paths of the code start where Dagster would run it, wherever this was typed.
    with chdir(project.settings.root), dagster_instance(project.settings) as (instance, lasting):
        tell_if_passing(project.settings, lasting=lasting)
        yield target, instance


def _run_all(
    project: Project,
    target: "Target",
    runs: Sequence[Sequence[str]],
    instance: "dg.DagsterInstance",
    *,
    as_json: bool,
    again: Callable[[Sequence[str]], str],
    keep_going: bool = False,
) -> None:
    from feature_assets.cli.runs import run_partitions

    finished: list[Run] = []
    with _progress(target.name, runs) as step:
        for keys in runs:
            step.starts(keys)
            run = run_partitions(
                project.definitions,
                target,
                keys,
                instance,
                root=project.settings.root,
                verbose=project.options.verbose,
            )
            step.ended(run)
            finished.append(run)
            if run.stopped or (run.failure and not keep_going):
                break
    for text in dict.fromkeys(text for run in finished for text in run.warnings):
        warn(text)
    failed = [run for run in finished if run.failure]
    rows = [_row(run) for run in finished if not run.failure]
    if rows or not failed:
        show(rows, _COLUMNS, as_json=as_json, empty="Nothing to do.")
    if finished and finished[-1].stopped and (failed or len(finished) < len(runs)):
        raise Stopped(attempt=again(failed[0].partitions if failed else runs[len(finished)]))
    if failed:
        raise _failed(target, failed, done=len(rows), runs=len(runs), again=again(failed[0].partitions))


def _row(run: "Run") -> dict[str, Any]:
    return {
        "partitions": _span(run.partitions),
        "first": run.partitions[0] if run.partitions else None,
        "last": run.partitions[-1] if run.partitions else None,
        "count": len(run.partitions) or None,
        "rows": run.rows,
        "keys": run.keys,
        "online": _shortly(run.online),
        "delta_version": run.delta_version,
        "read_units": run.read_units,
        "write_units": run.write_units,
        "seconds": round(run.seconds, 2),
        "run_id": run.run_id,
    }


def _shortly(counts: str) -> str:
    """What a view says of its online rows, without the zeros: "15 written"."""
    parts = counts.split(", ")
    return ", ".join(part for part in parts if not part.startswith("0 ")) or parts[0]


def _span(keys: Sequence[str]) -> str:
    if not keys:
        return "all rows"
    return keys[0] if len(keys) == 1 else f"{keys[0]} to {keys[-1]}"


def _failed(target: "Target", failed: "Sequence[Run]", *, done: int, runs: int, again: str) -> Exception:
    first = failed[0]
    if runs > 1:
        others = f" ({len(failed) - 1} more failed)" if len(failed) > 1 else ""
        where = f"{done} of {runs} runs succeeded; {_span(first.partitions)} failed"
        return Mistake(f"{where}: {first.failure}{others}", attempt=again)
    # What a view says of itself begins with its name already.
    place = f"{target.name}, {_span(first.partitions)}" if first.partitions else target.name
    return Mistake(first.failure if first.failure.startswith(target.name) else f"{place}: {first.failure}")


class _Lines:
    """Progress where nobody watches: nothing for a single run, a line per run otherwise."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total, self._number = name, total, 0

    def starts(self, keys: Sequence[str]) -> None:
        self._number += 1

    def ended(self, run: "Run") -> None:
        if self._total > 1 and not run.stopped:
            what = "failed" if run.failure else f"{run.rows:,} rows" if run.rows is not None else "done"
            note(f"[{self._number}/{self._total}] {self._name} {_span(run.partitions)}: {what}, {run.seconds:.1f} s")


class _Bar:
    """Progress on a terminal: a bar over the partitions, with what runs right now."""

    def __init__(self, bar: Any, task: Any, name: str) -> None:
        self._bar, self._task, self._name = bar, task, name

    def starts(self, keys: Sequence[str]) -> None:
        self._bar.update(self._task, description=f"{self._name} {_span(keys)}")

    def ended(self, run: "Run") -> None:
        self._bar.advance(self._task, len(run.partitions) or 1)


@contextmanager
def _progress(name: str, runs: Sequence[Sequence[str]]) -> Iterator["_Lines | _Bar"]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = notes()
    if not console.is_terminal:
        yield _Lines(name, len(runs))
        return
    total = sum(len(keys) for keys in runs) or 1
    columns: list[Any] = [SpinnerColumn(), TextColumn("{task.description}")]
    if len(runs) > 1:
        columns += [BarColumn(bar_width=30), MofNCompleteColumn()]
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        yield _Bar(bar, bar.add_task(name, total=total), name)
