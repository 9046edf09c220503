"""`doctor`: whether everything is in place and well, and the mend of what is not."""

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from feature_assets.cli.app import app, command
from feature_assets.cli.failures import NotWell, told
from feature_assets.cli.output import AsJson, Column, counted, print_json, say, table, working
from feature_assets.cli.project import Project
from feature_assets.errors import FeatureAssetsError, NotPublished, StoreError

if TYPE_CHECKING:
    from feature_assets.spec import ViewSpec

_LIBRARIES = ("dagster", "polars", "deltalake", "obstore", "pyarrow", "fastapi", "authlib")


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and what to type where it is not well."""

    what: str
    state: Literal["ok", "note", "problem"]
    found: str
    mend: str = ""


@command(app, "doctor", section="Keep in order", examples=["doctor", "doctor --json"])
def doctor(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Look at everything once: settings, code, registry, both stores, Dagster.

    What is not well comes with its mend. Reads all that is stored, and changes nothing but a probe of registry and bucket.
    Exits with 1 if there is a problem.
    """
    project = Project.of(ctx)
    findings: list[Finding] = []
    for what, look in _LOOKS.items():
        if findings and findings[0].state == "problem":
            findings.append(Finding("all else", "note", "not looked at: the settings say where it is"))
            break
        with working(f"Looking at {what} …"):
            findings += _looked(what, look, project)
    problems = sum(one.state == "problem" for one in findings)
    if as_json:
        print_json([{name: getattr(one, name) for name in ("what", "state", "found", "mend")} for one in findings])
    else:
        _print(findings, problems)
    if problems:
        raise NotWell(f"{problems} problems.")


def _looked(what: str, look: "Callable[[Project], Iterator[Finding]]", project: Project) -> list[Finding]:
    """The findings of one look; an error is one of them."""
    findings: list[Finding] = []
    try:
        findings.extend(look(project))
    except FeatureAssetsError as error:
        words = told(error)
        findings.append(Finding(what, "problem", words.message, words.attempt))
    return findings


def _print(findings: list[Finding], problems: int) -> None:
    from rich.text import Text

    marks = {"ok": Text("✓", "green"), "note": Text("!", "yellow"), "problem": Text("✗", "bold red")}
    rows: list[dict[str, Any]] = []
    for one in findings:
        found = Text(one.found)
        if one.mend:
            found = Text.assemble(one.found, "\n", (f"→ {one.mend}", "cyan"))
        rows.append({"mark": marks[one.state], "what": one.what, "found": found})
    table(rows, (Column("mark", " "), Column("what", "looked at", style="name"), Column("found")))
    if problems:
        say(f"{counted(problems, 'problem')}.", style="bold red")
    else:
        say("All is well.", style="green")


def _settings(project: Project) -> Iterator[Finding]:
    settings = project.settings
    named = project.options.config or os.environ.get("FEATURE_ASSETS_CONFIG")
    file = Path(named) if named else settings.root / "feature_assets.toml"
    yield Finding(
        "settings", "ok", str(file) if file.is_file() else f"no feature_assets.toml; defaults in {settings.root}"
    )
    if settings.durability != "power-loss":
        yield Finding(
            "settings", "note", "durability = 'process': a power loss may take back what was acknowledged as written"
        )
    if settings.present is not None:
        yield Finding("settings", "note", f"present = {settings.present}: ttl counts from there and not from now")


def _code(project: Project) -> Iterator[Finding]:
    from feature_assets.cli.loading import require_same_stores

    definitions = project.definitions
    require_same_stores(definitions, project.settings)
    derived = project.derived
    counts = ", ".join(
        counted(len(objects), what)
        for objects, what in (
            (derived.views, "view"),
            (derived.on_demand, "on-demand view"),
            (derived.services, "service"),
        )
    )
    yield Finding("definitions", "ok", f"{project.settings.definitions}: {counts}")
    for view in derived.views.values():
        if view.deprecated:
            yield Finding("definitions", "note", f"{view.name} is deprecated: {view.deprecated}")


def _registry(project: Project) -> Iterator[Finding]:
    from feature_assets.objects import open_objects
    from feature_assets.registry import check_registry

    store, settings = project.registry_store, project.settings
    # What publishing would find out too late: whether the store keeps to conditional writes.
    open_objects(settings.place(settings.registry), settings.storage()).probe()
    try:
        published = store.read()
    except NotPublished:
        yield Finding("registry", "note", f"nothing is published at {store.place} yet", "feature-assets apply")
        return
    yield Finding(
        "registry",
        "ok",
        f"{store.place}: number {published.sequence}, {published.digest[:12]}, by {published.by} on "
        f"{published.published_at:%Y-%m-%d %H:%M}Z",
    )
    check_registry(published.registry)


