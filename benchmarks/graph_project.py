"""A project as large as one wishes, from a seed: what is declared, or as many plain Dagster assets with the same partitions.

    python -m benchmarks.graph_project FOLDER [ours|plain] [views]

Views are spread over modules of twenty, half of them daily and half hourly, each of ten features over one of fifty
entities; every fifth has two checks, every twentieth reads another view. A hundred services name three views each, fifty
on-demand views compute two features of two views.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["ours", "plain"]

_PER_MODULE = 20
_TYPES = ("Float64", "Int64", "String", "Bool")
_START = {"Daily": "2024-01-01", "Hourly": "2024-01-01-00:00"}

_VIEW = '''
@feature_view(
    entities=[{entity}],
    partitions_def={partitions},
    event_timestamp="at",
    ttl=timedelta(days={ttl}),
    schema=[
{fields}
    ],
    checks=[{checks}],
    owners=["team:{team}"],
    tags={{"area": "{team}"}},
    group_name="{team}",
    deps=["{upstream}"],
)
def {name}(context: dg.AssetExecutionContext) -> pl.DataFrame:
    """What {team} knows of {entity}, number {number}."""
    start = context.partition_time_window.start
    keys = range({number}, {number} + 10)
    return pl.DataFrame({{"{entity}_id": keys, "at": [start] * 10{columns}}})
'''

_ASSET = '''
@dg.asset(
    partitions_def={partitions},
    check_specs=[{checks}],
    owners=["team:{team}"],
    tags={{"area": "{team}"}},
    group_name="{team}",
    deps=["{upstream}"],
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def {name}(context: dg.AssetExecutionContext):
    """What {team} knows of {entity}, number {number}."""
'''


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is of everything."""

    views: int = 1_000
    features: int = 10
    entities: int = 50
    services: int = 100
    on_demand: int = 50


def write_project(folder: Path, kind: Kind, size: Size | None = None, seed: int = 0) -> None:
    """The files of a project, `definitions.py` among them, which declares everything as `defs`."""
    size, chance = size or Size(), random.Random(seed)
    package = folder / "platform_features"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (folder / "feature_assets.toml").write_text('location = "graph"\ndefinitions = "definitions.py"\n')
    (package / "partitions.py").write_text(_partitions())
    if kind == "ours":
        (package / "entities.py").write_text(_entities(size))
    modules = []
    for first in range(0, size.views, _PER_MODULE):
        modules.append(f"area_{first // _PER_MODULE:03}")
        numbers = range(first, min(first + _PER_MODULE, size.views))
        text = "\n".join(_declared(number, kind, size, chance) for number in numbers)
        (package / f"{modules[-1]}.py").write_text(_head(kind, size) + text)
    composed = _composed if kind == "ours" else _composed_plain
    (package / "composed.py").write_text(composed(size, chance))
    (folder / "definitions.py").write_text(_definitions(kind, [*modules, "composed"], size))


def _partitions() -> str:
    lines = [f'{each.lower()} = dg.{each}PartitionsDefinition("{start}")' for each, start in _START.items()]
    return "\n".join(["import dagster as dg", "", *lines, ""])


def _entities(size: Size) -> str:
    made = [f'entity_{one} = Entity("entity_{one}", {{"entity_{one}_id": Int64}})' for one in range(size.entities)]
    return "\n".join(["from feature_assets import Entity, Int64", "", *made, ""])


def _head(kind: Kind, size: Size) -> str:
    lines = ["from datetime import timedelta", "", "import dagster as dg"]
    if kind == "ours":
        names = ", ".join(f"entity_{one}" for one in range(size.entities))
        lines += [
            "import polars as pl",
            "from feature_assets import Bool, Field, Float64, InRange, Int64, NotNull, String, feature_view",
            f"from platform_features.entities import {names}",
        ]
    return "\n".join([*lines, "from platform_features.partitions import daily, hourly", ""])


