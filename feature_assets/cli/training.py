"""`training`: training sets that are kept by name, and made again bit for bit."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_assets.cli.app import command, group
from feature_assets.cli.failures import Mistake
from feature_assets.cli.output import AsJson, Column, Yes, confirmed, done, facts, print_json, say, show, table, working
from feature_assets.cli.project import Project
from feature_assets.cli.retrieval import (
    Engine,
    Features,
    FullNames,
    Joining,
    MemoryLimit,
    Output,
    Since,
    Spine,
    TimeColumn,
    Until,
    deliver,
    training_set,
)

if TYPE_CHECKING:
    from feature_assets.spec import ViewProjection
    from feature_assets.training import Manifest
    from feature_assets.training.comparison import Changed, Differences

training = group("training", "Training sets: kept by name with a manifest, made again bit for bit.", section="Ask")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The training set.", show_default=False)]


@command(training, "save", examples=["training save value_2025 customer_value --spine spine.parquet"])
def save(
    ctx: typer.Context,
    name: Name,
    features: Features,
    spine: Spine = None,
    since: Since = None,
    until: Until = None,
    time: TimeColumn = None,
    full_names: FullNames = False,
    engine: Engine = "polars",
    memory_limit: MemoryLimit = None,
    as_json: AsJson = False,
) -> None:
    """Join features to a spine and keep the rows under a new name, with all that it takes to make them again."""
    project = Project.of(ctx)
    joining = Joining()
    found = training_set(
        project,
        features,
        spine,
        since=since,
        until=until,
        time=time,
        full_names=full_names,
        engine=engine,
        memory_limit=memory_limit,
        progress=joining,
    )
    with working("Joining …") as joining.tell:
        manifest = found.save(name)
    if as_json:
        print_json(_builtins(manifest))
    else:
        done(f"Saved {name}: {manifest.result.rows:,} rows, {len(manifest.result.columns)} columns.")


@command(training, "list", examples=["training list", "training list --json"])
def list_(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the saved training sets."""
    sets = Project.of(ctx).training_sets
    manifests = [sets.manifest(name) for name in sets.names()]
    rows = [
        {
            "name": one.name,
            "saved_at": one.created_at,
            "rows": one.result.rows,
            "columns": len(one.result.columns),
            "features": [_asked(each) for each in one.question.features],
            "digest": one.result.digest if as_json else one.result.digest[:12],
        }
        for one in manifests
    ]
    columns = (
        Column("name", style="name"),
        Column("saved_at", "saved"),
        Column("rows", style="number"),
        Column("columns", style="number"),
        Column("features"),
        Column("digest", style="dim"),
    )
    show(rows, columns, as_json=as_json, empty="No training set was saved yet.")


def _asked(projection: "ViewProjection") -> str:
    view = projection.view if projection.version is None else f"{projection.view}@v{projection.version}"
    return f"{view}:{'*' if projection.features is None else ','.join(projection.features)}"


@command(training, "show", examples=["training show value_2025", "training show value_2025 --output rows.parquet"])
def show_(ctx: typer.Context, name: Name, output: Output = None, as_json: AsJson = False) -> None:
    """Show what a saved training set was made of; with --output, write its rows as they were saved."""
    project = Project.of(ctx)
    sets = project.training_sets
    manifest = sets.manifest(name)
    if output is not None:
        deliver(sets.load(name), output, Joining(), as_json=as_json)
        return
    if as_json:
        print_json(_builtins(manifest))
        return
    question = manifest.question
    facts(
        {
            "training set": manifest.name,
            "saved": manifest.created_at,
            "rows": manifest.result.rows,
            "digest": manifest.result.digest,
            "spine": ", ".join(manifest.spine.columns),
            "time of a row": question.timestamp_column,
            "features": [_asked(one) for one in question.features],
            "created cutoff": question.created_cutoff,
            "registry": question.registry,
            "delta versions": {view: str(version) for view, version in question.tables.items()},
            "engine": question.engine,
            "libraries": {library: str(version) for library, version in manifest.libraries.items()},
            "kept at": f"{sets.place}/{name}",
        }
    )
    typer.echo()
    rows = [{"column": column, "dtype": dtype} for column, dtype in manifest.schema.items()]
    table(rows, (Column("column", style="name"), Column("dtype")))