def _in_step(project: Project) -> Iterator[Finding]:
    try:
        derived = project.derived
    except FeatureAssetsError:
        yield Finding("published as declared", "note", "nobody knows while the definitions do not load")
        return
    changes = project.registry_store.plan(derived, location=project.settings.location)
    if changes:
        yield Finding(
            "published as declared", "note", f"{counted(len(changes), 'change')} not published", "feature-assets plan"
        )
    else:
        yield Finding("published as declared", "ok", "yes")


def _offline(project: Project) -> Iterator[Finding]:
    from feature_assets.objects import open_objects

    offline = project.offline
    if "://" in offline.root:
        open_objects(offline.root, project.settings.storage()).probe()
    tables = rows = size = 0
    problems: list[str] = []
    for view in _known_views(project):
        problems += offline.check(view, reached=_reached(project, view))
        # One that cannot be read was told just now, and does not keep the others from being looked at.
        with suppress(StoreError):
            if (state := offline.state(view)) is not None:
                tables, rows, size = tables + 1, rows + state.rows, size + state.bytes
    yield from _problems("offline store", problems)
    yield Finding(
        "offline store", "ok", f"{offline.root}: {counted(tables, 'table')}, {counted(rows, 'row')}, {_size(size)}"
    )


def _reached(project: Project, view: "ViewSpec") -> int | None:
    """The Delta version that the online store has seen; the look at that store tells if it cannot be read."""
    with suppress(StoreError):
        if view.online:
            entries = project.online.ledger(view).entries.values()
            return max((entry.delta_version for entry in entries), default=None)
    return None


def _online(project: Project) -> Iterator[Finding]:
    from feature_assets.settlement import pending

    store = project.online
    tables = store.tables()
    yield from _problems("online store", getattr(store, "doctor", list)())
    yield from _problems("online store", _otherwise(project))
    yield Finding("online store", "ok", f"{project.settings.online_url}: {counted(len(tables), 'table')}")
    behind: dict[str, int] = {}
    for view in _known_views(project):
        # A history that cannot be read was told by the look at the offline store.
        with suppress(StoreError):
            if view.online and project.offline.state(view) is not None:
                behind[view.name] = len(pending(view, project.offline, store))
    if any(behind.values()):
        names = ", ".join(f"{name} ({count})" for name, count in sorted(behind.items()) if count)
        yield Finding("online store", "problem", f"partitions have not reached it: {names}", "feature-assets reconcile")


def _otherwise(project: Project) -> list[str]:
    from feature_assets.online.protocol import MadeByOptions

    store = project.online
    found: dict[str, list[str]] = {}
    if isinstance(store, MadeByOptions):
        for table, what in store.differences(_known_views(project)):
            found.setdefault(table, []).append(what)
    return [
        f"Table {table} is otherwise than the URL of the online store says: it {'; '.join(whats)}. "
        "Run: feature-assets reconcile --tables"
        for table, whats in found.items()
    ]


def _problems(what: str, problems: list[str]) -> Iterator[Finding]:
    for problem in problems:
        words = told(FeatureAssetsError(problem))
        yield Finding(what, "problem", words.message, words.attempt)


def _known_views(project: Project) -> list[Any]:
    """What may have tables: all that is published, and what the code declares where nothing is."""
    try:
        return list(project.registry.every_version())
    except FeatureAssetsError:
        try:
            return list(project.derived.views.values())
        except FeatureAssetsError:
            return []


def _dagster(project: Project) -> Iterator[Finding]:
    from feature_assets.cli.runs import HOME, dagster_instance

    with dagster_instance(project.settings) as (instance, lasting):
        if not lasting:
            home = project.settings.root / HOME
            yield Finding("dagster", "note", "no history is kept: DAGSTER_HOME is not set", f"mkdir {home}")
            return
        info = instance.get_run_records(limit=1)
        last = f"last run {info[0].create_timestamp:%Y-%m-%d %H:%M}Z" if info else "no runs yet"
        yield Finding("dagster", "ok", f"{os.environ.get('DAGSTER_HOME')}: {last}")


def _versions(project: Project) -> Iterator[Finding]:
    found = []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding("versions", "problem", f"{name} is not installed", "pip install feature-assets")
    yield Finding("versions", "ok", f"Python {platform.python_version()}, {', '.join(found)}")


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


_LOOKS: dict[str, Callable[[Project], Iterator[Finding]]] = {
    "settings": _settings,
    "definitions": _code,
    "registry": _registry,
    "published as declared": _in_step,
    "offline store": _offline,
    "online store": _online,
    "dagster": _dagster,
    "versions": _versions,
}