def _declared(number: int, kind: Kind, size: Size, chance: random.Random) -> str:
    types = [chance.choice(_TYPES) for _ in range(size.features)]
    types[0] = "Float64"
    fields = [
        f'        Field("f{number}_{each}", {of}, description="The {each}th of view {number}"),'
        for each, of in enumerate(types)
    ]
    checks = ""
    if number % 5 == 0:
        names = (f"between f{number}_0", f"not null f{number}_1")
        ours = f'InRange("f{number}_0", 0, 1), NotNull("f{number}_1", severity="warn")'
        plain = ", ".join(f'dg.AssetCheckSpec("{one.replace(" ", "_")}", asset="view_{number}")' for one in names)
        checks = ours if kind == "ours" else plain
    values = {"Float64": "0.5", "Int64": str(number), "String": f'"{number}"', "Bool": "True"}
    words = {
        "name": f"view_{number}",
        "number": number,
        "entity": f"entity_{chance.randrange(size.entities)}",
        "partitions": "daily" if number % 2 else "hourly",
        "ttl": chance.randint(1, 90),
        "team": f"team_{number % 20}",
        "upstream": f"view_{number - 2}" if number % 20 == 5 else f"events_{number % 40}",
        "fields": "\n".join(fields),
        "checks": checks,
        "columns": "".join(f', "f{number}_{each}": [{values[of]}] * 10' for each, of in enumerate(types)),
    }
    return (_VIEW if kind == "ours" else _ASSET).format(**words)


def _chosen(size: Size, chance: random.Random, count: int) -> list[int]:
    return chance.sample(range(size.views), count)


def _module_of(view: int) -> str:
    return f"from platform_features.area_{view // _PER_MODULE:03} import view_{view}"


def _composed(size: Size, chance: random.Random) -> str:
    lines, used = [], set()
    for number in range(size.on_demand):
        one, other = _chosen(size, chance, 2)
        used |= {one, other}
        lines += [
            (
                f'ratio_{number} = OnDemandFeatureView("ratio_{number}", sources=[view_{one}[["f{one}_0"]], view_{other}'
                f'[["f{other}_0"]]], schema=[Field("ratio_{number}_a", Float64), Field("ratio_{number}_b", Float64)], '
                f'expressions={{"ratio_{number}_a": pl.col("f{one}_0") / pl.col("f{other}_0"), '
                f'"ratio_{number}_b": pl.col("f{one}_0") - pl.col("f{other}_0")}})'
            )
        ]
    for number in range(size.services):
        views = _chosen(size, chance, 3)
        used |= set(views)
        more = [f"ratio_{number % size.on_demand}"] if number % 4 == 0 and size.on_demand else []
        named = ", ".join([*(f"view_{one}" for one in views), *more])
        lines.append(f'service_{number} = FeatureService("service_{number}", features=[{named}])')
    head = [
        "import polars as pl",
        "from feature_assets import FeatureService, Field, Float64, OnDemandFeatureView",
        *map(_module_of, sorted(used)),
        "",
    ]
    return "\n".join([*head, *lines, ""])


def _composed_plain(size: Size, chance: random.Random) -> str:
    lines = ["import dagster as dg", ""]
    for name, count, needs in (("ratio", size.on_demand, 2), ("service", size.services, 3)):
        for number in range(count):
            views = ", ".join(f'"view_{one}"' for one in _chosen(size, chance, needs))
            lines.append(f'{name}_{number} = dg.AssetSpec("{name}_{number}", deps=[{views}])')
    return "\n".join([*lines, ""])


def _definitions(kind: Kind, modules: list[str], size: Size) -> str:
    lines = ["import dagster as dg"]
    if kind == "ours":
        lines.append("from feature_assets import feature_definitions")
    lines += [f"from platform_features import {one}" for one in modules]
    events = f'[dg.AssetSpec(f"events_{{one}}") for one in range({min(40, size.views)})]'
    loaded = f"dg.load_assets_from_modules([{', '.join(modules)}], include_specs=True)"
    made = "feature_definitions" if kind == "ours" else "dg.Definitions"
    return "\n".join([*lines, "", f"defs = {made}(assets=[*{events}, *{loaded}])", ""])


if __name__ == "__main__":
    write_project(
        Path(sys.argv[1]),
        "plain" if "plain" in sys.argv else "ours",
        Size(views=int(sys.argv[3]) if len(sys.argv) > 3 else 1_000),
    )