@command(
    training, "rebuild", examples=["training rebuild value_2025", "training rebuild value_2025 --output again.parquet"]
)
def rebuild(
    ctx: typer.Context, name: Name, output: Output = None, memory_limit: MemoryLimit = None, as_json: AsJson = False
) -> None:
    """Make a saved training set again from its manifest, and compare it bit for bit.

    Exits with 1 if it does not come out alike, and says what is no longer there.
    """
    joining = Joining()
    with working("Joining anew …") as joining.tell:
        found = Project.of(ctx).store.rebuild(name, memory_limit=memory_limit, progress=joining)
    if output is not None:
        deliver(found, output, joining, as_json=as_json)
        return
    manifest = found.manifest
    if as_json:
        print_json({"name": name, "equal": True, "rows": manifest.result.rows, "digest": manifest.result.digest})
    else:
        done(
            f"{name} came out the same, bit for bit: {manifest.result.rows:,} rows, digest {manifest.result.digest[:12]}."
        )


@command(training, "diff", examples=["training diff value_2025 value_2026", "training diff value_2025 again --json"])
def diff(
    ctx: typer.Context,
    first: Annotated[str, typer.Argument(metavar="FIRST", help="A training set.", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="Another one.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Say what the second saved training set has otherwise than the first: views, versions, columns, rows.

    Exits with 1 if their rows differ.
    """
    with working("Comparing …"):
        found = Project.of(ctx).store.compare(first, second)
    if as_json:
        print_json(_builtins(found))
    else:
        _tell(found)
    if not found.equal:
        raise typer.Exit(1)


def _tell(found: "Differences") -> None:
    made = [*_of("view", found.views), *_of("question", found.asked), *_of("library", found.libraries)]
    if made:
        table(
            made,
            (Column("of"), Column("what", style="name"), Column("before", found.first), Column("after", found.second)),
        )
        typer.echo()
    if found.equal:
        done(f"{found.first} and {found.second} have the same rows, bit for bit.")
        return
    columns = [
        {"column": one.name, "before": one.before or "none", "after": one.after or "none", "rows": one.rows}
        for one in found.columns
    ]
    if columns:
        heading = Column("rows", "rows that differ", style="number")
        named = Column("column", style="name")
        table(columns, (named, Column("before", found.first), Column("after", found.second), heading))
        typer.echo()
    rows = found.rows
    say(f"{rows.changed:,} rows changed, {rows.added:,} added, {rows.removed:,} removed.")
    for example in found.examples:
        row = (f"{name} {value}" for name, value in example.row.items())
        changes = (f"{name} {value} → {example.after[name]}" for name, value in example.before.items())
        say(f"  {', '.join(row)}: {', '.join(changes)}", style="yellow")


def _of(kind: str, changes: "Iterable[Changed]") -> "Iterator[dict[str, Any]]":
    for one in changes:
        yield {"of": kind, "what": one.what, "before": one.before or "none", "after": one.after or "none"}


@command(training, "delete", examples=["training delete value_2025 --yes"])
def delete(ctx: typer.Context, name: Name, yes: Yes = False) -> None:
    """Forget a saved training set: its rows and its manifest."""
    sets = Project.of(ctx).training_sets
    manifest = sets.manifest(name)
    if not confirmed(f"Delete {name}, {manifest.result.rows:,} rows?", yes=yes):
        raise Mistake("Nothing was deleted.", attempt=f"feature-assets training delete {name} --yes")
    sets.delete(name)
    done(f"Deleted {name}.")


def _builtins(manifest: "Manifest | Differences") -> Any:
    from feature_assets.spec import to_builtins

    return to_builtins(manifest)
