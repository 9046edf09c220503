"""`verify`, `reconcile` and `vacuum`: the two stores against one another, and files that nobody needs."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from feature_assets.cli.app import app, command
from feature_assets.cli.failures import Mistake, NotWell
from feature_assets.cli.output import (
    AsJson,
    Column,
    counted,
    done,
    note,
    print_json,
    say,
    show,
    table,
    working,
)
from feature_assets.cli.project import Project

if TYPE_CHECKING:
    from feature_assets.spec import ViewSpec
    from feature_assets.training import NeededVersions

_SECTION = "Keep in order"

Views = Annotated[
    list[str] | None,
    typer.Argument(metavar="VIEW", help="Only these views; all that are published if left out.", show_default=False),
]


@command(app, "verify", section=_SECTION, examples=["verify", "verify customer_orders --json"])
def verify(ctx: typer.Context, views: Views = None, as_json: AsJson = False) -> None:
    """Compare every online row with the latest offline row of its key.

    Values are compared too. Exits with 1 if anything differs. Nothing is changed; `reconcile --force` mends.
    """
    from feature_assets.settlement import verify as compare

    project = Project.of(ctx)
    rows: list[dict[str, Any]] = []
    for view in project.views(views or ()):
        with working(f"Comparing {project.label(view)} …"):
            rows.append(_compared(project, view, compare))
    if as_json:
        print_json(rows)
    else:
        _print_compared(rows)
    if wrong := [row["view"] for row in rows if row["differences"]]:
        if not as_json:
            note(f"Mend: feature-assets reconcile --force {' '.join(wrong)}", style="cyan")
        raise NotWell(f"{len(wrong)} views differ.")


def _compared(project: Project, view: "ViewSpec", compare: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"view": project.label(view), "version": view.version, "differences": 0}
    if not view.online:
        return {**row, "state": "not served online"}
    if project.offline.state(view) is None:
        return {**row, "state": "never materialised"}
    found = compare(view, project.offline, project.online)
    return {
        **row,
        "state": "differs" if found.total else "equal",
        "keys": found.keys,
        "missing": found.missing,
        "extra": found.extra,
        "different": found.different,
        "differences": found.total,
        "delta_version": found.delta_version,
        "examples": [{"key": key, "what": what} for key, what in found.examples],
    }


def _print_compared(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.text import Text

    styles = {"equal": "green", "differs": "bold red"}
    shown = [
        {
            **row,
            "state": Text(str(row["state"]), styles.get(str(row["state"]), "dim")),
            **{name: str(row[name]) for name in ("missing", "extra", "different") if row.get(name)},
        }
        for row in rows
    ]
    columns = (
        Column("view", style="name"),
        Column("state", "online is"),
        Column("keys", style="number"),
        Column("missing", style="number"),
        Column("extra", style="number"),
        Column("different", style="number"),
    )
    if not rows:
        note("No views are published.", style="")
        return
    table([{name: value for name, value in row.items() if value != 0 or name == "keys"} for row in shown], columns)
    for row in rows:
        for example in row.get("examples", ()):
            key = ", ".join(f"{name}={value}" for name, value in example["key"].items()) or "the one row"
            say(f"{row['view']}: {key} {example['what']}", style="yellow")


@command(
    app,
    "reconcile",
    section=_SECTION,
    examples=["reconcile", "reconcile customer_orders --force", "reconcile --tables"],
)
def reconcile(
    ctx: typer.Context,
    views: Views = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare every key, also where the ledger says that nothing is pending.")
    ] = False,
    tables: Annotated[
        bool,
        typer.Option("--tables", help="Bring the online store's tables to what its URL says now, rather than rows."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is pending.")] = False,
    as_json: AsJson = False,
) -> None:
    """Finish what a crash left between the two stores.

    Online rows are brought up to the offline history. Looks at the ledger first, so it is cheap where all is well.
    """
    from feature_assets.push import drain_orphans
    from feature_assets.settlement import pending
    from feature_assets.settlement import reconcile as settle

    project = Project.of(ctx)
    if tables:
        if views or force:
            raise Mistake(
                "--tables is for all of them, and for nothing else.", attempt="feature-assets reconcile --tables"
            )
        _amend_tables(project, dry_run=dry_run, as_json=as_json)
        return
    rows: list[dict[str, Any]] = []
    if not dry_run and drain_orphans(project.settings, project.offline, project.online):
        note("Published what a process had pushed and left behind.", style="")
    for view in project.views(views or ()):
        if not view.online or project.offline.state(view) is None:
            continue
        name = project.label(view)
        with working(f"Reconciling {name} …"):
            if dry_run:
                rows.append({"view": name, "pending": list(pending(view, project.offline, project.online))})
            else:
                settled = settle(view, project.offline, project.online, force=force)
                rows.append({"view": name, "pending": list(settled.pending), "changed": settled.changed})
    columns = (
        Column("view", style="name"),
        Column("pending", "partitions pending" if dry_run else "partitions were pending"),
        Column("changed", "keys changed", style="number"),
    )
    if not as_json and rows and not any(row["pending"] or row.get("changed") for row in rows):
        done(f"Nothing was pending in {counted(len(rows), 'view')}.")
        return
    shown = rows if as_json else [{**row, "pending": _few(row["pending"])} for row in rows]
    show(shown, columns, as_json=as_json, empty="No view was materialised yet.")


def _amend_tables(project: Project, *, dry_run: bool, as_json: bool) -> None:
    from feature_assets.online.protocol import MadeByOptions

    store = project.online
    if not isinstance(store, MadeByOptions):
        raise Mistake(f"{project.settings.online} has no options that tables are made with.")
    views = list(project.registry.every_version())
    with working("Looking at tables …"):
        found = list(store.differences(views) if dry_run else store.amend(views))
    if not found and not as_json:
        done("Every table is as the URL of the online store says.")
        return
    columns = (
        Column("table", style="name"),
        Column("what", "would change, for it" if dry_run else "was changed, for it"),
    )
    show([{"table": one.table, "what": one.what} for one in found], columns, as_json=as_json, empty="")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"


@command(
    app,
    "vacuum",
    section=_SECTION,
    examples=["vacuum --dry-run", "vacuum customer_orders --older-than 7 --compact"],
)
def vacuum(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Only these views, and what these services served; all that are published if left out.",
            show_default=False,
        ),
    ] = None,
    older_than: Annotated[
        float,
        typer.Option("--older-than", metavar="DAYS", min=0, help="Keep what versions of the last days need."),
    ] = 30,
    compact: Annotated[bool, typer.Option("--compact", help="First make one file of many small ones.")] = False,
    give_up_sets: Annotated[
        bool,
        typer.Option(
            "--give-up-sets", help="Also what saved training sets would be rebuilt from; says which cannot be."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove offline files that no version of the last days needs, and no saved training set.

    Whoever reads an older version right now fails. What a
    crashed writer left goes after a day at the earliest. Of what services served and logged, the days go first that
    lie back longer than the service's retention.
    """
    from feature_assets.training import NeededVersions

    project = Project.of(ctx)
    services = [name for name in names or project.registry.services if name in project.registry.services]
    views = [name for name in names or () if name not in services]
    how = _Vacuuming(timedelta(days=older_than), compact, dry_run)
    needed = NeededVersions.of(project.training_sets)
    rows: list[dict[str, Any]] = []
    for view in project.views(views) if views or not names else ():
        if project.offline.state(view) is not None:
            with working(f"Vacuuming {project.label(view)} …"):
                rows.append(_vacuumed(project, view, how, needed, give_up=give_up_sets))
    for service in sorted(services):
        with working(f"Vacuuming what {service} served …"):
            rows += _vacuumed_log(project, service, how)
    columns = [
        Column("view", style="name"),
        Column("removed", "files that would go" if dry_run else "files removed", style="number"),
        Column("files", "files in use", style="number"),
    ]
    if give_up_sets:
        columns.append(Column("given_up", "cannot be rebuilt then" if dry_run else "cannot be rebuilt any more"))
    else:
        columns.append(Column("kept_for", "kept for training sets"))
    if any(row["days"] for row in rows):
        columns.append(Column("days", "days that would go" if dry_run else "days removed"))
    lists = ("days", "kept_for", "given_up")
    shown = rows if as_json else [{**row, **{key: _few(row[key]) if row[key] else "" for key in lists}} for row in rows]
    show(shown, columns, as_json=as_json, empty="No view was materialised yet.")


