"""`erase`: entities that are to be forgotten, in both stores."""

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from feature_assets.cli.app import app, command
from feature_assets.cli.failures import Mistake
from feature_assets.cli.output import (
    AsJson,
    Column,
    Yes,
    confirmed,
    counted,
    done,
    note,
    print_json,
    show,
    table,
    working,
)
from feature_assets.cli.project import Project
from feature_assets.cli.typed import Pairs, RowsFile, columns_given, rows_typed, values_typed
from feature_assets.cli.upkeep import Views
from feature_assets.errors import RequestError, UnknownName, WrongType

if TYPE_CHECKING:
    import polars as pl

    from feature_assets.offline import OfflineStore
    from feature_assets.spec import ViewSpec


_CLOCKS_APART: Final = 5_000_000
"""Microseconds by which the clock of a host that takes pushes may be ahead of this one's."""


@command(
    app,
    "erase",
    section="Keep in order",
    examples=["erase --entity customer_id=c007", "erase customer_orders --rows forget.csv --yes --vacuum"],
)
def erase(
    ctx: typer.Context,
    views: Views = None,
    entity: Pairs = None,
    rows: RowsFile = None,
    vacuum: Annotated[
        bool,
        typer.Option(
            "--vacuum",
            help="Remove the former versions' files at once. Who reads an old version right now, fails.",
        ),
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Forget some entities for ever, in both stores and in every view that knows them.

    A view with further join keys forgets all rows in which the given ones match. Rows that were pushed and wait on this
    machine are published first, and forgotten too; those that wait on another are left out when they are published. Old
    versions of the Delta tables hold the rows until their files are vacuumed.
    """
    from feature_assets.push import publish_waiting

    project = Project.of(ctx)
    with working("Publishing what waits to be …"):
        publish_waiting(project.settings, project.offline, project.online)
    given, late, found = _to_forget(project, views or (), entity, rows)
    total = sum(row["offline_rows"] for row in found)
    columns = (
        Column("view", style="name"),
        Column("keys", style="number"),
        Column("offline_rows", "offline rows", style="number"),
        Column("online_rows", "online rows", style="number"),
    )
    counts = [{column.key: row[column.key] for column in columns} for row in found]
    if not found:
        _leave_out(project, late)
        show([], columns, as_json=as_json, empty=f"No view knows {given}.")
        return
    if not as_json:
        table(counts, columns)
    if not confirmed(f"Erase {counted(total, 'row')} for ever?", yes=yes):
        raise Mistake(
            f"Nothing was erased: {counted(total, 'row')} of {given} in {counted(len(found), 'view')}.",
            attempt=_again(views, entity, rows),
        )
    _leave_out(project, late)
    for row in found:
        with working(f"Erasing from {row['view']} …"):
            _forget(project, row, vacuum=vacuum)
    if as_json:
        print_json(counts)
        return
    done(f"Erased {counted(total, 'row')} of {given} from {counted(len(found), 'view')}.")
    if not vacuum:
        note(
            "Old versions of the tables still hold them until their files are vacuumed (feature-assets vacuum --give-up-sets)."
        )


def _to_forget(
    project: Project, names: Sequence[str], pairs: Sequence[str] | None, file: Path | None
) -> "tuple[str, list[tuple[ViewSpec, pl.DataFrame]], list[dict[str, Any]]]":
    """What was given in words; the views into which it may be pushed, with it; and for each view that knows it, the full
    keys and how many rows there are.
    """
    if not pairs and file is None:
        raise Mistake("Say whom to forget: --entity name=value, or --rows file.")
    views = project.views(names)
    types = {name: of for view in views for name, of in view.join_keys.items()}
    columns = columns_given(pairs, file, types)
    number = len(next(iter(columns.values())))
    words = (
        ", ".join(f"{name}={values[0]}" for name, values in columns.items()) if number == 1 else f"{number:,} entities"
    )
    knowing = [view for view in views if columns.keys() <= view.join_keys.keys()]
    if not knowing:
        raise Mistake(
            f"No view is looked up by {', '.join(columns)}.", attempt="feature-assets registry list --kind view"
        )
    _check_types(columns, knowing)
    found = []
    for view in knowing:
        if project.offline.state(view) is None:
            continue
        with working(f"Looking through {project.label(view)} …"):
            keys, offline_rows, online_rows = _keys_of(project, view, rows_typed(columns, view.join_keys))
        if offline_rows or online_rows:
            found.append(
                {
                    "view": project.label(view),
                    "keys": keys.height,
                    "offline_rows": offline_rows,
                    "online_rows": online_rows,
                    "spec": view,
                    "frame": keys,
                }
            )
    late = [(view, rows_typed(columns, view.join_keys)) for view in _pushed_into(project, knowing)]
    # Whoever names views means those alone.
    return words, late, found if names else [*found, *_in_logs(project, columns)]


def _pushed_into(project: Project, views: Sequence["ViewSpec"]) -> list["ViewSpec"]:
    from feature_assets.spec import PushSource

    sources = project.registry.sources
    return [view for view in views if view.stream and isinstance(sources.get(view.stream.source), PushSource)]


def _check_types(columns: Mapping[str, list[Any]], views: Sequence["ViewSpec"]) -> None:
    """A key may be of one type in one version of a view and of another in the next; all values have to be of one."""
    refused: list[WrongType] = []
    for view in views:
        try:
            values_typed(columns, view.join_keys)
        except WrongType as error:
            refused.append(error)
    if len(refused) == len(views):
        raise refused[0]


def _in_logs(project: Project, columns: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """The same of each log of what a service served."""
    from feature_assets.served.shape import log_store
    from feature_assets.served.upkeep import requests_of

    logs = log_store(project.settings)
    with working("Looking through what services served …"):
        for service, ways in sorted(_ways(project, columns.keys()).items()):
            for kept, requests in requests_of(service, ways, logs, partial(rows_typed, columns)):
                yield {
                    "view": f"{service} (served)",
                    "keys": len(set(zip(*columns.values(), strict=True))),
                    "offline_rows": requests.height,
                    "online_rows": 0,
                    "spec": kept,
                    "frame": requests,
                    "store": logs,
                }


def _ways(project: Project, keys: Set[str]) -> dict[str, list[Mapping[str, str]]]:
    """By which columns each service asks for these keys, or ever did: its log has the rows of then."""
    from feature_assets.served.shape import shape_of
    from feature_assets.served.upkeep import ways_of

    found: dict[str, dict[tuple[str, ...], Mapping[str, str]]] = {}
    for registry in project.registries():
        for name, service in registry.services.items():
            if service.logging is None:
                continue
            # What cannot be logged was not.
            with suppress(UnknownName, RequestError):
                for way in ways_of(shape_of(registry, name), keys):
                    found.setdefault(name, {})[tuple(way.values())] = way
    return {service: list(ways.values()) for service, ways in found.items()}


def _keys_of(project: Project, view: "ViewSpec", given: "pl.DataFrame") -> "tuple[pl.DataFrame, int, int]":
    """The full join keys that match, each once; rows offline, rows online."""
    import polars as pl

    names, on = list(view.join_keys), given.columns
    history = project.offline.scan(view, features=[]).join(given.lazy(), on=on, how="semi")
    counted = history.group_by(names).len().collect(engine="streaming")
    online = project.online.stored(view).join(given, on=on, how="semi") if view.online else given.clear()
    keys = pl.concat([counted.select(names), online.select(names)] if view.online else [counted.select(names)]).unique()
    return keys, int(counted["len"].sum()), online.height


def _leave_out(project: Project, late: "Sequence[tuple[ViewSpec, pl.DataFrame]]") -> None:
    """Have rows that wait in journals of other machines be none of these keys when they are published."""
    until = time.time_ns() // 1_000 + _CLOCKS_APART
    for view, keys in late:
        with working(f"Erasing what waits for {project.label(view)} …"):
            project.offline.leave_out(view, keys, until=until)


def _forget(project: Project, row: Mapping[str, Any], *, vacuum: bool) -> None:
    from feature_assets.settlement import erase as forget

    view: ViewSpec = row["spec"]
    offline: OfflineStore = row.get("store") or project.offline
    forget(view, row["frame"], offline, project.online if view.online else None)
    if vacuum:
        offline.vacuum(view, older_than=timedelta(0), dry_run=False)


def _again(views: Sequence[str] | None, pairs: Sequence[str] | None, file: Path | None) -> str:
    words = ["erase", *(views or ()), *(word for pair in pairs or () for word in ("--entity", pair))]
    return f"feature-assets {shlex.join([*words, *(['--rows', str(file)] if file else [])])} --yes"
