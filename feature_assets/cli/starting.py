"""`init` and `demo`: a project to begin with, and the example platform."""

import random
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from feature_assets.cli.app import app, command
from feature_assets.cli.failures import Mistake
from feature_assets.cli.output import done, say

_SECTION = "Start"

_DAYS = 30
_CUSTOMERS = 40
_FILES = (
    "definitions.py",
    "feature_assets.toml",
    "workspace.yaml",
    "dagster.yaml",
    "pyproject.toml",
    "README.md",
    ".gitignore",
)


@command(app, "init", section=_SECTION, examples=["init shop", "init"])
def init(
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="Where to; this folder if left out.", show_default=False)
    ] = Path(),
) -> None:
    """Start a project that runs, with a source, a view and a service.

    Settings for both stores and for Dagster come with it. Nothing that is there already is overwritten.
    """
    folder = directory.expanduser().resolve()
    name = _project_name(folder)
    written = _written(folder, name, datetime.now(UTC).date())
    done(f"Started {name} in {folder}")
    for file in written:
        say(f"  {file}", style="dim")
    say("Next:", style="bold")
    if folder != Path.cwd():
        say(f"  cd {directory}")
    say("  feature-assets apply")
    say("  feature-assets materialize customer_orders --all")
    say("  feature-assets get online customer_value --entity customer_id=c007 --entity basket_value=25")


def _project_name(folder: Path) -> str:
    name = re.sub(r"[^a-z0-9]+", "_", folder.name.lower()).strip("_")
    return name if name and name[0].isalpha() else f"features_{name}".rstrip("_")


def _written(folder: Path, name: str, today: date) -> list[str]:
    """Write the files of the project; their names."""
    first_day = today - timedelta(days=_DAYS)
    texts = {file: _template(file).substitute(name=name, first_day=first_day.isoformat()) for file in _FILES}
    texts["data/orders.csv"] = "".join(orders(first_day))
    if there := [file for file in texts if (folder / file).exists()]:
        raise Mistake(
            f"{folder} has {', '.join(there)} already, and nothing is overwritten.",
            attempt="feature-assets init <another folder>",
        )
    try:
        for file, text in texts.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text, encoding="utf-8")
        home = folder / ".dagster"
        home.mkdir(exist_ok=True)
        # Dagster reads its settings from its home and not from here.
        (home / "dagster.yaml").symlink_to("../dagster.yaml")
    except OSError as error:
        raise Mistake(f"{folder} cannot be written: {error.strerror or error}.") from error
    return list(texts)


def _template(file: str) -> Template:
    place = files("feature_assets.cli") / "templates" / f"{file.lstrip('.')}.template"
    return Template(place.read_text(encoding="utf-8"))


def orders(first_day: date, *, days: int = _DAYS) -> Iterator[str]:
    """Lines of a CSV file with made-up orders, by time; the same for the same day."""
    yield "order_id,customer_id,ordered_at,amount\n"
    chance = random.Random(first_day.isoformat())
    number = 0
    for day in range(days):
        # Six o'clock to midnight, no two orders at the same second.
        seconds = sorted(chance.sample(range(6 * 3600, 24 * 3600), k=chance.randint(12, 24)))
        for second in seconds:
            number += 1
            at = datetime.combine(first_day, datetime.min.time()) + timedelta(days=day, seconds=second)
            customer = min(int(chance.expovariate(1 / 12)), _CUSTOMERS - 1)
            amount = round(chance.lognormvariate(3, 0.6), 2)
            yield f"o{number:05d},c{customer:03d},{at.isoformat()}Z,{amount}\n"


@command(app, "demo", section=_SECTION, examples=["demo"])
def demo() -> None:
    """Run the example platform on real flights, from raw data to a scored departure.

    It materialises, trains, serves, scores and verifies. The example is part of the repository and not of the installed package.
    """
    try:
        found = find_spec("examples.nyc_flights.demo")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise Mistake(
            "The demo is in the repository of Feature Assets; run it there, with `make demo`.",
            attempt="feature-assets init shop",
        )
    from importlib import import_module

    import_module("examples.nyc_flights.demo").main()