class _Vacuuming(NamedTuple):
    older_than: timedelta
    compact: bool
    dry_run: bool


def _vacuumed(
    project: Project, view: "ViewSpec", how: _Vacuuming, needed: "NeededVersions", *, give_up: bool
) -> dict[str, Any]:
    offline, versions = project.offline, needed.versions(view)
    if how.compact and not how.dry_run:
        offline.compact(view)
    old = offline.vacuum(view, older_than=how.older_than)
    lost = needed.sets(view, offline.needing(view, versions, old))
    keep = () if give_up else versions
    files = offline.vacuum(view, older_than=how.older_than, keep_versions=keep, dry_run=how.dry_run)
    state = offline.state(view)
    left = state.files if state else 0
    return {
        "view": project.label(view),
        "removed": len(files),
        "files": left,
        "kept_for": [] if give_up else lost,
        "given_up": lost if give_up else [],
        "days": list[str](),
        "dry_run": how.dry_run,
    }


def _vacuumed_log(project: Project, service: str, how: _Vacuuming) -> Iterator[dict[str, Any]]:
    from feature_assets.served.shape import log_store
    from feature_assets.served.upkeep import keep_up
    from feature_assets.spec import LoggingConfig

    settings = project.settings
    config = project.registry.service(service).logging or LoggingConfig()
    now = settings.present or datetime.now(UTC)
    done = keep_up(service, config, log_store(settings), now=now, **how._asdict())
    if done is not None:
        name = f"{service} (served)"
        yield {
            "view": name,
            "removed": done.files,
            "files": done.left,
            "kept_for": [],
            "given_up": [],
            "days": list(done.days),
            "dry_run": how.dry_run,
        }
